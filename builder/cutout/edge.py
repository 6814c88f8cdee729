"""The edge of an object that a mask says: alpha and the object's own colours in a band around it.

Masks of networks are coarse. What lies deep inside the mask is the object's, what lies well outside
is not, and the band between is settled from the photograph: by a matting network, by closed-form
matting where pymatting is installed, or else by a feather of one pixel. All of it runs in tiles, so
that memory does not grow with the photograph.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from PIL import Image

from builder.cutout.objects import Cutout, check_size, cut_side, edge_figures, sides_of, trimmed
from builder.cutout.shapes import Floats, Mask, carried, grown, shrunk, smoothed
from builder.cutout.sweep import Pixels

# From RGB (h, w, 3) and a trimap (h, w) of 0, 128 and 255: alpha, 0 to 1.
Matting = Callable[[Pixels, Pixels], Floats]

_BAND_SHARE, _BAND_PX = 0.01, (3, 15)  # of the photograph's diagonal; each side of the outline
_WIDEST_PX = 40  # where a px of the network's own is as large: its outline is off by so much
_LEAST_INSIDE = 0.3  # of an object, so that it keeps a colour of its own
_TILE_PX, _MARGIN_PX = 384, 64  # together 512, which is what matting networks are trained on
_MOST_BAND_PX = 1_000_000  # beyond, the edge is settled in a smaller picture
_CLEAR = 0.02  # alpha that is nothing, and what is as near to all
_NEAR_PX = 4  # of the small picture: what is farther from the object is none of it
# pymatting's loops run in threads of their own, and end the process where two callers meet.
_PYMATTING = threading.Lock()


class _Tile(NamedTuple):
    """A piece of a photograph, its trimap, and what the mask says there, 0 to 255."""

    seen: Pixels
    trimap: Pixels
    mask: Pixels


# Alpha of a tile, 0 to 1; None where none is found.
_Work = Callable[[_Tile], "Floats | None"]


def has_pymatting() -> bool:
    """Whether pymatting is installed."""
    return find_spec("pymatting") is not None


def cut_by_mask(
    photograph: Image.Image,
    probability: Floats,
    shape: Mask,
    scale: int,
    matting: tuple[str, Matting] | None,
    grain: float = 1.0,
) -> Cutout:
    """Cut out an object that a mask says, at full size.

    Args:
        photograph: of mode RGB.
        probability: of its being the object's, by pixel of the small picture, 0 to 1.
        shape: where the object is in the small picture.
        scale: px of the photograph in a px of that.
        matting: the name of a matting network, and it; None is closed form or a feather.
        grain: px of the small picture in one of the network's own.

    Raises:
        NotCutError: it is too small, or cut off at several sides.
    """
    work: _Work = _feather
    name = "feather"
    if matting:
        name, network = matting
        work = partial(_by_network, network)
    elif has_pymatting():
        name, work = "closed form", _closed_form
    settled = partial(_settled, work=work, name=name)
    return _placed(photograph, probability, shape, scale, settled, grain)


def alpha_cutout(photograph: Image.Image, alpha: Floats, shape: Mask, scale: int) -> Cutout:
    """Cut out an object whose alpha a network says itself, (h, w) in the small picture.

    Raises:
        NotCutError: it is too small, or cut off at several sides.
    """

    return _placed(photograph, alpha, shape, scale, _taken)


def _placed(
    photograph: Image.Image,
    probability: Floats,
    shape: Mask,
    scale: int,
    settled: Callable[[Image.Image, Image.Image, int], tuple[Pixels, str]],
    grain: float = 1.0,
) -> Cutout:
    """Bring an object's part of the photograph and of its mask to full size, and cut it out."""
    check_size(shape, scale)
    share = _BAND_SHARE * math.hypot(*photograph.size)
    band_px = min(max(round(share), _BAND_PX[0]), _BAND_PX[1])
    band_px = max(band_px, min(round(grain * scale), _WIDEST_PX))
    margin = band_px // scale + _NEAR_PX
    ys, xs = np.nonzero(shape.any(1))[0], np.nonzero(shape.any(0))[0]
    top, left = max(0, int(ys[0]) - margin) * scale, max(0, int(xs[0]) - margin) * scale
    stop = min(photograph.height, (int(ys[-1]) + 1 + margin) * scale)
    end = min(photograph.width, (int(xs[-1]) + 1 + margin) * scale)
    near = np.where(grown(shape, _NEAR_PX), probability, 0)
    small = Image.fromarray(np.rint(near * 255).astype(np.uint8))
    box = left / scale, top / scale, end / scale, stop / scale
    mask = small.resize((end - left, stop - top), Image.Resampling.BILINEAR, box=box)
    pixels, edge = settled(photograph.crop((left, top, end, stop)), mask, band_px)
    # By alpha, for the masks of networks often end a little before the frame.
    sides = sides_of(pixels[..., 3] >= 128, (left, top, end, stop), photograph.size)
    cut_at = cut_side(sides)
    pixels, more_left, more_top = trimmed(pixels)
    figures = edge_figures(pixels[..., 3])
    return Cutout(pixels, left + more_left, top + more_top, cut_at, figures, edge)


def trimap_of(solid: Mask, band_px: int) -> Pixels:
    """Return what is surely an object's (255), surely not (0), and the band between (128).

    Thin objects get a narrower band, so that something of them stays sure.
    """
    n_solid = np.count_nonzero(solid)
    inner = shrunk(solid, band_px)
    while band_px > 1 and np.count_nonzero(inner) < _LEAST_INSIDE * n_solid:
        band_px = band_px // 2
        inner = shrunk(solid, band_px)
    trimap = np.zeros(solid.shape, np.uint8)
    trimap[grown(solid, band_px)] = 128
    trimap[inner] = 255
    return trimap


