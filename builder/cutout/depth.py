"""Depth of whole photographs, seen once by a depth model; its part in a cut-out's box is kept.

`NAME.depth.png` is as large as `NAME.png`: 16-bit grey in mm, 0 = unknown. Its text `focal_px` is
the focal length of the photograph in px, `depth_model` what saw it.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Resampling
from PIL.PngImagePlugin import PngInfo

from builder.depth import DepthEstimator, Device, locate_model
from builder.errors import DepthModelError
from builder.recipe import MEASURED_DEPTH, NO_DEPTH_MODEL, Recipe
from builder.sources import focal_length_35mm

FOV_DEG = 60.0  # of the longer side, where a photograph does not say
_FILM_MM = 43.27  # diagonal of the film that EXIF's equivalent focal length is for
_FOCALS_MM = (1, 5000)  # equivalent focal lengths that a camera may have
_STRIP_PX = 2_500_000
_PNG_LEVEL = 1

Stored = npt.NDArray[np.uint16]


class PhotographDepth:
    """A depth model for whole photographs.

    `options` is what decides the depth of a photograph; it is noted.

    Args:
        name: Hub id or folder of a metric depth model, or `demo`.
        fov_deg: field of view over the longer side of photographs that do not say theirs.
        device: where the model runs.

    Raises:
        DepthModelError: there is no such model, or it cannot be used for this.
    """

    def __init__(self, name: str, fov_deg: float, device: Device) -> None:
        if not 1 <= fov_deg <= 170:
            raise DepthModelError(f"the field of view is {fov_deg:g}; it must be 1 to 170 degrees.")
        if name == MEASURED_DEPTH:
            raise DepthModelError("nothing is measured by cutting out; name a metric depth model.")
        self._recipe, self._model = locate_model(Recipe(depth_model=name))
        if self._model is None or self._model.info.kind != "metric":
            raise DepthModelError(
                f"depth model {name!r} gives relative depth, and NAME.depth.png is in mm; name a "
                "metric one, such as depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf."
            )
        info = self._model.info
        self._fov_deg, self._device, self._lock = fov_deg, device, Lock()
        self._estimator: DepthEstimator | None = None
        own = re.split(r"[\\/]", info.model.rstrip("\\/"))[-1]  # of a folder here, its name alone
        named = f"{info.model}@{info.revision}" if info.revision else own
        self._name = f"{named} {info.weights_sha256[:12]}"
        self.options: dict[str, Any] = {"weights": info.weights_sha256, "fov_deg": float(fov_deg)}

    def of(self, photograph: Image.Image, path: Path) -> SeenDepth:
        """Return the depth of a photograph.

        Args:
            photograph: upright, RGB.
            path: of its file, whose EXIF may say the focal length.

        Raises:
            DepthModelError: the model cannot be loaded, or fails.
        """
        side = self._recipe.depth_input
        assert side is not None
        square = photograph.resize((side, side), Resampling.BILINEAR, reducing_gap=2)
        # One at a time: a model takes what memory there is, and the threads are torch's.
        with self._lock:
            if self._estimator is None:
                assert self._model is not None
                self._estimator = DepthEstimator(
                    self._model, self._recipe, device=self._device, batch_size=1
                )
            depth = self._estimator(np.array(square)[None])[0]
        focal_px = focal_length_px(path, photograph.size, self._fov_deg)
        return SeenDepth(depth, photograph.size, focal_px, self._name)


class SeenDepth:
    """What a model saw in a photograph: (side, side) uint16 in mm, 0 = unknown."""

    def __init__(self, depth: Stored, size: tuple[int, int], focal_px: float, name: str) -> None:
        self._depth, self._size, self._name = depth, size, name
        self.focal_px = focal_px

    def part(self, left: int, top: int, width: int, height: int) -> Stored:
        """Return the depth in a box of the photograph, (height, width) uint16.

        It is interpolated between what the model saw, and unknown where most of that is.
        """
        known = (self._depth > 0).astype(np.float32)
        planes = [Image.fromarray(self._depth.astype(np.float32)), Image.fromarray(known)]
        side = len(self._depth)
        across, down = (side / n for n in self._size)
        found = np.zeros((height, width), np.uint16)
        rows = max(1, _STRIP_PX // width)
        for start in range(0, height, rows):
            stop = min(height, start + rows)
            edges = (
                left * across,
                (top + start) * down,
                (left + width) * across,
                (top + stop) * down,
            )
            x0, y0, x1, y1 = (min(edge, side) for edge in edges)  # not above it, by rounding
            depth, share = (
                np.asarray(
                    plane.resize((width, stop - start), Resampling.BILINEAR, (x0, y0, x1, y1))
                )
                for plane in planes
            )
            # Of known pixels alone: 0 is not a distance.
            mean = depth / np.maximum(share, 0.5)
            found[start:stop] = np.where(share >= 0.5, np.rint(mean), 0).astype(np.uint16)
        return found

    def png(self, depth: Stored) -> bytes:
        """Return the file of a part."""
        texts = PngInfo()
        texts.add_text("focal_px", f"{self.focal_px:.2f}")
        texts.add_text("depth_model", self._name)
        buffer = io.BytesIO()
        Image.fromarray(depth).save(buffer, "PNG", compress_level=_PNG_LEVEL, pnginfo=texts)
        return buffer.getvalue()


def focal_length_px(path: Path, size: tuple[int, int], fov_deg: float) -> float:
    """Return the focal length of a photograph in px, by its EXIF or by its field of view.

    Args:
        path: of its file.
        size: of its picture, in px.
        fov_deg: over its longer side, where the file does not say.
    """
    focal_mm = focal_length_35mm(path)
    if _FOCALS_MM[0] <= focal_mm <= _FOCALS_MM[1]:
        return focal_mm / _FILM_MM * math.hypot(*size)
    return max(size) / 2 / math.tan(math.radians(fov_deg) / 2)


def wanted_depth(name: str | None, fov_deg: float, device: Device) -> PhotographDepth | None:
    """Return what sees the depth of photographs; None where no model is named.

    Raises:
        DepthModelError: there is no such model, or it cannot be used for this.
    """
    return None if name in (None, NO_DEPTH_MODEL) else PhotographDepth(str(name), fov_deg, device)
