"""Relief of cut-outs: from the depth of their photographs to what is stored of each size."""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builder.cutout.depth import SeenDepth
from builder.errors import BadSourcesError
from builder.pictures import open_picture
from builder.recipe import Recipe
from builder.sources import prepare
from builder.typed import decisive
from tests.pictures import blob, depth_png, png

RECIPE = Recipe(layout="scenes", size=64, depth_model="measured", relief="photo")
BOARDS = Recipe(layout="scenes", size=64, depth_model="measured")
WIDTH, HEIGHT = 60, 90
LEVEL = {"focal_px": 80, "pitch_deg": 0}
FAR_MM = 60_000  # what lies behind the object, which must not show


def slanted() -> tuple[Image.Image, np.ndarray]:
    """A cut-out and its depth: 5 mm farther a column, 2 mm nearer a row upwards; all else far."""
    cutout = blob(3, WIDTH, HEIGHT)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    depth = (2000 + 5 * x + 2 * y).astype(np.uint16)
    depth[np.asarray(cutout)[..., 3] < 128] = FAR_MM
    return cutout, depth


def written(
    folder: Path, depth: np.ndarray, credits: str = "", camera: Mapping[str, object] = LEVEL
) -> Path:
    folder.mkdir()
    slanted()[0].save(folder / "a.png")
    depth_png(folder / "a.depth.png", depth, **camera)
    if credits:
        (folder / "credits.csv").write_text(f"file,author,license,url,height_m\n{credits}\n")
    return folder


def levels_of(folder: Path, recipe: Recipe = RECIPE) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each size the mask and the relief, in heights."""
    (source,) = prepare(folder, "foreground", recipe).sources
    assert source.entry.has_relief
    found = []
    for level in range(1 + len(source.levels)):
        relief = source.relief_at(level)
        assert relief is not None
        found.append((source.pixels(level)[..., 3] >= 128, (relief - 32768.0) / 4096))
    return found


def due(mask: np.ndarray, height_mm: float | None) -> np.ndarray:
    """Relief of the slanted object at a size, by geometry alone."""
    alpha = np.asarray(slanted()[0])[..., 3]
    rows, columns = np.flatnonzero((alpha > 0).any(1)), np.flatnonzero((alpha > 0).any(0))
    low = np.flatnonzero((alpha >= 128).any(1))[-1]
    foot = np.median(slanted()[1][low][alpha[low] >= 128])
    height, width = len(rows), len(columns)
    v, u = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]] + 0.5
    x = columns[0] + u * width / mask.shape[1] - 0.5
    y = rows[0] + v * height / mask.shape[0] - 0.5
    return (2000 + 5 * x + 2 * y - foot) / (height_mm or height * foot / 80)


@pytest.mark.parametrize("height_mm", [None, 700.0])
def test_relief_is_depth_beyond_the_foot_in_heights_and_nothing_of_what_is_behind(
    tmp_path: Path, height_mm: float | None
) -> None:
    credits = "a.png,Ann,CC0-1.0,,0.7" if height_mm else ""
    folder = written(tmp_path / "fg", slanted()[1], credits=credits)
    levels = levels_of(folder)
    assert len(levels) == 12
    pixel = 5 / (height_mm or 2000 * HEIGHT / 80)  # of the file, across
    for mask, relief in levels:
        exact, scale = due(mask, height_mm), HEIGHT / mask.shape[0]
        off = (relief - exact)[mask]
        shift = np.median(off)  # a size's own foot is a pixel of that size off at most
        assert abs(shift) < (0.2 + 0.5 * scale) * pixel
        assert np.median(abs(off - shift)) < 0.1 * pixel
        # Where a filter reaches over the edge, it weighs what is on this side of it alone.
        assert abs(off - shift).max() < (0.5 + scale) * pixel
        assert (relief[~mask] == 0).all()
    first = levels[0][1][levels[0][0]]
    assert np.ptp(first) > 30 * pixel


def test_what_is_not_known_is_as_the_nearest_that_is(tmp_path: Path) -> None:
    depth = slanted()[1]
    depth[30:60, 20:45] = 0
    for (mask, relief), (_, whole) in zip(
        levels_of(written(tmp_path / "holes", depth)),
        levels_of(written(tmp_path / "whole", slanted()[1])),
        strict=True,
    ):
        scale = np.array(mask.shape) / np.array([81, 55])  # of the trimmed box
        y, x = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]]
        inner = (y > 27 * scale[0]) & (y < 55 * scale[0])
        inner &= (x > 19 * scale[1]) & (x < 41 * scale[1])
        known = np.argwhere(mask & ~inner)
        for at in np.argwhere(inner)[::7]:
            distance = np.hypot(*(known - at).T)
            near = known[distance < distance.min() + 2.5 * scale.max() + 1]
            values = whole[near[:, 0], near[:, 1]]
            assert values.min() - 0.01 <= relief[tuple(at)] <= values.max() + 0.01


def upright(pitch_deg: float, turn: float = 0.0) -> np.ndarray:
    """Depth of a board on which the cut-out would lie, turned about its vertical axis."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    pitch = np.radians(pitch_deg)
    up, across = (HEIGHT / 2 - y) / 80, (x - WIDTH / 2) / 80
    # Points of a plane z + turn * x = 2 in the world, along rays of a camera that is pitched.
    return (2000 / (np.cos(pitch) - np.sin(pitch) * up + turn * across)).astype(np.uint16)


