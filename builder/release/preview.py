"""Pictures of a finished build: a sample sheet (PNG), a page to look through (HTML), a table.

Reads only the built folder, and of that only the first records of each split and the few
sources shown. The table is the config `preview`, for the Hub's viewer.
Equal builds give equal bytes. Depth is coloured on one scale for everything shown, near bright
and far dark; unknown depth is hatched grey.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from builder.build import ROW_GROUP_RECORDS
from builder.errors import NotABuildError
from builder.files import open_regular, sweep, write_bytes, write_text
from builder.layout import (
    FIFTYONE_FILE,
    PAGE_FILE,
    SHEET_FILE,
    SOURCES_FILE,
    TABLE_FILE,
    built_format,
    read_recipe,
    shard_file,
    state_files,
)
from builder.pictures import open_picture
from builder.pinned import DepthInfo, PinnedRecipe
from builder.recipe import DEMO_DEPTH_MODEL, MEASURED_DEPTH, Recipe
from builder.record import (
    DepthCodec,
    Plan,
    SplitPlan,
    decode_image,
    decode_instances,
    decode_mask,
    encode_mask,
)
from builder.release.ground_sheet import with_ground
from builder.schema import MASK_ON, preview_columns, record_columns
from builder.sources import Kind, prepared_source, stored_columns
from builder.tables import Table, write_rows
from builder.untrusted import Unreadable, one_line, printable, refusing

FIFTYONE_HINT = "format: ParquetFilesDataset\nfilepath: fg_bg\nmask_fields: mask\n"

SHEET_ROWS, PAGE_RECORDS, TABLE_RECORDS = 6, 32, 256
_TABLE_PX = TABLE_RECORDS * 256 * 256  # of larger records there are fewer, so that it opens fast
_TABLE_QUALITY = 90
_MIN_SHEET_ROWS = 4  # one a split
_MAX_SHEET_BYTES = 1_800_000
_MAX_SIDE = 256  # px; larger records are shown reduced, smaller ones enlarged up to this
_MAX_EMBEDDED_BYTES = 40_000  # larger composites are encoded again for the page
_PAGE_QUALITY = 85
_EMBEDDED = re.compile(rb"(?<=;base64,)[A-Za-z0-9+/]*=*")
_TILE_PX, _TILE_LEVELS = 32, 16  # how far tiles of one picture, drawn twice, differ at most

Pixels = npt.NDArray[np.uint8]
Metres = npt.NDArray[np.float32]
Position = tuple[int, int]
_Kind = tuple[str, int]  # "bg", "fg" or "flip" and which

# From far to near: dark and cool to bright and warm, lightness rising all the way, so that the
# order of depths is seen in grey and with colour-blind eyes too.
_ANCHORS = (
    (10, 14, 46), (32, 30, 104), (84, 38, 138), (146, 46, 136),
    (204, 70, 108), (238, 116, 74), (249, 176, 74), (253, 242, 170),
)  # fmt: skip
FARTHEST, NEAREST = 1, 254  # colour codes; 0 and 255 are the two greys of unknown depth
_UNKNOWN_GREYS = (150, 200)
_HATCH_PX = 4


def _lut() -> Pixels:
    at = np.linspace(0, len(_ANCHORS) - 1, NEAREST - FARTHEST + 1)
    known = [
        np.interp(at, range(len(_ANCHORS)), channel) for channel in zip(*_ANCHORS, strict=True)
    ]
    dark, light = ([[grey] * 3] for grey in _UNKNOWN_GREYS)
    return np.concatenate([dark, np.stack(known, axis=1).round(), light]).astype(np.uint8)


LUT = _lut()  # (256, 3) uint8 sRGB


@dataclass(frozen=True)
class DepthScale:
    """What the colours mean: values from `far` to `near`, in metres if the model is metric.

    Logarithmic for depth; even for inverse depth, where near is the larger value.
    """

    near: float
    far: float
    logarithmic: bool
    unit: str

    @classmethod
    def around(cls, depths: Iterable[Metres], info: DepthInfo) -> DepthScale:
        """Return the scale from the 1st to the 99th percentile of all known values."""
        known = [depth[~np.isnan(depth)] for depth in depths]
        values = np.concatenate(known) if known else np.empty(0, np.float32)
        low, high = np.percentile(values, (1, 99)).tolist() if values.size else (1.0, 1.0)
        if high < low * 1.05:  # a flat scene: give it some room instead of dividing by zero
            low, high = low / 1.05, high * 1.05
        unit = "m" if info.kind == "metric" else ""
        if info.quantity == "depth":
            return cls(low, high, True, unit)
        return cls(high, low, False, unit)

    def codes(self, depth: Metres) -> Pixels:
        """Return colour codes, (H, W) uint8, of values, (H, W) float32 with NaN = unknown."""
        unknown = np.isnan(depth)
        values = np.where(unknown, self.far, depth)
        if self.logarithmic:
            share = np.log(values / self.far) / math.log(self.near / self.far)
        else:
            share = (values - self.far) / (self.near - self.far)
        codes = (FARTHEST + share.clip(0, 1) * (NEAREST - FARTHEST)).round().astype(np.uint8)
        rows, columns = np.indices(depth.shape)
        stripes = (rows + columns) // _HATCH_PX % 2 * 255
        return cast("Pixels", np.where(unknown, stripes, codes).astype(np.uint8))

    def share(self, value: float) -> float:
        """Return where a value lies on the scale: 0 at `near`, 1 at `far`."""
        if self.logarithmic:
            return math.log(value / self.near) / math.log(self.far / self.near)
        return (value - self.near) / (self.far - self.near)

    def text(self, value: float) -> str:
        """Return a value to three digits, with its unit."""
        return f"{float(f'{value:.3g}'):g} {self.unit}".strip()

    def ticks(self) -> list[float]:
        """Return round values (1, 2, 5 times a power of ten, or even steps) inside the scale."""
        low, high = sorted((self.near, self.far))
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        if self.logarithmic:
            round_values = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        else:
            step = 10.0 ** math.floor(math.log10(high - low))
            round_values = [step * n for n in range(math.ceil(low / step), int(high / step) + 1)]
        return [value for value in round_values if low < value < high]


@dataclass(frozen=True)
class Sample:
    """A record to show: its row, and its depth, (h, w) float32, reduced to at most 256 px."""

    split: str
    row: dict[str, Any]
    depth: Metres | None


def write_preview(out: Path, into: Path | None = None) -> tuple[Path, Path, Path]:
    """Write the sample sheet, the preview page and the table of a finished build.

    And `fiftyone.yml`, by which FiftyOne's `load_from_hub` opens the published set.

    Args:
        out: the built folder.
        into: the folder to write them to; None: the built folder, whose statistics then state them.

    Returns:
        The paths of `assets/samples.png`, `assets/preview.html` and the config `preview`.

    Raises:
        NotABuildError: the folder is not a finished build, or a file of it is missing or damaged.
    """
    pinned = read_recipe(out)
    try:
        (picture, text), rows = draw_preview(out, pinned), _table_rows(out, pinned)
    except ValueError as error:  # a picture that can be opened, and is not what a build writes
        raise NotABuildError(
            f"{out} has a record that cannot be drawn ({one_line(error)}); see `fgbg verify`."
        ) from None
    names = (SHEET_FILE, PAGE_FILE, TABLE_FILE, FIFTYONE_FILE)
    sheet, page, table, hint = paths = [(into or out) / name for name in names]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        sweep(path)
    write_bytes(sheet, picture)
    write_text(page, text)
    columns = preview_columns(pinned.recipe, pinned.categories)
    write_rows(table, columns, rows)
    write_text(hint, FIFTYONE_HINT)
    if into is None:
        state_files(out, names)
    return sheet, page, table


def draw_preview(out: Path, pinned: PinnedRecipe) -> tuple[bytes, str]:
    """Return the sample sheet as PNG, and the preview page; see `write_preview`."""
    samples = read_samples(out, pinned)
    scale = None
    if pinned.depth:
        depths = [s.depth for chosen in samples.values() for s in chosen if s.depth is not None]
        scale = DepthScale.around(depths, pinned.depth)
    return _sheet_png(out, pinned, samples, scale), _page_html(pinned, samples, scale)


def _table_rows(out: Path, pinned: PinnedRecipe) -> list[dict[str, Any]]:
    """Return the first records of each split, which are a random sample, with coloured depth."""
    plan, recipe = Plan(pinned), pinned.recipe
    names = [column.name for column in record_columns(recipe)]
    split_column = preview_columns(recipe)[-1].name
    rows = [
        {**row, split_column: name}
        for name, count in table_counts(plan).items()
        for row in _first_rows(out, plan.splits[name], count, names)
    ]
    if pinned.depth:
        colours = coloured(pinned, [row["depth"]["bytes"] for row in rows])
        for row, picture in zip(rows, colours, strict=True):
            encoded = simplejpeg.encode_jpeg(
                picture, quality=_TABLE_QUALITY, colorspace="RGB", colorsubsampling="444"
            )
            row["depth_colour"] = {"bytes": encoded, "path": None}
    return rows


def table_counts(plan: Plan) -> dict[str, int]:
    """Return how many of the first records of each split the table holds."""
    total = min(TABLE_RECORDS, max(len(plan.splits), _TABLE_PX // plan.pinned.recipe.size**2))
    return shares(plan, total, {name: split.n_records for name, split in plan.splits.items()})


def coloured(pinned: PinnedRecipe, depths: Sequence[bytes]) -> list[Pixels]:
    """Return the table's depths as pictures, (h, w, 3) uint8, on one scale for all of them."""
    assert pinned.depth is not None
    codec = DepthCodec(pinned.recipe, pinned.depth)
    metres = [_thin(codec.metres(codec.pixels(d)), reduction(pinned.recipe.size)) for d in depths]
    scale = DepthScale.around((depth[::2, ::2] for depth in metres), pinned.depth)
    return [LUT[scale.codes(depth)] for depth in metres]


