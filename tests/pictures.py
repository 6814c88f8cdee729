"""Pictures that tests make: seeded ones, and files written by the letter of a format."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo


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


def tiff(
    pages: Iterable[tuple[dict[int, tuple[int, ...] | bytes], bytes]], order: str = "<"
) -> bytes:
    """A TIFF of uncompressed pages in one strip each, by the letter of TIFF 6.0.

    Args:
        pages: of each the tags (numbers as SHORT, or bytes as UNDEFINED) beside those that say
            where the strip is, and the strip.
    """
    out = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    for tags, strip in pages:
        body, at = b"", len(out) + 2 + 12 * (len(tags) + 2) + 4
        body += strip + bytes(len(strip) % 2)
        entries = {273: (4, 1, struct.pack(f"{order}I", at))}
        entries[279] = (4, 1, struct.pack(f"{order}I", len(strip)))
        for tag, value in tags.items():
            kind, count = (7, len(value)) if isinstance(value, bytes) else (3, len(value))
            data = value if isinstance(value, bytes) else struct.pack(f"{order}{count}H", *value)
            if len(data) > 4:
                where = struct.pack(f"{order}I", at + len(body))
                body += data + bytes(len(data) % 2)
                data = where
            entries[tag] = (kind, count, data.ljust(4, b"\0"))
        listed = b"".join(
            struct.pack(f"{order}HHI", tag, kind, count) + data
            for tag, (kind, count, data) in sorted(entries.items())
        )
        out += struct.pack(f"{order}H", len(entries)) + listed
        out += struct.pack(f"{order}I", at + len(body)) + body
    return _without_next(out, order)


def _without_next(data: bytes, order: str) -> bytes:
    """End the chain of pages: the last one's pointer to the next leads behind the file."""
    end = struct.pack(f"{order}I", len(data))
    at = data.rindex(end)
    return data[:at] + bytes(4) + data[at + 4 :]


def icc(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2 by the letter of its specification, with these tags."""
    place, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, place + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    white = (0xF6D6, 0x10000, 0xD32D)
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3I48x",
        place + len(body), 0x02100000, kind, space, connection, b"acsp", *white,
    )  # fmt: skip
    return head + table + body


def icc_xyz(*values: float) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *(round(value * 65536) for value in values))


def icc_gamma(value: float) -> bytes:
    return struct.pack(">4s4xIH", b"curv", 1, round(value * 256))


# As in Adobe's own file: the primaries of Adobe RGB (1998), adapted to D50.
ADOBE_RGB = icc(
    b"RGB ",
    {
        b"wtpt": icc_xyz(0.9505, 1, 1.0891),
        b"rXYZ": icc_xyz(0.60974, 0.31111, 0.01947),
        b"gXYZ": icc_xyz(0.20528, 0.62567, 0.06087),
        b"bXYZ": icc_xyz(0.14919, 0.06322, 0.74457),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), icc_gamma(563 / 256)),
    },
)


def floor_mm(size: int, horizon: float = 0.35) -> np.ndarray:
    """Depth of a floor 1.5 m below the eye that meets a wall 8 m away, (size, size) mm."""
    focal = size / 2 / np.tan(np.radians(30))
    rows = np.maximum(np.arange(size) + 0.5 - horizon * size, 0.1)[:, None]
    return np.minimum(1500 * focal / rows, 8000).round().astype(np.uint16) + np.zeros(
        (1, size), np.uint16
    )


def measured_floors(folder: Path, count: int) -> None:
    """Make a folder of backgrounds with measured depth, of another resolution and with a hole."""
    folder.mkdir()
    for i in range(count):
        scene(i, 160, 160).save(folder / f"floor{i}.png")
        depth = floor_mm(240, 0.3 + 0.04 * i)
        depth[:20, :20] = 0
        Image.fromarray(depth).save(folder / f"floor{i}.depth.png")


def depth_png(path: Path, depth_mm: np.ndarray, **said_of_camera: object) -> None:
    """Write depth in mm as PNG, with texts."""
    said = PngInfo()
    for name, value in said_of_camera.items():
        said.add_text(name, str(value))
    Image.fromarray(depth_mm).save(path, pnginfo=said)
