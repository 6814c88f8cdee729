"""A model's folder, looked at before anything is loaded from it, and its network.

What a folder says of itself may be wrong or hostile: sizes that no file of it can fill, weights
that are pickles, texts for numbers. Nothing here runs or allocates what the files ask for. Only
safetensors are read, and no code from a model's folder.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.errors import FgbgError
from builder.files import read_text, sha256_file
from builder.hub import request_errors, why
from builder.untrusted import one_line, parse_json, printable, shown

if TYPE_CHECKING:
    import torch

_INDEX_FILE = "model.safetensors.index.json"
_MAX_JSON_BYTES = 2**24
_MAX_CONFIG_NUMBER = 10**6  # of layers, channels, positions; real ones stay far below
# Of these Transformers takes a name with a slash for a repository, and asks the Hub for it.
_NAMING = ("backbone", "attn_implementation", "_attn_implementation", "experts_implementation")

# How much larger than its files a network may be: tied weights are stored once, and what is
# computed when it is made (tables of positions) not at all.
_MAX_SHARE, _FREE_TENSORS, _FREE_NUMBERS = 2, 1000, 2**24


def download(
    words: str, repo_id: str, revision: str | None, patterns: Sequence[str], error: type[FgbgError]
) -> Path:
    """Download some files of a model from the Hub; return the folder, named by its commit.

    Args:
        words: what the model is for, in messages, such as 'depth model'.
        error: what is raised.

    Raises:
        FgbgError: of the type given, where it cannot be had or kept.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
    except request_errors() as wrong:
        raise error(f"{words} {repo_id!r} {why(wrong, revision)}.") from None
    except OSError as wrong:
        raise error(
            f"{words} {repo_id!r} cannot be kept in the Hugging Face cache "
            f"({one_line(wrong)}); set HF_HOME to a folder that can be written and has room."
        ) from None


