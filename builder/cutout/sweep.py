"""The sweep behind a studio picture: its colour at every pixel, fitted to where it is seen.

Light falls off smoothly over paper or cloth of one colour, so each channel is a quadratic in x and
y, fitted to the border of the picture in rounds that leave out what is off by more than three
times the spread: the object's feet, a lamp, a corner of the room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from builder.cutout.shapes import Floats, Mask

Pixels = npt.NDArray[np.uint8]

_BORDER_SHARE = 0.02  # of each side
_MOST_SAMPLES = 8_000  # of a fit; six numbers a channel need no more
_ROUNDS = 8
_SPREADS, _SIGMA = 3.0, 1.4826  # the second makes the MAD of a normal distribution its sigma
_LEAST_SPREAD = 0.7  # of 8-bit colours: rounding alone
_TINY = 1e-6
_VISIBLE = 12.0  # of one channel; what is nearer belongs to the sweep, what is twice as far not


@dataclass(frozen=True)
class Sweep:
    """The colour of a sweep, a quadratic for each channel, and how well it explains the border.

    `terms` (6, 3) are for 1, x, y, xx, xy, yy, where x and y go from -1 to 1 over the picture;
    `spread` is the spread of colours around it, in one channel; `mad` the median distance of the
    border's colours from it; `explained` the share of the border that it explains, and of the
    border without the side where it explains least, where an object may be cut off.
    """

    terms: npt.NDArray[np.float64]
    spread: float
    mad: float
    explained: tuple[float, float]

    def rows(
        self, shape: tuple[int, int], top: int, stop: int, left: int = 0, end: int | None = None
    ) -> Floats:
        """Return its colour in some rows and columns of a picture of a shape, (h, w, 3)."""
        height, width = shape
        y = np.linspace(-1, 1, height)[top:stop, None, None]
        x = np.linspace(-1, 1, width)[None, left:end, None]
        one, of_x, of_y, of_xx, of_xy, of_yy = self.terms
        colour: Floats = (of_x + of_xy * y).astype(np.float32) * x.astype(np.float32)
        colour += (of_xx * x * x).astype(np.float32)
        colour += (one + of_y * y + of_yy * y * y).astype(np.float32)
        return colour


def fit_border(small: Floats) -> Sweep:
    """Fit a sweep to the border of a picture, (h, w, 3) float32."""
    height, width = small.shape[:2]
    deep = max(2, round(_BORDER_SHARE * max(height, width)))
    border = np.ones((height, width), bool)
    border[deep:-deep, deep:-deep] = False
    return _fitted(small, border, border)


def fit_outside(small: Floats, outside: Mask, border: Sweep) -> Sweep:
    """Fit a sweep to all that is seen of it; what it explains of the border stays as it was."""
    if np.count_nonzero(outside) < 100:
        return border
    found = _fitted(small, outside, None)
    return replace(found, explained=border.explained, mad=border.mad)


def _fitted(small: Floats, where: Mask, border: Mask | None) -> Sweep:
    height, width = where.shape
    ys, xs = np.nonzero(where)
    step = -(-len(ys) // _MOST_SAMPLES)
    ys, xs = ys[step // 2 :: step], xs[step // 2 :: step]
    y, x = ys * (2 / max(1, height - 1)) - 1, xs * (2 / max(1, width - 1)) - 1
    basis, colours = _basis(y, x), small[ys, xs].astype(np.float64)
    terms: npt.NDArray[np.float64] = np.zeros((6, 3))
    terms[0] = np.median(colours, 0)
    spread = np.inf
    for _ in range(_ROUNDS):
        off = np.abs(colours - basis @ terms)
        before, spread = spread, max(_SIGMA * float(np.median(off)), _LEAST_SPREAD)
        fits = np.all(off <= _SPREADS * spread, 1)
        if fits.sum() < basis.shape[1] * 4 or spread > before * 0.999:
            break
        kept = basis[fits]
        # A little of the identity: where all samples lie on one line, any terms do.
        square = kept.T @ kept + _TINY * np.eye(6)
        terms = np.linalg.solve(square, kept.T @ colours[fits]).astype(np.float64)
    off = np.abs(colours - basis @ terms)
    mad = float(np.median(off))
    spread = max(_SIGMA * mad, _LEAST_SPREAD)
    explained = (1.0, 1.0)
    if border is not None:
        bound = min(max(2 * _SPREADS * spread, _VISIBLE), 2 * _VISIBLE)
        explains = np.all(off <= bound, 1)
        sides = np.argmin([xs, width - 1 - xs, ys, height - 1 - ys], 0)
        worst = int(np.argmin([explains[sides == side].mean() for side in range(4)]))
        explained = (float(explains.mean()), float(explains[sides != worst].mean()))
    return Sweep(terms, spread, mad, explained)


def _basis(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)
