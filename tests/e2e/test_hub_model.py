"""A depth model named by Hub id is downloaded, pinned and recorded."""

from __future__ import annotations

import json
import shutil

import safetensors.torch

from tests.e2e.hub import serve
from tests.e2e.running import OPTIONS, fgbg

OLD, NEW = "a" * 40, "b" * 40


def test_hub_model_is_pinned_to_its_commit(sources, tiny_model, tmp_path, monkeypatch):
    older = tmp_path / "older"
    shutil.copytree(tiny_model, older)
    (older / "pytorch_model.bin").write_bytes(b"a pickle nobody asked for")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with serve(tmp_path / "hub") as hub:
        hub.put_folder("ann/depth", older, "models", OLD)
        hub.put_folder("ann/depth", tiny_model, "models", NEW)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        command = ("build", *sources, tmp_path / "out", *OPTIONS, "--placements", "1",
                   "--depth-model", "ann/depth")  # fmt: skip
        fgbg(*command, "--depth-revision", OLD)
        recipe = json.loads((tmp_path / "out" / "recipe.json").read_text())
        assert recipe["recipe"]["depth_revision"] == OLD
        assert recipe["depth"]["model"] == "ann/depth"
        assert f"**ann/depth** at revision `{OLD}`" in (tmp_path / "out" / "README.md").read_text()
        assert f"/ann/depth/resolve/{OLD}/model.safetensors" in hub.paths
        assert not any(path.endswith(".bin") for path in hub.paths)

        # Without a revision `main` is taken, and the commit it stood at is written down.
        fgbg(*command[:3], tmp_path / "new", *command[4:])
        recipe = json.loads((tmp_path / "new" / "recipe.json").read_text())
        assert recipe["recipe"]["depth_revision"] == NEW

        missing = fgbg(*command, "--depth-revision", "c" * 40, code=2)
        assert f"'ann/depth' has no revision '{'c' * 40}' on the Hub" in missing.stderr
        unknown = fgbg(*command[:-1], "ann/other", code=2)
        assert "is neither a folder here nor on the Hub" in unknown.stderr
        nonsense = fgbg(*command[:-1], "../x/y", code=2)
        assert "is neither a folder, a checkpoint file nor a Hub id" in nonsense.stderr
    # The server is gone; a pinned revision needs it no more.
    fgbg(*command[:3], tmp_path / "offline", *command[4:], "--depth-revision", OLD)


def test_models_that_are_not_safe_or_not_known_are_refused(sources, tiny_model, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused = fgbg("build", *sources, tmp_path / "out", "--depth-model", pickled, code=2)
    assert "has no .safetensors file. Pickled weights are never loaded" in refused.stderr

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    (other / "config.json").write_text('{"model_type": "bert"}')
    refused = fgbg("build", *sources, tmp_path / "out", "--depth-model", other, code=2)
    assert "is of type 'bert'" in refused.stderr

    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    (damaged / "model.safetensors").write_bytes(b"\xff" * 64)
    refused = fgbg("build", *sources, tmp_path / "out", *OPTIONS, "--depth-model", damaged, code=2)
    assert "model.safetensors cannot be loaded (" in refused.stderr
    assert "Traceback" not in refused.stderr

    lacking = tmp_path / "lacking"
    shutil.copytree(tiny_model, lacking)
    weights = safetensors.torch.load_file(lacking / "model.safetensors")
    del weights["head.weight"]
    safetensors.torch.save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    refused = fgbg("build", *sources, tmp_path / "out", *OPTIONS, "--depth-model", lacking, code=2)
    assert "lacks 1 weights, or has them in another shape: head.weight." in refused.stderr
    assert not (tmp_path / "out").exists()
