"""Which way of composing teaches most about real photographs.

    python benchmarks/realism.py CUTOUTS PHOTOS REAL_IMAGES REAL_MASKS [REAL_DEPTH]
        [--choices pairs,sizes] [--seeds 0,1] [--steps 400] [--real-train] [--out FILE] [--json]

Each of CHOICES is a recipe. The small network of examples/train_streaming.py is trained on records
that are made as they are needed, and nothing of them is stored; then it marks the object in real
photographs that nothing was trained on. A picture of REAL_IMAGES has its mask in REAL_MASKS under
the same stem, white (above 127) where the object is. With REAL_DEPTH, 16-bit PNGs in mm with 0 =
unknown, the network learns composed depth as well, and its error on the photographs is measured.

The network sees a square, so photographs, masks and depth are resized to it as a whole: nothing of
an object is cut off, and a wide picture is squeezed. A picture's IoU is the intersection over union
of what is marked and what is masked; a figure is the mean over all pictures. No figure of a single
picture is kept, for nothing should be tuned to one.

A network can learn where an object usually lies, and how large it is, and mark that without a look
at the picture. What that alone gives stands in the column "blind": the IoU of one mask for all
photographs, the one that fits the masks of the training records best. Only what a choice has above
it comes from what its records look like.

Rows to compare with: everything marked; a network that was never trained; and with --real-train one
trained on a random half of the photographs and measured on the other half, which is a ceiling.

The same seed gives the same figures on the same processor. Every run is written to --out when it
ends, and one that is there is not made again: delete the file after changes to the code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder.batches import RecordReader
from builder.depth.densedepth.metrics import DepthMetrics
from builder.files import sha256_file, write_text
from builder.finetune import learning_rate
from builder.recipe import NO_DEPTH_MODEL, Recipe
from examples.photographs import Photographs, photographs
from examples.train_streaming import Batch, Network, advance, augment, begin, endless, overlaps
from fgbg_dataset import FgbgDataset, FgbgError

LARGE = {"foreground_size": "0.4-1.1"}
# Fields of the recipe by name of the choice, beside those of `recipe_of`.
CHOICES: dict[str, dict[str, Any]] = {
    "pairs": {"foreground_size": 100 / 224},
    "sizes": {"foreground_size": "0.2-1.1"},
    "objects": {
        "layout": "scenes",
        "placement": "uniform",
        "objects": "1-3",
        "foreground_size": "0.2-1.1",
        "truncation": 0.4,
    },
    "large": LARGE,
    "large-cut": {**LARGE, "truncation": 0.4},
    "large-blend": {**LARGE, "blend": "mixed"},
    "large-match": {**LARGE, "match": "0-0.5"},
    "large-sharpness": {**LARGE, "match_sharpness": True, "match_noise": True},
    "large-jpeg": {**LARGE, "jpeg_history": "40-95"},
    "large-jitter": {**LARGE, "object_jitter": 0.3},
    "large-flip": {**LARGE, "background_flip": True},
    "large-distractors": {**LARGE, "distractors": "0-2"},
    "ground": {"foreground_size": "0.2-1.1", "placement": "ground", "truncation": 0.25},
    "scenes": {"layout": "scenes"},
}
EVERYTHING, NOTHING = "everything marked", "nothing trained"
SETTINGS = ("steps", "batch_size", "size", "learning_rate", "depth_model")
MEASURED = 25  # pictures at a time
BLIND_BATCHES = 40  # whose masks say where objects lie

# --------------------------------------------------------------------------- training, measuring


@dataclass(frozen=True)
class Course:
    """What a network is trained on: batches without end, normalised by their mean and std."""

    mean: np.ndarray
    std: np.ndarray
    batches: Iterator[Batch]


def recipe_of(
    fields: dict[str, Any], size: int, seed: int, depth_model: str, with_depth: bool
) -> Recipe:
    """Return the recipe of a choice; it has a depth model only where that decides something."""
    chosen = {"holdout": 0.0, **fields, "size": size, "seed": seed}
    if with_depth:
        chosen["depth_source"] = "composed"  # arrays made on the fly have no other
    elif Recipe.from_dict(chosen).placement != "ground":
        depth_model = NO_DEPTH_MODEL
    return Recipe.from_dict({**chosen, "depth_model": depth_model})


def composed(folders: Sequence[Path], recipe: Recipe, batch_size: int, with_depth: bool) -> Course:
    """Return records of a recipe, made as they are needed."""
    builder = FgbgDataset(*folders, recipe=recipe)
    reader: RecordReader = builder.reader()
    if with_depth and (not reader.pinned.depth or reader.pinned.depth.unit != "mm"):
        raise FgbgError(f"{recipe.depth_model} does not estimate metres; name one that does.")

    def batches() -> Iterator[Batch]:
        for rows, _, _ in endless(builder.as_array_stream("train"), batch_size, 0, None):
            batch = reader.collate(rows)
            if not with_depth:
                batch.pop("depth_m", None)
            yield batch

    return Course(reader.mean, reader.std, batches())


def drawn(of: Photographs, batch_size: int, seed: int) -> Course:
    """Return batches of real pictures drawn at random."""
    mean, std = ((of.pixels / 255).mean((0, 1, 2)), (of.pixels / 255).std((0, 1, 2)))
    rng = np.random.default_rng([seed, 1])

    def batches() -> Iterator[Batch]:
        while True:
            yield of.part(rng.integers(len(of.mask), size=batch_size)).batch(mean, std)

    return Course(mean, std, batches())


def trained(course: Course, steps: int, rate: float, seed: int) -> tuple[Network, np.ndarray]:
    """Return the network, and masks that it was trained on."""
    network, optimizer = begin(seed, rate)
    network.train()
    masks = []
    for step in range(steps):
        batch = augment(next(course.batches), np.random.default_rng([seed, step]))
        if step < BLIND_BATCHES:
            masks.append(batch["mask"][:, 0].numpy() > 0)
        advance(network, optimizer, batch, learning_rate(step, steps, rate, warmup=steps // 10))
    return network, np.concatenate(masks)


def mean_iou(mask: np.ndarray, found: np.ndarray) -> float:
    return float(overlaps({"mask": mask, "found": found}).mean())


def blind(masks: np.ndarray) -> np.ndarray:
    """Return of all masks that a mean mask is cut off to the one with the highest IoU (1, S, S)."""
    masks = masks[masks.any((1, 2))]
    mean = masks.mean(axis=0, keepdims=True)
    candidates = [mean >= mean.max() * tenths / 10 for tenths in range(1, 10)]
    return max(candidates, key=lambda candidate: mean_iou(masks, candidate))


@torch.no_grad()
def measure(
    network: Network, of: Photographs, mean: np.ndarray, std: np.ndarray
) -> dict[str, float]:
    """Return the mean IoU, and abs-rel of depth as it is and scaled to each picture's median."""
    network.train(mode=False)
    found, estimate_m = [], []
    for start in range(0, len(of.mask), MEASURED):
        part = of.part(np.arange(start, min(start + MEASURED, len(of.mask))))
        logits, log_depth = network(part.batch(mean, std)["pixel_values"])
        found.append((logits[:, 0] > 0).numpy())
        estimate_m.append(log_depth[:, 0].exp().numpy())
    return figures(of, np.concatenate(found), np.concatenate(estimate_m))


