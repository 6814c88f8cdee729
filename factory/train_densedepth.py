"""Train the demo depth model on: `python -m factory.train_densedepth START OUT`.

START is a model of the same design, the demo model as it was before; it may be narrower, and then
becomes as wide as the settings say (factory/widen.py). OUT becomes the model folder.

Training goes on with two kinds of pictures, seven in ten of them pasted over with cut-outs as
composites are: rendered scenes with exact depth (factory/scenes.py), and photographs with the
depth that a teacher sees in them (factory/photographs.py).

One seeded run, resumable at every stage: fetched packages and finished chunks of pictures are kept
in the work folder, and training goes on from its last checkpoint with the batches it would have
had. `python -m factory.measure_densedepth` measures what came out and writes its card.

Arrays are (N, S, S, 3) uint8 RGB and (N, S, S) uint16 depth in mm; tensors (B, 3, S, S) in 0..1 and
(B, S/2, S/2) float32 metres.
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from builder.depth.densedepth import (
    DenseDepthForDepthEstimation,
    DenseDepthImageProcessor,
)
from builder.depth.densedepth.modeling_densedepth import L1_WEIGHT, loss_terms
from builder.errors import TrainingError
from builder.files import sha256_file, write_bytes
from builder.finetune import checkpoint_state, load_checkpoint, save_checkpoint
from factory import photographs, scenes
from factory.photographs import Millimetres
from factory.scenes import Bytes
from factory.widen import widened

CHUNK = 100
CHECKPOINT = "checkpoint.safetensors"
WORK = Path("scratch/demo-model")
TRAINING = Path(__file__).with_name("demo_training.md")

logger = logging.getLogger("train_densedepth")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights; the defaults are the demo model."""

    seed: int = 0
    growth_rate: int = 32
    decoder_channels: int = 256
    scenes: int = 4000  # at the first step
    new_scenes: int = 2  # at every step
    crops: int = 24  # of each photograph
    side_px: int = 256
    batch: int = 16
    # The first steps learn at a smaller size, which costs about half.
    small_side_px: int = 192
    small_steps: int = 5000
    steps: int = 7800
    # The rate is constant, then falls straight to 0 in the cooldown. A crop is a narrower view,
    # which makes everything look nearer than it is; so pictures are whole in the cooldown.
    learning_rate: float = 1e-3
    cooldown: int = 4800
    photographs: int = 6  # of each batch
    warmup: int = 50
    weight_decay: float = 1e-4
    drawn_cutouts: int = 40  # besides those of photographs
    pasted: float = 0.7  # share of pictures with a cut-out
    least_side: float = 0.75  # that a crop keeps
    log_weight: float = 3.0
    teacher_weight: float = 0.4
    statistics_batches: int = 60

    def schedule(self, step: int) -> tuple[int, bool, float]:
        """Side in px, whether pictures are whole, and learning rate at a step."""
        side = self.small_side_px if step < self.small_steps else self.side_px
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        left = min(1.0, max(0, self.steps - step) / max(1, self.cooldown))
        return side, step >= self.steps - self.cooldown, self.learning_rate * warm * left

    def scenes_known(self, step: int) -> int:
        """How many scenes the batch of a step chooses from."""
        return self.scenes + self.new_scenes * step


class Pool(NamedTuple):
    """Pictures (N, S, S, 3) and their depths (N, S, S) in mm."""

    rgb: Bytes
    depth_mm: Millimetres


# --------------------------------------------------------------------------------------------- data


def cached(path: Path, make: Callable[[], Pool]) -> Pool:
    """What `make` returns, kept in one .npz file that is there whole or not at all."""
    if not path.exists():
        buffer = io.BytesIO()
        rgb, depth_mm = make()
        np.savez(buffer, rgb=rgb, depth_mm=depth_mm)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    with np.load(path, allow_pickle=False) as file:
        return Pool(file["rgb"], file["depth_mm"])