@dataclass(frozen=True)
class ModelFolder:
    """The folder of a Transformers model.

    Args:
        words: what the model is for, in messages, such as 'depth model'.
        name: what a person calls it.
        path: where it is.
        error: what is raised where it cannot be used.
    """

    words: str
    name: str
    path: Path
    error: type[FgbgError]

    def fault(self, text: str) -> FgbgError:
        """Return the error about this model; the text follows its name."""
        return self.error(f"{self.words} {self.name!r}{text}")

    def read(self, file: str = "config.json") -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            FgbgError: it is missing, or nothing of the kind.
        """
        try:
            content = parse_json(read_text(self.path / file, _MAX_JSON_BYTES))
        except (OSError, ValueError) as error:
            raise self.fault(
                f": {self.path / file} cannot be read ({one_line(error)}); give the folder of a "
                "Transformers model."
            ) from None
        if not isinstance(content, dict):
            raise self.fault(f": {self.path / file} holds no JSON object.")
        return content

    def config(self) -> tuple[dict[str, Any], str]:
        """Return the config, and the type of model that it states.

        Raises:
            FgbgError: there is none, or it has numbers that no model has: lists of that length
                would be made; or it names another repository, which would be downloaded.
        """
        config = self.read()
        waiting: list[object] = [config]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict | list):
                waiting += value.values() if isinstance(value, dict) else value
                if isinstance(value, dict):
                    self._refuse_others(value)
            elif isinstance(value, int | float) and not abs(value) <= _MAX_CONFIG_NUMBER:
                raise self.fault(
                    f": its config.json has the number {shown(value)}, which no {self.words} has."
                )
        model_type = config.get("model_type")
        if not isinstance(model_type, str):
            raise self.fault(
                f": {self.path}/config.json has no model_type; give the folder of a Transformers "
                "model."
            )
        return config, model_type

    def _refuse_others(self, part: dict[str, Any]) -> None:
        """Refuse a part of the config for which Transformers would ask the Hub."""
        for key in _NAMING:
            named = part.get(key)
            for other in named.values() if isinstance(named, dict) else [named]:
                if isinstance(other, str) and "/" in other:
                    raise self.fault(
                        f": its config.json names {shown(other)} as {key}, and nothing is fetched "
                        "but the model itself; save it anew with `model.save_pretrained(folder)`."
                    )

    def weight_files(self, config: dict[str, Any]) -> list[Path]:
        """Return the safetensors files, in name order.

        Raises:
            FgbgError: there are none, or the folder would have others loaded.
        """
        weights = sorted(path for path in self.path.glob("*.safetensors") if path.is_file())
        if not weights:
            raise self.fault(
                " has no .safetensors file. Pickled weights are never loaded; convert them first, "
                "for example with `model.save_pretrained(folder)`."
            )
        if (self.path / "adapter_config.json").exists():
            raise self.fault(
                " is an adapter of another model; merge the two first, for example with "
                "`model.merge_and_unload()`."
            )
        asked = [config["transformers_weights"]] if config.get("transformers_weights") else []
        if (self.path / _INDEX_FILE).exists():
            weight_map = self.read(_INDEX_FILE).get("weight_map")
            asked += weight_map.values() if isinstance(weight_map, dict) else [weight_map]
        known = [_INDEX_FILE, *(path.name for path in weights)]
        for file in asked:
            if file not in known:
                raise self.fault(
                    f" asks for the weights {shown(file)}, which is not a .safetensors file of its "
                    "folder; fetch the model again."
                )
        return weights

    def pixel_settings(self) -> dict[str, Any]:
        """Read how the model wants its pixels.

        From the file, and not through its image processor: that of some models needs torchvision.

        Raises:
            FgbgError: no file says it.
        """
        for file, key in (
            ("preprocessor_config.json", None),
            ("processor_config.json", "image_processor"),
        ):
            if (self.path / file).is_file():
                content = self.read(file)
                settings = content.get(key) if key else content
                if isinstance(settings, dict):
                    return settings
        raise self.fault(
            f": {self.path} has no preprocessor_config.json, which says how pixels are scaled."
        )

    def pixel_scaling(
        self, settings: dict[str, Any]
    ) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        """Return scale, mean and std: a pixel's input is (value * scale - mean) / std, by channel.

        Raises:
            FgbgError: they are no usable numbers.
        """
        scale = 1.0
        mean: tuple[float, ...] = (0.0,)
        std: tuple[float, ...] = (1.0,)
        try:
            if settings.get("do_rescale", True):
                scale = float(settings.get("rescale_factor", 1 / 255))
            if settings.get("do_normalize", False):
                mean, std = (
                    tuple(map(float, settings[key])) for key in ("image_mean", "image_std")
                )
            usable = all(map(math.isfinite, (scale, *mean, *std))) and min(scale, *std) > 0
            usable = usable and {len(mean), len(std)} <= {1, 3}
        except (KeyError, TypeError, ValueError, OverflowError):
            usable = False
        if not usable:
            raise self.fault(
                ": its preprocessor config does not say how pixels are scaled: rescale_factor, "
                "image_mean, image_std."
            )
        return scale, mean, std

    def load(self, auto: Any) -> Any:
        """Return the network in float32, with every weight from its files.

        Args:
            auto: the class of Transformers whose `from_pretrained` makes it.

        Raises:
            FgbgError: it cannot be loaded, or some of its weights are no numbers.
        """
        import torch
        from transformers.utils import logging

        weights = self.weight_files(self.config()[0])
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # loading is short, and would be shown once a process
        try:
            with self._bounded(weights):
                network, loading = auto.from_pretrained(
                    self.path,
                    use_safetensors=True,
                    trust_remote_code=False,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except self.error:
            raise
        except Exception as error:  # noqa: BLE001 - a config that makes no sense can raise anything
            reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:1000]
            raise self.fault(f" cannot be loaded from {self.path}: {reason}") from None
        finally:
            if bars:
                logging.enable_progress_bar()
        # Transformers only warns of these, and goes on with random weights.
        absent = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
        if absent:
            listed = ", ".join(sorted(absent)[:5]) + (" ..." if len(absent) > 5 else "")
            raise self.fault(
                f" lacks {len(absent)} weights, or has them in another shape: {listed}."
            )
        for key, value in network.state_dict().items():
            # A processor's ReLU makes 0 of NaN, so that the output of such weights may look sound.
            if not bool(value.isfinite().all()):
                raise self.fault(
                    f": its weights {key} hold NaN or infinity; the file is damaged, or the "
                    "training that made it diverged. Fetch or train it again."
                )
        return network.eval()

    @contextmanager
    def _bounded(self, weights: list[Path]) -> Iterator[None]:
        """While a network is made on the meta device, stop it once its files cannot fill it.

        Raises:
            FgbgError: the network is larger than its weights, or a file of them is damaged.
        """
        from torch.nn.modules import module

        tensors, numbers = self._stored(weights)
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
                raise self.fault(
                    f": its config.json describes a larger network than its "
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

    def _stored(self, weights: list[Path]) -> tuple[int, int]:
        """Return how many tensors, and numbers in them, some files hold, by their headers."""
        from safetensors import SafetensorError, safe_open

        tensors = numbers = 0
        for path in weights:
            try:
                with safe_open(path, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118  # not a mapping
                        tensors += 1
                        numbers += math.prod(file.get_slice(key).get_shape())
            except (OSError, SafetensorError) as error:
                raise self.fault(
                    f": {path} cannot be loaded ({one_line(error)}); fetch it again."
                ) from None
        return tensors, numbers


def hash_files(paths: Sequence[Path]) -> str:
    """Return the sha256 of a file, or of the sha256 of several in name order."""
    digests = [sha256_file(path) for path in paths]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