def figures(of: Photographs, found: np.ndarray, estimate_m: np.ndarray) -> dict[str, float]:
    result = {"iou": mean_iou(of.mask, found)}
    if of.depth_m is not None:
        for name, scaled in (("abs_rel", False), ("abs_rel_scaled", True)):
            metrics = DepthMetrics(1e-3, math.inf, median_scaling=scaled)
            for pair in zip(estimate_m, of.depth_m, strict=True):
                metrics.add(*pair)
            result[name] = metrics.compute()["abs_rel"]
    return result


def marked(real: Photographs) -> dict[str, float]:
    """Return the figures of marking everything, at the median of all measured depth."""
    middle_m = 1.0 if real.depth_m is None else float(np.nanmedian(real.depth_m))
    everywhere = np.ones_like(real.mask)
    return figures(real, everywhere, np.where(everywhere, np.float32(middle_m), np.float32(0)))


def run(
    name: str, fields: dict[str, Any], seed: int, real: Photographs, args: argparse.Namespace
) -> dict[str, float]:
    """Train on one choice with one seed, and measure."""
    wall, cpu = time.perf_counter(), time.process_time()
    measured, with_depth = real, real.depth_m is not None
    unseen: dict[str, float] = {}
    if name == NOTHING:
        mean, std = np.full(3, 0.5), np.full(3, 0.25)
        network = begin(seed, args.learning_rate)[0]
    else:
        if "recipe" not in fields:
            order = np.random.default_rng([seed, 2]).permutation(len(real.mask))
            half = len(order) // 2
            course = drawn(real.part(order[:half]), args.batch_size, seed)
            measured = real.part(order[half:])
        else:
            recipe = recipe_of(fields["recipe"], args.size, seed, args.depth_model, with_depth)
            folders = (args.foregrounds, args.backgrounds)
            course = composed(folders, recipe, args.batch_size, with_depth)
        mean, std = course.mean, course.std
        network, masks = trained(course, args.steps, args.learning_rate, seed)
        unseen["blind"] = mean_iou(measured.mask, blind(masks))
    result = {**measure(network, measured, mean, std), **unseen}
    result["cpu_s"] = round(time.process_time() - cpu, 1)
    return {**result, "wall_s": round(time.perf_counter() - wall, 1)}


# ---------------------------------------------------------------------------------------- results


