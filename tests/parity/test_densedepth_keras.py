"""DenseDepth against an independent Keras 3 network, stage by stage, weights copied by name.

The reference takes its encoder from keras.applications and builds the decoder here, from the
paper; its up-sampling is a pair of matrices and shares nothing with torch's `interpolate`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from builder.densedepth import DenseDepthConfig, DenseDepthForDepthEstimation
from builder.densedepth.modeling_densedepth import HIDDEN_STATE_NAMES

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
    """Keras 3 on its torch backend; the backend is read from the environment at first import."""
    os.environ["KERAS_BACKEND"] = "torch"
    module: ModuleType = pytest.importorskip("keras", minversion="3")
    assert module.backend.backend() == "torch", "another test imported keras with another backend"
    return module


def upsampling_matrix(size: int, *, align_corners: bool) -> np.ndarray:
    """Linear interpolation from `size` to `2 * size` samples, as a (2 * size, size) matrix."""
    out = np.arange(2 * size)
    source = out * (size - 1) / (2 * size - 1) if align_corners else (out + 0.5) / 2 - 0.5
    source = source.clip(0, size - 1)
    low = np.floor(source).astype(int)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((2 * size, size))
    np.add.at(matrix, (out, low), 1 - (source - low))
    np.add.at(matrix, (out, high), source - low)
    return matrix.astype(np.float32)


def build_reference(
    keras: ModuleType,
    encoder: str,
    size: tuple[int, int],
    *,
    width: int,
    leaky: bool,
    aligned: bool,
) -> Any:
    """The whole network in Keras with one output per stage, in the order of HIDDEN_STATE_NAMES."""

    class DoubleSize(keras.layers.Layer):  # type: ignore[misc, name-defined]
        """Bilinear enlargement by two of (B, h, w, C), one matrix per axis."""

        def call(self, x: Any) -> Any:
            _, height, width, _ = x.shape
            rows = upsampling_matrix(height, align_corners=aligned)
            columns = upsampling_matrix(width, align_corners=aligned)
            return keras.ops.einsum("ih,jw,bhwc->bijc", rows, columns, x)

        def compute_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
            return (shape[0], 2 * shape[1], 2 * shape[2], shape[3])

    layers = keras.layers
    base = getattr(keras.applications, encoder)(
        weights=None, include_top=False, input_shape=(*size, 3)
    )
    names = ("conv1_relu", "pool1", "pool2_pool", "pool3_pool", "relu")
    taps = [base.get_layer(name).output for name in names]
    stages = [layers.Conv2D(width, 1, padding="same", name="conv2")(taps[-1])]
    for step, tap in enumerate(reversed(taps[:-1]), start=1):
        filters = width // 2**step
        x = layers.Concatenate()([DoubleSize()(stages[-1]), tap])
        x = layers.Conv2D(filters, 3, padding="same", name=f"up{step}_convA")(x)
        if leaky:
            x = layers.LeakyReLU(negative_slope=0.2)(x)
        x = layers.Conv2D(filters, 3, padding="same", name=f"up{step}_convB")(x)
        stages.append(layers.LeakyReLU(negative_slope=0.2)(x))
    stages.append(layers.Conv2D(1, 3, padding="same", name="conv3")(stages[-1]))
    return keras.Model(base.input, [*taps, *stages])


def randomise(model: Any, seed: int) -> None:
    """Random kernels that keep activations in scale, and norms that are far from the identity."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        shape, kind = variable.shape, variable.name
        if kind == "kernel":
            value = rng.normal(0, np.sqrt(1.5 / np.prod(shape[:-1])), shape)
        elif kind in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 1.5, shape)
        else:  # biases, beta, moving_mean
            value = rng.normal(0, 0.2, shape)
        variable.assign(value.astype(np.float32))


def run_reference(model: Any, images: np.ndarray) -> list[np.ndarray]:
    """Every stage as (B, C, h, w), for images (B, H, W, 3)."""
    with torch.no_grad():
        outputs = model(images, training=False)
    return [output.detach().numpy().transpose(0, 3, 1, 2) for output in outputs]


def spread_inverse_depth(model: Any, images: np.ndarray) -> None:
    """Scale the last layer so that y lies below 0, between 0 and 1, and above."""
    y = run_reference(model, images)[-1]
    head = model.get_layer("conv3")
    gain = 6 / y.std()
    head.kernel.assign(head.kernel * gain)
    head.bias.assign((head.bias - y.mean()) * gain + 8)


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


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


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


def metres_in_centimetre_form(y: np.ndarray) -> np.ndarray:
    """The unit rule as the NYU checkpoints' readers know it; y <= 0 is infinitely far."""
    y = y.astype(np.float64)
    with np.errstate(divide="ignore"):
        centimetres = np.where(y > 0, 1000 / y, np.inf)
    return np.clip(centimetres, 10, 1000) / 100


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
