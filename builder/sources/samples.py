"""Samples at intake: the file's own bits, photometric meaning and transparency.

Pillow's modes know 8 bits, 16 bits of grey, and straight alpha. What a TIFF or PNG says beyond
them is looked up in the file itself and brought to those modes, or refused with the true reason.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin

from builder.pictures import open_undecoded

if TYPE_CHECKING:
    from collections.abc import Iterator

BAND_ROWS = 256  # large pictures are changed a band at a time, so that no second one is needed

_MAX_PAGES = 32  # a pyramid has a dozen
_SAVE_AGAIN = "save it with 8 or 16 bits per channel"

# Tags of TIFF 6.0.
_SUBFILE, _OLD_SUBFILE, _BITS, _PHOTOMETRIC, _EXTRA, _FORMAT = 254, 255, 258, 262, 338, 339
_REDUCED, _MASK_PAGE = 1, 4  # bits of NewSubfileType
_WHITE_IS_ZERO, _CMYK = 0, 5
_SIGNED, _FLOAT = 2, 3
_BIG = (b"+\0", b"\0+")  # the 43 of BigTIFF, whose header is longer


# What else people have under the name of a picture: where it begins so, and what it is.
_WEB_PAGE = "is a web page and not a picture; download the picture again"
_HEIF = "is a HEIC or AVIF picture, which is not read; convert it to JPEG or PNG"
_INSTEAD = (
    (
        0,
        b"version https://git-lfs",
        "is only Git LFS's note of where the picture is; run git lfs pull in its repository",
    ),
    (0, b"<!doctype html", _WEB_PAGE),
    (0, b"<html", _WEB_PAGE),
    (0, b"gif8", "is a GIF, which is not read; convert it to JPEG or PNG"),
    *((4, b"ftyp" + brand, _HEIF) for brand in (b"avi", b"hei", b"hev", b"mif1", b"msf1")),
)


class BadImageError(Exception):
    """Why one file cannot be used; the text follows its name, and is listed with all others."""


def bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Give the boxes of an image's bands."""
    for top in range(0, image.height, BAND_ROWS):
        yield 0, top, image.width, min(top + BAND_ROWS, image.height)


def choose_picture(image: Image.Image) -> None:
    """Go to the one picture of a file; its thumbnails, smaller copies and masks do not count.

    Raises:
        BadImageError: it holds several pictures.
    """
    frames = getattr(image, "n_frames", 1)
    # MPO is how phones store a JPEG with a preview behind it; its first frame is the picture.
    if frames == 1 or image.format == "MPO":
        return
    page = _only_page(image, frames) if image.format == "TIFF" else None
    if page is None:
        raise BadImageError(f"has {frames} frames; save one of them as an image")
    image.seek(page)


def _only_page(image: Image.Image, pages: int) -> int | None:
    """Return the page of a TIFF that all others are smaller copies or masks of."""
    sizes = {}
    for page in range(min(pages, _MAX_PAGES)):
        image.seek(page)
        tags = _tags(image)
        if not tags.get(_SUBFILE, 0) & (_REDUCED | _MASK_PAGE) and tags.get(_OLD_SUBFILE) != 2:
            sizes[page] = image.size
    if pages > _MAX_PAGES or not sizes:
        return None
    largest = max(sizes, key=lambda page: sizes[page][0] * sizes[page][1])
    rest = (size for page, size in sizes.items() if page != largest)
    return largest if all(_is_thumbnail(size, sizes[largest]) for size in rest) else None


def _is_thumbnail(size: tuple[int, int], whole: tuple[int, int]) -> bool:
    """Whether a page that says nothing of itself has the shape of another, at half its size."""
    scale = max(size) / max(whole)
    return scale <= 0.5 and all(abs(a - b * scale) <= 1.5 for a, b in zip(size, whole, strict=True))


def _tags(image: Image.Image) -> Any:
    return cast("TiffImagePlugin.TiffImageFile", image).tag_v2


def check_samples(image: Image.Image, *, alpha_wanted: bool) -> bool:
    """Check what a TIFF says of its samples, before they are decoded.

    Returns:
        Whether a channel is decoded that Pillow would pass over.

    Args:
        alpha_wanted: take a fourth channel of unspecified meaning for alpha. TIFF 6.0 leaves it
            open; a cut-out needs one, and in a photograph it may be anything, such as infrared.

    Raises:
        BadImageError: samples that no mode of Pillow can hold, or holds wrongly.
    """
    if image.format != "TIFF":
        return False
    tags = _tags(image)
    bits, kinds, extra = (tuple(tags.get(tag, ())) for tag in (_BITS, _FORMAT, _EXTRA))
    if _FLOAT in kinds:
        raise BadImageError(f"has floating-point values; {_SAVE_AGAIN}")
    if max(bits, default=1) > 16:
        raise BadImageError(f"has {max(bits)}-bit values; {_SAVE_AGAIN}")
    if _SIGNED in kinds:
        raise BadImageError(f"has signed values; {_SAVE_AGAIN}, without sign")
    if not alpha_wanted or not extra:
        return False
    if tags.get(_PHOTOMETRIC) == _CMYK:
        raise BadImageError("has its transparency beside CMYK, which is not read; save it as RGBA")
    return extra[0] == 0 and _show_fourth_channel(image)


def _show_fourth_channel(image: Image.Image) -> bool:
    """Let Pillow decode as straight alpha what it would pass over (X in the names of its modes)."""
    with_alpha = {"RGB": "RGBA", "L": "LA", "P": "PA"}.get(image.mode)
    if with_alpha is None:
        return False
    file = cast("TiffImagePlugin.TiffImageFile", image)
    file._mode = with_alpha  # noqa: SLF001 - what Pillow documents for plugins, as `tile` is
    file.tile = [
        tile._replace(args=(mode.replace("X", "A", 1), *rest))
        for tile in file.tile
        for mode, *rest in [cast("tuple[Any, ...]", tile.args)]
    ]
    return True


