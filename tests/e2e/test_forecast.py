"""`fgbg estimate` says what a build takes; compared with what builds took."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path

import pytest

from tests.e2e.running import COMMAND, fgbg


def measured(out: Path, *arguments: str) -> tuple[float, float]:
    """Build; return the processor time of all its processes and the most they held at once."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [*COMMAND, "build", *arguments, "-q", str(out)]
    process = subprocess.Popen(command, start_new_session=True)
    most = 0
    while True:
        try:
            assert process.wait(timeout=0.05) == 0
            break
        except subprocess.TimeoutExpired:
            most = max(most, resident_bytes(process.pid))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, most


def resident_bytes(session: int) -> int:
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                pages = int((entry / "statm").read_text().split()[1])
                total += pages * resource.getpagesize()
        except (OSError, IndexError):  # it has ended
            continue
    return total


def compare(out: Path, *arguments: str) -> None:
    told = json.loads(fgbg("estimate", *arguments, "--json").stdout)
    cpu_seconds, memory_bytes = measured(out, *arguments)
    for name, found in (("cpu_seconds", cpu_seconds), ("memory_bytes", memory_bytes)):
        assert 1 / 1.5 < found / told[name] < 1.5, f"{name}: {told[name]} told, {found} found"


def test_time_and_memory_are_told_within_half(tmp_path):
    """Processor time, which another load on the machine leaves nearly alone."""
    compare(tmp_path / "set", "--demo", "--depth-model", "none", "--placements", "10",
            "--workers", "1")  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "arguments",
    [
        ("--depth-model", "none", "--placements", "40", "--shard-records", "500", "--workers", "2"),
        ("--depth-model", "none", "--placements", "10", "--size", "448", "--workers", "1"),
        ("--placements", "2", "--workers", "1"),
        ("--placements", "2", "--shard-records", "100", "--workers", "2"),
        ("--placements", "1", "--batch-size", "8", "--depth-input", "320", "--workers", "1"),
    ],
)
def test_time_and_memory_are_told_within_half_for_builds_of_many_kinds(tmp_path, arguments):
    compare(tmp_path / "set", "--demo", *arguments)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_records(tmp_path):
    """One thousand, ten thousand and a hundred thousand, in shards of a thousand."""
    most = []
    for placements in ("4", "35", "348"):  # 1152, 10,080 and 100,224
        arguments = ("--demo", "--depth-model", "none", "--size", "96", "--foreground-size", "48")
        options = ("--placements", placements, "--workers", "1")
        most.append(measured(tmp_path / placements, *arguments, *options)[1])
    assert max(most) < 1.1 * min(most), most
