"""The run itself: a plain torch loop that resumes exactly.

Not `transformers.Trainer`, which needs `accelerate`, a dependency this project has no other use
for; which by default resumes a streamed set by reading it again from the start, where this loop
asks the stream for its position; and which keeps optimizer and random states as pickles. What this
gives up is training on several devices.

Augmentation, loss and optimizer follow the paper (arXiv 1812.11941, sections 3.2, 3.3 and 4.1):
mirroring with probability 1/2, swapped colour channels with 1/4, Adam at 1e-4, batches of 8. The
warm-up and the cosine decay are ours.

After SIGKILL the same command with --resume ends in the same weights as without a stop: bit for bit
on a CPU with the same --threads, on a GPU as far as its kernels add in a fixed order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm import tqdm

from builder.depth import Device, locate_model, pick_device
from builder.depth.densedepth import DenseDepthForDepthEstimation, DenseDepthImageProcessor
from builder.depth.densedepth.metrics import METRICS, DepthMetrics
from builder.errors import RecipeError, TrainingError
from builder.files import write_text
from builder.finetune.card import (
    CARD_FILE,
    make_repository,
    model_card,
    public_settings,
    publish_model,
)
from builder.finetune.loop import checkpoint_state, learning_rate, load_checkpoint, save_checkpoint
from builder.finetune.pairs import Pairs, Row, batches
from builder.finetune.settings import Errors, Progress, Settings
from builder.layout import RECIPE_FILE
from builder.recipe import Recipe
from builder.typed import read

Depth = npt.NDArray[np.float32]
Example = tuple[torch.Tensor, torch.Tensor]

CHECKPOINT, METRICS_FILE = "checkpoint.safetensors", "metrics.json"
GRADIENT_NORM = 5.0
MIRRORED, SWAPPED = 0.5, 0.25  # probabilities; section 3.3 of the paper
CURVE_POINTS = 20  # of the loss in metrics.json


# --------------------------------------------------------------------------------- model and data


def load_model(
    settings: Settings,
) -> tuple[DenseDepthForDepthEstimation, DenseDepthImageProcessor]:
    """Load the model to start from, float32, and its image processor.

    Raises:
        FgbgError: there is no such model, it is not a DenseDepth, or its input size does not fit.
    """
    _, located = locate_model(Recipe(depth_model=settings.model))
    if located is None or located.info.model_type != "densedepth":
        kind = located.info.model_type if located else "none"
        raise TrainingError(
            f"{settings.model} is of type {kind!r}; this command trains DenseDepth."
        )
    model = DenseDepthForDepthEstimation.from_pretrained(
        located.folder, dtype=torch.float32, use_safetensors=True
    )
    processor = DenseDepthImageProcessor.from_pretrained(located.folder)
    if settings.input_size:
        height, width = settings.input_size
        if height % 32 or width % 32:
            raise TrainingError(f"--input-size {height} {width}: both must be multiples of 32.")
        processor.size = {"height": height, "width": width}
    if settings.freeze_encoder:
        model.freeze_encoder()
    if settings.gradient_checkpointing:
        model.activation_checkpointing_enable()
    return model, processor


def open_pairs(settings: Settings, split: str) -> Pairs:
    """Open one split of the dataset.

    Raises:
        TrainingError: there is no such set, split or column, or its depth is relative.
    """
    return Pairs(
        settings.dataset,
        split,
        image_column=settings.image_column,
        depth_column=settings.depth_column,
        depth_scale=settings.depth_scale,
        config=settings.config,
        streaming=settings.streaming,
    )


def pixels_of(processor: DenseDepthImageProcessor, picture: Image.Image) -> torch.Tensor:
    """Return a picture as the model takes it, (3, H, W) float32 in [0, 1]."""
    values: torch.Tensor = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    return values


def nearest(depth_m: Depth, height: int, width: int) -> Depth:
    """Resize a depth map to (height, width), each pixel the one under its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip((height, width), depth_m.shape, strict=True)
    )
    resized: Depth = depth_m[rows[:, None], columns]
    return resized


