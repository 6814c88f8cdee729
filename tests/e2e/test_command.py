"""The command where its surroundings are odd: streams closed, another encoding, no folder."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import COMMAND
from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]
TINY = (
    *("--placements", "1", "--size", "32", "--foreground-size", "16", "--no-flip"),
    *("--depth-model", "none", "--workers", "1"),
)


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, where `fgbg` is the command."""
    script = f'fgbg() {{ {shlex.join(COMMAND)} "$@"; }}; {line}'
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    return subprocess.run(["bash", "-c", script], capture_output=True, env=env, timeout=HANG_S)


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_neither_result_nor_exit_code(built, closed, sources, tmp_path):
    done = shell(f"fgbg verify {built} --sample 20 {closed}")
    assert done.returncode == 0
    assert (b"All is well." in done.stdout) == (">&- " not in closed)
    if closed == "2>&-":
        build = shlex.join(["build", *map(str, sources), str(tmp_path / "set"), *TINY])
        done = shell(f"fgbg {build} 2>&-")
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"20 records in " in done.stdout
        assert shell(f"fgbg verify {tmp_path}/none 2>&-").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_that_cannot_be_written_ends_no_build(sources, tmp_path):
    build = shlex.join(["build", *map(str, sources), str(tmp_path / "set"), *TINY])
    done = shell(f"fgbg {build} 2>/dev/full")
    assert (done.returncode, b"20 records in " in done.stdout) == (0, True)
    done = shell(f"fgbg verify {tmp_path}/set >/dev/full")
    assert (done.returncode, done.stderr.count(b"the result cannot be printed")) == (1, 1)


def test_a_name_the_terminal_cannot_say_does_not_end_a_finished_build(sources, tmp_path):
    out = tmp_path / "Ω 雪"
    line = shlex.join(["build", *map(str, sources), str(out), *TINY])
    done = shell(f"fgbg {line}", PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0)
    assert b"20 records in " in done.stdout
    assert rb"\u03a9 \u96ea/README.md" in done.stdout
    assert (out / "recipe.json").is_file()
    told = shell(f"fgbg status {shlex.quote(str(out))} --json", PYTHONIOENCODING="cp1252").stdout
    assert json.loads(told)["finished"] is True


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS keeps a deleted current folder")
def test_a_current_folder_that_is_gone_is_what_the_error_says(tmp_path):
    done = shell(f"mkdir {tmp_path}/here; cd {tmp_path}/here; rmdir {tmp_path}/here; fgbg status x")
    assert done.returncode == 1
    assert b"Error: the current folder is gone; change to one that exists" in done.stderr
