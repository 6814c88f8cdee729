"""The page over sets that lie elsewhere: no more is fetched than is looked at."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from builder.errors import NotABuildError, OutputError
from builder.release.browse import Flags, serving
from tests.e2e.hub import Hub


def answers(target: str | Path, flags: Path) -> list[bytes]:
    found = []
    with serving(target, flags=flags) as url:
        for path in ("columns", "find?split=unseen_both", "picture/0", "depth/119", "mask/60"):
            with urllib.request.urlopen(url + path) as answer:
                found.append(answer.read())
        with urllib.request.urlopen(url + "rows?at=3,100") as answer:
            rows = json.loads(answer.read())
        found.append(json.dumps([row["values"] for row in rows]).encode())
    return found


def test_a_published_set_looks_as_the_same_set_here(hub: Hub, built: Path, tmp_path: Path) -> None:
    hub.put_folder("ann/blobs", built)
    flags = tmp_path / "flags.csv"
    assert answers("ann/blobs", flags) == answers(built, flags)
    with pytest.raises(NotABuildError, match="neither a folder here nor on the Hub"):
        answers("ann/nothing", flags)


def test_its_lines_make_a_record_of_the_published_set_again(
    hub: Hub, built: Path, tmp_path: Path
) -> None:
    hub.put_folder("ann/blobs", built)
    with (
        serving("ann/blobs", flags=tmp_path / "flags.csv") as url,
        urllib.request.urlopen(url + "rows?at=7") as answer,
    ):
        (row,) = json.loads(answer.read())
    made: dict = {}
    exec(row["remake"], made)
    assert made["record"].record_id == row["values"]["record_id"]
    assert made["record"].pixel_hash == row["values"]["pixel_hash"]


def test_pages_over_two_sets_keep_the_flags_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "flags.csv"
    first, second = Flags(path, "a"), Flags(path, "b")
    first.put(1, "train", "of the first")
    second.put(2, "train", "of the second")
    first.put(3, "train", "one more")
    assert Flags(path, "a").notes() == {"1": "of the first", "3": "one more"}
    assert Flags(path, "b").notes() == {"2": "of the second"}
    path.write_text("kept by hand\n")
    with pytest.raises(OutputError, match="is not a file of flags"):
        second.put(4, "train", "")
    assert path.read_text() == "kept by hand\n"


def test_a_note_that_cannot_be_written_does_not_stop_the_next(tmp_path: Path) -> None:
    flags = Flags(tmp_path / "flags.csv", "a")
    with pytest.raises(UnicodeEncodeError):
        flags.put(1, "train", "\ud800")
    flags.put(2, "train", "fine")
    assert flags.notes() == Flags(tmp_path / "flags.csv", "a").notes() == {"2": "fine"}


def test_a_flag_of_no_record_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "flags.csv"
    path.write_text(f"record_id,split,note,fingerprint\n{10**30},train,,a\n")
    with pytest.raises(OutputError, match="is the id of no record"):
        Flags(path, "a")


def test_odd_requests_are_answered(built: Path, tmp_path: Path) -> None:
    odd = [
        *("rows?at=-1", f"rows?at={10**30}", "rows?at=nan", "rows", "picture/-1", "picture/1e3"),
        *("picture/" + "9" * 18, "source/foreground/99999", "source/../../etc/passwd", "//["),
        *("..%2f..%2fetc%2fpasswd", "find?layout=1e9", "find?size=1", "find?coverage=a,b"),
    ]
    with serving(built, flags=tmp_path / "flags.csv") as url:
        for path in odd:
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(url + path)
            assert caught.value.code == 404, path
            assert json.loads(caught.value.read())["error"]
        for query in ("coverage=nan,nan", "coverage=-inf,1e999", "q=" + "9" * 19, "flagged=1"):
            with urllib.request.urlopen(url + "find?" + query) as answer:
                assert json.loads(answer.read())["records"] in (0, 120), query
        deep = urllib.request.Request(
            url + "flag", b"[" * 60_000, {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(deep)
        assert caught.value.code == 500
        assert "recursion" in json.loads(caught.value.read())["error"]