def to_modes(image: Image.Image, file: BinaryIO) -> tuple[Image.Image, bool]:
    """Return a loaded, upright image in one of the modes L, LA, I;16, RGB, RGBA, CMYK and LAB.

    Args:
        file: what it was loaded from.

    Returns:
        The image, whose transparent colour has become alpha but in I;16, and whether that is
        more than what Pillow's own conversions do.
    """
    key = image.info.get("transparency")
    if image.format == "PNG" and image.mode not in ("P", "I;16") and key is not None:
        return _with_key(image, file, key)
    if image.mode == "La":
        return image.convert("LA"), True
    if image.mode == "1":
        return image.convert("L"), False
    if image.mode in ("P", "PA", "YCbCr", "RGBX"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB"), False
    if image.mode in ("I", "F"):
        raise BadImageError(f"has 32-bit values; {_SAVE_AGAIN}")
    return image, False


def _with_key(
    image: Image.Image, file: BinaryIO, key: int | tuple[int, ...]
) -> tuple[Image.Image, bool]:
    """Turn the transparent colour of a PNG, which is given in the file's own bits, into alpha."""
    file.seek(24)  # where the header says how many bits a sample has
    most = 2 ** file.read(1)[0] - 1
    if most == 65535 and isinstance(key, tuple):
        image.putalpha(_alpha_of_16_bits(image, file, key))
        return image, True
    scaled = key
    if most in (3, 15) and isinstance(key, int):  # Pillow spreads the samples alone to 0..255
        scaled = min(key, most) * 255 // most
    image.info["transparency"] = scaled
    return image.convert("RGBA"), scaled != key


def _alpha_of_16_bits(image: Image.Image, file: BinaryIO, key: tuple[int, ...]) -> Image.Image:
    """Return the alpha of a PNG of 16-bit colours: 0 where all three are the key to the last bit.

    Pillow keeps the upper bytes of the samples; a second decoding is asked for the lower ones.
    """
    file.seek(0)
    alpha = Image.new("L", image.size, 255)
    with cast("Any", open_undecoded(file, ("PNG",))) as low:
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()
        ImageOps.exif_transpose(low, in_place=True)
        for band in bands(image):
            is_key = np.ones((band[3] - band[1], band[2]), bool)
            for part, shift in ((image, 8), (low, 0)):
                wanted = np.array([sample >> shift & 255 for sample in key], np.uint8)
                is_key &= (np.asarray(part.crop(band)) == wanted).all(2)
            alpha.paste(Image.fromarray(np.where(is_key, np.uint8(0), np.uint8(255))), band)
    return alpha


def from_16_bits(
    image: Image.Image, table: npt.NDArray[np.uint8] | None
) -> tuple[Image.Image, bool]:
    """Return a grey image of 12 or 16 bits as RGB, or RGBA where it has a transparent value.

    Args:
        table: (65536, 3), the colour of each value of 16 bits; None for 0..255 in equal steps.

    Returns:
        The image, and whether its values were other than 16 bits from black to white.
    """
    most, inverted, key = 65535, False, image.info.get("transparency")
    if image.format == "TIFF":
        most = 2 ** _tags(image).get(_BITS, (16,))[0] - 1
        inverted = _tags(image).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if table is None:
        table = ((np.arange(65536)[:, None] * 255 + 32767) // 65535).astype(np.uint8).repeat(3, 1)
    rgb = Image.new("RGBA" if isinstance(key, int) else "RGB", image.size)
    for band in bands(image):
        values = np.asarray(image.crop(band)).astype(np.int64)
        whole = np.minimum((values * 65535 + most // 2) // most, 65535)
        part = Image.fromarray(table[65535 - whole if inverted else whole])
        if rgb.mode == "RGBA":
            part.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        rgb.paste(part, band)
    return rgb, inverted or most != 65535


def why_unidentified(file: BinaryIO) -> str:
    """Say why Pillow cannot open a file: what it is instead, or which kind of JPEG or TIFF."""
    file.seek(0)
    head = file.read(64)
    for start, mark, is_instead in _INSTEAD:
        if head[start:].lower().startswith(mark):
            return is_instead
    reason = "is not a JPEG, PNG, WebP, TIFF or BMP image"
    try:
        if head.startswith(b"\xff\xd8"):
            bits = _jpeg_bits(file)
            return reason if bits in (0, 8) else f"has {bits} bits per channel; {_SAVE_AGAIN}"
        if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return _kind_of_tiff(file, head)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        pass  # damaged as well
    return reason


def _jpeg_bits(file: BinaryIO) -> int:
    """Return the bits per sample that a JPEG's frame header says; 0 where there is none."""
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        is_frame = 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC)
        if is_frame:
            return file.read(1)[0]
        file.seek(int.from_bytes(head[2:]) - 2, 1)
    return 0


def _kind_of_tiff(file: BinaryIO, head: bytes) -> str:
    tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if head[2:4] in _BIG else 8])
    file.seek(tags.next)
    tags.load(file)
    bits = "/".join(map(str, tags.get(_BITS, (1,))))
    kinds = tags.get(_FORMAT, (1,))
    name = "floating-point " if _FLOAT in kinds else "signed " if _SIGNED in kinds else ""
    meaning = {2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 32803: "raw camera"}
    photometric = int(tags.get(_PHOTOMETRIC, 0))
    return (
        f"is a TIFF of {name}{bits} bits, {meaning.get(photometric, f'colours {photometric}')}, "
        f"which is not read; {_SAVE_AGAIN}, as grey or RGB"
    )
