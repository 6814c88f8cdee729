"""The factory still runs; `make test-long` tests what it makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from builder.depth.densedepth import DenseDepthForDepthEstimation
from factory import measure_densedepth, scenes, train_densedepth
from factory.widen import widened

MODEL = Path(__file__).parents[2] / "builder" / "demo" / "depth"


def test_a_scene_is_drawn_and_learned_from(tmp_path):
    model = DenseDepthForDepthEstimation.from_pretrained(MODEL)
    growth, channels = model.config.growth_rate, model.config.decoder_channels
    model = widened(model, growth + 8, channels + 16)
    settings = train_densedepth.Settings(
        scenes=2, new_scenes=0, side_px=32, small_steps=0, steps=2, cooldown=1, batch=2,
        photographs=1, warmup=1, growth_rate=growth + 8, decoder_channels=channels + 16,
    )  # fmt: skip
    drawn = train_densedepth.render_scenes(0, 2, 32, pasted=True)
    assert 100 <= drawn.depth_mm.min() < drawn.depth_mm.max() <= 10_000
    pool = train_densedepth.ScenePool(tmp_path, 32)
    pool.chunks.append(
        train_densedepth.Pool(
            *(np.concatenate([part] * 50)[: train_densedepth.CHUNK] for part in drawn)
        )
    )
    cutouts = [scenes.render_cutout(1, 32, "mug", samples=1)]
    trainer = train_densedepth.Trainer(settings, model, start_sha256="0f1e2d")
    losses = [
        loss
        for _, loss in train_densedepth.train(trainer, train_densedepth.Data(pool, drawn, cutouts))
    ]
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    assert torch.isfinite(model.head.weight).all()


def test_the_card_is_made_of_the_metrics():
    metrics = json.loads((MODEL / "metrics.json").read_text())
    assert (MODEL / "README.md").read_text() == measure_densedepth.model_card(metrics)
