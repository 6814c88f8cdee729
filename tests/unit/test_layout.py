"""builder/layout: the one reader and the one writer of assets/statistics.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from builder.errors import NewerVersionError, NotABuildError
from builder.layout import STATISTICS_FILE, read_recipe, read_statistics, write_statistics
from builder.record import Plan

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "plain", tmp_path / "out"))


def change(out: Path, **fields: Any) -> None:
    path = out / STATISTICS_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("name", ["plain", "depth", "extended"])
def test_what_version_0_1_0_wrote_is_written_the_same(name: str, tmp_path: Path) -> None:
    plan = Plan(read_recipe(GOLDEN / name))
    (tmp_path / "assets").mkdir()
    figures = read_statistics(GOLDEN / name, plan)
    assert {n: split.rows for n, split in figures.items()} == {
        n: split.n_records for n, split in plan.splits.items()
    }
    write_statistics(tmp_path, plan.pinned.fingerprint, figures)
    written = (tmp_path / STATISTICS_FILE).read_bytes()
    assert written == (GOLDEN / name / STATISTICS_FILE).read_bytes()


@pytest.mark.parametrize(
    ("fields", "what"),
    [({"format": 2}, "format 2"), ({"histograms": []}, "it has a field 'histograms'")],
)
def test_statistics_of_a_newer_version_say_so(out: Path, fields: dict[str, Any], what: str) -> None:
    change(out, **fields)
    with pytest.raises(NewerVersionError) as caught:
        read_statistics(out, Plan(read_recipe(out)))
    assert str(caught.value).startswith(
        f"{out / STATISTICS_FILE} was made by a newer fgbg-dataset ({what}); upgrade"
    )


@pytest.mark.parametrize("given", [0, "1", True])
def test_statistics_of_no_format_are_refused(out: Path, given: Any) -> None:
    change(out, format=given)
    with pytest.raises(NotABuildError, match=r"format is "):
        read_statistics(out, Plan(read_recipe(out)))
