"""What this process may use of its machine: cores, memory, GPUs."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

_CGROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def n_cores() -> int:
    """Return the processors this process may use: its affinity, cut to its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    return max(1, min(cores, round(cpu_quota() or cores)))


def available_bytes() -> int | None:
    """Return the memory that processes can still take here; None where it is not known."""
    words = _words(Path("/proc/meminfo"))
    found = [1024 * int(words[words.index("MemAvailable:") + 1])] if words else []
    return min(found + ([] if (room := memory_room()) is None else [room]), default=None)


def peak_bytes() -> int:
    """Return the most memory this process has held (resident), in bytes; 0 where not known."""
    # Not first by getrusage, whose peak on Linux is never below that of the process it came from.
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
            return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def cpu_quota(root: Path = _CGROUPS, own: Path = _OWN) -> float | None:
    """Return the processors that this process's cgroups allow; None where they set no bound."""
    found = []
    for folder in _cgroups(root, own, "cpu"):
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def memory_room(root: Path = _CGROUPS, own: Path = _OWN) -> int | None:
    """Return the bytes left below the bounds of this process's cgroups; None without a bound.

    Cached files count as used there though they make room when needed, so they are given back.
    """
    found = []
    for folder in _cgroups(root, own, "memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            words = _words(folder / limit) + _words(folder / used)
            if len(words) == 2 and all(word.isdecimal() for word in words):
                pairs = _words(folder / "memory.stat")
                statistics = dict(zip(pairs[::2], pairs[1::2], strict=False))
                found.append(max(0, int(words[0]) - int(words[1]) + int(statistics.get(cached, 0))))
    return min(found, default=None)


def _cgroups(root: Path, own: Path, controller: str) -> list[Path]:
    """Return the folders of this process's cgroup and those it lies in, version 2 or 1."""
    folders = []
    for line in _words(own):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        inner = top / path.lstrip("/")
        folders += [f for f in (inner, *inner.parents) if f == top or top in f.parents]
    return folders


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def gpu_of_worker(worker: int, visible: str | None, n_gpus: int) -> str:
    """Return what CUDA_VISIBLE_DEVICES is to be for a worker, counted from 0: one GPU each.

    Args:
        visible: its value here, a list of indexes or names; None where it is not set.
        n_gpus: the GPUs that CUDA counts here.
    """
    if visible is None:
        return str(worker % n_gpus)
    # CUDA stops at the first entry that it does not know, so n_gpus may be less.
    return visible.split(",")[worker % n_gpus].strip()


def workers_that_fit(wanted: int, room_bytes: int | None, need_bytes: int) -> int:
    """Return how many of some workers can run at once in some memory; at least one."""
    if room_bytes is None:
        return wanted
    return max(1, min(wanted, room_bytes // max(1, need_bytes)))
