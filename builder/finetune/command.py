"""The command `fgbg finetune`; imports torch only when it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import cloup

from builder.console import Command
from builder.depth import DEVICES
from builder.finetune.settings import Settings

_NAMES = {f.name for f in fields(Settings)}
_DEFAULTS = {f.name: f.default for f in fields(Settings) if f.name not in ("model", "dataset")}


def _option(flag: str, help: str, **options: Any) -> Callable[..., Any]:
    """Return a click option with the default of the setting it names."""
    name = flag.lstrip("-").split("/")[0].replace("-", "_")
    if not options.get("multiple"):
        options.setdefault("default", _DEFAULTS.get(name))
    return cloup.option(flag, name, help=help, show_default=True, **options)


@cloup.command("finetune", cls=Command)
@click.argument("model")
@click.argument("dataset")
@click.argument("out", type=click.Path(path_type=Path))
@cloup.option_group(
    "Data",
    _option("--config", "configuration of the dataset"),
    _option("--image-column", "column of pictures"),
    _option("--depth-column", "column of depth maps"),
    _option(
        "--depth-scale",
        "stored units per metre: 1 for metres, 1000 for mm, 256 for KITTI; sets of fgbg say it",
        type=click.FloatRange(0, min_open=True),
    ),
    _option("--split", "split to train on"),
    _option(
        "--eval-split", "split to measure on, before and after; may be repeated", multiple=True
    ),
    _option("--eval-images", "measure on the first so many images only", type=click.IntRange(1)),
    _option("--streaming", "read the set as it is needed", is_flag=True),
)
@cloup.option_group(
    "Training",
    _option("--steps", "optimizer steps", type=click.IntRange(1)),
    _option("--batch-size", "pictures per step", type=click.IntRange(1)),
    _option("--learning-rate", "highest learning rate", type=click.FloatRange(0, min_open=True)),
    _option("--warmup", "steps up to it; half a cosine follows", type=click.IntRange(0)),
    _option(
        "--input-size",
        "HEIGHT WIDTH the network sees; the model's own if not given",
        type=click.IntRange(32),
        nargs=2,
    ),
    _option("--augment/--no-augment", "mirror pictures and swap their colour channels"),
    _option("--freeze-encoder", "train the decoder alone", is_flag=True),
    _option("--gradient-checkpointing", "less memory, more time", is_flag=True),
    _option(
        "--precision", "of the network's arithmetic", type=click.Choice(["float32", "bfloat16"])
    ),
    _option("--seed", "of order and augmentation", type=click.IntRange(0)),
)
@cloup.option_group(
    "Measuring",
    _option("--eigen-crop", "measure inside the crop of NYU Depth v2", is_flag=True),
    _option("--median-scaling", "measure after scaling by the medians", is_flag=True),
)
@cloup.option_group(
    "How it runs",
    _option("--save-every", "steps between checkpoints", type=click.IntRange(1), default=250),
    _option("--resume", "go on from the checkpoint in OUT, if there is one", is_flag=True),
    _option("--device", "where to train", type=click.Choice(DEVICES), default="auto"),
    _option("--workers", "threads that decode pictures", type=click.IntRange(1), default=2),
    _option("--threads", "threads of torch; its own choice if not given", type=click.IntRange(1)),
)
@cloup.option_group(
    "The tuned model",
    _option("--license", "license of the tuned model for its card, such as cc-by-4.0"),
    _option("--push-to-hub", "REPO_ID to upload model, processor and card to"),
    _option("--private", "make that repository private", is_flag=True),
)
@click.pass_context
def finetune_command(ctx: click.Context, /, **values: Any) -> None:
    """Fine-tune a DenseDepth on a dataset.

    MODEL is a folder or Hub id of a DenseDepth, or `demo`. DATASET is a folder or Hub id with a
    column of pictures and one of depth. OUT gets weights, config, image processor, the errors
    before and after on held-out splits (metrics.json) and a card with them (README.md); it must be
    empty or hold the checkpoint of the same run.
    """
    from builder.finetune.tuning import finetune

    ctx.meta["resume"] = "The same command with --resume goes on from the last checkpoint."
    settings = Settings(**{name: values.pop(name) for name in _NAMES})
    finetune(settings, **values)
    click.echo(f"Model, errors and card are in {values['out']}.")