def _first_rows(
    out: Path, split: SplitPlan, count: int, columns: list[str]
) -> Iterator[dict[str, Any]]:
    for shard in range(split.n_shards):
        start, stop = split.shard_range(shard)
        if start >= count:
            return
        path = out / shard_file(split, shard, built_format(out))
        yield from read_rows(path, range(min(stop, count) - start), columns)


# Choosing and reading


def read_samples(out: Path, pinned: PinnedRecipe) -> dict[str, list[Sample]]:
    """Return the records to show by split; the first few of each are those of the sheet."""
    plan, recipe = Plan(pinned), pinned.recipe
    codec = DepthCodec(recipe, pinned.depth) if pinned.depth else None
    columns = [column.name for column in record_columns(recipe) if column.name != "pixel_hash"]
    samples: dict[str, list[Sample]] = {}
    for name, positions in choose(plan).items():
        path = out / shard_file(plan.splits[name], 0, built_format(out))
        samples[name] = []
        due = plan.splits[name].record_ids(0, max(positions) + 1)[positions].tolist()
        for record_id, row in zip(due, read_rows(path, positions, columns), strict=True):
            if row["record_id"] != record_id:
                raise NotABuildError(f"{path} holds other records than its recipe says.")
            depth = None
            if codec:
                metres = codec.metres(codec.pixels(row["depth"]["bytes"]))
                depth = _thin(metres, reduction(recipe.size))
            samples[name].append(Sample(name, row, depth))
    return samples


