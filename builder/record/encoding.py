"""Pixels to bytes and back: JPEG, WebP and PNG for composites, 1-bit PNG, 16-bit PNG, log JPEG.

The two PNG kinds are assembled here: packed bits or big-endian words behind one filter byte a
row, deflated once. That is several times faster than through a general image library and reads
in all of them.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from decimal import Decimal
from functools import lru_cache
from typing import Any

import deflate
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from builder.pictures import JPEG_START, MAX_SIDE, check_scans, open_picture
from builder.pinned import DepthInfo
from builder.recipe import Recipe, depth_grid
from builder.schema import MASK_ON
from builder.untrusted import Unreadable, refusing

Pixels = npt.NDArray[np.uint8]
Stored = npt.NDArray[np.uint16]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _INDEXED = 0, 2, 3  # what PNG calls them
_DEPTH_MODES = ("I;16", "I", "L")  # of Pillow
_DEFLATE_LEVEL = 1  # of 1..12; 4 makes depth a sixth smaller for nearly twice the time
_LOG_JPEG_QUALITY = 90

# Codes of jpeg8: 0 is unknown, FIRST..255 are depths. Those between are left free, so that the
# ringing of JPEG seldom turns an unknown pixel into a depth, and never inside a whole block.
_FIRST_CODE = 16
_UNKNOWN_BELOW = 8


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Return height and width that the header of a JPEG says, before it is decoded."""
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    if max(height, width) > MAX_SIDE:
        raise Unreadable(f"is {width}x{height} px")
    check_scans(data)
    return height, width


def encode_image(pixels: Pixels, recipe: Recipe) -> bytes:
    """Encode a composite, (H, W, 3) uint8, in the recipe's image format."""
    if recipe.image_format == "jpeg":
        encoded: bytes = simplejpeg.encode_jpeg(
            pixels, quality=recipe.image_quality, colorspace="RGB", colorsubsampling="444"
        )
        return encoded
    buffer = io.BytesIO()
    if recipe.image_format == "webp":
        Image.fromarray(pixels).save(buffer, "WEBP", quality=recipe.image_quality, method=2)
    else:
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def through_jpeg(pixels: Pixels, quality: int) -> Pixels:
    """Return a picture (H, W, 3) as it comes back from a JPEG such as cameras write, 4:2:0."""
    encoded = simplejpeg.encode_jpeg(
        pixels, quality=quality, colorspace="RGB", colorsubsampling="420"
    )
    decoded = np.empty_like(pixels)
    decode_image_into(encoded, decoded)
    return decoded


def decode_image(encoded: bytes, recipe: Recipe) -> Image.Image:
    """Decode what `encode_image` returned, to the pixels every other reader sees."""
    if recipe.image_format != "jpeg":
        return open_picture(encoded, None)
    with refusing("is damaged"):
        pixels = np.empty((*_jpeg_size(encoded), 3), dtype=np.uint8)
    decode_image_into(encoded, pixels)
    return Image.fromarray(pixels)


def decode_image_into(encoded: bytes, target: Pixels) -> None:
    """Decode what `encode_image` returned straight into an array, (H, W, 3) uint8.

    Raises:
        Unreadable: the picture is damaged or of another size.
    """
    height, width = target.shape[:2]
    if encoded[:2] != JPEG_START:
        target[...] = np.asarray(open_picture(encoded, (width, height)).convert("RGB"))
        return
    with refusing("is damaged"):
        if (found := _jpeg_size(encoded)) != (height, width):
            raise Unreadable(f"is {found[1]}x{found[0]} px, not {width}x{height} px")
        simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False, buffer=target)


def encode_mask(mask: Pixels) -> bytes:
    """Encode a mask, (H, W) uint8 in {0, 255}, as 1-bit PNG."""
    return _grey_png(np.packbits(mask, axis=1), mask.shape[1], bit_depth=1)


def encode_instances(instances: Pixels) -> bytes:
    """Encode instances, (H, W) uint8, as 8-bit PNG."""
    return _grey_png(instances, instances.shape[1], bit_depth=8)


def encode_indexed(indexes: Pixels, palette: Pixels) -> bytes:
    """Encode indexes, (H, W) uint8, as PNG with a palette, (N, 3) uint8."""
    return _png(indexes, indexes.shape[1], 8, _INDEXED, _png_chunk(b"PLTE", palette.tobytes()))


def encode_rgb(pixels: Pixels) -> bytes:
    """Encode colours, (H, W, 3) uint8, as PNG."""
    return _png(pixels.reshape(len(pixels), -1), pixels.shape[1], 8, _RGB)


