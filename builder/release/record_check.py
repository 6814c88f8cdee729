"""Check one stored record against the same record composed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.pictures import open_picture
from builder.pinned import DepthInfo, PinnedRecipe
from builder.recipe import depth_grid
from builder.record import (
    DepthCodec,
    Record,
    Statistics,
    decode_image,
    encode_image,
    encode_mask,
    histogram,
)
from builder.schema import IMAGE_COLUMNS, MASK_ON
from builder.untrusted import Unreadable, refusing, shown

Pixels = npt.NDArray[np.uint8]
Stored = npt.NDArray[np.uint16]

_TILE_PX = 16


class _Wrong(Exception):
    """What is wrong with a record, and the check that says so."""

    def __init__(self, check: str, what: str) -> None:
        super().__init__(what)
        self.check = check


class RecordCheck:
    """Checks the records of a set, and counts their pixels."""

    def __init__(self, pinned: PinnedRecipe) -> None:
        self._recipe = pinned.recipe
        self._size = (pinned.recipe.size, pinned.recipe.size)
        self._depth = _DepthCheck(pinned, pinned.depth) if pinned.depth else None

    def faults(
        self, row: Mapping[str, Any], again: Record | None, statistics: Statistics | None
    ) -> list[tuple[str, str]]:
        """Return (check, what is wrong) of a record.

        Args:
            row: as stored.
            again: the record composed again; None where its sources cannot be read.
            statistics: counts the record, unless it has a fault.
        """
        faults: list[tuple[str, str]] = []
        if again is not None:
            faults += _wrong_combination(row, again)
            if row["pixel_hash"] != again.pixel_hash:
                said = f"pixel_hash is {row['pixel_hash']}, composed again it is {again.pixel_hash}"
                faults.append(("pixel_hash", said))
                again = None  # other pixels by its own word; what they should be is not known
        data = {c: (row[c] or {}).get("bytes") for c in IMAGE_COLUMNS if c in row}
        for column in data:
            if (row[column] or {}).get("path") is not None:
                faults.append((column, f"{column} has a path beside its bytes"))
        checks: dict[str, Callable[[], Any]] = {
            "fg_bg": lambda: self._composite(data["fg_bg"], again, statistics is not None),
            "mask": lambda: self._mask(data["mask"], row, again),
        }
        if self._depth:
            checks["depth"] = lambda: (
                self._depth and self._depth.stored(data["depth"], self._size, again)
            )
        if "instances" in row:
            checks["instances"] = lambda: self._instances(data["instances"], again)
            checks["objects"] = lambda: _check_objects(row["objects"], again)
        decoded: dict[str, Any] = {}
        for column, check in checks.items():
            try:
                decoded[column] = check()
            except Unreadable as reason:
                faults.append((column, f"{column} {reason}"))
            except _Wrong as wrong:
                faults.append((wrong.check, str(wrong)))
        if statistics is not None and not faults:
            sizes = {column: len(content or b"") for column, content in data.items()}
            left_out = again.scene.left_out if again and again.scene else 0
            counts = histogram(decoded["fg_bg"])
            one = (counts, decoded["mask"], decoded.get("depth"), row["bbox"], sizes)
            try:
                # Composed again or not: nobody has compared the objects of one that is not.
                with refusing("holds figures that cannot be counted"):
                    statistics.add(*one, row.get("objects"), left_out)
            except Unreadable as reason:
                faults.append(("objects", str(reason)))
        return faults

    def _composite(self, data: object, again: Record | None, decode: bool) -> Image.Image | None:
        recipe = self._recipe
        encoded = encode_image(again.fg_bg, recipe) if again else None
        if encoded is not None and data == encoded:
            return decode_image(encoded, recipe) if decode else None
        image = open_picture(data, self._size, (recipe.image_format.upper(),), ("RGB",))
        if again is None or encoded is None:
            return image
        pixels = np.asarray(image)
        if recipe.image_format == "png":
            if n := int(np.count_nonzero((pixels != again.fg_bg).any(axis=2))):
                raise _Wrong("fg_bg", f"fg_bg differs in {n} pixels from what is composed again")
        elif tile := _altered_tile(pixels, again.fg_bg, np.asarray(decode_image(encoded, recipe))):
            raise _Wrong(
                "fg_bg",
                "fg_bg is further from what is composed again than its encoding explains, most "
                f"in the {_TILE_PX} px tile at x {tile[0]}, y {tile[1]} ({tile[2]:.1f} levels)",
            )
        return image

    def _mask(self, data: object, row: Mapping[str, Any], again: Record | None) -> Pixels:
        if again is not None and data == encode_mask(again.mask):
            mask = again.mask
        else:
            mask = np.asarray(open_picture(data, self._size, ("PNG",), ("1", "L")).convert("L"))
            if grey := int(np.count_nonzero((mask != 0) & (mask != MASK_ON))):
                raise _Wrong("mask", f"mask holds {grey} pixels that are neither 0 nor {MASK_ON}")
            if again is not None and (n := int(np.count_nonzero(mask != again.mask))):
                raise _Wrong("mask", f"mask differs in {n} pixels from what is composed again")
        # In scenes, box and coverage are those of the first object, which is part of the mask.
        if self._recipe.layout == "scenes":
            if again is None:
                return mask
            box, share, what = list(again.bbox), again.coverage, "that of the first object"
        else:
            box, share = _box(mask), np.count_nonzero(mask) / mask.size
            what = "that of the mask"
        if row["bbox"] != box:
            raise _Wrong("bbox", f"bbox is {row['bbox']}, {what} is {box}")
        coverage = float(np.float32(share))
        if row["coverage"] != coverage:
            raise _Wrong("coverage", f"coverage is {row['coverage']}, {what} is {coverage}")
        return mask

    def _instances(self, data: object, again: Record | None) -> Pixels:
        image = open_picture(data, self._size, ("PNG",), ("L",))
        instances = np.asarray(image)
        if again is not None and again.scene is not None:
            differ = int(np.count_nonzero(instances != again.scene.instances))
            if differ:
                raise _Wrong(
                    "instances",
                    f"instances differ in {differ} pixels from what is composed again",
                )
        return instances


class _DepthCheck:
    """Checks what can be known of a depth map without the model: that it could be stored so."""

    def __init__(self, pinned: PinnedRecipe, info: DepthInfo) -> None:
        self._codec, self._near, self._far = DepthCodec(pinned.recipe, info), info.near, info.far
        png = pinned.recipe.depth_format == "png16"
        self._format, self._mode = ("PNG", "I;16") if png else ("JPEG", "L")
        precision = pinned.recipe.depth_precision if png else 0
        self._storable = np.zeros(65536, dtype=bool)
        self._storable[[0, *depth_grid(precision, info.near, info.far)]] = True

    def stored(self, data: object, size: tuple[int, int], again: Record | None) -> Stored:
        """Return the stored units, (H, W) uint16, of an encoded depth map."""
        image = open_picture(data, size, (self._format,), (self._mode,))
        stored = self._codec.stored(image)
        if again is not None and again.depth is not None:  # composed, so known to the bit
            encoded = self._codec.encode(again.depth)
            due = self._codec.as_decoded(again.depth, encoded)
            if differ := int(np.count_nonzero(stored != due)):
                raise _Wrong(
                    "depth", f"depth differs in {differ} pixels from what is composed again"
                )
        wrong = stored[~self._storable[stored]]
        if wrong.size:
            outside = wrong[(wrong < self._near) | (wrong > self._far)]
            value, why = (
                (outside[0], f"is outside of {self._near} to {self._far}")
                if outside.size
                else (wrong[0], "is not on the grid of the recipe's depth_precision")
            )
            raise _Wrong("depth", f"depth of {wrong.size} pixels cannot be: {value} {why}")
        return stored


def _check_objects(stored: Mapping[str, Any] | None, again: Record | None) -> None:
    """Compare the column `objects` with that of a record composed again."""
    if again is None or again.scene is None or again.scene.objects is None:
        return
    for name, values in again.scene.objects.items():
        held = (stored or {}).get(name)
        if held != values:
            raise _Wrong(
                "objects", f"{name} of its objects is {shown(held)}, composed again {values}"
            )


def _wrong_combination(row: Mapping[str, Any], again: Record) -> Iterator[tuple[str, str]]:
    for name in ("background_id", "foreground_id", "flipped"):
        if row[name] != (due := getattr(again, name)):
            yield "combination", f"{name} is {row[name]!r}, by the record's id it is {due!r}"
    for name, due in (again.scene.look if again.scene else {}).items():
        if row[name] != due:
            yield name, f"{name} is {shown(row[name])}, by the record's id it is {due!r}"


def _box(mask: Pixels) -> list[int]:
    """Return x, y, width, height of a mask's pixels that are not 0; of an empty mask zeros."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return [0, 0, 0, 0]
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _altered_tile(stored: Pixels, truth: Pixels, again: Pixels) -> tuple[int, int, float] | None:
    """Return x, y and RMS error of the worst tile of a lossy image, if no encoder explains it.

    An encoder of another version rounds otherwise, but it loses about as much: at most twice what
    ours loses in the same tile (`again`), and 2 levels.
    """
    error = _tile_rms(stored, truth)
    excess = error - (2 * _tile_rms(again, truth) + 2)
    y, x = np.unravel_index(int(np.argmax(excess)), excess.shape)
    if excess[y, x] <= 0:
        return None
    return int(x) * _TILE_PX, int(y) * _TILE_PX, float(error[y, x])


def _tile_rms(one: Pixels, other: Pixels) -> npt.NDArray[np.float64]:
    """Return the root of the mean squared difference in each tile, over all channels."""
    squares = ((one.astype(np.int32) - other) ** 2).sum(axis=2)
    height, width = squares.shape
    rows, columns = np.arange(0, height, _TILE_PX), np.arange(0, width, _TILE_PX)
    sums = np.add.reduceat(np.add.reduceat(squares, rows, axis=0), columns, axis=1)
    heights = np.minimum(_TILE_PX, height - rows)
    widths = np.minimum(_TILE_PX, width - columns)
    return np.asarray(np.sqrt(sums / (3 * np.outer(heights, widths))))
