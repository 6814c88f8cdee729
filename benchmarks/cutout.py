"""How good and how fast `fgbg cutout` keys: real cut-outs before synthetic studio sweeps.

Cut-outs of photographs from Tux Paint's stamps (`apt-get install tuxpaint-stamps-default`), or the
bundled ones, are put before white, grey and green sweeps with falloff, lens blur, noise and JPEG,
and cut out again. Prints, for each sweep and size, IoU of the mask, error at the edge on black and
white (0 to 255) beside that of the mask with the photograph's own colours, and what was refused;
then photographs a second, files read and written.

    OMP_NUM_THREADS=1 python benchmarks/cutout.py [--stamps 100] [--sides 500 2000]
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from builder.cutout.key import cut_out
from builder.cutout.objects import NotCutError
from builder.sources import demo_folders
from fgbg_dataset import cutout

Floats = npt.NDArray[np.float64]

STAMPS = Path("/usr/share/tuxpaint/stamps")
SWEEPS = {"white": (236, 236, 233), "grey": (128, 129, 131), "green": (62, 168, 84)}
LEAST_COLOURS = 3000  # of a stamp that is a photograph and no drawing
MIRRORED = ("_mirror", "_flip")


class Photograph(NamedTuple):
    """A photograph, and what is the object's in it, (h, w, 4): colour times alpha, and alpha."""

    image: Image.Image
    truth: Floats


