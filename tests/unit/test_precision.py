"""Precisions and backends: how much they differ, that they do what they say, what 'auto' picks."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import builder.depth.choice
import builder.depth.precision
from builder.build.options import BuildOptions
from builder.build.work import WorkFolder
from builder.depth import DepthEstimator, locate_model, precision_shifts
from builder.depth.backends import OpenVinoBackend, TorchBackend, openvino_has_bfloat16
from builder.depth.choice import pick_backend
from builder.depth.densedepth import DenseDepthConfig, DenseDepthForDepthEstimation
from builder.depth.densedepth.modeling_densedepth import DenseDepthUpStep
from builder.depth.densedepth.tapwise import TapwiseUpStep, use_tapwise
from builder.recipe import Recipe
from fgbg_dataset import DepthModelError, FgbgDataset, PinnedRecipe
from tests.limits import HANG_S

SIDE = 64
# Largest mean shift against float32 in torch, of the tiny random model; measured: 1e-7, 0.0016,
# 0.0031. Between two backends of one precision no more than that.
TOLERANCES = {"float32": 1e-5, "mixed": 0.004, "bfloat16": 0.008}
BFLOAT16 = openvino_has_bfloat16()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)


def located(folder, precision="float32"):
    return locate_model(Recipe(depth_model=str(folder), depth_input=SIDE, precision=precision))


def estimator(folder, precision="float32", backend="torch", batch_size=4):
    recipe, model = located(folder, precision)
    return DepthEstimator(model, recipe, device="cpu", backend=backend, batch_size=batch_size)


def mean_shift(one, other):
    return np.abs(one.astype(float) / other - 1).mean()


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_precisions_and_backends_agree(tiny_model, images, precision, backend):
    if backend == "openvino" and precision != "float32" and not BFLOAT16:
        pytest.skip("OpenVINO has no bfloat16 on this processor")
    exact = estimator(tiny_model)(images)
    run = estimator(tiny_model, precision, backend)
    assert run.backend == backend
    depth = run(images)
    assert exact.std() > 50, "the same depth everywhere: this would compare nothing"
    assert mean_shift(depth, exact) < TOLERANCES[precision]
    assert mean_shift(depth, estimator(tiny_model, precision)(images)) < TOLERANCES[precision]
    if precision != "float32":
        assert (depth != exact).any()
    assert np.array_equal(run(images[:1])[0], depth[0]), "depth depends on its company"


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("leaky", [True, False])
def test_tapwise_up_steps_compute_the_same_with_fewer_products(align_corners, leaky):
    torch.manual_seed(0)
    config = DenseDepthConfig(
        growth_rate=4, block_config=(1, 1, 1, 1), num_init_features=8, decoder_channels=64,
        align_corners=align_corners, leaky_between_convs=leaky,
    )  # fmt: skip
    network = DenseDepthForDepthEstimation(config).eval()
    fast = copy.deepcopy(network)
    use_tapwise(fast, SIDE)
    kinds = [type(step) for step in fast.decoder.up_steps]
    assert kinds == [TapwiseUpStep, DenseDepthUpStep, DenseDepthUpStep, DenseDepthUpStep]
    with torch.inference_mode():
        taps = network.encoder(torch.rand(2, 3, SIDE, SIDE))
        for one, other in zip(network.decoder(taps), fast.decoder(taps), strict=True):
            assert torch.allclose(one, other, atol=1e-5 * float(one.abs().max()), rtol=0)


def parts(dtypes):
    """Number types by part of the network, from (module name, number type)."""
    found = {}
    for name, dtype in dtypes:
        found.setdefault(name.split(".")[0], set()).add(dtype)
    return found


@pytest.mark.parametrize(
    ("precision", "encoder", "decoder"),
    [
        ("float32", torch.float32, torch.float32),
        ("mixed", torch.float32, torch.bfloat16),
        ("bfloat16", torch.bfloat16, torch.bfloat16),
    ],
)
def test_torch_computes_in_the_precision_named(tiny_model, precision, encoder, decoder):
    network = DenseDepthForDepthEstimation.from_pretrained(tiny_model).eval()
    run, seen = TorchBackend(network, precision, torch.device("cpu")), []
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda _module, inputs, output, name=name: seen.extend(
                    [(name, inputs[0].dtype), (name, output.dtype)]
                )
            )
    with torch.inference_mode():
        outputs = run(torch.rand(1, 3, SIDE, SIDE))
    assert parts(seen) == {"encoder": {encoder}, "decoder": {decoder}}
    assert outputs.predicted_depth.dtype == torch.float32


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("float32", ["f32"]), ("mixed", ["f32", "bf16"]), ("bfloat16", ["bf16"])],
)
def test_openvino_computes_in_the_precision_named(tiny_model, precision, expected):
    if precision != "float32" and not BFLOAT16:
        pytest.skip("OpenVINO has no bfloat16 on this processor")
    network = DenseDepthForDepthEstimation.from_pretrained(tiny_model).eval()
    run = OpenVinoBackend(network, precision, 1, SIDE)
    found = []
    for stage in run._stages:
        compiled = stage.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        layers = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
        convolutions = [i for i in layers if str(i["layerType"].astype(str)) == "Convolution"]
        assert len(convolutions) > 4
        (kind,) = {i["runtimePrecision"].astype(str) for i in convolutions}
        found.append(str(kind))
    assert found == expected


SIGNALLED = """
import faulthandler, signal, sys
from builder.depth.backends import OpenVinoBackend
from builder.depth.densedepth import DenseDepthForDepthEstimation

