"""estimator: a model that does not fit into memory gets smaller batches.

The networks are real ones that Transformers loads. Beyond some batch size they ask for more memory
than there is, and the library itself raises.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from transformers.modeling_outputs import DepthEstimatorOutput

from builder.build.options import BuildOptions
from builder.depth import DepthEstimator, locate_model
from builder.recipe import Recipe
from fgbg_dataset import DepthModelError, FgbgDataset, FgbgError
from tests.e2e.running import files_of
from tests.limits import HANG_S

SIDE = 32
_NOWHERE = 2**50  # bytes: more than a process can address

fits = {"batch": 1}  # the most pictures there is memory for
calls: list[int] = []  # pictures of each call of the network


class HungryConfig(hf.PretrainedConfig):
    model_type = "hungry"
    how = "allocator"


class HungryForDepthEstimation(hf.PreTrainedModel):
    config_class = HungryConfig

    def __init__(self, config: HungryConfig) -> None:
        super().__init__(config)
        self.conv = torch.nn.Conv2d(3, 1, 3, padding=1)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> DepthEstimatorOutput:
        calls.append(len(pixel_values))
        if len(pixel_values) > fits["batch"]:
            if self.config.how == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if self.config.how == "numpy":
                np.empty(_NOWHERE, np.uint8)
            torch.empty(_NOWHERE, dtype=torch.uint8)
        depth = self.conv(pixel_values)[:, 0].abs() + 0.5
        return DepthEstimatorOutput(predicted_depth=depth)


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    hf.AutoConfig.register("hungry", HungryConfig)
    hf.AutoModelForDepthEstimation.register(HungryConfig, HungryForDepthEstimation)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    calls.clear()
    yield
    fits["batch"] = 1


@pytest.fixture(params=["allocator", "cuda", "numpy"])
def hungry(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model that takes the memory it is short of in one of several ways."""
    torch.manual_seed(0)
    folder = tmp_path / "hungry"
    HungryForDepthEstimation(HungryConfig(how=request.param)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def estimator(folder: Path, batch_size: int) -> DepthEstimator:
    asked = Recipe(depth_model=str(folder), depth_kind="metric", depth_input=SIDE)
    recipe, model = locate_model(asked)
    assert model is not None
    return DepthEstimator(model, recipe, device="cpu", batch_size=batch_size)


def pictures(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def test_the_batch_halves_until_it_fits_and_stays_so(
    hungry: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fits["batch"] = 16
    expected = estimator(hungry, 16)(pictures(16))
    assert calls == [16]
    capfd.readouterr()
    calls.clear()
    fits["batch"] = 3
    estimate = estimator(hungry, 16)
    found = estimate(pictures(16))
    assert calls == [16, 8, 4] + [2] * 8
    np.testing.assert_allclose(found, expected, atol=1)
    told = capfd.readouterr().err.splitlines()
    assert [line.split(" fit into memory ")[1] for line in told] == [
        f"with {n} composites at a time; going on with {n // 2}. Begin so with --batch-size "
        f"{n // 2}."
        for n in (16, 8, 4)
    ]
    calls.clear()
    estimate(pictures(5))
    assert calls == [2, 2, 2]
    assert estimate.batch_size == 2
    assert capfd.readouterr().err == ""


def test_what_does_not_fit_alone_is_told_with_the_next_step(hungry: Path) -> None:
    fits["batch"] = 0
    with pytest.raises(DepthModelError) as caught:
        estimator(hungry, 4)(pictures(4))
    assert calls == [4, 2, 1]
    assert str(caught.value) == (
        f"depth model {str(hungry)!r} does not fit into memory at {SIDE}x{SIDE} px, even with "
        "--batch-size 1. Use fewer --workers, a smaller --depth-input or a smaller model."
    )


@pytest.mark.parametrize("hungry", ["allocator"], indirect=True)
def test_a_build_goes_on_with_smaller_batches_and_makes_the_same_records(
    hungry: Path, sources: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def build(name: str) -> Path:
        dataset = FgbgDataset(
            *sources,
            placements=1,
            size=SIDE,
            foreground_size=16,
            depth_model=str(hungry),
            depth_kind="metric",
            depth_input=SIDE,
            shard_records=15,
            holdout=0.0,
        )
        options = BuildOptions(progress=False, batch_size=8)
        out = tmp_path / name / "set"
        dataset.download_and_prepare(out, file_format="parquet", num_proc=1, options=options)
        return out

    fits["batch"] = 8
    plenty = build("plenty")
    fits["batch"] = 2
    calls.clear()
    scarce = build("scarce")
    assert calls[:3] == [8, 4, 2]
    assert set(calls[3:]) == {2}  # also in the shards that follow
    assert capfd.readouterr().err.count("does not fit into memory") == 2
    assert files_of(plenty / "data").keys() == files_of(scarce / "data").keys()
    columns = ["record_id", "fg_bg", "mask", "pixel_hash", "bbox"]
    for one in sorted((plenty / "data").iterdir()):
        other = scarce / "data" / one.name
        assert pq.read_table(one, columns=columns).equals(pq.read_table(other, columns=columns))
    # This network sums each pixel alone, so its depth is the same to the bit.
    assert files_of(plenty) == files_of(scarce)

    fits["batch"] = 0
    with pytest.raises(FgbgError, match="even with --batch-size 1"):
        build("none")


def test_other_failures_are_no_lack_of_memory(tiny_model: Path) -> None:
    recipe, model = locate_model(Recipe(depth_model=str(tiny_model), depth_input=64))
    assert model is not None
    estimate = DepthEstimator(model, recipe, device="cpu", backend="torch", batch_size=4)
    with pytest.raises(RuntimeError, match="number of dimensions"):
        estimate(np.zeros((2, 8), np.uint8))
    assert estimate.batch_size == 4


SCRIPT = """
import resource, sys
import numpy as np
from builder.depth import DepthEstimator, locate_model
from builder.recipe import Recipe

recipe, model = locate_model(Recipe(depth_model=sys.argv[1], depth_input=256))
images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
for backend in sys.argv[2:]:
    expected = DepthEstimator(model, recipe, device="cpu", backend=backend, batch_size=2)(images)
    with open("/proc/self/statm") as file:
        held_bytes = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held_bytes + 200 * 2**20, resource.RLIM_INFINITY))
    estimate = DepthEstimator(model, recipe, device="cpu", backend=backend, batch_size=128)
    found = estimate(images)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    difference = np.abs(found.astype(int) - expected).max()
    print(backend, estimate.batch_size, difference)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_a_process_at_its_limit_of_memory_goes_on_with_less(tiny_model: Path) -> None:
    """Both backends really run out: 200 MB are left, 128 pictures of 256 px want more."""
    backends = ["torch", *(["openvino"] if find_spec("openvino") else [])]
    command = [sys.executable, "-c", SCRIPT, str(tiny_model), *backends]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    for line, backend in zip(done.stdout.splitlines(), backends, strict=True):
        name, batch_size, difference = line.split()
        assert name == backend
        assert 1 <= int(batch_size) < 128
        assert int(difference) <= 2  # mm
    assert "does not fit into memory with 128 composites" in done.stderr