def digest(folder: Path) -> str:
    """Return what tells one folder of files from another."""
    if not folder.is_dir():
        raise FgbgError(f"{folder} is not a folder; give a folder of pictures.")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def results_in(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the results that are there already."""
    if not path.exists():
        return {"settings": settings, "runs": {}}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        held = results["settings"]
        results["runs"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FgbgError(f"{path} is not a file of results; choose another --out.") from None
    if other := [name for name in settings if held.get(name) != settings[name]]:
        raise FgbgError(
            f"{path} was measured with another {', '.join(other)}; choose another --out."
        )
    return results


def table(results: dict[str, Any], rows: Sequence[str], seeds: Sequence[int]) -> Iterator[str]:
    with_depth = "abs_rel" in results["reference"]
    columns = [f"IoU, seed {seed}" for seed in seeds] + ["mean", "spread", "blind"]
    if with_depth:
        columns += ["abs-rel", "abs-rel, scaled"]
    yield f"| choice | {' | '.join(columns)} | CPU s a run |"
    yield "|---" * (len(columns) + 2) + "|"
    for name in (EVERYTHING, *rows):
        if name == EVERYTHING:
            runs, times = [results["reference"]], ""
        else:
            runs = [results["runs"][name]["seeds"][str(seed)] for seed in seeds]
            times = f"{np.mean([one['cpu_s'] for one in runs]):.0f}"
        ious = [one["iou"] for one in runs]
        cells = [f"{iou:.3f}" for iou in (ious if name != EVERYTHING else ious * len(seeds))]
        cells += [f"{np.mean(ious):.3f}", f"{max(ious) - min(ious):.3f}"]
        blinds = [one["blind"] for one in runs if "blind" in one]
        cells.append(f"{np.mean(blinds):.3f}" if blinds else "")
        if with_depth:
            errors = [(one["abs_rel"], one["abs_rel_scaled"]) for one in runs]
            cells += [f"{error:.3f}" for error in np.mean(errors, axis=0)]
        yield f"| {name} | {' | '.join(cells)} | {times} |"


# ---------------------------------------------------------------------------------------- command


def report(line: str) -> None:
    """Print progress to standard error; standard output is for results."""
    print(line, file=sys.stderr, flush=True)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("foregrounds", type=Path, help="folder of cut-outs")
    add("backgrounds", type=Path, help="folder of backgrounds")
    add("images", type=Path, help="folder of real photographs")
    add("masks", type=Path, help="folder of their masks")
    add("depth", type=Path, nargs="?", help="folder of their depth")
    add("--choices", help=f"rows to measure: {', '.join(CHOICES)} (all)")
    add("--seeds", default="0,1", help="(%(default)s)")
    add("--steps", type=int, default=400, help="(%(default)s)")
    add("--batch-size", type=int, default=16, help="(%(default)s)")
    add("--size", type=int, default=128, help="px a side of records (%(default)s)")
    add("--learning-rate", type=float, default=4e-3, help="(%(default)s)")
    add("--depth-model", default="demo", help="for grounds and depth (%(default)s)")
    add("--real-train", action="store_true", help="train on half of the real pictures as well")
    add("--out", type=Path, default=Path("out/realism.json"), help="results (%(default)s)")
    add("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args(words)
    args.choices = args.choices.split(",") if args.choices is not None else list(CHOICES)
    if unknown := [name for name in args.choices if name not in CHOICES]:
        parser.error(f"there is no choice {unknown[0]!r}; there are {', '.join(CHOICES)}")
    try:
        args.seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds is {args.seeds!r}; give whole numbers such as 0,1")
    if min(args.seeds) < 0:
        parser.error(f"--seeds has {min(args.seeds)}; give numbers from 0")
    for name in ("steps", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; give 1 or more")
    return args


def main(words: Sequence[str] | None = None) -> None:
    """Train and measure what is not measured yet; print the table."""
    args = arguments(words)
    torch.set_num_threads(1)
    settings = {name: getattr(args, name) for name in SETTINGS}
    for name in ("foregrounds", "backgrounds", "images", "masks", "depth"):
        settings[name] = digest(folder) if (folder := getattr(args, name)) else None
    results = results_in(args.out, settings)
    real = photographs(args.images, args.masks, args.depth, args.size)
    if args.real_train and len(real.mask) < 2:
        raise FgbgError(f"{args.images} holds one picture; --real-train needs two or more.")
    results["reference"] = marked(real)
    rows: dict[str, dict[str, Any]] = {NOTHING: {}}
    rows |= {name: {"recipe": CHOICES[name]} for name in args.choices}
    if args.real_train:
        rows[f"{len(real.mask) // 2} real pictures"] = {}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for name, fields in rows.items():
            held = results["runs"].get(name, {"seeds": {}})
            if {k: v for k, v in held.items() if k != "seeds"} != fields:
                held = {**fields, "seeds": {}}  # the choice was another one then
            if str(seed) not in held["seeds"]:
                held["seeds"][str(seed)] = one = run(name, fields, seed, real, args)
                results["runs"][name] = held
                write_text(args.out, json.dumps(results, indent=1) + "\n")
                report(f"{name}, seed {seed}: " + "  ".join(f"{k} {v:.3f}" for k, v in one.items()))
    if args.json:
        shown = {name: results["runs"][name] for name in rows}
        print(json.dumps({**results, "runs": shown}))
    else:
        print("\n".join(table(results, list(rows), args.seeds)))


if __name__ == "__main__":
    try:
        main()
    except FgbgError as error:
        report(f"Error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        report("Interrupted. The same command goes on with the runs that are missing.")
        sys.exit(130)
