"""Photographs become cut-outs, and those a set: what a photograph says goes all the way."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from builder.cutout import cutout
from builder.release.verify import verify
from docs import cutouts as hard
from tests.e2e.running import fgbg

SIZE = 96


@pytest.fixture(scope="module")
def made(floors: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of three objects, of which one is cut off at its left and one hangs."""
    root = tmp_path_factory.mktemp("cutout")
    photos, cutouts, out = root / "photos", root / "cutouts", root / "out"
    photos.mkdir()
    below = hard.cut_off().image.convert("RGB")
    # Turned clockwise, what was below is at the left.
    below.transpose(Image.Transpose.ROTATE_270).save(photos / "leans.png")
    hard.shadow().image.convert("RGB").save(photos / "stands.png")
    hard.spill().image.convert("RGB").save(photos / "hangs.png")
    lines = "file,author,license,url,stance\nhangs.png,Ann,CC0-1.0,,free\n"
    (photos / "credits.csv").write_text(lines)
    assert len(cutout(photos, cutouts, depth_model="demo").cut) == 3
    with (cutouts / "credits.csv").open(newline="") as file:
        said = {row["file"]: (row["stance"], row["cut_at"]) for row in csv.DictReader(file)}
    assert said["leans.png"] == ("ground", "left")
    assert said["stands.png"] == ("ground", "")
    assert said["hangs.png"] == ("free", "")
    options = ("--layout", "scenes", "--size", SIZE, "--placements", 8, "--relief", "photo",
               "--depth-model", "measured", "--foreground-size", "0.3-0.6", "--holdout", 0,
               "--truncation", 0, "--objects", "1-2", "--workers", 1)  # fmt: skip
    fgbg("build", cutouts, floors[1], out, *options)
    return out


def objects_of(out: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Every object of every record as a dict, and where it is seen."""
    found = []
    for row in datasets.load_dataset(str(out), split="train"):
        instances, fields = np.asarray(row["instances"]), row["objects"]
        for n, number in enumerate(fields["id"]):
            one = {name: values[n] for name, values in fields.items()}
            found.append((one, instances == number))
    return found


def test_what_a_photograph_cut_off_lies_against_that_edge_in_every_record(made: Path) -> None:
    leaning = [(o, seen) for o, seen in objects_of(made) if o["foreground_id"] == "leans"]
    assert {one["flipped"] for one, _ in leaning} == {False, True}
    for one, seen in leaning:
        left, _, width, _ = one["bbox_amodal"]
        edge, beyond = (SIZE - 1, left + width) if one["flipped"] else (0, SIZE - left)
        assert beyond == SIZE
        if one["visible"] == 1:
            assert seen[:, edge].any()


def test_what_hangs_never_stands_and_what_stands_does(made: Path) -> None:
    stances: dict[str, set[str]] = {}
    for one, _ in objects_of(made):
        stances.setdefault(one["foreground_id"], set()).add(one["stance"])
    assert stances == {"hangs": {"free"}, "stands": {"ground"}, "leans": {"ground"}}


def test_what_cut_them_out_and_their_depth_come_along(made: Path) -> None:
    rows = datasets.load_dataset(str(made), "foregrounds", split="train")
    assert all(tool.startswith("fgbg-dataset ") for tool in rows["tool"])
    assert rows["has_relief"][:] == [True, True, True]
    assert verify(made).ok
