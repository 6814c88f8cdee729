"""Cut an object out of a studio picture by its colour alone, before a sweep of one smooth colour.

Where the sweep's colour B is known, a pixel C = a F + (1 - a) B with F from the object next to it
gives a by projection and then the object's own colour exactly (Smith and Blinn 1996, Blue Screen
Matting, with one known backing). What is object is settled in a picture of few pixels, where noise
has been averaged; the edge is made at full size, in the object's box alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.cutout.objects import (
    HOLE_PX,
    Cutout,
    NotCutError,
    check_size,
    cut_side,
    edge_figures,
    objects_of,
    reduced,
    sides_of,
    subjects,
    trimmed,
)
from builder.cutout.shapes import (
    Floats,
    Mask,
    carried,
    frame,
    grown,
    holes,
    opened,
    parts,
    shrunk,
    smoothed,
    touching,
)
from builder.cutout.sweep import Pixels, Sweep, fit_border, fit_outside

# Distances in RGB from which a pixel is surely the object's, or may be where it touches such: the
# first number, and the second times the spread of the sweep's colours if that is more.
_SURE, _MAYBE = (26.0, 12.0), (11.0, 5.0)
# Of a hole that shows the sweep, at least this share differs from it as little as noise does.
_HOLE_SHARE = 0.4
# A shadow is the sweep's colour, darker, and fades: by at most so much a px.
_SHADOW_LIGHT, _SHADOW_OFF, _SHADOW_SLOPE = (0.4, 0.995), (8.0, 4.0), 3.6

_MAD, _EXPLAINED, _BUT_ONE_SIDE = 6.0, 0.9, 0.7  # of the border, for a sweep to be taken for one
_MAD_ASKED, _EXPLAINED_ASKED = 12.0, 0.5  # the same where a person says that there is one

_INSIDE, _BEYOND = 3, 2  # px of the small picture: the band in which alpha is to be found
_FROM, _TO = 0.04, 0.94  # noise beside the object is no part of it, and texture inside no glass
_OFF_LINE = (16.0, 6.0)  # from which a pixel is no mixture of the sweep and the object nearby
# The colour of thin parts, such as hair, differs by so much from the sweep; where all around a
# pixel is at least that share of it, it is unmixed. Colours are carried along hair by so many px.
_RIDGE, _EVEN, _HAIR_REACH = (20.0, 8.0), 0.75, 32
# A colour of the object that is hardly the sweep's; most of its edge, and area, that may have such.
_ALIKE, _MOST_ALIKE, _MOST_PALE = 22.0, 0.2, 0.6

_HAIR, _BESIDE = 8, 70.0  # px from the edge, or the last gap; how far hair is from the sweep
_GAP, _HAIR_ROUNDS = 12.0, 6
# Spill is looked for so many px behind the edge, before sweeps one of whose channels stands out by
# so much; it is at least so much on average, and at most that share of what the sweep's is.
_SPILL_PX, _COLOURED, _LEAST_SPILL, _MOST_SPILL = 8, 40.0, 4.0, 0.5
_STRIP_PX = 2_500_000  # at full size, of which a dozen numbers each are held at once

_MODELS = (
    "--how Roboflow/rf-detr-seg-medium (Apache-2.0) or --how rembg:birefnet-general (MIT, after "
    "`pip install fgbg-dataset[rembg]`)"
)


def cut_out(
    photograph: Image.Image, *, instances: bool = False, asked: bool = False
) -> list[Cutout]:
    """Cut out what stands before the sweep of a studio picture.

    Args:
        photograph: of mode RGB.
        instances: make a cut-out of each object, largest first, where there are several.
        asked: a person says that there is a sweep; much of the border may then be something else.

    Raises:
        NotCutError: the border is not one smooth colour, nothing is found before it, or several
            objects are, or what is found is too small, of the sweep's colour or cut off twice.
    """
    picture, scale = reduced(photograph)
    small = np.asarray(picture).astype(np.float32)
    sweep = fit_border(small)
    _check_border(sweep, asked)
    _, _, sure, maybe = _unlike(small, sweep)
    sweep = fit_outside(small, ~grown(_touched(sure, maybe), 4), sweep)
    shape, filled, shadow, distance = _before(small, sweep)
    objects = objects_of(shape)
    if not objects:
        raise NotCutError(
            "shows nothing before its background; photograph the object larger, or before "
            "another colour"
        )
    subjects([int(np.count_nonzero(one)) for one in objects], instances)
    pale = distance < _ALIKE
    n_shadow = float(np.count_nonzero(shadow))
    found = []
    for one in objects:
        n_object = np.count_nonzero(one)
        if (share := np.count_nonzero(pale & one) / n_object) > _MOST_PALE:
            raise NotCutError(
                f"shows an object that has nearly the background's colour on {share:.0%} of its "
                "area, as glass does, through which it is seen; photograph it before another "
                "colour; glass is for a network"
            )
        cutout = _Object(photograph, sweep, one, scale).cut_out()
        spill, channel = _spill(small, sweep, one)
        if spill is not None:
            _take_out(cutout, spill, channel, scale)
        figures = replace(
            cutout.figures,
            spill=0.0 if spill is None else round(float(spill[spill > 0].mean()), 1),
            filled=round(np.count_nonzero(filled & one) / n_object, 3),
            shadow=round(n_shadow / n_object, 3),
        )
        found.append(cutout._replace(figures=figures))
    return found


def _check_border(sweep: Sweep, asked: bool) -> None:
    whole, but_one = sweep.explained
    if asked:
        fits = sweep.mad < _MAD_ASKED and whole >= _EXPLAINED_ASKED
    else:
        fits = sweep.mad < _MAD and (
            whole >= _EXPLAINED or (but_one >= _EXPLAINED and whole >= _BUT_ONE_SIDE)
        )
    if not fits:
        more = "" if asked else "try --how key if it is all the same, or "
        raise NotCutError(
            f"is not before one smooth colour ({whole:.0%} of its border is); {more}cut "
            f"it out with a network, for example {_MODELS}"
        )


class _Seen(NamedTuple):
    """What is seen before a sweep in a small picture: masks, and distances from its colour."""

    shape: Mask
    filled: Mask
    shadow: Mask
    distance: Floats


def _before(small: Floats, sweep: Sweep) -> _Seen:
    """Return what is object in a small picture, what of it was filled, and what is shadow."""
    distance, even, sure, maybe = _unlike(small, sweep)
    shadow = _shadow(small, sweep, even, maybe)
    maybe &= ~shadow
    shape = _touched(sure & ~shadow, maybe)
    inside = holes(shape)
    if inside.any():
        outside = ~(shape | inside)
        noise = float(np.median(even[outside])) if outside.any() else 0.0
        labels, areas = parts(inside)
        alike = np.bincount(labels.reshape(-1), (even < 2.2 * noise + 1).reshape(-1), len(areas))
        seen = (alike > _HOLE_SHARE * areas) & (areas >= HOLE_PX)
        seen[0] = False
        inside &= ~seen[labels]
    return _Seen(shape | inside, inside, shadow, distance)


def _unlike(small: Floats, sweep: Sweep) -> tuple[Floats, Floats, Mask, Mask]:
    """Return distances from the sweep, also smoothed, and what is surely or maybe no sweep."""
    distance = _distance(small, sweep)
    even = smoothed(distance)
    sure = distance > max(_SURE[0], _SURE[1] * sweep.spread)
    maybe = sure | (even > max(_MAYBE[0], _MAYBE[1] * sweep.spread))
    return distance, even, sure, maybe


def _touched(sure: Mask, maybe: Mask) -> Mask:
    """Return the parts of what may be object that touch something sure, and more than a speck."""
    core = opened(sure)
    return touching(parts(maybe)[0], core) if core.any() else core


def _distance(small: Floats, sweep: Sweep) -> Floats:
    """Return how far each colour of a small picture is from the sweep's."""
    off = small - sweep.rows(_shape_of(small), 0, len(small))
    distance: Floats = np.sqrt(np.einsum("ijk,ijk->ij", off, off))
    return distance


