"""scene, board, compose: sizes, places and depth against exact arithmetic done another way."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.ladder import N_LEVELS, ladder, level_size, nearest_level, power_of_two
from builder.record.board import (
    Tilt,
    board,
    depth_before,
    depth_under,
    object_depth,
    relief_of,
)
from builder.record.compose import Hides, compose
from builder.record.composition import cut_out
from builder.record.scene import (
    RHO_BITS,
    Form,
    GroundTable,
    Placed,
    Rules,
    n_words,
    place_objects,
)
from tests.strategies import foregrounds

SIZE = 48


@given(st.integers(-640, 640))
def test_powers_of_two_are_exact_to_sixteen_bits(n: int) -> None:
    exact = 2.0 ** (n / 64) * 65536
    assert abs(power_of_two(n) - exact) <= 1 + exact / 2**15


@given(st.integers(64, 4096))
def test_the_ladder_goes_down_by_a_quarter_octave(longest: int) -> None:
    sides = ladder(longest)
    assert len(sides) == N_LEVELS
    assert sides[0] == longest
    for level, side in enumerate(sides):
        assert side == pytest.approx(longest * 2 ** (-level / 4), abs=0.6)


@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, N_LEVELS - 1))
def test_a_level_keeps_the_shape(width: int, height: int, level: int) -> None:
    w, h = level_size(width, height, level)
    side = ladder(max(width, height))[level]
    assert max(w, h) == side
    assert min(w, h) == max(
        1, math.floor(Fraction(min(width, height) * side, max(width, height)) + Fraction(1, 2))
    )


@given(st.integers(40, 600), st.floats(1, 900))
def test_the_nearest_level_is_nearest_in_the_logarithm(longest: int, wanted: float) -> None:
    sides = ladder(longest)
    level = nearest_level(sides, round(wanted * 65536))
    off = [abs(math.log(side / wanted)) for side in sides]
    assert off[level] <= min(off) + 1e-4


# -- boards


def camera(pitch_deg: float, height_m: float, size: int) -> tuple[tuple[int, int, int], float]:
    """The ground's plane under a camera with a field of view of 60 degrees; its focal length."""
    focal = size / 2 / math.tan(math.radians(30))
    down, along = math.cos(math.radians(pitch_deg)), math.sin(math.radians(pitch_deg))
    # A ray (x, y, 1), y downwards, meets the ground where y cos + sin = height / z.
    b = down / focal / height_m
    c = along / height_m - b * size / 2
    return (0, round(b * 2**32), round(c * 2**32)), focal


@given(
    st.floats(-25, 40),
    st.floats(0.5, 3),
    st.integers(30, 47),
    st.integers(0, 47),
    st.integers(300, 9000),
)
def test_a_board_is_what_a_pinhole_camera_sees(
    pitch_deg: float, height_m: float, foot_y: int, foot_x: int, depth: int
) -> None:
    """Against points of an upright plane put through a camera in floating point."""
    plane, focal = camera(pitch_deg, height_m, SIZE)
    tilt = Tilt.of(plane, SIZE, 3 * SIZE * SIZE)
    found = board(tilt, depth, (foot_x, foot_y), (0, 0, SIZE, foot_y + 1), inverse=False)
    found = np.broadcast_to(found, (foot_y + 1, SIZE))
    pitch = math.radians(pitch_deg)
    up = np.array([0, -math.cos(pitch), -math.sin(pitch)])  # x right, y down, z forward
    foot = depth * np.array(
        [(foot_x + 0.5 - SIZE / 2) / focal, (foot_y + 0.5 - SIZE / 2) / focal, 1]
    )
    normal = np.cross(up, [1, 0, 0])
    rays = (np.arange(foot_y + 1) + 0.5 - SIZE / 2) / focal * normal[1] + normal[2]
    exact = normal @ foot / rays
    fine = (exact > 1) & (exact < 65_000)
    assert np.allclose(found[fine, 0], exact[fine], rtol=2e-3, atol=1)
    assert (found == found[:, :1]).all()  # upright boards that face the camera have level rows
    assert found[foot_y, 0] == depth


