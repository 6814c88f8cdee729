"""One small build that many tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.hub import TOKEN, Hub, serve
from tests.e2e.running import OPTIONS, fgbg


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
