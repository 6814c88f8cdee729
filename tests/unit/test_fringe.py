"""The fringe of cut-outs: an old background is measured and taken out; what is right stays."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import fringe as measured
from benchmarks.fringe import as_file
from builder.pinned import SourceEntry
from builder.recipe import Recipe
from builder.schema import source_columns
from builder.sources import fringe, read_sources, write_sources
from builder.sources.fringe import decontaminated
from builder.sources.prepare import Source, prepare
from builder.typed import decisive, stored
from tests.pictures import scene

LADDER = Recipe(layout="scenes", size=96, depth_model="measured")
ONE_SIZE = Recipe(size=96, foreground_size=48)
SIDE = 200


def cut_out(soft_px: float) -> tuple[np.ndarray, np.ndarray]:
    return measured.cut_out(soft_px, SIDE)


def photographed(soft_px: float, background: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """The object before a background, cut out with its colours there; and its true colours."""
    colour, alpha = cut_out(soft_px)
    mixed = alpha[..., None] * colour + (1 - alpha[..., None]) * background
    return as_file(mixed, alpha), colour


def error(image: Image.Image, truth: np.ndarray, ground: float) -> float:
    """How far a composite on a grey is from the true one at the edge, 0 to 255."""
    pixels = np.asarray(image).astype(float)
    alpha = pixels[..., 3:] / 255
    edge = (alpha[..., 0] > 0) & (alpha[..., 0] < 1)
    composites = [alpha * colour + (1 - alpha) * ground for colour in (pixels[..., :3], truth)]
    return float(np.abs(composites[0] - composites[1])[edge].mean())


@pytest.mark.parametrize("ground", [0, 255])
@pytest.mark.parametrize(("soft_px", "most"), [(2, 0.4), (5, 0.4), (12, 0.5)])
def test_a_composite_is_nearer_to_the_truth_than_with_the_photographs_colours(
    soft_px: float, most: float, ground: float
) -> None:
    image, truth = photographed(soft_px, np.asarray(scene(3, SIDE, SIDE), float))
    mended, halo = decontaminated(image)
    assert halo > 15
    assert error(mended, truth, ground) < most * error(image, truth, ground)


@pytest.mark.parametrize("soft_px", [2, 5, 12])
def test_colours_multiplied_by_alpha_are_found_and_divided(soft_px: float) -> None:
    image, truth = photographed(soft_px, np.zeros(3))
    mended, halo = decontaminated(image)
    assert halo > 30
    assert error(mended, truth, 255) < 0.4 * error(image, truth, 255)


@pytest.mark.parametrize("soft_px", [2, 5, 12])
def test_right_colours_hardly_change_and_have_hardly_a_halo(soft_px: float) -> None:
    colour, alpha = cut_out(soft_px)
    image = as_file(colour, alpha)
    mended, halo = decontaminated(image)
    assert error(mended, colour, 255) < 1.5
    assert halo < 5 < decontaminated(photographed(soft_px, np.full(3, 230.0))[0])[1]


def drawing() -> Image.Image:
    """A white house with a black outline, blue glass and a soft shadow, antialiased."""
    large = np.zeros((600, 600, 4), np.uint8)
    large[300:520, 60:200] = (0, 0, 0, 120)
    large[100:500, 150:500] = (0, 0, 0, 255)
    large[116:484, 166:484] = (250, 250, 250, 255)
    large[200:360, 220:380] = (90, 160, 250, 80)
    # Pillow weighs by alpha, as what draws does.
    return Image.fromarray(large).rotate(7, Image.Resampling.BICUBIC).resize((150, 150))


def test_a_drawing_is_nearly_unchanged() -> None:
    image = drawing()
    mended, halo = decontaminated(image)
    before, after = (np.asarray(i).astype(float) for i in (image, mended))
    assert halo < 8
    assert (before[..., 3:] * np.abs(before - after) / 255).mean() < 0.05


def test_hair_with_nothing_opaque_near_stays() -> None:
    image, _ = photographed(5, np.full(3, 255.0))
    pixels = np.array(image)
    pixels[:40] = 0
    pixels[5:15, 20:180:3] = (240, 230, 220, 120)  # some 20 px from anything opaque
    mended, halo = decontaminated(Image.fromarray(pixels))
    assert halo > 0
    assert (np.asarray(mended)[:15] == pixels[:15]).all()


def test_a_cut_out_without_soft_edges_is_given_back() -> None:
    colour, alpha = cut_out(0.01)
    image = as_file(colour, np.rint(alpha))
    assert decontaminated(image) == (image, 0.0)


@pytest.mark.parametrize("cells", [3, 8, 20])
def test_tiles_leave_no_trace(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    image, _ = photographed(12, np.asarray(scene(3, SIDE, SIDE), float))
    mended, halo = decontaminated(image)
    monkeypatch.setattr(fringe, "_TILE", cells)
    again = decontaminated(image)
    assert again[1] == halo
    assert again[0].tobytes() == mended.tobytes()


def test_the_same_object_in_a_large_file_has_the_same_halo() -> None:
    image, _ = photographed(5, np.full(3, 230.0))
    large = image.resize((SIDE * 12, SIDE * 12), Image.Resampling.BILINEAR)
    assert decontaminated(large)[1] == pytest.approx(decontaminated(image)[1], rel=0.15)


# In sets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three cut-outs: of an old background, of right colours, and of a faint old background."""
    path = tmp_path / "fg"
    path.mkdir()
    colour, alpha = cut_out(5)
    photographed(5, np.full(3, 250.0))[0].save(path / "bright.png")
    photographed(5, np.array([140, 100, 80]))[0].save(path / "faint.png")
    as_file(np.broadcast_to([170.0, 110.0, 60.0], colour.shape), alpha).save(path / "clean.png")
    return path


