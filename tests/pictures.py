"""Pictures that tests make: seeded ones, and files written by the letter of a format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image


def blob(seed: int, width: int, height: int) -> Image.Image:
    """A coloured ellipse with a soft edge on transparency, RGBA."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    centre = ((width - 1) / 2, (height - 1) / 2)
    radius = np.hypot((x - centre[0]) / (width / 2), (y - centre[1]) / (height / 2))
    pixels = np.empty((height, width, 4), np.uint8)
    pixels[..., :3] = rng.integers(0, 256, 3) + rng.integers(-8, 9, (height, width, 1))
    pixels[..., 3] = np.clip((0.9 - radius) * 8 * 255, 0, 255)
    return Image.fromarray(pixels)


def scene(seed: int, width: int, height: int) -> Image.Image:
    """A smooth coloured gradient with some noise, RGB."""
    rng = np.random.default_rng(1000 + seed)
    corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
    smooth = np.asarray(corners.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(
        np.clip(smooth + rng.integers(-10, 11, smooth.shape), 0, 255).astype(np.uint8)
    )


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: Iterable[bytes],
    *more: tuple[bytes, bytes],
) -> bytes:
    """A PNG written by the letter of its specification, for modes that Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), *more, (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks
    )


def as_jpeg_of(width: int, height: int) -> bytes:
    data = encoded(scene(1, 64, 64), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
