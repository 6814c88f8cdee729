"""Train the demo depth model on rendered scenes: `python -m training.train_densedepth --out
FOLDER`.

One seeded run from nothing: render a pool of scenes to a work folder, train a small DenseDepth on
it, estimate its BatchNorm statistics afresh, measure it on scenes of held-out seeds, write the
model folder. Every stage is resumable: finished chunks of the pool are kept, and training goes on
from its last checkpoint (one safetensors file) with the same batches it would have had without the
interruption.

Arrays are (N, S, S, 3) uint8 RGB and (N, S, S) uint16 depth in mm; tensors (B, 3, S, S) in 0..1 and
(B, S, S) float32 metres.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from builder.densedepth import (
    DenseDepthConfig,
    DenseDepthForDepthEstimation,
    DenseDepthImageProcessor,
)
from training import scenes

Pictures = npt.NDArray[np.uint8]
Millimetres = npt.NDArray[np.uint16]
Metrics = dict[str, float]

HELD_OUT_SEED = 1_000_000
CHUNK = 100
CHECKPOINT = "checkpoint.safetensors"

logger = logging.getLogger("train_densedepth")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights; the defaults are the demo model."""

    seed: int = 0
    pool: int = 2600
    pool_side_px: int = 288
    held_out: int = 200
    # (side in px, batch, steps, least share of a side kept by crops). Most of the learning happens
    # small, the end at the size of use. A crop is a narrower view, which makes everything look
    # nearer than it is; so the last stage takes whole pictures, or depths would come out too large.
    stages: tuple[tuple[int, int, int, float], ...] = (
        (128, 32, 1600, 0.82),
        (256, 16, 1150, 0.82),
        (256, 16, 700, 1.0),
    )
    learning_rate: float = 3e-3
    warmup_steps: int = 200
    # The rate follows half a cosine over `cosine_steps` up to step `linear_from`, then a line aimed
    # at step `linear_to`, and through the last stage a flatter line to the end.
    cosine_steps: int = 2800
    linear_from: int = 1250
    linear_to: int = 3100
    weight_decay: float = 1e-4
    average_decay: float = 0.998
    log_weight: float = 3.0
    statistics_batches: int = 60
    num_init_features: int = 32
    growth_rate: int = 16
    block_config: tuple[int, ...] = (4, 6, 10, 8)
    decoder_channels: int = 192

    @property
    def steps(self) -> int:
        return sum(stage[2] for stage in self.stages)

    def stage(self, step: int) -> tuple[int, int, float]:
        """Side in px, batch and least share of a step; past the end, those of the last step."""
        for side, batch, steps, least in self.stages:
            if step < steps:
                return side, batch, least
            step -= steps
        side, batch, _, least = self.stages[-1]
        return side, batch, least


# --------------------------------------------------------------------------------------------- data


def render_chunk(folder: Path, first_seed: int, count: int, side: int) -> Path:
    """Renders `count` scenes to one .npz file named by its seeds, unless it is there already."""
    path = folder / f"scenes-{side}-{first_seed:07d}-{count}.npz"
    if path.exists():
        return path
    rgb = np.empty((count, side, side, 3), np.uint8)
    depth_mm = np.empty((count, side, side), np.uint16)
    for index in range(count):
        rgb[index], depth_m = scenes.render(first_seed + index, (side, side))
        depth_mm[index] = np.round(depth_m * 1000)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("wb") as file:
        np.savez(file, rgb=rgb, depth_mm=depth_mm)
    unfinished.replace(path)
    return path


