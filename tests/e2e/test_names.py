"""Odd names of OUT and of sources go through every step; printed commands can be pasted."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import unicodedata
from pathlib import Path

import datasets
import pytest

from fgbg_dataset import FgbgDataset, PinnedRecipe, RecordReader, verify
from tests.e2e.running import COMMAND, commits, fgbg, start, wait_until
from tests.limits import HANG_S
from tests.pictures import blob, scene

TINY = (
    *("--placements", "1", "--size", "32", "--foreground-size", "16", "--no-flip"),
    *("--depth-model", "none", "--workers", "1", "--holdout", "0"),
)
NFC = "café Ångström"
# Each stands for a kind of name: of OUT, and of a foreground and a background.
NAMES = [
    "a [1] b* {x,y} what? #1 50%20 [!a]",
    " -q --all it's `id` $(id) & ; | > ~",
    f"{unicodedata.normalize('NFC', NFC)} 🍎🚀",
    f"{unicodedata.normalize('NFD', NFC)} ends in dots..",
]


def pasted(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a printed command as a shell does."""
    script = f'fgbg() {{ {shlex.join(COMMAND)} "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=folder, timeout=HANG_S
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_name_goes_through_every_step(name, hub, tmp_path):
    foregrounds, backgrounds, out = tmp_path / "fg" / name, tmp_path / "bg" / name, tmp_path / name
    foregrounds.mkdir(parents=True)
    backgrounds.mkdir(parents=True)
    for number in range(2):
        blob(number, 30, 20).save(foregrounds / f"{name} {number}.png")
        scene(number, 40, 40).save(backgrounds / f"{name} {number}.jpg")

    done = fgbg("build", foregrounds, backgrounds, out, *TINY)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  use ")]
    loaded = eval(line.split(maxsplit=1)[1], {"load_dataset": datasets.load_dataset})
    assert len(loaded) == 4
    ids = {f"{name} {number}" for number in range(2)}
    normal = {unicodedata.normalize("NFC", one) for one in ids}
    assert {unicodedata.normalize("NFC", one) for one in loaded["foreground_id"]} == normal

    recipe = PinnedRecipe.from_json((out / "recipe.json").read_text()).recipe
    builder = FgbgDataset(foregrounds, backgrounds, recipe=recipe, cache_dir=str(tmp_path))
    stream = {row["record_id"]: row["pixel_hash"] for row in builder.as_streaming_dataset("train")}
    assert stream == dict(zip(loaded["record_id"], loaded["pixel_hash"], strict=True))
    builder.download_and_prepare(out, file_format="parquet")  # finds it finished
    assert builder.as_dataset("train")["pixel_hash"][:] == loaded["pixel_hash"][:]
    assert RecordReader.of(out).pinned.fingerprint == builder.plan.pinned.fingerprint

    report = verify(out, sample=None)
    assert report.problems == ()
    assert repr(report).endswith("ok=True, records_checked=4, problems=0)")
    fgbg("card", out)
    fgbg("preview", out)
    assert json.loads(fgbg("status", out, "--json").stdout)["finished"] is True
    blob(5, 20, 30).save(foregrounds / f"{name} new.png")
    fgbg("extend", foregrounds, backgrounds, out, "-q", "--workers", "1")
    extended = json.loads(fgbg("verify", out, "--all", "--json").stdout)
    assert (extended["records"], extended["problems"]) == (6, [])
    fgbg("push", out, "ann/odd", "--yes", "-q")
    assert len(datasets.load_dataset("ann/odd", split="train")) == 6


def test_folders_whose_names_are_not_utf_8(tmp_path):
    """Of sources, of what lies above OUT, and of OUT itself, as on a disk from a Latin-1 system."""
    root = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        (root / "fg").mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    (root / "bg").mkdir()
    out = root / os.fsdecode(b"r\xe9sultat")
    for number in range(2):
        blob(number, 30, 20).save(root / "fg" / f"{number}.png")
        scene(number, 40, 40).save(root / "bg" / f"{number}.jpg")
    done = fgbg("build", root / "fg", root / "bg", out, *TINY)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  use ")]
    loaded = eval(line.split(maxsplit=1)[1], {"load_dataset": datasets.load_dataset})
    assert len(loaded) == 4
    assert (out / "README.md").read_text().count(r"# r\udce9sultat") == 1
    for command in ("card", "preview"):
        fgbg(command, out)
    blob(5, 20, 30).save(root / "fg" / "new.png")
    fgbg("extend", root / "fg", root / "bg", out, "-q", "--workers", "1")
    assert json.loads(fgbg("verify", out, "--all", "--json").stdout)["records"] == 6


def test_the_command_that_finishes_a_set_can_be_pasted(tmp_path):
    folder = tmp_path / NAMES[1]
    (folder / "fg").mkdir(parents=True)
    (folder / "bg").mkdir()
    blob(1, 30, 20).save(folder / "fg" / "a.png")
    scene(1, 40, 40).save(folder / "bg" / "a.png")
    out = folder / "set"
    options = (*TINY[2:], "--placements", "4000", "--shard-records", "20")
    process = start("build", folder / "fg", folder / "bg", out, *options)
    assert wait_until(process, lambda: len(commits(out)) > 2)
    process.terminate()
    process.communicate(timeout=HANG_S)
    assert process.returncode == 143
    refused = fgbg("finish", out, code=1)
    command = refused.stderr.rpartition("finish: ")[2].strip()
    folders = shlex.join([str(folder / "fg"), str(folder / "bg")])
    command = command.replace("FOREGROUNDS BACKGROUNDS", folders)
    done = pasted(command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4000 records in " in done.stdout
