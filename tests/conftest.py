"""What every test shares: a cache of its own, no network but loopback, tiny sources."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

# Read by the libraries when they are imported, so set before any test module is.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from hypothesis import HealthCheck, settings

from tests.pictures import blob, scene

# A shell's background jobs ignore Ctrl-C, and so would every process that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: object) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0])  # type: ignore[index]
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests reach loopback only, not {host}")
    _connect(self, address)  # type: ignore[arg-type]


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    socket.socket.connect = _loopback_only  # type: ignore[method-assign]
    yield
    socket.socket.connect = _connect  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of 4 foregrounds and 5 backgrounds; the foregrounds have credits."""
    root = tmp_path_factory.mktemp("sources")
    foregrounds, backgrounds = root / "fg", root / "bg"
    foregrounds.mkdir()
    backgrounds.mkdir()
    for i in range(4):
        blob(i, 60 + 10 * i, 90 - 10 * i).save(foregrounds / f"blob{i}.png")
    for i in range(5):
        scene(i, 100 + 40 * i, 120).save(backgrounds / f"scene{i}.jpg", quality=95)
    (foregrounds / "credits.csv").write_text(
        "file,author,license,url\n"
        + "".join(f"blob{i}.png,Ann,CC0-1.0,https://example.org/{i}\n" for i in range(3))
    )
    return foregrounds, backgrounds


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved DenseDepth with random seeded weights whose depth varies over the picture."""
    import torch

    from builder.depth.densedepth import (
        DenseDepthConfig,
        DenseDepthForDepthEstimation,
        DenseDepthImageProcessor,
    )

    torch.manual_seed(0)
    config = DenseDepthConfig(
        growth_rate=4,
        block_config=(1, 1, 1, 1),
        num_init_features=8,
        bn_size=2,
        decoder_channels=32,
    )
    model = DenseDepthForDepthEstimation(config)
    with torch.no_grad():  # around y = 4, that is 2.5 m, instead of around 0
        model.head.weight.mul_(4)
        model.head.bias.fill_(4)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model.save_pretrained(folder)
    DenseDepthImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