def choose(plan: Plan) -> dict[str, list[int]]:
    """Choose positions in the first row group of each split, least-seen sources and flips first.

    Those of the sheet come first, so that the sheet by itself is varied too.
    """
    seen: Counter[_Kind] = Counter()
    chosen: dict[str, list[int]] = {name: [] for name in plan.splits}
    for total in (SHEET_ROWS, PAGE_RECORDS):
        for name, count in shares(plan, total).items():
            ids = plan.splits[name].record_ids(0, _candidates(plan.splits[name])).tolist()
            kinds: dict[int, tuple[_Kind, _Kind, _Kind]] = {}
            for position, record_id in enumerate(ids):
                what = plan.combination(record_id)
                flip = ("flip", int(what.flipped))
                kinds[position] = (("bg", what.background), ("fg", what.foreground), flip)
            while len(chosen[name]) < count:
                left = (position for position in kinds if position not in chosen[name])
                _, _, best = min(_times_seen(seen, kinds[p], p) for p in left)
                seen.update(kinds[best])
                chosen[name].append(best)
    return chosen


def _times_seen(
    seen: Counter[_Kind], kinds: tuple[_Kind, _Kind, _Kind], position: int
) -> tuple[int, int, int]:
    background, foreground, flip = kinds
    return seen[background] + seen[foreground], seen[flip], position


