"""Depth by any Transformers depth-estimation model: composites in, stored units out.

`locate_model` finds the weights and says what they measure without loading torch;
`DepthEstimator` loads and runs them. Only safetensors are read, and no code from a model's folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from builder.errors import DepthModelError
from builder.recipe import DEMO_DEPTH_MODEL, DepthInfo, DepthMeaning, Recipe
from builder.sources import sha256_file

if TYPE_CHECKING:
    import torch

Device = Literal["auto", "cpu", "cuda", "mps"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda", "mps")

_MM_PER_M = 1000.0
_MAX_STORED = 65535
_CPU_BATCH, _GPU_BATCH = 4, 32
_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# What `predicted_depth` of a model type is. Depth Anything says it in its config; Depth Pro
# predicts inverse depth for a focal length of one image width, made metric by its field of view.
_KINDS: dict[str, DepthMeaning] = {
    "densedepth": "metric",
    "depth_pro": "metric",
    "dpt": "relative-inverse",
    "glpn": "metric",
    "zoedepth": "metric",
}

# Stored units per unit of a relative prediction: keeps the usual range inside 16 bits.
_RELATIVE_SCALE = {"dpt": 10.0}
_OTHER_RELATIVE_SCALE = 100.0


@dataclass(frozen=True)
class DepthModel:
    """A depth model's folder on this machine, and what its output means."""

    folder: Path
    info: DepthInfo


def locate_model(recipe: Recipe) -> tuple[Recipe, DepthModel | None]:
    """Find the recipe's depth model and pin its revision.

    A Hub id is downloaded (JSON and safetensors only) through huggingface_hub; a checkpoint file
    of DenseDepth is converted as `fgbg convert-depth` does without options.

    Returns:
        The recipe, with `depth_revision` set to the commit of a Hub model, and the model; None
        for the depth model 'none'.

    Raises:
        DepthModelError: there is no such model, or it is of no use here.
    """
    if not recipe.has_depth:
        return recipe, None
    name = recipe.depth_model
    if name == DEMO_DEPTH_MODEL:
        folder = Path(__file__).parent / "demo" / "depth"
    elif Path(name).is_dir():
        folder = Path(name)
    elif Path(name).is_file():
        folder = _converted(Path(name))
    elif _REPO_ID.fullmatch(name) and not Path(name).exists():
        folder = _download(name, recipe.depth_revision)
        recipe = replace(recipe, depth_revision=folder.name)
    else:
        raise DepthModelError(
            f"depth model {name!r} is neither a folder, a checkpoint file nor a Hub id such as "
            "'depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf'."
        )
    return recipe, DepthModel(folder, _describe(name, folder, recipe))


def _converted(checkpoint: Path) -> Path:
    """Convert a DenseDepth checkpoint file once, into the Hugging Face cache."""
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME) / "fgbg" / "densedepth" / sha256_file(checkpoint)
    if not folder.is_dir():
        from builder.densedepth.convert_densedepth import convert_checkpoint

        folder.parent.mkdir(parents=True, exist_ok=True)
        convert_checkpoint(checkpoint, folder)
    return folder


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        reason = "is gated; accept its terms on the Hub and run `hf auth login`"
    except RepositoryNotFoundError:
        reason = (
            "is neither a folder here nor a model on the Hub (or it is private: `hf auth login`)"
        )
    except RevisionNotFoundError:
        reason = f"has no revision {revision!r} on the Hub"
    except LocalEntryNotFoundError:
        reason = "is not in the local cache and the Hub can not be reached; check the connection"
    except (HfHubHTTPError, OSError) as error:
        reason = f"can not be downloaded: {error}"
    raise DepthModelError(f"depth model {repo_id!r} {reason}.") from None


def _describe(name: str, folder: Path, recipe: Recipe) -> DepthInfo:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = str(config["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise DepthModelError(
            f"depth model {name!r}: {folder} has no readable config.json with a model_type; "
            "give the folder of a Transformers model."
        ) from None
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise DepthModelError(
            f"depth model {name!r} has no .safetensors file. Pickled weights are never loaded; "
            "convert them first, for example with `model.save_pretrained(folder)`."
        )
    info = DepthInfo(
        model=name,
        revision=recipe.depth_revision,
        weights_sha256=_hash_files(weights),
        model_type=model_type,
        kind="metric",
        quantity="depth",
        unit="mm",
        scale=_MM_PER_M,
        # The log code of jpeg8 needs a nearest depth above a millimetre to spend its levels well.
        near=100,
        far=_MAX_STORED,
    )
    kind = recipe.depth_kind
    if kind == "auto":
        kind = _kind_of(name, model_type, config)
    if kind == "metric":
        if model_type != "densedepth":
            return info
        high = float(config.get("max_depth", 10.0))
        low = float(config.get("min_depth") or high / 100)
        far = min(_MAX_STORED, round(high * _MM_PER_M))
        return replace(info, near=max(1, round(low * _MM_PER_M)), far=far)
    scale = _RELATIVE_SCALE.get(model_type, _OTHER_RELATIVE_SCALE)
    inverse = kind == "relative-inverse"
    return replace(
        info,
        kind="relative",
        quantity="inverse_depth" if inverse else "depth",
        unit=f"1/{scale:g} of the prediction",
        scale=scale,
        near=1,
    )


def _kind_of(name: str, model_type: str, config: dict[str, Any]) -> DepthMeaning:
    if model_type == "depth_anything":
        metric = config.get("depth_estimation_type") == "metric"
        return "metric" if metric else "relative-inverse"
    if model_type not in _KINDS:
        raise DepthModelError(
            f"depth model {name!r} is of type {model_type!r}; what that predicts is not known. "
            "Say it with --depth-kind metric (metres), relative-depth or relative-inverse."
        )
    return _KINDS[model_type]


def _hash_files(paths: list[Path]) -> str:
    """Sha256 of a file, or of the sha256 of several in name order."""
    digests = [sha256_file(path) for path in paths]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


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


def _pixel_settings(name: str, folder: Path) -> dict[str, Any]:
    """Read how a model wants its pixels.

    From the file, and not through its image processor: that of some models needs torchvision.
    """
    for file, key in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ):
        if (folder / file).is_file():
            try:
                content = json.loads((folder / file).read_text(encoding="utf-8"))
                settings: dict[str, Any] = content[key] if key else content
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DepthModelError(
                    f"{name}: {folder / file} can not be read: {error}."
                ) from None
            return settings
    raise DepthModelError(
        f"{name}: {folder} has no preprocessor_config.json, which says how pixels are scaled."
    )


