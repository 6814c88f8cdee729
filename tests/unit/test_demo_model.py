"""The demo depth model in builder/demo/depth: small, loadable, as good as its card says, trainable
again.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

import builder.densedepth  # noqa: F401  # registers DenseDepth with the Auto classes
from training import scenes
from training import train_densedepth as training

MODEL = Path(__file__).parents[2] / "builder" / "demo" / "depth"


@pytest.fixture(scope="module")
def metrics():
    return json.loads((MODEL / "metrics.json").read_text())


@pytest.fixture(scope="module")
def model():
    return AutoModelForDepthEstimation.from_pretrained(MODEL).eval()


@pytest.fixture(scope="module")
def held_out():
    """24 scenes of seeds that neither trained nor measured the model, rendered here."""
    first, side = training.HELD_OUT_SEED + 5000, 256
    pairs = [scenes.render(first + index, (side, side)) for index in range(24)]
    return np.stack([rgb for rgb, _ in pairs]), np.stack([depth_m for _, depth_m in pairs])


def test_folder_is_small_and_safe():
    names = {path.name for path in MODEL.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert (MODEL / "model.safetensors").stat().st_size <= 3_000_000
    assert "auto_map" not in json.loads((MODEL / "config.json").read_text())
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    floats = [tensor for tensor in tensors if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float16}
    assert all(torch.isfinite(tensor).all() for tensor in floats)


def test_auto_classes_load_it_in_float32(model, metrics):
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == metrics["model"]["parameters"]
    )
    processor = AutoImageProcessor.from_pretrained(MODEL)
    assert dict(processor.size) == {"height": 256, "width": 256}
    config = AutoConfig.from_pretrained(MODEL)
    assert config.depth_range_m == (0.1, 10.0)
    assert training.count_gflop(model) <= 3


def test_error_on_fresh_scenes_is_what_the_card_says(model, metrics, held_out):
    rgb, depth_m = held_out
    true_m = training.at_half_size(np.round(depth_m * 1000).astype(np.uint16))
    errors = training.depth_errors(training.predict(model, rgb), true_m)
    # These scenes' own mean knows more than the training scenes' mean, and must still lose clearly.
    baseline = training.depth_errors(true_m.mean(0).expand_as(true_m), true_m)
    assert errors["abs_rel"] < 0.6 * baseline["abs_rel"]
    assert errors["abs_rel"] == pytest.approx(metrics["errors"]["all"]["abs_rel"], abs=0.035)
    assert errors["abs_rel"] < 0.15


def test_near_looks_near(model, held_out):
    rgb, _ = held_out
    depth = training.predict(model, rgb)
    # On average the floor comes nearer from the middle of the picture to its lower edge.
    rows = depth[:, :, 40:88].mean((0, 2))
    assert rows[66] > rows[90] > rows[110] > rows[126]


def test_card_is_made_of_the_metrics(metrics):
    card = (MODEL / "README.md").read_text()
    assert card == training.model_card(metrics)
    assert "demo model" in card.lower()
    assert f"{metrics['errors']['all']['abs_rel']:.3f}" in card


def test_depth_errors_match_hand_computation():
    true = torch.tensor([[[1.0, 2.0]], [[4.0, 4.0]]])
    predicted = torch.tensor([[[1.5, 2.0]], [[4.0, 1.0]]])
    errors = training.depth_errors(predicted, true)
    assert errors["abs_rel"] == pytest.approx((0.25 + 0.375) / 2)
    assert errors["rmse"] == pytest.approx((np.sqrt(0.125) + np.sqrt(4.5)) / 2)
    assert errors["delta1"] == 0.5
    assert errors["delta3"] == pytest.approx(0.75)


@pytest.fixture(scope="module")
def tiny():
    settings = training.Settings(
        stages=((64, 4, 10, 0.8), (64, 4, 4, 1.0)),
        warmup_steps=2,
        num_init_features=16,
        growth_rate=8,
        block_config=(1, 1, 1, 1),
        decoder_channels=32,
        statistics_batches=3,
    )
    pairs = [scenes.render(seed, (64, 64), pasted=False) for seed in range(8)]
    rgb = np.stack([rgb for rgb, _ in pairs])
    return settings, rgb, np.stack([np.round(m * 1000).astype(np.uint16) for _, m in pairs])


def test_a_few_steps_reduce_the_loss(tiny):
    settings, rgb, depth_mm = tiny
    settings = training.replace(settings, stages=((64, 8, 80, 0.8),))
    losses = [loss for _, loss in training.train(training.Trainer(settings), rgb, depth_mm)]
    assert len(losses) == 80
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


def test_a_killed_run_ends_in_the_same_weights(tiny, tmp_path):
    settings, rgb, depth_mm = tiny
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = training.Trainer(settings)
        for _ in training.train(whole, rgb, depth_mm):
            pass
        checkpoint = tmp_path / "checkpoint.safetensors"
        for step, _ in training.train(
            training.Trainer(settings, checkpoint), rgb, depth_mm, save_every=5
        ):
            if step == 8:  # killed three steps after the last checkpoint
                break
        resumed = training.Trainer(settings, checkpoint)
        assert resumed.step == 5
        for _ in training.train(resumed, rgb, depth_mm):
            pass
        first, second = (t.finished_model(rgb, depth_mm).state_dict() for t in (whole, resumed))
    finally:
        torch.set_num_threads(threads)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_other_settings_is_refused(tiny, tmp_path):
    settings, rgb, depth_mm = tiny
    checkpoint = tmp_path / "checkpoint.safetensors"
    trainer = training.Trainer(settings, checkpoint)
    trainer.train_step(rgb, depth_mm)
    trainer.save()
    with pytest.raises(Exception, match="other settings"):
        training.Trainer(training.replace(settings, seed=1), checkpoint)
