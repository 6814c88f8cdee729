"""Draw the demo sources, 12 foregrounds and 12 backgrounds: `python -m factory.make_demo_sources`.

Every picture is rendered by `factory.scenes`, from a seed and nothing else. The same command
writes the same bytes (on another kind of CPU a pixel may differ by a level: NumPy's float functions
round differently).
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import click
from PIL import Image

from factory import scenes

DEMO = Path(__file__).resolve().parents[1] / "builder" / "demo"
FOREGROUND_PX = 192
BACKGROUND_SIZE = (288, 384)  # height, width
CREDITS = ("file", "author", "license", "url")

# File stem -> (name in scenes.CUTOUTS, seed). The seeds were chosen by eye, for their colours.
FOREGROUNDS: dict[str, tuple[str, int]] = {
    "ball": ("ball", 13),
    "bottle": ("bottle", 13),
    "chair": ("chair", 6),
    "dog": ("dog", 7),
    "duck": ("duck", 13),
    "gift": ("gift", 12),
    "lamp": ("lamp", 7),
    "mug": ("mug", 4),
    "plant": ("plant", 9),
    "teapot": ("teapot", 12),
    "toy-car": ("car", 3),
    "walker": ("person", 13),
}
# File stem -> (kind, seed).
BACKGROUNDS: dict[str, tuple[str, int]] = {
    "corridor-long": ("corridor", 518),
    "corridor-striped": ("corridor", 541),
    "courtyard-bench": ("courtyard", 511),
    "courtyard-garden": ("courtyard", 533),
    "office-desks": ("office", 607),
    "office-plant": ("office", 609),
    "room-living": ("room", 542),
    "room-study": ("room", 530),
    "stairs-dotted": ("stairs", 608),
    "stairs-striped": ("stairs", 614),
    "street-lane": ("street", 530),
    "street-town": ("street", 503),
}


def foreground_png(stem: str) -> bytes:
    """The PNG file of one foreground: RGBA, 192 px on the longer side."""
    name, seed = FOREGROUNDS[stem]
    picture = Image.fromarray(scenes.render_cutout(seed, FOREGROUND_PX, name, samples=4), "RGBA")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def background_jpeg(stem: str) -> bytes:
    """The JPEG file of one background: 384 x 288 px."""
    kind, seed = BACKGROUNDS[stem]
    picture = Image.fromarray(scenes.render_background(seed, BACKGROUND_SIZE, kind))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, subsampling=0, optimize=True)
    return buffer.getvalue()


def _write_credits(folder: Path, names: list[str]) -> None:
    with (folder / "credits.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CREDITS)
        writer.writerows((name, "fgbg-dataset", "CC0-1.0", "") for name in names)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=DEMO,
    show_default="builder/demo",
    help="Folder that gets foregrounds/ and backgrounds/.",
)
def main(out: Path) -> None:
    """Render the demo foregrounds and backgrounds with their credits."""
    for folder, stems, make, suffix in (
        (out / "foregrounds", FOREGROUNDS, foreground_png, ".png"),
        (out / "backgrounds", BACKGROUNDS, background_jpeg, ".jpg"),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for stem in stems:
            (folder / f"{stem}{suffix}").write_bytes(make(stem))
        _write_credits(folder, [f"{stem}{suffix}" for stem in sorted(stems)])


if __name__ == "__main__":
    main()
