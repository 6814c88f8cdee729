"""densedepth: shapes, unit rule, loss, saving, Auto classes and pipeline, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForDepthEstimation,
    pipeline,
)
from transformers.modeling_outputs import DepthEstimatorOutput

import builder.depth.densedepth
from builder.depth.densedepth import (
    DenseDepthConfig,
    DenseDepthForDepthEstimation,
    DenseDepthImageProcessor,
)
from builder.depth.densedepth.modeling_densedepth import (
    HIDDEN_STATE_NAMES,
    inverse_depth_to_metres,
    loss_terms,
)

TINY: dict[str, Any] = {
    "growth_rate": 4,
    "block_config": (1, 2, 2, 1),
    "num_init_features": 8,
    "decoder_channels": 32,
}
HEIGHT, WIDTH = 64, 96


def tiny_model(seed: int = 0, **fields: Any) -> DenseDepthForDepthEstimation:
    """A small network in eval mode with y around 8 and norms that are not the identity."""
    torch.manual_seed(seed)
    model = DenseDepthForDepthEstimation(DenseDepthConfig(**{**TINY, **fields})).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        y = inverse_depth(model, images())
        model.head.weight.mul_(3 / y.std())
        model.head.bias.copy_(8 - y.mean() * 3 / y.std())
    return model


def images(batch: int = 2, seed: int = 1) -> torch.Tensor:
    """Seeded noise, (B, 3, 64, 96) in [0, 1]."""
    return torch.rand(batch, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def depths(batch: int = 2, seed: int = 2, size: tuple[int, int] = (32, 48)) -> torch.Tensor:
    """Seeded depth labels in metres, 0.5 to 9.5."""
    return 0.5 + 9 * torch.rand(batch, *size, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def inverse_depth(model: DenseDepthForDepthEstimation, pixel_values: torch.Tensor) -> torch.Tensor:
    """The network's y, (B, 1, H/2, W/2)."""
    return model(pixel_values, output_hidden_states=True).hidden_states[-1]


# ---------------------------------------------------------------- config


def test_defaults_are_the_published_network_and_min_depth_follows_max_depth() -> None:
    config = DenseDepthConfig()
    assert config.block_config == [6, 12, 32, 32]
    assert config.encoder_channels == [64, 64, 128, 256, 1664]
    assert config.decoder_widths == [1664, 832, 416, 208, 104]
    assert config.depth_range_m == (0.1, 10.0)
    assert DenseDepthConfig(max_depth=80).depth_range_m == (0.8, 80.0)
    assert DenseDepthConfig(max_depth=80, min_depth=1).depth_range_m == (1.0, 80.0)


