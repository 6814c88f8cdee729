"""Cut-outs of photographs: shapes, the sweep, keying, and folders of photographs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

from benchmarks.cutout import SWEEPS, measured, placed, studio
from builder.cli import main
from builder.cutout import cutout
from builder.cutout.depth import SeenDepth, focal_length_px
from builder.cutout.key import cut_out
from builder.cutout.objects import NotCutError
from builder.cutout.shapes import carried, grown, holes, opened, shrunk
from builder.cutout.sweep import Sweep, fit_border, fit_outside
from builder.depth import DepthEstimator, locate_model
from builder.errors import BadSourcesError, CutoutError, FgbgError
from builder.recipe import Recipe
from builder.sources import demo_folders, prepare
from docs import cutouts as hard
from tests.pictures import blob, scene

SIDE = 320
masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))


def photograph(seed: int = 0, sweep: str = "grey", side: int = SIDE):
    name = ("duck", "mug", "teapot", "gift", "toy-car")[seed % 5]
    cut = Image.open(demo_folders()[0] / f"{name}.png").convert("RGBA")
    return studio(placed(cut.crop(cut.getchannel("A").getbbox()), side, seed), sweep, seed)


def folder_of(path: Path, n: int = 3) -> Path:
    for seed in range(n):
        place = path / ("birds" if seed % 2 else "boats")
        place.mkdir(parents=True, exist_ok=True)
        photograph(seed).image.save(place / f"photo{seed}.jpg", quality=93)
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fgbg(*arguments: object):
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="fgbg")


# --- shapes -----------------------------------------------------------------------------------


def plain_grown(mask, steps: int):
    """By the definition: anything of the mask in the square around a pixel."""
    found = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        found[y, x] = mask[
            max(0, y - steps) : y + steps + 1, max(0, x - steps) : x + steps + 1
        ].any()
    return found


@given(masks, st.integers(0, 6))
def test_a_mask_grows_by_its_definition_and_shrinking_is_its_dual(mask, steps):
    assert np.array_equal(grown(mask, steps), plain_grown(mask, steps))
    assert np.array_equal(shrunk(mask, steps), ~plain_grown(~mask, steps))


@given(masks, st.integers(0, 4))
def test_opening_takes_away_alone_and_twice_is_once(mask, steps):
    once = opened(mask, steps)
    assert not (once & ~mask).any()
    assert np.array_equal(opened(once, steps), once)


def flooded(mask):
    """What is not reached from the frame, by steps to four neighbours."""
    height, width = mask.shape
    waiting = [(y, x) for y, x in np.ndindex(mask.shape)
               if not mask[y, x] and (y in (0, height - 1) or x in (0, width - 1))]  # fmt: skip
    reached = np.zeros_like(mask)
    while waiting:
        y, x = waiting.pop()
        if 0 <= y < height and 0 <= x < width and not mask[y, x] and not reached[y, x]:
            reached[y, x] = True
            waiting += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return ~mask & ~reached


@given(masks)
def test_holes_are_what_no_way_leads_to(mask):
    assert np.array_equal(holes(mask), flooded(mask))


def test_colours_are_carried_from_the_nearest_and_no_farther_than_asked():
    known = np.zeros((9, 9), bool)
    known[4, 0], known[4, 8] = True, True
    colour = np.zeros((9, 9, 3), np.float32)
    colour[4, 0], colour[4, 8] = (10, 20, 30), (90, 80, 70)
    ys, xs, values = carried(colour, known, ~known, 3)
    far = [max(abs(y - 4), min(x, 8 - x)) for y, x in np.ndindex(9, 9)]
    reached = np.zeros((9, 9), bool)
    reached[ys, xs] = True
    assert reached.reshape(-1).tolist() == [distance in (1, 2, 3) for distance in far]
    assert np.allclose(values[xs < 4], (10, 20, 30))
    assert np.allclose(values[xs > 4], (90, 80, 70))


# --- the sweep --------------------------------------------------------------------------------


def test_a_quadratic_sweep_is_found_though_something_covers_a_quarter_of_its_border():
    y, x = np.mgrid[-1:1:120j, -1:1:160j]
    truth = np.stack(
        [200 - 20 * x**2 - 12 * y**2 + 5 * x * y + k * x + 3 * y for k in (1, 4, 9)], -1
    )
    rng = np.random.default_rng(1)
    seen = truth + rng.normal(0, 2, truth.shape)
    seen[90:, 20:140] = (30, 60, 20)
    sweep = fit_border(seen.astype(np.float32))
    found = sweep.rows((120, 160), 0, 120)
    assert np.abs(found - truth).max() < 2.5
    assert sweep.explained[0] < 0.85
    assert sweep.explained[1] > 0.95
    outside = np.ones((120, 160), bool)
    outside[86:, 16:144] = False
    assert np.abs(fit_outside(seen.astype(np.float32), outside, sweep).rows((120, 160), 0, 120)
                  - truth).max() < 1  # fmt: skip


@given(st.integers(2, 40), st.integers(2, 40), st.data())
def test_a_part_of_a_sweep_is_that_part_of_the_whole(height, width, data):
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    stop, end = data.draw(st.integers(top, height)), data.draw(st.integers(left, width))
    terms = np.random.default_rng(2).normal(0, 30, (6, 3))
    sweep = Sweep(terms, 1.0, 1.0, (1.0, 1.0))
    whole = sweep.rows((height, width), 0, height)
    assert np.array_equal(
        sweep.rows((height, width), top, stop, left, end), whole[top:stop, left:end]
    )
    corner = terms.T @ [1, -1, -1, 1, 1, 1]
    assert np.allclose(whole[0, 0], corner, atol=1e-3)


# --- keying -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("side", [SIDE, 1300])
def test_what_was_put_before_a_sweep_comes_back(sweep, side):
    row = measured(photograph(3, sweep, side))
    assert row["iou"] > 0.95
    assert row["edge"] < 0.85 * row["hard"]


def test_alpha_and_colour_make_the_photograph_again():
    """Composited over the sweep that was photographed, noise is all that is left."""
    height, width = 240, 320
    y, x = np.mgrid[:height, :width]
    alpha = np.clip((80 - np.hypot(y - 120, x - 160)) / 5 + 0.5, 0, 1)[..., None]
    pixels = np.rint(alpha * (180, 40, 60) + (1 - alpha) * (120.0, 130, 125)).astype(np.uint8)
    (one,) = cut_out(Image.fromarray(pixels))
    found = one.pixels.astype(float)
    box = slice(one.top, one.top + len(found)), slice(one.left, one.left + found.shape[1])
    own = found[..., 3:] / 255
    again = own * found[..., :3] + (1 - own) * (120, 130, 125)
    assert np.abs(again - pixels[box]).max() <= 6
    assert np.abs(own - alpha[box]).mean() < 0.01
    assert (found[..., :3][found[..., 3] == 0] == 0).all()
    assert found[..., 3].any(0).all() or found[0, :, 3].any()
    assert found[0, :, 3].any() and found[-1, :, 3].any()  # trimmed
    assert found[:, 0, 3].any() and found[:, -1, 3].any()


def test_large_photographs_are_made_in_strips_and_no_seam_shows(monkeypatch):
    picture = photograph(5, "green", 900).image.convert("RGB")
    (whole,) = cut_out(picture)
    monkeypatch.setattr("builder.cutout.key._STRIP_PX", 1000)
    (strips,) = cut_out(picture)
    assert np.array_equal(whole.pixels, strips.pixels)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (hard.two, "shows 2 objects"),
        (hard.glass, "as glass does"),
        (hard.cut_off_twice, "cut off at the left and bottom"),
        (hard.same_colour, "has the background's colour"),
        (hard.room, "is not before one smooth colour"),
    ],
)
def test_hard_photographs_are_refused_with_the_reason(case, reason):
    found = hard.cut(case())
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize("case", [hard.holes, hard.shadow, hard.cut_off])
def test_holes_stay_open_and_shadows_behind(case):
    row = measured(case())
    assert row["iou"] > 0.96


def test_hair_is_kept_and_the_gaps_in_it_are_not_filled():
    image, truth = hard.hair()
    (one,) = cut_out(image.convert("RGB"))
    found = np.zeros(truth.shape[:2])
    height, width = one.pixels.shape[:2]
    found[one.top : one.top + height, one.left : one.left + width] = one.pixels[..., 3]
    y, x = np.mgrid[: truth.shape[0], : truth.shape[1]]
    around = (np.hypot((x - 400) / 1.0, (y - 300) / 1.25) > 150) & (truth[..., 3] < 256)
    ring = around & (np.hypot(x - 400, (y - 300) / 1.25) < 175)
    assert 0.5 < found[ring].sum() / truth[..., 3][ring].sum() < 2
    assert np.corrcoef(found[ring], truth[..., 3][ring])[0, 1] > 0.6


def test_a_soft_shadow_is_left_out_and_reported():
    (one,) = cut_out(hard.shadow().image.convert("RGB"))
    assert one.figures.shadow > 0.05


def test_spill_is_taken_out():
    clean, spilt = np.asarray(hard.layer(("duck", (240, 120), 350))), hard.spill()
    (one,) = cut_out(spilt.image.convert("RGB"))
    assert one.figures.spill > 4
    height, width = one.pixels.shape[:2]
    box = slice(one.top, one.top + height), slice(one.left, one.left + width)
    solid = (clean[box][..., 3] == 255) & (one.pixels[..., 3] == 255)
    rim = solid & grown(clean[box][..., 3] < 128, 8)

    def green(pixels):
        return (pixels[..., 1].astype(int) - pixels[..., [0, 2]].max(2))[rim].clip(0).mean()

    seen = np.asarray(spilt.image.convert("RGB"))[box]
    assert green(seen) > green(clean[box]) + 8
    assert green(one.pixels) < green(clean[box]) + 0.4 * (green(seen) - green(clean[box]))


def test_the_side_that_cuts_an_object_off_is_said():
    (one,) = cut_out(hard.cut_off().image.convert("RGB"))
    assert one.cut_at == "bottom"
    assert (one.pixels[-1, :, 3] == 255).mean() > 0.3


def test_instances_are_cut_out_one_by_one():
    image, truth = hard.two()
    found = cut_out(image.convert("RGB"), instances=True)
    assert len(found) == 2
    areas = [np.count_nonzero(one.pixels[..., 3] > 127) for one in found]
    assert areas[0] > areas[1]
    assert abs(sum(areas) / np.count_nonzero(truth[..., 3] > 127) - 1) < 0.03


@pytest.mark.parametrize("size", [(2, 2), (3, 200), (200, 3), (24, 24), (5, 2000)])
def test_small_and_thin_pictures_are_refused_and_break_nothing(size):
    for picture in (Image.new("RGB", size, "grey"), scene(1, *size)):
        with pytest.raises(NotCutError):
            cut_out(picture)


def test_a_whole_frame_of_the_object_is_no_sweep():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    with pytest.raises(NotCutError, match="is not before one smooth colour"):
        cut_out(Image.fromarray(noise))


@given(hnp.arrays(np.uint8, st.tuples(st.integers(2, 40), st.integers(2, 40), st.just(3))))
def test_any_pixels_are_cut_out_or_refused(pixels):
    try:
        found = cut_out(Image.fromarray(pixels), instances=True, asked=True)
    except NotCutError:
        return
    for one in found:
        assert one.pixels.shape[2] == 4
        assert one.pixels[..., 3].any()


# --- folders ----------------------------------------------------------------------------------


def test_a_folder_becomes_cut_outs_that_fgbg_builds_from(tmp_path):
    photos, out = folder_of(tmp_path / "photos"), tmp_path / "out"
    before = files_in(photos)
    report = cutout(photos, out)
    assert set(report.cut) == {"boats/photo0.png", "birds/photo1.png", "boats/photo2.png"}
    assert files_in(photos) == before
    ready = prepare(out, "foreground", Recipe(foreground_size=64))
    assert {s.entry.file: s.entry.category for s in ready.sources} == {
        "boats/photo0.png": "boats", "birds/photo1.png": "birds", "boats/photo2.png": "boats",
    }  # fmt: skip
    assert not ready.skipped


def test_credits_are_carried_over_and_what_a_person_writes_is_kept(tmp_path):
    photos, out = folder_of(tmp_path / "photos"), tmp_path / "out"
    (photos / "credits.csv").write_text(
        "file;author;licence;url;height_m;stance\n"
        "boats/photo0.jpg;Ann;CC-BY-4.0;https://a.example;1,8;free\n"
        "birds/photo1.jpg;Ben;CC0-1.0;https://b.example;;\n"
    )
    cutout(photos, out)

    def rows():
        with (out / "credits.csv").open(newline="") as file:
            return {row["file"]: row for row in csv.DictReader(file)}

    first = rows()
    assert first["boats/photo0.png"]["author"] == "Ann"
    assert first["boats/photo0.png"]["license"] == "CC-BY-4.0"
    assert first["boats/photo0.png"]["height_m"] == "1.8"
    assert first["boats/photo0.png"]["stance"] == "free"
    assert first["birds/photo1.png"]["stance"] == "ground"
    assert first["boats/photo2.png"]["author"] == ""
    assert all(row["tool"].startswith("fgbg-dataset ") for row in first.values())
    text = (out / "credits.csv").read_text().replace(",ground,\n", ",free,\n", 1)
    (out / "credits.csv").write_text(text)
    photograph(9).image.save(photos / "new.jpg")
    cutout(photos, out)
    assert {**rows(), "new.png": None} == {
        **{row["file"]: row for row in csv.DictReader(io.StringIO(text))}, "new.png": None,
    }  # fmt: skip
    assert "new.png" in rows()


def test_credits_that_cannot_be_read_stop_everything(tmp_path):
    photos, out = folder_of(tmp_path / "photos", 1), tmp_path / "out"
    (photos / "credits.csv").write_text("name,by\nx,y\n")
    with pytest.raises(BadSourcesError, match="has no column"):
        cutout(photos, out)
    assert not out.exists()
    (photos / "credits.csv").unlink()
    out.mkdir()
    (out / "credits.csv").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(BadSourcesError, match=r"credits\.csv"):
        cutout(photos, out)
    assert set(files_in(out)) == {"credits.csv"}


def test_what_is_done_is_not_made_again_and_changes_are_noticed(tmp_path, monkeypatch):
    photos, out = folder_of(tmp_path / "photos"), tmp_path / "out"
    cutout(photos, out)
    before = files_in(out)
    monkeypatch.setattr("builder.cutout.cutter.cut_out", lambda *_a, **_k: pytest.fail("again"))
    report = cutout(photos, out)
    assert not report.cut
    assert len(report.kept) == 3
    assert files_in(out) == before
    monkeypatch.undo()
    photograph(7).image.save(photos / "boats" / "photo0.jpg")
    with pytest.raises(CutoutError, match=r"boats/photo0\.png is there already"):
        cutout(photos, out)
    assert files_in(out)["boats/photo0.png"] == before["boats/photo0.png"]
    report = cutout(photos, out, overwrite=True)
    assert report.cut == ("boats/photo0.png",)
    assert files_in(out)["boats/photo0.png"] != before["boats/photo0.png"]


@pytest.mark.parametrize("lost", ["note", "picture"])
def test_a_run_that_was_stopped_ends_in_the_same_files(tmp_path, lost):
    photos, out = folder_of(tmp_path / "photos"), tmp_path / "out"
    cutout(photos, out)
    before = files_in(out)
    (min((out / ".cutout").iterdir()) if lost == "note" else out / "birds/photo1.png").unlink()
    report = cutout(photos, out)
    assert len(report.cut) == 1
    assert files_in(out) == before


# --- depth ------------------------------------------------------------------------------------


def by_the_model(image: Image.Image):
    """What the demo model says of a photograph, at its size, interpolated here."""
    recipe, model = locate_model(Recipe(depth_model="demo"))
    side = recipe.depth_input
    small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2)
    depth = DepthEstimator(model, recipe, batch_size=1)(np.array(small)[None])[0].astype(float)
    rows, columns = (
        np.clip((np.arange(n) + 0.5) * side / n - 0.5, 0, side - 1)
        for n in (image.height, image.width)
    )
    y, x = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - y)[:, None], columns - x
    below, beside = np.minimum(y + 1, side - 1), np.minimum(x + 1, side - 1)
    upper = depth[y][:, x] * (1 - right) + depth[y][:, beside] * right
    lower = depth[below][:, x] * (1 - right) + depth[below][:, beside] * right
    return upper * (1 - down) + lower * down


def box_of(photo: Image.Image) -> tuple[slice, slice]:
    (one,) = cut_out(photo.convert("RGB"))
    height, width = one.pixels.shape[:2]
    return slice(one.top, one.top + height), slice(one.left, one.left + width)


def test_depth_of_the_photograph_is_kept_in_the_box_of_the_cut_out(tmp_path, monkeypatch):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    wide = Image.fromarray(np.pad(np.asarray(photograph(1, side=400).image.convert("RGB")),
                                  ((0, 0), (80, 80), (0, 0)), "edge"))  # fmt: skip
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0xA405] = 50
    wide.save(photos / "said.png", exif=exif)
    wide.save(photos / "plain.png")
    monkeypatch.setattr("builder.cutout.depth._STRIP_PX", 5000)
    cutout(photos, out, depth_model="demo", fov_deg=90)
    due, box = by_the_model(wide), box_of(wide)
    for name, focal in (("said", 50 / 43.27 * np.hypot(*wide.size)), ("plain", wide.width / 2)):
        with Image.open(out / f"{name}.depth.png") as image:
            assert image.mode.startswith("I")
            assert float(image.text["focal_px"]) == pytest.approx(focal, abs=0.01)
            assert image.text["depth_model"].startswith("demo ")
            found = np.asarray(image).astype(float)
        with Image.open(out / f"{name}.png") as image:
            assert found.shape[::-1] == image.size
        assert np.abs(found - due[box]).max() <= 1.5
        assert np.ptp(found) > 50
    assert "plain.png: depth, near bright" in (out / "report.html").read_text()


def test_depth_is_added_to_cut_outs_that_are_there_and_kept(tmp_path, monkeypatch):
    photos, out = folder_of(tmp_path / "photos", 2), tmp_path / "out"
    cutout(photos, out)
    edited = Image.open(out / "boats/photo0.png").convert("RGBA")
    edited.putpixel((0, 0), (1, 2, 3, 4))
    edited.save(out / "boats/photo0.png")
    before = {n: data for n, data in files_in(out).items() if n.endswith((".png", ".csv"))}
    assert not cutout(photos, out, depth_model="demo", dry_run=True).refused
    assert not [name for name in files_in(out) if name.endswith(".depth.png")]
    report = cutout(photos, out, depth_model="demo")
    after = files_in(out)
    assert len(report.kept) == 2 and not report.cut
    assert before.items() <= after.items()
    assert {"boats/photo0.depth.png", "birds/photo1.depth.png"} < after.keys()
    with monkeypatch.context() as patched:
        patched.setattr("builder.cutout.depth.PhotographDepth.of", lambda *_: pytest.fail("again"))
        cutout(photos, out, depth_model="demo")
        cutout(photos, out)
    assert files_in(out) == after
    (out / "birds/photo1.depth.png").unlink()
    (out / "boats/photo0.depth.png").write_bytes(b"by hand")
    assert cutout(photos, out, depth_model="demo").kept
    assert (out / "boats/photo0.depth.png").read_bytes() == b"by hand"
    with pytest.raises(CutoutError, match=r"boats/photo0\.depth\.png is there already"):
        cutout(photos, out, depth_model="demo", fov_deg=40)
    fresh = cutout(photos, tmp_path / "fresh", depth_model="demo")
    assert len(fresh.cut) == 2
    (out / "boats/photo0.depth.png").unlink()
    cutout(photos, out, depth_model="demo", overwrite=True)
    assert files_in(out)["birds/photo1.depth.png"] == after["birds/photo1.depth.png"]


def test_depth_of_an_earlier_photograph_does_not_stay_beside_a_new_cut_out(tmp_path):
    photos, out = folder_of(tmp_path / "photos", 2), tmp_path / "out"
    cutout(photos, out, depth_model="demo")
    (out / "birds/photo1.depth.png").write_bytes(b"by hand")
    photograph(7).image.save(photos / "boats/photo0.jpg")
    photograph(8).image.save(photos / "birds/photo1.jpg")
    # Refused in between: the old ones are still known to be this package's.
    assert len(cutout(photos, out, skip_bad=True).refused) == 2
    assert (out / "boats/photo0.depth.png").exists()
    cutout(photos, out, overwrite=True, dry_run=True)
    assert (out / "boats/photo0.depth.png").exists()
    cutout(photos, out, overwrite=True)
    assert not (out / "boats/photo0.depth.png").exists()
    assert (out / "birds/photo1.depth.png").read_bytes() == b"by hand"


def test_what_sees_no_metric_depth_is_refused_before_anything_is_written(tmp_path):
    photos, out, relative = folder_of(tmp_path / "photos", 1), tmp_path / "out", tmp_path / "dpt"
    relative.mkdir()
    (relative / "config.json").write_text('{"model_type": "dpt"}')
    demo = demo_folders()[0].parent / "depth"
    shutil.copy(demo / "model.safetensors", relative)
    for name, words in (
        (relative, "gives relative depth"),
        ("measured", "nothing is measured"),
        (tmp_path / "nothing", "is neither a folder"),
    ):
        result = fgbg("cutout", photos, out, "--depth-model", name)
        assert result.exit_code == 2
        assert words in result.output
    assert (
        "must be 1 to 170"
        in fgbg("cutout", photos, out, "--depth-model", "demo", "--fov", 0).output
    )
    assert not out.exists()


@pytest.mark.parametrize("value", [0, 65535, "fifty", (50, 0)])
def test_a_focal_length_that_no_camera_has_is_not_believed(tmp_path, value):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = value
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    found = focal_length_px(tmp_path / "a.jpg", (40, 30), 60)
    assert found == pytest.approx(20 / np.tan(np.radians(30)))


def test_unknown_depth_is_not_mixed_into_what_is_known():
    depth = np.full((8, 8), 2000, np.uint16)
    depth[:, 4:] = 0
    found = SeenDepth(depth, (80, 80), 1.0, "x").part(3, 5, 70, 60)
    assert set(np.unique(found)) == {0, 2000}
    assert (found[:, :36] == 2000).all() and (found[:, 38:] == 0).all()


def test_a_picture_made_by_hand_is_never_overwritten(tmp_path):
    photos, out = folder_of(tmp_path / "photos", 1), tmp_path / "out"
    (out / "boats").mkdir(parents=True)
    (out / "boats" / "photo0.png").write_bytes(b"by hand")
    with pytest.raises(CutoutError, match="--overwrite"):
        cutout(photos, out)
    assert (out / "boats" / "photo0.png").read_bytes() == b"by hand"
    cutout(photos, out, overwrite=True)
    edited = blob(1, 30, 30)
    edited.save(out / "boats" / "photo0.png")
    kept = (out / "boats" / "photo0.png").read_bytes()
    assert cutout(photos, out).kept == ("boats/photo0.png",)
    assert (out / "boats" / "photo0.png").read_bytes() == kept


def test_number_of_workers_changes_nothing(tmp_path):
    photos = folder_of(tmp_path / "photos", 5)
    cutout(photos, tmp_path / "one", workers=1)
    cutout(photos, tmp_path / "three", workers=3)
    assert files_in(tmp_path / "one") == files_in(tmp_path / "three")


def test_all_that_is_refused_is_listed_at_once_and_the_rest_is_made(tmp_path):
    photos, out = folder_of(tmp_path / "photos", 2), tmp_path / "out"
    scene(1, 200, 200).save(photos / "field.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    blob(2, 60, 60).save(photos / "cut.png")
    photograph(1).image.save(photos / "twin.jpg")
    shutil.copy(photos / "twin.jpg", photos / "twin.jpeg")
    result = fgbg("cutout", photos, out, "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    reasons = {one["file"]: one["reason"] for one in found["refused"]}
    assert set(reasons) == {"field.png", "broken.jpg", "cut.png", "twin.jpg", "twin.jpeg"}
    assert "is not before one smooth colour" in reasons["field.png"]
    assert "damaged" in reasons["broken.jpg"] or "is not a JPEG" in reasons["broken.jpg"]
    assert "is a cut-out already" in reasons["cut.png"]
    assert "twin.jpeg" in reasons["twin.jpg"]
    assert sorted(found["cut"]) == ["birds/photo1.png", "boats/photo0.png"]
    for name, reason in reasons.items():
        assert f"{name} {reason.split('; ')[0]}" in result.stderr
    assert "--skip-bad" in result.stderr
    again = fgbg("cutout", photos, out, "--skip-bad")
    assert again.exit_code == 0
    assert "0 cut out, 2 were there before, 5 refused." in again.stdout
    page = (out / "report.html").read_text()
    assert page.count("<article") == 7
    assert page.index("field.png") < page.index("photo0.png")


@pytest.mark.skipif(sys.platform != "linux", reason="names and errors are those of Linux")
def test_a_name_that_cannot_be_written_refuses_its_photograph_alone(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "sub").mkdir(parents=True)
    image = photograph().image
    names = ["fine.png", "x" * 250 + ".png", "sub/b.png", "taken.png"]
    for name in names:
        image.save(photos / name)
    shutil.copy(photos / "fine.png", os.fsencode(photos) + b"/\xff.png")
    (out / "taken.png").mkdir(parents=True)
    (out / "sub").write_text("a file where a folder is due")
    report = cutout(photos, out, overwrite=True, skip_bad=True)
    assert report.cut == ("fine.png",)
    reasons = dict(report.refused)
    assert set(reasons) == {*names[1:], "\\udcff.png"}
    assert "not UTF-8" in reasons["\\udcff.png"]
    for name in names[1:]:
        assert "cannot be written" in reasons[name]
    assert "fine.png" in (out / "credits.csv").read_text()
    assert (out / "report.html").exists()


def test_a_photograph_that_is_called_as_depth_is_does_not_become_it(tmp_path):
    photos, out = folder_of(tmp_path / "photos", 1), tmp_path / "out"
    (photo,) = photos.rglob("*.jpg")
    photograph(5).image.save(photo.with_name(f"{photo.stem}.Depth.jpg"))
    with pytest.raises(CutoutError, match="what the depth of a cut-out is called; rename it"):
        cutout(photos, out)
    cutout(photos, out, depth_model="demo", skip_bad=True)
    (depth,) = out.rglob("*.depth.png")
    with Image.open(depth) as seen:
        assert seen.mode.startswith("I")
    assert not list(out.rglob("*.Depth.png"))


def test_credits_of_cut_outs_that_end_early_stop_everything(tmp_path):
    photos, out = folder_of(tmp_path / "photos", 1), tmp_path / "out"
    out.mkdir()
    (out / "credits.csv").write_text("author,file\nAnn\n")
    with pytest.raises(BadSourcesError, match="ends before its column file"):
        cutout(photos, out)
    assert set(files_in(out)) == {"credits.csv"}


@pytest.mark.parametrize(
    "text",
    ['{"made":[],"refused":"","options":{}}', '{"made":[{}],"refused":"","options":{}}', "[]"],
)
def test_a_damaged_note_is_made_again(tmp_path, text):
    photos, out = folder_of(tmp_path / "photos", 1), tmp_path / "out"
    cutout(photos, out)
    before = files_in(out)
    (note,) = (out / ".cutout").glob("*.json")
    note.write_text(text)
    cutout(photos, out)
    assert files_in(out) == before


def whole(**fields):
    """Return what puts fields into a note."""
    return lambda note, _secret: note.update(fields)


def one(**fields):
    """Return what puts fields into what a note says of its cut-out."""
    return lambda note, _secret: note["made"][0].update(fields)


def stolen(note, secret):
    """Call a file outside of the folder the depth of an earlier cut-out."""
    digest = hashlib.sha256(secret.read_bytes()).hexdigest()
    depth = {"file": "../secret.png", "sha256": digest, "options": {}, "picture": ""}
    note["sha256"], note["made"][0]["depth"] = "", depth


@pytest.mark.parametrize(
    "forge",
    [
        whole(photograph=7), whole(picture='"><b>'), whole(tool=["x"]), whole(weights=3),
        whole(earlier={"../secret.png": ""}), whole(earlier=[]), whole(made={}),
        one(figures=[1]), one(figures={"soft": "x"}), one(size=5), one(size=["<b>", 2]),
        one(at=[-1, 0]), one(file=5), one(file="../secret.png"), one(file="/secret.png"),
        one(cut_at={}), one(cut_at="inside"), one(edge=[1]), one(depth="x"), one(label=3),
        one(strip='"><script>alert(1)</script>'), stolen,
    ],
)  # fmt: skip
def test_a_forged_note_counts_for_nothing(tmp_path, forge):
    photos, out, secret = folder_of(tmp_path / "photos", 1), tmp_path / "out", tmp_path / "secret"
    secret = secret.with_suffix(".png")
    secret.write_bytes(b"of somebody")
    cutout(photos, out)
    before = files_in(out)
    (path,) = (out / ".cutout").glob("*.json")
    note = json.loads(path.read_text())
    forge(note, secret)
    path.write_text(json.dumps(note))
    cutout(photos, out, overwrite=True)
    assert files_in(out) == before
    assert secret.read_bytes() == b"of somebody"


def test_dry_run_writes_nothing_and_says_the_same(tmp_path):
    photos, out = folder_of(tmp_path / "photos", 2), tmp_path / "out"
    dry = cutout(photos, out, dry_run=True)
    assert not out.exists()
    assert cutout(photos, out).cut == dry.cut


def test_instances_get_numbers(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    hard.two().image.save(photos / "both.jpg", quality=95)
    with pytest.raises(CutoutError, match="shows 2 objects"):
        cutout(photos, out)
    assert cutout(photos, out, instances=True).cut == ("both-1.png", "both-2.png")


def test_objects_that_a_photograph_shows_no_more_go_with_overwrite(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    hard.two().image.save(photos / "both.jpg", quality=95)
    cutout(photos, out, instances=True, depth_model="demo")
    photograph(3).image.save(photos / "both.jpg", quality=95)
    assert cutout(photos, out, instances=True, skip_bad=True).refused
    assert (out / "both-2.png").exists()
    cutout(photos, out, instances=True, overwrite=True)
    assert {name for name in files_in(out) if name.endswith(".png")} == {"both-1.png"}
    assert "both-2.png" not in (out / "credits.csv").read_text()
    # The same where nothing is left to be made, and never of what a person has changed.
    cutout(photos, out)
    assert (out / "both-1.png").exists()
    (out / "both-1.png").write_bytes(b"by hand")
    cutout(photos, out, overwrite=True)
    assert (out / "both-1.png").read_bytes() == b"by hand"


def test_a_cut_out_of_an_earlier_way_goes_with_overwrite(tmp_path):
    photos, out = folder_of(tmp_path / "photos", 1), tmp_path / "out"
    (old,) = cutout(photos, out, instances=True).cut
    (new,) = cutout(photos, out).cut
    assert {old, new} <= set(files_in(out))
    assert cutout(photos, out, overwrite=True).kept == (new,)
    assert old not in files_in(out)
    assert old not in (out / "credits.csv").read_text()


def test_folders_that_would_mix_are_refused(tmp_path):
    photos = folder_of(tmp_path / "photos", 1)
    for out in (photos, photos / "out", tmp_path):
        with pytest.raises(FgbgError, match="one folder"):
            cutout(photos, out)
    with pytest.raises(FgbgError, match="is neither a folder nor a Hub id"):
        cutout(photos, tmp_path / "out", how="magic")


def test_names_are_escaped_in_the_report(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    photograph(1).image.save(photos / "<img src=x onerror=alert(1)>.jpg", format="JPEG")
    cutout(photos, out)
    page = (out / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in page


def test_a_report_of_another_kind_is_still_refused_by_build(tmp_path):
    blob(1, 40, 40).save(tmp_path / "a.png")
    (tmp_path / "report.html").write_text("<!doctype html><p>mine</p>")
    with pytest.raises(BadSourcesError, match=r"report\.html: is a web page"):
        prepare(tmp_path, "foreground", Recipe(foreground_size=32))


def test_build_sends_people_with_photographs_to_cutout(tmp_path):
    photos = folder_of(tmp_path / "photos", 1)
    with pytest.raises(BadSourcesError, match=r"run `fgbg cutout PHOTOS CUTOUTS` first"):
        prepare(photos, "foreground", Recipe(foreground_size=32))


def test_the_error_travels_between_processes():
    error = CutoutError([("a.jpg", "shows nothing")], "out", 3)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert again.exit_code == 2


def test_a_line_drawn_across_the_picture_is_cut_off_twice():
    picture = Image.new("RGB", (300, 200), (200, 200, 200))
    ImageDraw.Draw(picture).rectangle((0, 90, 299, 120), (20, 20, 20))
    with pytest.raises(NotCutError, match="left and right"):
        cut_out(picture)


def test_a_larger_photograph_of_the_same_gives_the_same_shape():
    areas = []
    for side in (400, 800, 1600):
        (one,) = cut_out(photograph(4, "white", side).image.convert("RGB"))
        areas.append(np.count_nonzero(one.pixels[..., 3] > 127) / side**2)
    for first, second in pairwise(areas):
        assert abs(first / second - 1) < 0.02
