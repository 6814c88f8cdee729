"""Run the command as a user does, in a process of its own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-c", "from builder.cli import main; main(prog_name='fgbg')"]

# 4 foregrounds x 5 backgrounds x 2 flips x 3 places = 120 records of 64 px
OPTIONS = (
    *("--placements", "3", "--size", "64", "--foreground-size", "32", "--holdout", "0.3"),
    *("--depth-input", "64", "--shard-records", "40", "--workers", "1"),
)


def fgbg(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `fgbg` and check its exit code."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def files_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder by its path inside."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
