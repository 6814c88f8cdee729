"""The reference network in Keras 3 that parity tests share, with random weights.

Its encoder is keras.applications', its decoder is built here, from the paper; its up-sampling is a
pair of matrices and shares nothing with torch's `interpolate`.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch


def load_keras() -> ModuleType:
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


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def metres_in_centimetre_form(y: np.ndarray) -> np.ndarray:
    """The unit rule as the NYU checkpoints' readers know it; y <= 0 is infinitely far."""
    y = y.astype(np.float64)
    with np.errstate(divide="ignore"):
        centimetres = np.where(y > 0, 1000 / y, np.inf)
    return np.clip(centimetres, 10, 1000) / 100
