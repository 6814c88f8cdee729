"""The demo depth model in builder/demo/depth: as good as its card says, trainable again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

from builder.depth.densedepth import DenseDepthConfig, DenseDepthForDepthEstimation
from builder.depth.densedepth.metrics import depth_errors
from builder.errors import TrainingError
from factory import measure_densedepth as measure
from factory import photographs, scenes
from factory import train_densedepth as training
from factory.widen import widened

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[2] / "builder" / "demo" / "depth"


@pytest.fixture(scope="module")
def metrics():
    return json.loads((MODEL / "metrics.json").read_text())


@pytest.fixture(scope="module")
def model():
    return AutoModelForDepthEstimation.from_pretrained(MODEL).eval()


@pytest.fixture(scope="module")
def held_out():
    """18 scenes of seeds that neither trained nor measured the model, rendered here."""
    return training.render_scenes(measure.HELD_OUT_SEED + 5000, 18, 256)


@pytest.fixture(scope="module")
def predicted(model, held_out):
    predict = measure.predictor(model)
    return np.stack([predict(Image.fromarray(rgb)) for rgb in held_out.rgb])


def test_auto_classes_load_it_in_float32(model, metrics):
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (
        sum(parameter.numel() for parameter in model.parameters()) == metrics["model"]["parameters"]
    )
    processor = AutoImageProcessor.from_pretrained(MODEL)
    assert dict(processor.size) == {"height": 256, "width": 256}
    config = AutoConfig.from_pretrained(MODEL)
    assert config.depth_range_m == (0.1, 10.0)
    assert measure.count_gflop(model) == pytest.approx(metrics["model"]["gflop"], abs=1e-3)
    assert metrics["model"]["gflop"] <= 15 and metrics["model"]["images_per_second"] >= 8


def test_error_on_fresh_scenes_is_what_the_card_says(metrics, held_out, predicted):
    shape = predicted.shape[1:]
    true_m = np.stack([measure.nearest(mm, shape) / 1000 for mm in held_out.depth_mm])
    pairs = zip(predicted, true_m, strict=True)
    abs_rel = np.mean([depth_errors(*pair)["abs_rel"] for pair in pairs])
    # These scenes' own mean knows more than the training scenes' mean, and must still lose clearly.
    baseline = np.mean([depth_errors(true_m.mean(0), one)["abs_rel"] for one in true_m])
    assert abs_rel < 0.6 * baseline
    assert abs_rel == pytest.approx(metrics["figures"]["model"]["scenes"]["abs_rel"], abs=0.035)


def test_near_looks_near(predicted):
    # On average the floor comes nearer from the middle of the picture to its lower edge.
    rows = predicted[:, :, 40:88].mean((0, 2))
    assert rows[66] > rows[90] > rows[110] > rows[126]


def test_it_knows_more_of_scenes_than_that_higher_is_farther(metrics):
    ours, height = metrics["figures"]["model"], metrics["figures"]["height"]
    sets = [name for name, figure in ours.items() if isinstance(figure, dict)]
    assert set(sets) >= {"scenes", "handheld", "boards", *scenes.KINDS}
    for name in sets:
        assert ours[name]["abs_rel"] < height[name]["abs_rel"], name
    assert ours["motorcycle"] > height["motorcycle"]
    card = (MODEL / "README.md").read_text()
    behind = ours["photographs"] < height["photographs"]
    assert behind == ("falls behind" in card)  # of photographs the card says so plainly


def test_card_is_made_of_the_metrics(metrics):
    card = (MODEL / "README.md").read_text()
    assert card == measure.model_card(metrics)
    assert "demo model" in card.lower()
    assert f"{metrics['figures']['model']['scenes']['abs_rel']:.3f}" in card


def test_rank_correlation_counts_ties_as_their_mean_rank():
    assert measure.spearman(np.array([1, 2, 3]), np.array([10, 20, 90])) == pytest.approx(1)
    assert measure.spearman(np.array([1, 2, 3]), np.array([9, 4, 1])) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert measure.spearman(np.array([5, 7, 7, 9]), np.arange(4)) == pytest.approx(0.9**0.5)


def test_a_pasted_board_counts_as_nearer_only_where_the_model_says_so():
    bare = training.render_scenes(2, 2, 96, pasted=False)
    pasted = training.render_scenes(2, 2, 96, pasted=True)
    depths = {
        picture.tobytes(): measure.nearest(mm / np.float32(1000), (48, 48))
        for pool in (bare, pasted)
        for picture, mm in zip(*pool, strict=True)
    }
    exact = measure.board_errors(lambda p: depths[np.asarray(p).tobytes()], pasted, bare)
    assert exact == {"abs_rel": pytest.approx(0, abs=1e-6), "nearer": 1}
    flat = measure.board_errors(lambda _: np.full((48, 48), 2, np.float32), pasted, bare)
    assert flat["nearer"] == 0 and flat["abs_rel"] > 0.05


def test_what_resembles_a_held_out_photograph_is_not_trained_on():
    rng = np.random.default_rng(0)
    grain = [rng.integers(0, 256, (9, 12, 3), np.uint8) for _ in range(40)]
    pictures = {str(k): Image.fromarray(g).resize((240, 180)) for k, g in enumerate(grain)}
    trained, kept = photographs.split(pictures)
    assert set(trained) | set(kept) == set(pictures) and 2 <= len(kept) <= 16
    assert all(photographs.held_out(name) for name in kept)
    copied = next(name for name in trained)
    twin = pictures[next(iter(kept))].resize((300, 220)).point(lambda v: v * 0.8)
    assert copied not in photographs.split({**pictures, copied: twin})[0]


def teacher_loss(predicted_m, told_m):
    return float(training.teacher_loss(10 / predicted_m[:, None], told_m))


def test_the_teacher_tells_shape_and_order_more_than_scale():
    told = torch.from_numpy(training.render_scenes(0, 2, 64, pasted=False).depth_mm / 1000).float()
    told = told.clamp(1, 9)
    assert teacher_loss(told, told) < 0.2  # what the order of equal gaps costs
    scaled, stretched = teacher_loss(told * 1.1, told), teacher_loss(told**0.8, told)
    turned = teacher_loss(9 / told, told)
    assert teacher_loss(told, told) < scaled < 0.3 and stretched < 0.3
    assert turned > 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings, a small start, and data of eight scenes that also stand for photographs."""
    settings = training.Settings(
        scenes=8, new_scenes=0, side_px=64, small_side_px=32, small_steps=4, steps=14, cooldown=4,
        batch=4, photographs=1, warmup=2, statistics_batches=3,
    )  # fmt: skip
    pool = training.render_scenes(0, 8, 64, pasted=False)
    grown = training.ScenePool(tmp_path_factory.mktemp("pool"), 64)
    repeat = [np.concatenate([part] * 13)[: training.CHUNK] for part in pool]
    grown.chunks.append(training.Pool(*repeat))
    cutouts = [scenes.render_cutout(1, 48, "mug", samples=1)]
    return settings, training.Data(grown, pool, cutouts)


