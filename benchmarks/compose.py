"""Records per CPU-second of composing, encoding and writing, against the class project's script.

    python benchmarks/compose.py [--records 400] [--repeats 15] [--json]

Every variant makes the same combinations on one pinned core, in turns, in the same process; the
figures are medians over the repeats of user + system CPU time. Depth maps are made beforehand for
both sides: this measures everything but the network.

The class project's script is written anew here from its description: it reads and scales a
foreground once per 40 records, copies the background, takes grey > 1 as the mask, pastes by bitwise
and / or / add in the rectangle, and writes composite and mask (and depth, stretched per image to 8
bits) as JPEG with `cv2.imwrite`. Its statistics are a second pass, which reads all files back and
sums floats. The plain script pastes with Pillow, gives images to `datasets`, which encodes them and
writes Parquet, and reads those back for the same sums. Ours is the real path: `Renderer.compose`,
`Encoder.row`, `write_table`, and `write_shard`, which also counts the statistics from the decoded
bytes, hashes the file and commits it. `whole` codes and counts all of each composite, also what its
background had.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

import builder
from builder.build import write_shard
from builder.depth import DepthEstimator, DepthModel, locate_model
from builder.pinned import DepthInfo, PinnedRecipe
from builder.recipe import DEMO_DEPTH_MODEL, NO_DEPTH_MODEL, DepthFormat, Recipe
from builder.record import Encoder, Plan, Record, Renderer, encode_image
from builder.schema import features, record_columns
from builder.sources import Kind, SourceBank, prepare
from builder.tables import write_table

Array = npt.NDArray[Any]

DEMO_WEIGHTS = Path(builder.__file__).parent / "demo" / "depth" / "model.safetensors"
PHOTOGRAPHS = (Path("/usr/share/backgrounds"), Path("/usr/share/wallpapers"))
CUTOUTS = (Path("/usr/share/tuxpaint/stamps"),)
N_PHOTOGRAPHS, N_CUTOUTS = 24, 40
READ_EVERY = 40  # records per foreground read, in the class project
COUNTED = " + statistics"
FLOOR = "the 4:4:4 JPEG of fg_bg alone (floor)"
TARGETS_BYTES = {"png16": 37_000, "jpeg8": 21_000}


# --- inputs ---------------------------------------------------------------------------------------


def gather(folders: tuple[Path, ...], pattern: str, count: int, target: Path) -> str:
    """Copy evenly chosen images into a folder, or draw some; say which."""
    target.mkdir()
    found = sorted(
        path
        for folder in folders
        for path in folder.rglob(pattern)
        if "screenshot" not in path.name
    )
    if len(found) < count:
        for number in range(count):
            draw(number, target / f"drawn{number}.png", cut_out=folders == CUTOUTS)
        return f"{count} drawn ones (none under {', '.join(map(str, folders))})"
    for number in range(count):
        path = found[number * len(found) // count]
        shutil.copyfile(path, target / f"{number:03d}{path.suffix}")
    return f"{count} of {len(found)} from {', '.join(map(str, folders))}"


def draw(seed: int, path: Path, *, cut_out: bool) -> None:
    """Draw a picture with the spectrum of a photograph; as a cut-out, with a soft blob as alpha."""
    rng = np.random.default_rng(seed)
    side = 400
    picture: Array = np.zeros((side, side, 3))
    for n in (3, 7, 17, 41, 97, 200):
        coarse: Array = rng.random((n, n, 3))
        coarse = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        picture = picture + coarse / n**0.5
    pixels = (np.clip(picture / picture.max(), 0, 1) * 255).astype(np.uint8)
    if cut_out:
        blob = cv2.resize(rng.random((6, 6)), (side, side), interpolation=cv2.INTER_CUBIC)
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
        alpha = np.clip((blob + 0.6 - 1.4 * (x * x + y * y)) * 2000, 0, 255).astype(np.uint8)
        pixels = np.dstack((pixels, alpha))
    cv2.imwrite(str(path), pixels)


def made_depth(record: Record) -> Array:
    """Make a depth map like a decoder's: (H, W) uint16 mm, smooth, with an edge at the object.

    Made at 128x128 without noise, as a network gives it, and enlarged bilinearly. The surfaces
    follow the picture's large forms.
    """
    rng = np.random.default_rng(record.record_id)
    low = (128, 128)
    grey = cv2.cvtColor(record.fg_bg, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    forms = cv2.GaussianBlur(cv2.resize(grey, low, interpolation=cv2.INTER_AREA), (0, 0), 4)
    room = np.linspace(rng.uniform(4, 9), rng.uniform(1, 2), low[1], dtype=np.float32)[:, None]
    inside: Array = (
        cv2.resize(record.mask, low, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    )
    inside = cv2.GaussianBlur(inside, (0, 0), 1)
    thing = np.float32(rng.uniform(0.8, 2.5)) + 0.2 * forms
    metres: Array = (room + 1.5 * forms) * (1 - inside) + thing * inside
    metres = cv2.resize(metres, record.mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.clip(np.rint(metres * 1000), 500, 10000).astype(np.uint16)


def depths_of(records: list[Record], model: DepthModel | None, recipe: Recipe) -> list[Array]:
    """Return the records' depth maps, of the bundled model where it is there."""
    if model is None:
        return [made_depth(record) for record in records]
    estimator = DepthEstimator(model, recipe, device="cpu")
    size, depths = estimator.batch_size, []
    for i in range(0, len(records), size):
        depths += list(estimator(np.stack([record.fg_bg for record in records[i : i + size]])))
    return depths