faulthandler.enable()  # gives signal handlers a stack of their own
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
network = DenseDepthForDepthEstimation.from_pretrained(sys.argv[1]).eval()
kept = [OpenVinoBackend(network, "float32", 1, 64) for _ in range(2)]
while kept:
    kept.pop(0)
signal.raise_signal(signal.SIGUSR1)
print("handled", len(handled))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGUSR1")
def test_signals_are_handled_after_models_are_gone(tiny_model):
    command = [sys.executable, "-c", SIGNALLED, str(tiny_model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stdout) == (0, "handled 1\n"), done.stderr


def with_steep_head(folder, target, gain):
    """A copy of a model whose head amplifies what its features differ by."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    weights["head.weight"] *= gain
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


def test_auto_takes_the_fastest_that_shifts_too_little_to_matter(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("builder.depth.backends.has_fast_bfloat16", lambda device: True)
    shifts = precision_shifts(located(tiny_model)[1], located(tiny_model)[0], device="cpu")
    assert list(shifts) == ["bfloat16", "mixed"]
    assert 0 < shifts["mixed"] < shifts["bfloat16"] < 0.005
    assert located(tiny_model, "auto")[0].precision == "bfloat16"

    steep = with_steep_head(tiny_model, tmp_path / "steep", 60)
    shifts = precision_shifts(located(steep)[1], located(steep)[0], device="cpu")
    assert min(shifts.values()) > 0.005
    assert located(steep, "auto")[0].precision == "float32"

    for measured, expected in (
        ({"bfloat16": 0.006, "mixed": 0.004}, "mixed"),
        ({"bfloat16": float("nan")}, "float32"),
    ):
        monkeypatch.setattr(builder.depth.precision, "precision_shifts", lambda *_, m=measured: m)
        assert located(tiny_model, "auto")[0].precision == expected


def test_auto_measures_nothing_where_bfloat16_is_not_faster(tiny_model, monkeypatch):
    monkeypatch.setattr("builder.depth.backends.has_fast_bfloat16", lambda device: False)
    monkeypatch.setattr(
        builder.depth.precision, "precision_shifts", lambda *_: pytest.fail("measured")
    )
    assert located(tiny_model, "auto")[0].precision == "float32"
    recipe = Recipe(depth_model="none", precision="auto")
    assert locate_model(recipe)[0].precision == "float32"


def test_backend_that_can_not_be_used_is_refused_with_the_next_step(monkeypatch):
    assert pick_backend("auto", "densedepth", "float32", "cpu") == "openvino"
    assert pick_backend("torch", "densedepth", "float32", "cpu") == "torch"
    for arguments, reason in (
        (("dpt", "float32", "cpu"), "runs DenseDepth only, not 'dpt'; use --backend torch"),
        (("densedepth", "float32", "cuda"), "not on 'cuda'; use --device cpu or --backend torch"),
    ):
        assert pick_backend("auto", *arguments) == "torch"
        with pytest.raises(DepthModelError, match=reason):
            pick_backend("openvino", *arguments)
    monkeypatch.setattr("builder.depth.backends.openvino_has_bfloat16", lambda: False)
    assert pick_backend("auto", "densedepth", "float32", "cpu") == "openvino"
    assert pick_backend("auto", "densedepth", "mixed", "cpu") == "torch"
    with pytest.raises(DepthModelError, match="no bfloat16 on this processor"):
        pick_backend("openvino", "densedepth", "bfloat16", "cpu")
    monkeypatch.setattr(builder.depth.choice, "find_spec", lambda name: None)
    assert pick_backend("auto", "densedepth", "float32", "cpu") == "torch"
    with pytest.raises(DepthModelError, match=r"pip install fgbg-dataset\[openvino\]"):
        pick_backend("openvino", "densedepth", "float32", "cpu")


def dataset(sources, model, **fields):
    size = {"placements": 1, "size": SIDE, "foreground_size": 32, "depth_input": SIDE}
    return FgbgDataset(*sources, depth_model=str(model), shard_records=10, **size, **fields)


def test_recipe_holds_the_precision_and_workers_change_no_byte(
    sources, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr("builder.depth.backends.has_fast_bfloat16", lambda device: True)
    contents = []
    for workers in (1, 2):
        out = tmp_path / str(workers)
        made = dataset(sources, tiny_model, precision="auto", holdout=0.0)
        options = BuildOptions(progress=False, backend="openvino" if BFLOAT16 else "torch")
        made.download_and_prepare(out, file_format="parquet", num_proc=workers, options=options)
        contents.append({p.name: p.read_bytes() for p in (out / "data").iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4
    text = (out / "recipe.json").read_text()
    assert json.loads(text)["recipe"]["precision"] == "bfloat16"
    pinned = PinnedRecipe.from_json(text)
    slower = replace(pinned, recipe=replace(pinned.recipe, precision="float32"))
    assert slower.fingerprint != pinned.fingerprint
    assert pinned.differences(slower) == ["precision is 'bfloat16', asked for is 'float32'"]


def test_auto_stays_what_it_was_when_a_build_is_resumed_elsewhere(
    sources, tiny_model, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    begun = dataset(sources, tiny_model, precision="mixed").prepare(out)
    work = WorkFolder(out)
    with work.entered(begun.pinned.fingerprint, 60) as leases:
        work.begin(begun, leases)
    monkeypatch.setattr("builder.depth.backends.has_fast_bfloat16", lambda device: False)
    resumed = dataset(sources, tiny_model, precision="auto").prepare(out)
    assert resumed.pinned.fingerprint == begun.pinned.fingerprint
    elsewhere = dataset(sources, tiny_model, precision="auto").prepare(tmp_path / "other")
    assert elsewhere.pinned.recipe.precision == "float32"
