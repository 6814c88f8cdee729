"""The shapes of masks as other formats write them: runs down the columns, and outlines."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]

# Corners of outlines lie within the outermost pixels, this far from their outer edges. Whoever cuts
# the digits off, as Ultralytics does before it fills with OpenCV, stands on these very pixels.
_INSET = 0.01

_RIGHT, _DOWN, _LEFT, _UP = range(4)
# Which way the mask lies as an outline is followed, x then y: always to the right of the way.
_INWARD = ((0, 1), (-1, 0), (0, -1), (1, 0))
_SEAM = -1  # the way from one outline to another


class Runs(NamedTuple):
    """A mask as COCO counts it: pixels off, on, off, ..., column after column; its box and area."""

    counts: list[int]
    box: Box
    area: int


def runs_of(part: Mask, left: int, top: int, height: int, width: int) -> Runs:
    """Return the runs of a mask.

    Args:
        part: the mask, (h, w) bool, cut out around all of its pixels; not empty.
        left: column of the picture that the part begins at.
        top: row of the picture that the part begins at.
        height: of the picture.
        width: of the picture.
    """
    h, w = part.shape
    columns = np.zeros((w, h + 2), dtype=np.bool_)  # off before and behind every column
    columns[:, 1:-1] = part.T
    flat = columns.ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    column, row = np.divmod(edges, h + 2)
    starts, stops = row[::2], row[1::2]
    first, last = int(column[0]), int(column[-1])
    upper, lower = int(starts.min()), int(stops.max())
    where = (column + left) * height + row + top
    if h == height:  # a run may go on at the top of the next column
        whole = np.flatnonzero(where[1:-1:2] == where[2::2]) * 2
        where = np.delete(where, np.concatenate([whole + 1, whole + 2]))
    lengths = where.copy()
    lengths[1:] -= where[:-1]
    counts = lengths.tolist()
    if rest := height * width - int(where[-1]):
        counts.append(rest)
    box = (left + first, top + upper, last - first + 1, lower - upper)
    return Runs(counts, box, int((stops - starts).sum()))


class _Point(NamedTuple):
    """A corner of an outline: where it lies, its pixel, its lattice point, the way on from it."""

    x: float
    y: float
    column: int
    row: int
    lattice_x: int
    lattice_y: float
    way: int


class Outline(NamedTuple):
    """One polygon around a whole mask, (N, 2) x and y in px, and how many pixels it adds.

    Filled by OpenCV at the mask's own size, with digits cut off, it covers the mask and those.
    """

    points: npt.NDArray[np.float64]
    added: int


def outline_of(part: Mask, left: int, top: int) -> Outline:
    """Return one polygon around a mask; seams join its holes and its parts to it.

    A seam to a hole runs through the mask and costs nothing. One to another part crosses pixels
    that are not of the mask, which a reader fills.

    Args:
        part: the mask, (h, w) bool, cut out around all of its pixels; not empty.
        left: column of the picture that the part begins at.
        top: row of the picture that the part begins at.
    """
    polygons: list[list[_Point]] = []
    for loop in sorted(_loops(part), key=lambda loop: min(p.lattice_x for p in loop)):
        if _is_hole(loop):
            _join_hole(part, polygons, loop)
        else:
            polygons.append(loop)
    polygon, added = _joined(part, polygons)
    points = np.array([(left + p.x, top + p.y) for p in polygon], dtype=np.float64)
    return Outline(points, added)


def _loops(part: Mask) -> list[list[_Point]]:
    """Return every border of a mask as its corners, with the mask to the right of the way.

    Pixels that touch at a corner only are not joined.
    """
    h, w = part.shape
    padded = np.zeros((h + 2, w + 2), dtype=np.bool_)
    padded[1:-1, 1:-1] = part
    inside, stride = padded[1:, 1:], w + 1  # a lattice point (x, y) has the number y * stride + x
    across, down = inside != padded[:-1, 1:], inside != padded[1:, :-1]
    ways = (
        set(np.flatnonzero(across & inside).tolist()),
        set(np.flatnonzero(down & ~inside).tolist()),
        set((np.flatnonzero(across & ~inside) + 1).tolist()),
        set((np.flatnonzero(down & inside) + stride).tolist()),
    )
    steps = (1, stride, -1, -stride)
    loops = []
    for start in sorted(ways[_RIGHT]):
        if start not in ways[_RIGHT]:
            continue
        corners, at, way = [], start, _RIGHT
        while True:
            ways[way].discard(at)
            at += steps[way]
            if at == start and _RIGHT in _choices(way) and not _goes_on(ways, at, way):
                corners.append((at, way, _RIGHT))
                break
            following = next(turn for turn in _choices(way) if at in ways[turn])
            if following != way:
                corners.append((at, way, following))
            way = following
        loops.append([_corner(at % stride, at // stride, came, goes) for at, came, goes in corners])
    return loops


def _choices(way: int) -> tuple[int, int, int]:
    """Return the ways on in the order they are taken: right first, which stays with one pixel."""
    return (way + 1) % 4, way, (way + 3) % 4


def _goes_on(ways: tuple[set[int], ...], at: int, way: int) -> bool:
    """Whether a border passes the point it began at, where two pixels touch, before it ends."""
    for turn in _choices(way):
        if turn == _RIGHT:
            return False
        if at in ways[turn]:
            return True
    return False


def _corner(x: int, y: int, came: int, goes: int) -> _Point:
    inward = [_INWARD[came][axis] + _INWARD[goes][axis] for axis in (0, 1)]
    column, row = (at if side > 0 else at - 1 for at, side in zip((x, y), inward, strict=True))
    return _Point(x + _INSET * inward[0], y + _INSET * inward[1], column, row, x, y, goes)


def _is_hole(loop: list[_Point]) -> bool:
    """Whether a border goes round counter-clockwise, as seen with y downwards."""
    twice = 0.0
    for one, two in zip(loop, [*loop[1:], loop[0]], strict=True):
        twice += one.lattice_x * two.lattice_y - two.lattice_x * one.lattice_y
    return twice < 0


def _join_hole(part: Mask, polygons: list[list[_Point]], hole: list[_Point]) -> None:
    """Join a hole to the border to the left of its left upper corner, through the mask alone."""
    n = min(
        (k for k, p in enumerate(hole) if p.way == _DOWN),
        key=lambda k: (hole[k].lattice_x, hole[k].lattice_y),
    )
    row, column = hole[n].row, hole[n].column
    off = np.flatnonzero(~part[row, : column + 1])
    start = int(off[-1]) + 1 if off.size else 0
    middle = row + 0.5
    for polygon in polygons:
        for k, point in enumerate(polygon):
            end = polygon[(k + 1) % len(polygon)]
            if (
                point.way == _UP
                and point.lattice_x == start
                and end.lattice_y <= middle <= point.lattice_y
            ):
                leaves = _Point(start + _INSET, middle, start, row, start, middle, _SEAM)
                around = [*hole[n:], *hole[:n], hole[n]._replace(way=_SEAM)]
                polygon[k + 1 : k + 1] = [leaves, *around, leaves._replace(way=_UP)]
                return
    raise AssertionError("every hole lies to the right of another border")


def _joined(part: Mask, polygons: list[list[_Point]]) -> tuple[list[_Point], int]:
    """Join polygons by seams between their nearest corners; return the pixels these add."""
    whole, *rest = sorted(polygons, key=len, reverse=True)
    added: set[tuple[int, int]] = set()
    while rest:
        mine = np.array([(p.column, p.row) for p in whole])
        found = []
        for number, polygon in enumerate(rest):
            theirs = np.array([(p.column, p.row) for p in polygon])
            apart = np.abs(mine[:, None] - theirs[None]).max(axis=2)
            nearest = int(apart.argmin())
            found.append((int(apart.flat[nearest]), number, *divmod(nearest, len(polygon))))
        _, number, k, n = min(found)
        polygon, here = rest.pop(number), whole[k]
        there = polygon[n]
        bend = _bend((here.column, here.row), (there.column, there.row))
        for start, end in (((here.column, here.row), bend), (bend, (there.column, there.row))):
            added |= {(x, y) for x, y in _pixels(start, end) if not part[y, x]}
        via = _Point(bend[0] + 0.5, bend[1] + 0.5, *bend, -1, -1, _SEAM)
        around = [*polygon[n:], *polygon[:n], there._replace(way=_SEAM)]
        whole[k : k + 1] = [here._replace(way=_SEAM), via, *around, via, here]
    return whole, len(added)


def _bend(start: tuple[int, int], end: tuple[int, int]) -> tuple[int, int]:
    """Return where a way goes straight on that begins diagonally."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    diagonal = min(abs(dx), abs(dy))
    return start[0] + diagonal * int(np.sign(dx)), start[1] + diagonal * int(np.sign(dy))


def _pixels(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the pixels of a way that is straight or diagonal, both ends with it."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    return [
        (start[0] + k * int(np.sign(dx)), start[1] + k * int(np.sign(dy)))
        for k in range(max(abs(dx), abs(dy)) + 1)
    ]