@dataclass(frozen=True)
class Workload:
    """What both sides work on; `depths` belong to `ids`, `cutout_files` to the foregrounds."""

    pinned: PinnedRecipe
    bank: SourceBank
    cutout_files: list[Path]
    ids: list[int]
    depths: dict[int, Array]
    about: dict[str, str]

    def ours(self, depth_format: DepthFormat | None) -> tuple[PinnedRecipe, Renderer]:
        """Return the pinned recipe and the renderer of a variant of ours."""
        if depth_format is None:
            recipe = replace(self.pinned.recipe, depth_model=NO_DEPTH_MODEL)
            pinned = replace(self.pinned, recipe=recipe, depth=None)
        else:
            recipe = replace(self.pinned.recipe, depth_format=depth_format)
            pinned = replace(self.pinned, recipe=recipe)
        return pinned, Renderer(Plan(pinned), self.bank, None)


def workload(folder: Path, n_records: int) -> Workload:
    """Prepare sources, records and depth maps."""
    about = {
        "backgrounds": gather(PHOTOGRAPHS, "*.jpg", N_PHOTOGRAPHS, folder / "backgrounds"),
        "foregrounds": gather(CUTOUTS, "*.png", N_CUTOUTS, folder / "foregrounds"),
    }
    recipe = Recipe(holdout=0.0)
    sources = {}
    kinds: tuple[Kind, ...] = ("foreground", "background")
    for kind in kinds:
        sources[kind] = prepare(folder / f"{kind}s", kind, recipe, skip_bad=True).sources
    info, model = made_up_info(), None
    if DEMO_WEIGHTS.is_file():
        model = locate_model(recipe)[1]
        assert model is not None
        info = model.info
    about["depth"] = "the bundled model's" if model else "synthetic (no bundled model here)"
    foregrounds, backgrounds = sources["foreground"], sources["background"]
    pinned = PinnedRecipe(
        recipe=recipe,
        foregrounds=tuple(s.entry for s in foregrounds),
        backgrounds=tuple(s.entry for s in backgrounds),
        depth=info,
    )
    bank = SourceBank(foregrounds, backgrounds)
    plan = Plan(pinned)
    ids = plan.splits["train"].record_ids(0, n_records).tolist()
    records = [Renderer(plan, bank, None).compose(record_id) for record_id in ids]
    depths = dict(zip(ids, depths_of(records, model, recipe), strict=True))
    files = [folder / "foregrounds" / s.entry.file for s in foregrounds]
    return Workload(pinned, bank, files, ids, depths, about)


def made_up_info() -> DepthInfo:
    """Return a description of depth for maps that no model made."""
    return DepthInfo(
        model=DEMO_DEPTH_MODEL,
        revision=None,
        weights_sha256="0" * 64,
        model_type="densedepth",
        kind="metric",
        quantity="depth",
        unit="mm",
        scale=1000.0,
        near=100,
        far=10000,
    )


# --- the class project's way ----------------------------------------------------------------------