@pytest.mark.parametrize(
    ("blocks", "channels"),
    [
        ((6, 12, 24, 16), [64, 64, 128, 256, 1024]),
        ((6, 12, 48, 32), [64, 64, 128, 256, 1920]),
    ],
)
def test_other_densenets_have_their_known_channels(
    blocks: tuple[int, ...], channels: list[int]
) -> None:
    assert DenseDepthConfig(block_config=blocks).encoder_channels == channels


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"block_config": (6, 12, 32)}, r"four positive layer counts, got \[6, 12, 32\]"),
        ({"block_config": (6, 12, 32, 0)}, r"four positive layer counts, got \[6, 12, 32, 0\]"),
        ({"growth_rate": 0}, "growth_rate must be at least 1, got 0"),
        ({"decoder_channels": 8}, "set decoder_channels to 16 or more"),
        ({"decoder_channels": 0}, "set decoder_channels to 16 or more"),
        ({"min_depth": 10.0}, "0 < min_depth < max_depth < infinity, got min_depth=10.0"),
        ({"max_depth": -1.0}, "0 < min_depth < max_depth < infinity"),
        ({"max_depth": math.inf, "min_depth": 1.0}, "0 < min_depth < max_depth < infinity"),
        ({"leaky_slope": 1.0}, "leaky_slope must be at least 0 and below 1, got 1.0"),
        ({"batch_norm_eps": 0.0}, "batch_norm_eps must lie between 0 and 1, got 0.0"),
        ({"align_corners": "yes"}, "'align_corners' expected bool, got str"),
        ({"growth_rate": 32.5}, "'growth_rate' expected int, got float"),
    ],
)
def test_config_refuses_what_no_network_can_have(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(StrictDataclassError, match=sentence):
        DenseDepthConfig(**fields)


# ---------------------------------------------------------------- network


def test_parameter_counts_are_those_of_the_paper_and_of_the_half_width_code() -> None:
    with torch.device("meta"):  # counts need no numbers
        full = DenseDepthForDepthEstimation(DenseDepthConfig())
        half = DenseDepthForDepthEstimation(DenseDepthConfig(decoder_channels=832))
    assert sum(p.numel() for p in full.parameters() if p.requires_grad) == 42_657_689  # 42.6 M
    assert sum(p.numel() for p in half.parameters() if p.requires_grad) == 21_365_405  # 21.4 M


def test_stages_have_the_documented_shapes() -> None:
    model = tiny_model()
    output = model(images(), output_hidden_states=True)
    assert isinstance(output, DepthEstimatorOutput)
    stages = dict(zip(HIDDEN_STATE_NAMES, output.hidden_states, strict=True))
    channels = [*model.config.encoder_channels, *model.config.decoder_widths, 1]
    strides = [2, 4, 8, 16, 32, 32, 16, 8, 4, 2, 2]
    assert [tuple(stage.shape) for stage in stages.values()] == [
        (2, c, HEIGHT // s, WIDTH // s) for c, s in zip(channels, strides, strict=True)
    ]
    assert output.predicted_depth.shape == (2, HEIGHT // 2, WIDTH // 2)
    assert output.loss is None


def test_images_of_a_batch_do_not_influence_each_other() -> None:
    model, batch = tiny_model(), images(3)
    alone = torch.cat([inverse_depth(model, image[None]) for image in batch])
    torch.testing.assert_close(inverse_depth(model, batch), alone, rtol=1e-5, atol=1e-5)


def test_a_tuple_holds_the_same_values_in_the_same_order() -> None:
    model = tiny_model()
    output = model(images(), labels=depths(), output_hidden_states=True)
    loss, predicted, hidden = model(
        images(), labels=depths(), output_hidden_states=True, return_dict=False
    )
    assert torch.equal(loss, output.loss)
    assert torch.equal(predicted, output.predicted_depth)
    assert len(hidden) == len(HIDDEN_STATE_NAMES)
    (only,) = model(images(), return_dict=False)
    assert torch.equal(only, predicted)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 3, 50, 64), "multiples of 32; got 50 x 64. Resize the image first"),
        ((1, 3, 64, 65), "multiples of 32; got 64 x 65"),
        ((1, 3, 0, 32), "multiples of 32; got 0 x 32"),
        ((1, 1, 32, 32), r"must be \(batch, 3, height, width\), got shape \(1, 1, 32, 32\)"),
        ((3, 32, 32), r"must be \(batch, 3, height, width\), got shape \(3, 32, 32\)"),
    ],
)
def test_model_refuses_inputs_that_do_not_fit(shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiny_model()(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 32, 48), (2, 1, 32, 48)])
def test_model_refuses_labels_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"labels must be \(2, height, width\) depths in metres"):
        tiny_model()(images(), labels=torch.ones(shape))


