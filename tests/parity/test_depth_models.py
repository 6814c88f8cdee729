"""Every kind of depth model in Transformers is stored as what it predicts: against the library."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from builder.depth import DepthEstimator, locate_model
from builder.recipe import Recipe
from fgbg_dataset import DepthModelError

SIDE = 64  # of the records and of the model's input, so that resizing changes nothing
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"], "reshape_hidden_states": False}
TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": SIDE}
NECK = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8}
PIXELS = {"size": {"height": SIDE, "width": SIDE}}

DEPTH_PRO_PIXELS = {
    "image_processor_type": "DepthProImageProcessor",
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def dpt():
    config = hf.DPTConfig(
        **TINY, **NECK, intermediate_size=64, patch_size=16, backbone_out_indices=[0, 1, 2, 3]
    )
    return hf.DPTForDepthEstimation(config), hf.DPTImageProcessorPil(**PIXELS)


def glpn():
    config = hf.GLPNConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=8,
    )
    return hf.GLPNForDepthEstimation(config), hf.GLPNImageProcessorPil()


def depth_anything(kind):
    backbone = hf.Dinov2Config(**TINY, **STAGES, patch_size=16)
    config = hf.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        head_hidden_size=8,
        patch_size=16,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
        **NECK,
    )
    return hf.DepthAnythingForDepthEstimation(config), hf.DPTImageProcessorPil(**PIXELS)


def zoedepth():
    backbone = hf.BeitConfig(
        **TINY, **STAGES, intermediate_size=64, patch_size=16, use_relative_position_bias=True
    )
    config = hf.ZoeDepthConfig(
        backbone_config=backbone,
        backbone_hidden_size=32,
        bottleneck_features=8,
        num_relative_features=8,
        bin_embedding_dim=16,
        num_attractors=[2, 2, 2, 1],
        **NECK,
    )
    return hf.ZoeDepthForDepthEstimation(config), hf.ZoeDepthImageProcessorPil(do_pad=False)


def depth_pro():
    part = {
        "model_type": "dinov2",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = hf.DepthProConfig(
        patch_size=32,
        fusion_hidden_size=16,
        intermediate_hook_ids=[1, 0],
        intermediate_feature_dims=[10, 8],
        scaled_images_ratios=[0.5, 1.0],
        scaled_images_overlap_ratios=[0.0, 0.2],
        scaled_images_feature_dims=[12, 14],
        image_model_config=part,
        patch_model_config=part,
        fov_model_config=part,
        use_fov_model=True,
        num_fov_head_layers=1,
    )
    return hf.DepthProForDepthEstimation(config), None  # its processor needs torchvision


# name: (maker, kind, quantity, stored units per unit)
MODELS = {
    "dpt": (dpt, "relative", "inverse_depth", 10),
    "glpn": (glpn, "metric", "depth", 1000),
    "depth_anything": (lambda: depth_anything("relative"), "relative", "inverse_depth", 100),
    "depth_anything_metric": (lambda: depth_anything("metric"), "metric", "depth", 1000),
    "zoedepth": (zoedepth, "metric", "depth", 1000),
    "depth_pro": (depth_pro, "metric", "depth", 1000),
}


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    make, *meaning = MODELS[request.param]
    torch.manual_seed(0)
    model, processor = make()
    with torch.no_grad():  # random heads give next to nothing; lift them off zero
        for name, bias in model.named_parameters():
            if name.startswith("head.") and name.endswith("bias"):
                bias.fill_(0.5)
            if name == "fov_model.head.layers.2.bias":
                bias.fill_(50)  # degrees
            if name == "head.layers.4.weight":  # of Depth Pro, to whom most of it were sky
                bias.mul_(1e-3)
    folder = tmp_path_factory.mktemp(request.param)
    model.eval().save_pretrained(folder)
    if processor:
        processor.save_pretrained(folder)
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps(DEPTH_PRO_PIXELS))
    return folder, model, processor, meaning


def test_stored_depth_is_the_librarys_prediction_in_its_unit(saved):
    folder, model, processor, (kind, quantity, scale) = saved
    recipe, located = locate_model(Recipe(depth_model=str(folder), depth_input=SIDE))
    info = located.info
    assert (info.kind, info.quantity, info.scale) == (kind, quantity, scale)
    assert recipe.depth_revision is None
    images = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    stored = DepthEstimator(located, recipe, device="cpu", batch_size=4)(images)
    assert stored.shape == (3, SIDE, SIDE)
    assert stored.dtype == np.uint16

    if processor:
        pixels = processor(images=list(images), do_resize=False, return_tensors="pt").pixel_values
    else:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        outputs = model(pixel_values=pixels)
    expected = outputs.predicted_depth
    if processor is None:  # Depth Pro: inverse depth for a focal length of one width, by its paper
        width = 2 * torch.tan(torch.deg2rad(outputs.field_of_view) / 2)
        expected = 1 / (expected * width.view(-1, 1, 1)).clamp(1e-4, 1e4)
    if expected.shape[1:] != (SIDE, SIDE):
        size = {"size": (SIDE, SIDE), "mode": "bilinear", "align_corners": False}
        expected = torch.nn.functional.interpolate(expected[:, None], **size)[:, 0]
    expected = np.clip(np.rint(expected.numpy() * scale), info.near, info.far)
    assert np.abs(stored - expected).max() <= max(1, 1e-3 * expected.max())
    assert (stored > info.near).any(), "everything was clipped: this would compare nothing"


def edited(folder: Path, target: Path, change: Callable[[Any], None]) -> Recipe:
    """A copy of a model with changed weights, as a recipe that names it."""
    shutil.copytree(folder, target)
    model = hf.AutoModelForDepthEstimation.from_pretrained(folder)
    with torch.no_grad():
        change(model)
    model.save_pretrained(target)
    return Recipe(depth_model=str(target), depth_input=SIDE)


@pytest.mark.parametrize("backend", ["torch", "openvino"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(tiny_model, tmp_path, backend, value):
    """OpenVINO's LeakyReLU makes a number of NaN, and the depth looks sound."""

    def damage(model: Any) -> None:
        model.encoder.stem.conv.weight[0, 0, 0, 0] = value

    recipe, located = locate_model(edited(tiny_model, tmp_path / "damaged", damage))
    with pytest.raises(DepthModelError, match=r"damaged.*encoder\.stem\.conv\.weight hold NaN"):
        DepthEstimator(located, recipe, device="cpu", backend=backend)


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_weights_that_make_no_numbers_are_refused(tiny_model, tmp_path, precision):
    """Numbers all of them; but of a negative variance a BatchNorm makes NaN, OpenVINO a depth."""

    def damage(model: Any) -> None:
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.fill_(-1)

    recipe = replace(edited(tiny_model, tmp_path / "damaged", damage), precision=precision)
    recipe, located = locate_model(recipe)
    with pytest.raises(DepthModelError, match=r"damaged' gives NaN or infinity for a white pict"):
        DepthEstimator(located, recipe, device="cpu", backend="openvino")


