"""Several builds of one set at once share the work, and none spoils what another made."""

from __future__ import annotations

import json
import shutil
import signal

import pyarrow.parquet as pq
import pytest

from tests.e2e.running import OPTIONS, commits, fgbg, files_of, start, wait_until
from tests.limits import HANG_S

SMALL = (*OPTIONS, "--shard-records", "6", "--depth-model", "none")


@pytest.fixture(scope="module")
def undisturbed(sources, tmp_path_factory):
    """The files of 120 records in 20 shards without depth."""
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    fgbg("build", *sources, out, *SMALL)
    return files_of(out)


def test_parts_in_any_order_make_the_same_set_and_the_last_one_finishes(
    sources, undisturbed, tmp_path
):
    out = tmp_path / "set"
    for part in (3, 1):
        done = fgbg("build", *sources, out, *SMALL, "--shard-range", f"{part}/3")
        assert "This part is done" in done.stdout
        assert not out.exists()
    shards = len(commits(out))
    refused = fgbg("build", "--finish", out, code=1)
    assert f"{out} cannot be finished: {20 - shards} shards are missing or damaged: " in (
        refused.stderr
    )
    assert "--shard-range" not in refused.stderr.splitlines()[-1]
    last = refused.stderr.splitlines()[-1].removeprefix("To make what is missing, and finish: ")
    assert last.startswith(f"fgbg build {sources[0]} {sources[1]} {out} ")
    told = json.loads(fgbg("build", *sources, out, *SMALL, "--shard-range", "2/3", "--json").stdout)
    assert told["finished"] is True
    assert files_of(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_finish_needs_neither_sources_nor_model_and_checks_every_shard(
    sources, tiny_model, built, tmp_path
):
    mine, model = [tmp_path / "fg", tmp_path / "bg"], tmp_path / "model"
    for copy, original in zip((*mine, model), (*sources, tiny_model), strict=True):
        shutil.copytree(original, copy)
    out = tmp_path / built.name
    options = (*OPTIONS, "--depth-model", model)
    for part in ("1/2", "2/2"):
        process = start("build", *mine, out, *options, "--shard-range", part)
        # Killed with its last shard committed and the set not put together yet.
        assert wait_until(process, lambda part=part: len(commits(out)) == (2, 5)[part == "2/2"])
        process.kill()
        process.communicate()
        assert not out.exists()
    for folder in (*mine, model):
        shutil.rmtree(folder)
    shards = out.parent / f".{out.name}.fgbg" / "shards"
    harmed = next(shards.glob("train-00001-of-00002.*.parquet"))
    whole = harmed.read_bytes()
    harmed.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = fgbg("build", "--finish", out, code=1)
    assert "1 shard is missing or damaged: train-00001-of-00002.\n" in refused.stderr
    harmed.write_bytes(whole)
    refused = fgbg("build", "--finish", out, "--size", "96", "--shard-range", "1/2", code=2)
    assert "--finish takes OUT alone, without --size, --shard-range." in refused.stderr
    told = json.loads(fgbg("finish", out, "--json").stdout)
    assert (told["finished"], told["records"]) == (True, 120)
    assert json.loads(fgbg("build", "--finish", out, "--json").stdout)["finished"] is True
    for path in built.glob("data/*"):  # the recipe in their metadata names another model folder
        assert pq.read_table(out / "data" / path.name).equals(pq.read_table(path))
    assert [path.name for path in tmp_path.iterdir()] == [built.name]


@pytest.mark.parametrize("killed", [False, True])
def test_two_builds_share_the_work_and_one_does_not_need_the_other(
    sources, undisturbed, tmp_path, killed
):
    """The first is stopped amid its work, most likely with a shard claimed."""
    out = tmp_path / "set"
    first = start("build", *sources, out, *SMALL)
    assert wait_until(first, lambda: len(commits(out)) >= 2), first.communicate()
    first.send_signal(signal.SIGSTOP)
    assert not out.exists()
    second = start("build", *sources, out, *SMALL)
    assert wait_until(second, lambda: out.exists() or len(commits(out)) >= 19), second.communicate()
    first.send_signal(signal.SIGKILL if killed else signal.SIGCONT)
    for process in (second, first):
        stdout, stderr = process.communicate(timeout=HANG_S)
        if not (killed and process is first):
            assert process.returncode == 0, stderr
            assert "120 records" in stdout
    assert files_of(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_slurm_array_builds_one_set(sources, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "set"
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "5")
    first = fgbg("build", *sources, out, *SMALL)
    assert "Task of a SLURM array: makes part 1/2 of the shards" in first.stderr
    assert 0 < len(commits(out)) < 20
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "6")
    fgbg("build", *sources, out, *SMALL)
    assert files_of(out) == undisturbed
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "9")
    refused = fgbg("build", *sources, tmp_path / "other", *SMALL, code=2)
    assert "say its part with --shard-range i/n" in refused.stderr
