"""How the records of a set look: what is drawn for each, and cut-outs dressed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any

import numpy as np

from builder.caches import ByteCache
from builder.pinned import CutAt, PinnedRecipe
from builder.recipe import BLENDS, Recipe
from builder.record.appearance import (
    N_LIGHTS,
    ONE,
    UNCHANGED,
    Colour,
    Shade,
    Tone,
    coloured,
    darkening,
    dress,
    jittered,
    matching,
    noise_of,
    noisiness,
    recoloured,
    shade,
    sharpness,
    then,
    tone,
)
from builder.record.compose import Seen, Shadow
from builder.record.composition import Cutout, Pixels
from builder.record.encoding import through_jpeg
from builder.record.scene import WORDS_AHEAD, Placed
from builder.record.stage import Stage
from builder.schema import look_columns
from builder.sources import SourceBank

_CACHE_BYTES = 300 * 2**20  # of dressed cut-outs
_MOST_BLUR_PX = 2
_STEP = 4  # px between those looked at for a tone
_PATCH_SHARE = 8  # of the record's side: half the side of the patch that colours are matched to


@dataclass(frozen=True)
class Look:
    """What is drawn for a record: strengths in 256ths, quality 0 for none."""

    blend: str
    match: int
    shadow: int
    light: int
    quality: int
    mirrored: bool
    jitter: Colour
    n_distractors: int

    @classmethod
    def of(cls, recipe: Recipe, sibling: int, words: Sequence[int]) -> Look:
        """Draw the look of a record from its random words; each choice has bits of its own.

        Args:
            sibling: number of the record among those of its layout.
            words: of the record, the first ones.
        """
        assert len(words) >= WORDS_AHEAD
        low, high = recipe.n_distractors
        light, more = divmod(_between(0, N_LIGHTS * (high - low + 1) - 1, words[4]), high - low + 1)
        blend = BLENDS[_between(0, len(BLENDS) - 1, words[1])]
        if recipe.siblings:
            blend = BLENDS[sibling]
        elif recipe.blend != "mixed":
            blend = recipe.blend
        return cls(
            blend=blend,
            match=_strength(recipe.match_shares, words[2]),
            shadow=_strength(recipe.shadow_shares, words[3]),
            light=light,
            quality=_between(*recipe.jpeg_qualities, words[5]),
            mirrored=recipe.background_flip and words[6] >> 63 == 1,
            jitter=jittered(words[7], round(ONE * recipe.jitter)),
            n_distractors=low + more,
        )


def _strength(shares: tuple[float, float], word: int) -> int:
    return _between(round(ONE * shares[0]), round(ONE * shares[1]), word)


def _between(low: int, high: int, word: int) -> int:
    return low + ((word * (high - low + 1)) >> 64)


@dataclass(frozen=True)
class Dressed:
    """A placed object as it is pasted, and what is said of it."""

    cutout: Cutout
    colour: Colour
    blur_px: int
    noise: int


class Looks:
    """Dresses the objects of a set's records, and finishes its composites.

    What is the same for many records, such as another edge of a cut-out, is kept.
    """

    def __init__(self, pinned: PinnedRecipe, bank: SourceBank, stage: Stage) -> None:
        self._recipe, self._bank, self._stage = pinned.recipe, bank, stage
        self._dressed = ByteCache(self._dress, lambda cutout: cutout.size_bytes, _CACHE_BYTES)
        self._shade = ByteCache(self._shade_of, lambda s: s.dark.nbytes, _CACHE_BYTES // 8)
        background = bank.background
        self._scene_tone = cache(lambda index: tone(background(index)[::_STEP, ::_STEP]))
        self._scene_sharpness = cache(lambda index: sharpness(background(index)))
        self._scene_noise = cache(lambda index: noisiness(background(index)))
        self._tone = cache(self._tone_of)
        self._sharpness = cache(self._sharpness_of)
        self._noise = cache(lambda *at: noisiness(self._colours(*at), stage.form(*at).mask))

    def _dress(self, foreground: int, flipped: bool, level: int, blend: str, blur: int) -> Cutout:
        cut_at = self._stage.cut_at(foreground)
        if flipped:
            cut_at = _MIRRORED.get(cut_at, cut_at)
        return dress(self._stage.cutout(foreground, flipped, level), blend, blur, cut_at)

    def _shade_of(self, foreground: int, flipped: bool, level: int, light: int) -> Shade:
        return shade(self._stage.form(foreground, flipped, level).mask, light)

    def _colours(self, foreground: int, flipped: bool, level: int, blur: int = 0) -> Pixels:
        colours = self._dressed(foreground, flipped, level, "none", blur).colours
        assert colours is not None
        return colours

    def _tone_of(self, foreground: int) -> Tone:
        # The smallest size has the tone of all of them.
        at = foreground, False, len(self._stage.sides(foreground)) - 1
        return tone(self._colours(*at), self._stage.form(*at).mask)

    def _sharpness_of(self, foreground: int, level: int, blur: int) -> int:
        at = foreground, False, level
        return sharpness(self._colours(*at, blur), self._stage.form(*at).mask)

    def _blur_px(self, foreground: int, level: int, background: int) -> int:
        """Return the least blur under which an object is no sharper than its background."""
        due, blur = self._scene_sharpness(background), 0
        while blur < _MOST_BLUR_PX and self._sharpness(foreground, level, blur) > due:
            blur += 1
        return blur

    def dressed(self, one: Placed, look: Look, background: int) -> Dressed:
        """Return an object as it is to be pasted on a background."""
        recipe, at = self._recipe, (one.foreground, one.flipped, one.level)
        blur = 0
        if recipe.match_sharpness:
            blur = self._blur_px(one.foreground, one.level, background)
        colour = UNCHANGED
        if look.match:
            patch = self._patch(background, one.foot)
            scene = self._scene_tone(background)
            colour = matching(self._tone(one.foreground), scene, patch, look.match)
        if recipe.object_jitter:
            colour = then(colour, jittered(one.word, round(ONE * recipe.object_jitter)))
        noise = 0
        if recipe.match_noise:
            due, own = self._scene_noise(background), self._noise(one.foreground, False, one.level)
            noise = isqrt(max(0, due * due - own * own)) & ~3  # by quarters of a level
        if not blur and not noise and colour == UNCHANGED and look.blend == "none":
            return Dressed(self._stage.cutout(*at), colour, blur, noise)
        cutout = self._dressed(*at, look.blend, blur)
        if noise or colour != UNCHANGED:
            height, width = cutout.clear.shape[0], cutout.clear.shape[1] // 3
            added = noise_of(height, width, noise, one.word) if noise else None
            cutout = coloured(cutout, colour, added)
        return Dressed(cutout, colour, blur, noise)

    def _patch(self, background: int, foot: tuple[int, int]) -> tuple[int, int, int]:
        """Return the mean colour of a background around a foot."""
        half = max(1, self._recipe.size // _PATCH_SHARE)
        x, y = (min(max(value, 0), self._recipe.size - 1) for value in foot)
        pixels = self._bank.background(background)
        patch = pixels[max(0, y - half) : y + half : _STEP, max(0, x - half) : x + half : _STEP]
        patch = patch.reshape(-1, 3)
        red, green, blue = (patch.sum(axis=0, dtype=np.int64) // len(patch)).tolist()
        return red, green, blue

    def shadow(self, one: Placed, look: Look) -> Shadow | None:
        """Return the shadow of an object that stands; None of another one."""
        if not look.shadow or one.stance != "ground":
            return None
        made = self._shade(one.foreground, one.flipped, one.level, look.light)
        below = one.top_px + self._stage.form(one.foreground, one.flipped, one.level).mask.shape[0]
        clear = darkening(made, look.shadow)
        return Shadow(clear, one.left_px + made.left_px, below + made.top_px)

    def finished(self, fg_bg: Pixels, look: Look) -> Pixels:
        """Return a composite after what is done to the whole of it."""
        if look.jitter != UNCHANGED:
            fg_bg = recoloured(fg_bg, look.jitter)
        return through_jpeg(fg_bg, look.quality) if look.quality else fg_bg


def described(
    pinned: PinnedRecipe, look: Look, layout_id: int, distractors: Sequence[Seen]
) -> dict[str, Any]:
    """Return what the columns of `LOOK_COLUMNS` say of a record."""
    columns = look_columns(pinned.recipe)
    if not columns:
        return {}
    entries = pinned.foregrounds
    said = {
        "layout_id": layout_id,
        "blend": look.blend,
        "match": float(np.float32(look.match / ONE)),
        "shadow": float(np.float32(look.shadow / ONE)),
        "jpeg_history": look.quality,
        "background_flipped": look.mirrored,
        "jitter": colour_values(look.jitter),
        "distractors": {
            "bbox": [list(seen.bbox) for seen in distractors],
            "area": [seen.area for seen in distractors],
            "foreground_id": [entries[seen.placed.foreground].id for seen in distractors],
            "flipped": [seen.placed.flipped for seen in distractors],
        },
    }
    return {column.name: said[column.name] for column in columns}


def colour_values(colour: Colour) -> list[int]:
    """Return the gains of the three channels, then their offsets."""
    return [gain for gain, _ in colour] + [offset for _, offset in colour]


_MIRRORED: dict[CutAt, CutAt] = {"left": "right", "right": "left"}
