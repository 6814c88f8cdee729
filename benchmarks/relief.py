"""How right the depth inside objects is, as boards and with the relief of their photographs.

Rendered things are photographed in one rendered place and pasted in another, where what a camera
would have seen of them is known: seen from the same side, but from the height and the angle of that
camera. Depth of the background and the size of objects are exact, so that what is off is the
object's own. Prints tables. `python benchmarks/relief.py --objects 400` measures so many.

The demo model was trained on the same renderer, and on such things, though not on these pictures.
"""

from __future__ import annotations

import argparse
import io
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from benchmarks.scenes import with_noise
from builder.depth import DepthEstimator, locate_model
from builder.recipe import Recipe
from builder.record.board import Tilt, depth_under, object_depth, relief_of
from builder.record.scene import Placed
from builder.record.stage import foot_of
from builder.sources.companions import ObjectDepth
from builder.sources.relief import Relief
from factory import scenes as renderer

PHOTO, SIZE, COARSE = 288, 256, 72  # px
FIRST_SEED = 930_000  # nothing was tuned or trained on these
FAR_M = 10.0
NOISE = 0.02
PLACES = 4  # that a photographed thing is pasted in, where it can be


@dataclass(frozen=True)
class Seen:
    """A place with a thing in it: picture, depth with and without the thing, where it is seen."""

    picture: np.ndarray
    depth_m: np.ndarray
    empty_m: np.ndarray
    mask: np.ndarray
    focal_px: float


def seen(scene: renderer.Scene, thing: list[renderer.Shape], size: int, seed: int) -> Seen | None:
    """Render a thing in a scene; None unless all of it is seen, large enough."""
    _, alone_m = depth_of(replace(scene, shapes=thing), size)
    mask = np.isfinite(alone_m)
    edge = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    if edge or mask.sum() < 300 or alone_m[mask].max() > FAR_M - 0.5:
        return None
    _, empty_m = depth_of(scene, size)
    if (empty_m < alone_m)[mask].any():
        return None
    depth_m = np.where(mask, alone_m, empty_m)
    together = replace(scene, shapes=[*scene.shapes, *thing])
    picture, _ = renderer.render_scene(together, size, seed)
    focal_px = size / 2 / math.tan(math.radians(scene.camera.fov_deg) / 2)
    return Seen(picture, depth_m, empty_m, mask, focal_px)


