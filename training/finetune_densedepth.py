"""Fine-tune DenseDepth on any set of pictures with depth: `python -m training.finetune_densedepth
MODEL DATASET OUT`.

    python -m training.finetune_densedepth demo out/mine out/tuned --eval-split unseen_both

MODEL is a folder or Hub id of a DenseDepth, or `demo`; DATASET a folder or Hub id with a column of
pictures and one of depth. OUT becomes a model folder: weights, config, image processor, the errors
before and after on held-out splits (metrics.json), and a card that tells them (README.md).

A plain torch loop and not `transformers.Trainer`. The Trainer needs `accelerate`, a dependency this
project has no other use for; by default it resumes a streamed set by reading it again from the
start, where this loop asks the stream for its position; and it keeps optimizer and random states as
pickles. What this gives up is training on several devices.

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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm import tqdm

from builder.depth import DEVICES, Device, locate_model, pick_device
from builder.depth.densedepth import DenseDepthForDepthEstimation, DenseDepthImageProcessor
from builder.depth.densedepth.metrics import METRICS, DepthMetrics
from builder.errors import FgbgError
from builder.files import write_text
from builder.recipe import DEMO_DEPTH_MODEL, Recipe
from training.loop import (
    TrainingError,
    checkpoint_state,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
)
from training.pairs import Pairs, Position, Row, batches

Depth = npt.NDArray[np.float32]
Errors = dict[str, float]
Example = tuple[torch.Tensor, torch.Tensor]

CHECKPOINT, METRICS_FILE, CARD_FILE = "checkpoint.safetensors", "metrics.json", "README.md"
PUBLISHED = ("*.json", "model*.safetensors", CARD_FILE)
GRADIENT_NORM = 5.0
MIRRORED, SWAPPED = 0.5, 0.25  # probabilities; section 3.3 of the paper
LOSSES_TOLD = 20  # points of the loss curve in metrics.json


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides the weights and the errors reported; a resumed run needs the same."""

    model: str
    dataset: str
    config: str | None = None
    image_column: str = "fg_bg"
    depth_column: str = "depth"
    depth_scale: float | None = None
    split: str = "train"
    eval_split: tuple[str, ...] = ()
    eval_images: int | None = None
    streaming: bool = False
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-4
    warmup: int = 100
    input_size: tuple[int, int] | None = None
    augment: bool = True
    freeze_encoder: bool = False
    gradient_checkpointing: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    eigen_crop: bool = False
    median_scaling: bool = False

    def pairs(self, split: str) -> Pairs:
        """Open one split of the data set."""
        return Pairs(
            self.dataset,
            split,
            image_column=self.image_column,
            depth_column=self.depth_column,
            depth_scale=self.depth_scale,
            config=self.config,
            streaming=self.streaming,
        )


