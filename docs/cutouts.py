"""Draw docs/cutouts.png: hard photographs, and what `fgbg cutout` makes of each.

python -m docs.cutouts
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.cutout import Floats, Photograph, studio
from builder.cutout.key import cut_out
from builder.cutout.objects import Cutout, NotCutError
from builder.sources import demo_folders

PICTURE = Path(__file__).with_name("cutouts.png")
WIDTH, HEIGHT = 800, 600  # of a photograph
FINE = 3  # drawn so many times as large
TILE_W, TILE_H, GAP, TITLE, COLUMNS = 200, 150, 12, 20, 2


def layer(*objects: tuple[str, tuple[int, int], int]) -> Image.Image:
    """Return a layer with bundled cut-outs: name, left and top, height in px."""
    whole = Image.new("RGBa", (WIDTH, HEIGHT))
    for name, at, height in objects:
        cut = Image.open(demo_folders()[0] / f"{name}.png").convert("RGBA")
        cut = cut.crop(cut.getchannel("A").getbbox()).convert("RGBa")
        size = round(cut.width * height / cut.height), height
        resized = cut.resize(size, Image.Resampling.BICUBIC)
        whole.paste(resized, at, resized.getchannel("a"))
    return whole.convert("RGBA")


def hair() -> Photograph:
    """A head of loose hair before grey."""
    rng = np.random.default_rng(3)
    whole = Image.new("RGBA", (WIDTH * FINE, HEIGHT * FINE))
    draw = ImageDraw.Draw(whole)
    x, y = WIDTH * FINE // 2, HEIGHT * FINE // 2
    draw.ellipse((x - 380, y - 480, x + 380, y + 480), fill=(70, 38, 20, 255))
    for _ in range(500):
        angle, points = rng.uniform(0, 2 * np.pi), []
        for step in np.linspace(0.9, rng.uniform(1.15, 1.55), 12):
            angle += rng.normal(0, 0.015)
            points.append((x + 400 * step * np.cos(angle), y + 500 * step * np.sin(angle)))
        tone = int(rng.integers(-14, 15))
        draw.line(points, fill=(70 + tone, 38 + tone, 20 + tone, 255), width=3)
    small = whole.convert("RGBa").reduce(FINE).convert("RGBA")
    return studio(small, "grey", 1)


def glass() -> Photograph:
    """A glass before white: hardly another colour, and the sweep seen through it."""
    whole = Image.new("RGBA", (WIDTH * FINE, HEIGHT * FINE))
    draw = ImageDraw.Draw(whole)
    box = (900, 300, 1500, 1500)
    draw.rounded_rectangle(box, 90, fill=(190, 200, 205, 70), outline=(150, 160, 168, 120), width=9)
    draw.rectangle((1000, 420, 1040, 1300), fill=(255, 255, 255, 150))
    return studio(whole.reduce(FINE), "white", 2)


def holes() -> Photograph:
    """A mug, whose handle leaves a hole."""
    return studio(layer(("mug", (230, 130), 340)), "grey", 3)


def two() -> Photograph:
    """Two objects."""
    return studio(layer(("duck", (80, 200), 250), ("ball", (500, 220), 200)), "grey", 4)


def shadow() -> Photograph:
    """A dog with a soft shadow on the sweep."""
    dog = layer(("dog", (240, 120), 330))
    return studio(dog, "white", 5, shade=_shade(dog))


def _shade(objects: Image.Image) -> Floats:
    """Return the light left by the shadow of what stands in a layer, seen from above its feet."""
    left, _, right, bottom = objects.getchannel("A").getbbox() or (0, 0, 1, 1)
    dark = Image.new("L", objects.size)
    draw = ImageDraw.Draw(dark)
    draw.ellipse((left + 20, bottom - 45, right + 90, bottom + 25), fill=110)
    return 1 - np.asarray(dark.filter(ImageFilter.GaussianBlur(22)), float) / 255


def spill() -> Photograph:
    """A duck that a green sweep shines on from behind."""
    duck = layer(("duck", (240, 120), 350))
    pixels = np.asarray(duck).astype(float)
    inside = np.asarray(duck.getchannel("A").filter(ImageFilter.GaussianBlur(7)), float) / 255
    rim = np.clip(2.4 * (1 - inside), 0, 0.5)[..., None]
    pixels[..., :3] = (1 - rim) * pixels[..., :3] + rim * np.array((62, 168, 84))
    return studio(Image.fromarray(pixels.astype(np.uint8)), "green", 6)


def cut_off() -> Photograph:
    """A walker whom the lower edge cuts off."""
    return studio(layer(("walker", (300, 90), 760)), "grey", 7)


def cut_off_twice() -> Photograph:
    """A chair that the left and the lower edge cut off."""
    return studio(layer(("chair", (-90, 130), 560)), "white", 8)


def same_colour() -> Photograph:
    """A white thing with a dark spot before white."""
    whole = Image.new("RGBA", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(whole)
    draw.ellipse((200, 100, 600, 500), fill=(246, 246, 243, 255))
    draw.ellipse((200, 250, 420, 500), fill=(90, 70, 60, 255))
    return studio(whole, "white", 9)


def room() -> Photograph:
    """A dog before one of the bundled backgrounds."""
    path = min(demo_folders()[1].glob("*.jpg"))
    back = Image.open(path).convert("RGB").resize((WIDTH, HEIGHT))
    dog = layer(("dog", (240, 120), 330))
    back.paste(dog, mask=dog.getchannel("A"))
    return Photograph(back, np.zeros((HEIGHT, WIDTH, 4)))


CASES: dict[str, Callable[[], Photograph]] = {
    "hair": hair,
    "a hole": holes,
    "a shadow on the sweep": shadow,
    "green spill": spill,
    "cut off at one side": cut_off,
    "cut off at two sides": cut_off_twice,
    "two objects": two,
    "glass": glass,
    "the sweep's own colour": same_colour,
    "no sweep": room,
}


def cut(photograph: Photograph) -> Cutout | str:
    """Return the cut-out of a photograph, or why it is refused."""
    try:
        return cut_out(photograph.image.convert("RGB"))[0]
    except NotCutError as error:
        return str(error)


def row(title: str, photograph: Photograph) -> Image.Image:
    """Return a photograph beside its cut-out on black and on white, or the reason."""
    picture = Image.new("RGB", (3 * TILE_W, TITLE + TILE_H), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((0, 2), title, "black", ImageFont.load_default(13))
    picture.paste(photograph.image.convert("RGB").resize((TILE_W, TILE_H)), (0, TITLE))
    found = cut(photograph)
    if isinstance(found, str):
        lines = textwrap.wrap(f"Refused: {found}.", 52)
        draw.multiline_text(
            (TILE_W + 12, TITLE + 6), "\n".join(lines), "#a3123a", ImageFont.load_default(13)
        )
        return picture
    own = Image.fromarray(found.pixels)
    own.thumbnail((TILE_W - 10, TILE_H - 10))
    for tile, ground in ((1, "black"), (2, "white")):
        left = tile * TILE_W
        draw.rectangle((left, TITLE, left + TILE_W - 1, TITLE + TILE_H), ground, "#bbb")
        at = left + (TILE_W - own.width) // 2, TITLE + (TILE_H - own.height) // 2
        picture.paste(own, at, own)
    return picture


def main() -> None:
    """Draw the picture."""
    rows = [row(title, make()) for title, make in CASES.items()]
    pitch_x, pitch_y = 3 * TILE_W + 2 * GAP, TITLE + TILE_H + GAP
    n_lines = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * pitch_x, n_lines * pitch_y + GAP), "white")
    for number, picture in enumerate(rows):
        at = GAP + number % COLUMNS * pitch_x, GAP + number // COLUMNS * pitch_y
        sheet.paste(picture, at)
    sheet.quantize(128).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
