"""Find a depth model and say what its output means; loads no torch.

Only safetensors are read, and no code from a model's folder.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builder.errors import DepthModelError
from builder.files import sha256_file
from builder.hub import is_hub_id
from builder.model_folder import ModelFolder, download, hash_files
from builder.pinned import DepthInfo
from builder.recipe import DEMO_DEPTH_MODEL, DepthMeaning, Recipe
from builder.untrusted import printable

logger = logging.getLogger(__name__)

WORDS = "depth model"

_MM_PER_M = 1000.0
_MAX_STORED = 65535

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


# Where a config says the farthest depth of a metric model, what it is if it says none; models of
# other types say what they like.
_FARTHEST_M = {"densedepth": 10.0, "depth_anything": 1.0, "glpn": 10.0, "zoedepth": 10.0}


@dataclass(frozen=True)
class DepthModel:
    """A depth model's folder on this machine, and what its output means."""

    folder: Path
    info: DepthInfo


def find_model(recipe: Recipe, held: DepthInfo | None = None) -> tuple[Recipe, DepthModel | None]:
    """Find the recipe's depth model and pin its revision.

    A Hub id is downloaded (JSON and safetensors only) through huggingface_hub; a checkpoint file
    of DenseDepth is converted as `fgbg convert-depth` does without options.

    Args:
        held: what a set that is resumed, extended or made again says of its model. With the same
            weights, it goes on to store what lies beyond 16 bits in its way.

    Returns:
        The recipe, with `depth_revision` set to the commit of a Hub model; and the model, None
        for 'none'.

    Raises:
        DepthModelError: there is no such model, or it cannot be used here.
    """
    if not recipe.has_depth or recipe.is_measured:
        return recipe, None
    name = str(recipe.depth_model)
    if name == DEMO_DEPTH_MODEL:
        folder = Path(__file__).parents[1] / "demo" / "depth"
    elif Path(name).is_dir():
        folder = Path(name)
    elif Path(name).is_file():
        folder = _converted(Path(name))
    elif is_hub_id(name) and not Path(name).exists():
        patterns = ["*.json", "*.safetensors"]
        folder = download(WORDS, name, recipe.depth_revision, patterns, DepthModelError)
        recipe = replace(recipe, depth_revision=folder.name)
    else:
        raise DepthModelError(
            f"depth model {name!r} is neither a folder, a checkpoint file nor a Hub id such as "
            "'depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf'."
        )
    info = _describe(name, folder, recipe)
    if held is not None and held.weights_sha256 == info.weights_sha256:
        info = replace(info, beyond=held.beyond)
    if recipe.precision == "mixed" and info.model_type != "densedepth":
        raise DepthModelError(
            f"precision 'mixed' is for DenseDepth, and depth model {name!r} is of type "
            f"{info.model_type!r}; use --precision float32, bfloat16 or auto."
        )
    if info.beyond == "unknown":
        logger.warning(
            "Depth model %s may say more than %.3f m, the most that 16 bits hold in mm; what lies "
            "beyond is stored as unknown (0).",
            printable(name),
            _MAX_STORED / _MM_PER_M,
        )
    return recipe, DepthModel(folder, info)


def _converted(checkpoint: Path) -> Path:
    """Convert a DenseDepth checkpoint file once, into the Hugging Face cache."""
    from huggingface_hub.constants import HF_HOME

    from builder.depth.densedepth.convert_densedepth import convert

    folder = Path(HF_HOME) / "fgbg" / "densedepth" / sha256_file(checkpoint)
    done = folder / "config.json"  # written last; a folder without it may be anybody's
    if done.is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder.parent, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise DepthModelError(
            f"depth model {str(checkpoint)!r} is a checkpoint, which is converted once, and "
            f"{folder.parent} cannot be written; set HF_HOME to a folder that can, or convert it "
            "with `fgbg convert-depth` and name the new folder."
        )
    try:
        convert(checkpoint, folder, refill=True)
    except DepthModelError:
        if not done.is_file():  # or another build has put it there meanwhile
            raise
    return folder


def _describe(name: str, folder: Path, recipe: Recipe) -> DepthInfo:
    files = ModelFolder(WORDS, name, folder, DepthModelError)
    config, model_type = files.config()
    info = DepthInfo(
        model=name,
        revision=recipe.depth_revision,
        weights_sha256=hash_files(files.weight_files(config)),
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
        return _with_range(info, config)
    scale = _RELATIVE_SCALE.get(model_type, _OTHER_RELATIVE_SCALE)
    return replace(
        info,
        kind="relative",
        quantity="inverse_depth" if kind == "relative-inverse" else "depth",
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


def _with_range(info: DepthInfo, config: dict[str, Any]) -> DepthInfo:
    """Return what a metric model means with the range that its config says.

    Only a DenseDepth keeps to its range, and so stores in it.
    """
    try:
        farthest = max(
            float(part.get("max_depth") or _FARTHEST_M.get(info.model_type, math.inf))
            for part in (config.get("bin_configurations") or [config])  # ZoeDepth has several
        )
        nearest = float(config.get("min_depth") or farthest / 100)
        if farthest * _MM_PER_M > _MAX_STORED:
            info = replace(info, beyond="unknown")
        if info.model_type != "densedepth":
            return info
        near, far = max(1, round(nearest * _MM_PER_M)), round(farthest * _MM_PER_M)
    except (TypeError, ValueError, OverflowError, AttributeError):
        raise DepthModelError(
            f"depth model {info.model!r}: max_depth or min_depth in its config.json is not a "
            "number."
        ) from None
    return replace(info, near=near, far=min(_MAX_STORED, far))