@dataclass
class Progress:
    """How far a run is: what a checkpoint holds beside tensors."""

    step: int = 0
    position: Position | None = None
    before: dict[str, Errors] = field(default_factory=dict)
    losses: list[tuple[int, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)


# --------------------------------------------------------------------------------- model and data


def load_model(
    settings: Settings,
) -> tuple[DenseDepthForDepthEstimation, DenseDepthImageProcessor]:
    """Load the model to start from, float32, and its image processor.

    Raises:
        FgbgError: there is no such model, it is no DenseDepth, or its input size does not fit.
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
            TrainingError: it was written with other settings, or is damaged.
        """
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = checkpoint_state(path)
        held, asked = state.pop("settings"), _as_json(self.settings)
        if lines := [f"  {k} was {held.get(k)!r}, now is {v!r}" for k, v in asked.items()
                     if held.get(k) != v]:  # fmt: skip
            text = "\n".join(lines)
            raise TrainingError(f"{path} is of a run with other settings:\n{text}\n"
                                "Repeat those, or choose another OUT.")  # fmt: skip
        load_checkpoint(path, self.model, self.optimizer)
        self.progress = Progress(**state)

    def save(self) -> None:
        """Write the checkpoint: whole or not at all."""
        state = {"settings": _as_json(self.settings), **asdict(self.progress)}
        save_checkpoint(self.out / CHECKPOINT, self.model, self.optimizer, state)

    def train(self, save_every: int) -> Iterator[float]:
        """Train to the last step, saving on the way; yields the loss of each step.

        Raises:
            TrainingError: a row cannot be read, or the loss is no number any more.
        """
        settings, progress = self.settings, self.progress
        if progress.step >= settings.steps:
            return
        self.model.train()
        pairs = settings.pairs(settings.split)
        rows = pairs.endless(settings.seed, progress.position)
        prepare = preparation(settings, pairs, self.processor)
        for examples, position in batches(rows, settings.batch_size, prepare, self.workers):
            loss = self.train_step(examples)
            progress.step, progress.position = progress.step + 1, position
            progress.recent.append(loss)
            if len(progress.recent) * LOSSES_TOLD >= settings.steps:
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
        pairs = settings.pairs(split)
        near_m, far_m = self.model.config.depth_range_m
        metrics = DepthMetrics(
            near_m, far_m, eigen=settings.eigen_crop, median_scaling=settings.median_scaling
        )

        def prepare(row: Row, _number: int) -> tuple[torch.Tensor, Depth]:
            picture, depth_m = pairs.read(row)
            return pixels_of(self.processor, picture), depth_m

        self.model.train(mode=False)
        rows = ((row, {"row": 0}) for row in islice(pairs.in_order(), settings.eval_images))
        for examples, _ in batches(rows, settings.batch_size, prepare, self.workers):
            output = self.model(torch.stack([pixels for pixels, _ in examples]).to(self.device))
            sizes = [(depth_m.shape[0], depth_m.shape[1]) for _, depth_m in examples]
            maps = self.processor.post_process_depth_estimation(output, sizes)
            for (_, depth_m), predicted in zip(examples, maps, strict=True):
                metrics.add(predicted["predicted_depth"].cpu().numpy(), depth_m)
        try:
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
            "settings": told_settings(settings),
        }
        write_text(self.out / METRICS_FILE, json.dumps(content, indent=1) + "\n")
        write_text(self.out / CARD_FILE, model_card(settings, progress, after, license))


def _as_json(settings: Settings) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return values


# ------------------------------------------------------------------------------ card, publication


def is_hub_id(name: str) -> bool:
    """Whether a model or data set was named by Hub id, and so can be linked to."""
    return not Path(name).exists() and name != DEMO_DEPTH_MODEL


def told_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings for others to read: of a local folder its name, not where it lies."""
    told = _as_json(settings)
    for name in ("model", "dataset"):
        if not is_hub_id(told[name]):
            told[name] = Path(told[name]).name
    return told


def model_card(
    settings: Settings, progress: Progress, after: dict[str, Errors], license: str | None
) -> str:
    """Return README.md of the tuned model, every number of it from the run."""
    from huggingface_hub import EvalResult, ModelCardData

    title = f"DenseDepth tuned on {Path(settings.dataset).name}"
    results = [
        EvalResult(
            task_type="depth-estimation",
            dataset_type=settings.dataset if is_hub_id(settings.dataset) else "fgbg",
            dataset_name=Path(settings.dataset).name,
            dataset_split=split,
            metric_type=name,
            metric_value=round(errors[name], 5),
        )
        for split, errors in after.items()
        for name in METRICS
    ]
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="depth-estimation",
        tags=["depth-estimation", "monocular-depth", "densedepth"],
        base_model=settings.model if is_hub_id(settings.model) else None,
        datasets=[settings.dataset] if is_hub_id(settings.dataset) else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    body = _CARD.format(
        title=title,
        **told_settings(settings),
        errors=error_table(progress.before, after, settings),
        options="\n".join(f"- {name}: {value}" for name, value in told_settings(settings).items()),
        losses=", ".join(f"{loss:.3f} (step {step})" for step, loss in progress.losses),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def error_table(before: dict[str, Errors], after: dict[str, Errors], settings: Settings) -> str:
    """Return the errors before and after as a Markdown table, and how they were measured."""
    if not after:
        return "Not measured: the run named no `--eval-split`.\n"
    lines = [
        f"| split | images | model | {' | '.join(METRICS)} |",
        f"|---|---|---|{'---|' * len(METRICS)}",
    ]
    for split, tuned in after.items():
        for name, errors in (("before", before[split]), ("**after**", tuned)):
            values = " | ".join(f"{errors[metric]:.4f}" for metric in METRICS)
            lines.append(f"| {split} | {errors['images']} | {name} | {values} |")
    crop = (
        "inside the Eigen crop of NYU Depth v2" if settings.eigen_crop else "over the whole image"
    )
    scaling = "after" if settings.median_scaling else "without"
    text = (
        f"Each value is a mean over images, {crop}, {scaling} median scaling, at the size of the "
        "set's depth maps; rmse and sq_rel in metres; deltas: more is better.\n"
    )
    return "\n".join(lines) + f"\n\n{text}"


_CARD = """# {title}

