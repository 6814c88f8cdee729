"""Find, describe, load and run a depth model."""

from builder.depth.estimator import (
    BACKENDS,
    DEVICES,
    Backend,
    DepthEstimator,
    DepthModel,
    Device,
    locate_model,
    pick_device,
    precision_shifts,
)

__all__ = [
    "BACKENDS",
    "DEVICES",
    "Backend",
    "DepthEstimator",
    "DepthModel",
    "Device",
    "locate_model",
    "pick_device",
    "precision_shifts",
]