def by_id(folder: Path, recipe: Recipe, like: tuple[SourceEntry, ...] = ()) -> dict[str, Source]:
    return {s.entry.id: s for s in prepare(folder, "foreground", recipe, like=like).sources}


def test_every_size_of_a_ladder_is_mended_and_the_worst_is_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = by_id(folder, LADDER)
    (named,) = (message for message in caplog.messages if "old background" in message)
    assert named.endswith("(worst first): bright.png")
    assert found["clean"].entry.halo == 0 < found["faint"].entry.halo < found["bright"].entry.halo
    for level in range(4):
        pixels = found["bright"].pixels(level).astype(int)
        faint = pixels[(pixels[..., 3] > 20) & (pixels[..., 3] < 128)]
        assert faint[:, :3].max() < 235


def test_sets_of_one_size_keep_their_pixels_and_entries(folder: Path) -> None:
    for name, source in by_id(folder, ONE_SIZE).items():
        assert source.entry.halo == 0
        assert "halo" not in stored(source.entry)
        whole = Image.open(folder / f"{name}.png")
        whole = whole.crop(whole.getchannel("A").getbbox())
        size = source.entry.width, source.entry.height
        due = np.array(whole.resize(size, Image.Resampling.HAMMING))
        due[due[..., 3] == 0] = 0
        assert (source.pixels() == due).all()
    assert "halo" not in [column.name for column in source_columns("foreground", ONE_SIZE)]


def test_a_set_made_before_there_was_a_halo_keeps_its_pixels_and_fingerprint(folder: Path) -> None:
    new = by_id(folder, LADDER)
    assert decisive(new["bright"].entry)["halo"] == new["bright"].entry.halo
    assert "halo" not in decisive(new["clean"].entry)
    before = tuple(replace(source.entry, halo=0.0) for source in new.values())
    old = by_id(folder, LADDER, before)
    assert [source.entry.halo for source in old.values()] == [0, 0, 0]
    assert old["bright"].png != new["bright"].png
    assert old["clean"].png == new["clean"].png
    again = by_id(folder, LADDER, tuple(source.entry for source in new.values()))
    assert again == new
    # A set of one size says nothing of edges, and one of several sizes may come after it.
    after = prepare(folder, "foreground", LADDER, like=before, like_has_ladder=False)
    assert list(new.values()) == list(after.sources)


def test_the_column_holds_what_the_recipe_says(folder: Path, tmp_path: Path) -> None:
    found = by_id(folder, LADDER)
    path = tmp_path / "sources.parquet"
    write_sources(path, "foreground", LADDER, found.values())
    assert [source.entry.halo for source in read_sources(path)] == [
        source.entry.halo for source in found.values()
    ]
