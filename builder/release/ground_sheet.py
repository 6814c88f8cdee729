"""A sheet of backgrounds with their ground, by which a person sees whether to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from builder.record import Pixels
from builder.sources import Backdrop, Source
from builder.untrusted import printable

_TILE_PX, _LINE_PX, _GAP_PX, _COLUMNS = 240, 17, 12, 4
_CAPTION_PX = 4 * _LINE_PX  # the name, and three lines of what is said
_GROUND, _HORIZON = (40, 220, 90), (255, 60, 60)
_TINT = 0.45


@dataclass(frozen=True)
class _Tile:
    picture: Image.Image
    name: str
    says: str


def ground_sheet(backgrounds: Sequence[Source]) -> Image.Image:
    """Draw every background with its ground in green and its horizon as a red line.

    Args:
        backgrounds: prepared, with their backdrops.
    """
    tiles = [_tile(source) for source in backgrounds]
    columns = min(_COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    pitch_x, pitch_y = _TILE_PX + _GAP_PX, _TILE_PX + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * pitch_x + _GAP_PX, rows * pitch_y + _GAP_PX), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, tile in enumerate(tiles):
        left, top = _GAP_PX + number % columns * pitch_x, _GAP_PX + number // columns * pitch_y
        sheet.paste(tile.picture, (left, top))
        for line, text in enumerate((tile.name, *wrapped(tile.says, font, _TILE_PX))):
            colour = "black" if line == 0 else "#666"
            while font.getlength(text) > _TILE_PX:  # a long name
                text = text[:-2].rstrip(".") + "."
            draw.text((left, top + _TILE_PX + 3 + _LINE_PX * line), text, colour, font)
    return sheet


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Return the words of a text in lines of at most `width` px."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _tile(source: Source) -> _Tile:
    backdrop = source.backdrop
    assert backdrop is not None
    picture = with_ground(source.pixels(), backdrop).resize((_TILE_PX, _TILE_PX))
    if backdrop.region is None:
        says = f"no ground: {backdrop.why_free}"
    else:
        roll = round(backdrop.roll_deg)
        says = f"ground {backdrop.region.mean():.0%}, roll {roll} deg"
    return _Tile(picture, printable(source.entry.id), f"{says}; {backdrop.depth_by} depth")


def with_ground(pixels: Pixels, backdrop: Backdrop) -> Image.Image:
    """Return a picture (H, W, 3) with its ground tinted and its horizon drawn."""
    shown = pixels.astype(np.float32)
    if backdrop.region is not None:
        shown[backdrop.region] *= 1 - _TINT
        shown[backdrop.region] += _TINT * np.array(_GROUND, np.float32)
    picture = Image.fromarray(shown.astype(np.uint8))
    if backdrop.region is not None:
        width = picture.width
        drop = math.tan(math.radians(backdrop.roll_deg)) * width / 2
        ends = (0, backdrop.horizon_px - drop, width, backdrop.horizon_px + drop)
        ImageDraw.Draw(picture).line(ends, _HORIZON, max(1, width // 120))
    return picture
