"""The one place where a file of somebody else becomes pixels: bounded, upright, in sRGB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from builder.files import open_regular
from builder.pictures import open_undecoded
from builder.sources import colour
from builder.sources.samples import (
    BadImageError,
    bands,
    check_samples,
    choose_picture,
    from_16_bits,
    to_modes,
    why_unidentified,
)
from builder.untrusted import printable

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")

Kind = Literal["foreground", "background"]

_MAX_PIXELS = 178_956_970  # Pillow's own limit: 0.7 GB as RGBA
# Pictures above this (134 MB as RGBA) are decoded one at a time, and not from a file that is all
# but empty: WebP holds 169 million equal pixels in 34 bytes, and takes 2.7 GB to decode them.
_LARGE_PIXELS = 2**25
_MAX_PIXELS_PER_BYTE = 1000
# An encoder makes about ten; each takes time for the whole picture, and may be 30 bytes.
_MAX_JPEG_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


_EXIF, _FOCAL_35MM = 0x8769, 0xA405  # where EXIF says the focal length


class LargeImageError(BadImageError):
    """Not bad yet: a picture that is to be decoded while no other is."""


class Decoded(NamedTuple):
    """A picture as RGB or RGBA.

    `intake` is 1 where Pillow's modes alone, by which version 0.1.0 went, say what the file means,
    and 2 where its own bits, alpha or colours do. `notes` say what was assumed.
    """

    image: Image.Image
    intake: int
    notes: tuple[str, ...] = ()


def decode(path: Path, kind: Kind, *, alone: bool, as_before: bool = False) -> Decoded:
    """Return the picture in a file, upright and in sRGB.

    Args:
        kind: of a foreground, a fourth channel of unspecified meaning is taken for its alpha.
        alone: no other picture is decoded now.
        as_before: make of the file what version 0.1.0 did, which knew neither profiles nor bits.

    Raises:
        BadImageError: it cannot be used; the text says why.
        LargeImageError: it is large, and others are decoded now.
    """
    with opened(path) as (image, file, size_bytes):
        return _pixels(image, file, size_bytes, kind, alone, as_before)


def focal_length_35mm(path: Path) -> float:
    """Return the focal length in mm, as of 35 mm film, that EXIF says; 0 where it says none."""
    try:
        with opened(path) as (image, _, _):
            return float(image.getexif().get_ifd(_EXIF).get(_FOCAL_35MM, 0))
    except BadImageError:  # whatever else may stand there
        return 0.0


@contextmanager
def opened(
    path: Path, formats: tuple[str, ...] = FORMATS
) -> Iterator[tuple[Image.Image, BinaryIO, int]]:
    """Open a picture, whose pixels are not read yet; give it, its file and the file's bytes.

    Raises:
        BadImageError: from within the block too; whatever a decoder raises becomes one.
    """
    try:
        with open_regular(path) as file:
            size_bytes = path.stat().st_size
            if not size_bytes:
                raise BadImageError("is empty (0 bytes)")
            try:
                with open_undecoded(file, formats) as image:
                    yield image, file, size_bytes
            except UnidentifiedImageError:
                raise BadImageError(why_unidentified(file)) from None
    except BadImageError:
        raise
    except Image.DecompressionBombError:
        raise BadImageError(f"is larger than {_MAX_PIXELS} px; too large to be safe") from None
    except MemoryError:
        raise BadImageError("needs more memory to decode than there is") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        # Of an OSError the reason alone: its text may hold a path of this machine.
        reason = getattr(error, "strerror", None) or error
        why = printable(f"{type(error).__name__}: {reason}")
        raise BadImageError(f"is damaged or cut short ({why[:200]})") from None


def _pixels(
    image: Image.Image, file: BinaryIO, size_bytes: int, kind: Kind, alone: bool, as_before: bool
) -> Decoded:
    choose_picture(image)
    check_extent(image, size_bytes, alone)
    if image.format in ("JPEG", "MPO") and _jpeg_scans(file) > _MAX_JPEG_SCANS:
        raise BadImageError(f"has more than {_MAX_JPEG_SCANS} scans; save it again as JPEG")
    if as_before:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return Decoded(_as_version_0_1_0(image), 1)
    shown = check_samples(image, alpha_wanted=kind == "foreground")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    profile = colour.profile_of(image, file)
    own, otherwise = to_modes(image, file)
    notes: tuple[str, ...] = ()
    try:
        rgb, moved = _in_srgb(own, profile)
    except colour.UnusableProfileError as error:
        notes = (f"{error}, ignored",)
        rgb, moved = _in_srgb(own, None)
    if own.mode == "CMYK" and not moved:
        notes = (*notes, "CMYK without a colour profile, so the colours are approximate")
    rgb.info = {}  # what is left there would be written into the prepared picture
    return Decoded(rgb, 2 if shown or otherwise or moved else 1, notes)


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, bool]:
    """Return an image as RGB or RGBA, and whether its file's bits or profile moved its pixels."""
    if not image.mode.startswith("I;16"):
        return colour.to_srgb(image, profile)
    if profile is None or colour.is_of_greys(profile):
        table = colour.grey_table(profile) if profile else None
        rgb, otherwise = from_16_bits(image, table)
        return rgb, otherwise or table is not None
    rgb, otherwise = from_16_bits(image, None)
    rgb, moved = colour.to_srgb(rgb, profile)
    return rgb, otherwise or moved


def _as_version_0_1_0(image: Image.Image) -> Image.Image:
    """Return a loaded image as RGB or RGBA by Pillow's mode alone."""
    if image.mode.startswith("I;16") or image.mode == "I":
        transparent = image.info.get("transparency")
        grey = Image.new("LA" if isinstance(transparent, int) else "L", image.size)
        for band in bands(image):
            values = np.asarray(image.crop(band)).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise BadImageError("has 32-bit values; save it with 8 or 16 bits per channel")
            part = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
            if grey.mode == "LA":
                alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
                part.putalpha(Image.fromarray(alpha))
            grey.paste(part, band)
        return grey.convert("RGBA" if grey.mode == "LA" else "RGB")
    if image.mode == "F":
        raise BadImageError("has floating-point values; save it with 8 or 16 bits per channel")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode and "transparency" not in image.info else image.convert(mode)


def check_extent(image: Image.Image, size_bytes: int, alone: bool) -> None:
    """Refuse a picture whose header alone says that it is too small, too large or too empty."""
    extent = f"{image.width}x{image.height} px"
    n_pixels = image.width * image.height
    if min(image.size) < 2:
        raise BadImageError(f"is {extent}; too small to use")
    if n_pixels > _MAX_PIXELS:
        raise BadImageError(f"is {extent}; too large to be safe")
    if n_pixels > _LARGE_PIXELS:
        if n_pixels > _MAX_PIXELS_PER_BYTE * size_bytes:
            raise BadImageError(f"is {extent} in {size_bytes} bytes; no photograph is that empty")
        if not alone:
            raise LargeImageError


def _jpeg_scans(file: BinaryIO) -> int:
    """Count the scans of a JPEG's first picture, up to one more than are allowed."""
    file.seek(0)
    data, at, scans = file.read(), 2, 0
    while scans <= _MAX_JPEG_SCANS and (found := _JPEG_MARKER.search(data, at)):
        marker, at = found[0][1], found.end()
        if marker == 0xD9:  # end of image
            break
        scans += marker == 0xDA
        if marker not in (0x01, 0xD8):  # these two stand alone
            at += int.from_bytes(data[at : at + 2])
    return scans