def render_scenes(first_seed: int, count: int, side: int, **how: object) -> Pool:
    """Scenes of `count` seeds in a row; `how` goes to `scenes.render`."""
    rgb = np.empty((count, side, side, 3), np.uint8)
    depth_mm = np.empty((count, side, side), np.uint16)
    for index in range(count):
        rgb[index], depth_m = scenes.render(first_seed + index, (side, side), **how)  # type: ignore[arg-type]
        depth_mm[index] = np.round(depth_m * 1000)
    return Pool(rgb, depth_mm)


class ScenePool:
    """Scenes without cut-outs, rendered in chunks that are kept; every second six are handheld.

    It grows while the training goes on: rendering them all first would take as long again.
    """

    def __init__(self, folder: Path, side: int) -> None:
        self.folder, self.side = folder, side
        self.chunks: list[Pool] = []

    def first(self, count: int) -> list[Pool]:
        """Chunks that hold at least the first `count` scenes."""
        while CHUNK * len(self.chunks) < count:
            self.chunks.append(self.chunk(CHUNK * len(self.chunks)))
        return self.chunks

    def chunk(self, first: int) -> Pool:
        """The chunk that begins with a scene."""
        path = self.folder / f"bare-{self.side}-{first:07d}-{CHUNK}.npz"
        return cached(path, lambda: self._render(first))

    def _render(self, first: int) -> Pool:
        kinds = len(scenes.KINDS)
        parts = [
            render_scenes(seed, 1, self.side, pasted=False, handheld=seed // kinds % 2 == 1)
            for seed in range(first, first + CHUNK)
        ]
        return Pool(*map(np.concatenate, zip(*parts, strict=True)))


def render_ahead(pool: ScenePool, count: int) -> BaseProcess:
    """Start a process that renders the first `count` scenes into the pool's folder.

    It gives way to all other work, and ends with this process.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_render_chunks, args=(pool, count), daemon=True)
    process.start()
    return process


def _render_chunks(pool: ScenePool, count: int) -> None:
    os.nice(15)
    for first in range(0, count, CHUNK):
        pool.chunk(first)


class Data(NamedTuple):
    """What batches are made of."""

    scenes: ScenePool
    photographs: Pool
    cutouts: list[Bytes]

    def pick(self, rng: np.random.Generator, scenes: int) -> tuple[Bytes, Millimetres]:
        """One of the first `scenes` scenes, or one of the photographs if 0."""
        if not scenes:
            index = int(rng.integers(len(self.photographs.rgb)))
            return self.photographs.rgb[index], self.photographs.depth_mm[index]
        index = int(rng.integers(scenes))
        chunk = self.scenes.first(scenes)[index // CHUNK]
        return chunk.rgb[index % CHUNK], chunk.depth_mm[index % CHUNK]


def prepare(work: Path, settings: Settings) -> Data:
    """Fetch, render and label everything that is not in the work folder yet."""
    fetched, side = work / "fetched", settings.side_px
    photographs.fetch(fetched)
    logger.info("labelling photographs in %s", work)

    def crops() -> Pool:
        pictures, _ = photographs.split(photographs.photographs(fetched))
        return Pool(
            *photographs.label_crops(fetched, pictures, settings.crops, side, settings.seed)
        )

    name = f"photographs-{side}-{settings.crops}-{settings.seed}.npz"
    labelled = cached(work / "pool" / name, crops)
    rendered = ScenePool(work / "pool", side)
    drawn = [scenes.library_cutout(seed) for seed in range(settings.drawn_cutouts)]
    return Data(rendered, labelled, drawn + photographs.stamps(fetched, kept=False))


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


def _as_jpeg(rgb: Bytes, quality: int) -> Bytes:
    """What a JPEG file keeps of a picture (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def _example(
    data: Data, settings: Settings, rng: np.random.Generator, *, scenes_known: int, least: float
) -> tuple[Bytes, scenes.Array]:
    """One picture and its depth in metres: cropped, mirrored, pasted over, perhaps JPEG."""
    rgb, depth_mm = data.pick(rng, scenes_known)
    height, width = (int(full * rng.uniform(least, 1)) for full in depth_mm.shape)
    top = int(rng.integers(0, depth_mm.shape[0] - height + 1))
    left = int(rng.integers(0, depth_mm.shape[1] - width + 1))
    window = (slice(top, top + height), slice(left, left + width))
    flip = slice(None, None, -1 if rng.random() < 0.5 else 1)
    rgb = rgb[window][:, flip]
    depth_m = depth_mm[window][:, flip].astype(np.float32) / 1000
    if rng.random() < settings.pasted:
        picture = rgb.astype(np.float32) / 255
        for _ in range(1 + int(rng.random() < 0.25)):
            cutout = data.cutouts[int(rng.integers(len(data.cutouts)))]
            scenes.paste(picture, depth_m, cutout, rng)
        rgb = np.round(picture * 255).astype(np.uint8)
    if rng.random() < 0.3:
        rgb = _as_jpeg(np.ascontiguousarray(rgb), int(rng.integers(40, 96)))
    return rgb, depth_m


def make_batch(data: Data, settings: Settings, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of a step, a function of the settings and the step alone.

    Returns pictures (B, 3, S, S) in 0..1 and labels (B, S/2, S/2) in metres, the size the network
    predicts; photographs come first.
    """
    side, whole, _ = settings.schedule(step)
    known = settings.scenes_known(step)
    rng = np.random.default_rng([settings.seed, step])
    pictures, labels = [], []
    for place in range(settings.batch):
        rgb, depth_m = _example(
            data,
            settings,
            rng,
            scenes_known=0 if place < settings.photographs else known,
            least=1.0 if whole else settings.least_side,
        )
        # Bytes with channels last: the layout torch resizes fastest.
        picture = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None]
        # Half of the time by way of a coarser grid, as composites of 224 px are enlarged to 256.
        size = side if rng.random() < 0.5 else round(side * rng.uniform(0.6, 1))
        picture = F.interpolate(picture, (size, size), mode="bilinear", antialias=True)
        if size != side:
            picture = F.interpolate(picture, (side, side), mode="bilinear")
        pictures.append(picture)
        half = (side // 2, side // 2)
        label = torch.from_numpy(np.ascontiguousarray(depth_m))[None, None]
        labels.append(F.interpolate(label, half, mode="nearest-exact")[0])
    return _jitter(torch.cat(pictures).float() / 255, rng), torch.cat(labels)


# ----------------------------------------------------------------------------------------- training


def _log_ratio(inverse_depth: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log of predicted by true inverse depth, (B, h, w).

    Taken before clipping, so that a prediction beyond the range still has a gradient.
    """
    target = scenes.MAX_DEPTH_M / labels.clamp(scenes.MIN_DEPTH_M, scenes.MAX_DEPTH_M)
    return inverse_depth[:, 0].float().clamp(min=0.3).log() - target.log()


def scene_loss(
    inverse_depth: torch.Tensor, labels: torch.Tensor, log_weight: float
) -> torch.Tensor:
    """The paper's loss of predictions (B, 1, h, w) against exact depths (B, h, w) in metres, and
    `log_weight` times the mean |log| ratio: the relative error that the paper's loss leaves out.
    """
    near, far = scenes.MIN_DEPTH_M, scenes.MAX_DEPTH_M
    target = far / labels[:, None].clamp(near, far)
    known = torch.ones_like(target, dtype=torch.bool)
    l1, gradient, ssim = loss_terms(inverse_depth, target, known, far / near)
    return (
        L1_WEIGHT * l1
        + gradient
        + ssim
        + log_weight * _log_ratio(inverse_depth, labels).abs().mean()
    )


def teacher_loss(inverse_depth: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How predictions (B, 1, h, w) differ from the teacher's depths (B, h, w) in metres.

    The teacher knows rooms. Of other photographs its scale and its contrast mean little: it sees
    the sky at 3 m. So both log depths are brought to median 0 and mean deviation 1 in each image
    (arXiv 1907.01341), and compared: their difference, its gradients at three scales (arXiv
    1804.00607), and the order of pairs of pixels. Images that the teacher finds flat count less.
    What is left of its scale is a tenth of the plain |log| ratio.
    """
    ratio = _log_ratio(inverse_depth, labels)
    true = labels.log()
    predicted, _ = _standardised(true - ratio)
    target, contrast = _standardised(true)
    error = predicted - target
    weight = (contrast / 0.15).clamp(max=1)[:, 0, 0]
    total = error.abs().mean((1, 2))
    for step in (1, 2, 4):
        part = F.avg_pool2d(error[:, None], step)[:, 0]
        across, down = (part.diff(dim=dim).abs().mean((1, 2)) for dim in (1, 2))
        total = total + 0.5 * (across + down)
    # A fixed stride pairs every cell with one far away in the picture; no randomness is needed.
    one, other = (F.avg_pool2d(m[:, None], 4).flatten(1) for m in (predicted, target))
    shift = one.shape[1] * 5 // 13
    gap, true_gap = one - one.roll(shift, 1), other - other.roll(shift, 1)
    total = total + 0.3 * (F.softplus(-4 * gap * true_gap.sign()) * (true_gap.abs() > 0.3)).mean(1)
    return (total * weight).mean() + 0.1 * ratio.abs().mean()


def _standardised(log_depth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (B, h, w) at median 0 and mean deviation 1, and that deviation (B, 1, 1)."""
    centred = log_depth - log_depth.flatten(1).median(1).values[:, None, None]
    deviation = centred.abs().mean((1, 2), keepdim=True).clamp(min=0.03)
    return centred / deviation, deviation


def _as_json(settings: Settings | dict[str, Any]) -> dict[str, Any]:
    values = settings if isinstance(settings, dict) else asdict(settings)
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


class Trainer:
    """Model and optimizer, with one checkpoint file that holds both."""

    def __init__(
        self,
        settings: Settings,
        model: DenseDepthForDepthEstimation,
        checkpoint: Path | None = None,
        start_sha256: str = "",
    ) -> None:
        self.settings, self.model, self.checkpoint = settings, model, checkpoint
        self.start_sha256 = start_sha256  # of the weights that the training began with
        self.step, self.seconds = 0, 0.0
        self.losses: list[tuple[int, float]] = []
        # Half again as fast; convolution weights alone have the four dimensions this is about.
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(model.parameters(), weight_decay=settings.weight_decay)
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    def train_step(self, data: Data) -> float:
        """One optimizer step on the batch of the current step; returns its loss."""
        settings = self.settings
        self.model.train()
        pictures, labels = make_batch(data, settings, self.step)
        rate, split = settings.schedule(self.step)[2], settings.photographs
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # bfloat16 doubles the speed on CPUs with AMX; weights, norms' statistics and loss stay
        # float32.
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model(
                pictures.contiguous(memory_format=torch.channels_last), output_hidden_states=True
            ).hidden_states[-1]
        exact, true_m = hidden[split:].float(), labels[split:]
        loss = scene_loss(exact, true_m, settings.log_weight)
        if split:
            taught = teacher_loss(hidden[:split].float(), labels[:split])
            loss = loss + settings.teacher_weight * taught
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def save(self) -> None:
        """Write the checkpoint: whole or not at all."""
        if self.checkpoint is not None:
            state = {
                "step": self.step,
                "seconds": self.seconds,
                "losses": self.losses,
                "settings": _as_json(self.settings),
                "start_sha256": self.start_sha256,
            }
            save_checkpoint(self.checkpoint, self.model, self.optimizer, state)

    def _load(self, path: Path) -> None:
        state = checkpoint_state(path)
        held, now, done = _as_json(state["settings"]), _as_json(self.settings), state["step"]
        # What lies ahead may be changed: more steps, an earlier fall of the rate.
        ahead = ("steps", "cooldown", "small_steps", "statistics_batches")
        changed = Settings(**{**now, **{name: held[name] for name in ahead}})
        if (
            state["start_sha256"] != self.start_sha256
            or {**held, **{name: now[name] for name in ahead}} != now
            or any(changed.schedule(step) != self.settings.schedule(step) for step in range(done))
        ):
            raise TrainingError(
                f"{path} was written with other settings or another start model; delete it or "
                "choose another --work."
            )
        load_checkpoint(path, self.model, self.optimizer)
        self.step, self.seconds = state["step"], state["seconds"]
        self.losses = [(step, loss) for step, loss in state["losses"]]

    @torch.no_grad()
    def measure_norms(self, data: Data) -> None:
        """Measure the BatchNorm statistics anew, in float32 and with the weights as they are."""
        norms = [m for m in self.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over all batches
        self.model.train()
        first = self.settings.steps
        for step in range(first, first + self.settings.statistics_batches):
            self.model(make_batch(data, self.settings, step)[0])
        self.model.train(mode=False)


def train(trainer: Trainer, data: Data, *, save_every: int = 25) -> Iterator[tuple[int, float]]:
    """Train to the end of the settings' steps; yields (step, loss) after each, checkpointing on
    the way.
    """
    recent: list[float] = []
    while trainer.step < trainer.settings.steps:
        start = time.process_time()
        loss = trainer.train_step(data)
        trainer.seconds += time.process_time() - start
        recent.append(loss)
        if trainer.step % save_every == 0 or trainer.step == trainer.settings.steps:
            trainer.losses.append((trainer.step, round(float(np.mean(recent)), 4)))
            recent.clear()
            trainer.save()
        yield trainer.step, loss


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


def load_model(folder: Path) -> DenseDepthForDepthEstimation:
    """A model folder's network in float32, for inference."""
    return DenseDepthForDepthEstimation.from_pretrained(folder, dtype=torch.float32)


def training_log(trainer: Trainer) -> dict[str, Any]:
    """What the model's card says of its training: text, settings, cost and losses."""
    settings, minutes = trainer.settings, trainer.seconds / 60
    sources = [(name, license) for name, (_, license) in photographs.DEBIAN.items()]
    sources += [(f"{name} (wheel)", license) for name, (_, license) in photographs.WHEELS.items()]
    text = TRAINING.read_text(encoding="utf-8").format(
        **asdict(settings),
        last_scenes=settings.scenes_known(settings.steps),
        sources="\n".join(f"| `{name}` | {license} |" for name, license in sources),
        start_sha256=trainer.start_sha256,
        sha256=photographs.TEACHER_SHA256,
        core_minutes=minutes,
        losses="\n".join(
            f"| {step} | {loss:.3f} |"
            for step, loss in trainer.losses[:: -max(1, len(trainer.losses) // 12)][::-1]
        ),
    )
    return {
        "text": text.strip(),
        "settings": _as_json(settings),
        "core_minutes": round(minutes, 1),
        "loss": trainer.losses,
    }


@click.command()
@click.argument("start", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=WORK,
    show_default=True,
    help="Folder for pictures and the checkpoint; run again with the same one to resume.",
)
@click.option("--seed", default=Settings.seed, show_default=True, help="Seed of batches and crops.")
def main(start: Path, out: Path, work: Path, seed: int) -> None:
    """Train the model in START on, and write the model folder OUT."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    # One thread: the sums' order, and so the weights, do not depend on the number of cores, and two
    # threads that wait for each other after every layer are many times slower as soon as other work
    # takes a core.
    torch.set_num_threads(1)
    settings = replace(Settings(), seed=seed)
    data = prepare(work, settings)
    narrow = load_model(start)
    torch.manual_seed(seed)
    model = widened(narrow, settings.growth_rate, settings.decoder_channels)
    start_sha256 = sha256_file(start / "model.safetensors")
    trainer = Trainer(settings, model, work / CHECKPOINT, start_sha256)
    # A scene takes a third of a step: this process finds those it needs, and renders what is late.
    last = settings.scenes_known(settings.steps + settings.statistics_batches)
    render_ahead(ScenePool(data.scenes.folder, settings.side_px), last)
    for step, _ in train(trainer, data):
        if trainer.losses and step == trainer.losses[-1][0]:
            loss, seconds = trainer.losses[-1][1], trainer.seconds
            logger.info("step %d of %d, loss %.3f, %.0f s", step, settings.steps, loss, seconds)
    trainer.measure_norms(data)
    write_model(trainer.model, out)
    content = {"training": training_log(trainer)}
    (out / "metrics.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
