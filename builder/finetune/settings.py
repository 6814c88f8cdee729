"""The settings of a fine-tuning run, and its progress."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from builder.typed import check

Errors = dict[str, float]
"""Number of images and mean error by name of the metric, of one split."""

Position = dict[str, Any]
"""Place in a stream of rows; JSON values."""


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

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values


@dataclass
class Progress:
    """How far a run is: what a checkpoint holds beside tensors and settings.

    Raises:
        RecipeError: a field has the wrong type.
    """

    step: int = 0
    position: Position | None = None
    before: dict[str, Errors] = field(default_factory=dict)
    losses: list[tuple[int, float]] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        check(self)
