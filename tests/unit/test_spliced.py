"""JPEGs that take bits from another one, and what is counted by difference, against the whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from builder.record import canvas, encode_image
from builder.record.canvas import Canvas
from builder.record.spliced import Spliced
from builder.recipe import Recipe
from tests.pictures import scene


def picture(seed: int, size: int) -> np.ndarray:
    """Return noise as strong as the seed says on a picture, (size, size, 3), flat for seed 0."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(0, 12 * (seed % 5), (size, size, 3))
    pixels += rng.integers(0, 256, 3) + np.linspace(0, 40 * (seed % 4), size)[:, None]
    return np.clip(pixels, 0, 255).astype(np.uint8)


@st.composite
def changes(draw):
    """Draw a picture, another one that differs in a box, and the box."""
    size = 8 * draw(st.integers(2, 9))
    before, other = (picture(draw(st.integers(0, 40)), size) for _ in range(2))
    top, left = (draw(st.integers(0, size - 1)) for _ in range(2))
    bottom, right = draw(st.integers(top + 1, size)), draw(st.integers(left + 1, size))
    after = before.copy()
    after[top:bottom, left:right] = other[top:bottom, left:right]
    return before, after, (left, top, right, bottom)


@given(changes(), st.sampled_from([1, 50, 90, 95, 100]))
def test_the_bytes_and_counts_are_those_of_coding_and_counting_the_whole(change, quality):
    before, after, box = change
    recipe = Recipe(size=len(before), foreground_size=8, image_quality=quality)
    of = Canvas(before, recipe)
    for _ in range(canvas._LEAST_USES):
        encoded, count = of.encoded(after, box)
    assert encoded == encode_image(after, recipe)
    decoded = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    due = [np.bincount(decoded[..., channel].ravel(), minlength=256) for channel in range(3)]
    assert np.array_equal(count(), due)
