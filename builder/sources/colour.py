"""Colour at intake: whatever a file says its numbers mean, what is prepared of it is sRGB.

A file says so by an ICC profile, by chunks of PNG (cICP; gAMA and cHRM), or by the Exif mark that
cameras give to Adobe RGB. Each becomes an ICC profile here, and LittleCMS converts, relative
colorimetric. What says nothing is sRGB, as everywhere on the web.
"""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms

from builder.sources.samples import BadImageError
from builder.untrusted import printable

_LATTICE_STEPS = 17  # of each colour, on which a profile is compared with sRGB

# x and y of white, red, green, blue.
_SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_ADOBE_RGB = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_DISPLAY_P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
_REC_2020 = (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
_ADOBE_GAMMA = 563 / 256  # Adobe RGB (1998), 4.3.1.2
# IEC 61966-2-1 as an ICC curve of type 3: gamma, a, b, c, d.
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
# ITU-T H.273, tables 2 and 3: what a cICP chunk names by numbers.
_CICP_PRIMARIES = {1: _SRGB, 9: _REC_2020, 12: _DISPLAY_P3}
_CICP_CURVES = {4: (2.2,), 5: (2.8,), 8: (1.0,), 13: _SRGB_CURVE}

# libpng takes a gAMA for that of sRGB within this share (PNG_GAMMA_THRESHOLD).
_SAME_GAMMA = 0.05
_SAME_PLACE = 0.005  # of chromaticities; PNG writers round them differently

_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D50 = np.array([0.9642, 1.0, 0.8249])  # XYZ of ICC's connection space

# The pixels that a profile is for, by its colour space.
_SPACES = {"RGB ": "RGB", "GRAY": "I;16", "CMYK": "CMYK", "Lab ": "LAB"}


class UnusableProfileError(Exception):
    """Why a profile cannot be applied."""


def profile_of(image: Image.Image, file: BinaryIO) -> bytes | None:
    """Return the ICC profile that the pixels of an opened file are by; None for sRGB.

    Args:
        image: opened, and not yet changed.
        file: the same file, for what Pillow does not read of it.

    Raises:
        BadImageError: the file names colours that are not read.
    """
    if image.format == "PNG" and (code := _cicp(file)) is not None:
        return _profile_of_cicp(code)
    if image.format == "BMP" and (embedded := _profile_in_bmp(file)) is not None:
        return embedded
    if profile := image.info.get("icc_profile"):
        return bytes(profile)
    if "srgb" in image.info:
        return None
    if isinstance(gamma := image.info.get("gamma"), float):
        return _profile_of_gamma(image.mode, gamma, image.info.get("chromaticity"))
    if _is_adobe_rgb_by_exif(image):
        return _matrix_profile(_ADOBE_RGB, (_ADOBE_GAMMA,))
    return None


def _cicp(file: BinaryIO) -> tuple[int, int, int, int] | None:
    """Return the content of a PNG's cICP chunk, which has to stand before the pixels."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"cICP" and length == 4:
            return cast("tuple[int, int, int, int]", tuple(file.read(4)))
        if kind in (b"IDAT", b"IEND"):
            break
        file.seek(length + 4, io.SEEK_CUR)
    return None


def _profile_of_cicp(code: tuple[int, int, int, int]) -> bytes | None:
    primaries, curve, matrix, full_range = code
    if (primaries, curve) == (1, 13):
        return None
    if (
        primaries not in _CICP_PRIMARIES
        or curve not in _CICP_CURVES
        or (matrix, full_range) != (0, 1)
    ):
        names = "/".join(map(str, code))
        raise BadImageError(
            f"has colours of the kind {names} (cICP), which are not read; save it again as sRGB"
        )
    return _matrix_profile(_CICP_PRIMARIES[primaries], _CICP_CURVES[curve])


def _profile_of_gamma(mode: str, gamma: float, places: object) -> bytes | None:
    """Return the profile that PNG's gAMA and cHRM mean; None where they mean about sRGB's."""
    if not 0.01 < gamma < 10:
        return None
    valid = isinstance(places, tuple) and len(places) == 8 and min(places) > 0
    chosen = cast("tuple[float, ...]", places) if valid else _SRGB
    near = max(abs(a - b) for a, b in zip(chosen, _SRGB, strict=True)) < _SAME_PLACE
    if near and abs(gamma * 2.2 - 1) <= _SAME_GAMMA:
        return None
    if mode.startswith(("L", "I", "1")):
        return _profile(b"GRAY", {b"kTRC": _curve((1 / gamma,))})
    try:
        return _matrix_profile(chosen, (1 / gamma,))
    except (np.linalg.LinAlgError, OverflowError, ValueError, struct.error):
        return _matrix_profile(_SRGB, (1 / gamma,))  # of primaries that span no triangle


def _is_adobe_rgb_by_exif(image: Image.Image) -> bool:
    """Whether a camera marked it as DCF 2.0 says: uncalibrated, with the option file R03."""
    if b"R03" not in image.info.get("exif", b""):
        return False
    details = image.getexif().get_ifd(ExifTags.IFD.Exif)
    interop = image.getexif().get_ifd(ExifTags.IFD.Interop)
    mark = interop.get(ExifTags.Interop.InteropIndex)
    return details.get(ExifTags.Base.ColorSpace) == 0xFFFF and mark in ("R03", b"R03")


def _profile_in_bmp(file: BinaryIO) -> bytes | None:
    """Return the profile inside a BMP of version 5 (BITMAPV5HEADER with PROFILE_EMBEDDED)."""
    file.seek(14)
    header = file.read(124)
    if len(header) < 124 or header[:4] != struct.pack("<I", 124) or header[56:60] != b"DEBM":
        return None
    start, size_bytes = struct.unpack_from("<II", header, 112)
    file.seek(14 + start)
    return file.read(size_bytes)


def _curve(numbers: tuple[float, ...]) -> bytes:
    kind = {1: 0, 5: 3}[len(numbers)]
    return struct.pack(f">4s4xHH{len(numbers)}i", b"para", kind, 0, *map(_fixed, numbers))


def _fixed(number: float) -> int:
    return round(number * 65536)


def _matrix_profile(places: tuple[float, ...], curve: tuple[float, ...]) -> bytes:
    """Return an ICC profile of primaries and a curve (ICC.1:2010, 8.3.3 and annex E)."""
    xyz = np.array(
        [[x / y, 1, (1 - x - y) / y] for x, y in zip(places[::2], places[1::2], strict=True)]
    )
    white, primaries = xyz[0], xyz[1:].T
    primaries = primaries * np.linalg.solve(primaries, white)
    scale = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
    adapted = np.linalg.inv(_BRADFORD) @ scale @ _BRADFORD @ primaries
    tags = {bytes([c]) + b"TRC": _curve(curve) for c in b"rgb"}
    for c, colour in zip(b"rgb", adapted.T, strict=True):
        tags[bytes([c]) + b"XYZ"] = struct.pack(">4s4x3i", b"XYZ ", *map(_fixed, colour))
    return _profile(b"RGB ", tags)


def _profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {**tags, b"wtpt": struct.pack(">4s4x3i", b"XYZ ", *map(_fixed, _D50))}
    at = 132 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x3i48x",
        at + len(body), 0x04200000, b"mntr", space, b"XYZ ", b"acsp", *map(_fixed, _D50),
    )  # fmt: skip
    return header + table + body


def to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """Return an image as RGB or RGBA in sRGB, and whether a profile moved its colours.

    Args:
        image: of mode L, LA, RGB, RGBA, CMYK or LAB.
        profile: what `profile_of` found, for CIELAB None.

    Raises:
        UnusableProfileError: the profile is damaged, or one of other pixels.
    """
    grey = image.mode in ("L", "LA")
    if profile is not None and grey and is_of_greys(profile):
        table = grey_table(profile)
        if table is None:
            return image.convert("RGBA" if image.mode == "LA" else "RGB"), False
        return by_table(image, table[:: 65535 // 255]), True
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    mode = "RGB" if grey or alpha else image.mode
    transform = _transform(profile, mode) if profile or mode == "LAB" else None
    if transform is None:
        wanted = "RGBA" if alpha else "RGB"
        return image if image.mode == wanted else image.convert(wanted), False
    if image.mode != mode:
        image = image.convert(mode)
    image = transform.apply(image, image if mode == "RGB" else Image.new("RGB", image.size))
    if alpha is not None:
        image.putalpha(alpha)
    return image, True


def is_of_greys(profile: bytes) -> bool:
    """Whether a profile says what greys mean, and not colours.

    Raises:
        UnusableProfileError: the profile is damaged.
    """
    return _opened(profile)[1] == "GRAY"


def by_table(image: Image.Image, table: npt.NDArray[np.uint8]) -> Image.Image:
    """Return a grey image, or one with alpha (LA), as RGB or RGBA by the colour of each value."""
    grey = image.getchannel("L") if image.mode == "LA" else image
    channels = [grey.point(table[:, channel].tolist()) for channel in range(3)]
    if image.mode == "LA":
        return Image.merge("RGBA", [*channels, image.getchannel("A")])
    return Image.merge("RGB", channels)


def _opened(profile: bytes) -> tuple[ImageCms.ImageCmsProfile, str]:
    """Return a profile and its colour space."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return opened, opened.profile.xcolor_space
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError):
        raise UnusableProfileError("damaged colour profile") from None


