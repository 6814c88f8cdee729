"""Draw docs/looks.png: the same scene without and with each choice of appearance.

python -m docs.looks
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from builder.sources import demo_folders
from fgbg_dataset import FgbgDataset

PICTURE = Path(__file__).with_name("looks.png")
# What is shown of each: strong, so that it is seen at this size.
CHOICES: dict[str, dict[str, Any]] = {
    "--blend feather2": {"blend": "feather2"},
    "--blend box": {"blend": "box"},
    "--match 0.5": {"match": "0.5"},
    "--shadow 0.6": {"shadow": "0.6"},
    "--object-jitter 0.5": {"object_jitter": 0.5},
    "--jitter 0.5": {"jitter": 0.5},
    "--jpeg-history 15": {"jpeg_history": "15"},
    "--background-flip": {"background_flip": True},
    "--distractors 2": {"distractors": "2"},
    "--match-sharpness, --match-noise": {"match_sharpness": True, "match_noise": True},
}
SIZE, SIDE, GAP, TITLE = 512, 200, 10, 22
CROPPED = ("--blend", "--match-", "--jpeg")  # seen in a part, as large as its pixels
COLUMNS = 2


def scene(number: int, **fields: Any) -> dict[str, Any]:
    """Return a record of scenes made of the bundled pictures."""
    fields = {"layout": "scenes", "records": 400, "size": SIZE, "blend": "none", **fields}
    builder = FgbgDataset(*demo_folders(), **fields)
    rows = iter(builder.as_array_stream("train"))
    return next(row for at, row in enumerate(rows) if at == number)


def main(number: int = 1) -> None:
    """Draw the picture."""
    plain = scene(number)
    pitch = 2 * SIDE + 2 * GAP, SIDE + TITLE + GAP
    rows = -(-len(CHOICES) // COLUMNS)
    picture = Image.new("RGB", (COLUMNS * pitch[0] + GAP, rows * pitch[1] + GAP), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for at, (title, fields) in enumerate(CHOICES.items()):
        left, top = GAP + (at % COLUMNS) * pitch[0], GAP + (at // COLUMNS) * pitch[1]
        pen.text((left, top), f"without, and with {title}", "#16181d", font)
        shown = (plain["fg_bg"], scene(number, **fields)["fg_bg"])
        for step, pixels in enumerate(shown):
            tile = Image.fromarray(np.asarray(pixels))
            if title.startswith(CROPPED):
                x, y, width, _ = plain["bbox"]
                x, y = x + width // 2 - 50, y + 10
                tile = tile.crop((x, y, x + 100, y + 100))
                tile = tile.resize((SIDE, SIDE), Image.Resampling.NEAREST)
            else:
                tile = tile.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            picture.paste(tile, (left + step * (SIDE + 2), top + TITLE - 4))
    picture.save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