def shares(plan: Plan, total: int, most: dict[str, int] | None = None) -> dict[str, int]:
    """Share out `total` records: train, the first split, gets about twice as many as the others.

    `most` is how many each split has to give; by default those of its first row group.
    """
    most = most or {name: _candidates(split) for name, split in plan.splits.items()}
    each = max(1, total // (len(plan.splits) + 1))
    counts = {name: min(each, most[name]) for name in plan.splits}
    first = next(iter(plan.splits))
    rest = total - sum(counts.values()) + counts[first]
    return {**counts, first: min(rest, most[first])}


def _candidates(split: SplitPlan) -> int:
    return min(split.shard_range(0)[1], ROW_GROUP_RECORDS)


def read_rows(path: Path, positions: Sequence[int], columns: list[str]) -> list[dict[str, Any]]:
    """Return the rows at some positions of a Parquet or Arrow file, in the order asked for.

    Row groups without any of them are not read.

    Raises:
        NotABuildError: the file is missing, damaged or too short.
    """
    try:
        with refusing("cannot be read"), open_regular(path):
            table = Table(path, "arrow" if path.suffix == ".arrow" else "parquet")
            if max(positions, default=-1) >= table.n_rows:
                raise Unreadable("has fewer rows than its recipe says")
            found = dict(table.rows(columns, np.unique(np.asarray(positions, dtype=np.int64))))
            for row in found.values():
                _check_pictures(row)
    except Unreadable as reason:
        raise NotABuildError(f"{path} {reason}; see `fgbg verify`.") from None
    return [found[position] for position in positions]


def _check_pictures(row: Mapping[str, Any]) -> None:
    """Refuse what a build has not written, before anything relies on it."""
    if missing := [name for name, value in row.items() if value is None and name != "ground"]:
        raise Unreadable(f"has a row without {missing[0]}")
    for name, value in row.items():
        if name == "ground" and (value is None or value["bytes"] is None):
            continue  # of a background without one
        if isinstance(value, dict) and "bytes" in value:  # not the objects of a scene
            with refusing(f"has a {name} that cannot be read"):
                open_picture(value["bytes"], None)


# Pictures, all brought to the size they are shown at


def reduction(size: int) -> int:
    """Return the whole factor by which records of this size are shown smaller."""
    return -(-size // _MAX_SIDE)


def enlargement(size: int) -> int:
    """Return the whole factor by which the sheet shows records of this size larger."""
    return max(1, _MAX_SIDE // size)


def _thin(values: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Keep every factor-th row and column: no value is made up by averaging over an edge."""
    at = [
        np.minimum(np.arange(0, length, factor) + factor // 2, length - 1)
        for length in values.shape[:2]
    ]
    return values[np.ix_(*at)] if factor > 1 else values


def _composite(row: dict[str, Any], recipe: Recipe) -> Image.Image:
    return decode_image(row["fg_bg"]["bytes"], recipe).convert("RGB").reduce(reduction(recipe.size))


def _mask(row: dict[str, Any], recipe: Recipe) -> Pixels:
    """Return a mask, (h, w) uint8 in {0, 255}."""
    mask = decode_mask(row["mask"]["bytes"], recipe.size).view(np.uint8) * np.uint8(MASK_ON)
    return _thin(mask, reduction(recipe.size))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# The sheet


@dataclass(frozen=True)
class SheetLayout:
    """Where things stand on the sheet; everything in px, corners are upper left."""

    size: int
    columns: tuple[str, ...]
    rows: int

    margin = 24
    gap = 14
    header = 112
    caption = 34
    footer = 76
    bar_height = 14

    @property
    def side(self) -> int:
        """Side of a picture."""
        return -(-self.size // reduction(self.size)) * enlargement(self.size)

    @property
    def width(self) -> int:
        """Width of the sheet."""
        return 2 * self.margin + len(self.columns) * (self._pitch + self.gap) - self.gap

    @property
    def height(self) -> int:
        """Height of the sheet."""
        footer = self.footer if "depth" in self.columns else self.gap
        return self.header + self.rows * (self.side + self.caption) + footer

    @property
    def _pitch(self) -> int:
        return max(self.side, 144)  # or the texts would not fit

    def cell(self, row: int, column: str) -> Position:
        """Return the corner of a picture."""
        left = self.margin + self.columns.index(column) * (self._pitch + self.gap)
        return left, self.header + row * (self.side + self.caption)

    @property
    def bar(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the colour bar; near is left."""
        top = self.header + self.rows * (self.side + self.caption) + 24
        return self.margin, top, min(508, self.width - 2 * self.margin - 120), self.bar_height


def _sheet_png(
    out: Path, pinned: PinnedRecipe, samples: dict[str, list[Sample]], scale: DepthScale | None
) -> bytes:
    """Return the sheet as PNG, with fewer rows where six are too many bytes."""
    plan = Plan(pinned)
    for total in range(SHEET_ROWS, _MIN_SHEET_ROWS - 1, -1):
        shown = [
            sample
            for name, count in shares(plan, total).items()
            for sample in samples[name][:count]
        ]
        png = _png(draw_sheet(out, pinned, shown, scale))
        if len(png) <= _MAX_SHEET_BYTES:
            break
    return png


def draw_sheet(
    out: Path, pinned: PinnedRecipe, shown: Sequence[Sample], scale: DepthScale | None
) -> Image.Image:
    """Draw the sheet, a row a record: its sources, composite, mask or instances, and depth."""
    scenes = pinned.recipe.layout == "scenes"
    first = ("ground", "fg_bg", "instances") if scenes else (*_KINDS, "fg_bg", "mask")
    columns = (*first, *(("depth",) if scale else ()))
    layout = SheetLayout(pinned.recipe.size, columns, len(shown))
    sheet = Image.new("RGB", (layout.width, layout.height), "white")
    draw = ImageDraw.Draw(sheet)
    _draw_header(draw, layout, pinned)
    sources = (_grounds if scenes else _pair_sources)(out, pinned, shown, layout.side)
    for number, (sample, pictures) in enumerate(zip(shown, sources, strict=True)):
        pictures["fg_bg"] = _composite(sample.row, pinned.recipe)
        if scenes:
            pictures["instances"] = drawn_objects(sample.row, pinned.recipe)
        else:
            pictures["mask"] = Image.fromarray(_mask(sample.row, pinned.recipe))
        if scale and sample.depth is not None:
            factor = enlargement(pinned.recipe.size)  # first, or the hatching would be enlarged too
            depth = sample.depth.repeat(factor, axis=0).repeat(factor, axis=1)
            pictures["depth"] = Image.fromarray(LUT[scale.codes(depth)])
        for column, picture in pictures.items():
            enlarged = picture.resize((layout.side, layout.side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, layout.cell(number, column))
        left, top = layout.cell(number, columns[0])
        text = _caption(sample, layout.width - 2 * layout.margin)
        draw.text((left, top + layout.side + 6), text, _GREY, _font(13))
    if scale:
        _draw_bar(sheet, draw, layout, scale)
    return sheet


_OWN_DEPTHS = {DEMO_DEPTH_MODEL: "demo depth model", MEASURED_DEPTH: "measured depth"}
_KINDS: tuple[Kind, ...] = ("foreground", "background")
# Of objects by their number, told apart by people who see colours in any way (Okabe & Ito 2008).
_COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
_INK, _GREY = "#16181d", "#555b66"


def _sources(
    out: Path, pinned: PinnedRecipe, kind: Kind, shown: Sequence[Sample]
) -> list[dict[str, Any]]:
    """Return the row of the prepared foreground or background of each record shown."""
    plan = Plan(pinned)
    indexes = [getattr(plan.combination(s.row["record_id"]), kind) for s in shown]
    path = out / f"{kind}s" / SOURCES_FILE
    names = [c.name for c in stored_columns(path, kind, pinned.recipe)]
    with_ground = kind == "background" and "ground" in names
    return read_rows(path, indexes, names if with_ground else ["image"])


def _pair_sources(
    out: Path, pinned: PinnedRecipe, shown: Sequence[Sample], side: int
) -> list[dict[str, Image.Image]]:
    """Return pictures of the foreground and the background of each record shown."""
    foregrounds, backgrounds = (
        [open_picture(row["image"]["bytes"], None, ("PNG",)) for row in rows]
        for rows in (_sources(out, pinned, kind, shown) for kind in _KINDS)
    )
    factor = reduction(pinned.recipe.size)
    return [
        {
            "foreground": _on_checkerboard(foreground, side, pinned.recipe),
            "background": _as_shown(background.convert("RGB"), sample).reduce(factor),
        }
        for foreground, background, sample in zip(foregrounds, backgrounds, shown, strict=True)
    ]


def _as_shown(background: Image.Image, sample: Sample) -> Image.Image:
    """Return a background as a record has it: mirrored, or not."""
    return ImageOps.mirror(background) if sample.row.get("background_flipped") else background


def _grounds(
    out: Path, pinned: PinnedRecipe, shown: Sequence[Sample], _side: int
) -> list[dict[str, Image.Image]]:
    """Return a picture of the background of each record shown, with its ground and horizon."""
    plan, drawn = Plan(pinned), []
    rows = _sources(out, pinned, "background", shown)
    for sample, row in zip(shown, rows, strict=True):
        entry = pinned.backgrounds[plan.combination(sample.row["record_id"]).background]
        source = prepared_source(row, entry)
        picture = with_ground(source.pixels(), source.backdrop) if source.backdrop else None
        picture = _as_shown(picture or Image.fromarray(source.pixels()), sample)
        drawn.append({"ground": picture.reduce(reduction(pinned.recipe.size))})
    return drawn


def drawn_objects(row: Mapping[str, Any], recipe: Recipe) -> Image.Image:
    """Draw a scene's objects, each in a colour, with their boxes and a dot where they stand."""
    factor, objects = reduction(recipe.size), row["objects"]
    composite = np.asarray(_composite(dict(row), recipe)).astype(np.float32) * 0.35
    instances = _thin(decode_instances(row["instances"]["bytes"], recipe.size), factor)
    for number in objects["id"]:
        tint = np.array(_COLOURS[(number - 1) % len(_COLOURS)], np.float32)
        composite[instances == number] += 0.65 * tint
    picture = Image.fromarray(composite.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for number, (x, y, width, height) in zip(objects["id"], objects["bbox"], strict=True):
        colour = _COLOURS[(number - 1) % len(_COLOURS)]
        box = [v // factor for v in (x, y, x + width - 1, y + height - 1)]
        draw.rectangle(box, outline=colour)
        if objects["stance"][number - 1] == "ground":
            foot = objects["foot_x"][number - 1] // factor, objects["foot_y"][number - 1] // factor
            draw.ellipse((foot[0] - 3, foot[1] - 3, foot[0] + 3, foot[1] + 3), colour, "black")
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Return text, cut with an ellipsis where it is wider than `width` px."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _caption(sample: Sample, width: float) -> str:
    row, font = sample.row, _font(13)
    tail = f"{sample.split}, {'flipped, ' if row['flipped'] else ''}record {row['record_id']}"
    half = (width - font.getlength(f" on , {tail}")) / 2  # so a long name cannot push that out
    foreground, background = (_fit(row[f"{kind}_id"], font, half) for kind in _KINDS)
    return f"{foreground} on {background}, {tail}"


def _draw_header(draw: ImageDraw.ImageDraw, layout: SheetLayout, pinned: PinnedRecipe) -> None:
    facts, width = describe(pinned), layout.width - 2 * layout.margin
    for top, size, ink, text in (
        (20, 20, _INK, f"{facts['records']}, {facts['size']}, {facts['model']}"),
        (50, 13, _GREY, f"{facts['sources']}; {facts['splits']}"),
    ):
        draw.text((layout.margin, top), _fit(text, _font(size), width), ink, _font(size))
    for column in layout.columns:
        left, top = layout.cell(0, column)
        draw.text((left, top - 22), column, _INK, _font(14))


def describe(pinned: PinnedRecipe) -> dict[str, str]:
    """Return what a set is, in words: records, size, model, sources, splits."""
    recipe, info = pinned.recipe, pinned.public().depth
    model = "no depth"
    if info:
        name = info.model.removeprefix("./")
        model = _OWN_DEPTHS.get(info.model, f"depth by {name}")
    shown = f" (shown at 1/{factor})" if (factor := reduction(recipe.size)) > 1 else ""
    splits = [f"{split.name} {split.n_records:,}" for split in Plan(pinned).splits.values()]
    counts = [
        f"{len(entries):,} {kind}{'s' if len(entries) > 1 else ''}"
        for kind, entries in zip(_KINDS, (pinned.foregrounds, pinned.backgrounds), strict=True)
    ]
    return {
        "records": f"{pinned.n_records:,} record{'s' if pinned.n_records > 1 else ''}",
        "size": f"{recipe.size} x {recipe.size} px{shown}",
        "model": model,
        "sources": ", ".join(counts),
        "splits": ", ".join(splits),
    }


def _on_checkerboard(foreground: Image.Image, side: int, recipe: Recipe) -> Image.Image:
    """Return a foreground in the middle of a picture's cell, over white and grey squares."""
    rows, columns = np.indices((side, side)) // 8
    squares = np.where((rows + columns) % 2, 222, 255).astype(np.uint8)
    board = Image.fromarray(squares).convert("RGBA")
    foreground = foreground.convert("RGBA").reduce(reduction(recipe.size))
    factor = enlargement(recipe.size)
    foreground = foreground.resize(
        (foreground.width * factor, foreground.height * factor), Image.Resampling.NEAREST
    )
    middle = ((side - foreground.width) // 2, (side - foreground.height) // 2)
    board.alpha_composite(foreground, middle)
    return board.convert("RGB")


def _draw_bar(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, layout: SheetLayout, scale: DepthScale
) -> None:
    left, top, width, height = layout.bar
    font = _font(13)
    sheet.paste(_bar(width, height), (left, top))
    title = "depth in m" if scale.unit else "relative inverse depth, without unit"
    kind = ", logarithmic" if scale.logarithmic else ""
    title += f"{kind}; 1st to 99th percentile of the records shown, beyond it clipped"
    fitted = _fit(title, font, layout.width - 2 * layout.margin)
    draw.text((left, top - 20), fitted, _GREY, font)
    taken: list[tuple[float, float]] = []
    for value in (scale.near, scale.far, *scale.ticks()):
        at, text = scale.share(value) * (width - 1), scale.text(value)
        start = at - font.getlength(text) / 2 if at >= 1 else 0  # the first is flush left
        stop = start + font.getlength(text)
        if all(stop + 10 < other or start - 10 > end for other, end in taken):
            taken.append((start, stop))
            draw.line((left + at, top + height, left + at, top + height + 4), _GREY)
            draw.text((left + start, top + height + 8), text, _INK, font, "lt")
    swatch = np.full((height, 2 * height), np.nan, dtype=np.float32)
    sheet.paste(Image.fromarray(LUT[scale.codes(swatch)]), (left + width + 20, top))
    draw.text((left + width + 56, top), "unknown", _INK, font)


def _bar(width: int, height: int) -> Image.Image:
    codes = np.linspace(NEAREST, FARTHEST, width).round().astype(np.uint8)
    return Image.fromarray(LUT[np.tile(codes, (height, 1))])


# The page


def _page_html(
    pinned: PinnedRecipe, samples: dict[str, list[Sample]], scale: DepthScale | None
) -> str:
    """Return the page: one file without any outside resource."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("preview.html").read_text(encoding="utf-8")
    cards = [_card(s, pinned.recipe, scale) for chosen in samples.values() for s in chosen]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    page: str = environment.from_string(template).render(
        hashes={tag: _content_hash(template, tag) for tag in ("style", "script")},
        facts=describe(pinned),
        fingerprint=pinned.fingerprint,
        demo=pinned.recipe.depth_model == DEMO_DEPTH_MODEL,
        size=pinned.recipe.size,
        side=-(-pinned.recipe.size // reduction(pinned.recipe.size)),
        splits={name: len(chosen) for name, chosen in samples.items()},
        cards=cards,
        scale=_page_scale(scale) if scale else None,
    )
    return page


def same_page(one: bytes, other: bytes) -> bool:
    """Whether two pages are the same but for how their pictures are encoded."""
    if _EMBEDDED.sub(b"", one) != _EMBEDDED.sub(b"", other):
        return False
    pairs = zip(_EMBEDDED.findall(one), _EMBEDDED.findall(other), strict=True)
    return all(a == b or same_picture(*map(base64.b64decode, (a, b))) for a, b in pairs)


def same_picture(one: bytes, other: bytes) -> bool:
    """Whether two encoded pictures are the same but for their encoding and how letters look."""
    if one == other:
        return True
    try:
        mine, theirs = (open_picture(data, None).convert("RGB") for data in (one, other))
    except Unreadable:
        return False
    if mine.size != theirs.size:
        return False
    differences = ImageChops.difference(mine, theirs).reduce(_TILE_PX).getextrema()
    return int(np.max(differences)) <= _TILE_LEVELS


def _content_hash(template: str, tag: str) -> str:
    """Return what the Content-Security-Policy calls the only style or script it lets run."""
    content = re.search(f"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
    digest = hashlib.sha256(content[1].encode() if content else b"").digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _page_scale(scale: DepthScale) -> dict[str, Any]:
    unknown = np.full((12, 24), np.nan, dtype=np.float32)
    ratio = abs(math.log(scale.near / scale.far)) / (NEAREST - FARTHEST)
    step = f"{100 * ratio:.2g} %" if scale.logarithmic else scale.text(
        abs(scale.near - scale.far) / (NEAREST - FARTHEST)
    )  # fmt: skip
    return {
        "near": scale.text(scale.near),
        "far": scale.text(scale.far),
        "step": step,
        "metric": bool(scale.unit),
        "bar": _data_uri("png", _png(_bar(NEAREST - FARTHEST + 1, 1))),
        "unknown": _data_uri("png", _png(Image.fromarray(LUT[scale.codes(unknown)]))),
        # For the script, which reads depths back from the colours.
        "values": {
            "near": scale.near,
            "far": scale.far,
            "logarithmic": scale.logarithmic,
            "unit": scale.unit,
            "colours": LUT[FARTHEST : NEAREST + 1].tobytes().hex(),
        },
    }


def _card(sample: Sample, recipe: Recipe, scale: DepthScale | None) -> dict[str, Any]:
    row = sample.row
    return {
        "split": sample.split,
        "record_id": row["record_id"],
        "foreground_id": row["foreground_id"],
        "background_id": row["background_id"],
        "flipped": row["flipped"],
        "bbox": row["bbox"],
        "coverage": f"{100 * row['coverage']:.1f} %",
        "objects": _object_texts(row, scale),
        "fg_bg": _embedded_composite(row, recipe),
        "mask": _embedded_mask(row, recipe),
        "depth": _card_depth(sample, recipe, scale) if scale else None,
    }


def _object_texts(row: Mapping[str, Any], scale: DepthScale | None) -> list[str]:
    """Return what the objects of a scene are, and how far; nothing of a pair."""
    objects = row.get("objects")
    if objects is None:
        return []
    texts = []
    for name, depth, stance in zip(
        objects["foreground_id"], objects["depth_mm"], objects["stance"], strict=True
    ):
        far = f", {scale.text(depth / 1000)}" if scale and scale.unit and depth else ""
        texts.append(f"{name}{far}" + (", free" if stance == "free" else ""))
    return texts


def _embedded_composite(row: dict[str, Any], recipe: Recipe) -> str:
    content = row["fg_bg"]["bytes"]
    if reduction(recipe.size) == 1 and len(content) <= _MAX_EMBEDDED_BYTES:
        return _data_uri(recipe.image_format, content)
    buffer = io.BytesIO()
    _composite(row, recipe).save(buffer, "JPEG", quality=_PAGE_QUALITY)
    return _data_uri("jpeg", buffer.getvalue())


def _embedded_mask(row: dict[str, Any], recipe: Recipe) -> str:
    if reduction(recipe.size) == 1:
        return _data_uri("png", row["mask"]["bytes"])
    return _data_uri("png", encode_mask(_mask(row, recipe)))


def _card_depth(sample: Sample, recipe: Recipe, scale: DepthScale) -> dict[str, str]:
    """Return the coloured depth, and its range and median inside the mask in words."""
    depth = cast("Metres", sample.depth)
    image = Image.fromarray(scale.codes(depth))
    image.putpalette(LUT.tobytes())  # makes it mode P: what is shown is what the script reads
    known = depth[~np.isnan(depth)]
    inside = depth[(_mask(sample.row, recipe) > 0) & ~np.isnan(depth)]
    low, high = (
        (scale.text(float(v)) for v in (known.min(), known.max())) if known.size else ("", "")
    )
    return {
        "image": _data_uri("png", _png(image)),
        "range": f"{low} to {high}" if known.size else "unknown",
        "foreground": scale.text(float(np.median(inside))) if inside.size else "unknown",
    }
