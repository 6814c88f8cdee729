"""`fgbg build` makes a set that loads, streams, can be made again and has the right statistics."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from datasets import load_dataset
from PIL import Image

from tests.e2e.running import OPTIONS, SPLITS, fgbg, files_of
from tests.pictures import blob


def rows_of(out: Path, **options: Any) -> dict[int, dict[str, Any]]:
    sets = load_dataset(str(out), **options)
    return {row["record_id"]: row for split in sets.values() for row in split}


@pytest.fixture(scope="module")
def rows(built: Path) -> dict[int, dict[str, Any]]:
    return rows_of(built)


def test_result_is_told_as_json(sources, tiny_model, tmp_path):
    out = tmp_path / "out"
    done = fgbg("build", *sources, out, *OPTIONS, "--depth-model", tiny_model, "--json")
    result = json.loads(done.stdout)
    assert result["records"] == 120
    assert result["splits"] == SPLITS
    assert result["fingerprint"] == json.loads((out / "recipe.json").read_text())["fingerprint"]
    assert "4 foregrounds, 5 backgrounds" in done.stderr


def test_folder_holds_what_the_hub_will_hold_and_nothing_else(built):
    names = {name for name in files_of(built) if not name.startswith("data/")}
    assert names == {
        "README.md",
        "assets/preview.html",
        "assets/samples.png",
        "assets/statistics.json",
        "backgrounds/train-00000-of-00001.parquet",
        "dataset_info.json",
        "fiftyone.yml",
        "foregrounds/train-00000-of-00001.parquet",
        "preview/train-00000-of-00001.parquet",
        "recipe.json",
    }
    assert sorted(p.name for p in (built / "data").iterdir()) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
        "unseen_background-00000-of-00001.parquet",
        "unseen_both-00000-of-00001.parquet",
        "unseen_foreground-00000-of-00001.parquet",
    ]
    assert [p.name for p in built.parent.iterdir()] == [built.name]  # nothing left beside it


def test_loads_with_the_splits_and_types_of_the_card(built, rows):
    sets = load_dataset(str(built))
    assert {name: split.num_rows for name, split in sets.items()} == SPLITS
    assert sorted(rows) == list(range(120))
    row = rows[0]
    assert (row["fg_bg"].mode, row["fg_bg"].size) == ("RGB", (64, 64))
    assert (row["mask"].mode, row["mask"].size) == ("L", (64, 64))
    assert (row["depth"].mode, row["depth"].size) == ("I;16", (64, 64))


def test_streams_the_same_rows_in_the_same_order(built):
    for split in SPLITS:
        stored = load_dataset(str(built), split=split)
        streamed = load_dataset(str(built), split=split, streaming=True)
        for one, other in zip(stored, streamed, strict=True):
            assert one["pixel_hash"] == other["pixel_hash"]
            assert np.array_equal(one["fg_bg"], other["fg_bg"])
            assert np.array_equal(one["depth"], other["depth"])


def test_sources_are_configs_of_their_own_with_credits(built):
    foregrounds = load_dataset(str(built), "foregrounds", split="train")
    assert foregrounds["id"][:] == ["blob0", "blob1", "blob2", "blob3"]
    assert foregrounds["author"][:] == ["Ann", "Ann", "Ann", ""]
    assert foregrounds["url"][1] == "https://example.org/1"
    assert [image.mode for image in foregrounds["image"]] == ["RGBA"] * 4
    assert max(foregrounds["width"][:] + foregrounds["height"][:]) == 32
    backgrounds = load_dataset(str(built), "backgrounds", split="train")
    assert {image.size for image in backgrounds["image"]} == {(64, 64)}


def test_every_record_can_be_composed_again_from_the_published_sources(built, rows):
    """By the definition, in exact arithmetic, not by our code."""
    images = {
        kind: {
            row["id"]: np.asarray(row["image"]).astype(np.int64)
            for row in load_dataset(str(built), kind, split="train")
        }
        for kind in ("foregrounds", "backgrounds")
    }
    for row in rows.values():
        foreground = images["foregrounds"][row["foreground_id"]]
        if row["flipped"]:
            foreground = foreground[:, ::-1]
        height, width = foreground.shape[:2]
        solid = foreground[..., 3] * 2 >= 255
        ys, xs = np.nonzero(solid)
        x, y, w, h = row["bbox"]
        assert (w, h) == (xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
        left, top = x - xs.min(), y - ys.min()
        assert 0 <= left <= 64 - width and 0 <= top <= 64 - height
        expected = images["backgrounds"][row["background_id"]].copy()
        area = np.s_[top : top + height, left : left + width]
        alpha = foreground[..., 3:]
        blend = foreground[..., :3] * alpha + expected[area] * (255 - alpha)
        expected[area] = (2 * blend + 255) // 510  # rounded to the nearest
        mask = np.zeros((64, 64), bool)
        mask[area] = solid
        assert np.array_equal(np.asarray(row["mask"]), np.where(mask, 255, 0))
        assert row["coverage"] == pytest.approx(mask.mean(), rel=1e-6)
        # JPEG at quality 90 is near the composite, and the hash is of the composite itself
        assert np.abs(np.asarray(row["fg_bg"]).astype(int) - expected).mean() < 6
        digest = xxhash.xxh3_128(expected.astype(np.uint8).tobytes())
        digest.update(np.packbits(mask, axis=1).tobytes())
        assert row["pixel_hash"] == digest.hexdigest()


def test_no_source_crosses_splits(built):
    used = {
        split: (
            set(load_dataset(str(built), split=split)["foreground_id"][:]),
            set(load_dataset(str(built), split=split)["background_id"][:]),
        )
        for split in SPLITS
    }
    assert not used["train"][0] & used["unseen_foreground"][0]
    assert not used["train"][1] & used["unseen_background"][1]
    assert used["unseen_both"] == (used["unseen_foreground"][0], used["unseen_background"][1])


def test_depth_is_the_models_and_lies_on_the_grid(built, rows, tiny_model):
    """The same network through Transformers alone, one picture at a time."""
    import torch
    from transformers import AutoModelForDepthEstimation

    import builder.depth.densedepth  # noqa: F401

    model = AutoModelForDepthEstimation.from_pretrained(tiny_model).eval()
    sources = {
        kind: {r["id"]: r["image"] for r in load_dataset(str(built), kind, split="train")}
        for kind in ("foregrounds", "backgrounds")
    }
    different = 0
    for row in list(rows.values())[::10]:
        foreground = np.asarray(sources["foregrounds"][row["foreground_id"]])
        foreground = foreground[:, ::-1] if row["flipped"] else foreground
        ys, xs = np.nonzero(foreground[..., 3] >= 128)
        left, top = row["bbox"][0] - xs.min(), row["bbox"][1] - ys.min()
        composite = sources["backgrounds"][row["background_id"]].convert("RGBA")
        composite.alpha_composite(Image.fromarray(np.ascontiguousarray(foreground)), (left, top))
        pixels = torch.from_numpy(np.array(composite)[..., :3]).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            depth = model(pixel_values=pixels).predicted_depth[:, None]
        depth = torch.nn.functional.interpolate(depth, size=(64, 64), mode="bilinear")[0, 0]
        stored = np.asarray(row["depth"]) / 1000
        # half a grid step, and Pillow's blend may differ from ours by one level
        assert np.abs(stored / depth.numpy() - 1).max() < 0.012
        different += np.ptp(stored) > 0.05
    assert different > 0
    grid = set(np.unique(np.concatenate([np.asarray(r["depth"]).ravel() for r in rows.values()])))
    steps = np.diff(np.array(sorted(grid))) / np.array(sorted(grid))[:-1]
    assert steps.min() > 0.0095


def test_numbers_of_the_card_equal_a_brute_force_recomputation(built, rows):
    card = (built / "README.md").read_text()
    table = {
        cells[0]: cells[1:]
        for line in card.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 6
        and re.fullmatch("bg|fg|fg_bg|mask|depth", cells[0])
    }
    pixels = {
        column: np.stack([np.asarray(row[column]) for row in rows.values()]).astype(np.float64)
        for column in ("fg_bg", "mask", "depth")
    }
    encoded = load_dataset("parquet", data_files=str(built / "data/*.parquet"), split="train")
    for column in ("fg_bg", "mask", "depth"):
        raw = encoded.with_format("arrow")[column]
        size = sum(len(image["bytes"]) for chunk in raw.chunks for image in chunk.to_pylist())
        assert table[column][4] == f"{size:,}"
    far = 10000
    for column, scale in (("fg_bg", 255), ("mask", 255), ("depth", far)):
        values = pixels[column].reshape(-1, pixels[column].shape[3] if column == "fg_bg" else 1)
        assert table[column][0] == "120"
        assert table[column][2] == " ".join(f"{v / scale:.4f}" for v in values.mean(axis=0))
        assert table[column][3] == " ".join(f"{v / scale:.4f}" for v in values.std(axis=0))
    for kind, config in (("fg", "foregrounds"), ("bg", "backgrounds")):
        images = load_dataset(str(built), config, split="train")["image"]
        values = np.concatenate([np.asarray(i).reshape(-1, len(i.getbands())) for i in images])
        assert table[kind][2] == " ".join(f"{v:.4f}" for v in (values / 255).mean(axis=0))
        assert table[kind][3] == " ".join(f"{v:.4f}" for v in (values / 255).std(axis=0))
    metres = pixels["depth"] / 1000
    figures = [
        metres.mean(),
        metres.std(),
        metres.min(),
        *np.quantile(metres, [0.05, 0.5, 0.95], method="inverted_cdf"),
        metres.max(),
    ]
    assert "| " + " | ".join(f"{f:.3f}" for f in figures) + " |" in card
    boxes = np.array([row["bbox"] for row in rows.values()], float)
    for name, column in zip(("x", "y", "width", "height"), boxes.T, strict=True):
        low, high = int(column.min()), int(column.max())
        assert (
            f"| {name} (px) | {column.mean():.2f} | {column.std():.2f} | {low} | {high} |" in card
        )
    share = pixels["mask"].reshape(120, -1).mean(axis=1) / 255
    assert f"mean {share.mean():.4f}, std {share.std():.4f}" in card


@pytest.mark.parametrize(
    "options",
    [("--workers", "2", "--shard-records", "17"), ("--batch-size", "3", "--shard-records", "500")],
)
def test_workers_shards_and_batches_change_no_record(sources, tiny_model, rows, tmp_path, options):
    out = tmp_path / "out"
    fgbg("build", *sources, out, *OPTIONS, "--depth-model", tiny_model, *options)
    others = rows_of(out)
    assert others.keys() == rows.keys()
    for record_id, row in rows.items():
        other = others[record_id]
        assert other["pixel_hash"] == row["pixel_hash"]
        assert np.array_equal(other["fg_bg"], row["fg_bg"])
        # Another batch size may sum in another order; the grid hides all but a rare step.
        one, two = (np.asarray(r["depth"]).astype(float) for r in (row, other))
        assert np.abs(one / two - 1).max() < 0.011
        assert (one != two).mean() < 0.001


def test_same_command_again_does_nothing_and_another_recipe_is_refused(built, sources, tiny_model):
    before = files_of(built)
    command = ("build", *sources, built, *OPTIONS, "--depth-model", tiny_model)
    fgbg(*command)
    assert files_of(built) == before
    refused = fgbg(*command, "--seed", "7", "--placements", "4", code=2)
    assert "placements is 3, asked for is 4" in refused.stderr
    assert "seed is 0, asked for is 7" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert files_of(built) == before


def test_recipe_repeats_a_set_to_the_bit(built, sources, tmp_path):
    fgbg("build", *sources, tmp_path / "out", "--recipe", built / "recipe.json")
    one, other = files_of(built), files_of(tmp_path / "out")
    for name in one:
        if name.startswith(("data/", "foregrounds/", "backgrounds/")) or name == "recipe.json":
            assert one[name] == other[name], name


def test_recipe_with_other_sources_is_refused_by_name(built, sources, tmp_path):
    import shutil

    foregrounds = tmp_path / "fg"
    shutil.copytree(sources[0], foregrounds)
    (foregrounds / "credits.csv").unlink()
    (foregrounds / "blob2.png").unlink()
    blob(90, 40, 40).save(foregrounds / "other.png")
    refused = fgbg("build", foregrounds, sources[1], tmp_path / "out", "--recipe",
                   built / "recipe.json", code=2)  # fmt: skip
    assert "foregrounds: blob2 is gone" in refused.stderr
    assert "foregrounds: other is new" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_bad_files_of_both_folders_are_listed_together_before_any_work(sources, tmp_path):
    import shutil

    foregrounds, backgrounds = tmp_path / "fg", tmp_path / "bg"
    shutil.copytree(sources[0], foregrounds)
    shutil.copytree(sources[1], backgrounds)
    Image.new("RGB", (40, 40), "red").save(foregrounds / "opaque.jpg")
    (foregrounds / "empty.png").write_bytes(b"")
    (backgrounds / "notes.txt").write_text("hello")
    (backgrounds / "cut.jpg").write_bytes((backgrounds / "scene0.jpg").read_bytes()[:900])
    command = ("build", foregrounds, backgrounds, tmp_path / "out", *OPTIONS,
               "--depth-model", "none")  # fmt: skip
    refused = fgbg(*command, code=2)
    assert "4 sources cannot be used:" in refused.stderr
    assert "fg/opaque.jpg: has no alpha channel; a foreground needs transparency" in refused.stderr
    assert "fg/empty.png: is empty (0 bytes)" in refused.stderr
    assert "bg/notes.txt: is not a JPEG, PNG, WebP, TIFF or BMP image" in refused.stderr
    assert "bg/cut.jpg: is damaged or cut short" in refused.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bg", "fg"]
    done = fgbg(*command, "--skip-bad", "--json")
    skipped = json.loads(done.stdout)["skipped"]
    assert [name for name, _ in skipped] == [
        "fg/empty.png", "fg/opaque.jpg", "bg/cut.jpg", "bg/notes.txt"
    ]  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- fg/empty.png: is empty (0 bytes)" in card


def test_without_depth_there_is_no_depth_column(sources, tmp_path):
    fgbg("build", *sources, tmp_path / "out", *OPTIONS, "--depth-model", "none")
    row = load_dataset(str(tmp_path / "out"), split="train")[0]
    assert "depth" not in row
    card = (tmp_path / "out" / "README.md").read_text()
    assert "depth" not in card.split("\n## Limits")[0]


@pytest.mark.parametrize(("image_format", "pillow"), [("webp", "WEBP"), ("png", "PNG")])
def test_other_formats_and_compact_depth(sources, tiny_model, tmp_path, image_format, pillow):
    from fgbg_dataset import DepthCodec, PinnedRecipe

    out = tmp_path / "out"
    fgbg("build", *sources, out, *OPTIONS, "--depth-model", tiny_model, "--placements", "1",
         "--image-format", image_format, "--depth-format", "jpeg8", "--holdout", "0")  # fmt: skip
    rows = load_dataset(str(out), split="train")
    assert rows.num_rows == 40
    assert rows[0]["fg_bg"].format == pillow
    assert (rows[0]["depth"].mode, rows[0]["depth"].format) == ("L", "JPEG")
    pinned = PinnedRecipe.from_json((out / "recipe.json").read_text())
    depth_m = DepthCodec(pinned.recipe, pinned.depth).metres(rows[0]["depth"])
    assert depth_m.dtype == np.float32
    assert 0.1 <= depth_m.min() < depth_m.max() <= 10
    if image_format == "png":
        digest = xxhash.xxh3_128(np.asarray(rows[0]["fg_bg"]).tobytes())
        digest.update(np.packbits(np.asarray(rows[0]["mask"]) > 0, axis=1).tobytes())
        assert digest.hexdigest() == rows[0]["pixel_hash"]


def test_card_and_preview_are_made_again_and_a_persons_keys_are_kept(built, tmp_path):
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(built, out)
    preview = (out / "assets" / "preview.html").read_bytes()
    for path in (out / "assets").glob("[ps][ra][em]*"):
        path.unlink()
    fgbg("preview", out)
    assert (out / "assets" / "preview.html").read_bytes() == preview
    fgbg("card", out, "--license", "cc-by-4.0", "--title", "Blobs")
    text = (out / "README.md").read_text()
    (out / "README.md").write_text(text.replace("license: cc-by-4.0", "license: mit\nmine: kept"))
    fgbg("card", out)
    card = (out / "README.md").read_text()
    assert "license: mit\n" in card and "mine: kept\n" in card and "\n# Blobs\n" in card
    assert not re.search(r"\{\{|\}\}|\{%|\bNone\b|(?<!np\.)\bnan\b", card)
    assert load_dataset(str(out), split="train").num_rows == 54


def test_status_of_a_finished_build_and_of_nothing(built, tmp_path):
    state = json.loads(fgbg("status", built, "--json").stdout)
    assert state["finished"] is True
    assert state["records_done"] == state["records"] == 120
    refused = fgbg("status", tmp_path / "nothing", code=2)
    assert "is not a build of fgbg, nor is one being made there" in refused.stderr


def test_a_billion_records_are_planned_like_a_hundred(sources):
    options = (*OPTIONS, "--depth-model", "none", "--shard-records", 1000)
    few, many = (plan_of(*sources, *options, "--placements", n) for n in (3, 25_000_000))
    assert few["records"] == 120
    assert many["records"] == 10**9
    assert sum(many["shards"].values()) == pytest.approx(1_000_000, abs=4)
    assert many["peak_kb"] < few["peak_kb"] + 20_000
    assert many["cpu_s"] < few["cpu_s"] + 2


def plan_of(*arguments: object) -> dict[str, Any]:
    """What `fgbg estimate` says, with the peak memory and the time of the processor it took."""
    # VmHWM, for the peak that `resource` tells is never below that of the process's parent.
    program = (
        "import sys, time; from pathlib import Path; from builder.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.split('VmHWM:')[1].split()[0], time.process_time())"
    )
    command = [sys.executable, "-c", program, "estimate", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    plan, took = done.stdout.splitlines()
    peak, cpu = took.split()
    return {**json.loads(plan), "peak_kb": int(peak), "cpu_s": float(cpu)}


def test_plan_says_what_the_build_made(built, sources, tiny_model):
    done = fgbg("estimate", *sources, *OPTIONS, "--depth-model", tiny_model, "--json")
    plan = json.loads(done.stdout)
    assert plan["records"] == 120
    assert plan["splits"] == SPLITS
    assert sum(plan["shards"].values()) == 5
    statistics = json.loads((built / "assets" / "statistics.json").read_text())["splits"]
    for column, estimated in plan["column_bytes"].items():
        made = sum(s["statistics"]["size_bytes"][column] for s in statistics.values())
        assert estimated == pytest.approx(made, rel=0.35)
    assert plan["seconds"] > 0


def test_a_folder_that_is_something_else_is_never_touched(sources, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    refused = fgbg("build", *sources, tmp_path, *OPTIONS, "--depth-model", "none", code=1)
    assert "is not empty and not a build of fgbg" in refused.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_metadata_stands_in_the_parquet_files(built):
    import pyarrow.parquet as pq

    metadata = pq.read_schema(next((built / "data").iterdir())).metadata
    content = json.loads(metadata[b"fgbg"])
    pinned = json.loads((built / "recipe.json").read_text())
    assert content["fingerprint"] == pinned["fingerprint"]
    # Of the model, a folder of this machine, no more than the name is in what gets published.
    assert content["depth"] == {**pinned["depth"], "model": "./tiny"}
    assert content["recipe"] == {**pinned["recipe"], "depth_model": "./tiny"}
    assert content["depth"]["unit"] == "mm"
    assert content["recipe"]["depth_input"] == 64
    assert b"huggingface" in metadata


def test_usage_is_explained():
    refused = fgbg("build", "a", "b", code=2)
    assert "expected FOREGROUNDS BACKGROUNDS OUT, got 2 paths" in refused.stderr
    missing = fgbg("build", "/nowhere/a", "/nowhere/b", "/nowhere/out", code=2)
    assert "/nowhere/a is not a folder; give the folder that holds the images" in missing.stderr


def test_the_module_runs_in_a_script_without_a_main_guard(sources, tmp_path):
    """One worker needs no child process, so the shortest possible script works."""
    script = tmp_path / "script.py"
    script.write_text(
        "from fgbg_dataset import FgbgDataset\n"
        f"b = FgbgDataset({str(sources[0])!r}, {str(sources[1])!r}, placements=1, size=32,\n"
        f"    foreground_size=16, depth_model='none', cache_dir={str(tmp_path / 'cache')!r})\n"
        "b.download_and_prepare(num_proc=1)\n"
        "print(b.as_dataset('train').num_rows, len(list(b.as_streaming_dataset('train'))))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "24"]


def test_sample_sheet_is_a_picture(built):
    with Image.open(io.BytesIO((built / "assets" / "samples.png").read_bytes())) as sheet:
        sheet.load()
        assert sheet.width > 400 and sheet.height > 300
