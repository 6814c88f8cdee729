"""Depth by any Transformers depth-estimation model: composites in, stored units out."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from builder.depth.choice import Backend, Device, pick_backend, pick_device
from builder.depth.models import WORDS, DepthModel
from builder.errors import DepthModelError
from builder.model_folder import ModelFolder
from builder.recipe import Recipe
from builder.untrusted import printable

if TYPE_CHECKING:
    import torch

    from builder.depth.backends import OpenVinoBackend, TorchBackend

Result = TypeVar("Result")

_CPU_BATCH, _GPU_BATCH = 2, 32
# What libraries say that raise no error of its own for it.
_NO_MEMORY = re.compile(
    "out of memory|can't allocate|failed to allocate|not enough memory|bad[_ ]alloc", re.IGNORECASE
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


def _load_network(files: ModelFolder) -> Any:
    from transformers import AutoModelForDepthEstimation

    import builder.depth.densedepth  # noqa: F401 - registers its classes with the Auto classes

    return files.load(AutoModelForDepthEstimation)


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
        DepthModelError: the model cannot be loaded, or cannot be run in this way.
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

        self._files = ModelFolder(WORDS, model.info.model, model.folder, DepthModelError)
        self._recipe = recipe
        self._device = torch.device(pick_device(device))
        self.backend = pick_backend(
            backend, model.info.model_type, recipe.precision, self._device.type
        )
        default = _CPU_BATCH if self._device.type == "cpu" else _GPU_BATCH
        self.info, self.batch_size = model.info, batch_size or default
        self._input = cast("int", recipe.depth_input)
        self._run: OpenVinoBackend | TorchBackend | None = None
        self._gives_numbers = False
        self._within_memory(self._loaded)
        self._normalise(self._files.pixel_settings())

    def _loaded(self) -> OpenVinoBackend | TorchBackend:
        """Return what runs the model, loaded once, and for OpenVINO once a batch size."""
        from builder.depth.backends import OpenVinoBackend, TorchBackend
        from builder.depth.densedepth import DenseDepthForDepthEstimation
        from builder.depth.densedepth.tapwise import use_tapwise

        if self._run is not None:
            return self._run
        network, precision = _load_network(self._files), self._recipe.precision
        if self._device.type == "cpu" and isinstance(network, DenseDepthForDepthEstimation):
            use_tapwise(network, self._input)
        try:
            if self.backend == "torch":
                self._run = TorchBackend(network, precision, self._device)
            else:
                with _one_thread():
                    self._run = OpenVinoBackend(network, precision, self.batch_size, self._input)
        except FloatingPointError as error:
            raise DepthModelError(
                f"depth model {self.info.model!r} {error} in precision {precision}; the training "
                "that made it may have diverged. Fetch or train it again."
            ) from None
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

        scale, mean, std = self._files.pixel_scaling(settings)
        mean_, std_ = (torch.tensor(v, device=self._device).view(1, -1, 1, 1) for v in (mean, std))
        self._factor, self._offset = scale / std_, -mean_ / std_

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
        """Estimate depth.

        Args:
            images: (B, H, W, 3) uint8; B above the batch size is worked off in parts.

        Returns:
            (B, H, W) uint16 in the stored unit (mm for a metric model), 0 where unknown.

        Raises:
            DepthModelError: the model fails, gives no number for its first composites, or does not
                fit into memory.
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
            self._check_first(depth)
            return self._store(depth)

    def _predict(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

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
            inverse = prediction * _width_per_focal_length(outputs)
            return torch.where(inverse.isfinite(), 1 / inverse.clamp(1e-4, 1e4), torch.nan)
        return prediction

    def _enlarge(self, pixels: torch.Tensor) -> torch.Tensor:
        import torch

        size = (self._input, self._input)
        enlarged = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear")
        return (enlarged * self._factor + self._offset).contiguous(
            memory_format=torch.channels_last
        )

    def _check_first(self, depth: torch.Tensor) -> None:
        """Refuse a model that gives no number for the first composites; later ones are unknown."""
        if not self._gives_numbers and not bool(depth.isfinite().any()):
            raise DepthModelError(
                f"depth model {self.info.model!r} gives NaN or infinity for every pixel of the "
                f"first {len(depth)} composites in precision {self._recipe.precision}. Try "
                "--precision float32 or another model; the training of this one may have diverged."
            )
        self._gives_numbers = True

    def _store(self, depth: torch.Tensor) -> npt.NDArray[np.uint16]:
        import torch

        scaled, info = (depth * self.info.scale).round(), self.info
        known = scaled.isfinite()
        if info.beyond == "unknown":
            known &= scaled <= info.far
        stored = torch.where(known, scaled.clamp(info.near, info.far), 0.0)
        return stored.to("cpu").numpy().astype(np.uint16)