def stretch(depth: Array) -> Array:
    """Stretch a depth map to 0..255 between its own extremes."""
    low, high, _, _ = cv2.minMaxLoc(depth)
    factor = 255 / max(high - low, 1)
    return cv2.convertScaleAbs(depth, alpha=factor, beta=-low * factor)


class ClassProject:
    """The class project's loop; `work.bank` gives its backgrounds, read before timing."""

    def __init__(self, work: Workload, folder: Path, *, depth: bool, count: bool) -> None:
        self._work, self._folder, self._depth, self._count = work, folder, depth, count
        plan = Plan(work.pinned)
        self._what = [plan.combination(record_id) for record_id in work.ids]
        places = (
            plan.placement(i, w.foreground) for i, w in zip(work.ids, self._what, strict=True)
        )
        self._places = list(places)
        size = len(work.pinned.backgrounds)
        self._backgrounds = [work.bank.background(i)[..., ::-1].copy() for i in range(size)]

    def read(self, foreground: int) -> Array:
        """Read a foreground and scale it; (h, w, 3) BGR, black where transparent."""
        entry = self._work.pinned.foregrounds[foreground]
        image = cv2.imread(str(self._work.cutout_files[foreground]), cv2.IMREAD_UNCHANGED)
        assert image is not None
        image = cv2.resize(image, (entry.width, entry.height), interpolation=cv2.INTER_AREA)
        return image[..., :3] * (image[..., 3:] > 0)

    def paste(
        self, background: Array, foreground: Array, left: int, top: int
    ) -> tuple[Array, Array]:
        """Paste by a grey threshold; return composite and mask image."""
        composite = background.copy()
        height, width = foreground.shape[:2]
        part = composite[top : top + height, left : left + width]
        grey = cv2.cvtColor(foreground, cv2.COLOR_BGR2GRAY)
        on = cv2.threshold(grey, 1, 255, cv2.THRESH_BINARY)[1]
        behind = cv2.bitwise_and(part, part, mask=cv2.bitwise_not(on))
        before = cv2.bitwise_and(foreground, foreground, mask=on)
        composite[top : top + height, left : left + width] = cv2.add(behind, before)
        mask = np.zeros(background.shape[:2], np.uint8)
        mask[top : top + height, left : left + width] = cv2.bitwise_or(on, on)
        return composite, mask

    def run(self) -> int:
        """Write the files of all records; return their bytes."""
        depths = self._work.depths
        for number, record_id in enumerate(self._work.ids):
            if number % READ_EVERY == 0:  # its loop keeps a foreground for 40 records
                foreground = self.read(self._what[number].foreground)
            what, (left, top) = self._what[number], self._places[number]
            background = self._backgrounds[what.background]
            left = min(left, background.shape[1] - foreground.shape[1])
            top = min(top, background.shape[0] - foreground.shape[0])
            composite, mask = self.paste(background, foreground, left, top)
            cv2.imwrite(f"{self._folder}/fg_bg_{record_id}.jpg", composite)
            cv2.imwrite(f"{self._folder}/mask_{record_id}.jpg", mask)
            if self._depth:
                cv2.imwrite(f"{self._folder}/depth_{record_id}.jpg", stretch(depths[record_id]))
        if self._count:
            files = sorted(self._folder.iterdir())
            float_sums(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in files)
        return sum(path.stat().st_size for path in self._folder.iterdir())


def float_sums(images: Iterable[Array]) -> dict[int, Array]:
    """Return sums and sums of squares of 0..1 a channel, by number of dimensions."""
    sums: dict[int, Array] = {}
    for image in images:
        values = image.astype(np.float32) / 255
        both = np.stack([values.sum((0, 1)), np.square(values).sum((0, 1))])
        sums[image.ndim] = sums.get(image.ndim, 0) + both
    return sums