def test_a_board_of_inverse_depth_is_the_inverse_of_one_of_depth() -> None:
    plane, _ = camera(20, 1.5, SIZE)
    tilt = Tilt.of(plane, SIZE, 3 * SIZE * SIZE)
    box = (0, 0, SIZE, 41)
    depth = np.asarray(board(tilt, 4000, (20, 40), box, inverse=False)).astype(float)
    inverse = np.asarray(board(tilt, 10_000, (20, 40), box, inverse=True)).astype(float)
    assert np.allclose(depth * inverse, 4000 * 10_000, rtol=1e-3)


def test_without_a_ground_a_board_is_parallel_to_the_picture() -> None:
    assert board(None, 1234, (3, 4), (0, 0, 5, 5), inverse=False) == 1234


def test_the_depth_at_a_foot_is_the_median_of_the_ground_around_it() -> None:
    depth = np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) + 1
    strip = depth[38:43, 17:24]
    assert depth_under(depth, (20, 40), 20) == np.median(strip)
    depth[38:43, 17:24] = 0
    assert depth_under(depth, (20, 40), 20) == 0


def test_what_floats_is_before_nearly_all_behind_it() -> None:
    depth = np.random.default_rng(0).integers(1000, 9000, (SIZE, SIZE)).astype(np.uint16)
    form = Form(np.ones((20, 20), bool), 400, 10)
    found = depth_before(depth, form, 10, 10, inverse=False)
    behind = np.sort(depth[10:30, 10:30].ravel())
    assert found == int(behind[(399 * 10) // 100]) * 85 // 100
    assert (depth[10:30, 10:30] > found).mean() > 0.9
    inverse = depth_before(depth, form, -5, -5, inverse=True)
    assert (depth[:15, :15] < inverse).mean() > 0.9


# -- relief


@given(
    st.floats(-25, 40),
    st.integers(300, 9000),
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.floats(10, 150),
    st.booleans(),
    st.booleans(),
)
def test_relief_multiplies_a_board_as_floats_do(
    pitch_deg: float,
    depth: int,
    height: int,
    seed: int,
    fov_deg: float,
    inverse: bool,
    stands: bool,
) -> None:
    rng = np.random.default_rng(seed)
    width = int(rng.integers(1, 40))
    stored = rng.integers(0, 65_536, (height, width)).astype(np.uint16)
    focal = SIZE / 2 / math.tan(math.radians(fov_deg) / 2)
    relief = relief_of(stored, height, round(focal * 65_536))
    left, top = int(rng.integers(-20, SIZE)), int(rng.integers(-20, SIZE))
    foot = min(max(left, 0), SIZE - 1), min(max(top + height - 1, 0), SIZE - 1)
    one = Placed(0, False, 0, left, top, foot, "ground" if stands else "free", depth, 0)
    x0, y0 = max(0, left), max(0, top)
    box = x0, y0, min(SIZE, left + width) - x0, min(SIZE, top + height) - y0
    if min(box[2:]) < 1:
        return
    tilt = Tilt.of(camera(pitch_deg, 1.5, SIZE)[0], SIZE, 3 * SIZE * SIZE)
    found = np.asarray(object_depth(tilt, one, box, relief, inverse=inverse))
    flat = np.broadcast_to(object_depth(tilt, one, box, None, inverse=inverse), found.shape)
    part = stored[y0 - top : y0 - top + box[3], x0 - left : x0 - left + box[2]]
    beyond = (part.astype(float) - 32_768) / 4096
    factor = np.maximum(1 + beyond * height / focal, 1 / 16)
    exact = np.clip(flat / factor if inverse else flat * factor, 1, 65_535)
    assert np.allclose(found, exact, rtol=2e-4, atol=0.51)
    assert (found > 0).all()


def test_no_relief_and_unknown_depth_are_as_they_were() -> None:
    level = np.full((5, 4), 32_768, np.uint16)
    relief = relief_of(level, 5, 60 << 16)
    assert (relief == 65_536).all()
    one = Placed(0, False, 0, 3, 4, (5, 8), "ground", 0, 0)
    assert object_depth(None, one, (3, 4, 4, 5), relief, inverse=False) == 0
    for depth in (1, 1234, 65_535):
        known = Placed(0, False, 0, 3, 4, (5, 8), "free", depth, 0)
        for inverse in (False, True):
            assert (object_depth(None, known, (3, 4, 4, 5), relief, inverse=inverse) == depth).all()


# -- scenes


@st.composite
def scenes(draw: st.DrawFn):
    """A background, its depth and up to four objects, partly outside, before one another."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    background = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    depth = rng.integers(0, 9000, (SIZE, SIZE)).astype(np.uint16)
    pictures = draw(st.lists(foregrounds(max_side=24), min_size=1, max_size=4))
    placed = []
    for i, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        left, top = (int(rng.integers(-n // 4, SIZE - n + n // 4 + 1)) for n in (width, height))
        nearness = int(rng.integers(-3, 3))
        placed.append(
            Placed(i, False, 0, left, top, (left, top + height - 1), "free", 1000 + i, nearness)
        )
    return background, depth, pictures, placed


@given(scenes())
def test_a_composed_record_is_that_of_painting_pixel_by_pixel(scene) -> None:
    background, depth, pictures, placed = scene
    cutouts = [cut_out(picture) for picture in pictures]
    made = compose(
        background, depth, None, placed, lambda o: cutouts[o.foreground], min_visible=300
    )
    kept = [seen.placed for seen in made.objects]
    assert len(kept) + made.left_out == len(placed)
    colours = background.astype(object)
    instances, due_depth = np.zeros((SIZE, SIZE), int), depth.astype(int)
    whole = {}
    for k, one in sorted(enumerate(kept, 1), key=lambda pair: pair[1].nearness):
        picture = pictures[one.foreground]
        inside = 0
        for y in range(picture.shape[0]):
            for x in range(picture.shape[1]):
                at = one.top_px + y, one.left_px + x
                if not (0 <= at[0] < SIZE and 0 <= at[1] < SIZE):
                    continue
                *colour, alpha = picture[y, x].tolist()
                for channel in range(3):
                    blend = Fraction(
                        colour[channel] * alpha + int(colours[(*at, channel)]) * (255 - alpha), 255
                    )
                    colours[(*at, channel)] = math.floor(blend + Fraction(1, 2))
                if alpha >= 128:
                    instances[at], due_depth[at] = k, one.depth
                    inside += 1
        whole[k] = inside
    assert (made.fg_bg == colours).all()
    assert (made.instances == instances).all()
    assert (made.depth == due_depth).all()
    for k, seen in enumerate(made.objects, 1):
        ys, xs = np.nonzero(instances == k)
        assert seen.area == len(ys)
        assert seen.n_inside == whole[k]
        assert seen.bbox == (xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1)
        if len(kept) > 1:
            assert 1000 * seen.area >= 300 * seen.n_inside - 1000 / max(1, seen.n_inside)


class Stage:
    """Sources of three boards of different shape on a floor seen from above."""

    shapes = ((40, 20), (20, 40), (30, 30))

    def __init__(self) -> None:
        plane, _ = camera(15, 1.5, SIZE * 4)
        self.size = SIZE * 4
        v, _u = np.mgrid[0 : self.size, 0 : self.size] + 0.5
        rho = np.maximum((plane[1] * v + plane[2]) / 2**32, 1 / 9)
        self.depth = (1000 / rho).round().astype(np.uint16)
        region = rho > 1 / 8
        values = 2 * (plane[1] * v + plane[2])[region]
        edges = np.geomspace(values.min(), values.max(), 9)[1:-1].astype(np.int64).tolist()
        self.table = GroundTable.of(plane, edges, region)

    stances: Mapping[int, str] = {}
    true_height_mm = 0

    def stance(self, foreground: int) -> str:
        return self.stances.get(foreground, "ground")

    def height_mm(self, foreground: int) -> int:
        return self.true_height_mm

    cuts: Mapping[int, str] = {}

    def cut_at(self, foreground: int) -> str:
        return self.cuts.get(foreground, "")

    def sides(self, foreground: int) -> tuple[int, ...]:
        return ladder(self.size)

    @cache  # noqa: B019
    def form(self, foreground: int, flipped: bool, level: int) -> Form:
        w, h = self.shapes[foreground]
        scale = self.size // max(w, h)
        width, height = level_size(w * scale, h * scale, level)
        return Form(np.ones((height, width), bool), width * height, width // 2)

    def ground(self, background: int) -> GroundTable:
        return self.table

    def standing(self, background: int, foot: tuple[int, int], width: int) -> tuple[int, int]:
        depth = depth_under(self.depth, foot, width)
        return depth, -depth

    def floating(self, background: int, form: Form, left_px: int, top_px: int) -> tuple[int, int]:
        depth = depth_before(self.depth, form, left_px, top_px, inverse=False)
        return depth, -depth


STAGE = Stage()


def rules(**fields) -> Rules:
    values = {
        "size": STAGE.size, "objects": (1, 4), "sides": (60, 60), "on_ground": True, "flip": True,
        "jitter": 0, "truncation": 250, "max_overlap": 400,
        "focal": 0,
    }  # fmt: skip
    return Rules(**{**values, **fields})


def placed_by(chosen: Rules, record: int, stage: Stage | None = None) -> list[Placed]:
    words = np.random.Philox(key=record).random_raw(n_words(chosen)).tolist()
    return place_objects(chosen, stage or STAGE, 0, (record % 3, False), [range(3)], words)


def test_near_objects_are_lower_and_larger_and_all_stand() -> None:
    """Size goes with the distance from the horizon, up to half a step of the ladder."""
    objects = [one for record in range(300) for one in placed_by(rules(), record)]
    assert {one.stance for one in objects} == {"ground"}
    sides = np.array([ladder(STAGE.size)[one.level] for one in objects], float)
    rho = np.array([STAGE.table.rho(*one.foot) for one in objects], float)
    wanted = 60 * rho / STAGE.table.middle
    inside = (wanted > min(ladder(STAGE.size))) & (wanted < STAGE.size)
    assert np.abs(np.log2(sides[inside] / wanted[inside])).max() <= 1 / 8 + 0.02
    feet = np.array([one.foot[1] for one in objects])
    assert np.corrcoef(feet, rho)[0, 1] > 0.999
    for one in objects:
        height = STAGE.form(one.foreground, one.flipped, one.level).mask.shape[0]
        assert one.top_px + height - 1 == one.foot[1]
        assert abs(one.depth - int(STAGE.depth[one.foot[1], one.foot[0]])) <= 0.03 * one.depth


@pytest.mark.parametrize("true_height_mm", [350, 2500])
def test_what_has_a_height_stands_where_it_can_be_shown_as_large_as_that(
    true_height_mm: int,
) -> None:
    stage = Stage()
    stage.true_height_mm = true_height_mm
    chosen = rules(objects=(1, 1), truncation=1000, focal=STAGE.size << 16)
    right = 0
    for record in range(300):
        (one,) = placed_by(chosen, record, stage)
        height_px = stage.form(one.foreground, one.flipped, one.level).mask.shape[0]
        true_px = true_height_mm * STAGE.size * STAGE.table.rho(*one.foot) / (1000 << RHO_BITS)
        right += abs(np.log2(height_px / true_px)) < 0.25
    assert right > 260


def test_the_bands_of_distance_are_drawn_evenly() -> None:
    chosen = rules(objects=(1, 1), truncation=1000)
    edges = [np.log(STAGE.table.rho(0, int(band.min() // STAGE.size))) for band in STAGE.table.bins]
    counts = np.histogram(
        [np.log(STAGE.table.rho(*placed_by(chosen, r)[0].foot)) for r in range(1600)],
        [*edges, np.inf],
    )[0]
    assert counts.min() > 0.7 * counts.mean()


@given(st.integers(0, 10_000), st.integers(1, 6), st.booleans())
def test_a_scene_is_a_function_of_its_words_and_keeps_the_rules(
    record: int, most: int, on_ground: bool
) -> None:
    chosen = rules(objects=(1, most), on_ground=on_ground, truncation=0, jitter=32)
    one, again = (placed_by(chosen, record) for _ in range(2))
    assert one == again
    assert 1 <= len(one) <= most
    assert (one[0].foreground, one[0].flipped) == (record % 3, False)
    if not on_ground:
        for placed in one:
            height, width = STAGE.form(placed.foreground, placed.flipped, placed.level).mask.shape
            assert 0 <= placed.left_px <= STAGE.size - width
            assert 0 <= placed.top_px <= STAGE.size - height
            assert placed.stance == "free"


def test_what_does_not_stand_is_placed_anywhere_before_what_is_behind_it() -> None:
    stage = Stage()
    stage.stances = {0: "free", 2: "free"}
    objects = [one for r in range(60) for one in placed_by(rules(), r, stage)]
    for one in objects:
        assert one.stance == ("ground" if one.foreground == 1 else "free")
        if one.stance == "free":
            form = STAGE.form(one.foreground, one.flipped, one.level)
            behind = STAGE.depth[
                max(0, one.top_px) : one.top_px + form.mask.shape[0],
                max(0, one.left_px) : one.left_px + form.mask.shape[1],
            ]
            assert (behind > one.depth).mean() > 0.85


def test_what_was_cut_off_lies_unturned_against_its_edge_and_stands_on_ground_alone() -> None:
    stage = Stage()
    stage.cuts = {0: "top", 1: "bottom", 2: "left"}
    for one in (o for r in range(90) for o in placed_by(rules(n_turns=5), r, stage)):
        assert one.level < N_LEVELS  # of the first angle
        height, width = stage.form(one.foreground, one.flipped, one.level).mask.shape
        if one.foreground == 0:
            assert (one.top_px, one.stance) == (0, "free")
            continue
        assert one.stance == "ground"
        if one.foreground == 1:  # as large as what stands so near
            wanted = 60 * stage.table.rho(one.foot[0], stage.size - 1) / stage.table.middle
            assert one.top_px + height == stage.size
            side = ladder(stage.size)[one.level]
            assert abs(math.log2(side / min(wanted, stage.size))) <= 1 / 8 + 0.02
        else:
            assert one.left_px == (stage.size - width if one.flipped else 0)
            assert one.top_px + height - 1 == one.foot[1]


@pytest.mark.parametrize("on_ground", [True, False])
def test_some_of_the_first_object_is_always_seen(on_ground: bool) -> None:
    """Of one whose solid pixels lie far from its foot, all tries may lie outside of the frame."""

    class Gallows(Stage):
        @cache  # noqa: B019
        def form(self, foreground: int, flipped: bool, level: int) -> Form:
            mask = np.zeros_like(super().form(foreground, flipped, level).mask)
            mask[0, -1] = True
            return Form(mask, 1, 0)

    stage = Gallows()
    chosen = rules(sides=(stage.size, stage.size), on_ground=on_ground, truncation=900)
    for record in range(60):
        first = placed_by(chosen, record, stage)[0]
        width = stage.form(first.foreground, False, first.level).mask.shape[1]
        assert 0 <= first.top_px < stage.size
        assert 0 <= first.left_px + width - 1 < stage.size
        assert first.depth > 0


def test_a_background_hides_nothing_of_what_is_outside_of_the_frame() -> None:
    cutout = cut_out(np.full((4, 4, 4), 255, np.uint8))
    depth = np.full((SIZE, SIZE), 100, np.uint16)
    one = Placed(0, False, 0, SIZE + 3, -9, (SIZE - 1, 0), "ground", 5000, -5000)
    assert Hides(depth, None, inverse=False).cut(one, cutout, None) is cutout
