"""What a training run needs besides a model and data: a learning rate, and one-file checkpoints.

A checkpoint is one safetensors file (weights, BatchNorm statistics, optimizer state) whose header
holds a JSON object (step, place in the data, settings) and the sha256 of everything. The file is
there whole or not at all, and nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from builder.errors import TrainingError
from builder.files import sweep, write_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

_MODEL, _OPTIMIZER, _HEADER = "model.", "optimizer.", "state"


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the rate of a step 0..steps-1: a straight way up to `peak`, then half a cosine to 0.

    The step after the last would have 0; `warmup` steps lie on the way up.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Write a checkpoint.

    Args:
        path: of the file; its folder exists.
        optimizer: of (some of) the model's parameters; its state is tensors alone, as Adam's is.
        state: JSON values; returned by `checkpoint_state`.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {f"{_MODEL}{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{key}.{name}"] = value
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    sweep(path, older_s=0)  # a run that was killed
    header = {"state": state, "sha256": _sha256(state, tensors)}
    write_bytes(path, save(tensors, {_HEADER: json.dumps(header)}))


def _sha256(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    import torch

    digest = hashlib.sha256(json.dumps(state).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checkpoint_state(path: Path) -> dict[str, Any]:
    """Return the `state` a checkpoint was written with; reads its header alone.

    Raises:
        TrainingError: the file is not a checkpoint.
    """
    return dict(_read(path, with_tensors=False)[0]["state"])


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors into a model and an optimizer made as the writer's were.

    Raises:
        TrainingError: the file is not a checkpoint, was changed since, or is of another model.
    """
    header, tensors = _read(path)
    if header["sha256"] != _sha256(header["state"], tensors):
        raise TrainingError(f"{path} was changed after it was written; delete it to start again.")
    try:
        model.load_state_dict(
            {k.removeprefix(_MODEL): v for k, v in tensors.items() if k.startswith(_MODEL)}
        )
        parameters = dict(model.named_parameters())
        for name, value in tensors.items():
            if name.startswith(_OPTIMIZER):
                key, parameter_name = name.removeprefix(_OPTIMIZER).split(".", 1)
                parameter = parameters[parameter_name]
                # Adam keeps its step count on the CPU, wherever the parameter is.
                place = "cpu" if value.ndim == 0 else parameter.device
                optimizer.state[parameter][key] = value.to(place)
    except (RuntimeError, KeyError, ValueError):
        raise TrainingError(
            f"{path} was made with another model; give that one, or delete the file to start again."
        ) from None


def _read(
    path: Path, *, with_tensors: bool = True
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            header = json.loads(file.metadata()[_HEADER])
            names = file.keys() if with_tensors else ()
            tensors = {name: file.get_tensor(name) for name in names}
        if not (isinstance(header["state"], dict) and isinstance(header["sha256"], str)):
            raise TypeError("its header is of another kind")
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainingError(
            f"{path} is not a checkpoint of this command ({error}); delete it to start again."
        ) from None
    return header, tensors
