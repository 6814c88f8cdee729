"""A real S3 server (moto's) in a process of its own on loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BUCKET = "sets"
KEY, SECRET = "a-key", "a-secret-that-is-shown-nowhere"


@contextmanager
def serve() -> Iterator[str]:
    """Start a server on a port that the kernel chooses; give its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if match := re.search(r"Running on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError("".join(seen))
        # What it logs from here on is read by nobody, and must not fill the pipe.
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        process.stderr.close()
        try:
            yield match[1]
        finally:
            process.terminate()
            process.wait()
            drain.wait()
    finally:
        process.kill()
        process.wait()
