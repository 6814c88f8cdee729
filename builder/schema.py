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
    """One column: its name, `datasets` feature (dtype or `Image:mode`), shape, unit, meaning.

    `classes` names those of the classes that a number in it stands for; `fields` are those of a
    struct of lists, each with its feature, unit and meaning.
    """

    name: str
    feature: str
    shape: str
    unit: str
    meaning: str
    classes: tuple[str, ...] = ()
    fields: tuple[tuple[str, tuple[str, str, str]], ...] = ()


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

# What scenes have beside those.
SCENE_COLUMNS = (
    Column(
        "instances",
        "Image:L",
        "(size, size) uint8",
        "",
        "k where the k-th object is seen, 0 = background",
    ),
    Column("objects", "lists", "a list a field", "", "the objects, as a dict of lists"),
)
# What columns of pairs mean where records are composed of more, and where there are objects.
_COMPOSED = {
    "pixel_hash": "XXH3-128 of composite, mask, instances (mask > 0 where there is no such column) "
    "and composed depth before encoding",
}
_IN_SCENES = {
    "mask": "exact mask of all objects (alpha >= 50 %)",
    "foreground_id": "foreground of the first object: stem of the source file",
    "flipped": "whether the first object is mirrored left to right",
    "bbox": "box of what is seen of the first object: x, y, width, height (COCO order)",
    "coverage": "share of pixels where the first object is seen",
}
# The fields of `objects`: feature, unit, meaning.
OBJECTS = {
    "id": ("int32", "", "k, the object's value in `instances`"),
    "category": ("category", "", "class of its foreground"),
    "bbox": ("int32:4", "px", "box of what is seen of it: x, y, width, height (COCO order)"),
    "area": ("int32", "px", "pixels seen of it"),
    "foreground_id": ("string", "", "foreground: stem of the source file"),
    "flipped": ("bool", "", "whether it is mirrored left to right"),
    "level": ("int32", "", "its size on the foreground's ladder, 0 = largest"),
    "rotation_deg": (
        "float32",
        "degrees",
        "turned by, counter-clockwise, before mirroring",
    ),
    "left_px": ("int32", "px", "left edge of the foreground at that size; may be outside"),
    "top_px": ("int32", "px", "top edge of the foreground at that size; may be outside"),
    "foot_x": ("int32", "px", "where it stands: column"),
    "foot_y": ("int32", "px", "where it stands: row"),
    "depth_mm": ("int32", "mm", "depth at its foot, in the unit of `depth`; 0 = unknown"),
    "stance": ("string", "", "ground: it stands there; free: it is anywhere before the background"),
    "visible": ("float32", "0 to 1", "share of its part in the frame that nothing hides"),
    "truncated": ("float32", "0 to 1", "share of it outside of the frame"),
    "bbox_amodal": ("int32:4", "px", "box of all of it, seen or not, beyond the frame too"),
    "area_amodal": ("int32", "px", "pixels of all of it"),
}

_COLOUR = "gain of R, G, B in 256ths, then offset of each in levels"
# What objects have too, where one of these fields of the recipe asks for it.
OBJECT_LOOKS = (
    (("match", "object_jitter"), "colour", ("int32:6", "", _COLOUR)),
    (("match_sharpness",), "blur_px", ("int32", "px", "radius that its colours are blurred by")),
    (("match_noise",), "noise", ("int32", "1/16 level", "deviation of the noise added to it")),
)
_DISTRACTORS = {name: OBJECTS[name] for name in ("bbox", "area", "foreground_id", "flipped")}
# What a record says of how it looks, where one of these fields of the recipe asks for it.
LOOK_COLUMNS = (
    (("siblings",), Column("layout_id", "int64", "", "", "the same for records of one layout")),
    (("blend", "siblings"), Column("blend", "string", "", "", "edge of the objects")),
    (("match",), Column("match", "float32", "", "0 to 1", "share by which colours are matched")),
    (("shadow",), Column("shadow", "float32", "", "0 to 1", "share by which shadows darken")),
    (
        ("jpeg_history",),
        Column("jpeg_history", "int32", "", "", "quality of the JPEG that it was before"),
    ),
    (
        ("background_flip",),
        Column("background_flipped", "bool", "", "", "whether the background is mirrored"),
    ),
    (("jitter",), Column("jitter", "int32:6", "(6,)", "", _COLOUR)),
    (
        ("distractors",),
        Column(
            *("distractors", "lists", "a list a field", ""),
            "objects without a label, as a dict of lists",
            fields=tuple(_DISTRACTORS.items()),
        ),
    ),
)

IMAGE_COLUMNS = tuple(
    column.name for column in (*COLUMNS, *SCENE_COLUMNS) if column.feature.startswith("Image")
)

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

