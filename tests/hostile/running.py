"""Run the code in a process of its own, with little memory and time, so that a crash is seen."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from builder.sources import Kind
from tests.e2e.running import COMMAND

GIB = 2**30

_PREPARE = """
import faulthandler, json, resource, sys
faulthandler.enable()
from pathlib import Path
from builder.errors import FgbgError
from builder.recipe import Recipe
from builder.sources import prepare
folder, kind = Path(sys.argv[1]), sys.argv[2]
try:
    done = prepare(folder, kind, Recipe(size=32, foreground_size=16), skip_bad=True)
    result = {"used": [s.entry.file for s in done.sources], "refused": done.skipped}
except FgbgError as error:
    result = {"error": str(error)}
result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(json.dumps(result))
"""


def limited(
    command: list[str], *, memory: int = 4 * GIB, seconds: float = 120, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command that may not map more than `memory` bytes nor run longer than `seconds`."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=seconds,
        preexec_fn=limit,
        **options,
    )
    assert done.returncode >= 0, f"killed by signal {-done.returncode}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def prepared(folder: Path, kind: Kind, **limits: Any) -> dict[str, Any]:
    """Prepare a folder in a limited process: files used, files refused with why, peak memory."""
    done = limited([sys.executable, "-c", _PREPARE, str(folder), kind], **limits)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def fgbg(*arguments: object, code: int, **limits: Any) -> subprocess.CompletedProcess[str]:
    """Run `fgbg` in a limited process and check its exit code."""
    done = limited([*COMMAND, *map(str, arguments)], **limits)
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def assert_sentence(text: str) -> None:
    """Check that a text is fit for one line of a terminal."""
    assert text
    assert len(text) < 800
    assert text.isprintable(), repr(text)
