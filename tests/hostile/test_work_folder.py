"""Pipes in every place of a work folder that may be of another hand: no build waits for one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from builder.build.work import WorkFolder
from fgbg_dataset import FgbgDataset
from tests.begun import FLAGS, RECIPE, begin
from tests.e2e.running import start
from tests.limits import HANG_S

# The exit code of a build that finds a pipe there; 0 where it makes good what should be there.
PLACES = {
    "owners/0123456789abcdef": 0,
    "owners/odd": 0,
    "publishing": 0,
    "{fingerprint}/command.txt": 0,  # of version 0.1.0
    "{fingerprint}/foregrounds/train-00000-of-00001.parquet": 0,
    "shards/{file}": 0,
    "shards/{commit}": 0,
    "version.json": 1,
    "recipe.json": 2,
}


@pytest.fixture(scope="module")
def begun(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("begun") / "set"
    return Path(str(begin(FgbgDataset(*sources, **RECIPE), out, 1).path))


@pytest.mark.parametrize("place", sorted(PLACES))
def test_no_build_waits_for_a_pipe(sources, begun, tmp_path, place):
    out = tmp_path / "set"
    work = Path(str(WorkFolder(out).path))
    shutil.copytree(begun, work)
    (shard,) = {path.name.split(".")[0] for path in begun.glob("shards/*.json")}
    (file,) = (path.name for path in begun.glob("shards/*.parquet"))
    (fingerprint,) = (path.parent.name for path in begun.glob("*/foregrounds"))
    names = {"fingerprint": fingerprint, "file": file, "commit": f"{shard}.json"}
    path = work / place.format(**names)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    process = start("build", *sources, out, *FLAGS)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == PLACES[place], stderr
    assert "Traceback" not in stderr
    assert PLACES[place] == 0 or f"{path} is not a regular file" in stderr
