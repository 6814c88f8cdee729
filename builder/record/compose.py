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

from builder.record.board import Depth, Relief, Tilt, object_depth
from builder.record.composition import Corners, Cutout, Pixels
from builder.record.scene import Placed, inside_frame
from builder.sources import label_parts

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Seen:
    """An object of a record as it is seen: areas in px, boxes in px as x, y, width, height (COCO).

    `bbox_amodal` and `area_amodal` are of the whole object, beyond the frame too; `n_inside` is
    its area in the frame, were nothing before it. `index` is its place among those placed.
    """

    index: int
    placed: Placed
    bbox: Box
    area: int
    n_inside: int
    bbox_amodal: Box
    area_amodal: int


@dataclass(frozen=True)
class Composed:
    """A composed record: (H, W, 3) uint8, instances (H, W) uint8, depth (H, W) uint16 or None.

    Instance k is the k-th of `objects`, from 1; 0 is background or a distractor. `left_out` counts
    objects of which too little would have been seen. Outside of `changed` the picture is the
    background's.
    """

    fg_bg: Pixels
    instances: Pixels
    depth: Depth | None
    objects: tuple[Seen, ...]
    left_out: int
    changed: Corners
    distractors: tuple[Seen, ...] = ()


@dataclass(frozen=True)
class Shadow:
    """A shadow ready to be pasted: `clear` as of a black `Cutout`, and its place."""

    clear: npt.NDArray[np.uint16]
    left_px: int
    top_px: int


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

    def cut(
        self, one: Placed, cutout: Cutout, tilt: Tilt | None, relief: Relief | None = None
    ) -> Cutout:
        """Return a cut-out without what the background hides of it; as it is if that is all."""
        if one.depth == 0:
            return cutout
        behind, mask = _parts(self.depth, cutout.mask, one)
        if not mask.any():
            return cutout
        height, width = behind.shape
        box = max(0, one.left_px), max(0, one.top_px), width, height
        mine = np.broadcast_to(
            object_depth(tilt, one, box, relief, inverse=self.inverse), behind.shape
        )
        near, far = (mine, behind) if self.inverse else (behind, mine)
        hidden = (behind > 0) & (4 * near.astype(np.int64) < 3 * far.astype(np.int64))
        if self.ground is not None:
            hidden &= ~_parts(self.ground, cutout.mask, one)[0]
        hidden = _wide_parts(hidden, mask > 0, cutout.n_mask)
        if not hidden.any() or not (mask[~hidden] > 0).any():
            return cutout
        whole = np.zeros(cutout.mask.shape, bool)
        inside_frame(whole, one.left_px, one.top_px, self.depth.shape[0])[...] = hidden
        thrice = np.repeat(np.pad(whole, cutout.margin, mode="edge"), 3, axis=1)
        return replace(
            cutout,
            weighted=np.where(thrice, np.uint16(128), cutout.weighted),
            clear=np.where(thrice, np.uint16(255), cutout.clear),
            mask=np.where(whole, np.uint8(0), cutout.mask),
        )