@pytest.mark.parametrize("precision", ["model", "decoder", "autocast"])
def test_bfloat16_agrees_with_float32(precision: str) -> None:
    model, pixel_values = tiny_model(), images()
    exact = inverse_depth(model, pixel_values)
    if precision == "model":
        model.to(torch.bfloat16)
    elif precision == "decoder":  # the mixed precision: float32 encoder, bfloat16 decoder
        model.decoder.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        rounded = inverse_depth(model, pixel_values)
        depth = model(pixel_values).predicted_depth
        loss = model(pixel_values, labels=depths()).loss
    assert rounded.dtype == depth.dtype == loss.dtype == torch.float32
    error = (rounded - exact).abs().mean() / (exact.max() - exact.min())
    assert 0 < error < 0.01
    # y and the metres made of it stay in float32: bfloat16 would leave far fewer distinct values.
    assert len(depth.unique()) > 0.9 * depth.numel()


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    """Without freezing, the repeated forward pass counts each batch twice in the norms."""
    plain, checkpointed = tiny_model().train(), tiny_model().train()
    checkpointed.activation_checkpointing_enable()
    for model in (plain, checkpointed):
        model(images(), labels=depths()).loss.backward()
    for (name, expected), actual in zip(
        plain.named_parameters(), checkpointed.parameters(), strict=True
    ):
        torch.testing.assert_close(actual.grad, expected.grad, msg=name)
    for (name, expected), actual in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(actual, expected), name
    assert plain.encoder.norm.num_batches_tracked == 1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_encoder_keeps_its_weights_and_statistics(checkpointing: bool) -> None:
    """Without gradients alone BatchNorm would still drift towards the new pictures' statistics."""
    model = tiny_model()
    if checkpointing:
        model.activation_checkpointing_enable()
    model.freeze_encoder()
    assert not model.training
    model.train()
    assert model.decoder.training
    assert not any(module.training for module in model.encoder.modules())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):
        model(images(), labels=depths()).loss.backward()
        optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {name for name in before if not name.startswith("encoder.")}
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


# ---------------------------------------------------------------- unit rule


