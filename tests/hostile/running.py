"""Run the code in a process of its own, with little memory and time, so that a crash is seen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from builder.sources.decode import Kind
from tests.e2e.running import COMMAND
from tests.limits import HANG_S

GIB = 2**30

# Peak memory of this process. Not ru_maxrss: that begins with the size of the process it was
# forked from.
PEAK = """
import re
from pathlib import Path
def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
"""

# In a process of its own: the one that runs the tests may have mapped more already.
_LIMIT = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.execv(sys.argv[2], sys.argv[2:])
"""

_PREPARE = f"""{PEAK}
import faulthandler, json, sys
faulthandler.enable()
from builder.errors import FgbgError
from builder.recipe import Recipe
from builder.sources.prepare import prepare
folder, kind = Path(sys.argv[1]), sys.argv[2]
try:
    done = prepare(folder, kind, Recipe(size=32, foreground_size=16), skip_bad=True)
    result = dict(used=[s.entry.file for s in done.sources], refused=done.skipped)
except FgbgError as error:
    result = dict(error=str(error))
print(json.dumps(dict(result, peak_mib=peak_mib())))
"""


def limited(
    command: list[str], *, memory: int = 4 * GIB, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command that may not map more than `memory` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMIT, str(memory), *command],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=HANG_S,
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


def table_rows(tokens: list[Any]) -> list[list[str]]:
    """The text of all table cells, row by row."""
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows and token.level > 3:
            kept = ("text", "code_inline", "text_special")
            rows[-1].append("".join(t.content for t in token.children if t.type in kept))
    return rows
