"""Pixels to bytes and back: JPEG, WebP and PNG for composites, 1-bit PNG, 16-bit PNG, log JPEG.

The two PNG kinds are assembled here: packed bits or big-endian words behind one filter byte a
row, deflated once. That is several times faster than through a general image library and reads
in all of them.
"""

from __future__ import annotations

import io
import struct
import zlib
from decimal import Decimal
from typing import Any

import deflate
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from builder.recipe import DepthInfo, Recipe, depth_grid

Pixels = npt.NDArray[np.uint8]
Stored = npt.NDArray[np.uint16]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEFLATE_LEVEL = 1  # of 1..12; 4 makes depth a sixth smaller for nearly twice the time
_LOG_JPEG_QUALITY = 90

# Codes of jpeg8: 0 is unknown, FIRST..255 are depths. Those between are left free, so that the
# ringing of JPEG seldom turns an unknown pixel into a depth, and never inside a whole block.
_FIRST_CODE = 16
_UNKNOWN_BELOW = 8


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


def decode_image(encoded: bytes, recipe: Recipe) -> Image.Image:
    """Decode what `encode_image` returned, to the pixels every other reader sees."""
    if recipe.image_format == "jpeg":
        pixels = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False)
        return Image.fromarray(pixels)
    return Image.open(io.BytesIO(encoded))


def encode_mask(mask: Pixels) -> bytes:
    """Encode a mask, (H, W) uint8 in {0, 255}, as 1-bit PNG."""
    return _grey_png(np.packbits(mask, axis=1), mask.shape[1], bit_depth=1)


def _grey_png(rows: Pixels, width: int, bit_depth: int) -> bytes:
    """Wrap rows of packed grey samples, (H, bytes) uint8, as PNG without row filters."""
    height, row_bytes = rows.shape
    raw = np.zeros((height, row_bytes + 1), dtype=np.uint8)  # the first byte: filter 0
    raw[:, 1:] = rows
    header = struct.pack(">IIBBBBB", width, height, bit_depth, 0, 0, 0, 0)
    data = deflate.zlib_compress(raw, _DEFLATE_LEVEL)
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


class DepthCodec:
    """Stores depth as the recipe says, and reads it back.

    `png16`: 16-bit grey PNG of stored units (mm for a metric model), snapped to the recipe's
    geometric grid. `jpeg8`: 8-bit grey JPEG of a logarithmic code between the set's `near` and
    `far`, the same for every record.
    """

    def __init__(self, recipe: Recipe, info: DepthInfo) -> None:
        self._jpeg = recipe.depth_format == "jpeg8"
        self._scale = info.scale
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
        if self._jpeg:
            codes = simplejpeg.decode_jpeg(encoded, "GRAY", fastdct=False, fastupsample=False)
            return _look_up(self._values, codes[..., 0])
        with Image.open(io.BytesIO(encoded)) as image:
            return self.stored(image)

    def stored(self, image: Any) -> Stored:
        """Return the stored units, (H, W) uint16, 0 = unknown, of a `depth` image or array."""
        pixels = np.asarray(image)
        return self._values[pixels] if self._jpeg else pixels.astype(np.uint16)

    def metres(self, image: Any) -> npt.NDArray[np.float32]:
        """Return metres, (H, W) float32, NaN where unknown, of a `depth` image or array.

        For a relative model the unit is that of its prediction, not metres.
        """
        stored = self.stored(image)
        values = stored.astype(np.float32) / np.float32(self._scale)
        values[stored == 0] = np.nan
        return values


def _look_up(table: npt.NDArray[Any], indexes: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return table[indexes], the table having a value for every index of their dtype."""
    return table.take(indexes, mode="wrap")  # three times as fast: no index is checked


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
