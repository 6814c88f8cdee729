"""Find, describe, load and run a depth model."""

from builder.depth.choice import BACKENDS, DEVICES, Backend, Device, pick_device
from builder.depth.estimator import DepthEstimator
from builder.depth.models import DepthModel
from builder.depth.precision import locate_model, precision_shifts

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
