"""DenseDepth for Transformers: importing this package registers it with the Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

from .configuration_densedepth import DenseDepthConfig
from .image_processing_densedepth import DenseDepthImageProcessor
from .modeling_densedepth import DenseDepthForDepthEstimation


def register() -> None:
    """Make the Auto classes and `pipeline("depth-estimation")` know DenseDepth.

    Importing this package has already done it; calling it again changes nothing.
    """
    AutoConfig.register(DenseDepthConfig.model_type, DenseDepthConfig, exist_ok=True)
    AutoModelForDepthEstimation.register(
        DenseDepthConfig, DenseDepthForDepthEstimation, exist_ok=True
    )
    AutoImageProcessor.register(
        DenseDepthConfig, image_processor_classes={"pil": DenseDepthImageProcessor}, exist_ok=True
    )


register()

__all__ = [
    "DenseDepthConfig",
    "DenseDepthForDepthEstimation",
    "DenseDepthImageProcessor",
    "register",
]