class PlainScript:
    """Pillow pastes, `datasets` encodes and writes; a second pass over it makes the statistics."""

    def __init__(self, work: Workload, folder: Path) -> None:
        self._folder = folder
        plan = Plan(work.pinned)
        size = len(work.pinned.backgrounds)
        backgrounds = [Image.fromarray(work.bank.background(i)) for i in range(size)]
        self._parts = []
        for record_id in work.ids:
            what = plan.combination(record_id)
            cutout = Image.fromarray(work.bank.foreground(what.foreground))
            place = plan.placement(record_id, what.foreground)
            self._parts.append((backgrounds[what.background], cutout, what.flipped, place))

    def _rows(self) -> Iterator[dict[str, Any]]:
        for background, cutout, flipped, place in self._parts:
            one = ImageOps.mirror(cutout) if flipped else cutout
            composite, mask = background.copy(), Image.new("L", background.size)
            composite.paste(one, place, one)
            mask.paste(one.getchannel("A").point(lambda alpha: 255 * (alpha >= 128)), place)
            yield {"fg_bg": composite, "mask": mask}

    def run(self) -> int:
        """Write one file; return its bytes."""
        columns = datasets.Features({"fg_bg": datasets.Image(), "mask": datasets.Image()})
        made = datasets.Dataset.from_list(list(self._rows()), features=columns)
        path = self._folder / "plain.parquet"
        made.to_parquet(str(path))
        float_sums(np.asarray(row[column]) for row in made for column in columns)
        return path.stat().st_size


# --- ours -----------------------------------------------------------------------------------------


class Ours:
    """Our path for one way of storing depth (None: no depth)."""

    def __init__(
        self,
        work: Workload,
        folder: Path,
        *,
        depth_format: DepthFormat | None,
        count: bool,
        whole: bool = False,
    ) -> None:
        self._work, self._folder, self._count, self._whole = work, folder, count, whole
        self._depth = depth_format is not None
        self._pinned, self._renderer = work.ours(depth_format)

    def records(self) -> Iterator[Record]:
        """Compose the records, each with its given depth map."""
        for record_id in self._work.ids:
            record = self._renderer.compose(record_id)
            if self._whole:
                record = replace(record, canvas=None)
            yield replace(record, depth=self._work.depths[record_id]) if self._depth else record

    def run(self) -> int:
        """Write one shard; return its bytes."""
        if self._count:
            name = "train-00000-of-00001"
            return write_shard(
                self._folder, name, "parquet", self._pinned, self.records()
            ).size_bytes
        path = self._folder / "plain.parquet"
        schema = features(record_columns(self._pinned.recipe)).arrow_schema
        write_table(path, "parquet", schema, map(Encoder(self._pinned).row, self.records()))
        return path.stat().st_size


class JpegAlone:
    """The encoding of ready composites and nothing else: no record of ours can take less."""

    def __init__(self, work: Workload, _: Path) -> None:
        pinned, renderer = work.ours(None)
        self._recipe = pinned.recipe
        self._composites = [renderer.compose(record_id).fg_bg for record_id in work.ids]

    def run(self) -> int:
        """Encode all composites; return their bytes."""
        return sum(len(encode_image(pixels, self._recipe)) for pixels in self._composites)


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One line of the table: who it is compared with and the ratio it should reach."""

    name: str
    peer: str | None
    target: float | None
    make: Callable[[Path], ClassProject | PlainScript | Ours | JpegAlone]


def variants(work: Workload) -> list[Variant]:
    """Return the lines of the table, in order."""
    two, three = "class project, 2 files", "class project, 3 files"
    lines = [
        Variant(FLOOR, two, None, partial(JpegAlone, work)),
        Variant(two, None, None, partial(ClassProject, work, depth=False, count=False)),
        Variant(three, None, None, partial(ClassProject, work, depth=True, count=False)),
        Variant(two + COUNTED, None, None, partial(ClassProject, work, depth=False, count=True)),
        Variant(three + COUNTED, None, None, partial(ClassProject, work, depth=True, count=True)),
        Variant("Pillow + datasets" + COUNTED, two + COUNTED, None, partial(PlainScript, work)),
    ]
    ours: tuple[tuple[str, DepthFormat | None, str, float], ...] = (
        ("no depth", None, two, 1.75),
        ("png16 depth", "png16", three, 1.0),
        ("jpeg8 depth", "jpeg8", three, 1.8),
    )
    for name, depth_format, peer, target in ours:
        make = partial(Ours, work, depth_format=depth_format)
        lines.append(Variant(f"ours, {name}", peer, target, partial(make, count=False)))
        for whole in (False, True):
            title = f"ours, {name}{COUNTED}{', whole' if whole else ''}"
            counted = partial(make, count=True, whole=whole)
            lines.append(Variant(title, peer + COUNTED, None if whole else 2.5, counted))
    return lines


def measure(lines: list[Variant], folder: Path, repeats: int) -> dict[str, tuple[list[float], int]]:
    """Run all variants in turns; return CPU seconds per repeat and bytes, by name."""
    seconds: dict[str, list[float]] = {line.name: [] for line in lines}
    sizes: dict[str, int] = {}
    folders = {line.name: folder / str(number) for number, line in enumerate(lines)}
    runners = {line.name: line.make(folders[line.name]) for line in lines}
    for repeat in range(repeats + 1):  # the first fills caches and is not counted
        turn = repeat % len(lines)
        for line in lines[turn:] + lines[:turn]:
            target = folders[line.name]
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir()
            start = time.process_time()
            sizes[line.name] = runners[line.name].run()
            spent = time.process_time() - start
            if repeat:
                seconds[line.name].append(spent)
        print(f"\rrepeat {repeat}/{repeats}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return {line.name: (seconds[line.name], sizes[line.name]) for line in lines}


def rows(
    lines: list[Variant], measured: dict[str, tuple[list[float], int]], n_records: int
) -> list[dict[str, Any]]:
    """Return the table; a ratio is the median of the repeats' own ratios."""
    table = []
    for line in lines:
        seconds, size = measured[line.name]
        row: dict[str, Any] = {
            "variant": line.name,
            "us_per_record": statistics.median(seconds) / n_records * 1e6,
            "records_per_cpu_s": n_records / statistics.median(seconds),
            "bytes_per_record": size / n_records,
        }
        if line.peer:
            peer = measured[line.peer][0]
            row["peer"] = line.peer
            row["ratio"] = statistics.median(p / s for p, s in zip(peer, seconds, strict=True))
            row["target"] = line.target
        table.append(row)
    return table


