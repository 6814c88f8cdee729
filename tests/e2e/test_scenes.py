"""Scenes from end to end, on floors whose depth is measured: no depth model runs here."""

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

from builder.release.verify import verify
from fgbg_dataset import FgbgDataset, FgbgError, RecordReader
from tests.e2e.running import fgbg, files_of
from tests.edits import Rows, change, edited
from tests.pictures import blob, floor_mm, scene

SIZE = 96
OPTIONS = (
    *("--layout", "scenes", "--placements", "4", "--size", str(SIZE), "--holdout", "0.3"),
    *("--depth-model", "measured", "--shard-records", "40", "--foreground-size", "0.45"),
    *("--no-background-flip", "--object-jitter", "0"),
)


@pytest.fixture(scope="module")
def sources(floors: tuple[Path, Path]) -> tuple[Path, Path]:
    return floors


@pytest.fixture(scope="module")
def built(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "floors"
    fgbg("build", *sources, out, *OPTIONS, "--workers", "1")
    return out


def rows_of(out: Path) -> dict[int, dict[str, Any]]:
    sets = datasets.load_dataset(str(out))
    return {row["record_id"]: row for split in sets.values() for row in split}


def test_what_the_columns_say_is_what_the_pictures_show(built: Path) -> None:
    rows = rows_of(built)
    assert len(rows) == 5 * 4 * 2 * 4
    counts = set()
    for row in rows.values():
        mask, instances, depth = (np.asarray(row[c]) for c in ("mask", "instances", "depth"))
        objects = row["objects"]
        assert (
            (instances > 0) * 255 == mask.astype(np.uint8) * (255 if mask.dtype == bool else 1)
        ).all()
        assert objects["id"] == list(range(1, len(objects["id"]) + 1))
        counts.add(len(objects["id"]))
        assert row["foreground_id"] == objects["foreground_id"][0]
        assert row["bbox"] == objects["bbox"][0]
        for k in objects["id"]:
            ys, xs = np.nonzero(instances == k)
            one = {name: values[k - 1] for name, values in objects.items()}
            assert one["area"] == len(ys)
            width, height = int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1
            assert one["bbox"] == [xs.min(), ys.min(), width, height]
            assert 0.3 - 1e-3 <= one["visible"] <= 1
            assert one["stance"] == ("free" if one["foreground_id"] == "lamp" else "ground")
            inside = depth[ys, xs].astype(int)
            if one["stance"] == "ground" and one["depth_mm"]:
                at_foot = inside[ys >= one["foot_y"] - 1]
                assert not at_foot.size or abs(at_foot / one["depth_mm"] - 1).max() < 0.03
    assert counts == {1, 2, 3, 4}


def test_the_background_keeps_its_depth_and_nothing_is_feathered(
    built: Path, sources: tuple[Path, Path]
) -> None:
    backgrounds = datasets.load_dataset(str(built), "backgrounds", split="train")
    depths = {row["id"]: np.asarray(row["depth"]) for row in backgrounds}
    for name, depth in depths.items():
        given = Image.open(sources[1] / f"{name}.depth.png").resize(
            (SIZE, SIZE), Image.Resampling.NEAREST
        )
        known = depth > 0
        assert (known == (np.asarray(given) > 0)).all()
        assert abs(depth[known] / np.asarray(given)[known].astype(float) - 1).max() <= 0.0055
    for row in rows_of(built).values():
        free = np.asarray(row["instances"]) == 0
        assert (np.asarray(row["depth"])[free] == depths[row["background_id"]][free]).all()


def test_classes_are_the_folders_and_splits_share_no_object(built: Path) -> None:
    sets = datasets.load_dataset(str(built))
    feature = sets["train"].features["objects"]["category"].feature
    assert feature.names == ["round", "tall"]
    seen = {}
    for name, split in sets.items():
        seen[name] = {i for row in split["objects"] for i in row["foreground_id"]}
        for objects in split["objects"]:
            for foreground, category in zip(
                objects["foreground_id"], objects["category"], strict=True
            ):
                assert feature.names[category] == ("round" if foreground in "ab" else "tall")
    assert not seen["train"] & seen["unseen_foreground"]
    assert seen["train"] == seen["unseen_background"]


def test_true_heights_are_seen_at_their_size(built: Path) -> None:
    focal = SIZE / 2 / np.tan(np.radians(30))
    ratios = [
        one_height / (1200 * focal / depth)
        for row in rows_of(built).values()
        for name, depth, (_, _, _, one_height) in zip(
            row["objects"]["foreground_id"],
            row["objects"]["depth_mm"],
            row["objects"]["bbox_amodal"],
            strict=True,
        )
        if name == "c" and 1200 * focal / depth < SIZE
    ]
    assert len(ratios) > 10
    assert 2**-0.2 < np.median(ratios) < 2**0.1
    assert np.ptp(np.log2(ratios)) < 0.6  # steps of the ladder are a quarter octave


def test_verify_proves_every_record_and_its_depth(built: Path) -> None:
    report = verify(built, sample=None)
    assert report.ok, report.problems
    assert report.records_checked == 160


def test_two_workers_and_other_shards_make_the_same(built: Path, sources, tmp_path: Path) -> None:
    fgbg("build", *sources, tmp_path / "two", *OPTIONS, "--workers", "2")
    kept = {n: h for n, h in files_of(built).items() if n.startswith("data/")}
    assert {n: h for n, h in files_of(tmp_path / "two").items() if n.startswith("data/")} == kept


def test_a_stream_yields_the_stored_rows_and_arrays(built: Path, sources) -> None:
    builder = FgbgDataset(
        *sources, layout="scenes", placements=4, size=SIZE, holdout=0.3, depth_model="measured",
        shard_records=40, foreground_size=0.45, background_flip=False, object_jitter=0,
    )  # fmt: skip
    stored = datasets.load_dataset(str(built), split="train")
    stream = builder.as_streaming_dataset("train")
    reader = RecordReader.of(built)
    for made, row in zip(stream.take(6), stored, strict=False):
        assert made["objects"] == row["objects"]
        assert made["pixel_hash"] == row["pixel_hash"]
    for made, row in zip(builder.as_array_stream("train").take(6), stored, strict=False):
        assert (np.asarray(made["instances"]) == np.asarray(row["instances"])).all()
        close = np.asarray(made["depth"], float) / np.maximum(np.asarray(row["depth"], float), 1)
        assert abs(close[np.asarray(row["depth"]) > 0] - 1).max() < 0.011
    batch = reader.collate([stored[i] for i in range(3)])
    assert batch["instances"].shape == (3, SIZE, SIZE)
    assert [len(objects["id"]) for objects in batch["objects"]] == [
        int(one.max()) for one in batch["instances"]
    ]


def planted(name: str, row: dict[str, Any], other: dict[str, Any]) -> None:
    """Change a row as somebody might who edits a set."""
    if name == "depth of another record":
        row["depth"] = other["depth"]
    elif name == "an instance's number":
        pixels = np.asarray(Image.open(io.BytesIO(row["instances"]["bytes"]))).copy()
        pixels[pixels == 1] = 9
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        row["instances"] = {"bytes": buffer.getvalue(), "path": None}
    elif name == "a visible share":
        row["objects"]["visible"][0] = 0.5
    elif name == "a class":
        row["objects"]["category"][0] = 1 - row["objects"]["category"][0]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("depth of another record", "depth"),
        ("an instance's number", "instances"),
        ("a visible share", "objects"),
        ("a class", "objects"),
    ],
)
def test_what_is_planted_in_a_record_is_found(
    built: Path, tmp_path: Path, name: str, check: str
) -> None:
    shutil.copytree(built, tmp_path / "set")
    path = next((tmp_path / "set" / "data").glob("train-00000*"))
    change(path, lambda rows: planted(name, rows[0], rows[1]))
    problems = {problem.check for problem in verify(tmp_path / "set", sample=None).problems}
    assert check in problems


