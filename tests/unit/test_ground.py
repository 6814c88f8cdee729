"""ground: the plane, its horizon and where feet may stand, on maps whose ground is known."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from builder.release.ground_sheet import wrapped
from builder.sources.ground import NoGround, fit_ground, inverse_depth, label_parts

SIZE = 160
FAR = 10_000


def floor(horizon: float, slope: float, roll: float = 0.0, size: int = SIZE) -> np.ndarray:
    """Inverse depth (1/m) of a floor: 0 at the horizon row, `slope` more per row below it."""
    u, v = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5)
    return slope * ((v - horizon) + roll * (u - size / 2))


def in_mm(rho: np.ndarray) -> np.ndarray:
    """Depth in mm as it is stored, capped at FAR."""
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.where(rho > 0, 1000 / rho, np.inf)
    return np.clip(depth, 100, FAR).round().astype(np.uint16)


def room(horizon: float = 60, slope: float = 0.008) -> tuple[np.ndarray, np.ndarray]:
    """A floor that meets a wall 4 m away, in mm; and where the floor is."""
    rho = np.maximum(floor(horizon, slope), 1 / 4)
    return in_mm(rho), floor(horizon, slope) > 1 / 4


@given(
    st.floats(0, SIZE * 0.6),
    st.floats(0.003, 0.02),
    st.floats(-0.2, 0.2),
)
def test_a_plain_floor_is_found_to_the_pixel(horizon: float, slope: float, roll: float) -> None:
    depth = in_mm(floor(horizon, slope, roll))
    ground = fit_ground(inverse_depth(depth, FAR, inverse=False))
    assert abs(ground.horizon_px - horizon) < 0.01 * SIZE
    assert abs(ground.roll_deg + np.degrees(np.arctan(roll))) < 1
    a, b, c = (value / 2**32 for value in ground.plane)
    due = slope * roll, slope, -slope * (horizon + roll * SIZE / 2)
    assert np.allclose((a, b, c), due, rtol=0.02, atol=1e-3)


def test_the_region_is_the_floor_and_not_the_wall() -> None:
    depth, on_floor = room()
    ground = fit_ground(inverse_depth(depth, FAR, inverse=False))
    assert not (ground.region & ~on_floor).any()
    assert ground.region.sum() > 0.85 * on_floor.sum()
    assert ground.support == pytest.approx(on_floor.mean(), abs=0.05)


def test_the_floor_is_found_below_a_larger_table() -> None:
    depth, on_floor = room()
    table = in_mm(floor(60, 0.016))  # half as far below the eye, so seen twice as near
    on_table = np.zeros_like(on_floor)
    on_table[110:150, 5:120] = True
    ground = fit_ground(inverse_depth(np.where(on_table, table, depth), FAR, inverse=False))
    assert not (ground.region & on_table).any()
    assert ground.plane[1] / 2**32 == pytest.approx(0.008, rel=0.02)


def test_unknown_pixels_take_no_part() -> None:
    depth, _ = room()
    depth[120:, 40:90] = 0
    ground = fit_ground(inverse_depth(depth, FAR, inverse=False))
    assert not ground.region[120:, 40:90].any()
    assert ground.horizon_px == pytest.approx(60, abs=1)


def test_a_relative_map_has_its_ground_without_a_unit() -> None:
    depth, on_floor = room()
    inverse = np.clip(20_000 * 1000 / depth / 4, 0, 65_535).round().astype(np.uint16)
    ground = fit_ground(inverse_depth(inverse, 65_535, inverse=True), relative=True)
    assert (ground.region & on_floor).sum() > 0.97 * ground.region.sum()
    assert ground.horizon_px == pytest.approx(60, abs=3)


@pytest.mark.parametrize(
    ("depth", "why"),
    [
        (np.full((SIZE, SIZE), 3000), "no plane in the lower half rises towards a horizon"),
        (np.zeros((SIZE, SIZE)), "hardly any depth is known"),
        (np.full((SIZE, SIZE), FAR), "hardly any depth is known"),
    ],
)
def test_what_has_no_ground_says_why(depth: np.ndarray, why: str) -> None:
    with pytest.raises(NoGround, match=why):
        fit_ground(inverse_depth(depth.astype(np.uint16), FAR, inverse=False))


def test_a_shelf_that_much_is_seen_beyond_is_not_the_ground() -> None:
    rho = np.full((SIZE, SIZE), 1 / 9)
    shelf = floor(60, 0.012)
    rho[100:130] = shelf[100:130]  # below it, the distance goes on
    with pytest.raises(NoGround, match="much is seen beyond it"):
        fit_ground(inverse_depth(in_mm(rho), FAR, inverse=False))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_parts_are_those_of_a_flood_fill(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.6
    labels = label_parts(mask)
    assert ((labels > 0) == mask).all()
    seen = np.zeros_like(mask)
    n_parts = 0
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        n_parts += 1
        part, queue = set(), deque([start])
        while queue:
            y, x = queue.popleft()
            if 0 <= y < height and 0 <= x < width and mask[y, x] and not seen[y, x]:
                seen[y, x] = True
                part.add((y, x))
                queue.extend([(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)])
        assert {labels[at] for at in part} == {labels[start]}
        assert (labels == labels[start]).sum() == len(part)
    assert len(np.unique(labels[mask])) == n_parts


def test_a_painted_ground_may_be_small() -> None:
    depth, _ = room()
    rho = inverse_depth(depth, FAR, inverse=False)
    painted = np.zeros(depth.shape, bool)
    painted[120:150, 60:90] = True  # 3.5 % of the picture
    rho[~painted] = np.nan
    with pytest.raises(NoGround, match="hardly any depth is known"):
        fit_ground(rho)
    assert fit_ground(rho, painted=True).horizon_px == pytest.approx(60, abs=1)
    with pytest.raises(NoGround, match="hardly any depth is known"):
        fit_ground(np.full_like(rho, np.nan), painted=True)


def test_a_wall_that_bulges_is_not_a_ground() -> None:
    row = (np.arange(SIZE) + 0.5)[:, None] / SIZE
    rho = np.repeat(0.25 * (1 + 0.1 * np.sin(2 * np.pi * row / 0.8 + 4.5)), SIZE, axis=1)
    with pytest.raises(NoGround, match="a wall explains"):
        fit_ground(inverse_depth(in_mm(rho), FAR, inverse=False))


def test_specks_without_depth_are_no_holes_in_the_floor() -> None:
    depth, on_floor = room()
    whole = fit_ground(inverse_depth(depth, FAR, inverse=False)).region
    specks = np.random.default_rng(0).random(depth.shape) < 0.1
    ground = fit_ground(inverse_depth(np.where(specks, 0, depth), FAR, inverse=False))
    assert (ground.region & on_floor).sum() == ground.region.sum()
    assert ground.region.sum() > 0.9 * whole.sum()


def test_the_sheet_says_the_whole_reason() -> None:
    font, text = ImageFont.load_default(13), "no ground: much is seen beyond it; estimated depth"
    lines = wrapped(text, font, 150)
    assert " ".join(lines) == text
    assert all(font.getlength(line) <= 150 for line in lines)