FOREGROUND_COLUMNS = (
    Column("category", "string", "", "", "class: from credits.csv, or the first folder"),
    Column("height_m", "float64", "", "m", "true height, 0 = unknown; from credits.csv"),
    Column("stance", "string", "", "", "ground: it stands; free: it may be anywhere"),
    Column("cut_at", "string", "", "", "edge at which its own photograph cut it off"),
    Column("tool", "string", "", "", "what cut it out; from credits.csv"),
    Column("weights", "string", "", "", "network that cut it out, if any; from credits.csv"),
    Column("weights_license", "string", "", "", "license of that network; from credits.csv"),
)
LADDER_COLUMNS = (
    Column(
        "prepared_sha256",
        "string",
        "",
        "hex",
        "hash of the pixels of all sizes, and of their relief",
    ),
    Column("levels", "Images", "(h, w, 4) uint8", "sRGB", "smaller sizes, then turned ones"),
    Column("halo", "float32", "0 to 255", "", "old background at the edge, which was taken out"),
)
RELIEF_COLUMNS = (
    Column("has_relief", "bool", "", "", "whether its photograph gave it relief; else a board"),
    Column(
        *("relief", "Images", "(h, w) uint16", "1/4096 height"),
        "of each size: how far beyond the foot, plus 32768; empty: a board",
    ),
)
BACKDROP_COLUMNS = (
    Column("prepared_sha256", "string", "", "hex", "hash of depth and ground"),
    Column("depth", "Image", "(size, size) uint16", "mm, 0 = unknown", "depth of the background"),
    Column("depth_by", "string", "", "", "estimated by the depth model, or measured"),
    Column("ground", "Image", "(size, size) 1 bit", "", "where objects stand; null: nowhere"),
    Column("ground_plane", "int64:3", "", "", "a, b, c: a u + b v + c is inverse depth there"),
    Column("ground_edges", "int64:7", "", "", "inverse depths between bands of distance"),
    Column("ground_support", "float32", "", "0 to 1", "share of the picture on that plane"),
    Column("horizon_px", "float32", "", "px", "row of the horizon in the middle column"),
    Column("roll_deg", "float32", "", "degrees", "tilt of the horizon"),
    Column("why_free", "string", "", "", "why it has no ground"),
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


def record_columns(recipe: Recipe, categories: tuple[str, ...] = ()) -> tuple[Column, ...]:
    """Return the columns a set with this recipe has (no depth without a depth model).

    Args:
        categories: names of the classes of its foregrounds.
    """
    columns = tuple(c for c in COLUMNS if c.name != "depth" or recipe.has_depth)
    if recipe.composes_depth:
        what = "depth of the scene, composed of the background's and of where the objects stand"
        columns = tuple(replace(c, meaning=what) if c.name == "depth" else c for c in columns)
    if recipe.is_composed:
        columns = tuple(replace(c, meaning=_COMPOSED.get(c.name, c.meaning)) for c in columns)
    if recipe.layout == "scenes":
        instances, objects = SCENE_COLUMNS
        columns = tuple(replace(c, meaning=_IN_SCENES.get(c.name, c.meaning)) for c in columns)
        at = next(n for n, c in enumerate(columns) if c.name == "mask") + 1
        fields = tuple(object_fields(recipe).items())
        objects = replace(objects, classes=categories, fields=fields)
        columns = (*columns[:at], instances, *columns[at:-1], objects, columns[-1])
    return (*columns[:-1], *look_columns(recipe), columns[-1])


def look_columns(recipe: Recipe) -> tuple[Column, ...]:
    """Return the columns in which a record says how it looks."""
    return tuple(c for names, c in LOOK_COLUMNS if any(map(recipe.uses, names)))


def object_fields(recipe: Recipe) -> dict[str, tuple[str, str, str]]:
    """Return the fields of the column `objects`: feature, unit and meaning of each."""
    looks = {name: field for names, name, field in OBJECT_LOOKS if any(map(recipe.uses, names))}
    return {**OBJECTS, **looks}


def source_columns(
    kind: str, recipe: Recipe, names: Iterable[str] | None = None
) -> tuple[Column, ...]:
    """Return the columns due in a file of prepared sources.

    Args:
        kind: "foreground" or "background".
        recipe: of the set.
        names: of the columns that a file has, which an earlier version may have called otherwise
            or did not have.
    """
    columns: tuple[Column, ...] = SOURCE_COLUMNS
    if kind == "foreground":
        columns += (*FOREGROUND_COLUMNS, *(LADDER_COLUMNS if recipe.has_ladder else ()))
        columns += RELIEF_COLUMNS if recipe.has_relief else ()
    elif recipe.needs_background_depth:
        columns += BACKDROP_COLUMNS
    if names is None:
        return columns
    fields, names = {field.name: field for field in checked_fields(SourceEntry)}, set(names)
    due = []
    for column in columns:
        field = fields.get(column.name)
        name = field.name_in(names) if field else column.name
        if name or (field and "before" not in field.metadata):
            due.append(replace(column, name=name or column.name))
    return tuple(due)


def preview_columns(
    recipe: Recipe, categories: tuple[str, ...] = (), names: Iterable[str] = ()
) -> tuple[Column, ...]:
    """Return the columns due in the config `preview`; `names` are those that a file of it has."""
    colour = (_DEPTH_COLOUR,) if recipe.has_depth else ()
    split = _OLD_SPLIT if _OLD_SPLIT.name in names else _SPLIT
    return (*record_columns(recipe, categories), *colour, split)


def features(columns: tuple[Column, ...]) -> Features:
    """Return the `datasets` features of some columns."""
    from datasets import Features

    return Features({column.name: _feature(column) for column in columns})


def arrow_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """Return the Arrow schema of some columns, with their features for every `datasets`.

    A list is a Sequence there, which is what `datasets` before 4 reads, and later ones too.
    """
    schema = features(columns).arrow_schema
    content = schema.metadata[b"huggingface"].replace(b'"_type": "List"', b'"_type": "Sequence"')
    return schema.with_metadata({**schema.metadata, b"huggingface": content})


def _feature(column: Column) -> Any:
    from datasets import ClassLabel, Image, List, Value

    dtype, _, detail = column.feature.partition(":")
    if dtype == "Image":
        return Image(mode=detail or None)
    if dtype == "Images":
        return List(Image(mode=detail or None))
    if dtype == "category":
        return ClassLabel(names=list(column.classes))
    if dtype == "lists":
        return {
            name: List(_feature(replace(column, feature=feature)))
            for name, (feature, *_) in column.fields
        }
    return List(Value(dtype), length=int(detail)) if detail else Value(dtype)
