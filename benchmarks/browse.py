"""Time to the first picture, and memory, of `fgbg browse` over many records.

    python benchmarks/browse.py [--records 100000] [--json]

The set is synthetic: scenes of one to four objects whose columns are drawn at random, with small
pictures, written by the package's own writer. One server and one Chromium, without a GPU. Times
are from the start of `serving` (library imported); memory is that of the Python process beyond what
it had before, and of what the page's script holds.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from builder.layout import shard_file
from builder.record import DepthCodec, Plan, encode_mask
from builder.record.encoding import encode_image, encode_instances
from builder.schema import arrow_schema, record_columns
from builder.tables import write_table
from fgbg_dataset import FgbgDataset, PinnedRecipe

SIZE = 64
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-gpu"]


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def make_sources(root: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    for kind, count in (("fg", 40), ("bg", 40)):
        (root / kind).mkdir()
        for n in range(count):
            pixels = rng.integers(0, 256, (SIZE, SIZE, 4 if kind == "fg" else 3), np.uint8)
            if kind == "fg":
                pixels[..., 3] = 255
                pixels[:4] = 0
            else:
                rows = np.linspace(8000, 1000, SIZE).astype(np.uint16)
                depth = np.repeat(rows[:, None], SIZE, axis=1)
                Image.fromarray(depth).save(root / kind / f"{n}.depth.png")
            Image.fromarray(pixels).save(root / kind / f"{n}.png")
    return root / "fg", root / "bg"


def make_set(root: Path, records: int) -> Path:
    """A finished set whose sources are real and whose records are drawn at random."""
    out = root / "out"
    choices = {"layout": "scenes", "size": SIZE, "depth_model": "measured", "holdout": 0.0}
    small = FgbgDataset(*make_sources(root), **choices, records=40)
    small.download_and_prepare(out, file_format="parquet", num_proc=1)
    pinned = small.project.pinned
    placements = -(-records // (len(pinned.foregrounds) * len(pinned.backgrounds) * 2))
    recipe = replace(pinned.recipe, placements=placements, records=records, shard_records=1000)
    many = replace(pinned, recipe=recipe)
    assert isinstance(many, PinnedRecipe)
    (out / "recipe.json").write_text(many.to_json())
    shutil.rmtree(out / "data")
    (out / "data").mkdir()
    plan = Plan(many)
    columns = record_columns(recipe, many.categories)
    schema, rng = arrow_schema(columns), np.random.default_rng(1)
    pictures = [_pictures(many, rng) for _ in range(32)]
    for split in plan.splits.values():
        for shard in range(split.n_shards):
            ids = split.record_ids(*split.shard_range(shard)).tolist()
            rows = (_row(plan, record_id, columns, pictures, rng) for record_id in ids)
            write_table(out / shard_file(split, shard, "parquet"), "parquet", schema, rows)
    return out


def _pictures(pinned: PinnedRecipe, rng: np.random.Generator) -> dict[str, Any]:
    recipe, depth = pinned.recipe, pinned.depth
    assert depth is not None
    pixels = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3), np.uint8), 8, 0), 8, 1)
    instances = np.zeros((SIZE, SIZE), np.uint8)
    instances[20:40, 20:40] = 1
    made = {
        "fg_bg": encode_image(pixels, recipe),
        "mask": encode_mask((instances > 0).astype(np.uint8) * 255),
        "instances": encode_instances(instances),
        "depth": DepthCodec(recipe, depth).encode(
            np.full((SIZE, SIZE), rng.integers(1000, 8000), np.uint16)
        ),
    }
    return {name: {"bytes": data, "path": None} for name, data in made.items()}


def _row(
    plan: Plan, record_id: int, columns: Any, pictures: Any, rng: np.random.Generator
) -> dict[str, Any]:
    what, pinned = plan.combination(record_id), plan.pinned
    n = int(rng.integers(1, 5))
    names = [pinned.foregrounds[what.foreground].id]
    names += [pinned.foregrounds[k].id for k in rng.integers(0, len(pinned.foregrounds), n - 1)]
    box = rng.integers(0, 40, (n, 4)) + 1
    values = {
        "id": range(1, n + 1),
        "category": [0] * n,
        "bbox": box.tolist(),
        "bbox_amodal": box.tolist(),
        "foreground_id": names,
        "stance": ["ground"] * n,
        "depth_mm": rng.integers(500, 9000, n).tolist(),
        "visible": rng.random(n).tolist(),
        "truncated": (0.3 * rng.random(n)).tolist(),
        "flipped": [False] * n,
        "rotation_deg": [0.0] * n,
    }
    row: dict[str, Any] = {
        **pictures[int(rng.integers(0, len(pictures)))],
        "record_id": record_id,
        "background_id": pinned.backgrounds[what.background].id,
        "foreground_id": names[0],
        "flipped": what.flipped,
        "bbox": box[0].tolist(),
        "coverage": float(rng.random() * 0.3),
        "pixel_hash": f"{record_id:032x}",
    }
    for column in columns:
        if column.name == "objects":
            row["objects"] = {name: list(values.get(name, [0] * n)) for name, _ in column.fields}
        elif column.name not in row:
            row[column.name] = None
    return row


def measure(out: Path) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    from builder.release.browse import serving

    before, found = resident_mb(), {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        start = time.perf_counter()
        with serving(out, flags=out / "flags.csv") as url:
            page.goto(url)
            page.locator(".tile img").first.wait_for()
            while not page.evaluate("document.querySelector('.tile img').naturalWidth > 0"):
                pass
            found["first_picture_s"] = time.perf_counter() - start
            page.locator(".facet").nth(3).wait_for(state="attached")
            found["filters_s"] = time.perf_counter() - start
            found["columns_mb"] = resident_mb() - before
            page.locator("#grid").focus()
            start = time.perf_counter()
            page.keyboard.press("End")
            while not page.evaluate(
                "tiles.has(total - 1)"
                " && tiles.get(total - 1).querySelector('img')?.naturalWidth > 0"
            ):
                pass
            found["to_the_end_s"] = time.perf_counter() - start
            frames = page.evaluate(
                """async () => {
                  const gaps = [], most = grid.scrollHeight - grid.clientHeight;
                  let last = performance.now();
                  for (let n = 0; n < 120; n++) {
                    grid.scrollTop = ((n * 37) % 120) / 120 * most;
                    await new Promise(requestAnimationFrame);
                    gaps.push(performance.now() - last);
                    last = performance.now();
                  }
                  return gaps.sort((a, b) => a - b);
                }"""
            )
            found["frame_ms"] = {"median": frames[60], "longest": frames[-1]}
            times = []
            for k in range(5):
                start = time.perf_counter()
                query = f"find?size={k},30&distance=2,{4 + k}&coverage=1,{20 + k}"
                with urllib.request.urlopen(url + query) as answer:
                    answer.read()
                times.append(time.perf_counter() - start)
            found["filter_s"] = sorted(times)[2]
            heap = page.evaluate("performance.memory ? performance.memory.usedJSHeapSize : 0")
            found["script_mb"] = heap / 1e6
            found["tiles"] = page.locator(".tile").count()
            found["server_mb"] = resident_mb() - before
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = make_set(Path(folder), options.records)
        found = {"records": options.records, **measure(out)}
    if options.json:
        json.dump(found, sys.stdout)
        return
    for name, value in found.items():
        print(f"{name:<18}{value if not isinstance(value, float) else round(value, 3)}")


if __name__ == "__main__":
    main()