def _shape_of(small: Floats) -> tuple[int, int]:
    return small.shape[0], small.shape[1]


def _shadow(small: Floats, sweep: Sweep, even: Floats, maybe: Mask) -> Mask:
    """Return the shadow on a sweep: darker than it and of its hue, fading out into it."""
    back = sweep.rows(_shape_of(small), 0, len(small))
    square = np.einsum("ijk,ijk->ij", back, back)
    light = np.einsum("ijk,ijk->ij", small, back) / np.maximum(square, 1)
    rest = small - light[..., None] * back
    hue = (
        np.einsum("ijk,ijk->ij", rest, rest)
        < max(_SHADOW_OFF[0], _SHADOW_OFF[1] * sweep.spread) ** 2
    )
    dark: Mask = maybe & hue & (light > _SHADOW_LIGHT[0]) & (light < _SHADOW_LIGHT[1])
    if not dark.any():
        return dark
    softer = smoothed(smoothed(even))
    slope: Floats = np.zeros_like(even)
    for axis in (0, 1):
        step = np.abs(np.diff(softer, axis=axis))
        before: list[slice] = [slice(None), slice(None)]
        after = before.copy()
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        for side in (tuple(before), tuple(after)):
            slope[side] = np.maximum(slope[side], step)
    fading = dark & (slope < _SHADOW_SLOPE)
    labels, _ = parts(fading | ~maybe)
    reached: Mask = touching(labels, frame(maybe.shape) & ~maybe) & fading
    return opened(reached)


