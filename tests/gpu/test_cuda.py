"""On a GPU the network and the estimator give what they give on the processor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from builder.depth import DepthEstimator, locate_model
from builder.depth.densedepth import DenseDepthConfig, DenseDepthForDepthEstimation
from builder.recipe import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_full_network_agrees_with_the_processor(dtype, tolerance):
    torch.manual_seed(0)
    model = DenseDepthForDepthEstimation(DenseDepthConfig()).eval()
    with torch.no_grad():
        model.head.bias.fill_(4)
    pixels = torch.rand(2, 3, 224, 224)
    with torch.inference_mode():
        expected = model(pixel_values=pixels).predicted_depth
        model.to("cuda", dtype)
        actual = model(pixel_values=pixels.to("cuda", dtype)).predicted_depth.float().cpu()
    assert (actual / expected - 1).abs().max() < tolerance


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 2e-3), ("mixed", 0.1), ("bfloat16", 0.1)]
)
def test_estimator_agrees_with_the_processor(tiny_model, precision, tolerance):
    recipe, model = locate_model(
        Recipe(depth_model=str(tiny_model), depth_input=64, precision=precision)
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    exact = DepthEstimator(model, replace(recipe, precision="float32"), device="cpu")
    expected = np.concatenate([exact(image[None]) for image in images]).astype(float)
    on_gpu = DepthEstimator(model, recipe, device="cuda", batch_size=8)
    for _ in range(3):  # compiled, captured, replayed
        assert np.abs(on_gpu(images) / expected - 1).max() < tolerance
