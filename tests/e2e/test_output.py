"""OUT is a link, the working folder, a mount point, or lies where nothing else can be written."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.build.options import BuildOptions
from builder.build.work import WorkFolder
from builder.release.verify import verify
from fgbg_dataset import FgbgDataset, OutputError, extend_build
from tests.begun import FLAGS, RECIPE
from tests.e2e.running import COMMAND, fgbg, files_of
from tests.limits import HANG_S
from tests.pictures import scene

QUIET = BuildOptions(progress=False)


def build(sources: tuple[Path, Path], out: Path) -> None:
    dataset = FgbgDataset(*sources, **RECIPE)
    dataset.download_and_prepare(out, file_format="parquet", num_proc=1, options=QUIET)


def records_of(out: Path) -> dict[str, str]:
    """All files but the card, which names the folder."""
    return {name: sha for name, sha in files_of(out).items() if name != "README.md"}


@pytest.fixture(scope="module")
def undisturbed(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    build(sources, out)
    return out


@pytest.fixture
def more(tmp_path: Path) -> Path:
    """A folder with one more background."""
    folder = tmp_path / "more"
    folder.mkdir()
    scene(50, 90, 90).save(folder / "fresh.jpg")
    return folder


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A mount point as containers have one, with what a new disk has, in a read-only folder."""
    parent, out = tmp_path / "parent", tmp_path / "parent" / "volume"
    mounted: list[Path] = []
    try:
        for folder in (parent, out):
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
            if subprocess.run(command, capture_output=True).returncode:
                pytest.skip("no file system can be mounted here")
            mounted.append(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(parent)], check=True)
        (out / "lost+found").mkdir()
        yield out
    finally:
        for folder in reversed(mounted):
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("target", ["missing", "empty"])
def test_a_link_is_followed(sources, undisturbed, tmp_path, target):
    (tmp_path / "disk").mkdir()
    if target == "empty":
        (tmp_path / "disk" / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    build(sources, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert records_of(tmp_path / "disk" / "real") == records_of(undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


def test_a_linked_set_is_extended_where_it_lies(sources, undisturbed, more, tmp_path):
    """The link was once replaced by a folder, and the set behind it stayed as it was."""
    real = shutil.copytree(undisturbed, tmp_path / "disk" / "real")
    (tmp_path / "link").symlink_to(real)
    extend_build(sources[0], more, tmp_path / "link", num_proc=1, options=QUIET)
    assert (tmp_path / "link").is_symlink()
    assert any("-x001-" in name for name in files_of(real))
    assert verify(real, sample=None).ok


def test_the_working_folder_is_filled_and_not_replaced(
    sources, undisturbed, more, tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    inode = here.stat().st_ino
    monkeypatch.chdir(here)
    fgbg("build", *sources, ".", *FLAGS)
    assert records_of(here) == records_of(undisturbed)
    fgbg("extend", sources[0], more, ".", "--workers", "1", "-q")
    assert (here.stat().st_ino, Path.cwd()) == (inode, here)
    assert verify(here, sample=None).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "more"]
    assert not (here / ".fgbg").exists()


def test_a_mount_point_is_filled_extended_and_found_finished(sources, undisturbed, more, volume):
    build(sources, volume)
    shutil.rmtree(volume / "lost+found")
    assert records_of(volume) == records_of(undisturbed)
    extend_build(sources[0], more, volume, num_proc=1, options=QUIET)
    assert any("-x001-" in name for name in files_of(volume))
    assert not (volume / ".fgbg").exists()
    assert verify(volume, sample=None).ok


@pytest.mark.parametrize("moved", [0, 1, 5, -1])
def test_a_kill_while_files_are_moved_in_is_made_good(
    sources, undisturbed, volume, tmp_path, moved
):
    """By the same build, and by commands that only look."""
    work = WorkFolder(volume)
    assert work.path == volume / ".fgbg"
    built = shutil.copytree(undisturbed, work.path / "built-0123456789abcdef")
    (work.path / "publishing").write_text(built.name)
    shutil.copy(undisturbed / "recipe.json", work.path)
    names = [name for name in files_of(built) if name != "recipe.json"]
    for name in names[: moved if moved >= 0 else None]:
        (volume / name).parent.mkdir(exist_ok=True)
        (built / name).rename(volume / name)
    if moved % 2:
        build(sources, volume)
    else:
        assert "finished" in fgbg("status", volume).stdout
    shutil.rmtree(volume / "lost+found")
    assert records_of(volume) == records_of(undisturbed)


def test_a_writable_folder_in_one_that_is_not(sources, undisturbed, tmp_path):
    out = tmp_path / "closed" / "set"
    out.mkdir(parents=True)
    (tmp_path / "cache").mkdir()
    out.parent.chmod(0o555)
    command = [*COMMAND, "build", *map(str, sources), str(out), *FLAGS]
    if os.geteuid() == 0:  # who could write there all the same
        if not shutil.which("setpriv"):
            pytest.skip("setpriv is not there to take root's rights away")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    out.parent.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert records_of(out) == records_of(undisturbed)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_taken_is_refused_before_any_work(sources, tmp_path, what):
    out = tmp_path / "out"
    if what == "file":
        out.touch()
    else:
        (out / "thesis").mkdir(parents=True)
    prepared: list[int] = []
    with pytest.raises(OutputError, match=r"/out is .*; choose another folder\.$"):
        FgbgDataset(*sources, **RECIPE).prepare(out, prepared.append)
    assert prepared == []
    assert list(tmp_path.rglob("*.fgbg")) == []