def _spill(small: Floats, sweep: Sweep, one: Mask) -> tuple[Floats | None, int]:
    """Return the light of a strongly coloured sweep on an object near its edge, and its channel.

    It is how much more the channel stands out there than farther inside; None where that is
    nothing to speak of.
    """
    height, width = one.shape
    middle = sweep.rows((height, width), height // 2, height // 2 + 1)[0, width // 2]
    channel = int(middle.argmax())
    others = [other for other in range(3) if other != channel]
    excess = float(middle[channel] - middle[others].max())
    deep = shrunk(one, _SPILL_PX)
    if excess < _COLOURED or not deep.any():
        return None, channel
    y, x, inside = carried(small, deep, one & ~deep, 2 * _SPILL_PX)
    own = small[y, x, channel] - small[y, x][:, others].max(1)
    due = np.maximum(inside[:, channel] - inside[:, others].max(1), 0)
    more = np.clip(own - due, 0, _MOST_SPILL * excess)
    if more.mean() < _LEAST_SPILL:
        return None, channel
    spill = np.zeros(one.shape, np.float32)
    spill[y, x] = more
    return spill, channel


def _take_out(cutout: Cutout, spill: Floats, channel: int, scale: int) -> None:
    """Take spill, as large as the small picture, out of a channel of a cut-out."""
    height, width = cutout.pixels.shape[:2]
    # The edge itself is not in the small picture's object: it has what lies next to it.
    y, x, near = carried(spill[..., None].repeat(3, 2), spill > 0, spill == 0, _BEYOND + 1)
    spill = spill.copy()
    spill[y, x] = near[:, 0]
    left, top = cutout.left / scale, cutout.top / scale
    box = left, top, left + width / scale, top + height / scale
    grown_map = Image.fromarray(spill).resize((width, height), Image.Resampling.BILINEAR, box=box)
    values = cutout.pixels[..., channel]
    less = np.minimum(values, np.rint(np.asarray(grown_map)).astype(np.uint8))
    values -= less


class _Object:
    """One object of a photograph, at full size in its own box, a strip of rows at a time.

    Args:
        shape: where it is in the small picture.
        scale: px of the photograph in a px of that.

    Raises:
        NotCutError: it is too small, or cut off at several sides.
    """

    def __init__(self, photograph: Image.Image, sweep: Sweep, shape: Mask, scale: int) -> None:
        ys, xs = np.nonzero(shape.any(1))[0], np.nonzero(shape.any(0))[0]
        check_size(shape, scale)
        self._cut_at = cut_side(sides_of(shape))
        margin = _BEYOND + 2
        top, left = max(0, int(ys[0]) - margin), max(0, int(xs[0]) - margin)
        bottom, right = int(ys[-1]) + 1 + margin, int(xs[-1]) + 1 + margin
        self._top, self._left = top * scale, left * scale
        stop, end = min(photograph.height, bottom * scale), min(photograph.width, right * scale)
        self._seen = np.asarray(photograph.crop((self._left, self._top, end, stop)))
        self._size, self._sweep, self._scale = (photograph.height, photograph.width), sweep, scale
        # Rows and columns that the small picture has no whole px for are like those beside them.
        part = np.pad(shape[top:bottom, left:right], ((0, 1), (0, 1)), mode="edge")
        whole = part.repeat(scale, 0).repeat(scale, 1)[: stop - self._top, : end - self._left]
        self._inner = shrunk(whole, _INSIDE * scale)
        self._band = grown(whole, _BEYOND * scale) & ~self._inner
        self._reach = (_INSIDE + _BEYOND) * scale + 2

    def cut_out(self) -> Cutout:
        """Return the cut-out, trimmed.

        Raises:
            NotCutError: too much of its edge has the colour of the sweep.
        """
        height, width = self._inner.shape
        pixels = np.dstack([self._seen, self._inner.astype(np.uint8) * 255])
        n_rows, n_alike, n_edge = max(64, _STRIP_PX // width), 0, 0
        for top in range(0, height, n_rows):
            alike, edge = self._mend(pixels, top, min(height, top + n_rows))
            n_alike, n_edge = n_alike + alike, n_edge + edge
        alike_share = n_alike / max(1, n_edge)
        if alike_share > _MOST_ALIKE:
            raise NotCutError(
                f"shows an object of which {alike_share:.0%} of the edge has the background's "
                "colour, or fades into it; photograph it before another colour"
            )
        pixels, left, top = trimmed(pixels)
        figures = replace(edge_figures(pixels[..., 3]), alike=round(alike_share, 3))
        return Cutout(pixels, self._left + left, self._top + top, self._cut_at, figures)

    def _mend(self, pixels: Pixels, top: int, stop: int) -> tuple[int, int]:
        """Give the band in some rows its alpha and colours; return how much edge looks alike."""
        margin = self._reach + (_HAIR_REACH + _HAIR_ROUNDS * (_HAIR + 2) + 2) * self._scale
        first, last = max(0, top - margin), min(len(pixels), stop + margin)
        band = self._band[first:last]
        if not band[top - first : stop - first].any():
            return 0, 0
        seen = self._seen[first:last].astype(np.float32)
        back = self._sweep.rows(
            self._size,
            self._top + first,
            self._top + last,
            self._left,
            self._left + pixels.shape[1],
        )
        inner, y, x, alpha, alike = self._alpha(seen, back, self._inner[first:last], band)
        here = (y >= top - first) & (y < stop - first)
        y, x, alpha, alike = y[here], x[here], alpha[here], alike[here]
        values = np.rint(alpha * 255).astype(np.uint8)
        pixels[top:stop, :, 3] = inner[top - first : stop - first] * np.uint8(255)
        strip = pixels[first:last]
        strip[y, x, 3] = values
        part = (values > 0) & (values < 255)
        y, x, share = y[part], x[part], values[part, None] / np.float32(255)
        own = (seen[y, x] - (1 - share) * back[y, x]) / share
        strip[y, x, :3] = np.clip(np.rint(own), 0, 255)
        return int((alike == 2).sum()), int((alike > 0).sum())

    def _alpha(
        self, seen: Floats, back: Floats, inner: Mask, band: Mask
    ) -> tuple[Mask, npt.NDArray[np.int64], npt.NDArray[np.int64], Floats, Pixels]:
        """Return what is surely object; other pixels near such, and their alpha, 0 to 1.

        Of each also whether it is at the edge (1), and the object there like the sweep (2).
        """
        off, spread = seen - back, self._sweep.spread
        far = np.sqrt(np.einsum("ijk,ijk->ij", off, off))
        # Between hairs the sweep is seen: beside what is far from its colour it is no object's.
        for _ in range(_HAIR_ROUNDS):
            gy, gx = np.nonzero(inner & (far < _GAP) & grown(band, _HAIR * self._scale))
            gaps = _highest_around(far, gy, gx, 2, self._scale) > _BESIDE
            if not gaps.any():
                break
            between = np.zeros_like(inner)
            between[gy[gaps], gx[gaps]] = True
            between = grown(between, 2 * self._scale) & inner
            inner, band = inner & ~between, band | between
        # Thin parts are mixed with the sweep all through, but where they are even.
        thin = band & ~grown(inner, self._reach)
        ty, tx = np.nonzero(thin)
        differs = far[ty, tx] > max(_RIDGE[0], _RIDGE[1] * spread)
        ty, tx = ty[differs], tx[differs]
        even = -_highest_around(-far, ty, tx, 1) >= _EVEN * far[ty, tx]
        known = inner.copy()
        known[ty[even], tx[even]] = True
        reach = self._reach if not len(ty) else _HAIR_REACH * self._scale
        y, x, colour = carried(seen, known, band & ~known, reach)
        left = thin & ~known
        left[y, x] = False
        inner = known
        if left.any():
            # What differs most from the sweep has its own colour there.
            ridge = np.zeros_like(left)
            highest = far[ty, tx] >= 0.9 * _highest_around(far, ty, tx, 1)
            ridge[ty[highest], tx[highest]] = True
            ridge &= left
            theirs = carried(seen, ridge, left & ~ridge, self._reach)
            ry, rx = np.nonzero(ridge)
            y, x = np.concatenate([y, ry, theirs[0]]), np.concatenate([x, rx, theirs[1]])
            colour = np.concatenate([colour, seen[ry, rx], theirs[2]])
        line, own = colour - back[y, x], off[y, x]
        length = np.einsum("ij,ij->i", line, line)
        share = np.einsum("ij,ij->i", own, line) / np.maximum(length, 1)
        share = (share - _FROM) / (_TO - _FROM)
        rest = own - np.clip(share, 0, 1)[:, None] * line
        bound = max(_OFF_LINE[0], _OFF_LINE[1] * spread) ** 2
        strange = np.einsum("ij,ij->i", rest, rest) > bound
        sy, sx = y[strange], x[strange]
        ratio = far[sy, sx] / np.maximum(_highest_around(far, sy, sx, 2, self._scale), 1)
        share[strange] = np.maximum(share[strange], (ratio - _FROM) / (_TO - _FROM - 0.1))
        share = np.clip(share, 0, 1)
        solid = inner.copy()
        solid[y, x] = share >= 0.5
        at_edge = (grown(solid) & grown(~solid))[y, x]
        at_edge &= ~thin[y, x]  # hair, of which all is edge
        alike = at_edge.astype(np.uint8) + (at_edge & (length < _ALIKE**2))
        return inner, y, x, share, alike


def _highest_around(
    values: Floats, ys: npt.NDArray[np.int64], xs: npt.NDArray[np.int64], reach: int, step: int = 1
) -> Floats:
    """Return the highest value among some pixels' neighbours, each so many px from the next."""
    highest = values[ys, xs]
    height, width = values.shape
    for dy in range(-reach, reach + 1):
        rows = np.clip(ys + dy * step, 0, height - 1)
        for dx in range(-reach, reach + 1):
            np.maximum(highest, values[rows, np.clip(xs + dx * step, 0, width - 1)], out=highest)
    return highest
