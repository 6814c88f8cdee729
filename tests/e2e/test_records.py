"""`--records N`: some of the records that the sources give, in everything that speaks of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from builder.release.verify import verify
from fgbg_dataset import FgbgDataset
from tests.e2e.running import SPLITS, fgbg
from tests.pictures import scene

# Of 54, 36, 18 and 12 records.
SHARES = {"train": 14, "unseen_background": 9, "unseen_foreground": 4, "unseen_both": 3}
CHOICES: dict[str, Any] = {
    "placements": 3,
    "size": 64,
    "foreground_size": 32,
    "holdout": 0.3,
    "shard_records": 10,
    "depth_model": None,
}


def rows_of(out: Path) -> dict[str, dict[int, str]]:
    """By split the pixel hash of every record, by its id."""
    loaded = load_dataset(str(out))
    return {n: dict(zip(s["record_id"], s["pixel_hash"], strict=True)) for n, s in loaded.items()}


def built(sources: tuple[Path, Path], out: Path, **more: Any) -> FgbgDataset:
    builder = FgbgDataset(*sources, **CHOICES, **more)
    builder.download_and_prepare(out, file_format="parquet", num_proc=1)
    return builder


@pytest.fixture(scope="module")
def sets(sources, tmp_path_factory) -> tuple[Path, Path]:
    """The whole set and the one of 30 records."""
    root = tmp_path_factory.mktemp("records")
    built(sources, root / "whole")
    built(sources, root / "some", records=30)
    return root / "whole", root / "some"


def test_a_set_of_some_records_holds_those_of_the_whole(sets):
    whole, some = map(rows_of, sets)
    assert {name: len(rows) for name, rows in whole.items()} == SPLITS
    assert {name: len(rows) for name, rows in some.items()} == SHARES
    for name, rows in some.items():
        assert list(rows.items()) == list(whole[name].items())[: len(rows)]
    report = verify(sets[1], sample=None)
    assert report.ok, report.problems
    assert report.records_checked == report.records == 30
    card = (sets[1] / "README.md").read_text()
    assert "30 images of 64x64 px" in card
    assert "of these 120 records\nthis set holds 30" in card
    state = json.loads(fgbg("status", sets[1], "--json").stdout)
    assert (state["finished"], state["records"], state["records_done"]) == (True, 30, 30)


def test_the_stream_made_on_the_fly_is_the_stored_set(sets, sources):
    builder = FgbgDataset(*sources, **CHOICES, records=30)
    for name, stream in builder.as_streaming_dataset().items():
        stored = rows_of(sets[1])[name]
        assert {row["record_id"]: row["pixel_hash"] for row in stream} == stored


def test_an_extension_adds_the_same_share(sets, sources, tmp_path):
    out, folder = tmp_path / "some", tmp_path / "bg"
    built(sources, out, records=30)
    before = rows_of(out)
    folder.mkdir()
    for i in range(2):  # 4 foregrounds x 2 backgrounds x 6 = 48 records, of which a fourth
        scene(90 + i, 90, 90).save(folder / f"new{i}.jpg")
    result = json.loads(fgbg("extend", sources[0], folder, out, "--workers", "1", "--json").stdout)
    assert (result["finished"], result["records"]) == (True, 30 + 12)
    after = rows_of(out)
    for name, rows in before.items():
        assert rows.items() <= after[name].items()
    assert min(set().union(*after.values()) - set().union(*before.values())) >= 120
    assert verify(out, sample=None).ok
    again = tmp_path / "again"
    both = tmp_path / "both"
    both.mkdir()
    for path in (*sources[1].iterdir(), *folder.iterdir()):
        (both / path.name).write_bytes(path.read_bytes())
    fgbg("build", sources[0], both, again, "--recipe", out / "recipe.json", "--workers", "1")
    assert rows_of(again) == after


def test_the_estimate_says_how_many_there_could_be(sources):
    some = ("--placements", "1000", "--records", "50", "--depth-model", "none")
    done = fgbg("estimate", *sources, *some, "--workers", "1")
    assert "These are 50 of the 40,000 records that the pictures give." in done.stdout


def test_copies_are_counted_before_a_build(sources, tmp_path):
    # As large as the record, a blob of 60 x 90 px has 12 places; the others have fewer or more.
    large = ("--size", "32", "--foreground-size", "32", "--placements", "20")
    arguments = (*large, "--depth-model", "none", "--workers", "1")
    found = json.loads(fgbg("estimate", *sources, *arguments, "--json").stdout)
    done = fgbg("build", *sources, tmp_path / "out", *arguments)
    assert f"About {found['copies']:,} of the records are copies of others" in done.stderr
    hashes = [value for rows in rows_of(tmp_path / "out").values() for value in rows.values()]
    copies = len(hashes) - len(set(hashes))
    assert len(hashes) == found["records"] == found["possible"] == 800
    assert found["copies"] == pytest.approx(copies, rel=0.1)
    assert copies > 200


def test_more_records_than_there_are_is_all_of_them(sources, sets, tmp_path):
    built(sources, tmp_path / "all", records=10**6)
    assert rows_of(tmp_path / "all") == rows_of(sets[0])
