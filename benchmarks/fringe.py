"""What is left of an old background in the edge of cut-outs, and what taking it out costs.

Objects of known colour before the bundled backgrounds, cut out with soft edges: prints how far
colours at the edge are off, times alpha, which is how far any composite is off; the halo's measure;
and the processor's time. `python benchmarks/fringe.py` takes half a minute.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.sources.fringe import decontaminated
from builder.sources.prepare import demo_folders

Floats = npt.NDArray[np.float64]

SIDE = 400
SOFT_PX = (2, 5, 12, 30)


def cut_out(soft_px: float, side: int = SIDE, seed: int = 0) -> tuple[Floats, Floats]:
    """Return a textured object with a wavy outline: its true colours (h, w, 3), alpha 0 to 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    angle, radius, outline = np.arctan2(y, x), np.hypot(y, x), 0.33 * side
    for wave in range(1, 25):
        size, phase = rng.normal(0, 0.035 * side / wave), rng.uniform(0, 2 * np.pi)
        outline = outline + size * np.cos(wave * angle + phase)
    alpha = np.rint(np.clip((outline - radius) / soft_px + 0.5, 0, 1) * 255) / 255
    coarse = rng.normal(0, 20, (3, side // 8, side // 8)).astype(np.float32)
    waves = [
        np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BICUBIC))
        for part in coarse
    ]
    colour = rng.integers(40, 216, 3) + np.stack(waves, -1) + rng.normal(0, 6, (side, side, 1))
    return np.clip(colour, 0, 255), alpha


def as_file(colour: Floats, alpha: Floats) -> Image.Image:
    """Return a cut-out, RGBA, of colours (h, w, 3) and alpha from 0 to 1."""
    pixels = np.dstack([np.rint(colour), np.rint(alpha * 255)])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def edge_error(image: Image.Image, truth: Floats) -> float:
    """Return the mean distance of colours from the true ones at the edge, times alpha, 0 to 255."""
    pixels = np.asarray(image).astype(float)
    alpha = pixels[..., 3:] / 255
    edge = (alpha[..., 0] > 0) & (alpha[..., 0] < 1)
    return float((alpha * np.abs(pixels[..., :3] - truth))[edge].mean())


def cases(soft_px: float) -> Iterator[tuple[str, Image.Image, Floats]]:
    """Give cut-outs as they are found, of every kind before every background; their colours."""
    for seed, path in enumerate(sorted(demo_folders()[1].glob("*.jpg"))):
        background = np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE)), float)
        colour, alpha = cut_out(soft_px, seed=seed)
        black = alpha[..., None] * colour
        mixed = black + (1 - alpha[..., None]) * background
        yield "photograph's colours", as_file(mixed, alpha), colour
        yield "the same, alpha too high", as_file(mixed, alpha**0.7), colour
        yield "colours multiplied by alpha", as_file(black, alpha), colour
        yield "right colours, strong texture", as_file(colour, alpha), colour


def main() -> None:
    """Print the table."""
    print("| colours of the file | edge | error before | after | halo | ms |")
    print("|---|---|---|---|---|---|")
    for soft_px in SOFT_PX:
        rows: dict[str, list[tuple[float, ...]]] = {}
        for name, image, truth in cases(soft_px):
            start = time.process_time()
            mended, halo = decontaminated(image)
            spent_ms = (time.process_time() - start) * 1000
            row = edge_error(image, truth), edge_error(mended, truth), halo, spent_ms
            rows.setdefault(name, []).append(row)
        for name, values in rows.items():
            cells = " | ".join(f"{value:.1f}" for value in np.mean(values, 0))
            print(f"| {name} | {soft_px} px | {cells} |")


if __name__ == "__main__":
    main()
