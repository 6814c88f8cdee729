"""Run the command as a user does, in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import subprocess
import sys
from pathlib import Path

from tests.limits import HANG_S

COMMAND = [sys.executable, "-c", "from builder.cli import main; main(prog_name='fgbg')"]

SPLITS = {"train": 54, "unseen_background": 36, "unseen_foreground": 18, "unseen_both": 12}
# 4 foregrounds x 5 backgrounds x 2 flips x 3 places = 120 records of 64 px
OPTIONS = (
    *("--placements", "3", "--size", "64", "--foreground-size", "32", "--holdout", "0.3"),
    *("--depth-input", "64", "--shard-records", "40", "--workers", "1"),
)


def fgbg(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `fgbg` and check its exit code."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def files_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder by its path inside."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its children can be told from ours
    )


def wait_until(process: subprocess.Popen[str], condition) -> bool:
    """Wait until a condition holds; False when the process ended before."""
    while not condition():
        try:
            process.wait(timeout=0.01)
        except subprocess.TimeoutExpired:
            continue
        return bool(condition())
    return True


def linger(process: subprocess.Popen[str], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def processes_of(session: int) -> list[int]:
    """Return the living processes of a session, from /proc."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").glob("[0-9]*")):
        try:
            fields = stat_of(pid)
        except (OSError, IndexError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(pid)
    return found


def ended(pids: list[int]) -> bool:
    """Wait until processes have ended by themselves, without asking again and again."""
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        done = select.select([descriptor], [], [], HANG_S)[0]
        os.close(descriptor)
        if not done:
            return False
    return True


def await_end(session: int) -> None:
    """Wait until no process of a session is left."""
    pids = processes_of(session)
    assert ended(pids), f"of the processes {pids} one outlives its build"


def commits(out: Path) -> set[str]:
    return {p.name for p in (out.parent / f".{out.name}.fgbg" / "shards").glob("*.json")}


def written(path: Path) -> int:
    """When a file was written, in ns; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def is_newer(path: Path, than: int) -> bool:
    return written(path) > than
