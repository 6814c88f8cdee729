"""Several builds of one set at once share the work, and none spoils what another made."""

from __future__ import annotations

import json
import shutil
import signal

import pyarrow.parquet as pq
import pytest

from fgbg_dataset import FgbgDataset
from tests.begun import begin
from tests.e2e.running import OPTIONS, commits, fgbg, files_of, start, wait_until
from tests.limits import HANG_S

SMALL = (*OPTIONS, "--shard-records", "6", "--depth-model", "none")


@pytest.fixture(scope="module")
def undisturbed(sources, tmp_path_factory):
    """The files of 120 records in 20 shards without depth."""
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    fgbg("build", *sources, out, *SMALL)
    return files_of(out)


def test_finish_needs_neither_sources_nor_model_and_checks_every_shard(
    sources, tiny_model, built, tmp_path
):
    mine, model = [tmp_path / "fg", tmp_path / "bg"], tmp_path / "model"
    for copy, original in zip((*mine, model), (*sources, tiny_model), strict=True):
        shutil.copytree(original, copy)
    out = tmp_path / built.name
    recipe = {"placements": 3, "size": 64, "foreground_size": 32, "holdout": 0.3}
    dataset = FgbgDataset(*mine, **recipe, depth_input=64, shard_records=40, depth_model=str(model))
    begin(dataset, out, shards=3)
    refused = fgbg("finish", out, code=1)
    assert f"{out} cannot be finished: 2 shards are missing or damaged: " in refused.stderr
    shards = begin(dataset, out, shards=5).shards
    assert not out.exists()
    for folder in (*mine, model):
        shutil.rmtree(folder)
    harmed = next(shards.glob("train-00001-of-00002.*.parquet"))
    whole = harmed.read_bytes()
    harmed.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused = fgbg("build", "--finish", out, code=1)
    assert "1 shard is missing or damaged: train-00001-of-00002.\n" in refused.stderr
    harmed.write_bytes(whole)
    refused = fgbg("build", "--finish", out, "--size", "96", code=2)
    assert "--finish takes OUT alone, without --size." in refused.stderr
    told = json.loads(fgbg("build", "--finish", out, "--json").stdout)
    assert (told["finished"], told["records"]) == (True, 120)
    assert json.loads(fgbg("finish", out, "--json").stdout)["finished"] is True
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


def test_the_tasks_of_a_job_array_run_the_plain_command(
    sources, undisturbed, tmp_path, monkeypatch
):
    out = tmp_path / "set"
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    tasks = []
    for task in (5, 6, 7):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        tasks.append(start("build", *sources, out, *SMALL))
    for process in tasks:
        stdout, stderr = process.communicate(timeout=HANG_S)
        assert process.returncode == 0, stderr
        assert "120 records" in stdout
    assert files_of(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
