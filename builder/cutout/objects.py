"""Which objects of a photograph are cut out, and why none may be: the same for all ways to do it.

What is object is settled in a small picture; what is said of a cut-out is measured at full size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from builder.cutout.shapes import Mask, grown, holes, parts, touching
from builder.cutout.sweep import Pixels
from builder.pinned import CutAt

HOLE_PX = 6  # of the small picture, from which a hole or a part counts

_SMALL_PX = 512  # of the longer side, at least, where what is object is settled
_SEVERAL = 0.2  # of the largest object's area, from which another one counts as a subject
_KEPT, _NEAR = 0.02, 0.02  # what belongs to an object: by area, or by distance (of the longer side)
_LEAST_SHARE, _LEAST_PX = 0.001, 24  # of the picture's area, and of the object's longer side
_TOUCH = 0.01  # of a side of the photograph, from which an object is cut off there


class NotCutError(Exception):
    """Why no cut-out can be made; the text follows the name of the photograph."""


@dataclass(frozen=True)
class Figures:
    """What is said of a cut-out beside its picture; None is what its way of cutting cannot say.

    `soft` is the share of its pixels that are partly transparent; `holes` how many holes it has,
    `parts` how many parts; `edge_px` how many px its edge is wide. Before a sweep also: `filled`,
    the share of it that looks like the sweep and was taken for the object all the same; `alike`,
    the share of its edge that does; `shadow`, the area of the shadow that was left out, as a share
    of the object's; `spill`, how much of the sweep's colour, 0 to 255, was taken out of what lies
    behind its edge. By a network: `score`, how sure that is of the object, 0 to 1.
    """

    soft: float
    holes: int
    parts: int
    edge_px: float
    filled: float | None = None
    alike: float | None = None
    shadow: float | None = None
    spill: float | None = None
    score: float | None = None


class Cutout(NamedTuple):
    """A cut-out, (h, w, 4) uint8 with straight alpha, and where it lies in the photograph.

    `cut_at` is the side of the photograph that cuts it off, if one does; `edge` says how alpha was
    found where there are several ways, and `label` the class that a network gives it.
    """

    pixels: Pixels
    left: int
    top: int
    cut_at: CutAt
    figures: Figures
    edge: str = ""
    label: str = ""


def reduced(photograph: Image.Image) -> tuple[Image.Image, int]:
    """Return the small picture, and how many px of the photograph one of its px is.

    Raises:
        NotCutError: the photograph is too small.
    """
    if min(photograph.size) < _LEAST_PX:
        raise NotCutError(f"is {photograph.width}x{photograph.height} px; too small to cut out")
    scale = max(1, max(photograph.size) // _SMALL_PX)
    return (photograph.reduce(scale) if scale > 1 else photograph), scale


def objects_of(shape: Mask) -> list[Mask]:
    """Return the objects that a shape shows, largest first, each with the small parts near it.

    Where there is one, all other parts that are more than specks are its own, too.
    """
    labels, areas = parts(shape)
    areas[0] = 0
    if len(areas) < 2 or areas.max() < _LEAST_SHARE * shape.size:
        return []
    order = np.argsort(-areas, kind="stable")
    subjects = [int(n) for n in order if areas[n] >= _SEVERAL * areas.max()]
    reach, found = max(2, round(_NEAR * max(shape.shape))), []
    small = areas < _SEVERAL * areas.max()
    for subject in subjects:
        main = labels == subject
        near = touching(labels, grown(main, reach)) & small[labels]
        if len(subjects) == 1:
            near |= ((areas >= _KEPT * areas.max()) & small)[labels] & shape
        found.append(main | near)
    return found


def subjects(areas: Sequence[int], instances: bool, more: str = "") -> list[int]:
    """Return the numbers of the objects that are large enough to be meant, largest first.

    Args:
        areas: of all objects.
        instances: there may be several.
        more: what else can be done about several, in the message.

    Raises:
        NotCutError: there are several.
    """
    order = sorted(range(len(areas)), key=lambda n: -areas[n])
    found = [n for n in order if areas[n] >= _SEVERAL * max(areas)]
    if len(found) > 1 and not instances:
        raise NotCutError(
            f"shows {len(found)} objects; photograph each alone, or make a cut-out of each with "
            f"--instances (instances=True){more}"
        )
    return found


def check_size(shape: Mask, scale: int) -> None:
    """Refuse an object that is too small.

    Raises:
        NotCutError: it is.
    """
    ys, xs = np.nonzero(shape.any(1))[0], np.nonzero(shape.any(0))[0]
    if max(np.ptp(ys), np.ptp(xs)) * scale < _LEAST_PX:
        raise NotCutError(f"shows an object of less than {_LEAST_PX} px; photograph it larger")


def sides_of(
    shape: Mask, box: tuple[int, int, int, int] | None = None, size: tuple[int, int] | None = None
) -> list[CutAt]:
    """Return the sides of a picture that cut a shape off.

    Args:
        box: left, top, right and bottom of the shape in the picture; None is all of it.
        size: width and height of the picture.
    """
    height, width = shape.shape
    left, top, right, bottom = box or (0, 0, width, height)
    width, height = size or (width, height)
    touched: dict[CutAt, tuple[bool, Mask, int]] = {
        "left": (left == 0, shape[:, 0], height),
        "right": (right == width, shape[:, -1], height),
        "top": (top == 0, shape[0], width),
        "bottom": (bottom == height, shape[-1], width),
    }
    return [
        side
        for side, (is_there, line, n) in touched.items()
        if is_there and line.sum() > max(1, _TOUCH * n)
    ]


def cut_side(sides: Sequence[CutAt]) -> CutAt:
    """Return the one side of those that cut an object off, '' if there is none.

    Raises:
        NotCutError: there are several.
    """
    if len(sides) > 1:
        raise NotCutError(
            f"shows an object that is cut off at the {' and '.join(sides)}; at most one side may "
            "cut it off"
        )
    return sides[0] if sides else ""


def trimmed(pixels: Pixels) -> tuple[Pixels, int, int]:
    """Return what of (h, w, 4) pixels is seen, without colours where nothing is; left and top.

    Raises:
        NotCutError: nothing is seen.
    """
    alpha = pixels[..., 3]
    ys, xs = np.nonzero(alpha.any(1))[0], np.nonzero(alpha.any(0))[0]
    if not len(ys):
        raise NotCutError("shows nothing before its background")
    top, left = int(ys[0]), int(xs[0])
    pixels = pixels[top : int(ys[-1]) + 1, left : int(xs[-1]) + 1]
    pixels[pixels[..., 3] == 0] = 0
    return pixels, left, top


def edge_figures(alpha: Pixels) -> Figures:
    """Return the figures of a trimmed cut-out that its alpha alone says."""
    partly = int(np.count_nonzero((alpha > 0) & (alpha < 255)))
    n_seen = max(1, int(np.count_nonzero(alpha)))
    edge = np.count_nonzero((alpha > 25) & (alpha < 230))
    height, width = alpha.shape
    step = max(1, max(height, width) // _SMALL_PX)
    solid = np.pad(alpha[::step, ::step] >= 128, 1)
    outline = int(np.count_nonzero(solid & grown(~solid))) * step
    pieces = parts(solid)[1][1:]
    gaps = parts(holes(solid))[1][1:]
    return Figures(
        soft=round(partly / n_seen, 3),
        holes=int((gaps >= HOLE_PX).sum()),
        parts=int((pieces >= HOLE_PX).sum()),
        edge_px=round(int(edge) / max(1, outline), 1),
    )
