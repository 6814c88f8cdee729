"""machine: cores, memory, GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from builder.build.machine import (
    available_bytes,
    cpu_quota,
    gpu_of_worker,
    memory_room,
    n_cores,
    peak_bytes,
    workers_that_fit,
)


def test_this_process_may_use_some_cores_and_memory() -> None:
    assert 1 <= n_cores() <= len(os.sched_getaffinity(0))
    available = available_bytes()
    assert available is not None
    assert 0 <= available < 2**50
    assert 2**20 < peak_bytes() < 2**40
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    try:
        assert n_cores() == 1
    finally:
        os.sched_setaffinity(0, everywhere)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_bounds_of_a_version_2_cgroup_and_those_around_it(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "own": "0::/slurm/job\n",
            "slurm/cpu.max": "300000 100000\n",
            "slurm/memory.max": "1000000\n",
            "slurm/memory.current": "900000\n",
            "slurm/memory.stat": "anon 100000\ninactive_file 500000\n",
            "slurm/job/cpu.max": "max 100000\n",
            "slurm/job/memory.max": "max\n",
            "slurm/job/memory.current": "900000\n",
        },
    )
    assert cpu_quota(root, root / "own") == 3.0
    assert memory_room(root, root / "own") == 600_000


def test_the_bounds_of_version_1_cgroups(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "own": "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n1:name=systemd:/x\n",
            "cpu/docker/a/cpu.cfs_quota_us": "150000\n",
            "cpu/docker/a/cpu.cfs_period_us": "100000\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
            "memory/docker/a/memory.limit_in_bytes": "2000\n",
            "memory/docker/a/memory.usage_in_bytes": "1500\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.usage_in_bytes": "5000\n",
        },
    )
    assert cpu_quota(root, root / "own") == 1.5
    assert memory_room(root, root / "own") == 500


def test_without_cgroups_there_is_no_bound(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "own") is None
    assert memory_room(tmp_path, tmp_path / "own") is None


def test_each_worker_gets_a_gpu_of_its_own_before_two_share_one() -> None:
    assert [gpu_of_worker(i, None, 3) for i in range(5)] == ["0", "1", "2", "0", "1"]
    assert [gpu_of_worker(i, "2,5", 2) for i in range(3)] == ["2", "5", "2"]
    assert gpu_of_worker(1, "GPU-1a, GPU-2b", 2) == "GPU-2b"


def test_no_more_workers_are_started_than_fit() -> None:
    assert workers_that_fit(8, None, 10**9) == 8
    assert workers_that_fit(8, 3 * 10**9, 10**9) == 3
    assert workers_that_fit(2, 3 * 10**9, 10**9) == 2
    assert workers_that_fit(8, 0, 10**9) == 1


def test_peak_memory_is_not_that_of_the_process_this_one_came_from() -> None:
    # `fgbg plan` once told the 1.5 GB of what had started it.
    child = "from builder.build.machine import peak_bytes; print(peak_bytes())"
    parent = (
        "import subprocess, sys\n"
        "large = bytes(range(256)) * 2_000_000\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, check=True
    )
    assert 2**20 < int(done.stdout) < 300_000_000
