"""How objects look on their background: edges, colours, blur, noise, shadow. Integers only.

Detectors learn the borders that pasting leaves (Dwibedi et al. 2017, Cut, Paste and Learn), so the
border, and what else gives a composite away, is a choice that each record states. A mask never
changes by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.pinned import CutAt
from builder.record.composition import Cutout, Pixels

# Of R, G and B the gain in 256ths and the offset in levels: x becomes x gain / 256 + offset.
Colour = tuple[tuple[int, int], ...]
_Sums = npt.NDArray[np.uint32]
_Ints = npt.NDArray[np.int64]

ONE = 256  # of strengths and gains
UNCHANGED: Colour = ((ONE, 0),) * 3
N_LIGHTS = 8
_NOISE_SIDE = 512  # px of the tile that noise is cut from
_NOISE_SPREAD = 148  # standard deviation of the sum of four random bytes
_LAPLACIAN_SPREAD = 4047  # thousandths: median of the absolute Laplacian over the noise's deviation
_SHARP_SHARE = 2  # percent of pixels, those of the strongest edges
_FAR_TAP = 4  # px on either side
_MOST_GAIN = 2


@dataclass(frozen=True)
class Figures:
    """What is measured of a picture or an object: by channel, its mean and mean deviation.

    `sharpness` is how much of its strongest edges happens within 2 px, in thousandths; `noise` its
    standard deviation in 16ths of a level.
    """

    mean: tuple[int, int, int]
    deviation: tuple[int, int, int]
    sharpness: int
    noise: int


def figures(pixels: Pixels, mask: npt.NDArray[np.bool_] | None = None) -> Figures:
    """Measure a picture (H, W, 3) uint8, or the part of it in a mask (H, W)."""
    if mask is None:
        mask = np.ones(pixels.shape[:2], bool)
    chosen = pixels[mask].astype(np.int64)
    n = max(1, len(chosen))
    mean = chosen.sum(axis=0) // n
    deviation = np.abs(chosen - mean).sum(axis=0) // n
    green = pixels[..., 1].astype(np.int64)
    return Figures(
        _three(mean), _three(deviation), _sharpness(green, mask), _noise_deviation(green, mask)
    )


def _three(values: _Ints) -> tuple[int, int, int]:
    red, green, blue = values.tolist()
    return red, green, blue


def _sharpness(grey: _Ints, mask: npt.NDArray[np.bool_]) -> int:
    """Return the share, in thousandths, of the strongest steps over 8 px that lies within 2 px."""
    far = _FAR_TAP
    if grey.shape[1] <= 2 * far:
        return 1000
    wide = np.abs(grey[:, 2 * far :] - grey[:, : -2 * far])
    near = np.abs(grey[:, far + 1 : 1 - far or None] - grey[:, far - 1 : -far - 1])
    inside = mask[:, 2 * far :] & mask[:, : -2 * far] & mask[:, far:-far]
    wide, near = wide[inside], near[inside]
    if not wide.size:
        return 1000
    rank = wide.size - 1 - wide.size * _SHARP_SHARE // 100
    strong = wide >= max(1, int(np.partition(wide, rank)[rank]))
    total = int(wide[strong].sum())
    return 1000 if total == 0 else min(1000, 1000 * int(near[strong].sum()) // total)


def _noise_deviation(grey: _Ints, mask: npt.NDArray[np.bool_]) -> int:
    """Return the noise's deviation by a Laplacian that planes vanish under (Immerkaer 1996).

    The median, not the mean, is taken, since edges are no noise.
    """
    if min(grey.shape) < 3:
        return 0
    across = grey[:, 2:] - 2 * grey[:, 1:-1] + grey[:, :-2]
    values = np.abs(across[2:] - 2 * across[1:-1] + across[:-2])
    inside = mask[1:-1, 1:-1] & mask[:-2, :-2] & mask[2:, 2:] & mask[:-2, 2:] & mask[2:, :-2]
    values = values[inside]
    if not values.size:
        return 0
    middle = int(np.partition(values, values.size // 2)[values.size // 2])
    return 16_000 * middle // _LAPLACIAN_SPREAD


def box_sum(values: npt.NDArray[np.integer], radius: int) -> _Sums:
    """Return the sums over squares of 2 radius + 1 px a side; beyond the border lies 0.

    Args:
        values: (H, W) or (H, W, C); sums over a square must fit 32 bits.
    """
    total = values.astype(np.uint32)
    for axis in (0, 1):
        lines = np.moveaxis(total, axis, 0)
        padded = np.pad(lines, ((radius + 1, radius), *[(0, 0)] * (lines.ndim - 1)))
        running = np.cumsum(padded, axis=0, dtype=np.uint32)  # differences are right modulo 2^32
        total = np.moveaxis(running[2 * radius + 1 :] - running[: -2 * radius - 1], 0, axis)
    return total


def dress(foreground: Pixels, plain: Cutout, blend: str, blur_px: int, cut_at: CutAt) -> Cutout:
    """Return a cut-out with another edge, and blurred.

    Args:
        foreground: (h, w, 4) uint8 with straight alpha, mirrored if it is to be.
        plain: its cut-out; mask, box and number of pixels stay.
        blend: none: alpha as it is. feather1, feather2: alpha falls off towards the inside, over
            so many px. box: alpha is blurred over 3 x 3 px, so to the outside too.
        blur_px: radius of the blur of its colours.
        cut_at: side at which its photograph cut it off, where alpha does not fall off.
    """
    margin = 1 if blend == "box" else 0
    pixels = _padded(foreground, margin, cut_at)
    colours, alpha = pixels[..., :3], pixels[..., 3].astype(np.uint32)
    if blur_px or margin:
        radius = max(blur_px, margin)
        around = box_sum(alpha, radius)[..., None]
        # A mean by alpha, so that nothing of what lies under transparent pixels comes in.
        mean = (box_sum(colours * alpha[..., None], radius) + around // 2) // np.maximum(around, 1)
        where = around > 0 if blur_px else (around > 0) & (alpha[..., None] == 0)
        colours = np.where(where, mean, colours).astype(np.uint8)
    if blend != "none":
        radius = 2 if blend == "feather2" else 1
        n = (2 * radius + 1) ** 2
        sums = box_sum(_padded(alpha, radius, cut_at), radius)[radius:-radius, radius:-radius]
        soft = (sums + n // 2) // n
        alpha = soft if blend == "box" else np.minimum(alpha, soft)
    return replace(
        plain,
        weighted=_weighted(colours, alpha),
        clear=np.repeat((255 - alpha).astype(np.uint16), 3, axis=1),
        margin=margin,
        colours=colours,
    )


def _padded(values: npt.NDArray[Any], n: int, cut_at: CutAt) -> npt.NDArray[Any]:
    """Return a picture with n px of 0 around it, or of its own border where it was cut off."""
    if n == 0:
        return values
    wide = np.pad(values, ((n, n), (n, n), *[(0, 0)] * (values.ndim - 2)))
    if cut_at:
        lines = np.moveaxis(wide, 1 if cut_at in ("left", "right") else 0, 0)
        if cut_at in ("left", "top"):
            lines[:n] = lines[n]
        else:
            lines[-n:] = lines[-n - 1]
    return wide


def _weighted(colours: Pixels, alpha: npt.NDArray[np.integer]) -> npt.NDArray[np.uint16]:
    weighted = colours * alpha.astype(np.uint16)[..., None] + np.uint16(128)
    return weighted.reshape(len(alpha), -1)


def coloured(cutout: Cutout, colour: Colour, noise: npt.NDArray[np.int16] | None) -> Cutout:
    """Return a dressed cut-out in other colours, and with noise, (h, w, 3), added to them."""
    assert cutout.colours is not None
    colours = recoloured(cutout.colours, colour)
    if noise is not None:
        colours = np.clip(colours + noise, 0, 255).astype(np.uint8)
    return replace(cutout, weighted=_weighted(colours, 255 - cutout.clear[:, ::3]), colours=colours)


def recoloured(pixels: Pixels, colour: Colour) -> Pixels:
    """Return a picture (H, W, 3) in other colours."""
    values, changed = np.arange(256), np.empty_like(pixels)
    for channel, (gain, offset) in enumerate(colour):
        table = np.clip((values * gain + ONE // 2) // ONE + offset, 0, 255).astype(np.uint8)
        changed[..., channel] = table[pixels[..., channel]]
    return changed


def then(first: Colour, second: Colour) -> Colour:
    """Return one change of colours that does what two do, but for what the first would clip."""
    return tuple(
        (gain * more // ONE, offset * more // ONE + further)
        for (gain, offset), (more, further) in zip(first, second, strict=True)
    )


def matching(own: Figures, scene: Figures, patch: tuple[int, int, int], strength: int) -> Colour:
    """Return what leads an object's colours towards those of a scene.

    Mean and spread of each channel are matched, as Reinhard et al. 2001 do; the mean is led half
    to that of the whole scene and half to that of the patch that the object stands on.

    Args:
        strength: in 256ths.
    """
    found = []
    for channel in range(3):
        mean = own.mean[channel]
        spread = ONE * max(1, scene.deviation[channel]) // max(1, own.deviation[channel])
        spread = min(max(spread, ONE // _MOST_GAIN), ONE * _MOST_GAIN)
        gain = ONE + strength * (spread - ONE) // ONE
        aim = (scene.mean[channel] + patch[channel]) // 2
        new_mean = mean + strength * (aim - mean) // ONE
        found.append((gain, new_mean - gain * mean // ONE))
    return tuple(found)


def jittered(word: int, strength: int) -> Colour:
    """Return a random change of colours: half of it common to all channels, half of each its own.

    Args:
        word: 64 random bits.
        strength: in 256ths; gains are 1 +- strength, offsets up to a quarter of 255 times that.
    """
    if not strength:
        return UNCHANGED
    parts = [(word >> (8 * part) & 0xFF) - 128 for part in range(8)]
    return tuple(
        (
            ONE + strength * (parts[channel] + parts[6]) // 256,
            strength * (parts[3 + channel] + parts[7]) // 1024,
        )
        for channel in range(3)
    )


@lru_cache(maxsize=1)
def _noise_tile() -> npt.NDArray[np.int16]:
    """Return noise (side, side) that is nearly normal: sums of four random bytes each."""
    words = np.random.Philox(key=0).random_raw(_NOISE_SIDE * _NOISE_SIDE // 2)
    as_bytes = words.astype("<u8").view(np.uint8).reshape(_NOISE_SIDE, _NOISE_SIDE, 4)
    tile: npt.NDArray[np.int16] = as_bytes.sum(axis=2, dtype=np.int16) - np.int16(510)
    return tile


@lru_cache(maxsize=32)
def _scaled_tile(deviation: int) -> npt.NDArray[np.int16]:
    tile = _noise_tile().astype(np.int32) * deviation
    return ((tile + 8 * _NOISE_SPREAD) // (16 * _NOISE_SPREAD)).astype(np.int16)


def noise_of(cutout: Cutout, deviation: int, word: int) -> npt.NDArray[np.int16]:
    """Return noise for a dressed cut-out, from a random place of one tile for each channel.

    Args:
        deviation: in 16ths of a level.
        word: 64 random bits.
    """
    assert cutout.colours is not None
    height, width = len(cutout.colours), cutout.colours.shape[1]
    noise, tile = np.empty((height, width, 3), np.int16), _scaled_tile(deviation)
    for channel in range(3):
        top, left = word >> (20 * channel) & 0x3FF, word >> (20 * channel + 10) & 0x3FF
        rows = (np.arange(height) + top) % _NOISE_SIDE
        noise[..., channel] = tile[rows[:, None], (np.arange(width) + left) % _NOISE_SIDE]
    return noise


@dataclass(frozen=True)
class Shade:
    """A shadow: how dark, (h, w) uint8, and where it lies from an object's lower left corner."""

    dark: Pixels
    left_px: int
    top_px: int


