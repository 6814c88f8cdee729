"""JPEGs that take bits from another one, and what is counted by difference, against the whole."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from builder.recipe import Recipe
from builder.record import encode_image
from builder.record.canvas import Canvas
from builder.record.spliced import Spliced


def picture(seed: int, size: int) -> np.ndarray:
    """Return a slope under noise, (size, size, 3); some seeds give one colour, others wild ones."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0, 20 * (seed % 5), (size, size, 3))
    pixels += rng.integers(0, 256, 3) + np.linspace(0, 40 * (seed % 4), size)[:, None, None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


@st.composite
def changes(draw):
    """Draw a picture, another one that differs from it in a box, and the box."""
    size = 8 * draw(st.integers(2, 9))
    before, other = (picture(draw(st.integers(0, 40)), size) for _ in range(2))
    top, left = (draw(st.integers(0, size - 1)) for _ in range(2))
    bottom, right = draw(st.integers(top + 1, size)), draw(st.integers(left + 1, size))
    after = before.copy()
    after[top:bottom, left:right] = other[top:bottom, left:right]
    return before, after, (left, top, right, bottom)


def recipe_of(pixels: np.ndarray, quality: int) -> Recipe:
    return Recipe(size=len(pixels), foreground_size=8, image_quality=quality)


QUALITIES = st.sampled_from([1, 50, 90, 95, 100])


@given(changes(), QUALITIES)
def test_the_bytes_are_those_of_coding_the_whole(change, quality):
    before, after, (_, top, right, bottom) = change
    if bottom > len(after) - 8 and right > len(after) - 8:
        after[-8:, -8:] = before[-8:, -8:]  # the one block that must stay
    encode = partial(encode_image, recipe=recipe_of(before, quality))
    first, stop = top // 8, -(-bottom // 8)
    jpeg, part, at = Spliced(before, encode).with_rows(after, first, stop)
    assert jpeg == encode(after)
    whole, rows = (np.asarray(Image.open(io.BytesIO(data))) for data in (jpeg, part))
    assert np.array_equal(rows[at : at + 8 * (stop - first)], whole[8 * first : 8 * stop])


@given(changes(), QUALITIES)
def test_a_canvas_encodes_and_counts_as_if_it_were_not_there(change, quality):
    before, after, box = change
    recipe = recipe_of(before, quality)
    canvas = Canvas(before, recipe)
    for _ in range(4):  # not prepared at first
        encoded, count = canvas.encoded(after, box)
        assert encoded == encode_image(after, recipe)
        decoded = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        due = [np.bincount(decoded[..., channel].ravel(), minlength=256) for channel in range(3)]
        assert np.array_equal(count(), due)


@pytest.mark.parametrize("fields", [{"image_format": "png"}, {"size": 60}])
def test_other_formats_and_sides_are_encoded_as_ever(fields):
    recipe = Recipe(**{"size": 64, "foreground_size": 8, **fields})
    before, after = (picture(seed, recipe.size) for seed in (3, 7))
    canvas = Canvas(before, recipe)
    box = 8, 8, 24, 24
    after[:8], after[24:], after[:, :8], after[:, 24:] = (
        *(before[:8], before[24:]),
        *(before[:, :8], before[:, 24:]),
    )
    for _ in range(4):
        assert canvas.encoded(after, box)[0] == encode_image(after, recipe)