@pytest.mark.parametrize("pitch_deg", [-30.0, 0.0, 15.0])
@pytest.mark.parametrize("said", [True, False])
def test_the_pitch_of_the_camera_is_no_relief(tmp_path: Path, pitch_deg: float, said: bool) -> None:
    camera = {"focal_px": 80, **({"pitch_deg": pitch_deg} if said else {})}
    for mask, relief in levels_of(written(tmp_path / "board", upright(pitch_deg), camera=camera)):
        assert abs(relief[mask]).max() < 0.004  # a millimetre or two of a board 2 m high
    turned = written(tmp_path / "turned", upright(pitch_deg, 0.5), camera=camera)
    mask, relief = levels_of(turned)[0]
    across = relief[len(relief) // 2][mask[len(relief) // 2]]
    assert across[0] > 0.1 > -0.1 > across[-1]
    column = relief[:, relief.shape[1] // 2][mask[:, relief.shape[1] // 2]]
    assert np.ptp(column) < 0.02


def test_a_lean_is_relief_only_where_the_pitch_is_known(tmp_path: Path) -> None:
    leaning = upright(-25.0)
    for name, camera, least, most in (
        ("level", {"focal_px": 80, "pitch_deg": 0}, 0.2, 0.8),
        ("unknown", {"focal_px": 80}, 0, 0.004),
    ):
        mask, relief = levels_of(written(tmp_path / name, leaning, camera=camera))[0]
        assert least <= np.ptp(relief[mask]) <= most


def test_turned_sizes_have_turned_relief_and_their_own_foot(tmp_path: Path) -> None:
    turned = replace(RECIPE, rotation=40.0)
    folder = written(tmp_path / "fg", slanted()[1])
    (source,) = prepare(folder, "foreground", turned).sources
    n_steps = (1 + len(source.levels)) // 5
    for turn, angle in enumerate(turned.turns_deg):
        mask = source.pixels(turn * n_steps)[..., 3] >= 128
        relief = source.relief_at(turn * n_steps)
        assert relief is not None
        y, x = np.nonzero(mask)
        values = (relief[mask] - 32768.0) / 4096
        slope = np.linalg.lstsq(np.stack([x, y, np.ones_like(x)], 1), values, rcond=None)[0][:2]
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        # A counter-clockwise turn, with y downwards, takes (5, 2) to this.
        expected = np.array([5 * c + 2 * s, -5 * s + 2 * c])
        assert slope / np.linalg.norm(slope) == pytest.approx(
            expected / np.linalg.norm(expected), abs=0.03
        )
        low = relief[np.flatnonzero(mask.any(1))[-1]][mask[np.flatnonzero(mask.any(1))[-1]]]
        assert abs(np.median(low) - 32768) < 40


def test_without_the_option_depth_beside_a_foreground_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path / "fg", slanted()[1])
    with caplog.at_level(logging.INFO):
        (source,) = prepare(folder, "foreground", BOARDS).sources
    assert "a.depth.png" in caplog.text
    (folder / "a.depth.png").unlink()
    (alone,) = prepare(folder, "foreground", BOARDS).sources
    assert source == alone
    assert "has_relief" not in decisive(alone.entry)
    assert "relief" not in decisive(BOARDS)
    caplog.clear()
    (board,) = prepare(folder, "foreground", RECIPE).sources
    assert "all of them are boards" in caplog.text
    assert board.entry == alone.entry


def test_the_hash_of_what_was_prepared_covers_relief(tmp_path: Path) -> None:
    depth = slanted()[1]
    hashes = set()
    for name, change in (("one", 0), ("two", 40)):
        changed = depth.copy()
        changed[20:40, 20:40] += np.uint16(change)
        (source,) = prepare(written(tmp_path / name, changed), "foreground", RECIPE).sources
        hashes.add(source.entry.prepared_sha256)
        assert source.entry.prepared_sha256 == source.sizes_sha256
    assert len(hashes) == 2


def as_8_bits(folder: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT), 90).save(folder / "a.depth.png")


def as_part(folder: Path) -> None:
    (folder / "a.depth.png").write_bytes(png(WIDTH, HEIGHT, 16, 0, [bytes(2 * WIDTH)] * 3)[:60])


def as_large(folder: Path) -> None:
    (folder / "a.depth.png").write_bytes(png(60_000, 60_000, 16, 0, [bytes(120_000)]))