def _wide_parts(
    hidden: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_], n_mask: int
) -> npt.NDArray[np.bool_]:
    """Return what is hidden without parts (4-connected) that hide below two percent of an object.

    The edge of the object, which the blend changes, has no say in it.
    """
    labels = label_parts(hidden)
    sizes = np.bincount(labels[mask], minlength=int(labels.max()) + 1)
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
    shadow: Callable[[Placed], Shadow | None] | None = None,
    relief: Callable[[Placed], Relief | None] | None = None,
    mirrored: bool = False,
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
        shadow: gives the shadow of an object, if it throws one.
        relief: gives the relief of an object, if it has one; None: all are boards.
        mirrored: mirror the whole record left to right.
    """
    cutouts = whole = [cutout(one) for one in placed]
    if hides is not None:
        cutouts = [
            hides.cut(one, made, tilt, relief(one) if relief else None)
            for one, made in zip(placed, whole, strict=True)
        ]
    inside = [
        _n_inside(made, one, background.shape[0]) for made, one in zip(whole, placed, strict=True)
    ]
    order, painted = _seen_enough(placed, cutouts, inside, min_visible, background.shape[:2])
    fg_bg = background.copy()
    changed: list[Corners] = []
    composed = None if depth is None else depth.copy()
    for i in order:
        if shadow is not None and (dark := shadow(placed[i])) is not None:
            changed.append(_blend(fg_bg, None, dark.clear, dark.left_px, dark.top_px))
        one, made = placed[i], cutouts[i]
        margin = made.margin
        at = one.left_px - margin, one.top_px - margin
        changed.append(_blend(fg_bg, made.weighted, made.clear, *at))
        if composed is not None:
            shaped = relief(one) if relief else None
            _stand(composed, tilt, made.mask, one, shaped, inverse=inverse)
    seen = {i: _seen(i, placed[i], whole[i], painted, inside[i]) for i in sorted(order)}
    labelled = [i for i in seen if placed[i].labelled]
    record = Composed(
        fg_bg=fg_bg,
        instances=_numbered(painted, labelled, len(placed)),
        depth=composed,
        objects=tuple(seen[i] for i in labelled),
        left_out=sum(one.labelled for one in placed) - len(labelled),
        changed=_around(changed),
        distractors=tuple(seen[i] for i in seen if i not in labelled),
    )
    return _mirrored(record, whole) if mirrored else record


def _seen_enough(
    placed: Sequence[Placed],
    cutouts: Sequence[Cutout],
    inside: Sequence[int],
    min_visible: int,
    shape: tuple[int, int],
) -> tuple[list[int], Pixels]:
    """Leave out objects of which too little is seen, the least seen first.

    Returns:
        The indexes of the others, far to near, and where each is seen, (H, W) uint8: its index
        plus 1, or 0.
    """
    kept = list(range(len(placed)))
    while True:
        order = sorted(kept, key=lambda i: placed[i].nearness)
        painted = np.zeros(shape, np.uint8)
        for i in order:
            part, mask = _parts(painted, cutouts[i].mask, placed[i])
            part[mask > 0] = i + 1
        areas = np.bincount(painted.ravel(), minlength=len(placed) + 1)[1:].tolist()
        shares = {i: 1000 * areas[i] // max(1, inside[i]) for i in kept}
        worst = min(kept, key=lambda i: (shares[i], inside[i] > 0))  # outside altogether: first
        if len(kept) == 1 or shares[worst] >= max(1, min_visible):
            return order, painted
        # A record has an object at least: rather than the last one, a distractor goes.
        last = [i for i in kept if placed[i].labelled] == [worst]
        kept.remove(kept[-1] if last else worst)  # the others are seen no worse without it


def _numbered(painted: Pixels, labelled: Sequence[int], n_placed: int) -> Pixels:
    """Return where each labelled object is seen, by its number from 1, and not by its index."""
    if labelled == list(range(n_placed)):
        return painted
    numbers = np.zeros(n_placed + 1, np.uint8)
    for number, i in enumerate(labelled, start=1):
        numbers[i + 1] = number
    return numbers[painted]


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


def _blend(
    picture: Pixels,
    weighted: npt.NDArray[np.uint16] | None,
    clear: npt.NDArray[np.uint16],
    left_px: int,
    top_px: int,
) -> Corners:
    """Paste colours on a picture where they lie inside of it; see `Cutout`. None is black.

    Returns:
        Where that is.
    """
    height, width = clear.shape[0], clear.shape[1] // 3
    size = picture.shape[0]
    top, left = max(0, -top_px), max(0, -left_px)
    bottom, right = min(height, size - top_px), min(width, size - left_px)
    if top >= bottom or left >= right:
        return 0, 0, 0, 0
    columns = slice(3 * left, 3 * right)
    flat = picture.reshape(size, -1)
    pasted = flat[top_px + top : top_px + bottom, 3 * (left_px + left) : 3 * (left_px + right)]
    value = pasted * clear[top:bottom, columns]
    value += np.uint16(128) if weighted is None else weighted[top:bottom, columns]
    value += value >> 8
    value >>= 8
    pasted[...] = value
    return left_px + left, top_px + top, left_px + right, top_px + bottom


def _around(boxes: Sequence[Corners]) -> Corners:
    """Return the box around boxes; empty ones do not count."""
    some = [box for box in boxes if box[2]]
    if not some:
        return 0, 0, 0, 0
    lefts, tops, rights, bottoms = zip(*some, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _stand(
    depth: Depth,
    tilt: Tilt | None,
    mask: Pixels,
    one: Placed,
    relief: Relief | None,
    *,
    inverse: bool,
) -> None:
    part, mask = _parts(depth, mask, one)
    height, width = part.shape
    box = max(0, one.left_px), max(0, one.top_px), width, height
    np.copyto(part, object_depth(tilt, one, box, relief, inverse=inverse), where=mask > 0)


def _seen(index: int, one: Placed, cutout: Cutout, painted: Pixels, n_inside: int) -> Seen:
    x, y, width, height = cutout.box
    part, _ = _parts(painted, cutout.mask, one)
    mine = part == index + 1
    rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
    left, top = max(0, one.left_px), max(0, one.top_px)
    bbox = (
        left + int(columns[0]),
        top + int(rows[0]),
        int(columns[-1] - columns[0]) + 1,
        int(rows[-1] - rows[0]) + 1,
    )
    amodal = one.left_px + x, one.top_px + y, width, height
    return Seen(index, one, bbox, int(np.count_nonzero(mine)), n_inside, amodal, cutout.n_mask)


def _mirrored(record: Composed, cutouts: Sequence[Cutout]) -> Composed:
    """Return a record mirrored left to right, with what it says of its objects."""
    size, depth = record.fg_bg.shape[1], record.depth
    # As one value a pixel: NumPy is slow on a last axis of three.
    turned = np.ascontiguousarray(record.fg_bg.view("V3")[:, ::-1])
    objects, distractors = (
        tuple(_mirrored_seen(seen, size, cutouts[seen.index].mask.shape[1]) for seen in some)
        for some in (record.objects, record.distractors)
    )
    return replace(
        record,
        fg_bg=turned.view(np.uint8).reshape(record.fg_bg.shape),
        instances=np.ascontiguousarray(record.instances[:, ::-1]),
        depth=None if depth is None else np.ascontiguousarray(depth[:, ::-1]),
        changed=(
            size - record.changed[2],
            record.changed[1],
            size - record.changed[0],
            record.changed[3],
        ),
        objects=objects,
        distractors=distractors,
    )


def _mirrored_seen(seen: Seen, size: int, width: int) -> Seen:
    """Return an object as it is seen in the mirrored record; `width` is of its cut-out in px."""
    one = seen.placed
    boxes = ((size - x - w, y, w, h) for x, y, w, h in (seen.bbox, seen.bbox_amodal))
    bbox, amodal = boxes
    placed = replace(
        one,
        flipped=not one.flipped,
        left_px=size - one.left_px - width,
        foot=(size - 1 - one.foot[0], one.foot[1]),
    )
    return replace(seen, placed=placed, bbox=bbox, bbox_amodal=amodal)
