"""A network for cut-outs that is named by Hub id is downloaded, pinned and credited."""

from __future__ import annotations

import csv

from tests.e2e.hub import serve
from tests.e2e.running import fgbg
from tests.networks import scene, segformer

OLD = "a" * 40


def test_a_network_of_the_hub_is_downloaded_pinned_and_credited(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    scene(0)[0].save(photos / "photo.png")
    folder = segformer(tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle nobody asked for")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with serve(tmp_path / "hub") as hub:
        hub.put_folder("ann/cutter", folder, "models", OLD)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        command = ("cutout", photos, tmp_path / "out", "--how")
        fgbg(*command, "ann/cutter")
        assert f"/ann/cutter/resolve/{OLD}/model.safetensors" in hub.paths
        assert not any(path.endswith(".bin") for path in hub.paths)
        missing = fgbg(*command, "ann/cutter", "--revision", "c" * 40, code=2)
        assert f"'ann/cutter' has no revision '{'c' * 40}' on the Hub" in missing.stderr
        unknown = fgbg(*command, "ann/other", code=2)
        assert "is neither a folder here nor on the Hub" in unknown.stderr
    with (tmp_path / "out" / "credits.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["weights"] == f"ann/cutter@{OLD}"
    assert row["tool"].endswith(f" ann/cutter@{OLD}")
    assert row["weights_license"] == "apache-2.0"
    assert row["category"] == "kite"
    # The server is gone; a pinned revision needs it no more, and what is done is kept.
    kept = fgbg(*command, "ann/cutter", "--revision", OLD, "--json")
    assert '"kept": [\n' in kept.stdout or '"kept": ["photo.png"]' in kept.stdout
