"""`--extend` adds records of new images; what was there stays to the byte."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from datasets import load_dataset

from builder.release.verify import verify
from fgbg_dataset import FgbgDataset, NotABuildError, RecordReader, earlier_set
from tests.e2e.running import OPTIONS, commits, fgbg, files_of, start, wait_until
from tests.pictures import blob, scene


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, sources) -> tuple[Path, Path, Path]:
    """Folders of 3 foregrounds and 4 backgrounds, and the set built of them; not to be changed."""
    root = tmp_path_factory.mktemp("small")
    for kind, folder, left in (("fg", sources[0], "blob3.png"), ("bg", sources[1], "scene4.jpg")):
        shutil.copytree(folder, root / kind, ignore=shutil.ignore_patterns(left))
    fgbg("build", root / "fg", root / "bg", root / "set", *OPTIONS, "--depth-model", "none")
    return root / "fg", root / "bg", root / "set"


@pytest.fixture
def copy(small, tmp_path) -> Path:
    return shutil.copytree(small[2], tmp_path / "set")


def data_of(out: Path) -> dict[str, str]:
    return {name: sha for name, sha in files_of(out).items() if name.startswith("data/")}


def held_out(out: Path) -> dict[str, bool]:
    recipe = json.loads((out / "recipe.json").read_text())
    return {s["id"]: s["held_out"] for k in ("foregrounds", "backgrounds") for s in recipe[k]}


def test_what_a_person_put_beside_a_set_stays(small, copy, sources):
    mine = {name: copy / name for name in (".git/HEAD", "LICENSE", "notes/a.txt", "assets/me.jpg")}
    for name, path in mine.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    fgbg("extend", *sources, copy, "--workers", "1")
    assert {name: path.read_text() for name, path in mine.items()} == {name: name for name in mine}
    assert "x001" in "".join(data_of(copy))
    assert verify(copy, sample=None).problems == ()


def test_new_images_make_new_records_and_nothing_else_changes(small, copy, sources, tmp_path):
    before, old_splits = data_of(copy), held_out(copy)
    assert len(load_dataset(str(copy), split="all")) == 3 * 4 * 6
    done = fgbg("extend", *sources, copy, "--workers", "1", "--json")
    result = json.loads(done.stdout)
    assert (result["finished"], result["records"]) == (True, 4 * 5 * 6)
    after = data_of(copy)
    assert before.items() <= after.items()
    assert all("-x001-" in name for name in after.keys() - before.keys())
    assert {name: held_out(copy)[name] for name in old_splits} == old_splits
    assert not (copy.parent / ".set.fgbg").exists()

    rows = load_dataset(str(copy), split="all")
    old = {r["record_id"]: r["pixel_hash"] for r in load_dataset(str(small[2]), split="all")}
    new = dict(zip(rows["record_id"], rows["pixel_hash"], strict=True))
    assert sorted(new) == list(range(120))
    assert old.items() <= new.items()
    assert verify(copy, sample=None).problems == ()
    assert "120 images" in (copy / "README.md").read_text()

    # The recipe of the extended set makes all of it again, from the files alone.
    again = tmp_path / "again"
    fgbg("build", *sources, again, "--recipe", copy / "recipe.json", "--workers", "1")
    made, held = files_of(again), files_of(copy)
    names = {"recipe.json", "assets/statistics.json", *after}
    assert {name: made[name] for name in names} == {name: held[name] for name in names}


def test_extended_twice_once_with_a_folder_of_new_images_alone(copy, tmp_path):
    before = data_of(copy)
    new = {"fg": tmp_path / "fg", "bg": tmp_path / "bg"}
    for folder in new.values():
        folder.mkdir()
    blob(50, 40, 60).save(new["fg"] / "fresh.png")
    scene(50, 90, 90).save(new["bg"] / "fresh.jpg")
    builder = FgbgDataset(new["fg"], new["bg"], earlier=earlier_set(copy))
    builder.download_and_prepare(copy, file_format="parquet", num_proc=1)
    assert before.items() <= data_of(copy).items()
    assert builder.plan.n_records == 4 * 5 * 6
    before = data_of(copy)
    scene(51, 90, 90).save(new["bg"] / "fresher.jpg")
    fgbg("extend", new["fg"], new["bg"], copy, "--workers", "1", "-q")
    after = data_of(copy)
    assert before.items() <= after.items()
    assert {name.split("-")[1] for name in after.keys() - before.keys()} == {"x002"}
    assert len(load_dataset(str(copy), split="all")) == 4 * 6 * 6
    assert verify(copy, sample=None).ok

    again = fgbg("build", new["fg"], new["bg"], copy, "--extend", "--json")  # nothing is new
    assert json.loads(again.stdout)["records"] == 4 * 6 * 6
    assert data_of(copy) == after


def test_a_killed_extension_leaves_the_set_as_it_was_and_resumes(copy, sources, tmp_path):
    undisturbed = shutil.copytree(copy, tmp_path / "undisturbed" / "set")
    fgbg("build", *sources, undisturbed, "--extend", "--workers", "1", "-q")
    before = files_of(copy)
    process = start("build", *sources, copy, "--extend", "--workers", "1")
    assert wait_until(process, lambda: len(commits(copy)) >= 1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert files_of(copy) == before
    state = json.loads(fgbg("status", copy, "--json").stdout)
    assert not state["finished"]
    assert 72 < state["records_done"] <= state["records"] == 120
    fgbg("build", *sources, copy, "--extend", "--workers", "1", "-q")
    assert files_of(copy) == files_of(undisturbed)


def test_a_kill_between_the_two_renames_is_made_good(copy, sources):
    before = files_of(copy)
    work = copy.parent / ".set.fgbg"
    work.mkdir()
    copy.rename(work / "before")
    for command in ("verify", "card", "preview"):
        said = fgbg(command, copy, code=2).stderr
        assert f"`fgbg status {copy}` puts the set back" in said, command
    with pytest.raises(NotABuildError, match="puts the set back"):
        RecordReader.of(copy)
    assert earlier_set(copy).n_records == 72
    assert files_of(copy) == before


def test_what_can_not_be_extended_is_refused(copy, sources, tmp_path):
    before = files_of(copy)
    other = Path(shutil.copytree(sources[1], tmp_path / "bg"))
    scene(77, 90, 90).save(other / "scene1.jpg")
    done = fgbg("extend", sources[0], other, copy, code=2)
    assert "  backgrounds: the file of scene1 has changed\n" in done.stderr
    done = fgbg("build", *sources, copy, "--extend", "--placements", "4", code=2)
    assert "  placements is 3, asked for is 4\n" in done.stderr
    done = fgbg("build", *sources, copy, *OPTIONS, "--depth-model", "none", code=2)
    assert "  foregrounds: blob3 is new\n" in done.stderr  # without --extend
    assert "fgbg extend" in done.stderr
    done = fgbg("build", *sources, tmp_path / "none", "--extend", code=2)
    assert "none is not a finished build of fgbg: it has no recipe.json." in done.stderr
    assert files_of(copy) == before
    shard = next((copy / "data").glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    done = fgbg("build", *sources, copy, "--extend", code=1)
    assert f"{shard} is damaged or gone: its sha256 is not that of" in done.stderr
