"""One small build that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.running import OPTIONS, fgbg


@pytest.fixture(scope="session")
def built(
    sources: tuple[Path, Path], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """120 records of 64 px with depth, built by the command; not to be changed."""
    out = tmp_path_factory.mktemp("built") / "blobs"
    fgbg("build", *sources, out, *OPTIONS, "--depth-model", tiny_model)
    return out
