"""A full, read-only or forbidden disk ends a build with one sentence and loses nothing finished.

The file systems are real ones, mounted for the test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.build.options import BuildOptions
from builder.build.work import WorkFolder
from fgbg_dataset import FgbgDataset, OutputError
from tests.e2e.running import COMMAND, OPTIONS, await_end, commits, files_of, start, wait_until
from tests.limits import HANG_S

# 80 records in 12 shards; the set takes about 700 kB
SMALL = (*OPTIONS, "--placements", "2", "--shard-records", "8", "--depth-model", "none")
RECIPE: dict[str, Any] = {
    "placements": 2,
    "size": 64,
    "foreground_size": 32,
    "depth_input": 64,
    "shard_records": 8,
    "holdout": 0.3,
    "depth_model": "none",
}
TOLD = {
    "full": "No space left on device. Finished shards are kept: make room there",
    "read-only": "Read-only file system. Finished shards are kept: mount it for writing",
    "forbidden": "Permission denied. Finished shards are kept: allow writing there",
}


def build(sources: tuple[Path, Path], out: Path, **recipe: Any) -> None:
    options = BuildOptions(progress=False)
    dataset = FgbgDataset(*sources, **{**RECIPE, **recipe})
    dataset.download_and_prepare(out, file_format="parquet", num_proc=1, options=options)


def sentence(out: Path, what: str) -> str:
    return f"{out} cannot be written: {TOLD[what]} and run the same command again."


@pytest.fixture(scope="module")
def undisturbed(
    sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    build(sources, out)
    return files_of(out)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, of 64 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(disk: Path, options: str) -> bool:
    command = ["mount", "-o", f"remount,{options}", str(disk)]
    return subprocess.run(command, capture_output=True).returncode == 0


def stored(work: WorkFolder) -> dict[str, int]:
    """Return the inodes of finished shards, by name of the shard."""
    names = {path.stem for path in work.shards.glob("*.json")}
    files = {path.name.split(".")[0]: path for path in work.shards.glob("[!.]*.parquet")}
    return {name: files[name].stat().st_ino for name in names}


def phase(out: Path) -> str:
    """Return how far a build came that could not write."""
    work = WorkFolder(out)
    if not work.recipe.is_file():
        return "sources"
    return "finishing" if any(work.path.glob("built-*")) else "shards"


def fill_and_free(sources: Any, disk: Path, limit: str, expected: dict[str, str]) -> str | None:
    """Build on a disk of some room, then make room; return where the build was, None if it fitted.

    Args:
        limit: of the file system, as `mount` takes it.
    """
    out = disk / "set"
    assert remount(disk, limit)
    told = None
    try:
        build(sources, out)
    except OutputError as error:
        told = str(error)
    if told is None:
        assert files_of(out) == expected
        return None
    assert told == sentence(out, "full")
    assert not out.exists()
    assert not list(disk.rglob("*.tmp"))
    came, held = phase(out), stored(WorkFolder(out))
    assert remount(disk, "size=64m,nr_inodes=10000")
    build(sources, out)
    assert files_of(out) == expected
    for name, inode in held.items():
        assert (out / "data" / f"{name}.parquet").stat().st_ino == inode, "made again"
    assert [path.name for path in disk.iterdir()] == ["set"]
    return came


def fill_at_each(sources: Any, disk: Path, limits: list[str], expected: dict[str, str]) -> set[str]:
    found = set()
    for limit in limits:
        if came := fill_and_free(sources, disk, limit, expected):
            found.add(came)
        for path in disk.iterdir():
            shutil.rmtree(path)
    return found


def test_out_of_space_wherever_it_happens(sources, disk, undisturbed):
    """In kilobytes; a build finds room for itself, and then not for the next thing."""
    limits = [f"size={size}k" for size in (4, 8, 60, 250, 640, 900)]
    found = fill_at_each(sources, disk, limits, undisturbed)
    assert found == {"sources", "shards", "finishing"}


def test_out_of_file_names_wherever_it_happens(sources, disk, undisturbed):
    limits = [f"size=64m,nr_inodes={count}" for count in (4, 9, 15, 27, 45)]
    found = fill_at_each(sources, disk, limits, undisturbed)
    assert found == {"sources", "shards", "finishing"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_out_of_space_at_every_size(sources, disk, undisturbed):
    limits = [f"size={size}k" for size in range(4, 1200, 8)]
    limits += [f"size=64m,nr_inodes={count}" for count in range(2, 70)]
    assert len(fill_at_each(sources, disk, limits, undisturbed)) == 3


def test_workers_out_of_space_end_with_one_sentence(sources, disk, undisturbed):
    out = disk / "set"
    assert remount(disk, "size=300k")
    process = start("build", *sources, out, *SMALL, "--workers", "2")
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "Error: " + sentence(out, "full")
    assert "Traceback" not in stderr
    await_end(process.pid)
    assert phase(out) == "shards"
    assert not list(disk.rglob("*.tmp"))
    assert remount(disk, "size=64m")
    build(sources, out)
    assert files_of(out) == undisturbed


def test_read_only_in_the_middle_and_from_the_start(sources, disk, tmp_path):
    out = disk / "set"
    process = start("build", *sources, out, *SMALL, "--shard-records", "2")
    # Refused as long as a file is open for writing, so asked between two of them.
    assert wait_until(process, lambda: len(commits(out)) >= 1 and remount(disk, "ro"))
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "Error: " + sentence(out, "read-only")
    assert "Traceback" not in stderr
    prepared: list[int] = []
    for path in (out, disk / "new" / "set"):
        with pytest.raises(OutputError) as caught:
            FgbgDataset(*sources, **RECIPE).prepare(path, prepared.append)
        assert str(caught.value) == sentence(path, "read-only")
    assert prepared == []  # refused before any work
    held = stored(WorkFolder(out))
    assert remount(disk, "rw")
    build(sources, out, shard_records=2)
    for name, inode in held.items():
        assert (out / "data" / f"{name}.parquet").stat().st_ino == inode, "made again"
    build(sources, tmp_path / "set", shard_records=2)
    assert files_of(out) == files_of(tmp_path / "set")
    assert [path.name for path in disk.iterdir()] == ["set"]
    assert remount(disk, "ro")
    build(sources, out, shard_records=2)  # a finished set needs no writing


def test_a_folder_without_the_right_to_write_is_told_before_any_work(sources, tmp_path):
    out = tmp_path / "closed" / "set"
    out.parent.mkdir()
    out.parent.chmod(0o555)
    without_rights = []
    if os.geteuid() == 0:  # who could write all the same
        if not shutil.which("setpriv"):
            pytest.skip("setpriv is not there to take root's rights away")
        without_rights = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    command = [*without_rights, *COMMAND, "build", *map(str, sources), str(out), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    out.parent.chmod(0o755)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: " + sentence(out, "forbidden")
    assert "foregrounds, " not in done.stderr  # nothing had been prepared
