"""Sets whose objects have the relief of their photographs, held to the same set of boards."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from builder.errors import RecipeError
from builder.recipe import Recipe
from builder.release.verify import verify
from fgbg_dataset import FgbgDataset
from tests.e2e.running import fgbg, files_of
from tests.edits import edited
from tests.pictures import blob, depth_png, floor_mm, scene

SIZE = 96
FOCAL_PX = 50
CAMERA = {"focal_px": FOCAL_PX, "pitch_deg": 0}
FIELDS: dict[str, Any] = {
    "layout": "scenes", "placements": 4, "size": SIZE, "holdout": 0.3, "depth_model": "measured",
    "shard_records": 40, "foreground_size": "0.3-0.7", "object_jitter": 0, "depth_precision": 0,
}  # fmt: skip
OPTIONS = [
    word for name, value in FIELDS.items() for word in (f"--{name.replace('_', '-')}", str(value))
]
SHAPED = ("a", "c", "lamp")


def depth_of(name: str, cutout: Image.Image) -> np.ndarray:
    """A slanted surface, nearer at its middle, before a background 60 m away; and a hole."""
    y, x = np.mgrid[0 : cutout.height, 0 : cutout.width].astype(float)
    away = np.hypot(x - cutout.width / 2, y - cutout.height / 2)
    depth = (2000 + 8 * x + 3 * y + 6 * away).astype(np.uint16)
    depth[np.asarray(cutout)[..., 3] < 128] = 60_000
    if name == "a":
        depth[20:24, 20:24] = 0
    return depth


@pytest.fixture(scope="module")
def sources(floors: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("relief")
    foregrounds = Path(shutil.copytree(floors[0], root / "fg"))
    for path in sorted(foregrounds.rglob("*.png")):
        if path.stem in SHAPED:
            cutout = Image.open(path)
            depth_png(path.with_suffix(".depth.png"), depth_of(path.stem, cutout), **CAMERA)
    return foregrounds, floors[1]


@pytest.fixture(scope="module")
def built(sources, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("built")
    for relief in ("board", "photo"):
        fgbg("build", *sources, root / relief, *OPTIONS, "--relief", relief, "--workers", "1")
    return {relief: root / relief for relief in ("board", "photo")}


def rows_of(out: Path) -> dict[int, dict[str, Any]]:
    sets = datasets.load_dataset(str(out))
    return {row["record_id"]: row for split in sets.values() for row in split}


def beyond_foot(path: Path, name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Relief in heights, of the surface itself, at shares of the trimmed cut-out's box."""
    cutout = Image.open(path)
    alpha, depth = np.asarray(cutout)[..., 3], depth_of("", cutout).astype(float)
    solid = alpha >= 128
    low = np.flatnonzero(solid.any(1))[-1]
    left, top, right, bottom = Image.fromarray(alpha).getbbox()
    foot = np.median(depth[low][solid[low]])
    height_mm = 1200 if name == "c" else (bottom - top) * foot / FOCAL_PX
    column, row = left + x * (right - left) - 0.5, top + y * (bottom - top) - 0.5
    away = np.hypot(column - cutout.width / 2, row - cutout.height / 2)
    return (2000 + 8 * column + 3 * row + 6 * away - foot) / height_mm