def test_metres_equal_the_centimetre_rule_and_its_guard() -> None:
    y = np.array([0.5, 1, 1.25, 3, 10, 99, 100, 250, 0, -3, np.inf, -np.inf, np.nan], np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.clip(1000 / y.astype(np.float64), 10, 1000) / 100
    expected[[8, 9]] = 10  # y <= 0: infinitely far
    expected[[10, 11, 12]] = np.nan  # infinity and NaN are no answers
    metres = inverse_depth_to_metres(torch.from_numpy(y), 0.1, 10.0)
    np.testing.assert_allclose(metres.numpy(), expected, rtol=1e-6)


def test_the_model_applies_the_rule_and_survives_a_head_that_predicts_nothing_useful() -> None:
    model = tiny_model(max_depth=80)
    y = inverse_depth(model, images())[:, 0].double()
    depth = model(images()).predicted_depth
    torch.testing.assert_close(depth.double(), (80 / y.clamp(min=1)).clamp(0.8), rtol=1e-5, atol=0)
    for bias, metres in ((-1e4, 80.0), (1e4, 0.8), (math.nan, math.nan), (math.inf, math.nan)):
        torch.nn.init.constant_(model.head.bias, bias)
        expected = torch.full((2, HEIGHT // 2, WIDTH // 2), metres)
        torch.testing.assert_close(
            model(images()).predicted_depth, expected, rtol=0, atol=0, equal_nan=True
        )


@given(
    y=st.lists(st.floats(width=32), min_size=1, max_size=20),
    max_depth=st.floats(0.5, 500, width=32),
    ratio=st.floats(2, 1000, width=32),
)
def test_metres_stay_in_range_and_fall_with_y(
    y: list[float], max_depth: float, ratio: float
) -> None:
    min_depth = max_depth / ratio
    values = torch.tensor(y, dtype=torch.float32)
    metres = inverse_depth_to_metres(values, min_depth, max_depth)
    assert metres.dtype == torch.float32
    assert torch.equal(metres.isnan(), ~values.isfinite())
    values, metres = values[values.isfinite()], metres[values.isfinite()]
    assert bool((metres >= np.float32(min_depth)).all() and (metres <= np.float32(max_depth)).all())
    assert bool((metres[values.argsort()].diff() <= 0).all())
    finite = values[values > 0]
    expected = (max_depth / finite.double()).clamp(min_depth, max_depth)
    torch.testing.assert_close(
        inverse_depth_to_metres(finite, min_depth, max_depth).double(), expected, rtol=1e-6, atol=0
    )


@given(depth_m=st.floats(0.1, 10))
def test_a_depth_survives_the_way_to_y_and_back(depth_m: float) -> None:
    metres = inverse_depth_to_metres(torch.tensor([10 / depth_m]), 0.1, 10.0)
    assert metres.item() == pytest.approx(depth_m, rel=1e-6)


# ---------------------------------------------------------------- loss


def numpy_loss(
    predicted: np.ndarray, target: np.ndarray, known: np.ndarray, value_range: float
) -> tuple[float, float, float]:
    """The three terms written out pixel by pixel in float64, for maps (B, h, w)."""
    offsets = np.arange(-5, 6)
    gauss = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    l1, grad_x, grad_y, dissimilarity = [], [], [], []
    batch, height, width = predicted.shape
    for b, i, j in np.ndindex(batch, height, width):
        if not known[b, i, j]:
            continue
        error = predicted[b] - target[b]
        l1.append(abs(error[i, j]))
        if j + 1 < width and known[b, i, j + 1]:
            grad_x.append(abs(error[i, j + 1] - error[i, j]))
        if i + 1 < height and known[b, i + 1, j]:
            grad_y.append(abs(error[i + 1, j] - error[i, j]))
        top, left = max(i - 5, 0), max(j - 5, 0)
        window = np.s_[top : i + 6, left : j + 6]
        seen = known[b][window]
        weights = gauss[top - i + 5 :, left - j + 5 :][: seen.shape[0], : seen.shape[1]] * seen
        weights = weights / weights.sum()
        x, y = predicted[b][window], target[b][window]
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
        ssim = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        ssim /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
        dissimilarity.append((1 - ssim) / 2)
    return np.mean(l1), np.mean(grad_x) + np.mean(grad_y), np.mean(dissimilarity)


def loss_inputs(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predicted y, target y, and a mask with holes, each (2, 1, 14, 18)."""
    generator = torch.Generator().manual_seed(seed)
    target = 1 + 20 * torch.rand(2, 1, 14, 18, generator=generator)
    predicted = target + 3 * torch.randn(2, 1, 14, 18, generator=generator)
    known = torch.rand(2, 1, 14, 18, generator=generator) > 0.3
    return predicted, target, known


def test_loss_terms_equal_an_implementation_written_out_in_numpy() -> None:
    predicted, target, known = loss_inputs()
    for mask in (known, torch.ones_like(known)):
        expected = numpy_loss(
            *(t[:, 0].double().numpy() for t in (predicted, target)), mask[:, 0].numpy(), 100.0
        )
        actual = [float(term) for term in loss_terms(predicted, target, mask, 100.0)]
        assert actual == pytest.approx(expected, rel=1e-4)


def test_loss_terms_vanish_for_a_perfect_prediction() -> None:
    _, target, known = loss_inputs()
    l1, gradient, ssim = loss_terms(target.clone(), target, known, 100.0)
    assert float(l1) == 0
    assert float(gradient) == 0
    assert abs(float(ssim)) < 1e-6


def test_a_constant_offset_costs_l1_and_no_gradient() -> None:
    _, target, known = loss_inputs()
    l1, gradient, _ = loss_terms(target + 2, target, known, 100.0)
    assert float(l1) == pytest.approx(2, rel=1e-5)
    assert float(gradient) == pytest.approx(0, abs=1e-5)


def test_the_model_weighs_the_terms_as_the_paper_does_on_inverse_depth() -> None:
    model, labels = tiny_model(), depths()
    labels[:, 4:9, 7:20] = 0
    labels[0, 0, 0], labels[0, 0, 1] = 50.0, 0.01  # clipped to the model's range
    y = inverse_depth(model, images())[:, 0].double().numpy()
    target = 10 / labels.double().clamp(0.1, 10).numpy()
    l1, gradient, ssim = numpy_loss(y, target, labels.numpy() > 0, 100.0)
    loss = model(images(), labels=labels).loss
    assert float(loss.detach()) == pytest.approx(0.1 * l1 + gradient + ssim, rel=1e-4)


def test_unknown_pixels_have_no_influence() -> None:
    model, labels = tiny_model(), depths()
    losses = []
    for unknown in (0.0, -1.0, math.nan, math.inf):
        labels[:, 3:8, 5:20] = unknown
        losses.append(float(model(images(), labels=labels).loss.detach()))
    assert len(set(losses)) == 1
    assert math.isfinite(losses[0])

    predicted, target, known = loss_inputs()
    predicted.requires_grad_()
    sum(loss_terms(predicted, target, known, 100.0)).backward()
    assert bool((predicted.grad[~known] == 0).all())
    assert bool((predicted.grad[known] != 0).any())


def test_a_batch_without_any_known_pixel_costs_nothing() -> None:
    model = tiny_model().train()
    loss = model(images(), labels=torch.zeros(2, 32, 48)).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(bool((p.grad == 0).all()) for p in model.parameters())


def test_labels_of_the_input_size_are_resized_by_nearest_neighbour() -> None:
    model, small = tiny_model(), depths()
    large = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    assert large.shape == (2, HEIGHT, WIDTH)
    assert torch.equal(
        model(images(), labels=large).loss, model(images(), labels=small.double()).loss
    )


def test_a_few_steps_of_training_lower_the_loss() -> None:
    torch.manual_seed(0)
    model = DenseDepthForDepthEstimation(DenseDepthConfig(**TINY)).train()
    pixel_values = images()
    labels = 1 + 4 * pixel_values.mean(dim=1)  # bright is far: something to learn
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(pixel_values, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


# ---------------------------------------------------------------- image processor


def test_processor_scales_to_one_and_resizes_bilinearly_without_normalising() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    processor = DenseDepthImageProcessor()
    batch = processor([image, image.convert("L")], return_tensors="pt")["pixel_values"]
    assert batch.shape == (2, 3, 480, 640)
    assert batch.dtype == torch.float32
    resized = np.asarray(image.resize((640, 480), Image.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(batch[0].permute(1, 2, 0).numpy(), resized, atol=1e-6)
    assert torch.equal(batch[1, 0], batch[1, 2]), "grey images become RGB"
    unchanged = processor(image, do_resize=False, return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(unchanged[0].permute(1, 2, 0).numpy(), pixels / 255, atol=1e-6)


def test_the_processor_warns_of_pictures_that_were_scaled_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    processor = DenseDepthImageProcessor()
    for fine in (pixels, pixels // 255, pixels.astype(np.float32), torch.from_numpy(pixels)):
        processor(fine, return_tensors="pt")
    processor(pixels / np.float32(255), do_rescale=False, return_tensors="pt")
    assert not caplog.records
    processor(pixels / np.float32(255), return_tensors="pt")
    assert "divided by 255 again; pass do_rescale=False" in caplog.text


def test_post_processing_resizes_each_map_and_never_leaves_its_range() -> None:
    depth = torch.tensor([[[1.0, 1.0, 9.0, 9.0]] * 4] * 2)  # an edge, where bicubic overshoots
    outputs = DepthEstimatorOutput(predicted_depth=depth)
    first, second = DenseDepthImageProcessor().post_process_depth_estimation(
        outputs, target_sizes=[(8, 16), None]
    )
    assert first["predicted_depth"].shape == (8, 16)
    assert first["predicted_depth"].min() == 1
    assert first["predicted_depth"].max() == 9
    assert first["predicted_depth"][0, 8] == pytest.approx(6.0)  # an eighth past the middle of 1..9
    assert torch.equal(second["predicted_depth"], depth[1])
    whole = DenseDepthImageProcessor().post_process_depth_estimation(outputs)
    assert all(torch.equal(a["predicted_depth"], b) for a, b in zip(whole, depth, strict=True))


def test_post_processing_refuses_what_does_not_fit() -> None:
    processor = DenseDepthImageProcessor()
    outputs = DepthEstimatorOutput(predicted_depth=torch.ones(2, 4, 4))
    with pytest.raises(ValueError, match="Got 1 target sizes for 2 depth maps; pass one each"):
        processor.post_process_depth_estimation(outputs, target_sizes=[(8, 8)])
    with pytest.raises(ValueError, match="hold no predicted_depth"):
        processor.post_process_depth_estimation(DepthEstimatorOutput())


# ---------------------------------------------------------------- Transformers


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny model and its processor, saved the Transformers way."""
    tiny_model(leaky_between_convs=True, max_depth=20).save_pretrained(tmp_path)
    size = {"height": HEIGHT, "width": WIDTH}
    DenseDepthImageProcessor(size=size).save_pretrained(tmp_path)
    return tmp_path


def test_saving_writes_safetensors_only_and_loads_back_bit_for_bit(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    model = tiny_model(leaky_between_convs=True, max_depth=20)
    loaded = DenseDepthForDepthEstimation.from_pretrained(saved)
    state, loaded_state = model.state_dict(), loaded.state_dict()
    assert state.keys() == loaded_state.keys()
    assert all(torch.equal(state[key], loaded_state[key]) for key in state)
    assert loaded.config.depth_range_m == (0.2, 20.0)
    assert loaded.config.leaky_between_convs
    assert torch.equal(inverse_depth(loaded, images()), inverse_depth(model, images()))


def test_auto_classes_find_everything_and_registering_again_changes_nothing(saved: Path) -> None:
    builder.depth.densedepth.register()
    builder.depth.densedepth.register()
    assert type(AutoConfig.from_pretrained(saved)) is DenseDepthConfig
    assert type(AutoModelForDepthEstimation.from_pretrained(saved)) is DenseDepthForDepthEstimation
    processor = AutoImageProcessor.from_pretrained(saved)
    assert type(processor) is DenseDepthImageProcessor
    assert (processor.size["height"], processor.size["width"]) == (HEIGHT, WIDTH)
    written = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == "densedepth"
    assert (written["min_depth"], written["max_depth"]) == (0.2, 20.0)


def test_the_depth_estimation_pipeline_gives_the_models_metres(saved: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    estimate = pipeline("depth-estimation", model=str(saved), trust_remote_code=False)
    result = estimate(image)
    assert estimate.image_processor.backend == "pil"  # no torchvision needed
    processor = DenseDepthImageProcessor(size={"height": HEIGHT, "width": WIDTH})
    with torch.inference_mode():
        output = tiny_model(leaky_between_convs=True, max_depth=20)(
            **processor(image, return_tensors="pt")
        )
    (expected,) = processor.post_process_depth_estimation(output, [(50, 70)])
    torch.testing.assert_close(result["predicted_depth"], expected["predicted_depth"])
    assert result["depth"].size == (70, 50)


def test_initial_weights_follow_the_layers_role() -> None:
    torch.manual_seed(0)
    model = DenseDepthForDepthEstimation(DenseDepthConfig(**{**TINY, "num_init_features": 64}))
    he, glorot = model.encoder.stem.conv, model.decoder.up_steps[0].conv_b
    assert float(he.weight.detach().std()) == pytest.approx(math.sqrt(2 / (3 * 49)), rel=0.05)
    fan = glorot.in_channels * 9
    assert float(glorot.weight.detach().std()) == pytest.approx(math.sqrt(1 / fan), rel=0.05)
    assert torch.equal(model.head.bias, torch.zeros(1))