def _settled(
    part: Image.Image, mask: Image.Image, band_px: int, work: _Work, name: str
) -> tuple[Pixels, str]:
    """Return the pixels of an object, with alpha, and how their edge was found."""
    size, shrink = part.size, 1
    trimap = trimap_of(np.asarray(mask) >= 128, band_px)
    n_band = np.count_nonzero(trimap == 128) if work is not _feather else 0
    while n_band > _MOST_BAND_PX * shrink**2:
        shrink *= 2
    if shrink == 1:
        return _refined(np.asarray(part), trimap, np.asarray(mask), work), name
    small = mask.reduce(shrink)
    trimap = trimap_of(np.asarray(small) >= 128, max(1, band_px // shrink))
    found = _refined(np.asarray(part.reduce(shrink)), trimap, np.asarray(small), work)
    pixels = np.array(Image.fromarray(found).resize(size, Image.Resampling.BILINEAR))
    opaque = pixels[..., 3] == 255  # keeps the photograph's own pixels, at full size
    pixels[opaque, :3] = np.asarray(part)[opaque]
    return pixels, f"{name} at 1/{shrink} of the size"


def _taken(part: Image.Image, mask: Image.Image, _band_px: int) -> tuple[Pixels, str]:
    """Return the pixels of an object whose mask is alpha already, and that this is so."""
    share = np.asarray(mask)
    trimap = np.full(share.shape, 128, np.uint8)
    trimap[share == 255], trimap[share == 0] = 255, 0
    return _refined(np.asarray(part), trimap, share, _as_said), "network"


def _refined(seen: Pixels, trimap: Pixels, mask: Pixels, work: _Work) -> Pixels:
    """Return pixels with alpha, of which the band of a trimap is settled tile by tile."""
    pixels = np.dstack([seen, np.where(trimap == 255, np.uint8(255), np.uint8(0))])
    for core, around in _tiles(trimap.shape):
        if not (trimap[core] == 128).any():
            continue
        tile = _Tile(seen[around], trimap[around], mask[around])
        share = work(tile)
        if share is None:
            share = _feather(tile)
        known = tile.trimap
        share = np.where(known == 128, share, known / np.float32(255)).astype(np.float32)
        share[share < _CLEAR] = 0
        share[share > 1 - _CLEAR] = 1
        own = _own_colours(tile.seen, share)
        height, width = trimap[core].shape
        y, x = core[0].start - around[0].start, core[1].start - around[1].start
        here = slice(y, y + height), slice(x, x + width)
        pixels[core] = np.dstack([own[here], np.rint(share[here] * 255).astype(np.uint8)])
    return pixels


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Give tiles that cover a picture: each itself, and with its surroundings."""
    height, width = shape
    for top in range(0, height, _TILE_PX):
        for left in range(0, width, _TILE_PX):
            bottom, right = min(height, top + _TILE_PX), min(width, left + _TILE_PX)
            yield (
                (slice(top, bottom), slice(left, right)),
                (
                    slice(max(0, top - _MARGIN_PX), min(height, bottom + _MARGIN_PX)),
                    slice(max(0, left - _MARGIN_PX), min(width, right + _MARGIN_PX)),
                ),
            )


def _feather(tile: _Tile) -> Floats:
    """Return the mask with an edge of one px."""
    return smoothed((tile.mask >= 128).astype(np.float32))


def _by_network(network: Matting, tile: _Tile) -> Floats:
    return network(tile.seen, tile.trimap)


def _as_said(tile: _Tile) -> Floats:
    """Return the mask, which is alpha already."""
    return tile.mask.astype(np.float32) / np.float32(255)


def _closed_form(tile: _Tile) -> Floats | None:
    """Return alpha by closed-form matting (Levin 2006).

    None where its solver finds none, or a tile of a thin part shows but one side of the edge.
    """
    from pymatting.alpha.estimate_alpha_cf import estimate_alpha_cf
    from pymatting.preconditioner.ichol import ichol

    # It prints what it tries in vain to stdout, where the result goes as JSON. A name of its own
    # module, since stdout itself is every thread's.
    ichol.__globals__["print"] = _say_nothing
    with _PYMATTING:
        try:
            alpha = estimate_alpha_cf(tile.seen / 255.0, tile.trimap / 255.0)
        except ValueError:  # also where it misses one side
            return None
    return np.asarray(alpha, np.float32) if np.isfinite(alpha).all() else None


def _say_nothing(*_: object) -> None:
    pass


def _own_colours(seen: Pixels, share: Floats) -> Pixels:
    """Return the object's colours without the background's in them, where it is mixed with that."""
    mixed = (share > 0) & (share < 1)
    if not mixed.any():
        return seen
    colours = seen.copy()
    if has_pymatting():
        from pymatting.foreground.estimate_foreground_ml import estimate_foreground_ml

        with _PYMATTING:
            own = estimate_foreground_ml(seen / 255.0, share.astype(np.float64))
        colours[mixed] = np.rint(np.clip(own[mixed], 0, 1) * 255)
        return colours
    # The more transparent, the less does a pixel's own colour count beside that of the object.
    ys, xs, near = carried(seen.astype(np.float32), share == 1, mixed, 2 * _WIDEST_PX)
    weight = share[ys, xs, None]
    colours[ys, xs] = np.rint(weight * seen[ys, xs] + (1 - weight) * near)
    return colours
