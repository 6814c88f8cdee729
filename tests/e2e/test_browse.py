"""The page over sets that lie elsewhere: no more is fetched than is looked at."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from builder.errors import NotABuildError
from builder.release.browse import serving
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
