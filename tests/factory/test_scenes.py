"""factory/scenes.py: exact depth, seeds that decide everything, cut-outs with real alpha, demo
sources.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factory import make_demo_sources, scenes

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "builder" / "demo"
GREY = scenes.Material((0.5, 0.5, 0.5))
SUN = scenes.Light((30.0, 100.0, -20.0), (1.0, 1.0, 1.0), is_sun=True)
EYE = np.eye(3, dtype=np.float32)


def shape(form, centre, half_m, taper=1.0):
    return scenes.Shape(form, np.float32(centre), np.float32(half_m), EYE, GREY, taper)


def cast(shapes, camera, size=(60, 80)):
    scene = scenes.Scene(camera, SUN, list(shapes))
    return scenes._cast(scene, *size, np.random.default_rng(0))


def image_plane(camera, height, width):
    """Pinhole coordinates x (right) and y (up) of the pixel centres at z = 1."""
    focal_px = width / 2 / np.tan(np.radians(camera.fov_deg) / 2)
    x = (np.arange(width) + 0.5 - width / 2) / focal_px
    y = (height / 2 - np.arange(height) - 0.5) / focal_px
    return np.meshgrid(x, y)


def test_ground_has_the_closed_form_depth():
    camera = scenes.Camera((0.0, 1.6, 0.0), yaw_deg=25, pitch_deg=-30, fov_deg=60)
    _, depth_m = cast([shape("box", (0, -0.5, 0), (300, 0.5, 300))], camera)
    _, y = image_plane(camera, 60, 80)
    pitch = np.radians(-30)
    down = -(y * np.cos(pitch) + np.sin(pitch))
    np.testing.assert_allclose(depth_m, 1.6 / down, rtol=2e-4)


def test_sphere_has_the_closed_form_depth_along_the_optical_axis():
    camera = scenes.Camera((0.0, 0.0, 0.0), fov_deg=50)
    _, depth_m = cast([shape("sphere", (0, 0, 3), (1, 1, 1))], camera)
    x, y = image_plane(camera, 60, 80)
    squared = 1 + x**2 + y**2
    under = 9 - squared * (9 - 1)
    hit = np.isfinite(depth_m)
    assert (hit == (under >= 0)).mean() > 0.999  # a ray along the rim may fall either way
    hit &= under > 1e-3
    assert hit.sum() > 500
    expected = (3 - np.sqrt(np.where(hit, under, 0))) / squared
    np.testing.assert_allclose(depth_m[hit], expected[hit], rtol=1e-4)


@pytest.mark.parametrize(
    ("form", "taper", "nearest_m"),
    [("box", 1.0, 3.5), ("frustum", 1.0, 3.5), ("frustum", 0.5, 3.55)],
)
def test_solids_begin_where_they_should(form, taper, nearest_m):
    camera = scenes.Camera((0.0, 0.0, 0.0), fov_deg=20)
    _, depth_m = cast([shape(form, (0, 0.8, 4), (0.5, 1, 0.5), taper)], camera, (61, 61))
    # The ray through the middle meets the solid 0.8 below its centre: a tenth of its height up.
    assert depth_m[30, 30] == pytest.approx(nearest_m - 0.025 * (taper == 0.5), abs=0.03)


def test_shadow_darkens_the_ground_only_away_from_the_sun():
    ground = shape("box", (0, -0.5, 0), (50, 0.5, 50))
    ball = shape("sphere", (0, 1, 5), (0.6, 0.6, 0.6))
    camera = scenes.Camera((0.0, 2.0, 0.0), pitch_deg=-15)
    scene = scenes.Scene(
        camera, scenes.Light((0.0, 100.0, 0.0), (2.0, 2.0, 2.0), True), [ground, ball]
    )
    colour, depth_m = scenes._cast(scene, 90, 90, np.random.default_rng(0))
    bare, _ = cast([ground], camera, (90, 90))
    under = np.unravel_index(np.argmin(colour.sum(-1) + 99 * (depth_m < 4.6)), depth_m.shape)
    assert depth_m[under] == pytest.approx(5, abs=0.8)
    assert colour[under].sum() < 0.6 * bare[under].sum()


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_pictures_are_seeded_and_in_range(kind):
    rgb, depth_m = scenes.render(11, (48, 64), kind, pasted=False)
    again, depth_again = scenes.render(11, (48, 64), kind, pasted=False)
    other, _ = scenes.render(12, (48, 64), kind, pasted=False)
    assert rgb.dtype == np.uint8 and rgb.shape == (48, 64, 3)
    assert depth_m.dtype == np.float32 and depth_m.shape == (48, 64)
    np.testing.assert_array_equal(rgb, again)
    np.testing.assert_array_equal(depth_m, depth_again)
    assert (rgb != other).mean() > 0.5
    assert depth_m.min() >= 0.1 and depth_m.max() <= 10
    assert depth_m.std() > 0.2
    assert 40 < rgb.mean() < 235 and rgb.std() > 15


def test_kind_defaults_to_the_seeds_turn():
    for seed, kind in enumerate(scenes.KINDS):
        by_turn = scenes.render(seed, (32, 32), pasted=False)
        named = scenes.render(seed, (32, 32), kind, pasted=False)
        np.testing.assert_array_equal(by_turn[0], named[0])


def test_pasted_cutouts_only_bring_things_nearer():
    _, bare_m = scenes.render(2, (96, 96), pasted=False)
    _, pasted_m = scenes.render(2, (96, 96), pasted=True)
    assert (pasted_m <= bare_m + 1e-6).all()
    changed = pasted_m < bare_m - 1e-3
    assert 0.005 < changed.mean() < 0.6
    assert len(np.unique(pasted_m[changed])) <= 2  # flat boards


@pytest.mark.parametrize("name", ["mug", "duck", "person"])
def test_cutouts_have_soft_alpha(name):
    rgba = scenes.render_cutout(3, 64, name)
    assert rgba.dtype == np.uint8 and rgba.shape[2] == 4 and max(rgba.shape[:2]) == 64
    alpha = rgba[..., 3]
    soft = (alpha > 0) & (alpha < 255)
    assert (alpha == 0).mean() > 0.1 and (alpha == 255).mean() > 0.15
    assert 0.02 < soft.mean() < 0.3
    # Soft pixels lie on the outline: next to one that is less covered.
    padded = np.pad(alpha, 1)
    lowest = np.min([padded[1 + dy : 65 + dy, 1 + dx :][: alpha.shape[0], : alpha.shape[1]]
                     for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)  # fmt: skip
    assert (lowest[soft] < alpha[soft]).mean() > 0.97
    assert (rgba[alpha == 0] == 0).all()
    np.testing.assert_array_equal(rgba, scenes.render_cutout(3, 64, name))


def test_resizing_a_cutout_keeps_its_mass():
    rgba = np.zeros((10, 20, 4), np.uint8)
    rgba[2:8, 5:15] = (255, 128, 0, 255)
    small = scenes._resize(rgba, 5, 10)
    np.testing.assert_allclose(small[..., 3].sum() * 4, 60, rtol=1e-5)
    np.testing.assert_allclose(small[2, 5], [1, 128 / 255, 0, 1], rtol=1e-5)


def test_demo_foreground_can_be_drawn_again():
    drawn = make_demo_sources.foreground_png("bottle")
    kept = (DEMO / "foregrounds" / "bottle.png").read_bytes()
    if (
        drawn != kept
    ):  # another kind of CPU, whose float functions round differently, or another zlib
        a, b = (np.asarray(Image.open(io.BytesIO(data)), np.int16) for data in (drawn, kept))
        assert a.shape == b.shape
        assert abs(a - b).max() <= 2
    assert make_demo_sources.foreground_png("bottle") == drawn
