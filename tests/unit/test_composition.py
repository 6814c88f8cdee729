"""composition: blend, mask, box and hash against worked examples and other libraries."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from PIL import Image

from builder.record.composition import Composite, cut_out, paste, pixel_hash
from tests.pictures import blob, scene

Pixels = npt.NDArray[np.uint8]


def pixel(value: int, alpha: int, background: int) -> int:
    """Blend one pixel over another."""
    foreground = np.array([[[value, value, value, alpha], [0, 0, 0, 255]]], np.uint8)
    canvas = np.full((1, 2, 3), background, np.uint8)
    return int(paste(canvas, cut_out(foreground), 0, 0).fg_bg[0, 0, 0])


def example() -> tuple[Pixels, Pixels]:
    return np.asarray(scene(1, 64, 48)), np.asarray(blob(2, 20, 14))


def test_worked_examples_of_the_blend() -> None:
    assert pixel(200, 0, 17) == 17
    assert pixel(200, 255, 17) == 200
    assert pixel(255, 128, 0) == 128
    assert pixel(0, 128, 255) == 127
    assert pixel(100, 51, 200) == 180  # a fifth
    assert pixel(1, 127, 0) == 0  # 0.498
    assert pixel(1, 128, 0) == 1  # 0.502


def test_the_blend_is_the_exact_rational_rounded_for_every_combination() -> None:
    """All 2^24 of (foreground, background, alpha), against whole-number division."""
    colours = np.arange(256, dtype=np.uint8)
    background = np.repeat(colours[:, None, None], 256, 1).repeat(3, 2)  # (B, F, 3)
    background[:, :, 1] = background[:, :, 0][::-1]
    wide = background.astype(np.uint32)
    foreground = np.empty((256, 256, 4), np.uint8)
    foreground[..., :3] = colours[None, :, None]
    carrier = np.array([0, 0, 0, 255], np.uint8)
    canvas = np.zeros((257, 256, 3), np.uint8)
    canvas[:256] = background
    for alpha in range(256):
        foreground[..., 3] = alpha
        extended = np.concatenate([foreground, np.broadcast_to(carrier, (1, 256, 4))])
        got = paste(canvas, cut_out(extended), 0, 0).fg_bg[:256]
        exact = foreground[..., :3].astype(np.uint32) * alpha + wide * (255 - alpha)
        wanted = (2 * exact + 255) // 510
        assert (got == wanted).all()


def test_the_composite_equals_a_float_reference() -> None:
    background, foreground = example()
    got = paste(background, cut_out(foreground), 5, 9)
    share = foreground[..., 3:].astype(np.float64) / 255
    wanted = background.astype(np.float64)
    wanted[9:23, 5:25] = foreground[..., :3] * share + wanted[9:23, 5:25] * (1 - share)
    np.testing.assert_array_equal(got.fg_bg, np.floor(wanted + 0.5).astype(np.uint8))


def test_the_composite_is_within_one_level_of_pillow_and_opencv() -> None:
    background, foreground = example()
    got = paste(background, cut_out(foreground), 5, 9).fg_bg.astype(int)
    pillow = Image.fromarray(background)
    image = Image.fromarray(foreground)
    pillow.paste(image.convert("RGB"), (5, 9), image.getchannel("A"))
    assert np.abs(np.asarray(pillow).astype(int) - got).max() <= 1
    weight = foreground[..., 3].astype(np.float32) / 255
    part = cv2.blendLinear(
        np.ascontiguousarray(foreground[..., :3]), background[9:23, 5:25].copy(), weight, 1 - weight
    )
    assert np.abs(part.astype(int) - got[9:23, 5:25]).max() <= 1


def test_the_mask_is_alpha_of_at_least_half() -> None:
    foreground = np.zeros((1, 6, 4), np.uint8)
    foreground[0, :, 3] = [0, 1, 127, 128, 254, 255]
    got = paste(np.zeros((3, 8, 3), np.uint8), cut_out(foreground), 1, 2)
    assert got.mask.tolist() == [[0] * 8, [0] * 8, [0, 0, 0, 0, 255, 255, 255, 0]]
    assert got.mask.dtype == np.uint8
    assert got.bbox == (4, 2, 3, 1)
    assert got.coverage == 3 / 24


def test_dark_clothing_is_no_hole() -> None:
    """The earlier class project took the mask from colour; black pixels were lost."""
    black = np.zeros((4, 4, 4), np.uint8)
    black[..., 3] = 255
    got = paste(np.full((6, 6, 3), 200, np.uint8), cut_out(black), 1, 1)
    assert got.mask[1:5, 1:5].min() == 255
    assert got.coverage == 16 / 36


def test_box_and_coverage_equal_opencv_and_the_eye() -> None:
    background, foreground = example()
    got = paste(background, cut_out(foreground), 44, 34)  # the farthest corner
    assert got.bbox == cv2.boundingRect(got.mask)
    assert got.coverage == cv2.countNonZero(got.mask) / (64 * 48)
    assert 0 < got.bbox[0] - 44 < 4  # the soft edge is inside the picture but not in the mask


def test_a_mask_in_parts_has_one_box_around_all() -> None:
    foreground = np.zeros((5, 7, 4), np.uint8)
    foreground[0, 6, 3] = foreground[4, 1, 3] = 255
    got = paste(np.zeros((9, 9, 3), np.uint8), cut_out(foreground), 1, 2)
    assert got.bbox == (2, 2, 6, 5)
    assert got.coverage == 2 / 81


def test_flip_mirrors_the_foreground_only() -> None:
    background, foreground = example()
    got = paste(background, cut_out(foreground, flipped=True), 5, 9)
    by_opencv = paste(background, cut_out(cv2.flip(foreground, 1)), 5, 9)
    np.testing.assert_array_equal(got.fg_bg, by_opencv.fg_bg)
    np.testing.assert_array_equal(got.mask, by_opencv.mask)
    assert got.bbox == by_opencv.bbox
    np.testing.assert_array_equal(got.fg_bg[:9], background[:9])


def test_inputs_are_left_as_they_are_and_may_be_read_only() -> None:
    background, foreground = (array.copy() for array in example())
    kept = background.copy(), foreground.copy()
    for array in (background, foreground):
        array.setflags(write=False)
    cutout = cut_out(foreground, flipped=True)
    first, second = paste(background, cutout, 0, 0), paste(background, cutout, 0, 0)
    np.testing.assert_array_equal(first.fg_bg, second.fg_bg)
    np.testing.assert_array_equal(background, kept[0])
    np.testing.assert_array_equal(foreground, kept[1])
    assert first.fg_bg.flags.writeable
    assert first.fg_bg.flags.c_contiguous


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (45, 0), (0, 35), (1000, 1000)])
def test_a_cutout_that_leaves_the_background_is_refused(place: tuple[int, int]) -> None:
    background, foreground = example()
    with pytest.raises(ValueError) as caught:
        paste(background, cut_out(foreground), *place)
    assert str(caught.value) == (
        f"a 20x14 px cut-out at ({place[0]}, {place[1]}) leaves the 64x48 px background"
    )


def test_a_foreground_without_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no pixel of the foreground has at least 50 % alpha$"):
        cut_out(np.full((3, 3, 4), 127, np.uint8))


def test_the_pixel_hash_is_xxh3_of_the_bytes_row_by_row() -> None:
    background, foreground = example()
    got = paste(background, cut_out(foreground), 5, 9)
    rows = [int("".join("1" if v else "0" for v in row), 2).to_bytes(8, "big") for row in got.mask]
    wanted = xxhash.xxh3_128(got.fg_bg.tobytes() + b"".join(rows)).hexdigest()
    assert pixel_hash(got.fg_bg, got.mask) == wanted
    assert len(wanted) == 32


def test_the_pixel_hash_sees_every_pixel_but_not_the_memory_layout() -> None:
    background, foreground = example()
    got = paste(background, cut_out(foreground), 5, 9)
    kept = pixel_hash(got.fg_bg, got.mask)
    assert pixel_hash(np.asfortranarray(got.fg_bg), np.asfortranarray(got.mask)) == kept
    for array in (got.fg_bg, got.mask):
        place = (47, 63) if array.ndim == 2 else (47, 63, 2)
        array[place] ^= 255
        assert pixel_hash(got.fg_bg, got.mask) != kept
        array[place] ^= 255
    assert pixel_hash(got.fg_bg, got.mask) == kept


def test_coverage_counts_the_mask_only() -> None:
    soft = np.full((2, 2, 4), 100, np.uint8)
    soft[0, 0, 3] = 128
    got: Composite = paste(np.zeros((4, 5, 3), np.uint8), cut_out(soft), 0, 0)
    assert math.isclose(got.coverage, 1 / 20)
    assert (got.fg_bg[:2, :2] > 0).all()  # the soft rest is blended all the same
