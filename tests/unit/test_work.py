"""work: work folders that builds of other versions, recipes and times left."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.build.finish import begun_project
from builder.build.leases import Leases
from builder.build.ledger import Ledger
from builder.build.options import BuildOptions
from builder.build.shards import stored_name
from builder.build.work import WorkFolder
from builder.record.plan import Plan
from fgbg_dataset import (
    FgbgDataset,
    NewerVersionError,
    OutputError,
    RecipeMismatchError,
    UnfinishedError,
    finish_build,
)
from tests.begun import begin
from tests.e2e.running import fgbg, files_of

RECIPE: dict[str, Any] = {
    "placements": 2,
    "size": 48,
    "foreground_size": 24,
    "depth_model": "none",
    "shard_records": 10,
    "holdout": 0.3,
}


def build(sources: tuple[Path, Path], out: Path, **recipe: Any) -> None:
    dataset = FgbgDataset(*sources, **{**RECIPE, **recipe})
    options = BuildOptions(progress=False)
    dataset.download_and_prepare(out, file_format="parquet", num_proc=1, options=options)


def more(sources: tuple[Path, Path], out: Path, shards: int = 1) -> WorkFolder:
    return begin(FgbgDataset(*sources, **RECIPE), out, shards)


@pytest.fixture(scope="module")
def undisturbed(
    sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    build(sources, out)
    return files_of(out)


@pytest.fixture
def begun(sources: tuple[Path, Path], tmp_path: Path) -> WorkFolder:
    """Half of a set: 5 shards of 10."""
    return more(sources, tmp_path / "set", 5)


@pytest.mark.parametrize(
    ("content", "by"),
    [
        (None, "before 0.1.0"),
        ('{"version": 1, "fgbg": "0.0.1"}', "0.0.1"),
        ("{", "that cannot be read"),
        ("[]", "that cannot be read"),
    ],
)
def test_a_work_folder_of_another_version_is_refused(
    begun: WorkFolder, sources: tuple[Path, Path], content: str | None, by: str
) -> None:
    version = begun.path / "version.json"
    version.unlink()
    if content is not None:
        version.write_text(content)
    before = files_of(begun.path)
    with pytest.raises(OutputError) as caught:
        build(sources, begun.out)
    assert files_of(begun.path) == before
    assert str(caught.value) == (
        f"{begun.path} is the unfinished build of another version of fgbg ({by}); finish it with "
        "that version, or delete the folder to start again."
    )


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"version": 3, "fgbg": "9.9"}', "format 3"),
        ('{"version": 2, "fgbg": "9.9", "engine": "x"}', "it has a field 'engine'"),
    ],
)
def test_a_work_folder_of_a_newer_version_says_so_and_stays(
    begun: WorkFolder, sources: tuple[Path, Path], content: str, what: str
) -> None:
    (begun.path / "version.json").write_text(content)
    before = files_of(begun.path)
    with pytest.raises(NewerVersionError) as caught:
        build(sources, begun.out)
    assert str(caught.value).startswith(
        f"{begun.path / 'version.json'} was made by a newer fgbg-dataset ({what}); upgrade"
    )
    assert files_of(begun.path) == before


def test_leftovers_of_any_age_and_host_change_nothing(
    begun: WorkFolder, sources: tuple[Path, Path], undisturbed: dict[str, str]
) -> None:
    """Temporary files, files without a record, claims and owners that nobody holds any more."""
    shard = min(begun.shards.glob("*.json")).stem
    left = (
        begun.shards / ".train-00000-of-00008.parquet.0011223344556677.tmp",
        begun.shards / ".train-00001-of-00008.json.4711.tmp",
        begun.shards / stored_name(shard, "0" * 64, "parquet"),
        begun.path / "owners" / ".0123456789abcdef.89.tmp",
        begun.path / "claims" / "train-00001-of-00008.0",
        begun.path / "built-0123456789abcdef.incomplete" / "README.md",
    )
    for number, path in enumerate(left):
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"build": "x", "fingerprint": "", "host": "h", "machine": "m", "pid": 1, '
                        '"started": "1", "since": ""}')  # fmt: skip
        os.utime(path, (0, 0) if number % 2 else (4e9, 4e9))  # long ago, or yet to come
    build(sources, begun.out)
    assert files_of(begun.out) == undisturbed
    assert [path.name for path in begun.out.parent.iterdir()] == ["set"]


def test_temporary_files_of_a_build_at_work_are_left_alone(
    begun: WorkFolder, sources: tuple[Path, Path]
) -> None:
    path = begun.shards / ".train-00000-of-00008.parquet.0011223344556677.tmp"
    path.write_text("being written")
    held = begun.held()
    assert held is not None
    with Leases(begun.path, held.fingerprint):
        more(sources, begun.out)
        assert path.exists()
    more(sources, begun.out)
    assert not path.exists()


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_set_back_or_forward_changes_nothing(
    begun: WorkFolder, sources: tuple[Path, Path], undisturbed: dict[str, str], jump: int
) -> None:
    for path in begun.path.rglob("*"):
        seconds = path.stat().st_mtime + jump
        os.utime(path, (seconds, seconds))
    record = min(begun.shards.glob("*.json"))
    before = record.stat().st_mtime
    more(sources, begun.out)
    assert record.stat().st_mtime == before  # not made again
    build(sources, begun.out)
    assert files_of(begun.out) == undisturbed


def test_another_recipe_is_refused_while_one_is_at_work_or_has_shards(
    begun: WorkFolder, sources: tuple[Path, Path]
) -> None:
    with pytest.raises(RecipeMismatchError, match="seed is 0, asked for is 1"):
        build(sources, begun.out, seed=1)
    for path in begun.shards.iterdir():
        path.unlink()
    held = begun.held()
    assert held is not None
    with (
        Leases(begun.path, held.fingerprint),
        pytest.raises(RecipeMismatchError, match="seed is 0, asked for is 1"),
    ):
        build(sources, begun.out, seed=1)
    build(sources, begun.out, seed=1)  # nothing could be lost, and nobody is at it
    assert json.loads((begun.out / "recipe.json").read_text())["recipe"]["seed"] == 1


def test_of_two_builds_that_begin_at_once_one_sets_the_recipe(
    sources: tuple[Path, Path], tmp_path: Path
) -> None:
    work = WorkFolder(tmp_path / "set")
    projects = [FgbgDataset(*sources, **{**RECIPE, "seed": seed}).project for seed in (0, 1)]
    with (
        work.entered(projects[0].pinned.fingerprint, 60) as first,
        work.entered(projects[1].pinned.fingerprint, 60) as second,
    ):
        work.begin(projects[1], second)
        with pytest.raises(RecipeMismatchError, match="seed is 1, asked for is 0"):
            work.begin(projects[0], first)
        held = work.held()
        assert held is not None
        assert held.recipe.seed == 1


def test_a_finished_set_can_not_be_replaced(
    begun: WorkFolder, sources: tuple[Path, Path], undisturbed: dict[str, str]
) -> None:
    """As when a stopped machine wakes up after another has put the set together."""
    build(sources, begun.out)
    late = begun.out.parent / "late"
    shutil.copytree(begun.out, late)
    begun.publish(late)
    assert files_of(begun.out) == files_of(late) == undisturbed


def test_finish_builds_the_command_and_quotes_none_that_lies_there(
    begun: WorkFolder, sources: tuple[Path, Path], undisturbed: dict[str, str]
) -> None:
    held = begun.held()
    assert held is not None
    (begun.path / held.fingerprint[:16] / "command.txt").write_text("curl example.org | sh")
    with pytest.raises(UnfinishedError) as caught:
        finish_build(begun.out, options=BuildOptions(progress=False))
    command = f"fgbg build FOREGROUNDS BACKGROUNDS {begun.out} --recipe {begun.recipe}"
    assert caught.value.command == command
    assert "curl" not in str(caught.value)
    assert len(caught.value.missing) == 5
    words = shlex.split(caught.value.command)
    fgbg("build", *sources, *words[4:], "--workers", "1")
    assert files_of(begun.out) == undisturbed


def changed(folder: Path) -> str:
    (folder / "blob1.png").write_bytes((folder / "blob0.png").read_bytes())
    return "foregrounds: the file of blob1 has changed"


def removed(folder: Path) -> str:
    (folder / "blob1.png").unlink()
    return "foregrounds: blob1 is gone"


def added(folder: Path) -> str:
    (folder / "blob9.png").write_bytes((folder / "blob0.png").read_bytes())
    return "foregrounds: blob9 is new"


@pytest.mark.parametrize("change", [changed, removed, added])
@pytest.mark.parametrize("finished", [False, True])
def test_sources_that_are_others_than_before_are_named(
    sources: tuple[Path, Path], tmp_path: Path, finished: bool, change: Callable[[Path], str]
) -> None:
    foregrounds, out = tmp_path / "fg", tmp_path / "out" / "set"
    shutil.copytree(sources[0], foregrounds)
    (foregrounds / "credits.csv").unlink()
    (build if finished else more)((foregrounds, sources[1]), out)
    before = files_of(out.parent)
    difference = change(foregrounds)
    with pytest.raises(RecipeMismatchError) as caught:
        build((foregrounds, sources[1]), out)
    assert difference in caught.value.differences
    assert files_of(out.parent) == before


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flipped, truncated, Path.unlink])
@pytest.mark.parametrize("which", ["*.parquet", "*.json"], ids=["shard", "record"])
def test_a_damaged_shard_or_commit_record_is_made_again(
    sources: tuple[Path, Path],
    begun: WorkFolder,
    undisturbed: dict[str, str],
    which: str,
    damage: Callable[[Path], object],
) -> None:
    kept, damaged = sorted(begun.shards.glob(which))[:2]
    name = kept.name.split(".")[0]
    inode = next(begun.shards.glob(f"{name}.*.parquet")).stat().st_ino
    damage(damaged)
    build(sources, begun.out)
    assert files_of(begun.out) == undisturbed
    assert (begun.out / "data" / f"{name}.parquet").stat().st_ino == inode  # not made again


def test_a_ledger_hashes_each_file_once_and_reads_no_statistics_twice(
    begun: WorkFolder,
) -> None:
    project, _ = begun_project(begun.out)
    ledger, plan = Ledger(begun, project.pinned, "parquet"), Plan(project.pinned)
    numbers = range(plan.n_shards)
    assert list(ledger.missing(numbers)) == ledger.uncommitted()
    for path in begun.shards.glob("*.parquet"):
        path.unlink()
    assert len(ledger.missing(numbers)) == plan.n_shards - 5
    assert list(Ledger(begun, project.pinned, "parquet").missing(numbers)) == list(numbers)
    assert [plan.shard_number(s.name, i) for s, i in map(plan.shard, numbers)] == list(numbers)
    for number in (-1, plan.n_shards):
        with pytest.raises(IndexError, match="there is no shard"):
            plan.shard(number)
