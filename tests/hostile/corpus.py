"""Valid pictures of every kind that sources may have, and seeded damage to them."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.pictures import ADOBE_RGB, blob, encoded, png, scene, tiff

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT = 37, 29
# Left, top, step right, step down of each pass.
_ADAM7 = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
)  # fmt: skip
_EXTREMES = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\xff\xff", b"\x80\0\0\0")


@cache
def valid_files() -> dict[str, bytes]:
    """Name -> bytes of small valid files; the name says what is in it."""
    # In a process of its own: an encoder of Pillow crashed now and then in one that had loaded the
    # libraries of many other tests.
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.hostile.corpus", folder]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return {name: (Path(folder) / name).read_bytes() for name in done.stdout.split()}


def _made() -> dict[str, bytes]:
    files = {**_pngs(), **_jpegs(), **_webps(), **_tiffs(), **_bmps()}
    files["gif"] = encoded(_photo(), "GIF")
    return files


def _photo() -> Image.Image:
    return scene(1, WIDTH, HEIGHT)


def _cutout() -> Image.Image:
    return blob(2, WIDTH, HEIGHT)


def _samples(bits: int, channels: int) -> list[bytes]:
    """Random rows of big-endian samples, each row filled to whole bytes."""
    rng = np.random.default_rng(bits * 10 + channels)
    return [rng.bytes(-(-WIDTH * bits * channels // 8)) for _ in range(HEIGHT)]


def _pngs() -> dict[str, bytes]:
    files = {}
    for bits in (1, 2, 4, 8, 16):
        files[f"png-grey{bits}"] = png(WIDTH, HEIGHT, bits, 0, _samples(bits, 1))
    palette = (b"PLTE", bytes(range(256)) * 3)
    transparency = (b"tRNS", bytes(range(256)))
    for bits in (1, 4, 8):
        rows, entries = _samples(bits, 1), 2**bits
        plte, trns = (b"PLTE", palette[1][: 3 * entries]), (b"tRNS", transparency[1][:entries])
        files[f"png-palette{bits}"] = png(WIDTH, HEIGHT, bits, 3, rows, plte)
        files[f"png-palette{bits}-alpha"] = png(WIDTH, HEIGHT, bits, 3, rows, plte, trns)
    for bits in (8, 16):
        for colour, channels, name in ((2, 3, "rgb"), (4, 2, "grey-alpha"), (6, 4, "rgba")):
            files[f"png-{name}{bits}"] = png(WIDTH, HEIGHT, bits, colour, _samples(bits, channels))
    files["png-rgba-interlaced"] = interlaced(np.asarray(_cutout()))
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    info = {"icc_profile": icc, "dpi": (72, 72), "exif": _exif(6)}
    files["png-with-profile-and-exif"] = encoded(_cutout(), "PNG", **info)
    files["png-animated"] = _animated("PNG")
    files["png-adobe-rgb"] = encoded(_photo(), "PNG", icc_profile=ADOBE_RGB)
    colours = {"gamma": (b"gAMA", b"\0\1\x86\xa0"), "cicp": (b"cICP", b"\x0c\x0d\0\1")}
    for name, chunk in colours.items():
        files[f"png-{name}"] = png(WIDTH, HEIGHT, 8, 2, _samples(8, 3), chunk)
    for bits in (4, 16):
        key = (b"tRNS", b"\0\1" * (3 if bits == 16 else 1))
        colour, channels = (2, 3) if bits == 16 else (0, 1)
        rows = _samples(bits, channels)
        files[f"png-key{bits}"] = png(WIDTH, HEIGHT, bits, colour, rows, key)
    return files


def interlaced(pixels: np.ndarray[Any, Any]) -> bytes:
    """(H, W, 4) uint8 as an Adam7 PNG, which Pillow reads but does not write."""
    height, width = pixels.shape[:2]
    rows = [
        b"\0" + row.tobytes()
        for left, top, right, down in _ADAM7
        for row in pixels[top::down, left::right]
        if row.size
    ]
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 1)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in parts
    )


@cache
def zeros(size: int) -> bytes:
    """Zlib data of `size` zero bytes, a thousandth of them long."""
    packer, block = zlib.compressobj(9), bytes(2**20)
    parts = [packer.compress(block[: min(2**20, size - at)]) for at in range(0, size, 2**20)]
    return b"".join(parts) + packer.flush()


@cache
def flat_png(side: int, bits: int, colour: int, channels: int, *more: tuple[bytes, bytes]) -> bytes:
    """An all-zero PNG of a thousandth of its pixels' bytes."""
    whole = png(side, side, bits, colour, [], *more)
    data = b"IDAT" + zeros(side * (1 + -(-side * bits * channels // 8)))
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return whole[: whole.index(b"IDAT") - 4] + chunk + whole[-12:]


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "camera"
    return exif


def _animated(file_format: str) -> bytes:
    more = {"save_all": True, "append_images": [_cutout().rotate(90), _cutout().rotate(180)]}
    return encoded(_cutout(), file_format, **more)


def _jpegs() -> dict[str, bytes]:
    grey, cmyk = _photo().convert("L"), _photo().convert("CMYK")
    pair = {"save_all": True, "append_images": [_photo().rotate(90)]}
    return {
        "jpeg-baseline": encoded(_photo(), "JPEG"),
        "jpeg-444-optimised": encoded(_photo(), "JPEG", subsampling=0, optimize=True),
        "jpeg-progressive": encoded(_photo(), "JPEG", progressive=True),
        "jpeg-restarts": encoded(_photo(), "JPEG", restart_marker_blocks=1),
        "jpeg-grey": encoded(grey, "JPEG"),
        "jpeg-grey-progressive": encoded(grey, "JPEG", progressive=True),
        "jpeg-cmyk": encoded(cmyk, "JPEG"),
        "jpeg-adobe-rgb": encoded(_photo(), "JPEG", icc_profile=ADOBE_RGB),
        "jpeg-rotated": encoded(_photo(), "JPEG", exif=_exif(8)),
        "jpeg-phone": encoded(_photo(), "MPO", **pair),
    }


def _webps() -> dict[str, bytes]:
    return {
        "webp-lossy": encoded(_photo(), "WEBP", quality=60),
        "webp-lossy-alpha": encoded(_cutout(), "WEBP", quality=60, exif=_exif(3)),
        "webp-lossless": encoded(_photo(), "WEBP", lossless=True),
        "webp-lossless-alpha": encoded(_cutout(), "WEBP", lossless=True),
        "webp-animated": _animated("WEBP"),
    }


def _tiffs() -> dict[str, bytes]:
    packings = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    files = {f"tiff-{name}": encoded(_cutout(), "TIFF", compression=name) for name in packings}
    files |= {
        "tiff-jpeg": encoded(_photo(), "TIFF", compression="jpeg"),
        "tiff-zstd": encoded(_photo(), "TIFF", compression="zstd"),
        "tiff-group4": encoded(_photo().convert("1"), "TIFF", compression="group4"),
        "tiff-cmyk": encoded(_photo().convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "tiff-palette": encoded(_photo().quantize(16), "TIFF"),
        "tiff-ycbcr": encoded(_photo().convert("YCbCr"), "TIFF"),
        "tiff-16": encoded(Image.fromarray(np.full((HEIGHT, WIDTH), 999, np.uint16)), "TIFF"),
        "tiff-big": encoded(_cutout(), "TIFF", big_tiff=True, exif=_exif(5)),
        "tiff-strips": encoded(_cutout(), "TIFF", compression="tiff_lzw", strip_size=200),
        "tiff-pages": _animated("TIFF"),
        "tiff-tiles": tiled(np.asarray(_photo())),
        "tiff-adobe-rgb": encoded(_photo(), "TIFF", icc_profile=ADOBE_RGB),
    }
    size = {256: (WIDTH,), 257: (HEIGHT,), 259: (1,)}
    kinds = {
        "grey12": ({258: (12,), 262: (1,), 277: (1,)}, _samples(12, 1)),
        "white-is-zero": ({258: (16,), 262: (0,), 277: (1,)}, _samples(16, 1)),
        "unspecified": ({258: (8,) * 4, 262: (2,), 277: (4,), 338: (0,)}, _samples(8, 4)),
        "associated": ({258: (8, 8), 262: (1,), 277: (2,), 338: (1,)}, _samples(8, 2)),
        "cielab": ({258: (8,) * 3, 262: (8,), 277: (3,)}, _samples(8, 3)),
    }
    for name, (tags, rows) in kinds.items():
        files[f"tiff-{name}"] = tiff([({**size, **tags}, b"".join(rows))])
    thumbnail = ({**size, 258: (8,), 262: (1,), 277: (1,), 254: (1,)}, b"".join(_samples(8, 1)))
    whole = ({**size, 258: (8,), 262: (1,), 277: (1,)}, b"".join(_samples(8, 1)))
    files["tiff-thumbnail"] = tiff([thumbnail, whole])
    return files


def tiled(pixels: np.ndarray[Any, Any], side: int = 16) -> bytes:
    """(H, W, 3) uint8 as a TIFF of deflated tiles (TIFF 6.0, section 15)."""
    height, width = pixels.shape[:2]
    down, right = -(-height // side), -(-width // side)
    padded = np.zeros((down * side, right * side, 3), np.uint8)
    padded[:height, :width] = pixels
    tiles = [
        zlib.compress(padded[y * side : (y + 1) * side, x * side : (x + 1) * side].tobytes())
        for y in range(down)
        for x in range(right)
    ]
    entries: list[tuple[int, tuple[int, ...]]] = [
        (256, (width,)), (257, (height,)), (258, (8, 8, 8)), (259, (8,)), (262, (2,)), (277, (3,)),
        (322, (side,)), (323, (side,)), (324, ()), (325, tuple(map(len, tiles))),
    ]  # fmt: skip
    data_at = 8 + 2 + 12 * len(entries) + 4
    starts = np.cumsum([0, *map(len, tiles)])[:-1] + data_at
    entries[8] = (324, tuple(starts.tolist()))
    data, directory = b"".join(tiles), struct.pack("<H", len(entries))
    for tag, values in entries:
        content = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            data, content = data + content, struct.pack("<I", data_at + len(data))
        directory += struct.pack("<HHI", tag, 4, len(values)) + content
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + data


def _bmps() -> dict[str, bytes]:
    images = (_photo().convert("1"), _photo().quantize(64), _photo(), _cutout())
    return {f"bmp-{image.mode}": encoded(image, "BMP") for image in images}


def damaged(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` damaged files with their names, the same for the same seed."""
    originals = list(valid_files().items())
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        name, data = originals[number % len(originals)]
        how = rng.choice(_KINDS_OF_DAMAGE)
        content = _damage(rng, how, data, originals[rng.integers(len(originals))][1])
        if name.startswith("png") and rng.random() < 0.7:
            content = _with_checksums(content)  # or hardly any damage gets past them
        yield f"{number:05}-{name}-{how}.{name.split('-')[0]}", content


_KINDS_OF_DAMAGE = ("bits", "insert", "delete", "truncate", "extreme", "splice", "repeat")


def _damage(rng: np.random.Generator, how: str, data: bytes, other: bytes) -> bytes:
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
    if rng.random() < 0.5:  # headers matter most
        at = int(rng.integers(min(len(data), 200)))
    if how == "bits":
        spoilt = bytearray(data)
        for bit in [*rng.integers(8 * len(data), size=rng.integers(1, 9)).tolist(), 8 * at + 3]:
            spoilt[bit // 8] ^= 1 << bit % 8
        return bytes(spoilt)
    return {
        "insert": lambda: data[:at] + rng.bytes(length) + data[at:],
        "delete": lambda: data[:at] + data[at + length :],
        "truncate": lambda: data[:at],
        "extreme": lambda: data[:at] + _EXTREMES[length % len(_EXTREMES)] + data[at + 4 :],
        "splice": lambda: data[:at] + other[int(rng.integers(len(other))) :],
        "repeat": lambda: data[:at] + data[at : at + length] * 50 + data[at + length :],
    }[how]()


def _with_checksums(data: bytes) -> bytes:
    """A PNG's bytes with the checksum of every chunk made right, as far as chunks go."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


if __name__ == "__main__":
    for _name, _content in _made().items():
        (Path(sys.argv[1]) / _name).write_bytes(_content)
        print(_name)
