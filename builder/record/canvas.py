"""What records on one background share: most of their JPEG's bits, and most of what is counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from builder.recipe import Recipe
from builder.record.composition import Corners, Pixels
from builder.record.encoding import decode_image, encode_image
from builder.record.spliced import BLOCK_PX, Spliced
from builder.record.stats import Counts, histogram

_LEAST_USES = 3  # of a background, from which preparing it pays
_MOST_ROWS = 0.8  # of a composite, up to which it pays to copy the others


class Canvas:
    """A background that records are composed on.

    Args:
        pixels: (H, W, 3) uint8.
        recipe: of the set; how composites are encoded.
    """

    def __init__(self, pixels: Pixels, recipe: Recipe) -> None:
        self._pixels, self._recipe = pixels, recipe
        sides = pixels.shape[:2]
        self._fits = recipe.image_format == "jpeg" and not any(side % BLOCK_PX for side in sides)
        self._uses = 0
        self._spliced: Spliced | None = None
        self._counts = np.zeros((sides[0] // BLOCK_PX + 1, 3, 256), np.int32)  # of rows above

    @property
    def size_bytes(self) -> int:
        """Memory that it takes; of noise at quality 100 up to twice as much."""
        return self._counts.nbytes + 2 * self._pixels.nbytes

    def encoded(self, fg_bg: Pixels, box: Corners) -> tuple[bytes, Callable[[], Counts]]:
        """Encode a composite that differs from this background inside a box alone.

        Returns:
            What `encode_image` returns, and what gives the `histogram` of that decoded.
        """
        self._uses += 1
        height, width = fg_bg.shape[:2]
        first, stop, n_rows = box[1] // BLOCK_PX, -(-box[3] // BLOCK_PX), height // BLOCK_PX
        has_last_block = stop == n_rows and box[2] > width - BLOCK_PX
        if (
            not self._fits
            or has_last_block
            or self._uses < _LEAST_USES
            or stop - first > _MOST_ROWS * n_rows
        ):
            jpeg = encode_image(fg_bg, self._recipe)
            return jpeg, lambda: histogram(decode_image(jpeg, self._recipe))
        spliced = self._spliced or self._prepared()
        jpeg, part, top = spliced.with_rows(fg_bg, first, stop)
        rows = 0, top, width, top + BLOCK_PX * (stop - first)
        others = self._counts[-1] - self._counts[stop] + self._counts[first]
        return jpeg, lambda: others + histogram(decode_image(part, self._recipe).crop(rows))

    def _prepared(self) -> Spliced:
        pixels = np.ascontiguousarray(self._pixels)
        spliced = Spliced(pixels, partial(encode_image, recipe=self._recipe))
        decoded = decode_image(spliced.jpeg, self._recipe)
        for row in range(1, len(self._counts)):
            px = 0, BLOCK_PX * (row - 1), decoded.width, BLOCK_PX * row
            self._counts[row] = self._counts[row - 1] + histogram(decoded.crop(px))
        self._spliced = spliced  # last, for another thread would use it at once
        return spliced
