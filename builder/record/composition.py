"""Paste a foreground on a background: composite, exact mask, box. Integers only.

For straight 8-bit colour F, background B and alpha a the composite is (F a + B (255 - a)) / 255,
rounded once (halves cannot occur, 255 being odd), so pixels are equal on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from builder.schema import MASK_ON

Pixels = npt.NDArray[np.uint8]
Corners = tuple[int, int, int, int]  # left, top, right, bottom in px
_Words = npt.NDArray[np.uint16]

ALPHA_IN_MASK = 128  # at least 50 % of 255


@dataclass(frozen=True)
class Cutout:
    """A foreground made ready for pasting.

    `weighted` is F a + 128 and `clear` 255 - a, both uint16 and (h, 3 w): colours side by side,
    because NumPy is three times as slow on a last axis of three. `mask` is (h, w) uint8 in
    {0, 255}; `box` is the mask's x, y, width, height inside the foreground; `n_mask` its number
    of pixels. `weighted` and `clear` may reach `margin` px beyond the mask on every side; `colours`
    is F, (h, w, 3) with that margin, where it is kept.
    """

    weighted: _Words
    clear: _Words
    mask: Pixels
    box: tuple[int, int, int, int]
    n_mask: int
    margin: int = 0
    colours: Pixels | None = None

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        parts = (self.weighted, self.clear, self.mask, self.colours)
        return sum(part.nbytes for part in parts if part is not None)


@dataclass(frozen=True)
class Composite:
    """A composite (H, W, 3), its mask (H, W) in {0, 255}, the mask's box (COCO) and its share."""

    fg_bg: Pixels
    mask: Pixels
    bbox: tuple[int, int, int, int]
    coverage: float


def cut_out(foreground: Pixels, flipped: bool = False, keep_colours: bool = False) -> Cutout:
    """Make a foreground ready for pasting.

    Args:
        foreground: (h, w, 4) uint8, straight alpha.
        flipped: mirror it left to right.
        keep_colours: as it may be dressed, see `builder.record.appearance`.

    Raises:
        ValueError: no pixel has at least 50 % alpha.
    """
    if flipped:
        foreground = foreground[:, ::-1]
    alpha = foreground[..., 3:].astype(np.uint16)
    mask = foreground[..., 3] >= ALPHA_IN_MASK
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise ValueError("no pixel of the foreground has at least 50 % alpha")
    left, top = int(columns[0]), int(rows[0])
    return Cutout(
        weighted=(foreground[..., :3] * alpha + np.uint16(128)).reshape(len(mask), -1),
        clear=np.repeat(255 - alpha, 3, axis=2).reshape(len(mask), -1),
        mask=mask * np.uint8(MASK_ON),
        box=(left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1),
        n_mask=int(mask.sum()),
        colours=np.ascontiguousarray(foreground[..., :3]) if keep_colours else None,
    )


def paste(background: Pixels, cutout: Cutout, left_px: int, top_px: int) -> Composite:
    """Paste a cut-out with its upper left corner at (left_px, top_px).

    Args:
        background: (H, W, 3) uint8; left as it is.

    Raises:
        ValueError: the cut-out would not lie wholly inside.
    """
    height, width = cutout.mask.shape
    if not (
        0 <= left_px <= background.shape[1] - width and 0 <= top_px <= background.shape[0] - height
    ):
        raise ValueError(
            f"a {width}x{height} px cut-out at ({left_px}, {top_px}) leaves the "
            f"{background.shape[1]}x{background.shape[0]} px background"
        )
    rows, columns = slice(top_px, top_px + height), slice(left_px, left_px + width)
    fg_bg = background.copy()
    pasted = fg_bg.reshape(background.shape[0], -1)[rows, 3 * left_px : 3 * (left_px + width)]
    # v = t + 128 for a t of at most 255 * 255; then (v + (v >> 8)) >> 8 is exactly t / 255 rounded.
    value = pasted * cutout.clear
    value += cutout.weighted
    value += value >> 8
    value >>= 8
    pasted[...] = value
    mask = np.zeros(background.shape[:2], dtype=np.uint8)
    mask[rows, columns] = cutout.mask
    x, y, box_width, box_height = cutout.box
    return Composite(
        fg_bg, mask, (left_px + x, top_px + y, box_width, box_height), cutout.n_mask / mask.size
    )


def pixel_hash(
    fg_bg: Pixels,
    mask: Pixels,
    instances: Pixels | None = None,
    depth: npt.NDArray[np.uint16] | None = None,
) -> str:
    """Return the XXH3-128 (hex) of a record's pixels, row by row, composite and mask first."""
    digest = xxhash.xxh3_128()
    digest.update(np.ascontiguousarray(fg_bg).data)
    digest.update(np.packbits(np.ascontiguousarray(mask), axis=1).data)
    if instances is not None:
        digest.update(np.ascontiguousarray(instances).data)
    if depth is not None:
        digest.update(np.ascontiguousarray(depth, dtype="<u2").data)
    return digest.hexdigest()