def depth_of(scene: renderer.Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which shape is seen, and its depth in m, (size, size) each."""
    origin = np.asarray(scene.camera.position, np.float32)[:, None]
    depth_m, which = renderer.trace(scene.shapes, origin, scene.camera.rays(size, size))
    return which.reshape(size, size), depth_m.reshape(size, size)


def spot_on(scene: renderer.Scene, rng: np.random.Generator) -> np.ndarray | None:
    """A place on the floor that the scene's camera sees, not at its feet."""
    _, depth_m = depth_of(scene, COARSE)
    z = np.where(np.isfinite(depth_m), depth_m, 0).ravel()
    origin = np.asarray(scene.camera.position)[:, None]
    where = origin + z * scene.camera.rays(COARSE, COARSE)
    floor = np.flatnonzero((np.abs(where[1]) < 0.02) & (z > 2.5) & (z < FAR_M - 2))
    return where[:, rng.choice(floor)] if floor.size > 40 else None


def azimuth_deg(camera: renderer.Camera, spot: np.ndarray) -> float:
    return math.degrees(
        math.atan2(spot[0] - camera.position[0], spot[2] - camera.position[2])
    )  # fmt: skip


def photographed(
    name: str, seed: int, rng: np.random.Generator
) -> tuple[Seen, float, float] | None:
    """Photograph a thing from 2 to 4 times its height away, from 0 to 30 degrees above.

    Returns:
        The photograph; the thing's turn from the line of sight, in degrees; the camera's pitch.
    """
    scene = renderer.build_scene(seed, renderer.KINDS[seed % len(renderer.KINDS)])
    if (spot := spot_on(scene, rng)) is None:
        return None
    turn_deg, pitch_deg = float(rng.uniform(0, 360)), float(rng.uniform(-30, 0))
    facing = azimuth_deg(scene.camera, spot)
    thing = renderer.build_prop(name, seed, spot[0], spot[2], facing + turn_deg)
    corners = [(s.centre[1] + s.radius_m, s.radius_m) for s in thing]
    high = min(max(y for y, _ in corners), 2.0)
    away = float(rng.uniform(2, 4)) * high
    back = np.array([math.sin(math.radians(facing)), math.cos(math.radians(facing))]) * away
    eye = high / 2 + away * math.tan(math.radians(float(rng.uniform(-3, 3)) - pitch_deg))
    camera = replace(
        scene.camera,
        position=(float(spot[0] - back[0]), max(0.1, eye), float(spot[2] - back[1])),
        yaw_deg=facing + float(rng.uniform(-3, 3)),
        pitch_deg=pitch_deg,
        roll_deg=0.0,
    )
    photo = seen(replace(scene, camera=camera), thing, PHOTO, seed)
    return None if photo is None else (photo, turn_deg, pitch_deg)


@dataclass(frozen=True)
class Pasted:
    """A cut-out on a place where the thing itself is known to be."""

    one: Placed
    mask: np.ndarray
    exact: Seen
    tilt: Tilt
    focal: int


def pasted(
    name: str, thing_seed: int, turn_deg: float, photo: Seen, seed: int, rng: np.random.Generator
) -> tuple[Pasted, Image.Image] | None:
    scene = renderer.build_scene(seed, renderer.KINDS[seed % len(renderer.KINDS)])
    if (spot := spot_on(scene, rng)) is None:
        return None
    facing = azimuth_deg(scene.camera, spot)
    thing = renderer.build_prop(name, thing_seed, spot[0], spot[2], facing + turn_deg)
    if (exact := seen(scene, thing, SIZE, seed)) is None:
        return None
    rows, columns = np.flatnonzero(exact.mask.any(1)), np.flatnonzero(exact.mask.any(0))
    height = int(np.ptp(rows)) + 1
    own = exact.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    foot = int(columns[0]) + foot_of(own), int(rows[-1])
    cutout = cutout_of(photo)
    width = max(2, round(cutout.width * height / cutout.height))
    sized = cutout.resize((width, height), filter_for(cutout, height))
    mask = np.asarray(sized)[..., 3] >= 128
    if not mask.any():
        return None
    depth = np.clip(exact.empty_m * 1000, 100, 65_000).astype(np.uint16)
    at_foot = depth_under(depth, foot, own.shape[1])
    left, top = foot[0] - foot_of(mask), foot[1] + 1 - height
    one = Placed(0, False, 0, left, top, foot, "ground", at_foot, 0)
    rho = (-scene.camera.rays(SIZE, SIZE)[1] / scene.camera.position[1]).reshape(SIZE, SIZE)
    a, b = rho[0, 1] - rho[0, 0], rho[1, 0] - rho[0, 0]
    plane = [round(float(n) * 2**40) for n in (a, b, rho[0, 0] - (a + b) / 2)]
    tilt = Tilt.of((plane[0], plane[1], plane[2]), SIZE, round(4 * exact.focal_px**2))
    return Pasted(one, mask, exact, tilt, round(exact.focal_px * 65_536)), sized


def cutout_of(photo: Seen) -> Image.Image:
    rgba = np.dstack([photo.picture, photo.mask * np.uint8(255)])
    return Image.fromarray(rgba).crop(box_of(photo.mask))


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    box = Image.fromarray(mask).getbbox()
    assert box is not None
    return box


def filter_for(cutout: Image.Image, height: int) -> Image.Resampling:
    shrinks = height < cutout.height
    return Image.Resampling.HAMMING if shrinks else Image.Resampling.BILINEAR


def relief_from(
    photo: Seen, depth_mm: np.ndarray, pitch_deg: float | None, sized: Image.Image, focal: int
) -> np.ndarray:
    """Relief of a cut-out at a size, from depth of its whole photograph."""
    cutout, box = cutout_of(photo), box_of(photo.mask)
    seen = ObjectDepth(depth_mm, photo.focal_px, pitch_deg).cropped(box)
    relief = Relief.of(np.asarray(cutout)[..., 3], seen, 0)
    png = relief.at(sized, filter_for(cutout, sized.height))
    stored = np.asarray(Image.open(io.BytesIO(png)), np.uint16)
    return relief_of(stored, sized.height, focal)


def error_of(found: Pasted, relief: np.ndarray | None) -> float | None:
    """Mean relative error of depth where both the cut-out and the thing itself are seen."""
    one, (height, width) = found.one, found.mask.shape
    left, top = max(0, one.left_px), max(0, one.top_px)
    right, bottom = min(SIZE, one.left_px + width), min(SIZE, one.top_px + height)
    box = left, top, right - left, bottom - top
    depth = object_depth(found.tilt, one, box, relief, inverse=False)
    part = np.s_[top:bottom, left:right]
    mine = found.mask[top - one.top_px :, left - one.left_px :][: box[3], : box[2]]
    inside = mine & found.exact.mask[part]
    if inside.sum() < 150 or one.depth == 0:
        return None
    exact = found.exact.depth_m[part][inside] * 1000
    return float(np.abs(np.broadcast_to(depth, inside.shape)[inside] / exact - 1).mean())


def measured(n: int, model: DepthEstimator) -> Iterator[tuple[str, dict[str, float]]]:
    """Give the name of a thing and its error under each kind of depth."""
    names, made, seed = list(renderer.PROPS), 0, FIRST_SEED
    while made < n:
        seed += 1
        name, rng = names[seed % len(names)], np.random.default_rng(seed)
        if (found := photographed(name, seed, rng)) is None:
            continue
        photo, turn_deg, pitch_deg = found
        exact = np.clip(photo.depth_m * 1000, 1, 65_535).astype(np.uint16)
        noisy = with_noise(exact, seed, NOISE)
        estimated = model(photo.picture[None])[0]
        reliefs: dict[str, tuple[np.ndarray, float | None]] = {
            "relief of exact depth, pitch known": (exact, pitch_deg),
            "relief of exact depth": (exact, None),
            f"relief of depth with {NOISE:.0%} noise, pitch known": (noisy, pitch_deg),
            f"relief of depth with {NOISE:.0%} noise": (noisy, None),
            "relief by the demo model": (estimated, None),
        }
        places = (seed + 7919 * (1 + other) for other in range(PLACES))
        for place in places:
            if (at := pasted(name, seed, turn_deg, photo, place, rng)) is None:
                continue
            where, sized = at
            if (board := error_of(where, None)) is None:
                continue
            errors = {"board": board}
            for kind, (depth, pitch) in reliefs.items():
                relief = relief_from(photo, depth, pitch, sized, where.focal)
                errors[kind] = error_of(where, relief) or 0.0
            made += 1
            yield name, errors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=120)
    chosen = parser.parse_args()
    recipe, model = locate_model(Recipe(size=PHOTO))
    estimator = DepthEstimator(model, recipe, device="cpu")
    errors: dict[str, list[float]] = defaultdict(list)
    by_name: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for name, found in measured(chosen.objects, estimator):
        for kind, error in found.items():
            errors[kind].append(error)
        by_name[name].append(tuple(found.values()))
    print("| depth inside objects | objects | abs-rel, mean | median | 90 % |")
    print("|---|---|---|---|---|")
    for kind, values in errors.items():
        figures = [np.mean(values), np.median(values), np.percentile(values, 90)]
        shown = " | ".join(f"{figure:.3f}" for figure in figures)
        print(f"| {kind} | {len(values)} | {shown} |")
    print(f"\n| mean of | objects | {' | '.join(errors)} |\n|---|---|{'---|' * len(errors)}")
    for name, values in sorted(by_name.items()):
        means = " | ".join(f"{mean:.3f}" for mean in np.mean(values, axis=0))
        print(f"| {name} | {len(values)} | {means} |")


if __name__ == "__main__":
    main()
