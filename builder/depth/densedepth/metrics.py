"""The usual errors of depth maps, in NumPy: what a table of a depth paper reports.

Depth maps are (H, W) in metres. Each error is computed within an image, over its known pixels, and
the value of a set is the mean over its images: every image counts the same, however many of its
pixels are known. That is how the DenseDepth paper defines them and how most tables are made
(Monodepth, BTS, AdaBins, Depth Anything). Eigen et al. write them as one mean over the pixels of
all images; for images of equally many known pixels only the two rmse differ, and come out larger or
equal, since the mean of roots is at most the root of the mean. Compare like with like.

Sources: Eigen et al., arXiv 1406.2283, section 4.3 (abs_rel, sq_rel, rmse, rmse_log, delta);
Alhashim and Wonka, arXiv 1812.11941, section 4.2 (log10); Zhou et al., arXiv 1704.07813 (median
scaling).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Depth = npt.NDArray[np.floating[Any]]
Known = npt.NDArray[np.bool_]

METRICS = (
    "abs_rel",  # mean |p - t| / t
    "sq_rel",  # mean (p - t)^2 / t, in metres
    "rmse",  # root of mean (p - t)^2, in metres
    "rmse_log",  # root of mean (ln p - ln t)^2
    "log10",  # mean |log10 p - log10 t|
    "delta1",  # share of pixels with max(p / t, t / p) < 1.25
    "delta2",  # ... < 1.25^2
    "delta3",  # ... < 1.25^3
)
"""Names of the errors of prediction p against truth t, in the order of tables; deltas: more is
better, the others: less is better."""

# Rows and columns of a 480 x 640 NYU Depth v2 image whose depth is well known.
_EIGEN_ROWS, _EIGEN_COLUMNS, _NYU_SIZE = (45, 471), (41, 601), (480, 640)


def depth_errors(predicted_m: Depth, true_m: Depth) -> dict[str, float]:
    """Return the errors in `METRICS` of some pixels, in double precision.

    Args:
        predicted_m: depths in metres, any shape, all above 0.
        true_m: the same, of the same shape; at least one pixel.
    """
    p, t = predicted_m.astype(np.float64).ravel(), true_m.astype(np.float64).ravel()
    log_ratio = np.log(p) - np.log(t)
    worst = np.maximum(p / t, t / p)
    values = (
        np.mean(np.abs(p - t) / t),
        np.mean((p - t) ** 2 / t),
        np.sqrt(np.mean((p - t) ** 2)),
        np.sqrt(np.mean(log_ratio**2)),
        np.mean(np.abs(log_ratio)) / math.log(10),
        *(np.mean(worst < 1.25**power) for power in (1, 2, 3)),
    )
    return dict(zip(METRICS, map(float, values), strict=True))


def eigen_crop(height: int, width: int) -> tuple[slice, slice]:
    """Return the window of an image that NYU Depth v2 is measured in, for `array[window]`.

    Rows 45 to 470 and columns 41 to 600 of the 480 x 640 image (BTS, AdaBins, Depth Anything); in
    proportion, rounded, for other sizes. The DenseDepth paper's own evaluation takes a somewhat
    larger window, rows 20 to 459 and columns 24 to 615: cut both maps to it to repeat its table.
    """
    rows, columns = (
        slice(*(round(edge * side / whole) for edge in edges))
        for edges, side, whole in zip(
            (_EIGEN_ROWS, _EIGEN_COLUMNS), (height, width), _NYU_SIZE, strict=True
        )
    )
    return rows, columns


class DepthMetrics:
    """Collects the errors of one image after another; their means do not depend on the order.

    Args:
        min_depth_m, max_depth_m: a true depth is known where it is finite and lies between them,
            both excluded: a depth at the far limit is a limit and not a measurement. Predictions
            are clipped to them, as is usual.
        eigen: count `eigen_crop` of each image alone.
        median_scaling: multiply each prediction by median(truth) / median(prediction) over the
            known pixels first: measures a model that knows depth up to a factor.

    Raises:
        ValueError: the range is empty.
    """

    def __init__(
        self,
        min_depth_m: float = 1e-3,
        max_depth_m: float = 10.0,
        *,
        eigen: bool = False,
        median_scaling: bool = False,
    ) -> None:
        if not 0 < min_depth_m < max_depth_m:
            raise ValueError(
                "Depths in metres must satisfy 0 < min_depth_m < max_depth_m, got "
                f"{min_depth_m} and {max_depth_m}."
            )
        self.range_m = (min_depth_m, max_depth_m)
        self.eigen, self.median_scaling = eigen, median_scaling
        self.without_truth = 0
        self._images: list[tuple[float, ...]] = []

    @property
    def images(self) -> int:
        """Number of images counted; those in `without_truth` had no known pixel and are not."""
        return len(self._images)

    def known(self, true_m: Depth) -> Known:
        """Return which pixels of a true depth map (H, W) in metres are measured, (H, W) bool."""
        near, far = self.range_m
        inside = np.isfinite(true_m) & (true_m > near) & (true_m < far)
        if self.eigen:
            window = eigen_crop(*true_m.shape)
            cropped = np.zeros_like(inside)
            cropped[window] = inside[window]
            return cropped
        return inside

    def add(self, predicted_m: Depth, true_m: Depth) -> dict[str, float] | None:
        """Count one image, and return its own errors; None if it has no known pixel.

        Args:
            predicted_m: (H, W) in metres; with median scaling in any unit.
            true_m: (H, W) in metres; 0, NaN and anything out of range is unknown.

        Raises:
            ValueError: the shapes differ, or the prediction is NaN, or with median scaling not
                above 0, where the truth is known.
        """
        if predicted_m.ndim != 2 or predicted_m.shape != true_m.shape:
            raise ValueError(
                "A prediction and its truth must be two (height, width) maps of one size, got "
                f"{predicted_m.shape} and {true_m.shape}; resize the prediction first."
            )
        known = self.known(true_m)
        if not known.any():
            self.without_truth += 1
            return None
        predicted, true = predicted_m[known].astype(np.float64), true_m[known].astype(np.float64)
        if np.isnan(predicted).any():
            raise ValueError("The prediction is NaN at pixels whose depth is known.")
        if self.median_scaling:
            middle = np.median(predicted)
            if not 0 < middle < math.inf:
                raise ValueError(f"The median of the prediction is {middle}; it cannot be scaled.")
            predicted *= np.median(true) / middle
        errors = depth_errors(predicted.clip(*self.range_m), true)
        self._images.append(tuple(errors.values()))
        return errors

    def merge(self, other: DepthMetrics) -> None:
        """Count another collection's images too, as if all had been added here."""
        self._images += other._images
        self.without_truth += other.without_truth

    def compute(self) -> dict[str, float]:
        """Return the mean of each error over the images, summed without rounding (`math.fsum`).

        Raises:
            ValueError: no image with a known pixel was added.
        """
        if not self._images:
            raise ValueError(
                "No image with a known depth was added; is the depth range or its scale right?"
            )
        columns = zip(*self._images, strict=True)
        means = (math.fsum(column) / len(self._images) for column in columns)
        return dict(zip(METRICS, means, strict=True))


__all__ = ["METRICS", "DepthMetrics", "depth_errors", "eigen_crop"]
