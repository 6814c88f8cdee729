"""Looks from end to end: records say how they look, and masks, instances and depth stay."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from builder.layout import state_files
from builder.recipe import BLENDS
from builder.record.appearance import box_sum
from builder.release.verify import verify
from builder.tables import write_table
from fgbg_dataset import FgbgDataset, RecipeError, RecordReader
from tests.e2e.running import fgbg, files_of
from tests.pictures import blob, scene

SIZE = 96
FIELDS: dict[str, Any] = {
    "layout": "scenes", "placements": 4, "size": SIZE, "holdout": 0.3, "depth_model": "measured",
    "image_format": "png", "records": 40, "foreground_size": 0.45, "blend": "none",
    "background_flip": False, "object_jitter": 0.0,
}  # fmt: skip
ALL = {
    "blend": "mixed", "match": "0.2-0.8", "shadow": "0.3-0.6", "match_sharpness": True,
    "match_noise": True, "jpeg_history": "40-95", "background_flip": True, "jitter": 0.3,
    "object_jitter": 0.4, "distractors": "1-2",
}  # fmt: skip
COLUMNS = {
    "blend", "match", "shadow", "jpeg_history", "background_flipped", "jitter", "distractors",
}  # fmt: skip

Folders = tuple[Path, Path]
Rows = dict[int, dict[str, Any]]


def rows(floors: Folders, **fields: Any) -> Rows:
    """Records made on the fly, by id."""
    builder = FgbgDataset(*floors, **{**FIELDS, **fields})
    return {row["record_id"]: row for row in builder.as_array_stream("train")}


@pytest.fixture(scope="module")
def plain(floors: Folders) -> Rows:
    return rows(floors)


@pytest.mark.parametrize(
    "name", ["blend", "match", "shadow", "match_sharpness", "match_noise", "jpeg_history", "jitter",
             "object_jitter"],
)  # fmt: skip
def test_a_choice_changes_the_picture_and_nothing_else(
    floors: Folders,
    plain: Rows,
    name: str,
) -> None:
    if name in ("match_sharpness", "match_noise"):  # against backgrounds that ask for it
        floors = softened(floors, noisy=name == "match_noise")
        plain = rows(floors)
    changed = rows(floors, **{name: ALL[name]})
    assert changed.keys() == plain.keys()
    differ = 0
    for record_id, row in changed.items():
        before = plain[record_id]
        for column in ("mask", "instances", "depth"):
            assert (row[column] == before[column]).all()
        same = {k: v for k, v in row["objects"].items() if k not in ("colour", "blur_px", "noise")}
        assert same == before["objects"]
        differ += bool((row["fg_bg"] != before["fg_bg"]).any())
        if name in ("blend", "match", "match_sharpness", "match_noise", "object_jitter"):
            near = box_sum((row["mask"] > 0).astype(np.uint8), 3) > 0
            soft = (row["fg_bg"] != before["fg_bg"]).any(axis=2)
            assert not (soft & ~near).any()
        if name == "shadow":
            assert (row["fg_bg"].astype(int) <= before["fg_bg"]).all()
    assert differ > 0.5 * len(plain)


def softened(floors: Folders, noisy: bool) -> Folders:
    """The same floors, noisy or out of focus."""
    foregrounds, backgrounds = floors
    folder = foregrounds.parent / ("noisy" if noisy else "soft")
    if not folder.exists():
        folder.mkdir()
        rng = np.random.default_rng(0)
        for path in backgrounds.glob("*.depth.png"):
            name = path.name.removesuffix(".depth.png")
            (folder / path.name).write_bytes(path.read_bytes())
            picture = np.asarray(Image.open(backgrounds / f"{name}.png").convert("RGB"), float)
            if noisy:
                picture = picture + rng.normal(0, 12, picture.shape)
            else:
                shifts = [np.roll(picture, (y, x), (0, 1)) for y in range(9) for x in range(9)]
                picture = np.mean(shifts, axis=0)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
    return foregrounds, folder


def test_noise_and_blur_follow_the_background(floors: Folders) -> None:
    noisy = rows(softened(floors, noisy=True), match_noise=True)
    assert min(n for row in noisy.values() for n in row["objects"]["noise"]) > 16 * 4
    soft = rows(softened(floors, noisy=False), match_sharpness=True)
    assert {b for row in soft.values() for b in row["objects"]["blur_px"]} <= {1, 2}


def test_a_quality_is_that_of_an_independent_encoder(floors: Folders, plain: Rows) -> None:
    for record_id, row in rows(floors, jpeg_history="40-95").items():
        buffer = io.BytesIO()
        Image.fromarray(plain[record_id]["fg_bg"]).save(
            buffer, "JPEG", quality=row["jpeg_history"], subsampling=2
        )
        due = np.asarray(Image.open(buffer)).astype(int)
        assert 40 <= row["jpeg_history"] <= 95
        assert np.abs(due - row["fg_bg"]).mean() < 2


def test_a_jittered_record_is_the_plain_one_by_its_numbers(floors: Folders, plain: Rows) -> None:
    for record_id, row in rows(floors, jitter=0.3).items():
        gains, offsets = np.array(row["jitter"][:3]), np.array(row["jitter"][3:])
        due = (plain[record_id]["fg_bg"].astype(int) * gains + 128) // 256 + offsets
        assert (due.clip(0, 255) == row["fg_bg"]).all()


def test_a_mirrored_background_carries_everything_with_it(floors: Folders, plain: Rows) -> None:
    made = rows(floors, background_flip=True, objects="2")
    straight = rows(floors, objects="2")
    mirrored = 0
    for record_id, row in made.items():
        if not row["background_flipped"]:
            assert (row["fg_bg"] == straight[record_id]["fg_bg"]).all()
            continue
        mirrored += 1
        # What is asked of an object's side holds in the record as it is.
        assert row["flipped"] == straight[record_id]["flipped"]
        # Away from all objects it is the straight background, mirrored: so are its depths.
        other = straight[record_id]
        away = (row["mask"][:, ::-1] == 0) & (other["mask"] == 0)
        assert (row["fg_bg"][:, ::-1][away] == other["fg_bg"][away]).mean() > 0.9
        assert (row["depth"][:, ::-1][away] == other["depth"][away]).all()
        for k, (x, y, width, height) in zip(
            row["objects"]["id"], row["objects"]["bbox"], strict=True
        ):
            ys, xs = np.nonzero(row["instances"] == k)
            assert [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1] == [x, y, width, height]
            foot_x = row["objects"]["foot_x"][k - 1]
            assert x - width <= foot_x <= x + 2 * width
    assert 0.2 * len(made) < mirrored < 0.8 * len(made)


def test_distractors_are_seen_and_listed_and_not_labelled(floors: Folders, plain: Rows) -> None:
    made = rows(floors, distractors="1-2")
    counts = set()
    for row in made.values():
        listed = row["distractors"]
        counts.add(len(listed["area"]))
        for (x, y, width, height), area in zip(listed["bbox"], listed["area"], strict=True):
            box = np.s_[y : y + height, x : x + width]
            assert (row["mask"][box] == 0).sum() >= area
        assert len(row["objects"]["id"]) == row["instances"].max()
        assert (row["mask"] > 0).sum() == sum(row["objects"]["area"])
    assert counts >= {1, 2}
    # The labelled ones stand where they would without any.
    moved = [
        row["objects"]["foot_x"][0] != plain[record_id]["objects"]["foot_x"][0]
        for record_id, row in made.items()
    ]
    assert not any(moved)


def test_siblings_share_all_but_the_edge(floors: Folders, tmp_path: Path) -> None:
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in FIELDS.items()
        if name not in ("blend", "background_flip")
    ]
    out = tmp_path / "out"
    fgbg("build", *floors, out, *options, "--siblings", "--shard-records", "10", "--workers", "1")
    assert verify(out, sample=None).problems == ()
    sets = datasets.load_dataset(str(out))
    sides: dict[int, str] = {}
    for split, held in sets.items():
        groups: dict[int, list[dict[str, Any]]] = {}
        for row in held:
            groups.setdefault(row["layout_id"], []).append(row)
            assert sides.setdefault(row["layout_id"], split) == split
            assert row["record_id"] // len(BLENDS) == row["layout_id"]
        for group in groups.values():
            assert [row["blend"] for row in group] == list(BLENDS)  # neighbours, in this order
            masks = [np.asarray(row["instances"]) for row in group]
            depths = [np.asarray(row["depth"]) for row in group]
            assert all((m == masks[0]).all() for m in masks)
            assert all((d == depths[0]).all() for d in depths)
            assert len({row["pixel_hash"] for row in group}) > 1
    assert sum(len(held) for held in sets.values()) == 40
    reader = RecordReader.of(str(out))
    batch = reader.collate(list(sets["train"])[:4])
    assert batch["layout_id"].tolist() == [batch["layout_id"][0].item()] * 4
    assert batch["blend"] == list(BLENDS)


def test_siblings_come_in_whole_groups(floors: Folders) -> None:
    with pytest.raises(RecipeError, match=r"records is 41; with siblings it must be a multiple"):
        FgbgDataset(*floors, **{**FIELDS, "records": 41, "siblings": True})


def test_shadows_need_a_ground(floors: Folders) -> None:
    with pytest.raises(RecipeError, match=r"shadow is '0\.3', which only objects on the ground"):
        FgbgDataset(*floors, **{**FIELDS, "placement": "uniform", "shadow": "0.3"})


@pytest.fixture(scope="module")
def built(floors: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("looks") / "out"
    FgbgDataset(*floors, **{**FIELDS, **ALL, "shard_records": 10}).download_and_prepare(
        out, file_format="parquet", num_proc=1
    )
    return out


def test_with_all_of_it_a_set_is_the_same_however_it_is_made(
    built: Path,
    floors: Folders,
    tmp_path: Path,
) -> None:
    report = verify(built, sample=None)
    assert report.problems == ()
    held = {row["record_id"]: row for row in datasets.load_dataset(str(built), split="train")}
    assert set(held[next(iter(held))]) >= COLUMNS
    again = tmp_path / "again"
    fgbg("build", *floors, again, "--recipe", built / "recipe.json", "--workers", "2")
    assert files_of(again / "data") == files_of(built / "data")
    for record_id, row in rows(floors, **ALL, shard_records=10).items():
        assert (np.asarray(held[record_id]["fg_bg"]) == row["fg_bg"]).all()
        for column in COLUMNS:
            assert held[record_id][column] == row[column]


@pytest.mark.parametrize(
    ("column", "how"),
    [
        ("blend", lambda row: row.update(blend="none" if row["blend"] != "none" else "box")),
        ("match", lambda row: row.update(match=row["match"] + 0.25)),
        ("shadow", lambda row: row.update(shadow=0.0)),
        ("jpeg_history", lambda row: row.update(jpeg_history=row["jpeg_history"] + 1)),
        (
            "background_flipped",
            lambda row: row.update(background_flipped=not row["background_flipped"]),
        ),
        ("jitter", lambda row: row["jitter"].__setitem__(0, row["jitter"][0] + 1)),
        ("distractors", lambda row: row["distractors"]["area"].__setitem__(0, 7)),
        ("objects", lambda row: row["objects"]["colour"][0].__setitem__(5, 99)),
        ("objects", lambda row: row["objects"]["blur_px"].__setitem__(0, 9)),
        ("objects", lambda row: row["objects"]["noise"].__setitem__(0, 9_999)),
    ],
)
def test_a_false_word_on_looks_is_found(built: Path, tmp_path: Path, column: str, how: Any) -> None:
    out = Path(shutil.copytree(built, tmp_path / "out"))
    path = next((out / "data").glob("train-00000-*"))
    table = pq.read_table(path)
    changed = table.to_pylist()
    how(changed[0])
    write_table(path, "parquet", table.schema, changed)
    state_files(out)
    found = verify(out, sample=None).problems
    assert (column, f"data/{path.name} record {changed[0]['record_id']}") in {
        (problem.check, problem.where) for problem in found
    }


def test_pairs_take_looks_too(tmp_path: Path) -> None:
    for folder in ("fg", "bg"):
        (tmp_path / folder).mkdir()
    for i in range(2):
        blob(i, 30, 30).save(tmp_path / "fg" / f"{i}.png")
        scene(i, 64, 64).save(tmp_path / "bg" / f"{i}.png")
    made = {
        blend: list(
            FgbgDataset(
                *(tmp_path / "fg", tmp_path / "bg"), size=48, foreground_size=24, placements=2,
                depth_model="none", blend=blend, holdout=0,
            ).as_array_stream("train")
        )
        for blend in ("feather1", "feather2")
    }  # fmt: skip
    for one, other in zip(*made.values(), strict=True):
        assert (one["mask"] == other["mask"]).all()
        assert (one["blend"], other["blend"]) == ("feather1", "feather2")
        assert (one["fg_bg"] != other["fg_bg"]).any()
        assert "objects" not in one


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("match", "0.5-0.2", "it must be a share from 0 to 1, or a range such as 0-0.5"),
        ("shadow", "2", "it must be a share from 0 to 1, or a range such as 0-0.5"),
        ("jpeg_history", "0-95", "it must be 'none', a quality from 1 to 100, or a range"),
        ("distractors", "300", "it must be a number from 0 to 251, or a range such as 0-2"),
        ("jitter", 1.5, "it must lie between 0 and 1"),
        ("blend", "poisson", "it must be one of none, feather1, feather2, box, mixed"),
    ],
)
def test_looks_that_cannot_be_are_refused(
    floors: Folders,
    field: str,
    value: Any,
    sentence: str,
) -> None:
    with pytest.raises(RecipeError) as caught:
        FgbgDataset(*floors, **{**FIELDS, field: value})
    assert f"{field} is {json.dumps(value) if isinstance(value, float) else repr(value)}" in str(
        caught.value
    )
    assert sentence in str(caught.value)