def show(table: list[dict[str, Any]], about: dict[str, str]) -> None:
    """Print the table for people."""
    for name, text in about.items():
        print(f"{name}: {text}")
    print(
        f"\n{'variant':42} {'us/rec':>7} {'rec/CPU-s':>9} {'ratio':>6} {'target':>6} {'B/rec':>7}"
    )
    for row in table:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        target = f"{row['target']:.2f}" if row.get("target") else ""
        print(
            f"{row['variant']:42} {row['us_per_record']:7.0f} {row['records_per_cpu_s']:9.0f} "
            f"{ratio:>6} {target:>6} {row['bytes_per_record']:7.0f}"
        )
    alone = {row["variant"]: row["us_per_record"] for row in table}
    two, three = (alone[f"class project, {n} files"] / alone[FLOOR] for n in (2, 3))
    print(
        "\nratio: to the class project's two files without depth, to its three with it; where\n"
        "statistics are counted, to those and its second pass."
    )
    print(f"If all but that JPEG were free, the ratios would be {two:.2f} and {three:.2f}.")
    for depth_format, most in TARGETS_BYTES.items():
        row = next(r for r in table if r["variant"] == f"ours, {depth_format} depth")
        size = row["bytes_per_record"]
        print(f"bytes per record, {depth_format}: {size:.0f} (at most {most} wanted)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=400, help="records per repeat and variant")
    parser.add_argument("--repeats", type=int, default=15, help="counted turns of all variants")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    cv2.setNumThreads(1)
    datasets.disable_progress_bars()
    memory = Path("/dev/shm")
    base = str(memory) if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fgbg-bench-", dir=base) as name:
        work = workload(Path(name), options.records)
        os.sched_setaffinity(0, {core})  # after preparing, which may use all of them
        (timed := Path(name) / "timed").mkdir()
        lines = variants(work)
        table = rows(lines, measure(lines, timed, options.repeats), options.records)
    about = {
        **work.about,
        "measured": f"{options.records} records x {options.repeats} repeats, interleaved, core "
        f"{core}, medians of CPU time; {platform.machine()}, {os.cpu_count()} CPUs, load "
        f"{os.getloadavg()[0]:.1f}",
        "files": f"of both ways in {base or tempfile.gettempdir()}"
        f"{' (tmpfs: no disk is timed)' if base else ''}",
    }
    if options.json:
        print(json.dumps({"about": about, "rows": table}, indent=1))
    else:
        show(table, about)


if __name__ == "__main__":
    main()
