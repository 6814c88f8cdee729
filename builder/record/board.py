"""Depth composed from where objects stand: an upright board through each foot. Integers only.

Depth maps hold stored units, 0 = unknown, of depth or of inverse depth. An upright board that
faces the camera is a plane too, so its inverse depth is affine in the pixel: it vanishes at the
zenith, the point where upright lines meet. For a horizon at distance h from the middle of the
picture the zenith lies at -f^2 / h, with the focal length f in px (Hartley & Zisserman 2004,
section 8.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from builder.record.scene import Form, Placed, inside_frame
from builder.sources import RELIEF_ONE, RELIEF_ZERO, StoredRelief

Depth = npt.NDArray[np.uint16]
Relief = npt.NDArray[np.uint32]  # what a board's depth is multiplied by, in units of 2^-16

MAX_STORED = 65535
_STRIP_ROWS = 5  # of the ground under a foot whose median is an object's depth
_STRIP_WIDTH = 3  # a third of the object's width
_BEFORE_PERCENT = 85  # of the nearest tenth behind it, for an object that stands nowhere
_PLANE_BITS = 18
_FOCAL_BITS = 16  # of a focal length, as those of `Rules`
_RELIEF_BITS = 16
_LEAST_FACTOR = 1 << (_RELIEF_BITS - 4)  # nearer than a sixteenth of the foot's depth is nothing


@dataclass(frozen=True)
class Tilt:
    """How inverse depth changes along upright boards of a background: in proportion to affine A.

    A(u, v) = x (2 u) + y (2 v) + constant, at pixel centres, positive where a camera can look.
    """

    x: int
    y: int
    constant: int

    @classmethod
    def of(cls, plane: tuple[int, int, int], size: int, focal_px_squared_4: int) -> Tilt:
        """Return the tilt that belongs to a ground plane.

        Args:
            plane: a, b, c of the ground, in any unit.
            size: side of the picture in px.
            focal_px_squared_4: four times the square of the focal length in px.
        """
        largest = max(abs(plane[0]) * size, abs(plane[1]) * size, abs(plane[2]), 1)
        shift = max(0, largest.bit_length() - _PLANE_BITS)
        a, b, c = (value >> shift for value in plane)
        # Doubled: 2 u = 2 column + 1. `apart` is how far the horizon lies above the middle.
        apart = -2 * c - (a + b) * size
        constant = focal_px_squared_4 * (a * a + b * b) - apart * (a + b) * size
        return cls(apart * a, apart * b, constant)

    def at(self, left_px: int, top_px: int, width: int, height: int) -> npt.NDArray[np.int64]:
        """Return A of pixels, (height, width)."""
        columns = 2 * np.arange(left_px, left_px + width, dtype=np.int64) + 1
        rows = 2 * np.arange(top_px, top_px + height, dtype=np.int64) + 1
        return (self.x * columns)[None, :] + (self.y * rows + self.constant)[:, None]


def board(
    tilt: Tilt | None,
    depth: int,
    foot: tuple[int, int],
    box: tuple[int, int, int, int],
    *,
    inverse: bool,
) -> Depth | np.uint16:
    """Return the depth of an upright board through a foot.

    Args:
        tilt: of the background; None is a board parallel to the picture.
        depth: of the foot, in stored units.
        foot: its pixel.
        box: left, top, width, height in px of the part that is wanted.
        inverse: whether stored units are of inverse depth.

    Returns:
        (height, width) uint16, or one value for all; known values stay known.
    """
    if tilt is None or (tilt.x == 0 and tilt.y == 0) or depth == 0:
        return np.uint16(depth)
    at_foot = int(tilt.at(*foot, 1, 1)[0, 0])
    along = np.maximum(tilt.at(*box), 1)
    if at_foot <= 0:
        return np.uint16(depth)
    above, below = (along, at_foot) if inverse else (at_foot, along)
    values = (2 * depth * above + below) // (2 * below)
    return np.clip(values, 1, MAX_STORED).astype(np.uint16)


def relief_of(stored: StoredRelief, height_px: int, focal: int) -> Relief:
    """Return what relief makes of the depth of a board: its part of it, in units of 2^-16.

    An object h px high stands h / f of its distance high, with the focal length f in px; what lies
    q of its heights beyond its foot is 1 + q h / f times as far.

    Args:
        stored: relief of an object at its level, (h, w), see `builder.sources.relief`.
        height_px: of the object there, were it not turned.
        focal: of the picture, in units of 2^-16 px.
    """
    beyond = (stored.astype(np.int64) - RELIEF_ZERO) * height_px
    beyond = (beyond << (_RELIEF_BITS + _FOCAL_BITS)) // RELIEF_ONE
    factors = (1 << _RELIEF_BITS) + (beyond + focal // 2) // focal
    return np.maximum(factors, _LEAST_FACTOR).astype(np.uint32)


def object_depth(
    tilt: Tilt | None,
    one: Placed,
    box: tuple[int, int, int, int],
    relief: Relief | None,
    *,
    inverse: bool,
) -> Depth | np.uint16:
    """Return the depth of an object: that of its board, shaped by its relief.

    Args:
        tilt: of the background.
        one: the object.
        box: left, top, width, height in px of the part of it that is wanted, in the frame.
        relief: of all of the object; None is a board.
        inverse: whether stored units are of inverse depth.

    Returns:
        (height, width) uint16, or one value for all.
    """
    stands = tilt if one.stance == "ground" else None
    values = board(stands, one.depth, one.foot, box, inverse=inverse)
    if relief is None or one.depth == 0:
        return values
    left, top, width, height = box
    rows = slice(top - one.top_px, top - one.top_px + height)
    factors = relief[rows, left - one.left_px : left - one.left_px + width].astype(np.int64)
    wide = values.astype(np.int64)
    if inverse:
        wide = ((wide << (_RELIEF_BITS + 1)) + factors) // (2 * factors)
    else:
        wide = (wide * factors + (1 << (_RELIEF_BITS - 1))) >> _RELIEF_BITS
    return np.clip(wide, 1, MAX_STORED).astype(np.uint16)


def depth_under(depth: Depth, foot: tuple[int, int], width: int) -> int:
    """Return the median known depth of the ground under a foot; 0 if none is known."""
    x, y = foot
    half = max(1, width // _STRIP_WIDTH) // 2
    rows = slice(max(0, y - _STRIP_ROWS // 2), y + _STRIP_ROWS // 2 + 1)
    strip = depth[rows, max(0, x - half) : x + half + 1].ravel()
    return _ranked(strip[strip > 0], 50)


def depth_before(depth: Depth, form: Form, left_px: int, top_px: int, *, inverse: bool) -> int:
    """Return a depth somewhat nearer than nearly all that lies behind an object; 0 if unknown."""
    size = depth.shape[0]
    mask = inside_frame(form.mask, left_px, top_px, size)
    height, width = mask.shape
    top, left = max(0, top_px), max(0, left_px)
    behind = depth[top : top + height, left : left + width][mask]
    nearest = _ranked(behind[behind > 0], 90 if inverse else 10)
    if inverse:
        return min(MAX_STORED, nearest * 100 // _BEFORE_PERCENT)
    return nearest * _BEFORE_PERCENT // 100 or min(nearest, 1)


def _ranked(values: Depth, percent: int) -> int:
    """Return the value at a percentile, one of those there; 0 of none."""
    if not values.size:
        return 0
    rank = (values.size - 1) * percent // 100
    return int(np.partition(values, rank)[rank])