def render_pool(
    folder: Path, first_seed: int, count: int, side: int, workers: int
) -> tuple[Pictures, Millimetres]:
    """Scenes of `count` seeds in a row: (N, S, S, 3) uint8 RGB, (N, S, S) uint16 depth in mm."""
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(first_seed, first_seed + count, CHUNK)
    sizes = [min(CHUNK, first_seed + count - first) for first in firsts]
    with ProcessPoolExecutor(workers) as executor:
        jobs = [
            executor.submit(render_chunk, folder, first, size, side)
            for first, size in zip(firsts, sizes, strict=True)
        ]
        paths = [job.result() for job in jobs]
    rgb = np.empty((count, side, side, 3), np.uint8)
    depth_mm = np.empty((count, side, side), np.uint16)
    start = 0
    for path, size in zip(paths, sizes, strict=True):
        with np.load(path, allow_pickle=False) as chunk:
            rgb[start : start + size] = chunk["rgb"]
            depth_mm[start : start + size] = chunk["depth_mm"]
        start += size
    return rgb, depth_mm


def halved(rgb: Pictures) -> Pictures:
    """Pictures at half their size, every pixel the mean of four: (N, S/2, S/2, 3)."""
    count, height, width, _ = rgb.shape
    small = np.empty((count, height // 2, width // 2, 3), np.uint8)
    for index, picture in enumerate(rgb):
        cells = picture.reshape(height // 2, 2, width // 2, 2, 3)
        small[index] = (cells.sum((1, 3), dtype=np.uint16) + 2) // 4
    return small


def _jitter(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Changes brightness, contrast, saturation and colour balance of (B, 3, S, S), each image its
    own way.
    """
    count = len(pictures)

    def draw(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, channels, 1, 1)).astype(np.float32))

    grey = pictures.mean(1, keepdim=True)
    saturation = draw(0.3, 1.4) * (draw(0, 1) > 0.05)
    pictures = grey + (pictures - grey) * saturation
    middle = pictures.mean((1, 2, 3), keepdim=True)
    pictures = middle + (pictures - middle) * draw(0.75, 1.3)
    pictures = (pictures * draw(0.75, 1.25) * draw(0.92, 1.08, 3)).clamp(1e-3, 1)
    pictures = pictures ** draw(0.8, 1.25)
    noise = rng.standard_normal(pictures.shape, np.float32)
    return (pictures + torch.from_numpy(noise) * draw(0, 0.02)).clamp(0, 1)


def make_batch(
    rgb: Pictures, depth_mm: Millimetres, settings: Settings, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of a step, a function of the settings and the step alone.

    Returns pictures (B, 3, S, S) in 0..1 and metric labels (B, S/2, S/2) in metres, the size the
    network predicts. Crops keep most of each side, so that the field of view, and with it the
    metric scale, stays about the same.
    """
    side, batch, least = settings.stage(step)
    rng = np.random.default_rng([settings.seed, step])
    # Every pass over the pool is a permutation of it; an epoch's order depends on its number alone.
    done = sum(settings.stage(before)[1] for before in range(step))
    places = np.arange(done, done + batch)
    orders = {
        epoch: np.random.default_rng([settings.seed, 1, epoch]).permutation(len(rgb))
        for epoch in np.unique(places // len(rgb))
    }
    pictures, labels = [], []
    for place in places:
        index = int(orders[place // len(rgb)][place % len(rgb)])
        height, width = (int(full * rng.uniform(least, 1)) for full in rgb.shape[1:3])
        top = int(rng.integers(0, rgb.shape[1] - height + 1))
        left = int(rng.integers(0, rgb.shape[2] - width + 1))
        window = (index, slice(top, top + height), slice(left, left + width))
        flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
        # Bytes with channels last: the layout torch resizes fastest.
        picture = torch.from_numpy(np.ascontiguousarray(rgb[window][:, flip])).permute(2, 0, 1)[
            None
        ]
        label = depth_mm[window][:, flip].astype(np.float32) / 1000
        # Half of the time by way of a coarser grid, as composites of 224 px are enlarged to 256.
        size = side if rng.random() < 0.5 else round(side * rng.uniform(0.6, 1))
        picture = F.interpolate(picture, (size, size), mode="bilinear", antialias=True)
        if size != side:
            picture = F.interpolate(picture, (side, side), mode="bilinear")
        pictures.append(picture)
        half = (side // 2, side // 2)
        labels.append(
            F.interpolate(torch.from_numpy(label)[None, None], half, mode="nearest-exact")[0]
        )
    return _jitter(torch.cat(pictures).float() / 255, rng), torch.cat(labels)


# ----------------------------------------------------------------------------------------- training


def make_model(settings: Settings) -> DenseDepthForDepthEstimation:
    """A fresh, seeded network of the demo's size, predicting about 3 m everywhere."""
    torch.manual_seed(settings.seed)
    config = DenseDepthConfig(
        num_init_features=settings.num_init_features,
        growth_rate=settings.growth_rate,
        block_config=settings.block_config,
        decoder_channels=settings.decoder_channels,
        leaky_between_convs=True,
        align_corners=False,
        min_depth=scenes.MIN_DEPTH_M,
        max_depth=scenes.MAX_DEPTH_M,
    )
    model = DenseDepthForDepthEstimation(config)
    with torch.no_grad():
        model.head.weight.mul_(0.1)
        if model.head.bias is not None:
            model.head.bias.fill_(scenes.MAX_DEPTH_M / 3)
    return model


class Trainer:
    """Model, optimizer and weight average, with one checkpoint file that holds all three."""

    def __init__(self, settings: Settings, checkpoint: Path | None = None) -> None:
        self.settings = settings
        self.checkpoint = checkpoint
        self.step = 0
        self.model = make_model(settings)
        # Half again as fast; convolution weights alone have the four dimensions this is about.
        for parameter in self.model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    def train_step(self, rgb: Pictures, depth_mm: Millimetres) -> float:
        """One optimizer step on the batch of the current step; returns its loss."""
        self.model.train()
        pictures, labels = make_batch(rgb, depth_mm, self.settings, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        # bfloat16 doubles the speed on CPUs with AMX; weights, norms' statistics and loss stay
        # float32.
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(
                pictures.contiguous(memory_format=torch.channels_last),
                labels=labels,
                output_hidden_states=True,
            )
        loss = output.loss + self.settings.log_weight * _log_error(output.hidden_states[-1], labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 5.0)
        self.optimizer.step()
        self.step += 1
        # A short memory at first, so that the average forgets the random start.
        keep = min(self.settings.average_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter, 1 - keep)
        return float(loss.detach())

    def _learning_rate(self) -> float:
        """Linear warm-up, part of a cosine, then two straight lines down to a hundredth."""
        settings = self.settings
        warm = min(1.0, (self.step + 1) / max(1, settings.warmup_steps))
        bend = min(self.step, settings.linear_from)
        share = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * bend / settings.cosine_steps))
        kink = settings.steps - settings.stages[-1][2]
        if self.step > bend:
            left = settings.linear_to - min(self.step, kink)
            share = 0.01 + (share - 0.01) * left / (settings.linear_to - settings.linear_from)
        if self.step > max(kink, bend):
            share = 0.01 + (share - 0.01) * (settings.steps - self.step) / (settings.steps - kink)
        return settings.learning_rate * warm * share

    def save(self) -> None:
        """Writes the checkpoint under a temporary name, then renames it."""
        if self.checkpoint is None:
            return
        tensors = {f"model.{k}": v.contiguous().clone() for k, v in self.model.state_dict().items()}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state[parameter]
            tensors[f"average.{name}"] = self.average[name].contiguous()
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}.{name}"] = state[key].contiguous()
        unfinished = self.checkpoint.with_suffix(".tmp")
        save_file(
            tensors, unfinished, {"step": str(self.step), "settings": _as_json(self.settings)}
        )
        unfinished.replace(self.checkpoint)

    def _load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            if header["settings"] != _as_json(self.settings):
                raise click.ClickException(
                    f"{path} was written with other settings; delete it or choose another --work."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.step = int(header["step"])
        weights = {
            k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")
        }
        self.model.load_state_dict(weights)
        for name, parameter in self.parameters.items():
            self.average[name].copy_(tensors[f"average.{name}"])
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": torch.empty_like(parameter).copy_(tensors[f"exp_avg.{name}"]),
                "exp_avg_sq": torch.empty_like(parameter).copy_(tensors[f"exp_avg_sq.{name}"]),
            }

    @torch.no_grad()
    def finished_model(self, rgb: Pictures, depth_mm: Millimetres) -> DenseDepthForDepthEstimation:
        """The averaged weights, with BatchNorm statistics measured anew at the last size."""
        model = make_model(self.settings)
        model.load_state_dict(self.model.state_dict())
        for name, parameter in model.named_parameters():
            parameter.copy_(self.average[name])
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches
        model.train()
        first = self.settings.steps
        for step in range(first, first + self.settings.statistics_batches):
            model(make_batch(rgb, depth_mm, self.settings, step)[0])
        for norm in norms:
            norm.momentum = 0.1
        model.train(mode=False)
        return model


def _log_error(inverse_depth: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean |log| ratio of predicted and true depth: the relative error that the paper's loss leaves
    out.

    Taken before clipping, so that a prediction beyond the range still has a gradient.
    """
    known = labels > 0
    target = scenes.MAX_DEPTH_M / labels.clamp(scenes.MIN_DEPTH_M, scenes.MAX_DEPTH_M)
    error = (inverse_depth[:, 0].clamp(min=0.3).log() - target.log()).abs()
    return (error * known).sum() / known.sum().clamp(min=1)


def _as_json(settings: Settings) -> str:
    return json.dumps(asdict(settings), sort_keys=True)


def train(
    trainer: Trainer, rgb: Pictures, depth_mm: Millimetres, *, save_every: int = 250
) -> Iterator[tuple[int, float]]:
    """Trains to the end of the settings' steps; yields (step, loss) after each, checkpointing on
    the way.
    """
    half_rgb = halved(rgb) if rgb.shape[1] % 2 == 0 else rgb
    while trainer.step < trainer.settings.steps:
        # Steps at small size read small pictures, or resizing would cost as much as training.
        small = trainer.settings.stage(trainer.step)[0] < half_rgb.shape[1]
        loss = trainer.train_step(
            *((half_rgb, depth_mm[:, ::2, ::2]) if small else (rgb, depth_mm))
        )
        if trainer.step % save_every == 0 or trainer.step == trainer.settings.steps:
            trainer.save()
        yield trainer.step, loss


# --------------------------------------------------------------------------------------- evaluation


def depth_errors(predicted_m: torch.Tensor, true_m: torch.Tensor) -> Metrics:
    """The usual errors of (B, h, w) depths in metres, each a mean over images of the image's value.

    Source: Eigen et al., arXiv 1406.2283 (rmse in metres, the others without unit).
    """
    ratio = predicted_m / true_m
    worst = torch.maximum(ratio, 1 / ratio)

    def mean(values: torch.Tensor) -> torch.Tensor:
        return values.flatten(1).mean(1)

    return {
        "abs_rel": float(mean((ratio - 1).abs()).mean()),
        "rmse": float(mean((predicted_m - true_m) ** 2).sqrt().mean()),
        "log10": float(mean(ratio.log10().abs()).mean()),
        "delta1": float(mean((worst < 1.25).float()).mean()),
        "delta2": float(mean((worst < 1.25**2).float()).mean()),
        "delta3": float(mean((worst < 1.25**3).float()).mean()),
    }


@torch.no_grad()
def predict(model: torch.nn.Module, rgb: Pictures, side: int = 256) -> torch.Tensor:
    """Depth (N, side/2, side/2) in metres of pictures (N, S, S, 3), fed at `side` px."""
    predicted = []
    for some in np.array_split(rgb, max(1, len(rgb) // 10)):
        pictures = torch.from_numpy(some).permute(0, 3, 1, 2).float() / 255
        if pictures.shape[-1] != side:
            pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
        predicted.append(model(pictures).predicted_depth)
    return torch.cat(predicted)


def at_half_size(depth_mm: Millimetres, side: int = 256) -> torch.Tensor:
    """True depth in metres at the predictions' size, (N, side/2, side/2), by nearest pixel."""
    labels = torch.from_numpy(depth_mm.astype(np.float32) / 1000)[:, None]
    return F.interpolate(labels, (side // 2, side // 2), mode="nearest-exact")[:, 0]


def evaluate(
    model: torch.nn.Module, rgb: Pictures, depth_mm: Millimetres, mean_m: torch.Tensor
) -> dict[str, Metrics]:
    """Errors on held-out scenes (whose kinds follow each other in turn): overall, per kind, of the
    mean.

    `mean_m` (h, w) is the training scenes' mean depth per pixel: what one knows without looking.
    """
    predicted, true = predict(model, rgb), at_half_size(depth_mm)
    errors = {"all": depth_errors(predicted, true)}
    for index, kind in enumerate(scenes.KINDS):
        errors[kind] = depth_errors(
            predicted[index :: len(scenes.KINDS)], true[index :: len(scenes.KINDS)]
        )
    errors["baseline"] = depth_errors(mean_m.expand_as(true), true)
    return errors


def count_gflop(model: DenseDepthForDepthEstimation, side: int = 256) -> float:
    """Operations (two per multiply-add) of the convolutions for one image, in 1e9."""
    total = 0

    def count(module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
        total += 2 * weights * output.shape[-1] * output.shape[-2]

    hooks = [
        m.register_forward_hook(count) for m in model.modules() if isinstance(m, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return total / 1e9


def images_per_second(
    model: DenseDepthForDepthEstimation, side: int = 256, repeats: int = 5
) -> float:
    """Float32 images per second on one thread, batches of 4, best of `repeats`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pictures = torch.rand(4, 3, side, side)
    best = 0.0
    with torch.no_grad():
        for _ in range(repeats):
            start = time.perf_counter()
            model(pictures)
            best = max(best, 4 / (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return best


# ------------------------------------------------------------------------------------- model folder


def write_model(model: DenseDepthForDepthEstimation, folder: Path) -> None:
    """Writes config, image processor and float16 weights; the config asks loaders for float32
    again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    halves = {
        name: v.half() if v.is_floating_point() else v for name, v in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=halves)
    # Half precision is only how the weights are stored: on CPUs float32 is the better way to run
    # them.
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    DenseDepthImageProcessor(size={"height": 256, "width": 256}).save_pretrained(folder)


def model_card(metrics: dict[str, Any]) -> str:
    """The demo model's README.md, every number of it from `metrics`."""
    errors, settings, model = metrics["errors"], metrics["settings"], metrics["model"]
    rows = "\n".join(
        f"| {name} | " + " | ".join(f"{errors[key][column]:.3f}" for column in errors[key]) + " |"
        for name, key in [
            ("**all held-out scenes**", "all"),
            *((kind, kind) for kind in scenes.KINDS),
            ("baseline: mean training depth per pixel", "baseline"),
        ]
    )
    stages = ", then ".join(
        f"{steps} steps of {batch} at {side} px{'' if least < 1 else ' without crops'}"
        for side, batch, steps, least in settings["stages"]
    )
    values = settings | model
    values |= {
        "rows": rows,
        "stages": stages,
        "abs_rel": errors["all"]["abs_rel"],
        "baseline": errors["baseline"]["abs_rel"],
        "first_held_out": HELD_OUT_SEED,
        "last_held_out": HELD_OUT_SEED + settings["held_out"] - 1,
        "last_train": settings["pool"] - 1,
        "minutes": metrics["minutes"],
    }
    return _CARD.format(**values)


_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: depth-estimation
tags:
- depth-estimation
- monocular-depth
- densedepth
- synthetic-data
- demo
---

# DenseDepth demo model

**This is a demo model.** It is a very small DenseDepth ({parameters:,} parameters, {size_mb:.2f}
MB) trained for under an hour on one CPU core, on nothing but pictures that this project draws
itself. It exists so that the package can build, show and test a dataset of composites with
believable depth maps offline. It has never seen a photograph. Do not use it to measure anything.

For real work name a real model, for example
`--depth-model depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf`, or convert the published
DenseDepth weights (NYU Depth v2) with `builder/densedepth/convert_densedepth.py`.

## Use

```python
import builder.densedepth  # registers DenseDepth with the Auto classes
from transformers import pipeline

depth = pipeline("depth-estimation", model="builder/demo/depth")
depth("picture.jpg")["predicted_depth"]  # metres
```

Input: RGB at 256 x 256, values in [0, 1]. Output: z-depth (along the optical axis, not along the
ray) in metres within 0.1..10, at half the input's size; sky and everything beyond count as 10 m.
Weights are stored in float16 and loaded as float32.

## Measured error

On {held_out} scenes it was not trained on, without any alignment of scale: seeds
{first_held_out}..{last_held_out} of `training/scenes.py`, a quarter of each kind. About six in ten
contain pasted cut-outs, whose colours and views are not in the training set either (their fourteen
families of shapes are). Each value is a mean over images; rmse in metres.

| scenes | abs-rel | rmse | log10 | delta < 1.25 | delta < 1.25^2 | delta < 1.25^3 |
|---|---|---|---|---|---|---|
{rows}

abs-rel is {abs_rel:.3f}, against {baseline:.3f} for the per-pixel mean of the training depths. The
same numbers stand in `metrics.json`. These scenes were looked at while the training schedule was
chosen; `tests/unit/test_demo_model.py` measures 24 others, which were not.

## Training

- Data: {pool} scenes of `training/scenes.py`, seeds 0..{last_train}, {pool_side_px} px: rooms,
  corridors, courtyards and streets with textured floors, walls, furniture, trees, cars and figures,
  varied cameras and light, and exact depth from the ray caster. Six in ten have cut-outs pasted in
  as flat boards, standing on the ground or hanging in front of things.
- Network: DenseNet encoder with growth rate {growth_rate}, blocks {block_config} and
  {num_init_features} stem channels; decoder of {decoder_channels} channels; {gflop:.2f} GFLOP per
  image, {images_per_second:.0f} images per second on one CPU core (float32).
- Loss: the paper's (SSIM + gradients + 0.1 L1 on inverse depth) plus {log_weight} times the mean
  |log| ratio of depths.
- Steps: {stages}.
- AdamW, learning rate {learning_rate} with warm-up, cosine and linear decay; bfloat16 autocast;
  crops, mirroring, colour jitter, noise; the weights are a running average (decay {average_decay});
  BatchNorm statistics measured anew at the end.
- Cost: {minutes:.0f} minutes of training on one core of a CPU with AMX, which other work shared,
  and about five core-minutes per 1000 scenes for rendering.
- Seed {seed}. The same command gives the same scenes, batches and rates; last digits of the weights
  may differ between kinds of CPU and versions of torch. The shipped weights come from a run that
  was stopped and resumed at steps 1250 and 2750, where the rest of the schedule was changed to what
  the settings now say.

```
python -m training.train_densedepth --out builder/demo/depth
```

## Limits

- Photographs are outside what it knows: it mostly reads height in the picture, perspective of
  floors and walls, and size.
- Metric scale assumes a camera 0.8 to 2 m above the floor with a field of view around 60 degrees.
- A pasted object is taken to stand a little in front of where its foot meets the scene, or to hang
  somewhat nearer than what is behind it. Standing objects come out as soft blobs at about the right
  depth; those that hang in the air, above all in corridors, are often hardly seen, and thin parts
  are lost.
- Nothing beyond 10 m is told apart.

Licence: Apache-2.0, weights and training scenes alike.
"""


def _describe(model: DenseDepthForDepthEstimation, folder: Path) -> dict[str, float]:
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "size_mb": (folder / "model.safetensors").stat().st_size / 1e6,
        "gflop": count_gflop(model),
        "images_per_second": images_per_second(model),
    }


def finish(
    trainer: Trainer,
    rgb: Pictures,
    depth_mm: Millimetres,
    work: Path,
    out: Path,
    workers: int,
    minutes: float,
) -> dict[str, Any]:
    """Writes the model folder with its measured errors; returns what went into metrics.json."""
    settings = trainer.settings
    write_model(trainer.finished_model(rgb, depth_mm), out)
    # Measured as users will have it: read back from the float16 file.
    model = DenseDepthForDepthEstimation.from_pretrained(out, dtype=torch.float32)
    held_rgb, held_mm = render_pool(
        work / "pool", HELD_OUT_SEED, settings.held_out, settings.pool_side_px, workers
    )
    mean_m = sum(at_half_size(part).sum(0) for part in np.array_split(depth_mm, 20)) / len(depth_mm)
    assert isinstance(mean_m, torch.Tensor)
    metrics = {
        "errors": evaluate(model, held_rgb, held_mm, mean_m),
        "model": _describe(model, out),
        "settings": asdict(settings),
        "minutes": round(minutes),
    }
    rounded = json.loads(json.dumps(metrics), parse_float=lambda text: round(float(text), 5))
    (out / "metrics.json").write_text(json.dumps(rounded, indent=2) + "\n")
    (out / "README.md").write_text(model_card(rounded))
    return metrics


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Model folder to write."
)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("scratch/demo-model"),
    show_default=True,
    help="Folder for rendered scenes and the checkpoint; run again with the same one to resume.",
)
@click.option(
    "--workers", default=os.cpu_count() or 1, show_default=True, help="Processes that render."
)
@click.option("--pool", default=Settings.pool, show_default=True, help="Number of training scenes.")
@click.option(
    "--seed", default=Settings.seed, show_default=True, help="Seed of weights and batches."
)
def main(out: Path, work: Path, workers: int, pool: int, seed: int) -> None:
    """Render scenes, train the demo model on them, measure it, write its folder."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # One thread: the sums' order, and so the weights, do not depend on the number of cores, and two
    # threads that wait for each other after every layer are many times slower as soon as other work
    # takes a core.
    torch.set_num_threads(1)
    settings = replace(Settings(), pool=pool, seed=seed)
    logger.info("rendering %d scenes to %s", pool, work)
    rgb, depth_mm = render_pool(work / "pool", 0, pool, settings.pool_side_px, workers)
    trainer = Trainer(settings, work / CHECKPOINT)
    clock = work / "seconds.json"  # how long earlier, interrupted runs trained
    before = json.loads(clock.read_text()) if clock.exists() and trainer.step else 0.0
    start = time.monotonic()
    recent: list[float] = []
    for step, loss in train(trainer, rgb, depth_mm):
        recent = [*recent[-99:], loss]
        if step % 50 == 0:
            seconds = before + time.monotonic() - start
            clock.write_text(json.dumps(seconds))
            logger.info(
                "step %d of %d, loss %.3f, %.0f s", step, settings.steps, np.mean(recent), seconds
            )
    minutes = (before + time.monotonic() - start) / 60
    metrics = finish(trainer, rgb, depth_mm, work, out, workers, minutes)
    for name, errors in metrics["errors"].items():
        logger.info(
            "%-10s %s", name, "  ".join(f"{key} {value:.3f}" for key, value in errors.items())
        )


if __name__ == "__main__":
    main()
