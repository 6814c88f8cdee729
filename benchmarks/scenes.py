"""How right scenes are, on rendered rooms and streets whose floor and depth are known exactly.

Prints tables: where the ground is found, given exact, noisy and estimated depth; how often one is
found where there is none; how far the depth of a pasted object is off, composed and by the network
on the composite; and how fast records are made. `python benchmarks/scenes.py --scenes 8` measures
8 scenes of each of six kinds, from seeds that nothing was tuned on. `--records 20000` sets what
the table of speed is measured on.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.scale import save_model
from builder.depth import DepthEstimator, locate_model
from builder.recipe import Recipe
from builder.record import Plan, Renderer
from builder.record.board import Tilt, depth_under
from builder.record.compose import compose
from builder.record.composition import cut_out
from builder.record.scene import Placed
from builder.sources import SourceBank, demo_folders
from builder.sources.ground import NoGround, fit_ground, inverse_depth
from factory import scenes as renderer
from fgbg_dataset import FgbgDataset

SIZE = 256
FIRST_SEED = 910_000  # nothing was tuned or trained on these
FAR = 10_000
HEIGHTS_M = (0.3, 0.5, 0.8, 1.2, 1.7)


@dataclass(frozen=True)
class Rendered:
    """A rendered scene: picture, exact depth (inf: sky), floor mask, the floor's inverse depth."""

    kind: str
    camera: renderer.Camera
    picture: np.ndarray
    depth_m: np.ndarray
    floor: np.ndarray
    horizon_px: float

    @property
    def depth_mm(self) -> np.ndarray:
        known = np.where(np.isfinite(self.depth_m), self.depth_m * 1000, FAR)
        return np.clip(known, 100, FAR).round().astype(np.uint16)


