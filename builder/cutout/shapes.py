"""Shapes in masks: grown, shrunk, opened, filled, told apart; colours carried outward.

Masks are (h, w) bool. Distances are those of a chessboard: a step goes to any of 8 neighbours. What
lies outside of the picture is like the pixel at its edge, so that a frame cuts nothing off.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from builder.sources import label_parts

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
_Ints = npt.NDArray[np.int64]

_AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def grown(mask: Mask, steps: int = 1) -> Mask:
    """Return a mask with everything up to so many px from it."""
    for axis in (0, 1):
        # Doubled while that is possible: a reach of n takes log n passes.
        reach, mask = 0, mask.copy()
        while reach < steps:
            step = min(max(reach, 1), steps - reach)
            before, after = _sides(axis, step)
            wider = mask.copy()
            wider[after] |= mask[before]
            wider[before] |= mask[after]
            mask, reach = wider, reach + step
    return mask


def smoothed(values: Floats) -> Floats:
    """Return the means over 3 x 3 px."""
    padded = np.pad(values, 1, mode="edge")
    rows = padded[:-2] + padded[1:-1]
    rows += padded[2:]
    means: Floats = rows[:, :-2] + rows[:, 1:-1]
    means += rows[:, 2:]
    means *= 1 / 9
    return means


def _sides(axis: int, step: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    whole = slice(None)
    before, after = slice(None, -step), slice(step, None)
    return ((before, whole), (after, whole)) if axis == 0 else ((whole, before), (whole, after))


def shrunk(mask: Mask, steps: int = 1) -> Mask:
    """Return the pixels of a mask that are more than so many px from anything else."""
    return ~grown(~mask, steps)


def opened(mask: Mask, steps: int = 1) -> Mask:
    """Return a mask without what is at most twice so many px thin."""
    return grown(shrunk(mask, steps), steps)


def parts(mask: Mask) -> tuple[_Ints, _Ints]:
    """Number the 4-connected parts of a mask from 1; return them and their areas, [0] = outside."""
    labels = label_parts(mask)
    return labels, np.bincount(labels.reshape(-1))


def touching(labels: _Ints, where: Mask) -> Mask:
    """Return the parts, of those numbered, that have a pixel in a mask."""
    hit = np.zeros(int(labels.max()) + 1, bool)
    hit[labels[where]] = True
    hit[0] = False
    return hit[labels]


def frame(shape: tuple[int, int]) -> Mask:
    """Return the outermost pixels of a picture."""
    mask = np.ones(shape, bool)
    mask[1:-1, 1:-1] = False
    return mask


def holes(mask: Mask) -> Mask:
    """Return what a mask encloses: everything else that no way leads to from the frame."""
    labels, _ = parts(~mask)
    return ~mask & ~touching(labels, frame(mask.shape) & ~mask)


def carried(colour: Floats, known: Mask, wanted: Mask, steps: int) -> tuple[_Ints, _Ints, Floats]:
    """Return a colour for pixels near others: the mean of their neighbours', step by step.

    Args:
        colour: (h, w, 3).
        known: the pixels whose colour counts.
        wanted: the pixels, none of them known, that are to have one.
        steps: how far colours are carried, in px.

    Returns:
        The rows and columns of the wanted pixels that have one, (n,) each, and it, (n, 3).
    """
    height, width = known.shape
    pitch = width + 2  # with a margin of 1 px all around
    flat = np.zeros(((height + 2) * pitch, 3), np.float32)
    has = np.zeros(len(flat), np.uint8)
    ys, xs = np.nonzero(grown(wanted) & known)
    near = (ys + 1) * pitch + xs + 1
    flat[near], has[near] = colour[ys, xs], 1
    offsets = [dy * pitch + dx for dy, dx in _AROUND]
    ys, xs = np.nonzero(wanted)
    waiting = whole = (ys + 1) * pitch + xs + 1
    for _ in range(steps):
        around = np.stack([has.take(waiting + offset) for offset in offsets])
        number = around.sum(0, dtype=np.float32)
        found = number > 0
        here = waiting[found]
        if not len(here):
            break
        total = np.zeros((len(here), 3), np.float32)
        for offset in offsets:
            total += flat.take(here + offset, axis=0)  # 0 where there is no colour
        flat[here] = total / number[found, None]
        has[here] = 1
        waiting = waiting[~found]
    reached = has[whole] > 0
    return ys[reached], xs[reached], flat[whole[reached]]
