"""Properties of composition that hold for every foreground, background and place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from builder.record.composition import cut_out, paste
from tests.strategies import foregrounds, placements

Case = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int, int]


@given(placements())
def test_outside_the_rectangle_nothing_changes(case: Case) -> None:
    background, foreground, left, top = case
    got = paste(background, cut_out(foreground), left, top)
    outside = np.ones(background.shape[:2], bool)
    outside[top : top + foreground.shape[0], left : left + foreground.shape[1]] = False
    np.testing.assert_array_equal(got.fg_bg[outside], background[outside])
    assert not got.mask[outside].any()


@given(placements())
def test_clear_pixels_keep_the_background_and_opaque_ones_the_foreground(case: Case) -> None:
    background, foreground, left, top = case
    rows, columns = slice(top, top + foreground.shape[0]), slice(left, left + foreground.shape[1])
    got = paste(background, cut_out(foreground), left, top).fg_bg[rows, columns]
    clear, opaque = foreground[..., 3] == 0, foreground[..., 3] == 255
    np.testing.assert_array_equal(got[clear], background[rows, columns][clear])
    np.testing.assert_array_equal(got[opaque], foreground[opaque][:, :3])


@given(placements())
def test_every_pixel_is_the_rounded_blend(case: Case) -> None:
    background, foreground, left, top = case
    got = paste(background, cut_out(foreground), left, top).fg_bg
    wanted = background.astype(np.int64)
    rows, columns = slice(top, top + foreground.shape[0]), slice(left, left + foreground.shape[1])
    alpha = foreground[..., 3:].astype(np.int64)
    blend = foreground[..., :3] * alpha + wanted[rows, columns] * (255 - alpha)
    wanted[rows, columns] = (2 * blend + 255) // 510
    np.testing.assert_array_equal(got, wanted)


@given(placements(), st.booleans())
def test_mask_box_and_coverage_equal_a_search_pixel_by_pixel(case: Case, flipped: bool) -> None:
    background, foreground, left, top = case
    got = paste(background, cut_out(foreground, flipped), left, top)
    inside = set()
    height, width = foreground.shape[:2]
    for y in range(height):
        for x in range(width):
            if foreground[y, width - 1 - x if flipped else x, 3] >= 127.5:
                inside.add((left + x, top + y))
    found = {(int(x), int(y)) for y, x in np.argwhere(got.mask)}
    assert found == inside
    assert set(np.unique(got.mask).tolist()) <= {0, 255}
    xs, ys = zip(*inside, strict=True)
    assert got.bbox == (min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1)
    assert got.coverage == len(inside) / (background.shape[0] * background.shape[1])
    assert all(type(number) is int for number in got.bbox)


@given(foregrounds())
def test_flipping_twice_is_no_flip(foreground: npt.NDArray[np.uint8]) -> None:
    canvas = np.full((24, 24, 3), 90, np.uint8)
    once = paste(canvas, cut_out(foreground), 0, 0)
    twice = paste(canvas, cut_out(foreground[:, ::-1], flipped=True), 0, 0)
    np.testing.assert_array_equal(once.fg_bg, twice.fg_bg)
    np.testing.assert_array_equal(once.mask, twice.mask)
    assert (once.bbox, once.coverage) == (twice.bbox, twice.coverage)


@given(placements())
def test_flipping_everything_mirrors_the_whole_composite(case: Case) -> None:
    background, foreground, left, top = case
    right = background.shape[1] - foreground.shape[1] - left
    plain = paste(background, cut_out(foreground), left, top)
    mirrored = paste(background[:, ::-1], cut_out(foreground, flipped=True), right, top)
    np.testing.assert_array_equal(mirrored.fg_bg, plain.fg_bg[:, ::-1])
    np.testing.assert_array_equal(mirrored.mask, plain.mask[:, ::-1])
    x, y, width, height = plain.bbox
    assert mirrored.bbox == (background.shape[1] - x - width, y, width, height)


@given(placements())
def test_a_blend_lies_between_its_two_colours(case: Case) -> None:
    background, foreground, left, top = case
    rows, columns = slice(top, top + foreground.shape[0]), slice(left, left + foreground.shape[1])
    got = paste(background, cut_out(foreground), left, top).fg_bg[rows, columns]
    two = np.stack([background[rows, columns], foreground[..., :3]])
    assert (got >= two.min(0)).all()
    assert (got <= two.max(0)).all()