def decode_instances(encoded: bytes, size: int) -> Pixels:
    """Decode what `encode_instances` returned to (H, W) uint8.

    Args:
        size: side in px that instances of the set have.

    Raises:
        Unreadable: it is something else.
    """
    rows = _grey_png_rows(encoded, size, bit_depth=8)
    if rows is not None:
        return np.ascontiguousarray(rows)
    return np.asarray(open_picture(encoded, (size, size), ("PNG",), ("L",)))


def decode_mask(encoded: bytes, size: int) -> npt.NDArray[np.bool_]:
    """Decode what `encode_mask` returned, or any picture of a mask, to (H, W) bool.

    Args:
        size: side in px that a mask of the set has.

    Raises:
        Unreadable: the picture is damaged or of another size.
        ValueError: there are other values than 0 and 255.
    """
    rows = _grey_png_rows(encoded, size, bit_depth=1)
    if rows is not None:
        return np.unpackbits(rows, axis=1, count=size).view(np.bool_)
    return mask_pixels(open_picture(encoded, (size, size)))


def mask_pixels(mask: Any) -> npt.NDArray[np.bool_]:
    """Return the mask, (H, W) bool, of a `mask` image or array.

    Raises:
        ValueError: there are other values than 0 and 255.
    """
    pixels = np.asarray(mask)
    if pixels.dtype == np.bool_:
        return pixels
    on: npt.NDArray[np.bool_] = pixels == MASK_ON
    if np.count_nonzero(on) != np.count_nonzero(pixels):
        raise ValueError(f"a mask holds 0 and {MASK_ON} only; give the column `mask` as it is.")
    return on


def _grey_png(rows: Pixels, width: int, bit_depth: int) -> bytes:
    """Wrap rows of packed grey samples, (H, bytes) uint8, as PNG without row filters."""
    return _png(rows, width, bit_depth, _GREY)


def _png(rows: Pixels, width: int, bit_depth: int, colour: int, more: bytes = b"") -> bytes:
    """Wrap rows of packed samples, (H, bytes) uint8, as PNG; `more` chunks come before the data."""
    height, row_bytes = rows.shape
    raw = np.zeros((height, row_bytes + 1), dtype=np.uint8)  # the first byte: filter 0
    raw[:, 1:] = rows
    data = bytes(deflate.zlib_compress(raw, _DEFLATE_LEVEL))
    head = _png_head(width, height, bit_depth, colour)
    return head + more + _png_chunk(b"IDAT", data) + _png_chunk(b"IEND", b"")


def _grey_png_rows(encoded: bytes, size: int, bit_depth: int) -> Pixels | None:
    """Return the packed rows, (H, bytes) uint8, of a square PNG made by `_grey_png`.

    None for any other picture, which a general image library has to decode.
    """
    head = _png_head(size, size, bit_depth, _GREY)
    data = slice(len(head) + 8, len(encoded) - 16)  # IDAT's length and name; its CRC and IEND
    if encoded[: len(head)] != head or encoded[len(head) : data.start] != struct.pack(
        ">I4s", max(0, data.stop - data.start), b"IDAT"
    ):
        return None
    row_bytes = (size * bit_depth + 7) // 8
    try:  # checks the data's own checksum
        raw = deflate.zlib_decompress(memoryview(encoded)[data], size * (row_bytes + 1))
    except deflate.DeflateError:
        return None
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(size, row_bytes + 1)
    return None if rows[:, 0].any() else rows[:, 1:]