def test_an_edited_ground_is_found(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built, tmp_path / "set")
    path = next((tmp_path / "set" / "backgrounds").iterdir())

    def tilt(rows: Rows) -> None:
        rows[0]["ground_plane"][1] += 1

    change(path, tilt)
    problems = verify(tmp_path / "set", sample=None).problems
    assert any(p.check == "sources" and p.where == "backgrounds/floor0" for p in problems)


def test_an_extension_moves_nothing(built: Path, sources, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(sources[0], more / "fg")
    shutil.copytree(sources[1], more / "bg")
    blob(9, 40, 40).save(more / "fg" / "round" / "e.png")
    (more / "fg" / "square").mkdir()
    blob(10, 44, 40).save(more / "fg" / "square" / "f.png")
    scene(7, 160, 160).save(more / "bg" / "floor7.png")
    Image.fromarray(floor_mm(160)).save(more / "bg" / "floor7.depth.png")
    shutil.copytree(built, tmp_path / "floors")
    before = {n: h for n, h in files_of(built).items() if n.startswith("data/")}
    fgbg("build", more / "fg", more / "bg", tmp_path / "floors", "--extend")
    after = files_of(tmp_path / "floors")
    assert before.items() <= after.items()
    assert len(rows_of(tmp_path / "floors")) == 7 * 5 * 2 * 4
    assert verify(tmp_path / "floors", sample=None).ok


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda bg: (bg / "floor1.depth.png").unlink(),
            "There is no depth of floor1.png: ",
        ),
        (lambda bg: blob(0, 20, 20).save(bg / "floor1.depth.png"), "measured depth is 16-bit grey"),
        (
            lambda bg: Image.fromarray(floor_mm(90)[:60]).save(bg / "floor1.depth.png"),
            "both must have the same shape",
        ),
        (
            lambda bg: Image.new("L", (160, 160)).save(bg / "floor1.ground.png"),
            "has no pixel that is ground",
        ),
    ],
)
def test_bad_companions_are_refused_with_a_sentence(
    sources, tmp_path: Path, make, sentence: str
) -> None:
    shutil.copytree(sources[1], tmp_path / "bg")
    make(tmp_path / "bg")
    done = fgbg("build", sources[0], tmp_path / "bg", tmp_path / "out", *OPTIONS, code=2)
    assert sentence in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_where_no_background_has_a_ground_nothing_is_built(sources, tmp_path: Path) -> None:
    (tmp_path / "bg").mkdir()
    scene(1, 96, 96).save(tmp_path / "bg" / "wall.png")
    Image.fromarray(np.full((96, 96), 3000, np.uint16)).save(tmp_path / "bg" / "wall.depth.png")
    with pytest.raises(FgbgError, match="no background has a ground that can be trusted"):
        FgbgDataset(
            sources[0], tmp_path / "bg", layout="scenes", size=96, depth_model="measured"
        ).prepare(None)