def preparation(
    settings: Settings, pairs: Pairs, processor: DenseDepthImageProcessor
) -> Callable[[Row, int], Example]:
    """Return what makes (pixel_values (3, H, W), labels (H/2, W/2) in metres) of a row.

    A function of the seed, the row and its number alone, whichever thread calls it.
    """

    def prepare(row: Row, number: int) -> Example:
        picture, depth_m = pairs.read(row)
        pixels = pixels_of(processor, picture)
        label = torch.from_numpy(nearest(depth_m, pixels.shape[1] // 2, pixels.shape[2] // 2))
        if settings.augment:
            rng = np.random.default_rng([settings.seed, 2, number])
            if rng.random() < MIRRORED:
                pixels, label = pixels.flip(2), label.flip(1)
            if rng.random() < SWAPPED:
                pixels = pixels[torch.from_numpy(rng.permutation(3))]
        return pixels, label

    return prepare


# ----------------------------------------------------------------------------------- one training


class Finetuning:
    """One run: model, optimizer, place in the data, and the checkpoint that holds all three."""

    def __init__(self, settings: Settings, out: Path, device: str, workers: int) -> None:
        self.settings, self.out, self.device, self.workers = settings, out, device, workers
        torch.manual_seed(settings.seed)
        self.model, self.processor = load_model(settings)
        self.model.to(device)  # type: ignore[arg-type]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, settings.learning_rate)
        self.progress = Progress()

    def resume(self) -> None:
        """Go on where the checkpoint in OUT stands; from the start if there is none.

        Raises:
            TrainingError: it was written with other settings, or changed since.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = checkpoint_state(path)
        held, asked = state.pop("settings", None), self.settings.to_dict()
        if not isinstance(held, dict):
            raise TrainingError(f"{path} is not a checkpoint of this command; choose another OUT.")
        lines = [
            f"  {name} was {held.get(name)!r}, now is {value!r}"
            for name, value in asked.items()
            if held.get(name) != value
        ]
        if lines:
            text = "\n".join(lines)
            raise TrainingError(
                f"{path} is of a run with other settings:\n{text}\n"
                "Repeat those, or choose another OUT."
            )
        try:
            self.progress = read(Progress, state, str(path))
        except RecipeError as error:
            raise TrainingError(f"{error}\nDelete {path} to start again.") from None
        load_checkpoint(path, self.model, self.optimizer)

    def save(self) -> None:
        """Write the checkpoint: whole or not at all."""
        state = {"settings": self.settings.to_dict(), **asdict(self.progress)}
        save_checkpoint(self.out / CHECKPOINT, self.model, self.optimizer, state)

    def train(self, save_every: int) -> Iterator[float]:
        """Train to the last step, saving on the way; yields the loss of each step.

        Raises:
            TrainingError: a row cannot be read, or the loss is not a number any more.
        """
        settings, progress = self.settings, self.progress
        if progress.step >= settings.steps:
            return
        self.model.train()
        pairs = open_pairs(settings, settings.split)
        rows = pairs.endless(settings.seed, progress.position)
        prepare = preparation(settings, pairs, self.processor)
        for examples, position in batches(rows, settings.batch_size, prepare, self.workers):
            loss = self.train_step(examples)
            progress.step, progress.position = progress.step + 1, position
            progress.recent.append(loss)
            if len(progress.recent) * CURVE_POINTS >= settings.steps:
                progress.losses.append((progress.step, float(np.mean(progress.recent))))
                progress.recent.clear()
            if progress.step % save_every == 0 or progress.step == settings.steps:
                self.save()
            yield loss
            if progress.step == settings.steps:
                return

    def train_step(self, examples: list[Example]) -> float:
        """Take one optimizer step on a batch and return its loss."""
        settings, step = self.settings, self.progress.step
        pixels, labels = (torch.stack(part).to(self.device) for part in zip(*examples, strict=True))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                step, settings.steps, settings.learning_rate, settings.warmup
            )
        # Weights, gradients, BatchNorm statistics and the loss stay float32.
        with torch.autocast(self.device, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = self.model(pixels, labels=labels).loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {step}; try a lower --learning-rate, more --warmup "
                "or --precision float32."
            )
        return value

    @torch.no_grad()
    def evaluate(self, split: str) -> Errors:
        """Measure the model on a split, at the size of the split's own depth maps.

        Raises:
            TrainingError: a row cannot be read, or no depth is known.
        """
        settings = self.settings
        pairs = open_pairs(settings, split)
        near_m, far_m = self.model.config.depth_range_m
        metrics = DepthMetrics(
            near_m, far_m, eigen=settings.eigen_crop, median_scaling=settings.median_scaling
        )

        def prepare(row: Row, _number: int) -> tuple[torch.Tensor, Depth]:
            picture, depth_m = pairs.read(row)
            return pixels_of(self.processor, picture), depth_m

        self.model.train(mode=False)
        rows = ((row, {"row": 0}) for row in islice(pairs.in_order(), settings.eval_images))
        try:
            for examples, _ in batches(rows, settings.batch_size, prepare, self.workers):
                output = self.model(torch.stack([pixels for pixels, _ in examples]).to(self.device))
                sizes = [(depth_m.shape[0], depth_m.shape[1]) for _, depth_m in examples]
                maps = self.processor.post_process_depth_estimation(output, sizes)
                for (_, depth_m), predicted in zip(examples, maps, strict=True):
                    metrics.add(predicted["predicted_depth"].cpu().numpy(), depth_m)
            return {"images": metrics.images, **metrics.compute()}
        except ValueError as error:
            raise TrainingError(f"split {split!r} of {settings.dataset}: {error}") from None

    def finish(self, after: dict[str, Errors], license: str | None) -> None:
        """Write the model folder: weights, config, processor, errors, card."""
        settings, progress = self.settings, self.progress
        self.model.save_pretrained(self.out)
        self.processor.save_pretrained(self.out)
        content = {
            "before": progress.before,
            "after": after,
            "loss": [[step, loss] for step, loss in progress.losses],
            "settings": public_settings(settings),
        }
        write_text(self.out / METRICS_FILE, json.dumps(content, indent=1) + "\n")
        write_text(self.out / CARD_FILE, model_card(settings, progress, after, license))


# ------------------------------------------------------------------------------------ the whole run


def finetune(
    settings: Settings,
    out: Path,
    *,
    device: Device = "auto",
    workers: int = 2,
    threads: int | None = None,
    save_every: int = 250,
    resume: bool = False,
    license: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
) -> dict[str, Errors]:
    """Fine-tune, or go on with an interrupted run, and write the model folder.

    Args:
        settings: what decides weights and errors.
        out: becomes the model folder; must be absent, empty, or hold the checkpoint of the run.
        device: where to train.
        workers: threads that decode pictures.
        threads: of torch; None leaves them as they are.
        save_every: steps between checkpoints.
        resume: go on from the checkpoint in `out`, if there is one.
        license: of the tuned model, for its card.
        push_to_hub: repository to upload model, processor and card to.
        private: whether that repository is made private.

    Returns:
        The errors of the tuned model by split.

    Raises:
        FgbgError: an option, the model, the dataset, the checkpoint or `out` cannot be used.
    """
    check_out(out, resume=resume)
    if threads:
        torch.set_num_threads(threads)
    run = Finetuning(settings, out, pick_device(device), workers)
    if push_to_hub:
        make_repository(push_to_hub, private)
    out.mkdir(parents=True, exist_ok=True)
    run.resume()
    progress = run.progress
    if not progress.step:
        open_pairs(settings, settings.split).check_unit(
            run.model.config.depth_range_m, settings.batch_size
        )
        progress.before = {split: run.evaluate(split) for split in settings.eval_split}
        _print_errors("before", progress.before)
    with tqdm(initial=progress.step, total=settings.steps, unit=" steps", disable=None) as bar:
        for loss in run.train(save_every):
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    after = {split: run.evaluate(split) for split in settings.eval_split}
    _print_errors("after", after)
    run.finish(after, license)
    if push_to_hub:
        click.echo(publish_model(out, push_to_hub))
    return after


def check_out(out: Path, *, resume: bool) -> None:
    """Check that a run may write its model to a folder: nothing of anyone else's is overwritten.

    Raises:
        TrainingError: it is not a folder, is in a data set, or holds something and no checkpoint
            to go on from.
    """
    for folder in (place := out.resolve(), *place.parents):
        if (folder / RECIPE_FILE).is_file():
            raise TrainingError(f"{out} is in the data set {folder}; choose another OUT.")
    checkpoint = out / CHECKPOINT
    if checkpoint.exists():
        if not resume:
            raise TrainingError(
                f"{checkpoint} is of an earlier run; add --resume to go on with it, or choose "
                "another OUT."
            )
        return
    if not out.exists():
        return
    # A run killed while it wrote its first checkpoint leaves half of it under another name.
    if not out.is_dir() or any(not path.match(f".{CHECKPOINT}.*.tmp") for path in out.iterdir()):
        raise TrainingError(
            f"{out} is not empty and holds no checkpoint of this command; choose another OUT."
        )


def _print_errors(when: str, errors: dict[str, Errors]) -> None:
    for split, values in errors.items():
        text = "  ".join(f"{name} {values[name]:.4f}" for name in METRICS)
        click.echo(f"{when:<6}  {split}  {text}")
