"""Depth by any Transformers depth-estimation model: composites in, stored units out.

`locate_model` finds the weights and says what they measure without loading torch;
`DepthEstimator` loads and runs them. Only safetensors are read, and no code from a model's folder.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from builder.depth.model_folder import (
    bounded,
    check_numbers,
    pixel_scaling,
    read_config,
    weight_files,
)
from builder.errors import DepthModelError
from builder.files import sha256_file
from builder.hub import is_hub_id, request_errors, why
from builder.pinned import DepthInfo
from builder.recipe import DEMO_DEPTH_MODEL, DepthMeaning, Precision, Recipe
from builder.sources import demo_folders
from builder.untrusted import printable

if TYPE_CHECKING:
    import torch

    from builder.depth.backends import OpenVinoBackend, TorchBackend

Result = TypeVar("Result")

Device = Literal["auto", "cpu", "cuda", "mps"]
DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda", "mps")
Backend = Literal["auto", "torch", "openvino"]
BACKENDS: tuple[Backend, ...] = ("auto", "torch", "openvino")

# Largest mean shift of depth against float32 that precision 'auto' accepts: as much as storing it
# at the default precision may do.
MAX_SHIFT = 0.005

_MM_PER_M = 1000.0
_MAX_STORED = 65535
_CPU_BATCH, _GPU_BATCH = 2, 32
# What libraries say that raise no error of its own for it.
_NO_MEMORY = re.compile(
    "out of memory|can't allocate|failed to allocate|not enough memory|bad[_ ]alloc", re.IGNORECASE
)

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
        The recipe, with `depth_revision` set to the commit of a Hub model and `precision` to what
        'auto' leads to here (only this loads torch); and the model, None for 'none'.

    Raises:
        DepthModelError: there is no such model, or it is of no use here.
    """
    if not recipe.has_depth:
        return replace(recipe, precision="float32"), None
    name = str(recipe.depth_model)
    if name == DEMO_DEPTH_MODEL:
        folder = Path(__file__).parents[1] / "demo" / "depth"
    elif Path(name).is_dir():
        folder = Path(name)
    elif Path(name).is_file():
        folder = _converted(Path(name))
    elif is_hub_id(name) and not Path(name).exists():
        folder = _download(name, recipe.depth_revision)
        recipe = replace(recipe, depth_revision=folder.name)
    else:
        raise DepthModelError(
            f"depth model {name!r} is neither a folder, a checkpoint file nor a Hub id such as "
            "'depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf'."
        )
    model = DepthModel(folder, _describe(name, folder, recipe))
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=_fastest_precision(model, recipe))
    if recipe.precision == "mixed" and model.info.model_type != "densedepth":
        raise DepthModelError(
            f"precision 'mixed' is for DenseDepth, and depth model {name!r} is of type "
            f"{model.info.model_type!r}; use --precision float32, bfloat16 or auto."
        )
    return recipe, model


def _converted(checkpoint: Path) -> Path:
    """Convert a DenseDepth checkpoint file once, into the Hugging Face cache."""
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME) / "fgbg" / "densedepth" / sha256_file(checkpoint)
    if not folder.is_dir():
        from builder.depth.densedepth.convert_densedepth import convert

        folder.parent.mkdir(parents=True, exist_ok=True)
        convert(checkpoint, folder)
    return folder


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors"]
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))
    except request_errors() as error:
        raise DepthModelError(f"depth model {repo_id!r} {why(error, revision)}.") from None


