"""Find the ground of a background in its depth map, so that objects can stand on it.

Under a pinhole the inverse depth of a plane is affine in the pixel, rho = a u + b v + c, so the
ground is fitted without a focal length; where rho is 0 lies the horizon. Coordinates are of pixel
centres: u = 0.5 is the middle of the leftmost column. The search is RANSAC (Fischler & Bolles
1981) with a prior on horizon and roll that acts on the choice among planes and never on the fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Depth = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
# How far values lie above (nearer than) those of a plane; infinite beyond the horizon.
Distance = Callable[[Floats, Floats], Floats]

# Tuned with the prior's constants below on 48 rendered scenes; measured on others.
_GRID = 80  # cells a side that the plane is searched on
_TRIPLES = 300
_LOWER_ROWS = 0.55  # share of the rows, from below, that triples are drawn from
_TOLERANCES = (0.03, 0.06, 0.10)  # of inverse depth; the first that explains enough is taken
_RELATIVE_TOLERANCE = 0.025  # of the range of a relative map
_ENOUGH = 0.08  # share of the picture at which a tolerance is good enough
_LEAST = 0.04  # below this share a plane is not a ground
_MOST_FARTHER = 0.35  # share of the inliers that may lie farther than the plane
_MOST_WALL = 2 / 3  # share of the inliers that a wall may explain as well
_MAX_ROLL_DEG = 20.0
_HORIZON_RANGE = (-1.2, 0.35)  # of the width, from the middle row, downwards
_PRIOR_WEIGHT = 0.10
_PRIOR_HORIZON, _PRIOR_HORIZON_SPREAD, _PRIOR_ROLL_DEG = -0.10, 0.18, 5.0
_MIN_PART = 0.01  # share of the picture below which a part of the region is dropped
_HORIZON_MARGIN = 0.02  # of the width, below the horizon, where nothing stands
_FRACTION_BITS = 32  # of a plane of inverse metres
_RELATIVE_FRACTION_BITS = 16  # of a plane of a relative map's values


@dataclass(frozen=True)
class Ground:
    """The ground of a background.

    `plane` are a, b, c as integers: rho(u, v) * 2^bits = a u + b v + c in 1/m (bits 32), or in the
    map's own unit of inverse depth (bits 16). `region` (H, W) is where a foot may stand. `support`
    is the share of the picture on the plane, `horizon_px` where the horizon crosses the middle
    column, in rows from the top, `roll_deg` its tilt.
    """

    plane: tuple[int, int, int]
    region: Mask
    support: float
    horizon_px: float
    roll_deg: float


class NoGround(Exception):
    """Why a background has no ground that can be trusted."""


def inverse_depth(depth: Depth, far: int, *, inverse: bool) -> Floats:
    """Return rho (H, W): 1/m, or a relative map's own value; NaN where unknown or capped.

    Args:
        depth: stored units, mm for a metric map, 0 = unknown.
        far: the largest value that a metric map holds, which stands for everything beyond.
        inverse: whether the map holds inverse depth.
    """
    values = depth.astype(np.float64)
    if inverse:
        return np.where(depth > 1, values, np.nan)
    with np.errstate(divide="ignore"):
        return np.where((depth > 0) & (depth < far), 1000.0 / values, np.nan)


def fit_ground(rho: Floats, *, relative: bool = False, painted: bool = False) -> Ground:
    """Fit the ground of a map of inverse depth.

    Args:
        rho: (H, W), square; see `inverse_depth`.
        relative: whether the values have no unit, so that tolerances are shares of their range.
        painted: whether a person says that what is known is ground, however small it is.

    Raises:
        NoGround: no plane explains enough of the picture; says why.
    """
    size = rho.shape[0]
    u, v, small = _shrunk(rho)
    known = np.isfinite(small)
    n_all = int(known.sum()) if painted else small.size  # of which a ground has a least share
    if known.sum() < 2 * _LEAST * n_all or not known.any():
        raise NoGround("hardly any depth is known")
    points = np.stack([u[known], v[known], np.ones(known.sum())])
    values = small[known]
    low, high = np.percentile(values, [2, 98])
    distance = _absolute(_RELATIVE_TOLERANCE * (high - low)) if relative else _share
    planes = _candidates(points, values, size)
    if not len(planes):
        raise NoGround("no plane in the lower half rises towards a horizon")
    cells = _Cells(points, values, size, small.size, distance)
    for tau in (1.0,) if relative else _TOLERANCES:
        plane = cells.best(planes, tau)
        n_inliers, n_farther = cells.counts(plane, tau)
        if n_inliers >= _ENOUGH * small.size:
            break
    if n_inliers < _LEAST * n_all:
        what = "what is painted" if painted else "the picture"
        raise NoGround(f"the best plane explains {100 * n_inliers / n_all:.0f} % of {what}")
    if n_farther >= _MOST_FARTHER * n_inliers:
        raise NoGround("the best plane is not the lowest surface: much is seen beyond it")
    if not painted and cells.on_a_wall(plane, tau) >= _MOST_WALL * n_inliers:
        raise NoGround("a wall explains the depth of the best plane as well")
    region = _region(_filled(rho, small), plane, distance, tau)
    if not region.any() and not painted:
        raise NoGround("nothing of the ground is wide enough to stand on")
    bits = _RELATIVE_FRACTION_BITS if relative else _FRACTION_BITS
    a, b, c = (round(float(value) * 2**bits) for value in plane)
    horizon, roll = _horizon(plane[None], size)
    return Ground(
        plane=(a, b, c),
        region=region,
        support=n_inliers / small.size,
        horizon_px=float(horizon[0]) * size + size / 2,
        roll_deg=float(roll[0]),
    )


def _shrunk(rho: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the centres u, v and the median of cells of a map; NaN where half is unknown."""
    size = rho.shape[0]
    side = max(1, size // _GRID)
    n = size // side
    cells = rho[: n * side, : n * side].reshape(n, side, n, side).swapaxes(1, 2).reshape(n, n, -1)
    ordered = np.sort(cells, axis=2)  # NaN come last
    n_known = np.isfinite(cells).sum(axis=2)
    last = np.maximum(n_known - 1, 0)[..., None]
    two = [np.take_along_axis(ordered, rank // 2, axis=2)[..., 0] for rank in (last, last + 1)]
    middle = (two[0] + two[1]) / 2
    small = np.where(2 * n_known >= side * side, middle, np.nan)
    centres = (np.arange(n) + 0.5) * side
    u, v = np.meshgrid(centres, centres)
    return u, v, small


def _filled(rho: Floats, small: Floats) -> Floats:
    """Return a map whose unknown pixels have the median of their cell, if most of it is known.

    The specks that a depth camera leaves are no holes in the floor.
    """
    size = rho.shape[0]
    side = size // len(small)
    # The last rows and columns may be of no cell.
    medians = np.full((size, size), np.nan)
    n = len(small) * side
    medians[:n, :n] = small.repeat(side, axis=0).repeat(side, axis=1)
    return np.where(np.isfinite(rho), rho, medians)


def _share(plane_values: Floats, values: Floats) -> Floats:
    """How far values lie above (nearer than) a plane, as a share of it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(plane_values > 0, values / plane_values - 1, np.inf)


def _absolute(unit: float) -> Distance:
    """Return the distance of a map without a unit, as a multiple of `unit`."""

    def distance(plane_values: Floats, values: Floats) -> Floats:
        return np.where(plane_values > 0, (values - plane_values) / unit, np.inf)

    return distance


def _candidates(points: Floats, values: Floats, size: int) -> Floats:
    """Return planes (n, 3) through random triples that a camera could see as its ground."""
    lower = np.flatnonzero(points[1] > (1 - _LOWER_ROWS) * size)
    if lower.size < 3:
        return np.empty((0, 3))
    words = np.random.Philox(key=size).random_raw(3 * _TRIPLES).reshape(_TRIPLES, 3)
    triples = lower[(words % np.uint64(lower.size)).astype(np.int64)]
    systems = points[:, triples].transpose(1, 2, 0)
    good = np.abs(np.linalg.det(systems)) > size
    planes = np.linalg.solve(systems[good], values[triples[good]][..., None])[..., 0]
    return planes[_plausible(planes, size)]


def _plausible(planes: Floats, size: int) -> Mask:
    horizon, roll = _horizon(planes, size)
    low, high = _HORIZON_RANGE
    return (
        (planes[:, 1] > 0) & (np.abs(roll) <= _MAX_ROLL_DEG) & (horizon >= low) & (horizon <= high)
    )


def _horizon(planes: Floats, size: int) -> tuple[Floats, Floats]:
    """Return the horizon in the middle column, in widths below the centre, and its roll."""
    a, b, c = planes.T
    with np.errstate(divide="ignore", invalid="ignore"):
        horizon = (-(a * size / 2 + c) / b - size / 2) / size
        return horizon, np.degrees(np.arctan(-a / b))


@dataclass(frozen=True)
class _Cells:
    """The known cells of a shrunk map: points (3, n) as u, v, 1, and their inverse depth (n,)."""

    points: Floats
    values: Floats
    size: int
    n_all: int
    distance: Distance

    def counts(self, plane: Floats, tau: float) -> tuple[int, int]:
        """Return how many cells lie on a plane, and how many farther than it."""
        apart = self.distance(plane @ self.points, self.values)
        return int((np.abs(apart) <= tau).sum()), int((apart < -2 * tau).sum())

    def best(self, planes: Floats, tau: float) -> Floats:
        """Return the plane of the best score, fitted again to the cells that lie on it.

        Nobody sees through the ground: cells farther than a plane speak against it, which tells
        the floor from a table.
        """
        counts = np.array([self.counts(plane, tau) for plane in planes])
        horizon, roll = _horizon(planes, self.size)
        z = ((horizon - _PRIOR_HORIZON) / _PRIOR_HORIZON_SPREAD) ** 2 + (
            roll / _PRIOR_ROLL_DEG
        ) ** 2
        scores = counts[:, 0] - counts[:, 1] - _PRIOR_WEIGHT * self.n_all * z / 4
        plane: Floats = planes[np.argmax(scores)]
        for _ in range(3):
            on_it = np.abs(self.distance(plane @ self.points, self.values)) <= tau
            if on_it.sum() < 3:
                break
            fitted = _least_squares(self.points[:, on_it], self.values[on_it])
            if not _plausible(fitted[None], self.size)[0]:
                break
            plane = fitted
        return plane

    def on_a_wall(self, plane: Floats, tau: float) -> int:
        """Return how many of the cells on a plane one upright wall explains as well.

        The inverse depth of a wall does not change down the picture: rho = a u + c. Where it
        explains most of a plane, whether that rises towards a horizon is not known.
        """
        on_it = np.abs(self.distance(plane @ self.points, self.values)) <= tau
        points, values = self.points[:, on_it][[0, 2]], self.values[on_it]
        near = np.ones(len(values), np.bool_)
        for _ in range(3):
            if near.sum() < 3:
                break
            wall = _least_squares(points[:, near], values[near])
            near = np.abs(self.distance(wall @ points, values)) <= tau
        return int(near.sum())


def _least_squares(points: Floats, values: Floats) -> Floats:
    """Return the coefficients that give values (n,) from points (k, n), by shares of them."""
    weights = 1 / values
    fitted: Floats = np.linalg.lstsq((points * weights).T, values * weights, rcond=None)[0]
    return fitted


def _region(rho: Floats, plane: Floats, distance: Distance, tau: float) -> Mask:
    """Return where a foot may stand: near the plane, in parts that are wide enough."""
    size = rho.shape[0]
    centres = np.arange(size) + 0.5
    on_plane = plane[0] * centres[None, :] + plane[1] * centres[:, None] + plane[2]
    near = np.abs(distance(on_plane, rho)) <= tau
    near &= on_plane > plane[1] * _HORIZON_MARGIN * size  # below the horizon by so much
    image = Image.fromarray(near.view(np.uint8) * np.uint8(255))
    image = image.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.MaxFilter(3))
    kept = _large_parts(np.asarray(image) > 0)
    # Five on a side: two pixels off every edge; outside of the picture is not an edge.
    image = Image.fromarray(kept.view(np.uint8) * np.uint8(255)).filter(ImageFilter.MinFilter(5))
    return np.asarray(image) > 0


def _large_parts(mask: Mask) -> Mask:
    """Return a mask without its parts (4-connected) that cover less than one percent."""
    labels = label_parts(mask)
    sizes = np.bincount(labels.ravel())
    large = sizes >= _MIN_PART * mask.size
    large[0] = False
    return large[labels]


def label_parts(mask: Mask) -> npt.NDArray[np.int64]:
    """Number the 4-connected parts of a mask from 1; 0 is outside of it.

    Runs of pixels in a row are joined by union-find, so the cost goes with their number.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    stops = np.nonzero(change == -1)[1]
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first = np.searchsorted(rows, np.arange(height + 1)).tolist()
    starts_, stops_ = starts.tolist(), stops.tolist()
    for row in range(1, height):
        above, here = first[row - 1], first[row]
        while above < first[row] and here < first[row + 1]:
            if starts_[above] < stops_[here] and starts_[here] < stops_[above]:
                a, b = root(above), root(here)
                parent[max(a, b)] = min(a, b)
            if stops_[above] <= stops_[here]:
                above += 1
            else:
                here += 1
    roots = np.array([root(i) for i in range(len(rows))], np.int64)
    numbers = np.unique(roots, return_inverse=True)[1] + 1 if len(roots) else roots
    flat = np.zeros(height * (width + 1), np.int64)
    offsets = rows * (width + 1)
    np.add.at(flat, offsets + starts, numbers)
    np.add.at(flat, offsets + stops, -numbers)
    return np.cumsum(flat).reshape(height, width + 1)[:, :width]
