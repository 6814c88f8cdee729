"""SIGKILL, SIGTERM and Ctrl-C at random moments of builds of every kind change no byte.

The long run (`make test-long`) prints how many signals of each kind it sent.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.running import OPTIONS, await_end, commits, fgbg, files_of, linger, start, wait_until
from tests.limits import HANG_S

# 240 records in about 80 shards, so that every kill leaves some to do
SMALL = (*OPTIONS, "--placements", "6", "--shard-records", "3", "--depth-model", "none")
KINDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "one process": ((),),
    "two workers": (("--workers", "2"),),
    "two builds": ((), ()),
    "two builds of two workers": (("--workers", "2"), ("--workers", "2")),
}
WORDS = {signal.SIGTERM: ("terminated", 143), signal.SIGINT: ("interrupted", 130)}


def at_work(process: subprocess.Popen[str], out: Path) -> bool:
    """Whether a build has entered the work folder, from where on it answers signals."""
    for path in (out.parent / f".{out.name}.fgbg" / "owners").glob("[!.]*"):
        try:
            if json.loads(path.read_text())["pid"] == process.pid:
                return True
        except (OSError, ValueError):  # just deleted
            continue
    return False


def assert_told(number: signal.Signals, returncode: int, stderr: str) -> None:
    """A build that a signal has ended says so, last of all."""
    word, code = WORDS[number]
    assert returncode == code, stderr
    last = f"Error: {word}. Finished shards are kept; the same command resumes."
    assert stderr.splitlines()[-1] == last


def disturb(
    kind: str, number: signal.Signals, rng: random.Random, arguments: tuple[Any, ...], out: Path
) -> int:
    """Run builds of a kind, send one or all of them a signal amid their work; return how many."""
    builds = [start("build", *arguments, out, *SMALL, *more) for more in KINDS[kind]]
    victims = builds if rng.random() < 0.5 else [rng.choice(builds)]
    goal = len(commits(out)) + rng.randint(0, 3)
    for victim in victims:
        wait_until(victim, lambda victim=victim: at_work(victim, out))
    wait_until(victims[0], lambda: len(commits(out)) >= goal)
    linger(victims[0], 0.1 * rng.random())
    hit = [victim for victim in victims if victim.poll() is None]
    for victim in hit:
        victim.send_signal(number)
    sent = 0
    for build in builds:
        stdout, stderr = build.communicate(timeout=HANG_S)
        await_end(build.pid)
        if build not in hit or stdout:  # it went on alone, or had told its result already
            allowed = (0, -number) if build in hit else (0,)  # Python was shutting down
            assert build.returncode in allowed, stderr
            continue
        sent += 1
        if number == signal.SIGKILL:
            assert build.returncode == -signal.SIGKILL
        else:
            assert_told(number, build.returncode, stderr)
    return sent


def kill_and_compare(
    kind: str, wanted: dict[signal.Signals, int], rng: random.Random, sources: Any, folder: Path
) -> Counter[str]:
    """Disturb builds until as many signals as wanted have hit; compare whatever gets complete."""
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    undisturbed, out = folder / "a" / "set", folder / "b" / "set"
    fgbg("build", *sources, undisturbed, *SMALL)
    expected, counts = files_of(undisturbed), Counter[str]()
    left = [number for number, count in wanted.items() for _ in range(count)]
    rng.shuffle(left)
    while left:
        held = commits(out)
        sent = disturb(kind, left[-1], rng, sources, out)
        counts[left[-1].name] += sent
        if sent:
            left.pop()
        if out.exists():
            assert files_of(out) == expected
            assert [path.name for path in out.parent.iterdir()] == ["set"]
            shutil.rmtree(out)
            counts["completed meanwhile"] += 1
        else:
            assert held <= commits(out)
    fgbg("build", *sources, out, *SMALL)
    assert files_of(out) == expected
    assert [path.name for path in out.parent.iterdir()] == ["set"]
    return counts


@pytest.mark.parametrize("kind", ["two builds", "two builds of two workers"])
def test_a_signal_of_each_sort_changes_no_byte(sources, tmp_path, kind):
    """Two each; one process and two workers are in test_resume.py."""
    wanted = {signal.SIGKILL: 1, signal.SIGTERM: 1, signal.SIGINT: 1}
    counts = kill_and_compare(kind, wanted, random.Random(5), sources, tmp_path)
    assert min(counts[number.name] for number in wanted) >= 1


# Sends a build a signal between the start of a worker process and what tells it its work.
AMID_A_START = """
import os, subprocess, sys, time
from builder.cli import main
number, *arguments = sys.argv[1:]
fork = subprocess._fork_exec
def fork_and_signal(*given):
    pid = fork(*given)
    os.kill(os.getpid(), int(number))
    for _ in range(100):  # Python looks for signals between its steps
        time.sleep(0)
    return pid
subprocess._fork_exec = fork_and_signal
main(arguments)
"""


@pytest.mark.parametrize("number", list(WORDS))
def test_a_signal_amid_the_start_of_a_worker_is_told_once(sources, tmp_path, number):
    arguments = ["build", *sources, tmp_path / "set", *SMALL, "--workers", "2"]
    program = [sys.executable, "-c", AMID_A_START, str(int(number)), *arguments]
    build = subprocess.run(program, capture_output=True, text=True, timeout=HANG_S)
    assert_told(number, build.returncode, build.stderr)
    assert build.stderr.count(WORDS[number][0]) == 1 and "Traceback" not in build.stderr
    fgbg(*arguments)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_signals_at_many_random_moments_change_no_byte(sources, tmp_path, kind, capsys):
    wanted = {signal.SIGKILL: 8, signal.SIGTERM: 4, signal.SIGINT: 4}
    counts = kill_and_compare(kind, wanted, random.Random(6), sources, tmp_path)
    assert sum(counts[number.name] for number in wanted) >= 16
    with capsys.disabled():
        told = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        print(f"\n{kind}: {told}")