def as_noise(folder: Path) -> None:
    """Inverse depth, stretched to 16 bits, as relative models give it."""
    values = np.random.default_rng(0).integers(1, 65_536, (HEIGHT, WIDTH)).astype(np.uint16)
    depth_png(folder / "a.depth.png", values)
    (folder / "credits.csv").write_text("file,author,license,url,height_m\na.png,,,,0.5\n")


def as_link(folder: Path) -> None:
    outside = folder.parent / "outside.png"
    (folder / "a.depth.png").rename(outside)
    (folder / "a.depth.png").symlink_to(outside)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (as_8_bits, "a.depth.png beside it, which is of mode L"),
        (as_part, "a.depth.png beside it, which "),
        (as_large, "too large to be safe"),
        (as_noise, "depth must be metric"),
        (as_link, "a.depth.png"),
        (
            lambda fg: depth_png(fg / "a.depth.png", slanted()[1][:, :-1], focal_px=80),
            "both must have the same size",
        ),
        (
            lambda fg: depth_png(
                fg / "a.depth.png", np.zeros((HEIGHT, WIDTH), np.uint16), focal_px=80
            ),
            "every pixel is 0",
        ),
        (
            lambda fg: depth_png(
                fg / "a.depth.png",
                np.where(slanted()[1] == FAR_MM, 9, 0).astype(np.uint16),
                focal_px=80,
            ),
            "unknown, all over the object",
        ),
        (lambda fg: depth_png(fg / "a.depth.png", slanted()[1]), "give its height_m"),
        (
            lambda fg: depth_png(fg / "a.depth.png", slanted()[1], focal_px="nan"),
            "focal_px is 'nan'",
        ),
        (
            lambda fg: depth_png(fg / "a.depth.png", slanted()[1], focal_px="6 mm"),
            "focal_px is '6 mm'",
        ),
        (lambda fg: depth_png(fg / "a.depth.png", slanted()[1], focal_px=-80), "focal_px is '-80'"),
        (
            lambda fg: depth_png(fg / "a.depth.png", slanted()[1], focal_px=80, pitch_deg=-95),
            "pitch_deg is '-95'; it must be an angle",
        ),
    ],
)
def test_bad_depth_is_refused_with_the_others(tmp_path: Path, make, sentence: str) -> None:
    folder = written(tmp_path / "fg", slanted()[1])
    (folder / "b.png").write_bytes(b"nothing")
    make(folder)
    with pytest.raises(BadSourcesError) as error:
        prepare(folder, "foreground", RECIPE)
    reasons = dict(error.value.problems)
    assert set(reasons) == {"fg/a.png", "fg/b.png"}
    assert sentence in reasons["fg/a.png"]
    assert reasons["fg/a.png"].count(str(tmp_path)) == 0


def test_depth_of_a_foreground_that_is_not_there_is_named_as_such(tmp_path: Path) -> None:
    folder = written(tmp_path / "fg", slanted()[1])
    (folder / "a.depth.png").rename(folder / "lost.depth.png")
    with pytest.raises(BadSourcesError) as error:
        prepare(folder, "foreground", RECIPE)
    (problem,) = error.value.problems
    assert problem[0] == "fg/lost.depth.png"
    assert "the depth of a foreground lost, which is not there" in problem[1]


def test_the_focal_length_may_stand_behind_the_pixels(tmp_path: Path) -> None:
    folder = written(tmp_path / "fg", slanted()[1], camera={"pitch_deg": 0})
    data = (folder / "a.depth.png").read_bytes()
    text = b"tEXtfocal_px\x0080"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    (folder / "a.depth.png").write_bytes(data[:-12] + chunk + data[-12:])
    after = levels_of(folder)
    for (_, one), (_, other) in zip(
        after, levels_of(written(tmp_path / "before", slanted()[1])), strict=True
    ):
        assert (one == other).all()


def test_depth_as_cutout_writes_it_is_read(tmp_path: Path) -> None:
    small = np.linspace(1900, 2300, 48 * 48).reshape(48, 48).astype(np.uint16)
    seen = SeenDepth(small, (WIDTH, HEIGHT), 80.0, "some/model")
    part = seen.part(0, 0, WIDTH, HEIGHT)
    by_hand = written(tmp_path / "hand", part, camera={"focal_px": 80})
    (folder := tmp_path / "fg").mkdir()
    slanted()[0].save(folder / "a.png")
    (folder / "a.depth.png").write_bytes(seen.png(part))
    for (_, one), (_, other) in zip(levels_of(folder), levels_of(by_hand), strict=True):
        assert (one == other).all()


def test_stored_relief_is_16_bit_grey_of_the_size_of_its_picture(tmp_path: Path) -> None:
    (source,) = prepare(written(tmp_path / "fg", slanted()[1]), "foreground", RECIPE).sources
    for level, stored in enumerate(source.relief):
        height, width = source.pixels(level).shape[:2]
        open_picture(stored, (width, height), ("PNG",), ("I;16",))