def overflow_densedepth(model: Any) -> None:
    model.decoder.up_steps[-1].conv_b.bias.fill_(1e30)
    model.head.weight.fill_(3e38)


def overflow_dpt(model: Any) -> None:
    for name, bias in model.named_parameters():
        if name.startswith("head."):
            bias.fill_(3e38)


def test_a_model_that_gives_no_number_is_refused_by_its_name(tiny_model, tmp_path):
    """Sound weights that overflow, as those of a training that is about to diverge."""
    torch.manual_seed(0)
    dpt()[0].save_pretrained(tmp_path / "dpt")
    dpt()[1].save_pretrained(tmp_path / "dpt")
    for start, overflow in ((tiny_model, overflow_densedepth), (tmp_path / "dpt", overflow_dpt)):
        target = tmp_path / f"{start.name}-overflown"
        recipe, located = locate_model(edited(start, target, overflow))
        estimator = DepthEstimator(located, recipe, device="cpu", backend="torch")
        pictures = np.full((2, SIDE, SIDE, 3), 200, np.uint8)
        with pytest.raises(DepthModelError, match=r"overflown' gives NaN or infinity .* first 2"):
            estimator(pictures)


@pytest.mark.parametrize(
    ("max_depth", "held", "beyond"),
    [(80.0, None, "unknown"), (80.0, "far", "far"), (60.0, None, "far"), (66.0, None, "unknown")],
)
def test_beyond_16_bits_is_unknown(tiny_model, tmp_path, caplog, max_depth, held, beyond):
    """Unless a set of version 0.1.0 is gone on with, which stored the farthest value there."""

    def far_and_near(model: Any) -> None:
        model.config.max_depth = max_depth
        model.head.weight.zero_()
        model.head.bias.fill_(1.0)  # max_depth everywhere

    asked = edited(tiny_model, tmp_path / "far", far_and_near)
    recipe, located = locate_model(asked)
    if held:
        was = replace(located.info, beyond=held, model="elsewhere")
        recipe, located = locate_model(asked, was)
        assert replace(located.info, model="elsewhere") == was
        _, other = locate_model(asked, replace(was, weights_sha256="0" * 64))
        assert other.info.beyond == "unknown"
    else:
        assert ("more than 65.535 m" in caplog.text) == (beyond == "unknown")
    assert located.info.beyond == beyond
    estimator = DepthEstimator(located, recipe, device="cpu", batch_size=1)
    stored = estimator(np.zeros((1, SIDE, SIDE, 3), np.uint8))
    far = min(65535, int(max_depth * 1000))
    assert np.unique(stored).tolist() == [0 if beyond == "unknown" else far]