@lru_cache(64)
def _png_head(width: int, height: int, bit_depth: int, colour: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    return _PNG_SIGNATURE + _png_chunk(b"IHDR", header)


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


class DepthCodec:
    """Stores depth as the recipe says, and reads it back.

    `png16`: 16-bit grey PNG of stored units (mm for a metric model), snapped to the recipe's
    geometric grid. `jpeg8`: 8-bit grey JPEG of a logarithmic code between the set's `near` and
    `far`, the same for every record.
    """

    def __init__(self, recipe: Recipe, info: DepthInfo) -> None:
        self._jpeg = recipe.depth_format == "jpeg8"
        self._size = recipe.size
        if self._jpeg:
            grid = _log_grid(info.near, info.far)
            self._codes = _nearest(grid).astype(np.uint8) + np.uint8(_FIRST_CODE)
            self._codes[0] = 0
            self._values = np.zeros(256, dtype=np.uint16)
            self._values[_UNKNOWN_BELOW:_FIRST_CODE] = info.near
            self._values[_FIRST_CODE:] = grid
        else:
            grid = np.asarray(
                depth_grid(recipe.depth_precision, info.near, info.far), dtype=np.uint16
            )
            self._snapped = grid[_nearest(grid)].astype(">u2")  # the byte order of PNG
            self._snapped[0] = 0
            self._values = np.arange(65536, dtype=np.uint16)
        self._metres = self._values.astype(np.float32) / np.float32(info.scale)
        self._metres[self._values == 0] = np.nan

    def encode(self, depth: Stored) -> bytes:
        """Encode (H, W) uint16 in stored units, 0 = unknown."""
        if self._jpeg:
            encoded: bytes = simplejpeg.encode_jpeg(
                _look_up(self._codes, depth)[..., None],
                quality=_LOG_JPEG_QUALITY,
                colorspace="GRAY",
            )
            return encoded
        words = _look_up(self._snapped, depth)
        return _grey_png(words.view(np.uint8), depth.shape[1], bit_depth=16)

    def as_decoded(self, depth: Stored, encoded: bytes) -> Stored:
        """Return what `decode` returns for the encoding of `depth`, by the shorter way."""
        return self.decode(encoded) if self._jpeg else _look_up(self._snapped, depth)

    def decode(self, encoded: bytes) -> Stored:
        """Decode what `encode` returned to stored units, (H, W) uint16, 0 = unknown."""
        return self.stored(self.pixels(encoded))

    def pixels(self, encoded: bytes) -> npt.NDArray[Any]:
        """Decode what `encode` returned to what every reader sees, (H, W) uint16 or uint8 code."""
        if self._jpeg and encoded[:2] == JPEG_START:
            with refusing("is damaged"):
                _jpeg_size(encoded)
                codes = simplejpeg.decode_jpeg(encoded, "GRAY", fastdct=False, fastupsample=False)
                return codes[..., 0]  # type: ignore[no-any-return]
        rows = None if self._jpeg else _grey_png_rows(encoded, self._size, bit_depth=16)
        if rows is not None:
            words = np.ascontiguousarray(rows).view(np.uint16)
            if sys.byteorder == "little":  # by shifts: NumPy's byteswap takes six times as long
                words = (words << np.uint16(8)) | (words >> np.uint16(8))
            return words
        return np.asarray(open_picture(encoded, None, modes=_DEPTH_MODES))

    def stored(self, image: Any) -> Stored:
        """Return the stored units, (H, W) uint16, 0 = unknown, of a `depth` image or array.

        Raises:
            ValueError: there are values that no stored depth has.
        """
        indexes = self._indexes(image)
        return _look_up(self._values, indexes) if self._jpeg else indexes.copy()

    def metres(
        self, image: Any, out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return metres, (H, W) float32, NaN where unknown, of a `depth` image or array.

        For a relative model the unit is that of its prediction, not metres.

        Args:
            out: an array of the image's shape to write them to.

        Raises:
            ValueError: there are values that no stored depth has, or `out` has another shape.
        """
        return _look_up(self._metres, self._indexes(image), out)

    def _indexes(self, image: Any) -> npt.NDArray[Any]:
        pixels = np.asarray(image)
        dtype = np.uint8 if self._jpeg else np.uint16
        if pixels.dtype == dtype:
            return pixels
        if pixels.dtype.kind not in "iu":  # metres, maybe; a unit is never guessed
            raise ValueError(
                f"it is {pixels.dtype}, and depth of this set is stored as whole numbers from 0 to "
                f"{np.iinfo(dtype).max}; give the column `depth` as it is stored."
            )
        indexes = pixels.astype(dtype)
        if not np.array_equal(indexes, pixels):
            raise ValueError(
                f"depth of this set holds whole numbers from 0 to {np.iinfo(dtype).max}; give the "
                "column `depth` as it is stored."
            )
        return indexes


def _look_up(
    table: npt.NDArray[Any], indexes: npt.NDArray[Any], out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """Return table[indexes], the table having a value for every index of their dtype."""
    return table.take(indexes, out=out, mode="wrap")  # three times as fast: no index is checked


def _log_grid(near: int, far: int) -> Stored:
    """Return 240 depths from near to far in equal ratios, by decimal arithmetic."""
    last = 255 - _FIRST_CODE
    ratio = Decimal(far) / Decimal(near)
    values = [round(near * ratio ** (Decimal(i) / last)) for i in range(last + 1)]
    return np.asarray(values, dtype=np.uint16)


def _nearest(grid: Stored) -> npt.NDArray[np.int64]:
    """Return for each value 0..65535 the index of the nearest grid value, the larger on a tie."""
    wide = grid.astype(np.int64)
    middles = (wide[:-1] + wide[1:] + 1) // 2
    return np.searchsorted(middles, np.arange(65536), side="right")
