"""Which objects a record holds and where they stand: arithmetic on a record's random words.

An object stands with its foot, the middle of its lowest rows, on a pixel of the background's
ground. Under a pinhole both its size and its nearness go with the inverse depth of that pixel
(rho), so size needs no focal length. Everything here is integers; sizes are levels of a ladder
that each foreground was prepared at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from builder.ladder import OCTAVE, nearest_level, power_of_two
from builder.pinned import CutAt, Stance

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Part = TypeVar("Part", bound=npt.NDArray[Any])

RHO_BITS = 33  # of twice the inverse metres of a metric ground, see `GroundTable.rho`
_TRIES = 8
_WORDS_A_TRY = 6
_WORDS_AN_OBJECT = 4 + _TRIES * _WORDS_A_TRY
WORDS_AHEAD = 8  # of a record, before those of its objects


@dataclass(frozen=True)
class GroundTable:
    """Where feet may stand on a background, and how near each place is.

    `bins` hold pixels (row by row, as flat indexes) in bands of equal logarithmic distance, far to
    near, none empty: drawn by band first, so that near rows do not win by their area. `middle` is
    the median of the ground's rho, in the plane's doubled units (see `rho`).
    """

    plane: tuple[int, int, int]
    bins: tuple[Ints, ...]
    middle: int
    size: int

    @classmethod
    def of(cls, plane: tuple[int, int, int], edges: Sequence[int], region: Mask) -> GroundTable:
        """Sort the pixels of a region (H, W) into bands of doubled rho between edges."""
        size = region.shape[1]
        pixels = np.flatnonzero(region)
        a, b, c = plane
        values = a * (2 * (pixels % size) + 1) + b * (2 * (pixels // size) + 1) + 2 * c
        band = np.searchsorted(np.asarray(edges, np.int64), values, side="right")
        bins = (pixels[band == number] for number in range(len(edges) + 1))
        middle = int(np.partition(values, values.size // 2)[values.size // 2])
        return cls(plane, tuple(b for b in bins if b.size), middle, size)

    def rho(self, x: int, y: int) -> int:
        """Return twice the inverse depth of the plane at the centre of a pixel."""
        a, b, c = self.plane
        return a * (2 * x + 1) + b * (2 * y + 1) + 2 * c


@dataclass(frozen=True)
class Form:
    """A foreground at one level, seen one way: its mask and where it stands.

    `mask` is (h, w) bool; `foot_x` the middle of its lowest rows in px from its left edge.
    """

    mask: Mask
    n_mask: int
    foot_x: int


@dataclass(frozen=True)
class Placed:
    """An object of a scene: what it is and where its upper left corner lies, maybe outside.

    `depth` is the map's value at its foot, or a value before all that lies behind it; 0 where
    that is unknown. Of two objects the one of more `nearness` hides the other. A distractor is not
    `labelled`. `word` is 64 random bits for how it looks.
    """

    foreground: int
    flipped: bool
    level: int
    left_px: int
    top_px: int
    foot: tuple[int, int]
    stance: Stance
    depth: int
    nearness: int
    labelled: bool = True
    word: int = 0


class Sources(Protocol):
    """What placing needs to know of prepared sources."""

    def stance(self, foreground: int) -> Stance:
        """Return whether a foreground stands or may be anywhere."""

    def height_mm(self, foreground: int) -> int:
        """Return the true height of a foreground, 0 where it is not known."""

    def cut_at(self, foreground: int) -> CutAt:
        """Return at which side its own photograph cut it off, if at any."""

    def sides(self, foreground: int) -> Sequence[int]:
        """Return the longer side of a foreground at every level, in px, largest first."""

    def form(self, foreground: int, flipped: bool, level: int) -> Form:
        """Return the shape of a foreground at a level."""

    def ground(self, background: int) -> GroundTable | None:
        """Return where feet may stand on a background, if anywhere."""

    def standing(self, background: int, foot: tuple[int, int], width: int) -> tuple[int, int]:
        """Return the depth, and the nearness, of what stands there and is so wide, in px."""

    def floating(self, background: int, form: Form, left_px: int, top_px: int) -> tuple[int, int]:
        """Return the depth, and the nearness, of what hangs before the background there."""


@dataclass(frozen=True)
class Rules:
    """How objects are placed; shares are in thousandths, jitter in 64ths of an octave.

    `sides` is the longer side of an object at the middle of the ground, or of a free one, from
    least to most, in px. `focal` is the focal length in units of 2^-16 px. A
    form is one of `n_turns` angles of a size; all sizes of the first come first.
    """

    size: int
    objects: tuple[int, int]
    sides: tuple[int, int]
    on_ground: bool
    flip: bool
    jitter: int
    truncation: int
    max_overlap: int
    focal: int
    n_turns: int = 1
    distractors: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _Fit:
    """A try at placing an object, and by how many thousandths it breaks the rules."""

    placed: Placed
    fault: int


class _Words:
    """Random 64-bit words of a record, used up one after another."""

    def __init__(self, words: Sequence[int]) -> None:
        self._words, self._at = words, 0

    def below(self, n: int) -> int:
        """Return a number in [0, n): high bits of a product, even to n / 2^64."""
        word = self._words[self._at]
        self._at += 1
        return (word * n) >> 64

    def jump(self, at: int) -> None:
        """Go on at a word, however many were used before it."""
        self._at = at


def n_words(rules: Rules) -> int:
    """Return how many words the scene of a record takes at most."""
    return WORDS_AHEAD + (rules.objects[1] + rules.distractors[1]) * _WORDS_AN_OBJECT


def place_objects(
    rules: Rules,
    sources: Sources,
    background: int,
    first: tuple[int, bool] | None,
    others: Sequence[Sequence[int]],
    words: Sequence[int],
    n_distractors: int = 0,
    mirrored: bool = False,
) -> list[Placed]:
    """Place the objects of one record.

    Args:
        background: index of the background.
        first: index of the first object's foreground, and whether it is mirrored; None: drawn
            as the others.
        others: indexes of the foregrounds that objects are drawn from, in groups drawn evenly.
        words: `n_words` random words of the record.
        n_distractors: how many objects without a label are placed after the others.
        mirrored: whether the record is to be mirrored as a whole, so each object is here what it
            is not to be there.

    Returns:
        The objects in the order they were drawn, distractors last; one that fits nowhere stands
        where it breaks the rules least. Some of the first one lies in the frame, so that no record
        is without objects.
    """
    draw = _Words(words)
    low, high = rules.objects
    count = low + draw.below(high - low + 1)
    ground = sources.ground(background) if rules.on_ground else None
    placed: list[Placed] = []
    distractors = range(high, high + n_distractors)  # words do not depend on the others' number
    for number in (*range(count), *distractors):
        draw.jump(WORDS_AHEAD + number * _WORDS_AN_OBJECT)
        group = others[draw.below(len(others))]
        foreground, flipped = group[draw.below(len(group))], rules.flip and draw.below(2) == 1
        if number == 0 and first is not None:
            foreground, flipped = first
        flipped ^= mirrored
        # Cut off above, its foot lies where its height ends, which is hardly ever on the ground.
        stands = sources.stance(foreground) == "ground" and sources.cut_at(foreground) != "top"
        best: _Fit | None = None
        for attempt in range(_TRIES):
            draw.jump(WORDS_AHEAD + number * _WORDS_AN_OBJECT + 4 + attempt * _WORDS_A_TRY)
            table = ground if stands else None
            one, missed = _try(rules, sources, background, table, foreground, flipped, draw)
            fit = _Fit(one, missed + _fault(rules, sources, placed, one))
            if best is None or fit.fault < best.fault:
                best = fit
            if not best.fault:
                break
        assert best is not None
        best_one = best.placed if placed else _moved_in(rules, sources, background, best.placed)
        word = words[WORDS_AHEAD + number * _WORDS_AN_OBJECT + 3]
        placed.append(replace(best_one, labelled=number < high, word=word))
    return placed


def _try(
    rules: Rules,
    sources: Sources,
    background: int,
    ground: GroundTable | None,
    foreground: int,
    flipped: bool,
    draw: _Words,
) -> tuple[Placed, int]:
    """Place an object, and say by how many thousandths no size of it is its true one there."""
    missed = 0
    wanted = _between(*rules.sides, draw.below(OCTAVE + 1))
    wanted = (wanted * power_of_two(draw.below(2 * rules.jitter + 1) - rules.jitter)) >> 16
    sides = sources.sides(foreground)
    turned = draw.below(rules.n_turns) * len(sides)
    cut_at = sources.cut_at(foreground)
    if cut_at:
        turned = 0  # or the cut would not lie along the edge
    if ground is not None:
        band = ground.bins[draw.below(len(ground.bins))]
        y, x = divmod(int(band[draw.below(len(band))]), ground.size)
        rho = ground.rho(x, rules.size - 1 if cut_at == "bottom" else y)
        if height_mm := sources.height_mm(foreground):
            # Pinhole: height in px = true height * focal length / distance.
            high, longest = sources.form(foreground, flipped, 0).mask.shape[0], sides[0]
            wanted = (height_mm * rules.focal * rho // (1000 << RHO_BITS)) * longest // high
            missed = _out_of_reach(sides, wanted)
        else:
            wanted = wanted * rho // ground.middle
        level = nearest_level(sides, wanted) + turned
        form = sources.form(foreground, flipped, level)
        left, top = x - form.foot_x, y + 1 - form.mask.shape[0]
        left, top = _against_edge(cut_at, flipped, form, rules.size, left, top)
        one = Placed(foreground, flipped, level, left, top, (x, y), "ground", 0, 0)
        return _settled(rules, sources, background, one), missed
    step = nearest_level(sides, wanted)
    while max(sources.form(foreground, flipped, step + turned).mask.shape) > rules.size:
        if step + 1 == len(sides):
            break
        step += 1  # or it could lie nowhere wholly inside
    level = step + turned
    form = sources.form(foreground, flipped, level)
    height, width = form.mask.shape
    over_x, over_y = (n * rules.truncation // 1000 for n in (width, height))
    left = draw.below(max(1, rules.size - width + 1 + 2 * over_x)) - over_x
    top = draw.below(max(1, rules.size - height + 1 + 2 * over_y)) - over_y
    left, top = _against_edge(cut_at, flipped, form, rules.size, left, top)
    one = Placed(foreground, flipped, level, left, top, (left, top), "free", 0, 0)
    return _settled(rules, sources, background, one), missed


def _settled(rules: Rules, sources: Sources, background: int, one: Placed) -> Placed:
    """Return an object with the foot and the depth that it has where it lies."""
    form = sources.form(one.foreground, one.flipped, one.level)
    height, width = form.mask.shape
    x, y = one.left_px + form.foot_x, one.top_px + height - 1
    if one.stance == "ground":
        x, y = min(max(x, 0), rules.size - 1), min(y, rules.size - 1)
        depth, nearness = sources.standing(background, (x, y), width)
    else:
        depth, nearness = sources.floating(background, form, one.left_px, one.top_px)
    return replace(one, foot=(x, y), depth=depth, nearness=nearness)


def _moved_in(rules: Rules, sources: Sources, background: int, one: Placed) -> Placed:
    """Return an object none of which is in the frame moved until its nearest pixel is."""
    mask = sources.form(one.foreground, one.flipped, one.level).mask
    if inside_frame(mask, one.left_px, one.top_px, rules.size).any():
        return one
    rows, columns = np.nonzero(mask)
    x, y = one.left_px + columns, one.top_px + rows
    by_x, by_y = (np.clip(at, 0, rules.size - 1) - at for at in (x, y))
    nearest = np.argmin(abs(by_x) + abs(by_y))
    left, top = one.left_px + int(by_x[nearest]), one.top_px + int(by_y[nearest])
    return _settled(rules, sources, background, replace(one, left_px=left, top_px=top))


def _out_of_reach(sides: Sequence[int], wanted: int) -> int:
    """Return by how many thousandths a side, in 2^-16 px, lies beyond the largest or smallest."""
    reached = min(max(wanted, sides[-1] << 16), sides[0] << 16)
    return 1000 * abs(wanted - reached) // max(wanted, reached)


def _against_edge(
    cut_at: CutAt, flipped: bool, form: Form, size: int, left: int, top: int
) -> tuple[int, int]:
    """Move an object that its photograph cut off against that edge of the record."""
    height, width = form.mask.shape
    if cut_at in ("left", "right"):
        left = 0 if (cut_at == "left") != flipped else size - width
    elif cut_at:
        top = 0 if cut_at == "top" else size - height
    return left, top


def _between(low: int, high: int, sixty_fourth: int) -> int:
    """Return a size between two, even on a logarithmic scale, in units of 2^-16 px."""
    if low == high:
        return low << 16
    return low * power_of_two(_steps(low, high) * sixty_fourth // OCTAVE)


@lru_cache(8)  # a recipe has one range
def _steps(low: int, high: int) -> int:
    """Return how many 64ths of an octave lead from a size to a larger one, by integers."""
    steps = 0
    while (low * power_of_two(steps + 1)) >> 16 <= high:
        steps += 1
    return steps


def _fault(rules: Rules, sources: Sources, placed: Sequence[Placed], one: Placed) -> int:
    """Return by how much an object breaks the rules, in thousandths: cut off, hidden, hiding."""
    form = sources.form(one.foreground, one.flipped, one.level)
    inside = inside_frame(form.mask, one.left_px, one.top_px, rules.size)
    n_inside = int(np.count_nonzero(inside))
    if not n_inside:
        return 10_000
    fault = max(0, 1000 * (form.n_mask - n_inside) // form.n_mask - rules.truncation)
    for other in placed:
        near, far = (one, other) if one.nearness >= other.nearness else (other, one)
        fault += max(0, _hidden(sources, rules.size, near, far) - rules.max_overlap)
    return fault


def inside_frame(mask: Part, left_px: int, top_px: int, size: int) -> Part:
    """Return the part (a view) of a mask (h, w) that lies inside a square record."""
    height, width = mask.shape
    part: Part = mask[  # type: ignore[assignment]
        max(0, -top_px) : max(0, min(height, size - top_px)),
        max(0, -left_px) : max(0, min(width, size - left_px)),
    ]
    return part


def _hidden(sources: Sources, size: int, near: Placed, far: Placed) -> int:
    """Return how much of the far object's part in the frame the near one hides, in thousandths."""
    a = sources.form(near.foreground, near.flipped, near.level).mask
    b = sources.form(far.foreground, far.flipped, far.level).mask
    left, top = max(near.left_px, far.left_px, 0), max(near.top_px, far.top_px, 0)
    right = min(near.left_px + a.shape[1], far.left_px + b.shape[1], size)
    bottom = min(near.top_px + a.shape[0], far.top_px + b.shape[0], size)
    if left >= right or top >= bottom:
        return 0
    one = a[top - near.top_px : bottom - near.top_px, left - near.left_px : right - near.left_px]
    two = b[top - far.top_px : bottom - far.top_px, left - far.left_px : right - far.left_px]
    n_hidden = int(np.count_nonzero(one & two))
    n_far = np.count_nonzero(inside_frame(b, far.left_px, far.top_px, size)) if n_hidden else 1
    return 1000 * n_hidden // int(n_far)
