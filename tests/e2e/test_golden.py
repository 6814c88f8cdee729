"""Sets made by earlier versions load, verify, extend, resume and rebuild; see tests/golden."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from builder.pinned import PinnedRecipe
from builder.release.verify import verify
from tests.e2e.running import fgbg

GOLDEN = Path(__file__).parents[1] / "golden"
MADE = GOLDEN / "0.1.0"
RECORDS: dict[str, Any] = json.loads((MADE / "records.json").read_text())
FINISHED = ("plain", "depth", "extended")
SMALL = (
    *("--placements", "2", "--size", "48", "--foreground-size", "24", "--holdout", "0.34"),
    *("--shard-records", "6", "--depth-input", "64", "--seed", "8"),
)


def recipe_of(out: Path) -> PinnedRecipe:
    return PinnedRecipe.from_json((out / "recipe.json").read_text(encoding="utf-8"))


def hashes_of(out: Path) -> dict[str, str]:
    """The pixel hash of every record of a set, by its id, as a consumer loads them."""
    splits = datasets.load_dataset(str(out))
    rows = [
        row
        for split in splits.values()
        for row in split.select_columns(["record_id", "pixel_hash"])
    ]
    return {
        str(row["record_id"]): row["pixel_hash"]
        for row in sorted(rows, key=lambda r: r["record_id"])
    }


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of pictures an extended set was made of."""
    root = tmp_path_factory.mktemp("sources")
    for kind in ("foregrounds", "backgrounds"):
        shutil.copytree(GOLDEN / "sources" / kind, root / kind)
        shutil.copytree(GOLDEN / "sources" / f"more_{kind}", root / kind, dirs_exist_ok=True)
    return root / "foregrounds", root / "backgrounds"


@pytest.mark.parametrize("name", FINISHED)
def test_a_set_loads_verifies_and_keeps_its_fingerprint(name: str) -> None:
    pinned = recipe_of(MADE / name)
    assert pinned.fingerprint == RECORDS[name]["fingerprint"]
    assert hashes_of(MADE / name) == RECORDS[name]["pixel_hash"]
    report = verify(MADE / name, sample=None)
    assert report.ok, report.problems
    assert report.records_checked == len(RECORDS[name]["pixel_hash"])
    assert set(report.statistics) == set(datasets.load_dataset(str(MADE / name)))


@pytest.mark.parametrize("name", FINISHED)
def test_its_recipe_makes_the_same_set_again(
    name: str, tmp_path: Path, sources: tuple[Path, Path]
) -> None:
    folders = (
        sources
        if name == "extended"
        else (GOLDEN / "sources" / "foregrounds", GOLDEN / "sources" / "backgrounds")
    )
    model = () if name == "plain" else ("--depth-model", GOLDEN / "model")
    fgbg("build", *folders, tmp_path / "again", "--recipe", MADE / name / "recipe.json", *model)
    assert recipe_of(tmp_path / "again").fingerprint == RECORDS[name]["fingerprint"]
    assert hashes_of(tmp_path / "again") == RECORDS[name]["pixel_hash"]


def test_a_set_is_extended(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    """As version 0.1.0 would have done it: ids and pixels are those of `extended`."""
    out = tmp_path / "plain"
    shutil.copytree(MADE / "plain", out)
    fgbg("build", *sources, out, "--extend")
    made = hashes_of(out)
    assert made == RECORDS["extended"]["pixel_hash"]  # depth is not in the hash
    for file in (MADE / "plain" / "data").iterdir():
        assert (out / "data" / file.name).read_bytes() == file.read_bytes()
    assert verify(out, sample=None).ok


def test_its_card_is_written_again(tmp_path: Path) -> None:
    """The sources' files keep the columns they have: 0.1.0 called `license` `licence`."""
    out = tmp_path / "plain"
    shutil.copytree(MADE / "plain", out)
    fgbg("card", out)
    rows = datasets.load_dataset(str(out), "foregrounds", split="train")
    assert set(rows["licence"]) == {"CC0-1.0"}
    assert verify(out, sample=None).ok


def test_an_interrupted_build_is_gone_on_with(tmp_path: Path) -> None:
    work = tmp_path / ".interrupted.fgbg"
    shutil.copytree(MADE / ".interrupted.fgbg", work)
    held = {path.name: path.stat().st_ino for path in (work / "shards").glob("*.parquet")}
    assert len(held) == 3
    folders = GOLDEN / "sources" / "foregrounds", GOLDEN / "sources" / "backgrounds"
    out = tmp_path / "interrupted"
    fgbg("build", *folders, out, *SMALL, "--depth-model", GOLDEN / "model", "--workers", "1")
    assert recipe_of(out).fingerprint == RECORDS["interrupted"]["fingerprint"]
    assert hashes_of(out) == RECORDS["interrupted"]["pixel_hash"]
    inodes = {path.stat().st_ino for path in (out / "data").iterdir()}
    assert set(held.values()) <= inodes  # the finished shards are linked, and not made again
    assert verify(out, sample=None).ok