def test_objects_have_their_relief_and_all_else_is_as_with_boards(
    built: dict[str, Path], sources
) -> None:
    flat, shaped = (rows_of(built[relief]) for relief in ("board", "photo"))
    assert flat.keys() == shaped.keys()
    table = datasets.load_dataset(str(built["photo"]), "foregrounds", split="train")
    sizes = {
        row["id"]: [(row["width"], row["height"]), *(level.size for level in row["levels"])]
        for row in table
    }
    paths = {path.stem: path for path in sources[0].rglob("*.png")}
    focal = SIZE / 2 / np.tan(np.radians(30))
    errors, effects, mirrored = [], [], set()
    for record_id, row in shaped.items():
        board = flat[record_id]
        for column in ("instances", "fg_bg", "mask"):
            assert (np.asarray(row[column]) == np.asarray(board[column])).all()
        assert row["objects"] == board["objects"]
        assert row["pixel_hash"] != board["pixel_hash"] or not set(
            row["objects"]["foreground_id"]
        ) & set(SHAPED)
        depth, was = (np.asarray(one["depth"]).astype(float) for one in (row, board))
        instances, objects = np.asarray(row["instances"]), row["objects"]
        assert (depth == was)[instances == 0].all()
        for k, name in enumerate(objects["foreground_id"]):
            y, x = np.nonzero(instances == k + 1)
            if name not in SHAPED:
                assert (depth == was)[y, x].all()
                continue
            width, height = sizes[name][objects["level"][k]]
            u = (x - objects["left_px"][k] + 0.5) / width
            v = (y - objects["top_px"][k] + 0.5) / height
            u = 1 - u if objects["flipped"][k] else u
            factor = 1 + beyond_foot(paths[name], name, u, v) * height / focal
            known = (was[y, x] > 0) & (was[y, x] * factor < 7900)
            errors.append((depth[y, x] / np.maximum(was[y, x], 1) / factor - 1)[known])
            effects.append((factor - 1)[known])
            mirrored.add((name, objects["flipped"][k]))
    assert mirrored == {(name, flipped) for name in SHAPED for flipped in (False, True)}
    error = np.concatenate(errors)
    assert np.median(abs(error)) < 0.005
    assert np.percentile(abs(error), 99) < 0.03
    assert np.percentile(abs(np.concatenate(effects)), 90) > 0.05


def test_the_default_is_boards_to_the_byte(built: dict[str, Path], floors, tmp_path: Path) -> None:
    """A set made before there was the option, and one with depth beside its foregrounds."""
    out = tmp_path / "board"
    fgbg("build", *floors, out, *OPTIONS, "--workers", "1")
    assert files_of(out) == files_of(built["board"])
    assert "relief" not in json.loads((out / "recipe.json").read_text())["recipe"]


def test_the_foregrounds_say_which_have_relief(built: dict[str, Path]) -> None:
    table = datasets.load_dataset(str(built["photo"]), "foregrounds", split="train")
    for row in table:
        assert row["has_relief"] == (row["id"] in SHAPED)
        pictures = [row["image"], *row["levels"]] if row["has_relief"] else []
        assert [relief.size for relief in row["relief"]] == [picture.size for picture in pictures]
    names = datasets.load_dataset(str(built["board"]), "foregrounds", split="train").column_names
    assert not {"relief", "has_relief"} & set(names)
    card = (built["photo"] / "README.md").read_text()
    assert "3 of 5 foregrounds have the relief" in card


def test_verify_proves_relief_from_the_published_files_alone(built: dict[str, Path]) -> None:
    report = verify(built["photo"], sample=None)
    assert report.ok, report.problems
    assert report.records_checked == 160


def repainted(cell: dict[str, Any], change) -> dict[str, Any]:
    pixels = np.asarray(Image.open(io.BytesIO(cell["bytes"]))).astype(np.uint16)
    change(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_false_depth_inside_an_object_is_found(built: dict[str, Path], tmp_path: Path) -> None:
    """As it would be if the object were a board."""
    flat = rows_of(built["board"])
    changed = []

    def plant(rows: list[dict[str, Any]]) -> None:
        row = next(r for r in rows if r["objects"]["foreground_id"][0] in SHAPED)
        instances = np.asarray(Image.open(io.BytesIO(row["instances"]["bytes"])))
        board = np.asarray(flat[row["record_id"]]["depth"])

        def flatten(depth: np.ndarray) -> None:
            depth[instances == 1] = board[instances == 1]

        row["depth"] = repainted(row["depth"], flatten)
        changed.append(row["record_id"])

    problems = verify(edited(built["photo"], tmp_path, ("data", plant)), sample=None).problems
    found = [p.check for p in problems if p.where.endswith(f" record {changed[0]}")]
    assert "depth" in found


def shifted(pixels: np.ndarray) -> None:
    pixels[pixels != 32768] += 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda row: row.update(relief=[*row["relief"][:-1], repainted(row["relief"][-1], shifted)]),
        lambda row: row.update(relief=row["relief"][:-1]),
        lambda row: row.update(relief=[]),
        lambda row: row.update(relief=[*row["relief"][1:], row["relief"][0]]),
        lambda row: row.update(relief=[row["image"], *row["relief"][1:]]),
        lambda row: row.update(has_relief=False),
        lambda row: row["relief"][3].update(path="x.png"),
    ],
)
def test_relief_that_was_edited_is_found(built: dict[str, Path], tmp_path: Path, edit) -> None:
    out = edited(built["photo"], tmp_path, ("foregrounds", lambda rows: edit(rows[0])))
    assert "foregrounds/a" in {problem.where for problem in verify(out, sample=1).problems}


