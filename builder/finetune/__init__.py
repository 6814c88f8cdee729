"""Fine-tune DenseDepth on any set of pictures with depth."""

from builder.finetune.command import finetune_command
from builder.finetune.loop import (
    checkpoint_state,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
)

__all__ = [
    "checkpoint_state",
    "finetune_command",
    "learning_rate",
    "load_checkpoint",
    "save_checkpoint",
]
