"""What records are made from: prepared sources as arrays, each decoded when it is first used."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

import numpy as np
import numpy.typing as npt

from builder.caches import ByteCache
from builder.ladder import ladder, level_size
from builder.pinned import CutAt, PinnedRecipe, Stance
from builder.record.board import Depth, Relief, Tilt, depth_before, depth_under, relief_of
from builder.record.compose import Hides
from builder.record.composition import Cutout, cut_out
from builder.record.scene import Form, GroundTable, Placed
from builder.sources import SourceBank

_CACHE_BYTES = 600 * 2**20  # of cut-outs ready to be pasted
_FOOT_SHARE = 3  # percent of a form's rows, from below, whose middle is its foot


class Stage:
    """Prepared sources of a set as scenes need them; see `builder.record.scene.Sources`."""

    def __init__(self, pinned: PinnedRecipe, bank: SourceBank) -> None:
        recipe = pinned.recipe
        self._entries, self._bank, self._size = pinned.foregrounds, bank, recipe.size
        self.inverse = pinned.depth is not None and pinned.depth.quantity == "inverse_depth"
        self._occlude, self._changes_looks = recipe.occlude, recipe.changes_looks
        self._focal_squared_4 = focal_px_squared_4(recipe.size, recipe.fov_deg)
        self._focal = focal_of(recipe.size, recipe.fov_deg)
        self.cutout = ByteCache(self._cut_out, lambda cutout: cutout.size_bytes, _CACHE_BYTES)
        self.form = ByteCache(self._form, lambda form: form.mask.nbytes, _CACHE_BYTES // 8)
        self._reliefs = ByteCache(self._relief, lambda relief: relief.nbytes, _CACHE_BYTES // 4)
        self.turns_deg = recipe.turns_deg
        self._sides = [
            ladder(max(entry.width, entry.height))[: bank.n_levels(index) // len(self.turns_deg)]
            for index, entry in enumerate(self._entries)
        ]
        self._ground = ByteCache(self._ground_of, _ground_bytes, _CACHE_BYTES // 4)

    def _cut_out(self, foreground: int, flipped: bool, level: int) -> Cutout:
        return cut_out(self._bank.level(foreground, level), flipped, self._changes_looks)

    def _form(self, foreground: int, flipped: bool, level: int) -> Form:
        cutout = self.cutout(foreground, flipped, level)
        mask = cutout.mask > 0
        return Form(mask, cutout.n_mask, foot_of(mask))

    def _relief(self, foreground: int, flipped: bool, level: int) -> Relief:
        entry, stored = self._entries[foreground], self._bank.relief(foreground, level)
        assert stored is not None
        step, _ = self.step_and_turn(foreground, level)
        _, height_px = level_size(entry.width, entry.height, step)
        relief = relief_of(stored, height_px, self._focal)
        return relief[:, ::-1] if flipped else relief

    def relief(self, one: Placed) -> Relief | None:
        """Return what the relief of an object makes of its board's depth; None: it is a board."""
        if not self._entries[one.foreground].has_relief:
            return None
        return self._reliefs(one.foreground, one.flipped, one.level)

    def stance(self, foreground: int) -> Stance:
        """Return whether a foreground stands or may be anywhere."""
        return self._entries[foreground].stance

    def height_mm(self, foreground: int) -> int:
        """Return the true height of a foreground, 0 where it is not known."""
        return round(1000 * self._entries[foreground].height_m)

    def cut_at(self, foreground: int) -> CutAt:
        """Return at which side its own photograph cut it off, if at any."""
        return self._entries[foreground].cut_at

    def sides(self, foreground: int) -> Sequence[int]:
        """Return the longer side of a foreground at every level, in px, largest first."""
        return self._sides[foreground]

    def step_and_turn(self, foreground: int, level: int) -> tuple[int, float]:
        """Return the step of the ladder, and the angle in degrees, that a level stands for."""
        turn, step = divmod(level, len(self._sides[foreground]))
        return step, self.turns_deg[turn]

    def depth(self, background: int) -> Depth | None:
        """Return the depth of a background, (H, W) uint16, if it was prepared."""
        backdrop = self._bank.backdrop(background)
        return None if backdrop is None else backdrop.depth

    def _ground_of(self, background: int) -> tuple[GroundTable, Tilt] | tuple[None, None]:
        backdrop = self._bank.backdrop(background)
        if backdrop is None or backdrop.region is None:
            return None, None
        table = GroundTable.of(backdrop.plane, backdrop.edges, backdrop.region)
        return table, Tilt.of(backdrop.plane, self._size, self._focal_squared_4)

    def ground(self, background: int) -> GroundTable | None:
        """Return where feet may stand on a background, if anywhere."""
        return self._ground(background)[0]

    def tilt(self, background: int) -> Tilt | None:
        """Return how upright boards lean on a background that has a ground."""
        return self._ground(background)[1]

    def hides(self, background: int) -> Hides | None:
        """Return what tells where a background hides objects; None where it never does."""
        backdrop = self._bank.backdrop(background)
        if not self._occlude or backdrop is None:
            return None
        return Hides(backdrop.depth, backdrop.region, inverse=self.inverse)

    def standing(self, background: int, foot: tuple[int, int], width: int) -> tuple[int, int]:
        """Return the depth, and the nearness, of what stands there and is so wide, in px."""
        depth = self.depth(background)
        return self._with_nearness(0 if depth is None else depth_under(depth, foot, width))

    def floating(self, background: int, form: Form, left_px: int, top_px: int) -> tuple[int, int]:
        """Return the depth, and the nearness, of what hangs before the background there."""
        depth = self.depth(background)
        if depth is None:
            return 0, 0
        return self._with_nearness(depth_before(depth, form, left_px, top_px, inverse=self.inverse))

    def _with_nearness(self, depth: int) -> tuple[int, int]:
        return depth, depth if self.inverse else -depth


def _ground_bytes(found: tuple[GroundTable, Tilt] | tuple[None, None]) -> int:
    return sum(band.nbytes for band in found[0].bins) if found[0] else 1


def foot_of(mask: npt.NDArray[np.bool_]) -> int:
    """Return the middle, in px from the left, of a form's lowest solid rows."""
    rows = np.flatnonzero(mask.any(axis=1))
    bottom = int(rows[-1]) + 1
    low = mask[max(0, bottom - max(1, len(mask) * _FOOT_SHARE // 100)) : bottom].any(axis=0)
    columns = np.flatnonzero(low)
    return int(columns[0] + columns[-1]) // 2


def focal_of(size: int, fov_deg: float) -> int:
    """Return the focal length of a square picture in units of 2^-16 px."""
    return isqrt(focal_px_squared_4(size, fov_deg) << 30)


def focal_px_squared_4(size: int, fov_deg: float) -> int:
    """Return four times the square of the focal length in px of a square picture."""
    half = np.tan(np.radians(fov_deg) / 2)
    return round(float(size * size / (half * half)))
