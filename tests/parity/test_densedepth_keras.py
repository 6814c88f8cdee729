"""DenseDepth against an independent Keras 3 network, stage by stage, weights copied by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from builder.depth.densedepth import DenseDepthConfig, DenseDepthForDepthEstimation
from builder.depth.densedepth.modeling_densedepth import HIDDEN_STATE_NAMES
from tests.parity.keras_network import (
    build_reference,
    load_keras,
    metres_in_centimetre_form,
    randomise,
    relative_error,
    run_reference,
    spread_inverse_depth,
)

RELATIVE_TOLERANCE = 1e-4  # float32, of the largest value of a stage; measured: 5e-6 and less
# 1 / y is steepest at y = 1, where it enlarges a relative error of y by max(y), about 30 here.
METRES_TOLERANCE = 1e-3  # measured: 1e-4 and less

# Our module path -> the Keras layer's name. We count from 0, and our block b is Keras' conv{b+2}.
LAYER_NAMES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"encoder\.stem\.conv", lambda _: "conv1_conv"),
    (r"encoder\.stem\.norm", lambda _: "conv1_bn"),
    (r"encoder\.norm", lambda _: "bn"),
    (r"encoder\.blocks\.(\d+)\.layers\.(\d+)\.norm1", lambda m: f"{_dense_layer(m)}_0_bn"),
    (r"encoder\.blocks\.(\d+)\.layers\.(\d+)\.conv1", lambda m: f"{_dense_layer(m)}_1_conv"),
    (r"encoder\.blocks\.(\d+)\.layers\.(\d+)\.norm2", lambda m: f"{_dense_layer(m)}_1_bn"),
    (r"encoder\.blocks\.(\d+)\.layers\.(\d+)\.conv2", lambda m: f"{_dense_layer(m)}_2_conv"),
    (r"encoder\.transitions\.(\d+)\.norm", lambda m: f"pool{int(m[1]) + 2}_bn"),
    (r"encoder\.transitions\.(\d+)\.conv", lambda m: f"pool{int(m[1]) + 2}_conv"),
    (r"decoder\.conv", lambda _: "conv2"),
    (r"decoder\.up_steps\.(\d+)\.conv_(a|b)", lambda m: f"up{int(m[1]) + 1}_conv{m[2].upper()}"),
    (r"head", lambda _: "conv3"),
)
PARAMETER_NAMES = {  # ours -> Keras', for a convolution and for a norm
    "weight": ("kernel", "gamma"),
    "bias": ("bias", "beta"),
    "running_mean": ("", "moving_mean"),
    "running_var": ("", "moving_variance"),
}
BLOCKS = {"DenseNet121": [6, 12, 24, 16], "DenseNet169": [6, 12, 32, 32]}


def _dense_layer(match: re.Match[str]) -> str:
    return f"conv{int(match[1]) + 2}_block{int(match[2]) + 1}"


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    return load_keras()


def copy_weights(reference: Any, model: DenseDepthForDepthEstimation) -> None:
    """Copy by name, strictly: every array of both networks is used exactly once."""
    arrays = {
        (layer.name, variable.name): variable.value.detach().numpy().copy()
        for layer in reference.layers
        for variable in layer.weights
    }
    state = {}
    for key in model.state_dict():
        module, _, parameter = key.rpartition(".")
        if parameter == "num_batches_tracked":
            state[key] = torch.tensor(0)
            continue
        matches = [
            name(match)
            for pattern, name in LAYER_NAMES
            if (match := re.fullmatch(pattern, module)) is not None
        ]
        assert len(matches) == 1, key
        is_norm = matches[0].endswith("bn")
        array = arrays.pop((matches[0], PARAMETER_NAMES[parameter][is_norm]))
        state[key] = torch.from_numpy(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array)
    assert arrays == {}, "Keras arrays that no layer of ours took"
    model.load_state_dict(state, strict=True)


def run_ours(model: DenseDepthForDepthEstimation, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every stage by name, and "metres"."""
    with torch.inference_mode():
        output = model(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), output_hidden_states=True
        )
    stages = zip(HIDDEN_STATE_NAMES, output.hidden_states, strict=True)
    return {
        **{name: stage.numpy() for name, stage in stages},
        "metres": output.predicted_depth.numpy(),
    }


@pytest.mark.parametrize(
    ("encoder", "size", "width", "leaky", "aligned"),
    [
        pytest.param("DenseNet121", (64, 96), 512, False, True, id="121-half-plain-aligned"),
        pytest.param("DenseNet121", (64, 96), 1024, True, False, id="121-full-leaky-half-pixel"),
        pytest.param("DenseNet169", (64, 64), 1664, False, True, id="169-full-as-published"),
    ],
)
def test_every_stage_equals_the_keras_network(
    keras: ModuleType, encoder: str, size: tuple[int, int], width: int, leaky: bool, aligned: bool
) -> None:
    reference = build_reference(keras, encoder, size, width=width, leaky=leaky, aligned=aligned)
    randomise(reference, seed=7)
    images = np.random.default_rng(8).random((2, *size, 3), dtype=np.float32)
    spread_inverse_depth(reference, images)
    config = DenseDepthConfig(
        block_config=BLOCKS[encoder],
        decoder_channels=width,
        leaky_between_convs=leaky,
        align_corners=aligned,
    )
    model = DenseDepthForDepthEstimation(config).eval()
    copy_weights(reference, model)

    expected = dict(zip(HIDDEN_STATE_NAMES, run_reference(reference, images), strict=True))
    y = expected["inverse_depth"]
    assert y.min() < 0 < 1 < y.max(), "the inputs must exercise the guard and the clip"
    ours = run_ours(model, images)
    errors = {name: relative_error(ours[name], expected[name]) for name in expected}
    # In the order of the network, so that the first name is the layer that is wrong.
    assert [name for name, error in errors.items() if error > RELATIVE_TOLERANCE] == [], errors
    metres = metres_in_centimetre_form(y[:, 0])
    assert relative_error(ours["metres"], metres) < METRES_TOLERANCE
    own_metres = metres_in_centimetre_form(ours["inverse_depth"][:, 0])
    assert relative_error(ours["metres"], own_metres) < 1e-6

    # The comparison can see a wrong flavour: each one alone moves the result a hundred times more.
    for flip in ("leaky_between_convs", "align_corners"):
        for step in model.decoder.up_steps:
            setattr(step, flip, not getattr(config, flip))
        wrong = run_ours(model, images)["inverse_depth"]
        assert relative_error(wrong, y) > 100 * RELATIVE_TOLERANCE, flip
        for step in model.decoder.up_steps:
            setattr(step, flip, getattr(config, flip))