DenseDepth ([arXiv 1812.11941](https://arxiv.org/abs/1812.11941)): depth in metres from a single
picture. Fine-tuned from `{model}` on `{dataset}`.

## Use

```python
import builder.depth.densedepth  # of fgbg-dataset: registers DenseDepth with the Auto classes
from transformers import pipeline

pipeline("depth-estimation", model="this folder or repository")("photo.jpg")["predicted_depth"]
```

## Measured errors

{errors}
If the depth of the set is a model's estimate and not a measurement, as in sets made by fgbg, these
numbers say how well this model agrees with that one.

## Training

{options}

Training loss: {losses}.
"""


def publish(out: Path, repo_id: str) -> str:
    """Upload the model folder, without its checkpoint, in one commit; return its address.

    Raises:
        TrainingError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _hub_errors_as(
        f"The model is in {out}, but it could not be uploaded; the same command with --resume "
        "tries again."
    ):
        commit = HfApi().upload_folder(
            repo_id=repo_id,
            folder_path=out,
            allow_patterns=list(PUBLISHED),
            commit_message="Upload fine-tuned DenseDepth",
        )
    return str(commit.commit_url)


def make_repository(repo_id: str, private: bool) -> None:
    """Make the model repository before the training, so that a missing token shows at once.

    Raises:
        TrainingError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _hub_errors_as(f"{repo_id} cannot be made on the Hub; is `hf auth login` done?"):
        HfApi().create_repo(repo_id, private=private, exist_ok=True)


@contextmanager
def _hub_errors_as(sentence: str) -> Iterator[None]:
    try:
        yield
    # HTTP errors, those of its transport, RuntimeError, ValueError: they have no common base.
    except Exception as error:
        raise TrainingError(f"{sentence}\n{error}") from error


# ---------------------------------------------------------------------------------------- command


def finetune(
    settings: Settings,
    out: Path,
    *,
    device: Device = "auto",
    workers: int = 2,
    save_every: int = 250,
    resume: bool = False,
    license: str | None = None,
) -> dict[str, Errors]:
    """Fine-tune, or go on with an interrupted run, and write the model folder.

    Returns:
        The errors of the tuned model by split.

    Raises:
        FgbgError: an option, the model, the data set or the checkpoint is of no use.
    """
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise TrainingError(f"{checkpoint} is of an earlier run; add --resume or delete it.")
    run = Finetuning(settings, out, pick_device(device), workers)
    out.mkdir(parents=True, exist_ok=True)
    run.resume()
    progress = run.progress
    if not progress.step:
        progress.before = {split: run.evaluate(split) for split in settings.eval_split}
        _tell("before", progress.before)
    with tqdm(initial=progress.step, total=settings.steps, unit=" steps", disable=None) as bar:
        for loss in run.train(save_every):
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    after = {split: run.evaluate(split) for split in settings.eval_split}
    _tell("after", after)
    run.finish(after, license)
    return after


def _tell(when: str, errors: dict[str, Errors]) -> None:
    for split, values in errors.items():
        text = "  ".join(f"{name} {values[name]:.4f}" for name in METRICS)
        click.echo(f"{when:<6}  {split}  {text}")


_NAMES = {f.name for f in fields(Settings)}
_DEFAULTS = {f.name: f.default for f in fields(Settings) if f.name not in ("model", "dataset")}


def _option(flag: str, help: str, **options: Any) -> Callable[..., Any]:
    """Return a click option with the default of the setting it names."""
    name = flag.lstrip("-").split("/")[0].replace("-", "_")
    if not options.get("multiple"):
        options.setdefault("default", _DEFAULTS.get(name))
    return click.option(flag, name, help=help, show_default=True, **options)


def _end(message: str, code: int) -> NoReturn:
    click.echo(f"Error: {message}", err=True)
    raise click.exceptions.Exit(code)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.argument("dataset")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@_option("--config", "configuration of the data set")
@_option("--image-column", "column of pictures")
@_option("--depth-column", "column of depth maps")
@_option(
    "--depth-scale", "stored units per metre; sets made by fgbg tell it, else 1000", type=float
)
@_option("--split", "split to train on")
@_option("--eval-split", "split to measure on, before and after; may be repeated", multiple=True)
@_option("--eval-images", "measure on the first so many images only", type=click.IntRange(1))
@_option("--streaming", "read the set as it is needed", is_flag=True)
@_option("--steps", "optimizer steps", type=click.IntRange(1))
@_option("--batch-size", "pictures per step", type=click.IntRange(1))
@_option("--learning-rate", "highest learning rate", type=click.FloatRange(0, min_open=True))
@_option("--warmup", "steps up to it; half a cosine follows", type=click.IntRange(0))
@_option("--input-size", "HEIGHT WIDTH the network sees; the model's own if not given",
         type=click.IntRange(32), nargs=2)  # fmt: skip
@_option("--augment/--no-augment", "mirror pictures and swap their colour channels")
@_option("--freeze-encoder", "train the decoder alone", is_flag=True)
@_option("--gradient-checkpointing", "less memory, more time", is_flag=True)
@_option("--precision", "of the network's arithmetic", type=click.Choice(["float32", "bfloat16"]))
@_option("--seed", "of order and augmentation", type=click.IntRange(0))
@_option("--eigen-crop", "measure inside the crop of NYU Depth v2", is_flag=True)
@_option("--median-scaling", "measure after scaling by the medians", is_flag=True)
@_option("--save-every", "steps between checkpoints", type=click.IntRange(1), default=250)
@_option("--resume", "go on from the checkpoint in OUT, if there is one", is_flag=True)
@_option("--device", "where to train", type=click.Choice(DEVICES), default="auto")
@_option("--workers", "threads that decode pictures", type=click.IntRange(1), default=2)
@_option("--threads", "threads of torch; its own choice if not given", type=click.IntRange(1))
@_option("--license", "license of the tuned model for its card, such as cc-by-4.0")
@_option("--push-to-hub", "REPO_ID to upload model, processor and card to")
@_option("--private", "make that repository private", is_flag=True)
def main(
    out: Path,
    threads: int | None,
    push_to_hub: str | None,
    private: bool,
    license: str | None,
    **values: Any,
) -> None:
    """Fine-tune the DenseDepth MODEL on DATASET and write the model folder OUT."""
    if threads:
        torch.set_num_threads(threads)
    settings = Settings(**{name: values.pop(name) for name in _NAMES})
    try:
        if push_to_hub:
            make_repository(push_to_hub, private)
        finetune(settings, out, license=license, **values)
        if push_to_hub:
            click.echo(publish(out, push_to_hub))
    except FgbgError as error:
        _end(str(error), error.exit_code)
    except OSError as error:
        _end(f"{error.filename or out}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _end("interrupted. The same command with --resume goes on from the last checkpoint.", 130)
    click.echo(f"Model, errors and card are in {out}.")


if __name__ == "__main__":
    main()