def _width_per_focal_length(outputs: Any) -> torch.Tensor:
    """Return image width / focal length, (B, 1, 1), from a field of view in degrees."""
    import torch

    if outputs.field_of_view is None:
        raise DepthModelError(
            "this Depth Pro model predicts no field of view, so its depth is not metric; use "
            "--depth-kind relative-inverse."
        )
    field = torch.deg2rad(outputs.field_of_view.float()).reshape(-1, 1, 1)
    return 2 * torch.tan(field / 2)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread of the processor.

    Processes of one thread each use the cores as well as threads do, are not thrown back when
    something else takes a core, and sum in the same order however many cores there are.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class DepthEstimator:
    """A depth model ready to run.

    Args:
        model: from `locate_model`.
        recipe: says the side of the enlarged composite.
        device: where to run it.
        batch_size: composites at a time; None is 4 on a processor, 32 on a GPU. Smaller calls
            are filled up to it, so that a record's depth does not depend on its company.

    Raises:
        DepthModelError: the model can not be loaded.
    """

    def __init__(
        self,
        model: DepthModel,
        recipe: Recipe,
        *,
        device: Device = "auto",
        batch_size: int | None = None,
    ) -> None:
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForDepthEstimation

        import builder.densedepth  # noqa: F401 - registers its classes with the Auto classes

        self._device = torch.device(pick_device(device))
        default = _CPU_BATCH if self._device.type == "cpu" else _GPU_BATCH
        self.info, self.batch_size = model.info, batch_size or default
        self._input = cast("int", recipe.depth_input)
        name = f"depth model {model.info.model!r}"
        try:
            network, loading = AutoModelForDepthEstimation.from_pretrained(
                model.folder,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
            raise DepthModelError(
                f"{name} can not be loaded from {model.folder}: {error}"
            ) from None
        # Transformers only warns of these, and goes on with random weights.
        absent = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
        if absent:
            listed = ", ".join(sorted(absent)[:5]) + (" ..." if len(absent) > 5 else "")
            raise DepthModelError(
                f"{name} lacks {len(absent)} weights, or has them in another shape: {listed}."
            )
        self._network = network.eval().to(self._device, memory_format=torch.channels_last)
        self._normalise(_pixel_settings(name, model.folder))

    def _normalise(self, settings: dict[str, Any]) -> None:
        """Set `_factor`, `_offset` so that a pixel's input is value * factor + offset."""
        import torch

        scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
        mean, std = [0.0], [1.0]
        if settings.get("do_normalize", False):
            mean, std = settings["image_mean"], settings["image_std"]
        mean_, std_ = (torch.tensor(v, device=self._device).view(1, -1, 1, 1) for v in (mean, std))
        self._factor, self._offset = scale / std_, -mean_ / std_

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
        """Estimate depth.

        Args:
            images: (B, H, W, 3) uint8, B at most the batch size.

        Returns:
            (B, H, W) uint16 in the stored unit (mm for a metric model), 0 where unknown.
        """
        import torch

        count = len(images)
        if count < self.batch_size:
            images = np.concatenate([images, np.repeat(images[-1:], self.batch_size - count, 0)])
        with _one_thread(), torch.inference_mode():
            pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float()
            prediction = self._predict(self._enlarge(pixels))
            depth = torch.nn.functional.interpolate(
                prediction[:count, None].float(), size=images.shape[1:3], mode="bilinear"
            )[:, 0]
            return self._store(depth)

    def _predict(self, pixels: torch.Tensor) -> torch.Tensor:

        try:
            outputs = self._network(pixel_values=pixels)
        except (RuntimeError, ValueError) as error:
            raise DepthModelError(
                f"depth model {self.info.model!r} fails on {len(pixels)} pictures of "
                f"{self._input}x{self._input} px: {error}. Try another --depth-input or a smaller "
                "--batch-size."
            ) from error
        prediction: torch.Tensor = outputs.predicted_depth
        if self.info.model_type == "depth_pro" and self.info.kind == "metric":
            return 1 / (prediction * _width_per_focal_length(outputs)).clamp(1e-4, 1e4)
        return prediction

    def _enlarge(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        size = (self._input, self._input)
        enlarged = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear")
        return (enlarged * self._factor + self._offset).contiguous(
            memory_format=torch.channels_last
        )

    def _store(self, depth: torch.Tensor) -> npt.NDArray[np.uint16]:
        stored = (depth * self.info.scale).round().clamp(self.info.near, self.info.far)
        stored = stored.nan_to_num(nan=0.0)  # clamp keeps NaN, and NaN alone is unknown
        return stored.to("cpu").numpy().astype(np.uint16)
