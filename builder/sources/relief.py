"""The relief of a cut-out: how far each of its pixels lies beyond its foot, in its own heights.

It comes from metric depth of the photograph that the object was cut out of. The foot is the median
of the lowest 3 % of rows, as in 3D Ken Burns (Niklaus et al. 2019). A pixel's place is counted in
heights of the object, so that relief, like the object, may have any size at any distance.

What a camera that looks down sees of an upright board grows nearer towards its top. That is the
camera's and not the object's, and a record's own camera has its own, so it is taken out: by the
pitch of the camera where that is known, else by the upright board that fits the object best.
"""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Resampling

from builder.sources.companions import ObjectDepth
from builder.sources.samples import BadImageError

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
StoredRelief = npt.NDArray[np.uint16]

RELIEF_ZERO = 32768  # stored where a pixel is as far as the foot
RELIEF_ONE = 4096  # stored steps of one height

_FOOT_SHARE = 3  # percent of the rows, from below
_MOST = 7.99  # heights, either way, that are stored
_MOST_TILT = 4  # times, that the nearest row of an upright board is nearer than the farthest
_MOST_BEYOND = 0.1  # share of the pixels that may be more
_LEAST_WEIGHT = 1 / 64  # of what is known in a pixel of a smaller size
_NOWHERE = np.int32(1 << 14)  # px, beyond any cut-out; two squares of it fit into 32 bits
_SOLID = 128  # alpha, from which a pixel is the object's


@dataclass(frozen=True)
class Relief:
    """The relief of a whole cut-out: `weighted` is its relief where it is known, else 0.

    `weight` is 1 where it is known, else 0. Both are of mode F and as large as the cut-out.
    """

    weighted: Image.Image
    weight: Image.Image

    @classmethod
    def of(
        cls,
        alpha: npt.NDArray[np.uint8],
        seen: ObjectDepth,
        height_m: float,
    ) -> Relief:
        """Find the relief of an object in the depth of its photograph.

        Args:
            alpha: of the trimmed cut-out, (h, w).
            seen: depth of the same pixels, and the camera.
            height_m: of the object; 0 where it is not known, and follows from the focal length.

        Raises:
            BadImageError: nothing is known within the object, or it cannot be metric depth of it.
        """
        known = (alpha >= _SOLID) & (seen.depth > 0)
        if not known.any():
            raise BadImageError("is 0, which is unknown, all over the object")
        metres = seen.depth.astype(np.float32) / np.float32(1000)
        foot = _at_foot(metres, known)
        if height_m == 0:
            if seen.focal_px is None:
                raise BadImageError(
                    "has no text focal_px, and credits.csv no height_m, so that the size of the "
                    "object is not known; give its height_m in credits.csv"
                )
            height_m = alpha.shape[0] * foot / seen.focal_px
        metres *= _nearness_of_board(metres, known, seen)[:, None]
        beyond = (metres - np.float32(_at_foot(metres, known))) / np.float32(height_m)
        if (np.abs(beyond[known]) > _MOST).mean() > _MOST_BEYOND:
            raise BadImageError(
                f"puts much of the object more than {_MOST:.0f} times its height before or behind "
                "its foot; depth must be metric, in mm, and height_m and focal_px must fit it"
            )
        # What little lies beyond that is mostly the background's, at the edge.
        beyond = np.where(known, beyond.clip(-_MOST, _MOST), np.float32(0))
        return cls(Image.fromarray(beyond), Image.fromarray(known.astype(np.float32)))

    def turned(self, turn_deg: float, box: tuple[int, int, int, int]) -> Relief:
        """Return the relief of the cut-out when it is turned, and then cropped to a box."""
        weighted, weight = (
            image.rotate(turn_deg, Resampling.BILINEAR, expand=True).crop(box)
            for image in (self.weighted, self.weight)
        )
        return Relief(weighted, weight)

    def at(self, cutout: Image.Image, resample: Resampling) -> bytes:
        """Return the relief of a size of the cut-out as PNG, (h, w) uint16.

        What lies outside of the object has no share in it. Unknown pixels get that of the nearest
        one that is known. The foot is that of this size, so that it stands where its foot is.

        Args:
            cutout: of that size, RGBA.
            resample: the filter that made it of the whole.
        """
        inside = np.asarray(cutout)[..., 3] >= _SOLID
        weighted, weight = (
            np.asarray(image.resize(cutout.size, resample))
            for image in (self.weighted, self.weight)
        )
        known = inside & (weight > _LEAST_WEIGHT)
        if not known.any():  # of a few px, between those that are known
            known = weight == weight.max()
        beyond = np.divide(weighted, weight, out=np.zeros_like(weighted), where=known)
        beyond = _from_nearest(beyond, known, inside)
        beyond -= np.float32(_at_foot(beyond, inside))
        steps = np.rint(beyond * RELIEF_ONE).clip(-RELIEF_ZERO, RELIEF_ZERO - 1) + RELIEF_ZERO
        buffer = io.BytesIO()
        stored = np.where(inside, steps, RELIEF_ZERO).astype(np.uint16)
        Image.fromarray(stored).save(buffer, "PNG")
        return buffer.getvalue()


