"""What a person puts beside a picture: its measured depth, and where objects may stand.

`NAME.depth.png` is depth in mm, 16-bit grey, 0 = unknown, as RGB-D cameras and renderers give it;
`NAME.ground.png` is a mask, not 0 where a foot may stand. Beside a background either may have
another resolution than the photograph, but not another shape. A foreground has depth alone, as
large as itself. Texts in that PNG may say `focal_px`, the focal length at that resolution, and
`pitch_deg`, how far the camera looked up (below 0: down), its middle being that of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.Image import Resampling

from builder.recipe import Recipe
from builder.sources.decode import Kind, check_extent, opened
from builder.sources.samples import BadImageError
from builder.untrusted import printable

Companion = Literal["depth", "ground"]
COMPANIONS: tuple[Companion, ...] = ("depth", "ground")

_MAX_FOCAL_PX = 1_000_000
_MAX_PITCH_DEG = 80
_SHAPE_SHARE = 0.02  # by which width / height may differ, of rounding


def companions_of(kind: Kind) -> tuple[Companion, ...]:
    """Return what a picture of a kind may have beside it."""
    return COMPANIONS if kind == "background" else ("depth",)


def companion_of(name: str, kind: Kind) -> tuple[str, Companion] | None:
    """Return the name, without extension, of the picture that a file belongs to, and its kind."""
    for what in companions_of(kind):
        if name.lower().endswith(f".{what}.png") and len(name) > len(what) + 5:
            return name[: -len(what) - 5], what
    return None


def read_depth(path: Path, shape: tuple[int, int], recipe: Recipe) -> npt.NDArray[np.uint16]:
    """Read measured depth, cropped or stretched as its picture is.

    Args:
        shape: width and height of the picture.
        recipe: says the size and the fit.

    Returns:
        (size, size) uint16 in mm, 0 = unknown; pixels are chosen, never averaged.

    Raises:
        BadImageError: it is something else.
    """
    with opened(path, ("PNG",)) as (image, _, size_bytes):
        check_extent(image, size_bytes, alone=True)
        _check_depth(image)
        values = np.asarray(_fitted(image, shape, recipe))
    return _in_mm(values)


@dataclass(frozen=True)
class ObjectDepth:
    """Depth of what a foreground was cut out of: (h, w) uint16 in mm, 0 = unknown.

    `focal_px` is the focal length of its photograph, and `pitch_deg` how far its camera looked up;
    None where the file does not say so. `off_centre_px` is how far the middle of these rows lies
    below that of the file.
    """

    depth: npt.NDArray[np.uint16]
    focal_px: float | None = None
    pitch_deg: float | None = None
    off_centre_px: float = 0.0

    def cropped(self, box: tuple[int, int, int, int]) -> ObjectDepth:
        """Return the part in a box: left, top, right, bottom."""
        left, top, right, bottom = box
        below = (top + bottom - len(self.depth)) / 2
        return replace(self, depth=self.depth[top:bottom, left:right], off_centre_px=below)


def read_object_depth(path: Path, shape: tuple[int, int]) -> ObjectDepth:
    """Read the depth that lies beside a foreground.

    Args:
        shape: width and height of the foreground's file, which it must have.

    Raises:
        BadImageError: it is something else.
    """
    with opened(path, ("PNG",)) as (image, _, size_bytes):
        if image.size != shape:
            raise BadImageError(
                f"is {image.width}x{image.height} px, and its foreground {shape[0]}x{shape[1]} px; "
                "both must have the same size"
            )
        check_extent(image, size_bytes, alone=True)
        _check_depth(image)
        values = np.asarray(image)
        said = image.info
    return ObjectDepth(
        _in_mm(values),
        _number(said, "focal_px", 1, _MAX_FOCAL_PX, "a focal length in px"),
        _number(said, "pitch_deg", -_MAX_PITCH_DEG, _MAX_PITCH_DEG, "an angle in degrees"),
    )


def _number(said: Mapping[Any, Any], name: str, low: float, high: float, what: str) -> float | None:
    """Return the number that a text of a PNG holds; None where it has no such text."""
    text = said.get(name)
    if text is None:
        return None
    try:
        number = float(str(text))
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise BadImageError(
            f"says that {name} is {printable(str(text))[:40]!r}; it must be {what}, from {low} to "
            f"{high}"
        )
    return number


def _check_depth(image: Image.Image) -> None:
    if not image.mode.startswith("I"):
        raise BadImageError(
            f"is of mode {image.mode}; measured depth is 16-bit grey PNG in mm, 0 = unknown"
        )


def _in_mm(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max or not values.any():
        raise BadImageError("holds no depth in mm: every pixel is 0, or some are out of 16 bits")
    return values.astype(np.uint16)


def read_ground(path: Path, shape: tuple[int, int], recipe: Recipe) -> npt.NDArray[np.bool_]:
    """Read where feet may stand, (size, size) bool; arguments as for `read_depth`.

    Raises:
        BadImageError: it is something else, or nowhere is ground.
    """
    with opened(path, ("PNG",)) as (image, _, size_bytes):
        check_extent(image, size_bytes, alone=True)
        ground: npt.NDArray[np.bool_] = np.asarray(_fitted(image.convert("L"), shape, recipe)) > 0
    if not ground.any():
        raise BadImageError("has no pixel that is ground; paint where objects may stand white")
    return ground


def _fitted(image: Image.Image, shape: tuple[int, int], recipe: Recipe) -> Image.Image:
    width, height = shape
    if abs(image.width * height / (image.height * width) - 1) > _SHAPE_SHARE:
        raise BadImageError(
            f"is {image.width}x{image.height} px, and its picture {width}x{height} px; both must "
            "have the same shape"
        )
    size = (recipe.size, recipe.size)
    if recipe.background_fit == "stretch":
        return image.resize(size, Resampling.NEAREST)
    return ImageOps.fit(image, size, Resampling.NEAREST)