def _describe(name: str, folder: Path, recipe: Recipe) -> DepthInfo:
    config = read_config(name, folder)
    check_numbers(name, config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise DepthModelError(
            f"depth model {name!r}: {folder}/config.json has no model_type; give the folder of a "
            "Transformers model."
        )
    weights = weight_files(name, folder, config)
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
        try:
            high = float(config.get("max_depth", 10.0))
            low = float(config.get("min_depth") or high / 100)
            near, far = max(1, round(low * _MM_PER_M)), min(_MAX_STORED, round(high * _MM_PER_M))
        except (TypeError, ValueError, OverflowError):
            raise DepthModelError(
                f"depth model {name!r}: max_depth or min_depth in its config.json is no number."
            ) from None
        return replace(info, near=near, far=far)
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


def precision_shifts(
    model: DepthModel, recipe: Recipe, *, device: Device = "auto", backend: Backend = "torch"
) -> dict[Precision, float]:
    """Measure how far the faster precisions move a model's depth; fastest first.

    On a fixed set: every third of the bundled backgrounds, at the recipe's size.

    Returns:
        By precision, the mean of |depth - depth32| / depth32 over the pixels that depth32, the
        depth in float32, knows.

    Raises:
        DepthModelError: the model cannot be loaded or run.
    """
    size = (recipe.size, recipe.size)
    files = sorted(demo_folders()[1].glob("*.jpg"))[::3]
    pictures = np.stack([np.asarray(Image.open(f).convert("RGB").resize(size)) for f in files])

    def depth(precision: Precision) -> npt.NDArray[np.float64]:
        chosen = replace(recipe, precision=precision)
        estimator = DepthEstimator(model, chosen, device=device, backend=backend, batch_size=1)
        return np.concatenate([estimator(picture[None]) for picture in pictures]).astype(float)

    exact = depth("float32")
    known = exact > 0
    shifts: dict[Precision, float] = {}
    faster: tuple[Precision, ...] = ("bfloat16", "mixed")
    for precision in faster:
        if precision != "mixed" or model.info.model_type == "densedepth":
            ratio = depth(precision)[known] / exact[known]
            shifts[precision] = float(np.abs(ratio - 1).mean())
    return shifts


def _fastest_precision(model: DepthModel, recipe: Recipe) -> Precision:
    """Return what precision 'auto' leads to for a model on this machine."""
    import torch

    from builder.depth.backends import has_fast_bfloat16

    if has_fast_bfloat16(torch.device(pick_device("auto"))):
        for precision, shift in precision_shifts(model, recipe).items():
            if shift < MAX_SHIFT:  # false for NaN, of a picture without a known pixel
                return precision
    return "float32"


def _pixel_settings(name: str, folder: Path) -> dict[str, Any]:
    """Read how a model wants its pixels.

    From the file, and not through its image processor: that of some models needs torchvision.
    """
    for file, key in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ):
        if (folder / file).is_file():
            content = read_config(name, folder, file)
            settings = content.get(key) if key else content
            if isinstance(settings, dict):
                return settings
    raise DepthModelError(
        f"depth model {name!r}: {folder} has no preprocessor_config.json, which says how pixels "
        "are scaled."
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


def _load_network(model: DepthModel) -> Any:
    """Return a model's network in float32, with every weight from its files."""
    import torch
    from transformers import AutoModelForDepthEstimation
    from transformers.utils import logging

    import builder.depth.densedepth  # noqa: F401 - registers its classes with the Auto classes

    name = f"depth model {model.info.model!r}"
    config = read_config(model.info.model, model.folder)
    weights = weight_files(model.info.model, model.folder, config)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # loading is short, and would be shown once a process
    try:
        with bounded(model.info.model, weights):
            network, loading = AutoModelForDepthEstimation.from_pretrained(
                model.folder,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except DepthModelError:
        raise
    except Exception as error:  # noqa: BLE001 - a config that makes no sense can raise anything
        why = printable(" ".join(f"{type(error).__name__}: {error}".split()))[:1000]
        raise DepthModelError(f"{name} cannot be loaded from {model.folder}: {why}") from None
    finally:
        if bars:
            logging.enable_progress_bar()
    # Transformers only warns of these, and goes on with random weights.
    absent = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
    if absent:
        listed = ", ".join(sorted(absent)[:5]) + (" ..." if len(absent) > 5 else "")
        raise DepthModelError(
            f"{name} lacks {len(absent)} weights, or has them in another shape: {listed}."
        )
    return network.eval()


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one it comes from, says that memory does not reach."""
    import torch

    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__
    return False


class DepthEstimator:
    """A depth model ready to run.

    Args:
        model: from `locate_model`.
        recipe: says the side of the enlarged composite and the precision; 'auto' must have been
            settled by `locate_model`.
        device: where to run it.
        backend: what runs it; 'auto' is OpenVINO where it is installed and can run the model.
        batch_size: composites at a time; None is 2 on a processor, 32 on a GPU. Smaller calls
            are filled up to it, so that a record's depth does not depend on its company. Where
            memory does not reach it is halved, and stays so.

    Raises:
        DepthModelError: the model cannot be loaded, or not be run so.
    """

    def __init__(
        self,
        model: DepthModel,
        recipe: Recipe,
        *,
        device: Device = "auto",
        backend: Backend = "auto",
        batch_size: int | None = None,
    ) -> None:
        import torch

        self._model, self._recipe = model, recipe
        self._device = torch.device(pick_device(device))
        self.backend = pick_backend(
            backend, model.info.model_type, recipe.precision, self._device.type
        )
        default = _CPU_BATCH if self._device.type == "cpu" else _GPU_BATCH
        self.info, self.batch_size = model.info, batch_size or default
        self._input = cast("int", recipe.depth_input)
        self._run: OpenVinoBackend | TorchBackend | None = None
        self._within_memory(self._loaded)
        self._normalise(_pixel_settings(model.info.model, model.folder))

    def _loaded(self) -> OpenVinoBackend | TorchBackend:
        """Return what runs the model, loaded once, and for OpenVINO once a batch size."""
        from builder.depth.backends import OpenVinoBackend, TorchBackend
        from builder.depth.densedepth import DenseDepthForDepthEstimation
        from builder.depth.densedepth.tapwise import use_tapwise

        if self._run is not None:
            return self._run
        network, precision = _load_network(self._model), self._recipe.precision
        if self._device.type == "cpu" and isinstance(network, DenseDepthForDepthEstimation):
            use_tapwise(network, self._input)
        try:
            if self.backend == "torch":
                self._run = TorchBackend(network, precision, self._device)
            else:
                with _one_thread():
                    self._run = OpenVinoBackend(network, precision, self.batch_size, self._input)
        except RuntimeError as error:
            advice = "--backend torch" if self.backend == "openvino" else "--device cpu"
            raise DepthModelError(
                f"{self.backend} cannot run depth model {self.info.model!r}: {error}. Use {advice}."
            ) from (error if self.backend == "openvino" else None)  # torch loads no batch
        return self._run

    def _within_memory(self, work: Callable[[], Result]) -> Result:
        """Do some work, again with half the batch size as long as memory does not reach for it."""
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError, DepthModelError) as error:
                if not _lacks_memory(error):
                    raise
                if self.batch_size == 1:
                    raise DepthModelError(
                        f"depth model {self.info.model!r} does not fit into memory at "
                        f"{self._input}x{self._input} px, even with --batch-size 1. Use fewer "
                        "--workers, a smaller --depth-input or a smaller model."
                    ) from error
            self._halve()  # here, for the error would hold on to what was in memory

    def _halve(self) -> None:
        import torch

        before, self.batch_size = self.batch_size, self.batch_size // 2
        tqdm.write(
            f"Depth model {printable(self.info.model)} does not fit into memory with {before} "
            f"composites at a time; going on with {self.batch_size}. Begin so with --batch-size "
            f"{self.batch_size}.",
            file=sys.stderr,
        )
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self.backend == "openvino":
            self._run = None  # it is compiled for one batch size

    def _normalise(self, settings: dict[str, Any]) -> None:
        """Set `_factor`, `_offset` so that a pixel's input is value * factor + offset."""
        import torch

        scale, mean, std = pixel_scaling(self.info.model, settings)
        mean_, std_ = (torch.tensor(v, device=self._device).view(1, -1, 1, 1) for v in (mean, std))
        self._factor, self._offset = scale / std_, -mean_ / std_

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
        """Estimate depth.

        Args:
            images: (B, H, W, 3) uint8; B above the batch size is worked off in parts.

        Returns:
            (B, H, W) uint16 in the stored unit (mm for a metric model), 0 where unknown.

        Raises:
            DepthModelError: the model fails, or does not fit into memory.
        """

        def estimate() -> npt.NDArray[np.uint16]:
            size = self.batch_size
            parts = [images[at : at + size] for at in range(0, len(images), size)]
            return np.concatenate([self._estimate(part) for part in parts])

        return self._within_memory(estimate)

    def _estimate(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
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
            outputs = self._loaded()(pixels)
        except (RuntimeError, ValueError) as error:
            raise DepthModelError(
                f"depth model {self.info.model!r} fails on {len(pixels)} pictures of "
                f"{self._input}x{self._input} px: {error}. Try another --depth-input or a smaller "
                "--batch-size."
            ) from error
        prediction = cast("torch.Tensor", outputs.predicted_depth)
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