def test_an_extension_moves_nothing_and_brings_relief_of_its_own(
    built: dict[str, Path], sources, tmp_path: Path
) -> None:
    """The foregrounds it began with need not be there, nor their depth be what it was."""
    foregrounds = Path(shutil.copytree(sources[0], tmp_path / "fg"))
    (foregrounds / "round" / "a.png").unlink()
    (foregrounds / "round" / "a.depth.png").unlink()
    (foregrounds / "tall" / "c.depth.png").unlink()
    cutout = blob(9, 44, 40)
    cutout.save(foregrounds / "round" / "e.png")
    depth_png(foregrounds / "round" / "e.depth.png", depth_of("e", cutout), **CAMERA)
    backgrounds = Path(shutil.copytree(sources[1], tmp_path / "bg"))
    scene(7, 160, 160).save(backgrounds / "floor7.png")
    Image.fromarray(floor_mm(160)).save(backgrounds / "floor7.depth.png")
    out = Path(shutil.copytree(built["photo"], tmp_path / "set"))
    before = {n: h for n, h in files_of(out).items() if n.startswith("data/")}
    fgbg("extend", foregrounds, backgrounds, out)
    assert before.items() <= files_of(out).items()
    report = verify(out, sample=None)
    assert report.ok, report.problems
    table = datasets.load_dataset(str(out), "foregrounds", split="train")
    assert {row["id"] for row in table if row["has_relief"]} == {*SHAPED, "e"}


def test_a_stream_has_the_stored_depth(built: dict[str, Path], sources) -> None:
    stored = datasets.load_dataset(str(built["photo"]), split="train")
    builder = FgbgDataset(*sources, **FIELDS, relief="photo")
    for made, row in zip(builder.as_streaming_dataset("train").take(6), stored, strict=False):
        assert made["pixel_hash"] == row["pixel_hash"]


@pytest.mark.parametrize(
    "fields",
    [
        {"layout": "pairs"},
        {"layout": "pairs", "depth_source": "composed", "foreground_size": "0.2-0.6"},
        {"layout": "scenes", "depth_source": "network"},
        {"layout": "scenes", "depth_model": None},
    ],
)
def test_where_no_depth_is_composed_for_scenes_relief_is_refused(fields) -> None:
    with pytest.raises(RecipeError, match="relief is photo, which shapes the composed depth"):
        Recipe(relief="photo", **fields)


def test_bad_depth_ends_a_build_with_all_that_is_wrong(sources, tmp_path: Path) -> None:
    foregrounds = Path(shutil.copytree(sources[0], tmp_path / "fg"))
    Image.new("L", (50, 50), 9).save(foregrounds / "round" / "a.depth.png")
    depth_png(foregrounds / "tall" / "lamp.depth.png", np.ones((3, 3), np.uint16))
    done = fgbg(
        "build", foregrounds, sources[1], tmp_path / "out", *OPTIONS, "--relief", "photo", code=2
    )
    said = " ".join(done.stderr.split())
    assert "fg/round/a.png" in said
    assert "fg/tall/lamp.png" in said
    assert not (tmp_path / "out").exists()
