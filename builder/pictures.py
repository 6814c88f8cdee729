"""The one place where a picture of a set is opened: few formats, no more pixels than are due."""

from __future__ import annotations

import io
from typing import BinaryIO

from PIL import Image

from builder.untrusted import Unreadable, refusing

FORMATS = ("JPEG", "PNG", "WEBP")  # of any picture in a set
MAX_SIDE = 4096  # px, of any record or prepared source
JPEG_START = b"\xff\xd8"
_JPEG_SCAN = b"\xff\xda"
_MAX_JPEG_SCANS = 100  # an encoder makes about ten; each takes time for the whole picture


def open_undecoded(file: BinaryIO, formats: tuple[str, ...]) -> Image.Image:
    """Open a picture, whose pixels are not read yet, as one of a few formats; nothing else does.

    Pillow by itself would hand PostScript to Ghostscript.
    """
    return Image.open(file, formats=formats)


def open_picture(
    data: object,
    size: tuple[int, int] | None,
    formats: tuple[str, ...] = FORMATS,
    modes: tuple[str, ...] = (),
) -> Image.Image:
    """Decode a picture of any hand, once its header says what is due.

    Args:
        data: the encoded picture.
        size: width and height that it has; None where no more is known than that a set holds it.
        formats: what it may be, as Pillow calls them.
        modes: the modes of Pillow it may have; any if empty.

    Raises:
        Unreadable: it is something else, or damaged.
    """
    if not isinstance(data, bytes):
        raise Unreadable("holds no image")
    with refusing("is damaged"):
        image = open_undecoded(io.BytesIO(data), formats)
        if size is not None and image.size != size:
            raise Unreadable(f"is {image.width}x{image.height} px, not {size[0]}x{size[1]} px")
        if max(image.size) > MAX_SIDE or getattr(image, "n_frames", 1) != 1:
            raise Unreadable(f"is {image.width}x{image.height} px, or has several pictures")
        if modes and image.mode not in modes:
            raise Unreadable(f"is of mode {image.mode}, not {' or '.join(modes)}")
        check_scans(data)
        image.load()
        return image


def check_scans(data: bytes) -> None:
    """Refuse a JPEG of more scans than any encoder makes.

    Raises:
        Unreadable: it has more.
    """
    if data[:2] == JPEG_START and data.count(_JPEG_SCAN) > _MAX_JPEG_SCANS:
        raise Unreadable("has more scans than any encoder makes")
