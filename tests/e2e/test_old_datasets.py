"""Sets load with the `datasets` that people have installed, by the card and by file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG_S

LOAD = """
import glob, sys
from datasets import load_dataset

out, cache = sys.argv[1:]
for name in ("default", "foregrounds", "backgrounds", "preview"):
    loaded = load_dataset(out, name, cache_dir=cache)
    print(name, sum(split.num_rows for split in loaded.values()), flush=True)
    row = next(iter(loaded.values()))[0]
files = sorted(glob.glob(out + "/data/train-*"))
row = load_dataset("parquet", data_files=files, cache_dir=cache, split="train")[0]
print("file", len(row["bbox"]), row["mask"].size[0], flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "packages",
    [
        ("datasets==2.21.0", "pyarrow==16.1.0", "numpy<2"),
        ("datasets==3.6.0",),
        ("datasets==4.0.0",),
    ],
    ids=lambda packages: packages[0],
)
def test_an_earlier_datasets_loads_every_config(built: Path, tmp_path: Path, packages) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=HANG_S)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "pillow", *packages]
    subprocess.run(install, check=True, timeout=HANG_S)
    done = subprocess.run(
        [python, "-c", LOAD, str(built), str(tmp_path / "cache")],
        capture_output=True, text=True, timeout=HANG_S, env={"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "default 120", "foregrounds 4", "backgrounds 5", "preview 120", "file 4 64",
    ]  # fmt: skip
