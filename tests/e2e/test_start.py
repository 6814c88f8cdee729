"""Builds begun by scripts of every sort: workers never run the caller's own program again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder.build.leases import Leases
from builder.build.work import WorkFolder
from tests.e2e.running import OPTIONS, fgbg
from tests.limits import HANG_S

ROOT = str(Path(__file__).parents[2])

# As people paste it: no function, no `if __name__ == "__main__":`, several workers.
SCRIPT = """
import sys
from fgbg_dataset import BuildOptions, FgbgDataset
print("begun", flush=True)
dataset = FgbgDataset({foregrounds!r}, {backgrounds!r}, placements=1, size=48, foreground_size=24,
                      depth_model="none", shard_records=10, holdout=0.0)
dataset.download_and_prepare({out!r}, file_format="parquet", num_proc=2,
                             options=BuildOptions(progress=False))
print(dataset.as_dataset("train").num_rows)
"""


@pytest.mark.parametrize("how", ["file", "stdin", "-c", "cell"])
def test_a_script_without_a_guard_builds_once(sources, tmp_path, how):
    """It once hung: each spawned worker imported the script and waited for its own parent."""
    foregrounds, backgrounds = map(str, sources)
    text = SCRIPT.format(foregrounds=foregrounds, backgrounds=backgrounds, out=str(tmp_path / "o"))
    script, stdin = tmp_path / "script.py", None
    script.write_text(text)
    arguments: list[str] = [str(script)]
    if how == "stdin":
        arguments, stdin = ["-"], text
    elif how == "-c":
        arguments = ["-c", text]
    elif how == "cell":  # as a notebook runs one: in a main module that no file stands for
        cell = f"import sys; del sys.modules['__main__'].__spec__; exec({text!r}, {{}})"
        arguments = ["-c", cell]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT, "HF_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["begun", "40"]
    assert [path.name for path in tmp_path.glob(".*.fgbg")] == []


def test_modules_beside_the_working_folder_are_not_imported_by_workers(sources, tmp_path):
    (tmp_path / "queue.py").write_text("raise SystemExit('imported by mistake')")
    program = "from builder.cli import main; main()"
    words = [*map(str, sources), "set", *OPTIONS, "--depth-model", "none", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.remove(''); {program}", "build", *words],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.returncode == 0, done.stderr


def test_no_process_waits_for_one_that_started_it(sources, tmp_path):
    options = (*OPTIONS, "--depth-model", "none")
    work = WorkFolder(tmp_path / "set")
    work.path.mkdir()
    with Leases(work.path, "f" * 64):  # by this process, which starts the next
        refused = fgbg("build", *sources, work.out, *options, code=1)
    last = refused.stderr.splitlines()[-1]
    assert f"process {os.getpid()}, which started this one, is building {work.out}. " in last
    assert '`if __name__ == "__main__":`' in last
