"""Image processor of DenseDepth: RGB in [0, 1] without mean or deviation, on PIL and NumPy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.modeling_outputs import DepthEstimatorOutput

logger = logging.getLogger(__name__)


class DenseDepthImageProcessor(PilBackend):
    """Images to `pixel_values` (B, 3, H, W) float32 in [0, 1], predictions to maps of any size.

    The default size is 480 rows by 640 columns, the NYU Depth v2 size the paper trains at; both
    sides must be multiples of 32 or the model refuses them. Needs no torchvision.

    Source: arXiv 1812.11941, sections 3.1 and 4.1.
    """

    do_resize = True
    size = {"height": 480, "width": 640}  # noqa: RUF012  # the base declares it so
    default_to_square = True
    resample = PILImageResampling.BILINEAR
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = False
    do_convert_rgb = True
    model_input_names = ["pixel_values"]  # noqa: RUF012

    def _preprocess(self, images: list[Any], **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        """Do as every processor does, and warn of pictures that were scaled before."""
        floats = (image for image in images if np.issubdtype(image.dtype, np.floating))
        if kwargs.get("do_rescale") and any(image.max() <= 1 for image in floats):
            logger.warning(
                "Pictures in floats from 0 to 1 are divided by 255 again; pass do_rescale=False, "
                "or values from 0 to 255."
            )
        return super()._preprocess(images, **kwargs)

    def post_process_depth_estimation(
        self,
        outputs: DepthEstimatorOutput,
        target_sizes: Sequence[tuple[int, int] | None] | torch.Tensor | None = None,
    ) -> list[dict[str, torch.Tensor]]:
        """Resize each predicted depth map bilinearly to its target size.

        Args:
            outputs: the model's output; `predicted_depth` is (B, h, w) in metres.
            target_sizes: B pairs (height, width) in pixels; None, as a whole or for one image,
                keeps the model's size.

        Returns:
            One `{"predicted_depth": (height, width) tensor in metres}` per image. Bilinear, for
            bicubic overshoots at edges, out of the model's depth range.

        Raises:
            ValueError: the number of target sizes is not the number of images.
        """
        depths = outputs.predicted_depth
        if depths is None:
            raise ValueError(
                "These outputs hold no predicted_depth; pass what the depth model returned."
            )
        sizes = [None] * len(depths) if target_sizes is None else list(target_sizes)
        if len(sizes) != len(depths):
            raise ValueError(
                f"Got {len(sizes)} target sizes for {len(depths)} depth maps; pass one each."
            )
        return [
            {"predicted_depth": _resize(depth, size)}
            for depth, size in zip(depths, sizes, strict=True)
        ]


def _resize(depth_m: torch.Tensor, size: Sequence[int] | torch.Tensor | None) -> torch.Tensor:
    """Resize one (h, w) depth map to (height, width); None keeps it."""
    if size is None:
        return depth_m
    height, width = (int(side) for side in size)
    return torch.nn.functional.interpolate(
        depth_m[None, None], size=(height, width), mode="bilinear", align_corners=False
    )[0, 0]


__all__ = ["DenseDepthImageProcessor"]