@lru_cache(32)
def grey_table(profile: bytes) -> npt.NDArray[np.uint8] | None:
    """Return the sRGB colours of all 16-bit grey values, (65536, 3); None where it is sRGB's.

    Raises:
        UnusableProfileError: the profile is damaged, or not one of greys.
    """
    ramp = Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    # What LittleCMS does for speed is off by up to 10 of 255 in the darks of a linear profile.
    transform = _built(*_opened(profile), "I;16", ImageCms.Flags.NOOPTIMIZE)
    table = np.asarray(transform.apply(ramp)).reshape(65536, 3)
    same = np.abs(table[::257].astype(np.int16) - np.arange(256)[:, None]).max() <= 1
    return None if same else table


@lru_cache(32)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what makes sRGB of RGB, CMYK or LAB pixels; None where that moves no colour."""
    if mode == "LAB":  # its white is D50, with or without a profile
        return _built(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "Lab ", mode)
    transform = _built(*_opened(profile or b""), mode)
    steps = np.linspace(0, 255, _LATTICE_STEPS).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 1, 3)
    if mode == "RGB":
        moved = np.asarray(transform.apply(Image.fromarray(lattice))).astype(np.int16) - lattice
        if np.abs(moved).max() <= 1:
            return None
    return transform


def _built(
    profile: ImageCms.ImageCmsProfile,
    space: str,
    mode: str,
    flags: ImageCms.Flags = ImageCms.Flags.NONE,
) -> ImageCms.ImageCmsTransform:
    if _SPACES.get(space) != mode:
        name = printable(space.strip())
        raise UnusableProfileError(f"colour profile of {name} for {mode} pixels")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    try:
        return ImageCms.ImageCmsTransform(profile, srgb, mode, "RGB", intent, flags=flags)
    except (OSError, ValueError, ImageCms.PyCMSError):
        raise UnusableProfileError("damaged colour profile") from None
