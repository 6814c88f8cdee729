"""What gets installed is complete: the demo builds from the wheel alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_builds_from_the_installed_wheel(tmp_path):
    run = {"check": True, "capture_output": True, "text": True}
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels], cwd=ROOT, **run
    )
    (wheel,) = wheels.iterdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", site, wheel], **run)
    code = (
        "import builder, sys; sys.stderr.write(builder.__file__);"
        "from builder.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "build", "--demo", tmp_path / "out", "--placements", "1",
         "--no-flip", "--workers", "1", "--json"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, **run,
    )  # fmt: skip
    assert str(site) in done.stderr
    result = json.loads(done.stdout)
    assert result["records"] == 144
    card = (tmp_path / "out" / "README.md").read_text()
    assert "small demo model that comes with fgbg-dataset" in card
    assert "foregrounds; licenses: CC0-1.0 (12)" in card
    assert "backgrounds; licenses: CC0-1.0 (12)" in card