def small_model():
    torch.manual_seed(0)
    config = DenseDepthConfig(
        num_init_features=16, growth_rate=8, block_config=(1, 1, 1, 1), decoder_channels=32,
        leaky_between_convs=True, align_corners=False, min_depth=0.1, max_depth=10.0,
    )  # fmt: skip
    return DenseDepthForDepthEstimation(config)


def test_the_card_of_a_run_tells_its_settings_sources_and_losses(tiny, metrics):
    trainer = training.Trainer(tiny[0], small_model(), start_sha256="0f1e2d")
    trainer.losses, trainer.seconds = [(5, 2.125), (14, 1.5)], 600
    log = training.training_log(trainer)
    card = measure.model_card({**metrics, "training": json.loads(json.dumps(log))})
    assert "the last 4 of 14\n  steps" in card and "10 core-minutes" in card
    assert "| `mate-backgrounds` | GPL-2+ |" in card and photographs.TEACHER_SHA256 in card
    assert "`0f1e2d`" in card
    assert card.index("| 5 | 2.125 |") < card.index("| 14 | 1.500 |")


def test_batches_depend_on_the_step_alone(tiny):
    settings, data = tiny
    pictures, labels = training.make_batch(data, settings, 5)
    again, same = training.make_batch(data, settings, 5)
    assert torch.equal(pictures, again) and torch.equal(labels, same)
    assert pictures.shape == (4, 3, 64, 64) and labels.shape == (4, 32, 32)
    assert pictures.min() >= 0 and pictures.max() <= 1
    assert labels.min() >= 0.1 and labels.max() <= 10
    assert training.make_batch(data, settings, 3)[0].shape == (4, 3, 32, 32)
    assert not torch.equal(training.make_batch(data, settings, 6)[0], pictures)


def test_every_step_may_see_more_scenes(tiny, tmp_path):
    settings, data = replace(tiny[0], scenes=99, new_scenes=1), tiny[1]
    pool = training.ScenePool(tmp_path, 24)
    for step, chunks in ((1, 1), (2, 2)):  # of 100 scenes
        training.make_batch(data._replace(scenes=pool), settings, step)
        assert len(pool.chunks) == chunks


