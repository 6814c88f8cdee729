"""Whatever kills a build, resuming it ends in the files of an undisturbed build."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.e2e.running import (
    OPTIONS,
    await_end,
    commits,
    fgbg,
    files_of,
    linger,
    processes_of,
    start,
    wait_until,
)
from tests.limits import HANG_S


def test_ten_kills_at_random_moments_change_no_byte(sources, tiny_model, tmp_path):
    """SIGKILL; the moments are spread from the first file to the last."""
    options = (*OPTIONS, "--placements", "6", "--shard-records", "3", "--depth-model", tiny_model)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed, out = tmp_path / "a" / "set", tmp_path / "b" / "set"
    fgbg("build", *sources, undisturbed, *options)
    shards = len(list((undisturbed / "data").iterdir()))  # about 80: each kill leaves some to do
    rng, kills, partial = random.Random(3), 0, 0
    work = out.parent / f".{out.name}.fgbg"
    while kills < 10:
        held = commits(out)
        process = start("build", *sources, out, *options)
        goal = len(held) + rng.randint(0, 2)
        wait_until(process, lambda goal=goal: work.exists() and len(commits(out)) >= goal)
        linger(process, rng.random() * 0.1)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        assert held <= commits(out)
        assert not out.exists(), "the build ended before it could be disturbed"
        partial += 0 < len(commits(out)) < shards
    assert partial >= 5
    fgbg("build", *sources, out, *options)
    assert files_of(out) == files_of(undisturbed)
    assert [p.name for p in out.parent.iterdir()] == ["set"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_a_build_and_workers_resume(sources, tiny_model, tmp_path, number):
    out = tmp_path / "set"
    options = (*OPTIONS, "--depth-model", tiny_model, "--shard-records", "6", "--workers", "2")
    process = start("build", *sources, out, *options)
    assert wait_until(process, lambda: len(commits(out)) >= 2), process.communicate()
    assert len(processes_of(process.pid)) >= 3  # the build and two workers
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=HANG_S)
    word, code = {
        signal.SIGKILL: ("", -signal.SIGKILL),
        signal.SIGTERM: ("terminated", 143),
        signal.SIGINT: ("interrupted", 130),
    }[number]
    assert process.returncode == code
    if word:
        last = stderr.splitlines()[-1]
        assert last == f"Error: {word}. Finished shards are kept; the same command resumes."
    await_end(process.pid)
    done = len(commits(out))
    state = json.loads(fgbg("status", out, "--json").stdout)
    assert state["finished"] is False
    assert sum(split["shards_done"] for split in state["splits"].values()) == done
    fgbg("build", *sources, out, *options)
    assert json.loads(fgbg("status", out, "--json").stdout)["records_done"] == 120


def test_damaged_or_foreign_shards_of_an_interrupted_build_are_made_again(
    sources, tiny_model, tmp_path
):
    options = (*OPTIONS, "--depth-model", tiny_model)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed, out = tmp_path / "a" / "set", tmp_path / "b" / "set"
    fgbg("build", *sources, undisturbed, *options)
    process = start("build", *sources, out, *options, "--shard-records", "40")
    assert wait_until(process, lambda: len(commits(out)) >= 3)
    process.kill()
    process.communicate()
    shards = out.parent / f".{out.name}.fgbg" / "shards"
    done = sorted(shards.glob("*.parquet"))
    assert len(done) >= 3
    flipped = bytearray(done[0].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    done[0].write_bytes(flipped)
    done[1].write_bytes(done[1].read_bytes()[:-100])
    (shards / ".train-00000-of-00002.parquet.1.tmp").write_bytes(b"left behind")
    fgbg("build", *sources, out, *options)
    assert files_of(out) == files_of(undisturbed)


def test_an_interrupted_build_refuses_another_recipe(sources, tiny_model, tmp_path):
    out = tmp_path / "set"
    options = (*OPTIONS, "--depth-model", tiny_model)
    process = start("build", *sources, out, *options)
    assert wait_until(process, lambda: len(commits(out)) >= 1)
    process.kill()
    process.communicate()
    refused = fgbg("build", *sources, out, *options, "--size", "96", code=2)
    assert "size is 64, asked for is 96" in refused.stderr
    assert not out.exists()


def test_a_worker_that_is_killed_is_replaced(sources, tiny_model, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    undisturbed, out = tmp_path / "a" / "set", tmp_path / "b" / "set"
    options = (*OPTIONS, "--depth-model", tiny_model, "--shard-records", "6", "--workers", "2")
    fgbg("build", *sources, undisturbed, *options)
    process = start("build", *sources, out, *options)
    assert wait_until(process, lambda: len(commits(out)) >= 2)
    workers = [
        pid
        for pid in processes_of(process.pid)
        if b"builder.build.local" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(workers[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, stderr
    assert files_of(out) == files_of(undisturbed)


def writer_of(shard: str, session: int) -> int | None:
    """Return the process of a session that is writing a shard."""
    for pid in processes_of(session):
        with contextlib.suppress(OSError):  # it has ended, or closed the file
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                if f"/.{shard}.parquet." in str(descriptor.readlink()):
                    return pid
    return None


def test_a_shard_on_which_three_workers_died_is_told_and_the_others_are_made(sources, tmp_path):
    out, shard = tmp_path / "set", "train-00000-of-00003"
    options = (*OPTIONS, "--placements", "160", "--shard-records", "1000", "--depth-model", "none")
    process = start("build", *sources, out, *options, "--workers", "2")
    victim = None
    for _ in range(3):
        found: list[int] = []

        def another(found=found, victim=victim) -> bool:
            pid = writer_of(shard, process.pid)
            if pid is None or pid == victim:
                return False
            found.append(pid)
            return True

        assert wait_until(process, another), process.communicate()
        victim = found[0]
        os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    assert f"1 shard failed, 6 finished and kept:\n  {shard}: its process died 3 times" in stderr
    fgbg("build", *sources, out, *options)
    assert json.loads(fgbg("status", out, "--json").stdout)["finished"] is True
