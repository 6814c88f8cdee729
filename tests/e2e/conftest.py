"""One small build that many tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hub import TOKEN, Hub, serve
from tests.e2e.running import OPTIONS, fgbg
from tests.pictures import blob, measured_floors


@pytest.fixture(scope="session")
def built(
    sources: tuple[Path, Path], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """120 records of 64 px with depth, built by the command; not to be changed."""
    out = tmp_path_factory.mktemp("built") / "blobs"
    fgbg("build", *sources, out, *OPTIONS, "--depth-model", tiny_model)
    return out


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub on loopback that this process and those it starts are logged in to."""
    import datasets
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with serve(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        constants = huggingface_hub.constants
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.endpoint)
        yield server


@pytest.fixture(scope="session")
def floors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five cut-outs of two classes, one of which hangs, and four floors with measured depth."""
    root = tmp_path_factory.mktemp("floors")
    for i, name in enumerate(("round/a", "round/b", "tall/c", "tall/d", "tall/lamp")):
        path = root / "fg" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blob(i, 50 if name < "tall" else 30, 50 if name < "tall" else 80).save(path)
    (root / "fg" / "credits.csv").write_text(
        "file,author,license,url,stance,height_m\n"
        "tall/lamp.png,Ann,CC0-1.0,,free,\n"
        "tall/c.png,Ann,CC0-1.0,,ground,1.2\n"
    )
    measured_floors(root / "bg", 4)
    return root / "fg", root / "bg"
