"""The model card of a fine-tuned DenseDepth, and its publication."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from builder.depth.densedepth.metrics import METRICS
from builder.errors import TrainingError
from builder.finetune.settings import Errors, Progress, Settings
from builder.hub import request_errors, words
from builder.recipe import DEMO_DEPTH_MODEL

CARD_FILE = "README.md"
PUBLISHED = ("*.json", "model*.safetensors", CARD_FILE)


def is_hub_id(name: str) -> bool:
    """Whether a model or dataset was named by Hub id, and so can be linked to."""
    return not Path(name).exists() and name != DEMO_DEPTH_MODEL


def public_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings for others to read: of a local folder its name, not where it lies."""
    values = settings.to_dict()
    for name in ("model", "dataset"):
        if not is_hub_id(values[name]):
            values[name] = Path(values[name]).name
    return values


def model_card(
    settings: Settings, progress: Progress, after: dict[str, Errors], license: str | None
) -> str:
    """Return README.md of the tuned model, every number of it from the run."""
    from huggingface_hub import EvalResult, ModelCardData

    values = public_settings(settings)
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
        model=values["model"],
        dataset=values["dataset"],
        errors=_error_table(progress.before, after, settings),
        options="\n".join(f"- {name}: {value}" for name, value in values.items()),
        losses=", ".join(f"{loss:.3f} (step {step})" for step, loss in progress.losses),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def _error_table(before: dict[str, Errors], after: dict[str, Errors], settings: Settings) -> str:
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


def publish_model(out: Path, repo_id: str) -> str:
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
    # RuntimeError: of several uploads at once, all but the first that loses the connection.
    failures: tuple[type[Exception], ...] = (
        *request_errors(), OSError, RuntimeError, ValueError
    )  # fmt: skip
    try:
        yield
    except failures as error:
        raise TrainingError(f"{sentence}\n{words(error)}") from error
