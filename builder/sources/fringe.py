"""The fringe of cut-outs: colours that an old background left under partly transparent pixels.

Straight alpha keeps what the photograph had there, C = a F + (1 - a) B, and on another background
the rest of B is a halo. Colours that were multiplied by alpha and are read as straight are the same
with B = 0. Own code, after blur fusion (Forte 2021, Approximate Fast Foreground Colour Estimation):
F is C without an estimate of B, as far as alpha carries it, and else what is opaque next to it.

Not every edge of another colour is a fringe: glass, wings, shadows and the outlines of drawings
have their right colour already. What an old background leaves grows with transparency, and their
distance from the object does not. Whole numbers, and floats that are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_Ints = npt.NDArray[np.int64]

_OPAQUE = 240  # alpha from which a colour is the object's own
# Alpha from the first number that differs from its neighbours' by at most the second, in small
# pictures, is of glass or a wing; and so is what lies up to the third number of px from it.
_GLASS, _FLAT, _RIM = 32, 2, 2
_CELL = 8  # px: evidence is gathered over 3 x 3 cells, colours within two cells
_TILE = 32  # cells; large pictures have few tiles with an edge
_LARGE = 1024  # px of the longer side, from which cells grow with the picture
_LARGEST_CELL = 32
# By how much the old background must explain colours better than any other colour does, and which
# share of them; no effect up to the first number, all of it from the second.
_BETTER, _SHARE = (1.0, 1.15), (0.3, 0.6)
_WHOLE = 256  # of strength
_STEPS = 4  # a unit of the halo's measure, so that 32 bits hold it


def decontaminated(image: Image.Image) -> tuple[Image.Image, float]:
    """Return a cut-out without the old background in its fringe, and how much there was of it.

    Pixels that are opaque or transparent stay as they are, and so do those with nothing opaque
    near, such as fine hair.

    Args:
        image: of mode RGBA, straight alpha.

    Returns:
        The cut-out; and the mean distance (0 to 255, in quarters, rounded up) of colours that an
        old background explains from the object's own colour next to them, weighted by a (1 - a).
        Where it is 0, the image is the same one.
    """
    if not any(image.getchannel("A").histogram()[1:_OPAQUE]):
        return image, 0.0
    cell = _CELL
    while cell < _LARGEST_CELL and max(image.size) > _LARGE * cell // _CELL:
        cell *= 2
    mended, found, weight = image.copy(), 0, 0
    side = _TILE * cell
    for top in range(0, image.height, side):
        for left in range(0, image.width, side):
            tile = _mend_tile(image, mended, left, top, cell)
            found, weight = found + tile[0], weight + tile[1]
    if not found:
        return image, 0.0
    # Up, so that 0 says that nothing was found.
    return mended, -(-_STEPS * found // (3 * _WHOLE * weight)) / _STEPS


def _mend_tile(
    image: Image.Image, mended: Image.Image, left: int, top: int, cell: int
) -> tuple[int, int]:
    """Mend one tile; return the weighted distances found in it, and the weights."""
    side, margin = _TILE * cell, 3 * cell  # two for colours, one for evidence
    width, height = min(side, image.width - left), min(side, image.height - top)
    alpha = np.asarray(image.crop((left, top, left + width, top + height)).getchannel("A"))
    if not ((alpha > 0) & (alpha < _OPAQUE)).any():
        return 0, 0
    x0, y0 = max(0, left - margin), max(0, top - margin)
    x1, y1 = min(image.width, left + width + margin), min(image.height, top + height + margin)
    patch = np.array(image.crop((x0, y0, x1, y1)))
    fringe = _Fringe(patch, cell)
    ys, xs = fringe.ys, fringe.xs
    if not len(ys):
        return 0, 0
    strength, colours = fringe.judged()
    inside = (ys >= top - y0) & (ys < top - y0 + height)
    inside &= (xs >= left - x0) & (xs < left - x0 + width)
    patch[ys, xs, :3] = colours
    core = patch[top - y0 : top - y0 + height, left - x0 : left - x0 + width]
    mended.paste(Image.fromarray(core), (left, top))
    weight = (fringe.alpha * (255 - fringe.alpha))[inside]
    distance = np.abs(fringe.off).sum(1)[inside]
    return int((weight * strength[inside] * distance).sum()), int(weight.sum())


class _Fringe:
    """The partly transparent pixels of a patch that lie near opaque ones.

    `ys`, `xs` say where they are; `alpha` (n,); `near` (n, 3) is the mean colour of what is opaque
    in the smallest box that holds any; `off` (n, 3) is how far their own is from it.
    """

    def __init__(self, patch: npt.NDArray[np.uint8], cell: int) -> None:
        alpha = patch[..., 3]
        ys, xs = np.nonzero((alpha > 0) & (alpha < _OPAQUE))
        edge = ~_glass(alpha, ys, xs, _FLAT * _CELL // cell)
        ys, xs = ys[edge], xs[edge]
        near, found = _near(patch, ys, xs, cell)
        self.ys, self.xs, self.near = ys[found], xs[found], near[found]
        self.alpha: _Ints = alpha[self.ys, self.xs].astype(np.int64)
        self.own: _Ints = patch[self.ys, self.xs, :3].astype(np.int64)
        self.off: _Ints = self.own - self.near
        self._shape, self._cell = patch.shape, cell

    def judged(self) -> tuple[_Ints, _Ints]:
        """Return to what part of 256 each pixel is an old background's, and its colour without.

        Two explanations of `off` compete around each pixel: g (1 - a), as an old background
        leaves it, and one colour whatever alpha is. Least squares say how well each does.
        """
        cell = self._cell
        rows, columns = -(-self._shape[0] // cell), -(-self._shape[1] // cell)
        where = self.ys // cell * columns + self.xs // cell

        def around(values: _Ints) -> npt.NDArray[np.float64]:
            """Sum over the 3 x 3 cells around each pixel: whole numbers, so in any order."""
            sums = np.bincount(where, values, rows * columns).reshape(rows, columns)
            sums = np.pad(sums, 1)
            sums = sums[:-2] + sums[1:-1] + sums[2:]
            sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
            return np.asarray(sums.reshape(-1)[where], np.float64)

        clear = 255 - self.alpha
        number, squares = around(np.ones_like(clear)), around(clear * clear)
        graded = np.stack([around(clear * off) for off in self.off.T], 1)
        constant = np.stack([around(off) for off in self.off.T], 1)
        as_background = _norm(graded) / squares
        as_colour, whole = _norm(constant) / number, around((self.off**2).sum(1))
        strength = np.minimum(
            _ramp(as_background, as_colour, *_BETTER), _ramp(as_background, whole, *_SHARE)
        )
        left = np.rint(graded / squares[:, None] * clear[:, None]).astype(np.int64)
        pure = np.clip(self.own - left, 0, 255)
        alpha = self.alpha[:, None]
        change = alpha * pure + (255 - alpha) * self.near - 255 * self.own
        unit = 255 * _WHOLE
        return strength, self.own + (strength[:, None] * change + unit // 2) // unit


def _norm(vectors: npt.NDArray[np.float64]) -> Any:
    return vectors[:, 0] ** 2 + vectors[:, 1] ** 2 + vectors[:, 2] ** 2


def _ramp(part: Any, whole: Any, low: float, high: float) -> _Ints:
    """Return 0 where part / whole is at most `low`, 256 from `high` on, and what is between."""
    steps = (part - low * whole) * _WHOLE / np.maximum((high - low) * whole, 1e-9)
    return np.asarray(np.clip(steps, 0, _WHOLE), np.int64)


def _glass(alpha: npt.NDArray[np.uint8], ys: _Ints, xs: _Ints, flat: int) -> npt.NDArray[np.bool_]:
    """Return which of some partly transparent pixels lie where alpha is flat, or beside that."""
    own, (height, width) = alpha[ys, xs].astype(np.int64), alpha.shape
    up, down = np.maximum(ys - 1, 0), np.minimum(ys + 1, height - 1)
    left, right = np.maximum(xs - 1, 0), np.minimum(xs + 1, width - 1)
    around = alpha[up, xs], alpha[down, xs], alpha[ys, left], alpha[ys, right]
    is_flat = np.max([np.abs(own - other) for other in around], 0) <= flat
    is_flat &= own >= _GLASS
    glass = np.zeros(alpha.shape, bool)
    glass[ys[is_flat], xs[is_flat]] = True
    for _ in range(_RIM if is_flat.any() else 0):
        wider = glass.copy()
        wider[1:] |= glass[:-1]
        wider[:-1] |= glass[1:]
        glass = wider.copy()
        glass[:, 1:] |= wider[:, :-1]
        glass[:, :-1] |= wider[:, 1:]
    return glass[ys, xs]


def _near(
    patch: npt.NDArray[np.uint8], ys: _Ints, xs: _Ints, cell: int
) -> tuple[_Ints, npt.NDArray[np.bool_]]:
    """Return the mean colour of what is opaque near some pixels, (n, 3), and whether any is.

    Boxes of 3, 5, 9, ... px (in large pictures of more) are tried, up to two cells away, until one
    holds something opaque.
    """
    means, found = np.zeros((len(ys), 3), np.int64), np.zeros(len(ys), bool)
    opaque = patch[..., 3] >= _OPAQUE
    if not len(ys) or not opaque.any():
        return means, found
    # Two sums fit into 64 bits: of any box each is below 2^32, so what overflows cancels out.
    red, green, blue = (patch[..., k].astype(np.uint64) * opaque for k in range(3))
    shift, low = np.uint64(32), np.uint64(2**32 - 1)
    tables = _table(red << shift | green), _table(blue << shift | opaque)
    rest, radius = np.arange(len(ys)), cell // _CELL
    while radius <= 2 * cell and len(rest):
        first, second = _in_boxes(tables, opaque.shape, ys[rest], xs[rest], radius)
        here = (second & low) > 0
        rest, first, second, missed = rest[here], first[here], second[here], rest[~here]
        sums = np.stack([first >> shift, first & low, second >> shift], 1).astype(np.int64)
        number = (second & low).astype(np.int64)[:, None]
        means[rest] = (2 * sums + number) // (2 * number)
        found[rest] = True
        rest, radius = missed, radius * 2
    return means, found


def _table(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the sums of everything above and to the left, modulo 2^64, row by row."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1), np.uint64)
    np.cumsum(values, 0, out=table[1:, 1:])
    np.cumsum(table[1:, 1:], 1, out=table[1:, 1:])
    return table.reshape(-1)


def _in_boxes(
    tables: Iterable[npt.NDArray[np.uint64]],
    shape: tuple[int, ...],
    ys: _Ints,
    xs: _Ints,
    radius: int,
) -> list[npt.NDArray[np.uint64]]:
    """Return the sums over the boxes around some pixels, of each table."""
    (height, width), step = shape, shape[1] + 1
    top, bottom = np.maximum(ys - radius, 0) * step, np.minimum(ys + radius + 1, height) * step
    left, right = np.maximum(xs - radius, 0), np.minimum(xs + radius + 1, width)
    corners = bottom + right, top + left, top + right, bottom + left
    return [
        table[corners[0]] + table[corners[1]] - table[corners[2]] - table[corners[3]]
        for table in tables
    ]
