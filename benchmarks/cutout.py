"""How good and how fast `fgbg cutout` keys: real cut-outs before synthetic studio sweeps.

Cut-outs of photographs from Tux Paint's stamps (`apt-get install tuxpaint-stamps-default`), or the
bundled ones, are put before white, grey and green sweeps with falloff, lens blur, noise and JPEG,
and cut out again. Prints, for each sweep and size, IoU of the mask, error at the edge on black and
white (0 to 255) beside that of the mask with the photograph's own colours, and what was refused;
then photographs a second, files read and written.

With `--peers N` the first N cut-outs of each sweep and size are also cut out by rembg with u2net
(`pip install rembg[cpu]`; its weights as rembg finds them), and by pymatting: closed-form alpha in
the band that our key leaves open, then its foreground colours.

    OMP_NUM_THREADS=1 python benchmarks/cutout.py [--stamps 100] [--sides 500 2000] [--peers 20]
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


PEERS = {"rembg": "rembg u2net", "pymatting": "closed form + pymatting"}
EDGE_PX = 3  # about the edge of the truth, where errors of colour are counted


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


def ours(image: Image.Image) -> Floats:
    """Cut a photograph out; return its layer, as `truth` is.

    Raises:
        NotCutError: it is refused.
    """
    (one,) = cut_out(image)
    height, width = one.pixels.shape[:2]
    found = np.zeros((image.height, image.width, 4))
    found[one.top : one.top + height, one.left : one.left + width] = one.pixels
    found[..., :3] *= found[..., 3:] / 255
    return found


def rembg(image: Image.Image, session: Any) -> Floats:
    """Return rembg's plain cut-out, as `truth` is."""
    from rembg import remove

    return np.asarray(remove(image, session=session).convert("RGBa"), float)


def pymatting(image: Image.Image, mask: npt.NDArray[np.bool_]) -> Floats:
    """Return closed-form alpha at the edge of a mask, and pymatting's colours.

    The band is as wide as that in which keying looks for alpha.
    """
    from pymatting import estimate_alpha_cf, estimate_foreground_ml

    scale = max(1, max(image.size) // 512)
    picture = Image.fromarray(mask)
    sure = np.asarray(picture.filter(ImageFilter.MinFilter(6 * scale + 1)))
    maybe = np.asarray(picture.filter(ImageFilter.MaxFilter(4 * scale + 1)))
    pixels = np.asarray(image) / 255
    alpha = estimate_alpha_cf(pixels, np.where(sure, 1.0, np.where(maybe, 0.5, 0.0)))
    colour = estimate_foreground_ml(pixels, alpha)
    return np.dstack([colour * alpha[..., None], alpha]) * 255


def about_the_edge(truth: Floats) -> npt.NDArray[np.bool_]:
    """Return where errors of colour are counted: near any px that is partly the object's."""
    alpha = Image.fromarray(truth[..., 3].astype(np.uint8))
    size = 2 * EDGE_PX + 1
    most, least = (
        np.asarray(alpha.filter(kind(size)))
        for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter)
    )
    return (most > 5) & (least < 250)


def measured(photograph: Photograph, session: Any = None) -> dict[str, Any]:
    """Cut a photograph out; return IoU and errors, or why it is refused.

    Args:
        session: rembg's, with which, and with pymatting, it is cut out too; None leaves them out.
    """
    image, truth = photograph.image.convert("RGB"), photograph.truth
    try:
        found = ours(image)
    except NotCutError as error:
        return {"refused": str(error)}
    true, where = truth[..., 3] >= 128, about_the_edge(truth)

    def iou(layer: Floats) -> float:
        mask = layer[..., 3] >= 128
        return float((mask & true).sum() / (mask | true).sum())

    mask = found[..., 3] >= 128
    hard = np.dstack([np.asarray(image) * mask[..., None], mask * 255.0])
    row = {"iou": iou(found), "edge": edge_error(found, truth, where)}
    row["hard"] = edge_error(hard, truth, where)
    if session is not None:
        peers = {"rembg": rembg(image, session), "pymatting": pymatting(image, mask)}
        for name, layer in peers.items():
            row[name] = edge_error(layer, truth, where)
            row[f"{name}_iou"] = iou(layer)
    return row


def quality(chosen: list[tuple[str, Image.Image]], sides: list[int], n_peers: int) -> None:
    """Print one row for each sweep and size, and every cut-out below the bars."""
    session = None
    if n_peers:
        from rembg import new_session

        session = new_session("u2net")
    head = ["sweep", "side", "cut out", "median IoU", "worst", "edge error", "mask alone"]
    if n_peers:
        head += [f"of the first {n_peers}", *PEERS.values()]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    below = []
    refused: dict[str, int] = {}
    for side in sides:
        for sweep in SWEEPS:
            rows = []
            for seed, (name, cut) in enumerate(chosen):
                photograph = studio(placed(cut, side, seed), sweep, seed)
                row = measured(photograph, session if seed < n_peers else None)
                if reason := row.get("refused"):
                    key = " ".join(word for word in reason.split(";")[0].split() if "%" not in word)
                    refused[key] = refused.get(key, 0) + 1
                    continue
                rows.append(row)
                if row["iou"] < 0.9:
                    below.append(f"{name} ({sweep}, {side} px): {row['iou']:.3f}")
            ious = [row["iou"] for row in rows]
            cells = [
                sweep,
                f"{side} px",
                f"{len(rows)} of {len(chosen)}",
                f"{np.median(ious):.3f}",
                f"{min(ious):.3f}",
                f"{np.mean([row['edge'] for row in rows]):.1f}",
                f"{np.mean([row['hard'] for row in rows]):.1f}",
            ]
            if both := [row for row in rows if "rembg" in row]:
                cells.append(f"{np.mean([row['edge'] for row in both]):.1f}")
                for peer in PEERS:
                    error = np.mean([row[peer] for row in both])
                    iou = np.median([row[f"{peer}_iou"] for row in both])
                    cells.append(f"{error:.1f} (IoU {iou:.3f})")
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
    parser.add_argument("--peers", type=int, default=0, help="cut-outs that peers cut out too")
    options = parser.parse_args()
    chosen, where = stamps(options.stamps)
    print(f"{where}\n")
    quality(chosen, options.sides, options.peers)
    speed(chosen)


if __name__ == "__main__":
    main()