def shade(mask: npt.NDArray[np.bool_], light: int) -> Shade:
    """Return the shadow that an upright object throws on the ground: its form, laid down.

    Args:
        mask: of the object, (h, w).
        light: 0 to 7: where the light comes from. It falls from one side, at 27 or 45 degrees, and
            from before or behind the object.
    """
    height, width = mask.shape
    lean = (-4, -2, 2, 4)[light % 4]  # quarters of its height that its top falls to the side
    long = max(1, height // (3 if light < N_LIGHTS // 2 else 5))
    radius = 1 + height // 24
    reach = abs(lean) * height // 4
    laid = np.zeros((long, width + reach), np.uint8)
    for row in range(long):
        up = row * height // long
        shift = abs(lean) * up // 4
        start = shift if lean > 0 else reach - shift
        laid[row, start : start + width] = mask[height - 1 - up] * np.uint8(255)
    behind = light < N_LIGHTS // 2
    if behind:
        laid = laid[::-1]
    n = (2 * radius + 1) ** 2
    soft = np.pad(laid, 2 * radius)
    for _ in range(2):
        soft = ((box_sum(soft, radius) + n // 2) // n).astype(np.uint8)
    left = (0 if lean > 0 else -reach) - 2 * radius
    # The row at the foot is the object's lowest.
    top = (-long if behind else -1) - 2 * radius
    return Shade(soft, left, top)


def darkening(shade: Shade, strength: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Return what pastes a shadow: `weighted` and `clear` of a black cut-out, see `Cutout`.

    Args:
        strength: of the darkest part, in 256ths.
    """
    alpha = (shade.dark.astype(np.uint16) * np.uint16(strength) + np.uint16(128)) >> 8
    clear = np.repeat(255 - alpha, 3, axis=1)
    return np.full(clear.shape, 128, np.uint16), clear
