"""DenseDepth in Keras with random weights, run as its users run it: `predict` in batches of two.

benchmarks/depth.py compares with it. It runs in an interpreter that has tf_keras (TensorFlow), or
else with Keras 3 on torch. Written from the paper (arXiv 1812.11941), full width.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np


def load() -> tuple[Any, str]:
    """Return the module and what it is."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    try:
        import tf_keras

        return tf_keras, f"tf_keras {tf_keras.__version__}"
    except ImportError:
        os.environ["KERAS_BACKEND"] = "torch"
        import keras

        return keras, f"Keras {keras.__version__} on torch"


def network(keras: Any, side: int) -> Any:
    """DenseNet-169 and the decoder of 1664 channels."""
    layers = keras.layers
    base = keras.applications.DenseNet169(
        weights=None, include_top=False, input_shape=(side, side, 3)
    )
    x = layers.Conv2D(1664, 1)(base.output)
    for step, tap in enumerate(("pool3_pool", "pool2_pool", "pool1", "conv1"), start=1):
        # The stem's ReLU has another name in every version; it is what feeds the first pool's pad.
        skip = base.get_layer("pool1").input if tap == "conv1" else base.get_layer(tap).output
        x = layers.UpSampling2D(2, interpolation="bilinear")(x)
        if tap == "conv1":  # that pad adds a pixel on every side
            skip = layers.Cropping2D(1)(skip)
        x = layers.Concatenate()([x, skip])
        for _ in range(2):
            x = layers.Conv2D(1664 // 2**step, 3, padding="same")(x)
        x = layers.LeakyReLU(0.2)(x)
    return keras.Model(base.input, layers.Conv2D(1, 3, padding="same")(x))


def runner(side: int) -> tuple[Any, str]:
    """Return a function that estimates the depth of two random pictures, and what it runs on."""
    keras, name = load()
    model = network(keras, side)
    pictures = np.random.default_rng(0).random((2, side, side, 3), np.float32)

    def run() -> int:
        model.predict(pictures, batch_size=2, verbose=0)
        return 2

    return run, name
