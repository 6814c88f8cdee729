"""Put several objects on a background: composite, instances, depth, what is seen of each.

Painter's order, far to near. Colours are blended by alpha, instances and depth are not: an object's
pixels are those of its mask, and a depth between that of an object and of what is behind it exists
nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from builder.record.board import Depth, Tilt, board
from builder.record.composition import Cutout, Pixels
from builder.record.scene import Placed, inside_frame
from builder.sources import label_parts

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Seen:
    """An object of a record as it is seen: areas in px, boxes in px as x, y, width, height (COCO).

    `bbox_amodal` and `area_amodal` are of the whole object, beyond the frame too; `n_inside` is
    its area in the frame, were nothing before it.
    """

    placed: Placed
    bbox: Box
    area: int
    n_inside: int
    bbox_amodal: Box
    area_amodal: int


@dataclass(frozen=True)
class Composed:
    """A composed record: (H, W, 3) uint8, instances (H, W) uint8, depth (H, W) uint16 or None.

    Instance k is the k-th of `objects`, from 1; 0 is background. `left_out` counts objects of
    which too little would have been seen.
    """

    fg_bg: Pixels
    instances: Pixels
    depth: Depth | None
    objects: tuple[Seen, ...]
    left_out: int


@dataclass(frozen=True)
class Hides:
    """Where a background hides objects: where it is much nearer than they are.

    A bare comparison would erase objects that stand in free view, since estimated depth is off by
    more than their distance from what is behind them; so it takes a margin of a quarter, whole
    parts, and never the ground that objects stand on.
    """

    depth: Depth
    ground: npt.NDArray[np.bool_] | None
    inverse: bool

    def cut(self, one: Placed, cutout: Cutout, tilt: Tilt | None) -> Cutout:
        """Return a cut-out without what the background hides of it; as it is if that is all."""
        if one.depth == 0:
            return cutout
        behind, mask = _parts(self.depth, cutout.mask, one)
        if not mask.any():
            return cutout
        height, width = behind.shape
        box = max(0, one.left_px), max(0, one.top_px), width, height
        stands = tilt if one.stance == "ground" else None
        mine = np.broadcast_to(
            board(stands, one.depth, one.foot, box, inverse=self.inverse), behind.shape
        )
        solid = inside_frame(
            cutout.clear[:, ::3] < 255, one.left_px, one.top_px, self.depth.shape[0]
        )
        near, far = (mine, behind) if self.inverse else (behind, mine)
        hidden = (behind > 0) & solid & (4 * near.astype(np.int64) < 3 * far.astype(np.int64))
        if self.ground is not None:
            hidden &= ~_parts(self.ground, cutout.mask, one)[0]
        hidden = _wide_parts(hidden, cutout.n_mask)
        if not hidden.any() or not (mask[~hidden] > 0).any():
            return cutout
        whole = np.zeros(cutout.mask.shape, bool)
        inside_frame(whole, one.left_px, one.top_px, self.depth.shape[0])[...] = hidden
        thrice = np.repeat(whole, 3, axis=1)
        return replace(
            cutout,
            weighted=np.where(thrice, np.uint16(128), cutout.weighted),
            clear=np.where(thrice, np.uint16(255), cutout.clear),
            mask=np.where(whole, np.uint8(0), cutout.mask),
        )


def _wide_parts(hidden: npt.NDArray[np.bool_], n_mask: int) -> npt.NDArray[np.bool_]:
    """Return a mask without its parts (4-connected) below two percent of an object."""
    labels = label_parts(hidden)
    sizes = np.bincount(labels.ravel())
    wide = 50 * sizes >= n_mask
    wide[0] = False
    kept: npt.NDArray[np.bool_] = wide[labels]
    return kept


def compose(
    background: Pixels,
    depth: Depth | None,
    tilt: Tilt | None,
    placed: Sequence[Placed],
    cutout: Callable[[Placed], Cutout],
    *,
    min_visible: int,
    inverse: bool = False,
    hides: Hides | None = None,
) -> Composed:
    """Make a record of placed objects.

    Args:
        background: (H, W, 3) uint8; left as it is.
        depth: of the background, (H, W) uint16 in stored units, or None.
        tilt: of upright boards there; None where there is no ground.
        placed: the objects, in the order they are numbered.
        cutout: gives the pixels of one.
        min_visible: thousandths of an object's part in the frame that must be seen.
        inverse: whether `depth` is inverse.
        hides: says where the background hides objects; None: nowhere.
    """
    cutouts = whole = [cutout(one) for one in placed]
    if hides is not None:
        cutouts = [hides.cut(one, made, tilt) for one, made in zip(placed, whole, strict=True)]
    kept = list(range(len(placed)))
    while True:
        order = sorted(kept, key=lambda i: placed[i].nearness)
        instances = np.zeros(background.shape[:2], np.uint8)
        for i in order:
            part, mask = _parts(instances, cutouts[i].mask, placed[i])
            part[mask > 0] = i + 1
        areas = np.bincount(instances.ravel(), minlength=len(placed) + 1)[1:].tolist()
        inside = [_n_inside(whole[i], placed[i], background.shape[0]) for i in range(len(placed))]
        shares = {i: 1000 * areas[i] // max(1, inside[i]) for i in kept}
        worst = min(kept, key=lambda i: shares[i])
        if len(kept) == 1 or shares[worst] >= max(1, min_visible):
            break
        kept.remove(worst)  # the others are seen no worse without it
    if kept != list(range(len(placed))):
        numbers = np.zeros(len(placed) + 1, np.uint8)
        for number, i in enumerate(kept, start=1):
            numbers[i + 1] = number
        instances = numbers[instances]
    fg_bg = background.copy()
    composed = None if depth is None else depth.copy()
    for i in order:
        _blend(fg_bg, cutouts[i], placed[i])
        if composed is not None:
            _stand(composed, tilt, cutouts[i].mask, placed[i], inverse=inverse)
    objects = tuple(
        _seen(placed[i], whole[i], instances, number, areas[i], inside[i])
        for number, i in enumerate(kept, start=1)
    )
    return Composed(fg_bg, instances, composed, objects, len(placed) - len(kept))


def _parts(picture: npt.NDArray, mask: Pixels, one: Placed) -> tuple[npt.NDArray, Pixels]:  # type: ignore[type-arg]
    """Return the parts (views) of a picture and of a mask that lie on each other."""
    part = inside_frame(mask, one.left_px, one.top_px, picture.shape[0])
    top, left = max(0, one.top_px), max(0, one.left_px)
    return picture[top : top + part.shape[0], left : left + part.shape[1]], part


def _n_inside(cutout: Cutout, one: Placed, size: int) -> int:
    height, width = cutout.mask.shape
    if 0 <= one.left_px <= size - width and 0 <= one.top_px <= size - height:
        return cutout.n_mask
    return int(np.count_nonzero(inside_frame(cutout.mask, one.left_px, one.top_px, size)))


def _blend(picture: Pixels, cutout: Cutout, one: Placed) -> None:
    height, width = cutout.mask.shape
    size = picture.shape[0]
    top, left = max(0, -one.top_px), max(0, -one.left_px)
    bottom, right = min(height, size - one.top_px), min(width, size - one.left_px)
    columns = slice(3 * left, 3 * right)
    flat = picture.reshape(size, -1)
    pasted = flat[
        one.top_px + top : one.top_px + bottom, 3 * (one.left_px + left) : 3 * (one.left_px + right)
    ]
    value = pasted * cutout.clear[top:bottom, columns]
    value += cutout.weighted[top:bottom, columns]
    value += value >> 8
    value >>= 8
    pasted[...] = value


def _stand(depth: Depth, tilt: Tilt | None, mask: Pixels, one: Placed, *, inverse: bool) -> None:
    part, mask = _parts(depth, mask, one)
    height, width = part.shape
    box = max(0, one.left_px), max(0, one.top_px), width, height
    stands = tilt if one.stance == "ground" else None
    values = board(stands, one.depth, one.foot, box, inverse=inverse)
    np.copyto(part, values, where=mask > 0)


def _seen(
    one: Placed, cutout: Cutout, instances: Pixels, number: int, area: int, n_inside: int
) -> Seen:
    x, y, width, height = cutout.box
    part, _ = _parts(instances, cutout.mask, one)
    mine = part == number
    rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
    left, top = max(0, one.left_px), max(0, one.top_px)
    bbox = (
        left + int(columns[0]),
        top + int(rows[0]),
        int(columns[-1] - columns[0]) + 1,
        int(rows[-1] - rows[0]) + 1,
    )
    amodal = one.left_px + x, one.top_px + y, width, height
    return Seen(one, bbox, area, n_inside, amodal, cutout.n_mask)
