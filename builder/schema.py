"""The columns of a record and of a source, each described once.

These tables make the dataset's features, the card's and the README's column tables and the
captions of the preview.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from builder.pinned import SourceEntry
from builder.recipe import Recipe
from builder.typed import checked_fields

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

MASK_ON = 255


@dataclass(frozen=True)
class Column:
    """One column: its name, `datasets` feature (dtype or `Image:mode`), shape, unit, meaning."""

    name: str
    feature: str
    shape: str
    unit: str
    meaning: str


COLUMNS = (
    Column("record_id", "int64", "", "", "stable id; with `recipe.json` it regenerates the record"),
    Column("fg_bg", "Image", "(size, size, 3) uint8", "sRGB", "the composite"),
    Column(
        "mask",
        "Image:L",
        "(size, size) uint8",
        "0 or 255",
        "exact mask of the pasted foreground (alpha >= 50 %)",
    ),
    Column(
        "depth",
        "Image",
        "(size, size) uint16, or uint8 code",
        "mm, 0 = unknown",
        "depth of the composite, estimated by the depth model (a pseudo-label)",
    ),
    Column("background_id", "string", "", "", "background: stem of the source file"),
    Column("foreground_id", "string", "", "", "foreground: stem of the source file"),
    Column("flipped", "bool", "", "", "whether the foreground is mirrored left to right"),
    Column("bbox", "int32:4", "(4,)", "px", "box of the mask: x, y, width, height (COCO order)"),
    Column("coverage", "float32", "", "0 to 1", "share of pixels in the mask"),
    Column(
        "pixel_hash", "string", "", "hex", "XXH3-128 of composite and mask pixels before encoding"
    ),
)

IMAGE_COLUMNS = tuple(column.name for column in COLUMNS if column.feature.startswith("Image"))

SOURCE_COLUMNS = (
    Column("image", "Image", "(h, w, 3) or (h, w, 4)", "sRGB", "the prepared image, lossless PNG"),
    Column("id", "string", "", "", "what foreground_id or background_id of a record names"),
    Column("file", "string", "", "", "path in the source folder"),
    Column("sha256", "string", "", "hex", "hash of the source file's bytes"),
    Column("width", "int32", "", "px", "width after preparation"),
    Column("height", "int32", "", "px", "height after preparation"),
    Column("source_width", "int32", "", "px", "width of the source file"),
    Column("source_height", "int32", "", "px", "height of the source file"),
    Column("held_out", "bool", "", "", "kept out of the train split"),
    Column("author", "string", "", "", "from credits.csv"),
    Column("license", "string", "", "", "from credits.csv"),
    Column("url", "string", "", "", "from credits.csv"),
    Column("intake", "int32", "", "", "2: by the file's own bits, alpha or colour profile; else 1"),
)


_DEPTH_COLOUR = Column(
    "depth_colour",
    "Image",
    "(h, w, 3) uint8",
    "sRGB",
    "depth as a picture: near bright, far dark, unknown hatched; one scale for the whole preview",
)
# Not `split`: the Hub's Croissant file has a field of its own by that name.
_SPLIT = Column("record_split", "string", "", "", "split of the default config the record is from")
_OLD_SPLIT = replace(_SPLIT, name="split")  # in previews of 0.1.0


def record_columns(recipe: Recipe) -> tuple[Column, ...]:
    """Return the columns a set with this recipe has (no depth without a depth model)."""
    return tuple(c for c in COLUMNS if c.name != "depth" or recipe.has_depth)


def source_columns(names: Iterable[str]) -> tuple[Column, ...]:
    """Return the columns due in a file of prepared sources that has columns of these names.

    They are `SOURCE_COLUMNS`, but for what an earlier version called otherwise or did not have.
    """
    found, names = {field.name: field for field in checked_fields(SourceEntry)}, set(names)
    columns = []
    for column in SOURCE_COLUMNS:
        field = found.get(column.name)
        name = field.name_in(names) if field else column.name
        if name or (field and "before" not in field.metadata):
            columns.append(replace(column, name=name or column.name))
    return tuple(columns)


def preview_columns(recipe: Recipe, names: Iterable[str] = ()) -> tuple[Column, ...]:
    """Return the columns due in the config `preview`; `names` are those that a file of it has."""
    colour = (_DEPTH_COLOUR,) if recipe.has_depth else ()
    return (*record_columns(recipe), *colour, _OLD_SPLIT if _OLD_SPLIT.name in names else _SPLIT)


def features(columns: tuple[Column, ...]) -> Features:
    """Return the `datasets` features of some columns."""
    from datasets import Features

    return Features({column.name: _feature(column.feature) for column in columns})


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """Return the Arrow schema of some columns, with their features for every `datasets`.

    A list is a Sequence there, which is what `datasets` before 4 reads, and later ones too.
    """
    schema = features(columns).arrow_schema
    content = schema.metadata[b"huggingface"].replace(b'"_type": "List"', b'"_type": "Sequence"')
    return schema.with_metadata({**schema.metadata, b"huggingface": content})


def _feature(text: str) -> Any:
    from datasets import Image, List, Value

    dtype, _, detail = text.partition(":")
    if dtype == "Image":
        return Image(mode=detail or None)
    return List(Value(dtype), length=int(detail)) if detail else Value(dtype)
