"""What the package brings along in builder/demo: small, safe, credited pictures and depth model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

DEMO = Path(__file__).parents[2] / "builder" / "demo"
MODEL = DEMO / "depth"


def test_folder_is_small_and_safe():
    names = {path.name for path in MODEL.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert (MODEL / "model.safetensors").stat().st_size <= 8_000_000
    assert "auto_map" not in json.loads((MODEL / "config.json").read_text())
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float16}
    assert all(torch.isfinite(tensor).all() for tensor in floats)


@pytest.mark.parametrize("folder", ["foregrounds", "backgrounds"])
def test_demo_sources_are_listed_and_credited(folder):
    with (DEMO / folder / "credits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "author", "license", "url"]
    assert {(row["author"], row["license"], row["url"]) for row in rows} == {
        ("fgbg-dataset", "CC0-1.0", "")
    }
    files = {path.name for path in (DEMO / folder).iterdir()} - {"credits.csv"}
    assert files == {row["file"] for row in rows}
    assert len(files) == 12
    for name in files:
        with Image.open(DEMO / folder / name) as picture:
            assert picture.mode == ("RGBA" if folder == "foregrounds" else "RGB")
            assert 160 <= max(picture.size) <= 384


def test_demo_sources_are_small():
    folders = [DEMO / "foregrounds", DEMO / "backgrounds"]
    assert sum(f.stat().st_size for folder in folders for f in folder.iterdir()) < 1_500_000