def test_the_range_of_other_metric_models_is_read_from_their_config(saved):
    folder, model, _, (kind, *_) = saved
    _, located = locate_model(Recipe(depth_model=str(folder)))
    limitless = model.config.model_type == "depth_pro"
    assert located.info.beyond == ("unknown" if limitless else "far")
    assert (located.info.near, located.info.far) == (1 if kind == "relative" else 100, 65535)


def test_bfloat16_is_near_float32_and_mixed_is_refused(saved):
    folder = str(saved[0])
    images = np.random.default_rng(1).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    depths = []
    for precision in ("float32", "bfloat16"):
        chosen = Recipe(depth_model=folder, depth_input=SIDE, precision=precision)
        recipe, located = locate_model(chosen)
        estimator = DepthEstimator(located, recipe, device="cpu", batch_size=2)
        assert estimator.backend == "torch"
        depths.append(estimator(images).astype(float))
    difference = np.abs(depths[1] - depths[0])
    assert estimator._run.dtype == torch.bfloat16
    assert difference.mean() < 0.02 * depths[0].mean()
    with pytest.raises(DepthModelError, match="'mixed' is for DenseDepth, and depth model"):
        locate_model(Recipe(depth_model=folder, precision="mixed"))


def test_what_a_model_means_can_be_said(saved):
    folder, *_ = saved
    recipe = Recipe(depth_model=str(folder), depth_kind="relative-depth")
    _, located = locate_model(recipe)
    assert (located.info.kind, located.info.quantity) == ("relative", "depth")
    _, located = locate_model(Recipe(depth_model=str(folder), depth_kind="metric"))
    assert (located.info.kind, located.info.unit) == ("metric", "mm")


def test_an_unknown_type_must_be_explained(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chmv2"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DepthModelError, match="is of type 'chmv2'; what that predicts is not"):
        locate_model(Recipe(depth_model=str(tmp_path)))


def test_an_input_the_model_can_not_take_is_told_with_the_next_step(tmp_path):
    torch.manual_seed(0)
    depth_pro()[0].save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(DEPTH_PRO_PIXELS))
    recipe, located = locate_model(Recipe(depth_model=str(tmp_path), depth_input=32))
    estimator = DepthEstimator(located, recipe, device="cpu", batch_size=1)
    with pytest.raises(DepthModelError, match=r"fails on 1 pictures of 32x32 px: .*--depth-input"):
        estimator(np.zeros((1, SIDE, SIDE, 3), np.uint8))
