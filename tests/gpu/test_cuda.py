"""On a GPU the network and the estimator give what they give on the processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builder.densedepth import DenseDepthConfig, DenseDepthForDepthEstimation
from builder.depth import DepthEstimator, locate_model
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


def test_estimator_agrees_with_the_processor(tiny_model):
    recipe, model = locate_model(Recipe(depth_model=str(tiny_model), depth_input=64))
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    one, other = (
        DepthEstimator(model, recipe, device=device, batch_size=8)(images).astype(float)
        for device in ("cpu", "cuda")
    )
    assert np.abs(one / other - 1).max() < 2e-3
