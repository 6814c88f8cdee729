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
from builder.record.composition import ALPHA_IN_MASK, Cutout, Pixels

# Of R, G and B the gain in 256ths and the offset in levels: x becomes x gain / 256 + offset.
Colour = tuple[tuple[int, int], ...]
_Sums = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

ONE = 256  # of strengths and gains
UNCHANGED: Colour = ((ONE, 0),) * 3
N_LIGHTS = 8
_NOISE_SIDE = 512  # px of the tile that noise is cut from
_NOISE_SPREAD = 148  # standard deviation of the sum of four random bytes
_LAPLACIAN_SPREAD = 4047  # thousandths: median of the absolute Laplacian over the noise's deviation
_SHARP_PERCENT = 2  # of pixels: those of the strongest edges
_FAR_TAP = 4  # px on either side
_MOST_GAIN = 2


@dataclass(frozen=True)
class Tone:
    """The colours of a picture or an object: mean and mean deviation of R, G and B."""

    mean: tuple[int, int, int]
    deviation: tuple[int, int, int]


def tone(pixels: Pixels, mask: Mask | None = None) -> Tone:
    """Return the tone of a picture (H, W, 3) uint8, or of the part of it in a mask (H, W)."""
    chosen = (pixels.reshape(-1, 3) if mask is None else pixels[mask]).astype(np.int64)
    n = max(1, len(chosen))
    mean = chosen.sum(axis=0) // n
    red, green, blue = (np.abs(chosen - mean).sum(axis=0) // n).tolist()
    r, g, b = mean.tolist()
    return Tone((r, g, b), (red, green, blue))


def sharpness(pixels: Pixels, mask: Mask | None = None) -> int:
    """Return how sharp a picture is: its strongest steps over 2 px against those over 8 px.

    Their squares are summed, since a blurred step is lower but longer: a plain sum stays.

    Args:
        pixels: (H, W, 3) uint8, whose green is looked at.
        mask: (H, W), the part that counts.

    Returns:
        In thousandths: 250 for sharp steps, 156 after a blur over 3 px, 113 after one over 5;
        1000 where there are no steps.
    """
    far, grey = _FAR_TAP, pixels[..., 1].astype(np.int16)
    wide = np.square(grey[:, 2 * far :] - grey[:, : -2 * far], dtype=np.int32)
    near = np.square(grey[:, far + 1 : 1 - far] - grey[:, far - 1 : -far - 1], dtype=np.int32)
    if mask is not None:
        inside = mask[:, 2 * far :] & mask[:, : -2 * far] & mask[:, far:-far]
        wide, near = wide[inside], near[inside]
    if not wide.size:
        return 1000
    rank = wide.size - 1 - wide.size * _SHARP_PERCENT // 100
    # A quarter of a strong step counts too, or the ends of blurred ones would not.
    strong = 16 * wide >= max(1, int(np.partition(wide, rank, axis=None)[rank]))
    total = int(wide[strong].sum(dtype=np.int64))
    return min(1000, 1000 * int(near[strong].sum(dtype=np.int64)) // total) if total else 1000


def noisiness(pixels: Pixels, mask: Mask | None = None) -> int:
    """Return the deviation of a picture's noise, by a Laplacian that planes vanish under.

    After Immerkaer 1996, but the median is taken and not the mean, since edges are no noise.

    Args:
        pixels: (H, W, 3) uint8, whose green is looked at.
        mask: (H, W), the part that counts.

    Returns:
        In 16ths of a level.
    """
    grey = pixels[..., 1].astype(np.int16)
    across = grey[:, 2:] - 2 * grey[:, 1:-1] + grey[:, :-2]
    values = np.abs(across[2:] - 2 * across[1:-1] + across[:-2])
    if mask is not None:
        values = values[mask[1:-1, 1:-1] & mask[:-2, :-2] & mask[2:, 2:]]
    if not values.size:
        return 0
    middle = int(np.partition(values, values.size // 2, axis=None)[values.size // 2])
    return 16_000 * middle // _LAPLACIAN_SPREAD


def box_sum(values: npt.NDArray[np.integer[Any]], radius: int) -> _Sums:
    """Return the sums over squares of 2 radius + 1 px a side; beyond the border lies 0.

    Args:
        values: (H, W) or (H, W, C); sums over a square must fit 32 bits.
    """
    total = values.astype(np.uint32)
    for axis in (0, 1):
        lines = np.moveaxis(total, axis, 0)
        running = np.zeros((len(lines) + 2 * radius + 1, *lines.shape[1:]), np.uint32)
        running[radius + 1 : radius + 1 + len(lines)] = lines
        np.cumsum(running, axis=0, out=running)  # differences are right modulo 2^32
        total = np.moveaxis(running[2 * radius + 1 :] - running[: -2 * radius - 1], 0, axis)
    return total


def dress(plain: Cutout, blend: str, blur_px: int, cut_at: CutAt) -> Cutout:
    """Return a cut-out with another edge, and blurred.

    Args:
        plain: with its colours; mask, box and number of pixels stay.
        blend: none: alpha as it is. feather1, feather2: alpha falls off towards the inside, over
            so many px. box: alpha is blurred over 3 x 3 px, so to the outside too.
        blur_px: radius of the blur of its colours.
        cut_at: side at which its photograph cut it off, where alpha does not fall off.
    """
    assert plain.colours is not None
    margin = 1 if blend == "box" else 0
    colours = _padded(plain.colours, margin, cut_at)
    alpha = _padded(255 - plain.clear[:, ::3], margin, cut_at)
    if blur_px or margin:
        radius = max(blur_px, margin)
        # What lies under nearly transparent pixels is hardly a colour of the object, so they get
        # that of their neighbours, by alpha.
        around = box_sum(alpha, radius)
        where = around > 0 if blur_px else (around > 0) & (alpha < ALPHA_IN_MASK)
        sums, weights = _colour_sums(colours, alpha, radius)[where], around[where][:, None]
        colours = colours.copy()
        colours[where] = (sums + weights // 2) // weights
    if blend != "none":
        radius = 2 if blend == "feather2" else 1
        n = (2 * radius + 1) ** 2
        sums = box_sum(_padded(alpha, radius, cut_at), radius)[radius:-radius, radius:-radius]
        soft = ((sums + n // 2) // n).astype(np.uint16)
        alpha = soft if blend == "box" else np.minimum(alpha, soft)
    clear = np.repeat(255 - alpha, 3, axis=1)
    weighted = _weighted(colours, clear)
    return replace(plain, weighted=weighted, clear=clear, margin=margin, colours=colours)


def _colour_sums(colours: Pixels, alpha: npt.NDArray[np.uint16], radius: int) -> _Sums:
    """Return the sums of colour times alpha over squares, (h, w, 3)."""
    height, width = alpha.shape
    total = np.zeros((height + 2 * radius, width + 2 * radius, 3), np.uint32)
    total[radius:-radius, radius:-radius] = colours * alpha[..., None]
    steps = range(1, 2 * radius + 1)
    total = sum((total[step : step + height] for step in steps), total[:height])
    return sum((total[:, step : step + width] for step in steps), total[:, :width])


def _padded(values: npt.NDArray[Any], n: int, cut_at: CutAt) -> npt.NDArray[Any]:
    """Return a picture with n px of 0 around it, or of its own border where it was cut off."""
    if n == 0:
        return values
    height, width = values.shape[:2]
    wide = np.zeros((height + 2 * n, width + 2 * n, *values.shape[2:]), values.dtype)
    wide[n:-n, n:-n] = values
    if cut_at:
        lines = np.moveaxis(wide, 1 if cut_at in ("left", "right") else 0, 0)
        if cut_at in ("left", "top"):
            lines[:n] = lines[n]
        else:
            lines[-n:] = lines[-n - 1]
    return wide


def _weighted(colours: Pixels, clear: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    weighted = 255 - clear
    weighted *= colours.reshape(len(clear), -1)
    weighted += 128
    return weighted


def coloured(cutout: Cutout, colour: Colour, noise: npt.NDArray[np.int8] | None) -> Cutout:
    """Return a dressed cut-out in other colours, and with noise, (h, w, 3), added to them."""
    assert cutout.colours is not None
    colours = recoloured(cutout.colours, colour)
    if noise is not None:
        colours = np.clip(colours + noise.astype(np.int16), 0, 255).astype(np.uint8)
    return replace(cutout, weighted=_weighted(colours, cutout.clear), colours=colours)


def recoloured(pixels: Pixels, colour: Colour) -> Pixels:
    """Return a picture (H, W, 3) in other colours."""
    if colour == UNCHANGED:
        return pixels
    gains, offsets = (
        np.tile(np.array(values, np.int32), pixels.shape[1]) for values in zip(*colour, strict=True)
    )
    # Colours side by side: NumPy is slow on a last axis of three.
    values = pixels.reshape(len(pixels), -1) * gains
    values += ONE // 2
    values >>= 8
    values += offsets
    np.clip(values, 0, 255, out=values)
    return values.astype(np.uint8).reshape(pixels.shape)


def then(first: Colour, second: Colour) -> Colour:
    """Return one change of colours that does what two do, but for what the first would clip."""
    return tuple(
        (gain * more // ONE, offset * more // ONE + further)
        for (gain, offset), (more, further) in zip(first, second, strict=True)
    )


def matching(own: Tone, scene: Tone, patch: tuple[int, int, int], strength: int) -> Colour:
    """Return what leads an object's colours towards those of a scene.

    Means and spread are matched, as Reinhard et al. 2001 do, but for one spread of all channels, so
    that greys stay grey. Means are led half to those of the whole scene and half to those of the
    patch that the object stands on.

    Args:
        strength: in 256ths.
    """
    spread = ONE * max(1, sum(scene.deviation)) // max(1, sum(own.deviation))
    spread = min(max(spread, ONE // _MOST_GAIN), ONE * _MOST_GAIN)
    gain = ONE + strength * (spread - ONE) // ONE
    found = []
    for mean, whole, near in zip(own.mean, scene.mean, patch, strict=True):
        new_mean = mean + strength * ((whole + near) // 2 - mean) // ONE
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
    """Return noise (side, side, 3) that is nearly normal: sums of four random bytes each."""
    words = np.random.Philox(key=0).random_raw(_NOISE_SIDE * _NOISE_SIDE * 3 // 2)
    parts = words.astype("<u8").view(np.uint8).reshape(_NOISE_SIDE, _NOISE_SIDE, 3, 4)
    tile: npt.NDArray[np.int16] = parts.sum(axis=3, dtype=np.int16) - np.int16(510)
    return tile


@lru_cache(maxsize=16)
def _scaled_tile(deviation: int) -> npt.NDArray[np.int8]:
    tile = (_noise_tile().astype(np.int32) * deviation + 8 * _NOISE_SPREAD) // (16 * _NOISE_SPREAD)
    return tile.clip(-128, 127).astype(np.int8)


def noise_of(height: int, width: int, deviation: int, word: int) -> npt.NDArray[np.int8]:
    """Return noise (height, width, 3), from a random place of one tile that repeats.

    Args:
        deviation: in 16ths of a level.
        word: 64 random bits.
    """
    top, left = word % _NOISE_SIDE, (word >> 32) % _NOISE_SIDE
    rows, columns = (
        np.arange(at, at + n) % _NOISE_SIDE for at, n in ((top, height), (left, width))
    )
    # Three values as one: NumPy is slow on a last axis of three.
    tile = _scaled_tile(deviation).view("V3")[..., 0]
    return tile[rows[:, None], columns].view(np.int8).reshape(height, width, 3)


@dataclass(frozen=True)
class Shade:
    """A shadow: how dark, (h, w) uint8, and where it lies from an object's lower left corner."""

    dark: Pixels
    left_px: int
    top_px: int


def shade(mask: Mask, light: int) -> Shade:
    """Return the shadow that an upright object throws on the ground: its form, laid down.

    Args:
        mask: of the object, (h, w).
        light: 0 to 7: where the light comes from. It falls from one side, at 27 or 45 degrees, and
            from before or behind the object.
    """
    height, width = mask.shape
    lean = (-4, -2, 2, 4)[light % 4]  # quarters of its height that its top falls to the side
    long = max(1, height // (3 if light < N_LIGHTS // 2 else 5))
    radius = 1 + height // 64
    reach = abs(lean) * height // 4
    laid = np.zeros((long, width + reach), np.uint8)
    for row in range(long):
        up = row * height // long
        shift = abs(lean) * up // 4
        start = shift if lean > 0 else reach - shift
        fades = 255 - 160 * row // long  # as more of the sky is seen from there
        laid[row, start : start + width] = mask[height - 1 - up] * np.uint8(fades)
    behind = light < N_LIGHTS // 2
    if behind:
        laid = laid[::-1]
    n = (2 * radius + 1) ** 2
    soft = _padded(laid, 2 * radius, "")
    for _ in range(2):
        soft = (box_sum(soft, radius) + n // 2) // n
    left = (0 if lean > 0 else -reach) - 2 * radius
    # The row at the foot is the object's lowest.
    top = (-long if behind else -1) - 2 * radius
    return Shade(soft.astype(np.uint8), left, top)


def darkening(shade: Shade, strength: int) -> npt.NDArray[np.uint16]:
    """Return how much of 255 a shadow leaves of what lies under it, (h, 3 w).

    Args:
        strength: of the darkest part, in 256ths.
    """
    left = np.uint16(255) - ((shade.dark * np.uint16(strength) + np.uint16(128)) >> 8)
    return np.repeat(left, 3, axis=1)
