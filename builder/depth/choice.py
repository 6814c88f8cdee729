"""Choose what runs a depth model: the device and the backend."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from builder.errors import DepthModelError
from builder.recipe import Precision

Device = Literal["auto", "cpu", "cuda", "mps"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda", "mps")
Backend = Literal["auto", "torch", "openvino"]
BACKENDS: tuple[Backend, ...] = ("auto", "torch", "openvino")


def pick_device(device: Device) -> str:
    """Return the device that 'auto' stands for here, or check that the one asked for is there.

    Raises:
        DepthModelError: the device is not available.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available[device]:
        raise DepthModelError(
            f"device {device!r} is not available to this PyTorch; use --device auto or cpu."
        )
    return device


def pick_backend(
    backend: Backend, model_type: str, precision: Precision, device: str
) -> Literal["torch", "openvino"]:
    """Return the backend that 'auto' stands for here, or check that the one asked for can be used.

    Raises:
        DepthModelError: OpenVINO is asked for and is of no use here.
    """
    if backend == "torch":
        return backend
    reason = None
    if model_type != "densedepth":
        reason = f"runs DenseDepth only, not {model_type!r}; use --backend torch"
    elif device != "cpu":
        reason = f"runs on the processor, not on {device!r}; use --device cpu or --backend torch"
    elif find_spec("openvino") is None:
        reason = "is not installed; run `pip install fgbg-dataset[openvino]` or use --backend torch"
    elif precision != "float32" and not _openvino_has_bfloat16():
        reason = f"has no bfloat16 on this processor for precision {precision}; use --backend torch"
    if reason is None:
        return "openvino"
    if backend == "auto":
        return "torch"
    raise DepthModelError(f"backend 'openvino' {reason}.")


def _openvino_has_bfloat16() -> bool:
    from builder.depth.backends import openvino_has_bfloat16

    return openvino_has_bfloat16()
