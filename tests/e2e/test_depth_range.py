"""A model that says more than 16 bits hold: unknown there, and said; old sets stay as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset

from builder.depth.densedepth import DenseDepthForDepthEstimation, DenseDepthImageProcessor
from builder.layout import read_recipe
from builder.pinned import PinnedRecipe
from tests.e2e.running import OPTIONS, fgbg
from tests.pictures import scene


@pytest.fixture(scope="module")
def outdoor_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DenseDepth of up to 80 m that puts some of every picture beyond 65.535 m."""
    folder = tmp_path_factory.mktemp("outdoor") / "model"
    network = DenseDepthForDepthEstimation.from_pretrained(tiny_model)
    network.config.max_depth = 80.0
    with torch.no_grad():
        network.head.bias.fill_(1.25)
    network.save_pretrained(folder)
    DenseDepthImageProcessor.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def depths(out: Path) -> np.ndarray:
    return np.stack([np.asarray(depth) for depth in load_dataset(str(out), split="all")["depth"]])


def test_beyond_16_bits_is_unknown_and_an_old_set_is_made_and_extended_as_it_was(
    sources, outdoor_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    new, old = tmp_path / "new", tmp_path / "old"
    options = (*OPTIONS, "--placements", "1", "--depth-model", outdoor_model)
    done = fgbg("build", *sources, new, *options)
    assert "may say more than 65.535 m" in done.stderr
    assert "Depth is unknown (0) in " in done.stdout
    now = depths(new)
    assert 0 < (now == 0).mean() < 1
    card = (new / "README.md").read_text()
    assert "what lies beyond 65535 mm, the most that 16 bits hold, is unknown" in card
    assert "Depth is unknown (0) in " in fgbg("verify", new, "--all").stdout

    # As version 0.1.0 wrote it, without a word of what lies beyond.
    pinned = read_recipe(new)
    assert pinned.depth is not None and pinned.depth.beyond == "unknown"
    before = replace(pinned, depth=replace(pinned.depth, beyond="far"))
    content = json.loads(before.to_json())
    content["depth"].pop("beyond", None)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(content))
    assert PinnedRecipe.from_json(recipe.read_text()).fingerprint == before.fingerprint
    done = fgbg("build", *sources, old, "--recipe", recipe, "--workers", "1")
    assert "65.535 m" not in done.stderr
    assert read_recipe(old).fingerprint == before.fingerprint != pinned.fingerprint
    assert np.array_equal(depths(old), np.where(now == 0, 65535, now))
    assert " to 65535 mm" in (old / "README.md").read_text()

    more = tmp_path / "more"
    more.mkdir()
    scene(77, 90, 90).save(more / "fresh.jpg")
    fgbg("extend", sources[0], more, old, "--workers", "1", "-q")
    assert read_recipe(old).depth == before.depth
    assert (depths(old) > 0).all()
