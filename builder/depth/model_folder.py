"""A depth model's folder, looked at before anything is loaded from it.

What a folder says of itself may be wrong or hostile: sizes that no file of it can fill, weights
that are pickles, texts for numbers. Nothing here runs or allocates what the files ask for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.errors import DepthModelError
from builder.files import read_text
from builder.untrusted import one_line, parse_json, shown

if TYPE_CHECKING:
    import torch

_INDEX_FILE = "model.safetensors.index.json"
_MAX_JSON_BYTES = 2**24
_MAX_CONFIG_NUMBER = 10**6  # of layers, channels, positions; real ones stay far below

# How much larger than its files a network may be: tied weights are stored once, and what is
# computed when it is made (tables of positions) not at all.
_MAX_SHARE, _FREE_TENSORS, _FREE_NUMBERS = 2, 1000, 2**24


def read_config(name: str, folder: Path, file: str = "config.json") -> dict[str, Any]:
    """Read a JSON object from a model's folder.

    Raises:
        DepthModelError: it is missing, or nothing of the kind.
    """
    try:
        content = parse_json(read_text(folder / file, _MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise DepthModelError(
            f"depth model {name!r}: {folder / file} cannot be read ({one_line(error)}); give "
            "the folder of a Transformers model."
        ) from None
    if not isinstance(content, dict):
        raise DepthModelError(f"depth model {name!r}: {folder / file} holds no JSON object.")
    return content


def weight_files(name: str, folder: Path, config: dict[str, Any]) -> list[Path]:
    """Return the safetensors files of a model, in name order.

    Raises:
        DepthModelError: there are none, or the folder would have others loaded.
    """
    weights = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not weights:
        raise DepthModelError(
            f"depth model {name!r} has no .safetensors file. Pickled weights are never loaded; "
            "convert them first, for example with `model.save_pretrained(folder)`."
        )
    if (folder / "adapter_config.json").exists():
        raise DepthModelError(
            f"depth model {name!r} is an adapter of another model; merge the two first, for "
            "example with `model.merge_and_unload()`."
        )
    asked = [config["transformers_weights"]] if config.get("transformers_weights") else []
    if (folder / _INDEX_FILE).exists():
        weight_map = read_config(name, folder, _INDEX_FILE).get("weight_map")
        asked += weight_map.values() if isinstance(weight_map, dict) else [weight_map]
    known = [_INDEX_FILE, *(path.name for path in weights)]
    for file in asked:
        if file not in known:
            raise DepthModelError(
                f"depth model {name!r} asks for the weights {shown(file)}, which is not a "
                ".safetensors file of its folder; fetch the model again."
            )
    return weights


def check_numbers(name: str, config: object) -> None:
    """Refuse a config with numbers that no depth model has, before lists of that length are made.

    Raises:
        DepthModelError: a number is too large.
    """
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int | float) and not abs(value) <= _MAX_CONFIG_NUMBER:
            raise DepthModelError(
                f"depth model {name!r}: its config.json has the number {shown(value)}, which no "
                "depth model has."
            )


@contextmanager
def bounded(name: str, weights: list[Path]) -> Iterator[None]:
    """While a network is made on the meta device, stop it once its files cannot fill it.

    Raises:
        DepthModelError: the network is larger than its weights, or a file of them is damaged.
    """
    from torch.nn.modules import module

    tensors, numbers = _stored(name, weights)
    left = {
        "tensors": _MAX_SHARE * tensors + _FREE_TENSORS,
        "numbers": _MAX_SHARE * numbers + _FREE_NUMBERS,
    }

    def count(_module: Any, _name: str, tensor: torch.Tensor | None) -> None:
        if tensor is None or tensor.device.type != "meta":
            return
        left["tensors"] -= 1
        left["numbers"] -= tensor.numel()
        if min(left.values()) < 0:
            raise DepthModelError(
                f"depth model {name!r}: its config.json describes a larger network than its "
                f"{numbers:,} weights in {tensors:,} tensors; fetch the model again."
            )

    hooks = (
        module.register_module_parameter_registration_hook(count),
        module.register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _stored(name: str, weights: list[Path]) -> tuple[int, int]:
    """Return how many tensors, and numbers in them, some files hold; reads their headers only."""
    from safetensors import SafetensorError, safe_open

    tensors = numbers = 0
    for path in weights:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118  # not a mapping
                    tensors += 1
                    numbers += math.prod(file.get_slice(key).get_shape())
        except (OSError, SafetensorError) as error:
            raise DepthModelError(
                f"depth model {name!r}: {path} cannot be loaded ({one_line(error)}); fetch it "
                "again."
            ) from None
    return tensors, numbers


def pixel_scaling(
    name: str, settings: dict[str, Any]
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Return scale, mean and std: a pixel's input is (value * scale - mean) / std, by channel.

    Raises:
        DepthModelError: they are no usable numbers.
    """
    scale = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    try:
        if settings.get("do_rescale", True):
            scale = float(settings.get("rescale_factor", 1 / 255))
        if settings.get("do_normalize", False):
            mean, std = (tuple(map(float, settings[key])) for key in ("image_mean", "image_std"))
        usable = all(map(math.isfinite, (scale, *mean, *std))) and min(scale, *std) > 0
        usable = usable and {len(mean), len(std)} <= {1, 3}
    except (KeyError, TypeError, ValueError, OverflowError):
        usable = False
    if not usable:
        raise DepthModelError(
            f"depth model {name!r}: its preprocessor config does not say how pixels are scaled: "
            "rescale_factor, image_mean, image_std."
        )
    return scale, mean, std