def _nearness_of_board(metres: Floats, known: Mask, seen: ObjectDepth) -> Floats:
    """Return the inverse depth, row by row, of an upright board where an object stands, (h,).

    It is affine in the row. Of a camera of known pitch it follows from that, with `row` 0 at the
    middle of the picture; else least squares fit it to the object.
    """
    rows = np.arange(len(metres)) + 0.5 - len(metres) / 2
    if seen.pitch_deg is not None and seen.focal_px is not None:
        pitch = np.radians(seen.pitch_deg)
        along = np.cos(pitch) + np.sin(pitch) * (rows + seen.off_centre_px) / seen.focal_px
    else:
        at, _ = np.nonzero(known)
        x = rows[at] - rows[at].mean()
        y = 1 / metres[known].astype(np.float64)
        spread = float((x * x).sum())
        slope = float((x * y).sum()) / spread if spread else 0.0
        along = y.mean() + slope * (rows - rows[at].mean())
    along = np.maximum(along, np.abs(along).max() / _MOST_TILT)
    lowest = int(np.flatnonzero(known.any(axis=1))[-1])
    return np.asarray(along / along[lowest], np.float32)


def _at_foot(values: Floats, known: Mask) -> float:
    """Return the median of the known values in the lowest rows that have any."""
    rows = np.flatnonzero(known.any(axis=1))
    height = int(rows[-1] - rows[0]) + 1
    low = slice(rows[-1] + 1 - max(1, height * _FOOT_SHARE // 100), rows[-1] + 1)
    return float(np.median(values[low][known[low]]))


def _from_nearest(values: Floats, known: Mask, wanted: Mask) -> Floats:
    """Return values in which what is wanted and not known is as the nearest known pixel is.

    By jump flooding (Rong and Tan 2006): each pixel asks others at distances that halve.
    """
    missing = wanted & ~known
    if not missing.any():
        return values
    height, width = known.shape
    ys, xs = np.mgrid[0:height, 0:width].astype(np.int32)
    near_y, near_x = np.where(known, ys, _NOWHERE), np.where(known, xs, _NOWHERE)
    step = 1 << (max(height, width) - 1).bit_length()
    while step := step // 2:
        for dy, dx in itertools.product((-step, 0, step), repeat=2):
            if abs(dy) >= height or abs(dx) >= width:
                continue
            to = np.s_[max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
            other = np.s_[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
            y, x = near_y[other], near_x[other]
            mine = (near_y[to] - ys[to]) ** 2 + (near_x[to] - xs[to]) ** 2
            nearer = (y - ys[to]) ** 2 + (x - xs[to]) ** 2 < mine
            near_y[to], near_x[to] = (
                np.where(nearer, y, near_y[to]),
                np.where(nearer, x, near_x[to]),
            )
    filled = values.copy()
    filled[missing] = values[near_y[missing], near_x[missing]]
    return filled