def test_scenes_are_rendered_once(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHUNK", 3)
    first = training.ScenePool(tmp_path, 32).first(4)
    assert [len(chunk.rgb) for chunk in first] == [3, 3]
    monkeypatch.setattr(scenes, "render", None)  # what is there is not rendered again
    again = training.ScenePool(tmp_path, 32).first(4)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)
        np.testing.assert_array_equal(one.depth_mm, other.depth_mm)


def test_scenes_rendered_ahead_are_those_the_training_takes(tmp_path):
    ahead = training.render_ahead(training.ScenePool(tmp_path / "ahead", 24), 1)
    here = training.ScenePool(tmp_path / "here", 24).first(1)[0]
    ahead.join()
    assert ahead.exitcode == 0
    (path,) = (tmp_path / "ahead").iterdir()
    with np.load(path, allow_pickle=False) as file:
        np.testing.assert_array_equal(file["rgb"], here.rgb)
        np.testing.assert_array_equal(file["depth_mm"], here.depth_mm)


@pytest.fixture
def trained_model():
    """A small model with no weight, bias or statistic at the value it began with."""
    model, draws = small_model().eval(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=draws)
                value.add_(noise * (1 if "running_var" in name else 0.2))
    return model


@pytest.mark.parametrize("widths", [(12, 32), (8, 80), (8, 32)])
def test_a_widened_model_predicts_what_the_model_did(trained_model, widths):
    pictures = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    wide = widened(trained_model, *widths).eval()
    with torch.no_grad():
        before, after = (m(pictures).predicted_depth for m in (trained_model, wide))
    assert float(before.std()) > 0.01
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    counts = [sum(p.numel() for p in m.parameters()) for m in (trained_model, wide)]
    assert (counts[1] > counts[0]) == (widths != (8, 32))
    # Nothing is cut off for good: old channels learn to hear the new ones.
    wide.train()
    wide(pictures, output_hidden_states=True).hidden_states[-1].square().mean().backward()
    deaf = [p.grad[p == 0] for p in wide.parameters() if p.ndim == 4 and bool((p == 0).any())]
    assert bool(deaf) == (widths != (8, 32)) and all(bool((grad != 0).any()) for grad in deaf)


def test_a_model_is_not_made_narrower(trained_model):
    for widths in ((4, 32), (8, 16)):
        with pytest.raises(TrainingError, match="growth rate of 8 and 32 decoder channels, more"):
            widened(trained_model, *widths)


def test_a_few_steps_reduce_the_loss(tiny):
    settings, data = tiny
    settings = replace(settings, steps=60, small_steps=0, cooldown=10)
    losses = [loss for _, loss in training.train(training.Trainer(settings, small_model()), data)]
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10])


def test_a_killed_run_ends_in_the_same_weights(tiny, tmp_path):
    settings, data = tiny
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = training.Trainer(settings, small_model())
        for _ in training.train(whole, data):
            pass
        checkpoint = tmp_path / "checkpoint.safetensors"
        stopped = training.Trainer(settings, small_model(), checkpoint)
        for step, _ in training.train(stopped, data, save_every=5):
            if step == 8:  # killed three steps after the last checkpoint
                break
        resumed = training.Trainer(settings, small_model(), checkpoint)
        assert resumed.step == 5
        for _ in training.train(resumed, data):
            pass
        for trainer in (whole, resumed):
            trainer.measure_norms(data)
        first, second = (trainer.model.state_dict() for trainer in (whole, resumed))
    finally:
        torch.set_num_threads(threads)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_what_lies_ahead_may_change_in_a_run(tiny, tmp_path):
    settings, data = tiny
    checkpoint = tmp_path / "checkpoint.safetensors"
    trainer = training.Trainer(settings, small_model(), checkpoint)
    trainer.train_step(data)
    trainer.save()
    with pytest.raises(TrainingError, match="other settings"):
        training.Trainer(replace(settings, seed=1), small_model(), checkpoint)
    with pytest.raises(TrainingError, match="another start model"):
        training.Trainer(settings, small_model(), checkpoint, start_sha256="0f1e2d")
    longer = training.Trainer(replace(settings, steps=20), small_model(), checkpoint)
    assert longer.step == 1
    with pytest.raises(TrainingError, match="other settings"):  # it would be in its cooldown
        training.Trainer(replace(settings, steps=4), small_model(), checkpoint)
