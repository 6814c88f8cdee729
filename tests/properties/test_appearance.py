"""appearance: edges, colours, noise and shadows against arithmetic done pixel by pixel."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.recipe import BLENDS
from builder.record.appearance import (
    N_LIGHTS,
    UNCHANGED,
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
from builder.record.compose import Hides, compose
from builder.record.composition import Cutout, Pixels, cut_out
from builder.record.scene import Placed
from tests.strategies import foregrounds

SIDES = ("", "left", "right", "top", "bottom")
WORDS = st.integers(0, 2**64 - 1)


def alpha_of(cutout: Cutout) -> np.ndarray:
    return 255 - cutout.clear[:, ::3].astype(int)


def around(values: np.ndarray, y: int, x: int, radius: int, cut_at: str) -> list[np.ndarray]:
    """The values of a square; beyond the border 0, or what lies at the border it was cut at."""
    height, width = values.shape[:2]
    found = []
    for v in range(y - radius, y + radius + 1):
        for u in range(x - radius, x + radius + 1):
            row, column = v, u
            if cut_at:
                row = max(v, 0) if cut_at == "top" else row
                row = min(v, height - 1) if cut_at == "bottom" else row
                column = max(u, 0) if cut_at == "left" else column
                column = min(u, width - 1) if cut_at == "right" else column
            inside = 0 <= row < height and 0 <= column < width
            found.append(
                values[row, column].astype(int) if inside else values[0, 0].astype(int) * 0
            )
    return found


def rounded(value: Fraction) -> int:
    return int(value + Fraction(1, 2))


@given(foregrounds(12), st.sampled_from(SIDES), st.sampled_from(["feather1", "feather2"]))
def test_feathered_alpha_falls_off_inside_and_nowhere_grows(
    foreground: Pixels, cut_at: str, blend: str
) -> None:
    plain = cut_out(foreground, keep_colours=True)
    made = dress(plain, blend, 0, cut_at)
    radius = int(blend[-1])
    alpha = foreground[..., 3]
    for y, x in np.ndindex(alpha.shape):
        mean = Fraction(sum(map(int, around(alpha, y, x, radius, cut_at))), (2 * radius + 1) ** 2)
        assert alpha_of(made)[y, x] == min(int(alpha[y, x]), rounded(mean))
    assert made.mask is plain.mask
    assert (made.colours == foreground[..., :3]).all()
    assert made.margin == 0


@given(foregrounds(12), st.sampled_from(SIDES))
def test_a_blurred_edge_reaches_a_pixel_beyond_and_has_the_colours_of_the_object(
    foreground: Pixels, cut_at: str
) -> None:
    made = dress(cut_out(foreground, keep_colours=True), "box", 0, cut_at)
    alpha = foreground[..., 3]
    height, width = alpha.shape
    assert made.clear.shape == (height + 2, 3 * (width + 2))
    weighed = foreground[..., :3].astype(int) * alpha[..., None]
    for y, x in np.ndindex(height + 2, width + 2):
        square = around(alpha, y - 1, x - 1, 1, cut_at)
        assert alpha_of(made)[y, x] == rounded(Fraction(sum(map(int, square)), 9))
        inside = 1 <= y <= height and 1 <= x <= width
        if inside and alpha[y - 1, x - 1] >= 128:
            assert (made.colours[y, x] == foreground[y - 1, x - 1, :3]).all()
        elif not cut_at and sum(map(int, square)):
            sums = sum(around(weighed, y - 1, x - 1, 1, ""))
            due = [rounded(Fraction(int(s), int(sum(map(int, square))))) for s in sums]
            assert made.colours[y, x].tolist() == due


@given(foregrounds(12), st.integers(1, 2))
def test_blurred_colours_are_means_by_alpha(foreground: Pixels, radius: int) -> None:
    made = dress(cut_out(foreground, keep_colours=True), "none", radius, "")
    alpha = foreground[..., 3]
    weighed = foreground[..., :3].astype(int) * alpha[..., None]
    assert (alpha_of(made) == alpha).all()
    for y, x in np.ndindex(alpha.shape):
        weight = int(sum(map(int, around(alpha, y, x, radius, ""))))
        if weight:
            sums = sum(around(weighed, y, x, radius, ""))
            assert made.colours[y, x].tolist() == [rounded(Fraction(int(s), weight)) for s in sums]


@given(foregrounds(10), st.sampled_from(BLENDS), WORDS, st.integers(0, 256), st.integers(0, 90))
def test_pasting_a_dressed_object_is_pasting_its_colours_by_its_alpha(
    foreground: Pixels, blend: str, word: int, strength: int, deviation: int
) -> None:
    made = dress(cut_out(foreground, keep_colours=True), blend, 0, "")
    colour = jittered(word, strength)
    height, width = made.colours.shape[:2]
    noise = noise_of(height, width, deviation, word)
    changed = coloured(made, colour, noise)
    due = np.zeros((height, width, 3), int)
    for channel, (gain, offset) in enumerate(colour):
        values = made.colours[..., channel].astype(int) * gain
        values = np.clip((values + 128) // 256 + offset, 0, 255) + noise[..., channel]
        due[..., channel] = np.clip(values, 0, 255)
    assert (changed.colours == due).all()
    weighted = due * alpha_of(made)[..., None] + 128
    assert (changed.weighted == weighted.reshape(height, -1)).all()
    assert (changed.clear == made.clear).all()


@given(foregrounds(16), st.integers(1, 2**16 - 1), st.integers(-5, 5), st.integers(-5, 5))
def test_what_a_background_hides_is_the_same_under_every_edge(
    foreground: Pixels, columns: int, left: int, top: int
) -> None:
    near = [columns >> x & 1 == 1 for x in range(16)]
    depth = np.broadcast_to(np.where(near, 100, 9000).astype(np.uint16), (16, 16))
    one = Placed(0, False, 0, left, top, (0, 0), "free", 4000, -4000)
    plain = cut_out(foreground, keep_colours=True)
    due = Hides(depth, None, inverse=False).cut(one, plain, None)
    for blend in BLENDS[1:]:
        made = dress(plain, blend, 0, "")
        cut = Hides(depth, None, inverse=False).cut(one, made, None)
        assert (cut.mask == due.mask).all()
        n, (height, width) = made.margin, plain.mask.shape
        left_over = alpha_of(cut)[n : n + height, n : n + width]
        assert not left_over[due.mask != plain.mask].any()


def test_an_object_outside_of_the_frame_never_is_the_last_one() -> None:
    cutout = cut_out(np.full((4, 4, 4), 255, np.uint8))
    at = [(2, 2, 1), (20, 20, 2), (2, 2, 3)]  # the second is outside, the third hides the first
    placed = [
        Placed(0, False, 0, x, y, (x, y), "free", 0, nearness, labelled=nearness < 3)
        for x, y, nearness in at
    ]
    made = compose(
        np.zeros((16, 16, 3), np.uint8), None, None, placed, lambda _: cutout, min_visible=300
    )
    assert [seen.index for seen in made.objects] == [0]
    assert made.distractors == ()


@given(WORDS, st.integers(0, 256))
def test_jitter_stays_within_its_strength(word: int, strength: int) -> None:
    for gain, offset in jittered(word, strength):
        assert abs(gain - 256) <= strength
        assert abs(offset) <= strength / 4 + 1
    assert jittered(word, 0) == UNCHANGED


@given(WORDS, WORDS)
def test_one_change_after_another_is_one_change(one: int, other: int) -> None:
    pixels = np.arange(96, 160, dtype=np.uint8).repeat(3).reshape(8, 8, 3)  # nothing is clipped
    first, second = jittered(one, 60), jittered(other, 60)
    apart = recoloured(recoloured(pixels, first), second).astype(int)
    assert np.abs(apart - recoloured(pixels, then(first, second))).max() <= 3


@pytest.mark.parametrize("strength", [0, 128, 256])
def test_matched_colours_have_the_mean_and_the_spread_of_the_scene(strength: int) -> None:
    rng = np.random.default_rng(1)
    own_pixels = rng.normal(90, 20, (60, 60, 3)).clip(0, 255).astype(np.uint8)
    scene_pixels = rng.normal(150, 30, (60, 60, 3)).clip(0, 255).astype(np.uint8)
    own, scene = tone(own_pixels), tone(scene_pixels)
    made = tone(recoloured(own_pixels, matching(own, scene, scene.mean, strength)))
    for channel in range(3):
        share = strength / 256
        due = own.mean[channel] + share * (scene.mean[channel] - own.mean[channel])
        assert abs(made.mean[channel] - due) <= 2
        wide = own.deviation[channel] + share * (scene.deviation[channel] - own.deviation[channel])
        assert abs(made.deviation[channel] - wide) <= 2


def test_the_tone_of_a_part_is_that_part_alone() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = (10, 20, 30)
    pixels[0] = (20, 20, 50)
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    assert tone(pixels, mask) == Tone((15, 20, 40), (5, 0, 10))


@pytest.mark.parametrize("deviation", [16, 40, 160])
def test_noise_has_its_deviation_and_no_mean_and_is_measured_as_it_is(deviation: int) -> None:
    noise = noise_of(300, 300, deviation, 12345678901234567).astype(float)
    assert abs(noise.std() - deviation / 16) < 0.06 * deviation / 16 + 0.05
    assert abs(noise.mean()) < 0.1
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
    ramp = np.linspace(60, 190, 300)[None, :, None] + np.zeros((300, 1, 3))
    assert noisiness((ramp + noise).astype(np.uint8)) == pytest.approx(deviation, rel=0.2, abs=8)


def test_noise_for_large_objects_is_not_kept() -> None:
    noise_of(8, 8, 33, 0)
    tracemalloc.start()
    noise_of(2000, 2000, 33, 5)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2**20
    noise = noise_of(600, 1100, 33, 5 | 7 << 32)
    assert (noise[512:, 1024:] == noise[:88, :76]).all()


def test_blur_is_measured_as_less_sharpness() -> None:
    edges = np.kron(np.arange(20) % 2, np.ones((40, 16)))
    picture = np.repeat((edges * 200).astype(np.uint8)[..., None], 3, axis=2)
    opaque = np.dstack([picture, np.full(edges.shape, 255, np.uint8)])
    plain = cut_out(opaque, keep_colours=True)
    found = [sharpness(dress(plain, "none", radius, "").colours) for radius in (0, 1, 2)]
    # A step over n px, by its squares, as seen over 2 px and over 8 px.
    due = []
    for n in (1, 3, 5):
        step = np.concatenate([np.zeros(12), (np.arange(n) + 1) / n, np.ones(12)])
        wide, near = step[8:] - step[:-8], step[5:-3] - step[3:-5]
        due.append(1000 * (near**2).sum() / (wide**2).sum())
    assert found == [pytest.approx(value, rel=0.02) for value in due]


@pytest.mark.parametrize("light", range(N_LIGHTS))
def test_a_shadow_begins_at_the_foot_and_falls_to_one_side(light: int) -> None:
    mask = np.ones((120, 40), bool)
    made = shade(mask, light)
    rows, columns = np.nonzero(made.dark > 90)
    top, left = rows + made.top_px, columns + made.left_px  # from the object's lower left corner
    behind = light < N_LIGHTS // 2
    # Its dark part meets the row of the foot, -1, and lies on one side of it.
    assert -3 <= (top.max() if behind else top.min()) <= 2
    assert (top.min() if behind else -top.max()) < -8
    # Far from the foot it has moved to the side that the light does not come from.
    far = top == (top.min() if behind else top.max())
    near = top == (top.max() if behind else top.min())
    moved = left[far].mean() - left[near].mean()
    assert (moved > 5) == (light % 4 >= 2)
    assert abs(moved) > 5
    left_over = darkening(made, 128)
    assert left_over.max() == 255
    assert abs(int(left_over.min()) - (255 - int(made.dark.max()) // 2)) <= 1
    assert made.dark.max() > 180