def rendered(n: int) -> Iterator[Rendered]:
    for seed in range(FIRST_SEED, FIRST_SEED + n):
        for kind in renderer.KINDS:
            scene = renderer.build_scene(seed, kind)
            picture, depth_m = renderer.render_scene(scene, SIZE, seed)
            rays = scene.camera.rays(SIZE, SIZE)
            height_m = scene.camera.position[1]
            y = height_m + np.where(np.isfinite(depth_m), depth_m, 0).ravel() * rays[1]
            floor = (np.abs(y) < 0.03).reshape(SIZE, SIZE) & np.isfinite(depth_m)
            # The floor's inverse depth is -ray_y / height: 0 at the horizon of the middle column.
            middle = (
                (-rays[1] / height_m).reshape(SIZE, SIZE)[:, SIZE // 2 - 1 : SIZE // 2 + 1].mean(1)
            )
            slope = (middle[-1] - middle[0]) / (SIZE - 1)
            horizon_px = 0.5 - middle[0] / slope
            yield Rendered(kind, scene.camera, picture, depth_m, floor, horizon_px)


def with_noise(depth_mm: np.ndarray, seed: int, share: float = 0.08) -> np.ndarray:
    """Depth with smooth multiplicative noise of a standard deviation."""
    field = np.random.default_rng(seed).standard_normal((8, 8)).astype(np.float32)
    smooth = np.asarray(
        Image.fromarray(field).resize(depth_mm.shape[::-1], Image.Resampling.BICUBIC)
    )
    return np.clip(depth_mm * (1 + share * smooth / smooth.std()), 100, FAR).astype(np.uint16)


def ground_row(name: str, maps: list[np.ndarray], scenes: list[Rendered]) -> str:
    precision, horizon, n_free = [], [], 0
    for depth, scene in zip(maps, scenes, strict=True):
        try:
            ground = fit_ground(inverse_depth(depth, FAR, inverse=False))
        except NoGround:
            n_free += 1
            continue
        precision.append((ground.region & scene.floor).sum() / ground.region.sum())
        horizon.append(abs(ground.horizon_px - scene.horizon_px) / SIZE)
    figures = f"{np.median(precision):.3f} | {np.mean(precision):.3f}"
    off = f"{100 * np.median(horizon):.1f} % | {100 * np.percentile(horizon, 90):.1f} %"
    return f"| {name} | {len(precision)} | {n_free} | {figures} | {off} |"


def above_horizon(scene: Rendered) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give squares above the horizon, as a picture and its exact depth: no ground is in them."""
    side = int(min(scene.horizon_px, SIZE)) - 6
    if side < SIZE // 4:
        return
    for left in (0, (SIZE - side) // 2, SIZE - side):
        part = np.s_[:side, left : left + side]
        picture = Image.fromarray(scene.picture[part]).resize(
            (SIZE, SIZE), Image.Resampling.BICUBIC
        )
        depth = Image.fromarray(scene.depth_mm[part]).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        yield np.asarray(picture), np.asarray(depth)


def false_row(name: str, maps: list[np.ndarray]) -> str:
    n_found = 0
    for depth in maps:
        with suppress(NoGround):
            fit_ground(inverse_depth(depth, FAR, inverse=False))
            n_found += 1
    return f"| {name} | {len(maps)} | {n_found} |"


@dataclass(frozen=True)
class Board:
    """An upright board put on the floor of a scene: its foot, its pixels, its exact depth."""

    foot: tuple[int, int]
    cutout: np.ndarray
    depth_mm: np.ndarray


def put_up(scene: Rendered, library: list[np.ndarray], rng: np.random.Generator) -> Board | None:
    """Choose a place on the floor and a height, and see the board as the scene's camera does."""
    ys, xs = np.nonzero(scene.floor & (scene.depth_m < 9.5))
    if len(ys) < 400:
        return None
    at = rng.integers(len(ys))
    y, x = int(ys[at]), int(xs[at])
    focal = SIZE / 2 / math.tan(math.radians(scene.camera.fov_deg) / 2)
    ray = np.array([(x + 0.5 - SIZE / 2) / focal, (SIZE / 2 - y - 0.5) / focal, 1.0])
    foot = ray * scene.depth_m[y, x]
    up = scene.camera.rotation().T @ np.array([0.0, 1.0, 0.0])
    top = foot + up * float(rng.choice(HEIGHTS_M))
    if top[2] < 0.2:
        return None
    height = round(y + 0.5 - (SIZE / 2 - focal * top[1] / top[2]))
    if not 12 <= height <= SIZE:
        return None
    across = np.cross(up, [0, 0, 1])
    normal = np.cross(across / np.linalg.norm(across), up)
    u, v = np.meshgrid(
        (np.arange(SIZE) + 0.5 - SIZE / 2) / focal, (SIZE / 2 - np.arange(SIZE) - 0.5) / focal
    )
    exact = normal @ foot / (normal[0] * u + normal[1] * v + normal[2])
    picture = Image.fromarray(library[rng.integers(len(library))])
    width = max(2, round(picture.width * height / picture.height))
    shrink = height < picture.height
    method = Image.Resampling.HAMMING if shrink else Image.Resampling.BILINEAR
    return Board((x, y), np.asarray(picture.resize((width, height), method)), exact * 1000)


def composed_on(depth: np.ndarray, board: Board, picture: np.ndarray):
    """Compose a board on a background whose depth map is given."""
    try:
        tilt = Tilt.of(
            fit_ground(inverse_depth(depth, FAR, inverse=False)).plane, SIZE, 3 * SIZE**2
        )
    except NoGround:
        tilt = None
    cutout = cut_out(board.cutout)
    low = cutout.mask[-max(1, round(0.03 * len(cutout.mask))) :].any(axis=0)
    foot_x = int(np.flatnonzero(low).mean()) if low.any() else low.size // 2
    x, y = board.foot
    at_foot = depth_under(depth, board.foot, low.size)
    placed = Placed(
        0, False, 0, x - foot_x, y + 1 - len(cutout.mask), board.foot, "ground", at_foot, 0
    )
    return compose(picture, depth, tilt, [placed], lambda _: cutout, min_visible=0)


def labels(scenes: list[Rendered], maps: list[np.ndarray], model: DepthEstimator) -> list[str]:
    rng = np.random.default_rng(5)
    library = [renderer.library_cutout(seed) for seed in range(40)]
    errors: dict[str, list[float]] = {
        "network on the composite": [],
        "composed": [],
        "composed on exact depth": [],
    }
    steps, changes = {"network": [], "composed": []}, []
    for scene, estimated in zip(scenes, maps, strict=True):
        for _ in range(3):
            if (board := put_up(scene, library, rng)) is None:
                continue
            try:
                made = composed_on(estimated, board, scene.picture)
            except ValueError:  # a shrunk cut-out without a solid pixel
                continue
            inside = made.instances > 0
            if inside.sum() < 40:
                continue
            exact = np.clip(board.depth_mm, 100, FAR)
            network = model(made.fg_bg[None])[0].astype(float)
            on_exact = composed_on(scene.depth_mm, board, scene.picture)
            for name, found in zip(errors, (network, made.depth, on_exact.depth), strict=True):
                errors[name].append(float(np.median(np.abs(found[inside] / exact[inside] - 1))))
            x, y = board.foot
            under = np.zeros_like(inside)
            under[y + 1 : y + 4, max(0, x - 3) : x + 4] = True
            above = inside & (np.arange(SIZE)[:, None] > y - 3) & (np.abs(np.arange(SIZE) - x) < 4)
            for name, found in (("network", network), ("composed", made.depth.astype(float))):
                if under.any() and above.any():
                    steps[name].append(
                        abs(np.median(found[above]) / np.median(found[under & ~inside]) - 1)
                    )
            known = ~inside & (estimated > 0)
            changes.append(float(np.abs(network[known] / estimated[known] - 1).mean()))
    rows = []
    for name, v in errors.items():
        figures = f"{np.mean(v):.3f} | {np.median(v):.3f} | {np.percentile(v, 90):.3f}"
        rows.append(f"| {name} | {len(v)} | {figures} |")
    steps_of = {name: f"{np.median(values):.3f}" for name, values in steps.items()}
    rows.append(
        f"Step between object and floor, median: network {steps_of['network']}, composed "
        f"{steps_of['composed']}. Change of the background's depth by pasting: network "
        f"{np.mean(changes):.3f}, composed 0."
    )
    return rows


def rates(n: int) -> list[str]:
    """Records/s of processor time at 224 px: `n` with composed depth, fewer with a network's."""
    torch.set_num_threads(1)
    project = FgbgDataset(*demo_folders(), layout="scenes", size=224, records=2 * n).project
    bank = SourceBank(project.foregrounds, project.backgrounds)
    # More than half of the records are in `train`.
    made = Renderer(Plan(project.pinned), bank, None).records("train", 0, n)
    # The first ones fill the caches.
    pictures = np.stack([record.fg_bg for record in itertools.islice(made, n // 10)])
    start = time.process_time()
    composed = sum(1 for _ in made) / (time.process_time() - start)
    rows = [f"| composed | {composed:.0f} | 1 |"]
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))  # Random weights: speed does not depend on them.
        for name, source, count in (("demo model", "demo", 40), ("DenseDepth", folder, 8)):
            recipe, model = locate_model(Recipe(size=224, depth_model=source))
            estimate = DepthEstimator(model, recipe, device="cpu")
            estimate(pictures[:4])
            start = time.process_time()
            for first in range(0, count, 4):
                estimate(pictures[first : first + 4])
            one_s = (time.process_time() - start) / count + 1 / composed
            rows.append(f"| network, {name} | {1 / one_s:.2f} | {1 / one_s / composed:.5f} |")
    return rows


def builds(n: int) -> Iterator[str]:
    """Build `n` scenes of 224 and of 512 px by two workers; the start is paid once."""
    for size in (224, 512):
        with tempfile.TemporaryDirectory() as folder:
            seconds = []
            for records in (n // 10, n):
                dataset = FgbgDataset(*demo_folders(), layout="scenes", size=size, records=records)
                start = time.perf_counter()
                dataset.download_and_prepare(Path(folder) / f"{records}", num_proc=2)
                seconds.append(time.perf_counter() - start)
        one_s = (seconds[1] - seconds[0]) / (n - n // 10)
        yield (
            f"| {size} | {seconds[1]:.0f} | {1 / one_s:.0f} | "
            f"{(seconds[1] + (400_000 - n) * one_s) / 60:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=8, help="of each of the six kinds")
    parser.add_argument("--records", type=int, default=2000, help="to measure speed on, from 400")
    chosen = parser.parse_args()
    if chosen.records < 400:
        parser.error("--records must be 400 or more, of which a tenth fill the caches")
    recipe, model = locate_model(Recipe(size=SIZE))
    estimator = DepthEstimator(model, recipe, device="cpu")
    scenes = list(rendered(chosen.scenes))
    exact = [scene.depth_mm for scene in scenes]
    noisy = [with_noise(depth, seed) for seed, depth in enumerate(exact)]
    estimated = [estimator(scene.picture[None])[0] for scene in scenes]
    columns = "grounds | free | precision, median | mean | horizon off, median | 90 %"
    print(f"| depth given to the fit | {columns} |")
    print("|---|---|---|---|---|---|---|")
    for name, maps in (("exact", exact), ("8 % smooth noise", noisy), ("demo model", estimated)):
        print(ground_row(name, maps, scenes))
    squares = [square for scene in scenes for square in above_horizon(scene)]
    print("\n| depth of a square above the horizon | squares | grounds, all false |\n|---|---|---|")
    print(false_row("exact", [depth for _, depth in squares]))
    print(false_row("demo model", [estimator(picture[None])[0] for picture, _ in squares]))
    print("\n| depth inside the object | boards | abs-rel, mean | median | 90 % |")
    print("|---|---|---|---|---|")
    print("\n".join(labels(scenes, estimated, estimator)))
    print("\n| depth, 224 px, arrays, one core | records/s | of composed |\n|---|---|---|")
    print("\n".join(rates(chosen.records)))
    print(f"\n| px | {chosen.records:,} encoded by two workers, s | records/s | 400,000, min |")
    print("|---|---|---|---|")
    for row in builds(chosen.records):
        print(row)


if __name__ == "__main__":
    main()