def stamps(count: int) -> tuple[list[tuple[str, Image.Image]], str]:
    """Return evenly chosen cut-outs by name, trimmed, and where they are from."""
    found = []
    for path in sorted(STAMPS.rglob("*.png")):
        if not path.stem.endswith(MIRRORED):
            image = Image.open(path)
            if image.mode in ("RGBA", "LA", "P"):
                image = image.convert("RGBA")
                box = image.getchannel("A").getbbox()
                if image.getchannel("A").getextrema()[0] == 0 and box and is_photographic(image):
                    found.append((path.stem, image.crop(box)))
    where = f"{len(found)} photographic stamps of Tux Paint"
    if not found:
        where = "the bundled cut-outs (Tux Paint's stamps are not installed)"
        for path in sorted(demo_folders()[0].glob("*.png")):
            image = Image.open(path).convert("RGBA")
            found.append((path.stem, image.crop(image.getchannel("A").getbbox())))
    count = min(count, len(found))
    return [found[number * len(found) // count] for number in range(count)], f"{count} of {where}"


def is_photographic(image: Image.Image) -> bool:
    """Whether the opaque part of a cut-out has as many colours as photographs have."""
    pixels = np.asarray(image)
    return len(np.unique(pixels[pixels[..., 3] > 200][:, :3], axis=0)) >= LEAST_COLOURS


def studio(layer: Image.Image, sweep: str, seed: int, *, shade: Floats | None = None) -> Photograph:
    """Photograph a layer, RGBA and as large as the picture, before a sweep.

    Args:
        shade: (h, w), what shadows leave of the sweep's light.
    """
    rng = np.random.default_rng(seed)
    width, height = layer.size
    blur = ImageFilter.GaussianBlur(0.6 if max(layer.size) < 1000 else 1.0)
    bands = [band.filter(blur) for band in layer.convert("RGBa").split()]
    truth = np.stack([np.asarray(band, float) for band in bands], -1)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    # Not a quadratic, as no lamp's light is: a power of the distance, and a slope.
    light = 1 - 0.10 * (np.hypot(x, 0.75 * y) / 1.25) ** 2.5
    light += 0.05 * (np.cos(angle) * x + np.sin(angle) * y)
    light = light if shade is None else light * shade
    sweep_colour = np.clip(np.array(SWEEPS[sweep]) * light[..., None], 0, 255)
    pixels = truth[..., :3] + (1 - truth[..., 3:] / 255) * sweep_colour
    pixels = np.clip(np.rint(pixels + rng.normal(0, 2.5, pixels.shape)), 0, 255)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=93)
    return Photograph(Image.open(file), truth)


def placed(cut: Image.Image, side: int, seed: int) -> Image.Image:
    """Return a layer of side x 3/4 side px with a cut-out at half to four fifths of its size."""
    rng = np.random.default_rng(1000 + seed)
    width, height = side, side * 3 // 4
    scale = rng.uniform(0.5, 0.8) * min(width / cut.width, height / cut.height)
    size = max(8, round(cut.width * scale)), max(8, round(cut.height * scale))
    at = (
        int(rng.integers(width // 20, width - size[0] - width // 20)),
        int(rng.integers(height // 20, height - size[1] - height // 20)),
    )
    layer = Image.new("RGBa", (width, height))
    layer.paste(cut.convert("RGBa").resize(size, Image.Resampling.BICUBIC), at)
    return layer.convert("RGBA")


def edge_error(found: Floats, truth: Floats, where: npt.NDArray[np.bool_]) -> float:
    """Return the mean error of colours on black and on white; both arguments as `truth` is."""
    errors = []
    for ground in (0, 1):
        theirs, ours = (a[..., :3] + ground * (255 - a[..., 3:]) for a in (found, truth))
        errors.append(np.abs(theirs - ours)[where].mean())
    return float(np.mean(errors))


def measured(photograph: Photograph) -> dict[str, Any]:
    """Cut a photograph out; return IoU, errors, figures, or why it is refused."""
    image, truth = photograph
    try:
        (one,) = cut_out(image.convert("RGB"))
    except NotCutError as error:
        return {"refused": str(error)}
    found = np.zeros(truth.shape)
    height, width = one.pixels.shape[:2]
    box = slice(one.top, one.top + height), slice(one.left, one.left + width)
    found[box] = one.pixels
    found[..., :3] *= found[..., 3:] / 255
    mask, true = found[..., 3] >= 128, truth[..., 3] >= 128
    soft = ((truth[..., 3] > 5) & (truth[..., 3] < 250)) | (
        (found[..., 3] > 5) & (found[..., 3] < 250)
    )
    hard = np.dstack([np.asarray(image) * mask[..., None], mask * 255.0])
    return {
        "iou": float((mask & true).sum() / (mask | true).sum()),
        "edge": edge_error(found, truth, soft),
        "hard": edge_error(hard, truth, soft),
        "alike": one.figures.alike,
    }


def quality(chosen: list[tuple[str, Image.Image]], sides: list[int]) -> None:
    """Print one row for each sweep and size, and every cut-out below the bars."""
    head = ("sweep", "side", "cut out", "median IoU", "worst", "edge error", "mask alone")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    below = []
    refused: dict[str, int] = {}
    for side in sides:
        for sweep in SWEEPS:
            rows = []
            for seed, (name, cut) in enumerate(chosen):
                row = measured(studio(placed(cut, side, seed), sweep, seed))
                if reason := row.get("refused"):
                    key = " ".join(word for word in reason.split(";")[0].split() if "%" not in word)
                    refused[key] = refused.get(key, 0) + 1
                    continue
                rows.append(row)
                if row["iou"] < 0.9:
                    below.append(f"{name} ({sweep}, {side} px): {row['iou']:.3f}")
            ious = [row["iou"] for row in rows]
            cells = (
                sweep,
                f"{side} px",
                f"{len(rows)} of {len(chosen)}",
                f"{np.median(ious):.3f}",
                f"{min(ious):.3f}",
                f"{np.mean([row['edge'] for row in rows]):.1f}",
                f"{np.mean([row['hard'] for row in rows]):.1f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\nBelow 0.90: {'; '.join(below) or 'none'}")
    for reason, count in refused.items():
        print(f"Refused, {count} times: {reason}")


def speed(chosen: list[tuple[str, Image.Image]]) -> None:
    """Print how many photographs of 1 MP a core cuts out in a second, file to file."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        for seed, (name, cut) in enumerate(chosen[:24]):
            image = studio(placed(cut, 1156, seed), list(SWEEPS)[seed % 3], seed).image
            image.save(photos / f"{seed}-{name}.jpg", quality=93)
        start = time.process_time()
        report = cutout(photos, Path(folder, "out"), skip_bad=True, workers=1)
        spent_s = time.process_time() - start
        n = len(report.cut) + len(report.refused)
        print(f"\n{n / spent_s:.1f} photographs of 1156 x 867 px a second of processor time")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stamps", type=int, default=100)
    parser.add_argument("--sides", type=int, nargs="+", default=[500, 2000])
    options = parser.parse_args()
    chosen, where = stamps(options.stamps)
    print(f"{where}\n")
    quality(chosen, options.sides)
    speed(chosen)


if __name__ == "__main__":
    main()