def test_a_painted_ground_overrides_what_is_found(sources, tmp_path: Path) -> None:
    shutil.copytree(sources[1], tmp_path / "bg")
    for path in (tmp_path / "bg").glob("floor?.png"):
        ground = Image.new("L", (160, 160))
        ground.paste(255, (0, 120, 80, 160))
        ground.save(path.with_suffix(".ground.png"))
    builder = FgbgDataset(
        *(sources[0], tmp_path / "bg"), layout="scenes", size=96, depth_model="measured",
        placements=2, background_flip=False,
    )  # fmt: skip
    feet = [
        (x, y)
        for row in builder.as_streaming_dataset("train").take(40)
        for x, y, stance in zip(
            row["objects"]["foot_x"],
            row["objects"]["foot_y"],
            row["objects"]["stance"],
            strict=True,
        )
        if stance == "ground"
    ]
    assert len(feet) > 30
    assert all(x < 48 and y >= 72 for x, y in feet)


def test_pairs_may_stand_on_the_ground_with_composed_depth(sources, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fgbg(
        "build", *sources, out, "--placements", "2", "--size", "96", "--foreground-size", "0.2-0.6",
        "--placement", "ground", "--depth-source", "composed", "--depth-model", "measured",
    )  # fmt: skip
    rows = rows_of(out)
    assert len(rows) == 5 * 4 * 2 * 2
    assert "objects" not in next(iter(rows.values()))
    longest = [max(row["bbox"][2:]) for row in rows.values()]
    assert max(longest) > 2 * min(longest)
    assert verify(out, sample=None).ok
    recipe = json.loads((out / "recipe.json").read_text())["recipe"]
    assert recipe["placement"] == "ground"


def test_objects_are_turned_and_hidden_on_request(sources, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fgbg("build", *sources, out, *OPTIONS, "--rotation", "30", "--occlude", "--records", "60")
    rows = rows_of(out)
    turns = {turn for row in rows.values() for turn in row["objects"]["rotation_deg"]}
    assert turns == {-30, -15, 0, 15, 30}
    # A turned ellipse is wider than it is high by less, and its box grows by what geometry says.
    boxes = {
        (name, turn): width / height
        for row in rows.values()
        for name, turn, (_, _, width, height), cut in zip(
            row["objects"]["foreground_id"], row["objects"]["rotation_deg"],
            row["objects"]["bbox_amodal"], row["objects"]["truncated"], strict=True,
        )
        if not cut and height > 20
    }  # fmt: skip
    ellipse = 30 / 80  # of c, d and lamp, less the soft edge
    for (name, turn), ratio in boxes.items():
        if name in ("c", "d", "lamp"):
            c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
            due = np.hypot(ellipse * c, s) / np.hypot(ellipse * s, c)
            assert ratio == pytest.approx(due, rel=0.2), (name, turn)
    assert verify(out, sample=None).ok


def test_categories_are_drawn_evenly_on_request(sources, tmp_path: Path) -> None:
    builder = FgbgDataset(
        *sources, layout="scenes", size=48, depth_model="measured", balance="category", holdout=0.0
    )
    names = [
        name
        for row in builder.as_streaming_dataset("train").take(300)
        for name in row["objects"]["foreground_id"]
    ]
    share = sum(name in ("a", "b") for name in names) / len(names)
    assert share == pytest.approx(0.5, abs=0.06)  # of 2 in 5 foregrounds


@pytest.mark.parametrize("column", ["depth_by", "ground_support", "horizon_px", "roll_deg", "path"])
def test_what_is_said_of_a_background_is_held_to_the_recipe(
    built: Path, tmp_path: Path, column: str
) -> None:
    """Even of what no record is made of, and where all that is stated is forged to fit it."""
    changed: list[str] = []

    def edit(rows: Rows) -> None:
        if column == "path":
            rows[0]["depth"]["path"] = "x.png"
        else:
            rows[0][column] = "estimated" if column == "depth_by" else rows[0][column] + 0.5
        changed.append(rows[0]["id"])

    out = edited(built, tmp_path, ("backgrounds", edit))
    where = {problem.where for problem in verify(out, sample=1).problems}
    assert f"backgrounds/{changed[0]}" in where


def test_a_record_without_objects_is_a_fault_and_no_traceback(built: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(built, tmp_path / "floors"))
    path = min((out / "data").glob("train-*"))

    def edit(rows: Rows) -> None:
        rows[0]["objects"] = None
        rows[1]["objects"]["id"] = None

    rows = change(path, edit)
    found = [p.where for p in verify(out, sample=None).problems if p.check == "objects"]
    assert found == [f"data/{path.name} record {row['record_id']}" for row in rows[:2]]


def empty(level: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGBA", Image.open(io.BytesIO(level["bytes"])).size).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda levels: levels[:-1], "sizes that are not the recipe's"),
        (lambda levels: [*levels[:-2], *levels[:-3:-1]], "sizes that are not the recipe's"),
        (lambda levels: [*levels[:-1], empty(levels[-1])], "without a pixel that is at least half"),
    ],
)
def test_a_size_that_no_record_uses_is_held_to_the_recipe(
    built: Path, tmp_path: Path, edit, what: str
) -> None:
    def smaller(rows: list[dict[str, Any]]) -> None:
        rows[0]["levels"] = edit(rows[0]["levels"])

    problems = verify(edited(built, tmp_path, ("foregrounds", smaller)), sample=1).problems
    assert any(p.where == "foregrounds/a" and what in p.what for p in problems)


@pytest.mark.parametrize(
    ("field", "value"),
    [("area", 10**9), ("category", 70_000), ("visible", float("nan")), ("truncated", None)],
)
def test_figures_that_cannot_be_counted_are_a_fault_where_nothing_is_composed_again(
    built: Path, tmp_path: Path, field: str, value: object
) -> None:
    out = edited(
        built,
        tmp_path,
        ("backgrounds", lambda rows: rows[0].update(image=None)),
        ("data", lambda rows: rows[0]["objects"][field].__setitem__(0, value)),
    )
    problems = verify(out, sample=None).problems
    assert any(p.check == "objects" and "cannot be counted" in p.what for p in problems)


def test_a_damaged_source_makes_no_figure_wrong(built: Path, tmp_path: Path) -> None:
    out = edited(built, tmp_path, ("backgrounds", lambda rows: rows[0].update(image=None)))
    assert {problem.check for problem in verify(out, sample=None).problems} == {"sources"}


def test_a_plane_that_no_ground_has_is_a_fault_and_no_traceback(
    built: Path, tmp_path: Path
) -> None:
    for plane in ([0, 0, 0], [2**60, 1, 1], [0, -1, 0]):
        shutil.rmtree(tmp_path / "edited", ignore_errors=True)
        out = edited(
            built, tmp_path, ("backgrounds", lambda rows, p=plane: rows[0].update(ground_plane=p))
        )
        problems = verify(out, sample=1).problems
        assert any(p.where == "backgrounds/floor0" and "its ground" in p.what for p in problems)
