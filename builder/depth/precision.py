"""Find a depth model and settle its precision: what a faster one does to depth is measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from builder.depth.choice import Backend, Device, pick_device
from builder.depth.estimator import DepthEstimator
from builder.depth.models import DepthModel, find_model
from builder.pictures import open_picture
from builder.pinned import DepthInfo
from builder.recipe import Precision, Recipe
from builder.sources import demo_folders

# Largest mean shift of depth against float32 that precision 'auto' accepts: as much as storing it
# at the default precision may do.
MAX_SHIFT = 0.005


def locate_model(recipe: Recipe, held: DepthInfo | None = None) -> tuple[Recipe, DepthModel | None]:
    """Find the recipe's depth model, and settle what the recipe leaves open.

    Args:
        held: see `find_model`.

    Returns:
        The recipe, with `depth_revision` set to the commit of a Hub model and `precision` to what
        'auto' leads to here (only this loads torch); and the model, None for 'none'.

    Raises:
        DepthModelError: there is no such model, or it cannot be used here.
    """
    recipe, model = find_model(recipe, held)
    if model is None:
        return replace(recipe, precision="float32"), None
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=_fastest_precision(model, recipe))
    return recipe, model


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
    pictures = np.stack(
        [np.asarray(open_picture(f.read_bytes(), None, ("JPEG",)).resize(size)) for f in files]
    )

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
