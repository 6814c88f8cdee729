"""The depth and the ground of backgrounds: measured, or estimated once by the depth model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from builder.depth import DepthEstimator, DepthModel, locate_model
from builder.errors import FgbgError
from builder.pinned import DepthInfo
from builder.recipe import MEASURED_DEPTH, Recipe
from builder.record import DepthCodec
from builder.sources import Backdrop, DepthBy, Given, Kind, Source, prepare
from builder.untrusted import listed, printable

# What depth means where every background brings its own.
_MEASURED = DepthInfo(
    model=MEASURED_DEPTH,
    revision=None,
    weights_sha256="0" * 64,
    model_type="measured",
    kind="metric",
    quantity="depth",
    unit="mm",
    scale=1000.0,
    near=1,
    far=1,
)


def depth_info(recipe: Recipe, model: DepthModel | None) -> DepthInfo | None:
    """Return what depth of a set means, as far as its model or its recipe says."""
    return model.info if model else _MEASURED if recipe.is_measured else None


def with_backdrops(
    sources: Mapping[Kind, Sequence[Source]],
    recipe: Recipe,
    model: DepthModel | None,
    before: DepthInfo | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[tuple[Source, ...], DepthInfo, tuple[tuple[str, str], ...]]:
    """Find the depth and the ground of backgrounds, and leave out those nobody can stand on.

    Args:
        before: what depth means in a set that is resumed, extended or made again.

    Returns:
        The backgrounds; what their depth means; and the files left out, with the reason.

    Raises:
        FgbgError: there is no depth to be had, measured depth and the model's have no common unit,
            heights are given without metric depth, or no background has a ground.
    """
    found, info = _found(sources["background"], recipe, model, before, progress)
    _check_heights(sources["foreground"], recipe, info)
    stands = any(source.entry.stance == "ground" for source in sources["foreground"])
    if recipe.placement != "ground" or not stands:
        return found, info, ()
    kept = tuple(s for s in found if s.backdrop and s.backdrop.region is not None)
    if not kept:
        raise FgbgError(
            f"no background has a ground that can be trusted ({_why_free(found)}); look at them "
            "with `fgbg ground`, paint NAME.ground.png beside them, or use --placement uniform."
        )
    left_out = tuple(
        (source.entry.file, f"has no ground for objects to stand on: {source.backdrop.why_free}")
        for source in found
        if source.backdrop and source.backdrop.region is None
    )
    return kept, info, left_out


def find_grounds(
    folder: Path, recipe: Recipe, progress: Callable[[int], object] | None = None
) -> tuple[Source, ...]:
    """Prepare the backgrounds of a folder, each with its depth and its ground, to be looked at.

    Raises:
        BadSourcesError, FgbgError, DepthModelError: as for a build.
    """
    recipe, model = locate_model(recipe)
    found = prepare(folder, "background", recipe, progress=progress).sources
    return _found(found, recipe, model, None, progress)[0]


def _found(
    backgrounds: Sequence[Source],
    recipe: Recipe,
    model: DepthModel | None,
    before: DepthInfo | None,
    progress: Callable[[int], object] | None,
) -> tuple[tuple[Source, ...], DepthInfo]:
    """Give each background a backdrop: as prepared before, measured, or seen by the model."""
    own = depth_info(recipe, model)
    if before is not None and own is not None and before.weights_sha256 != own.weights_sha256:
        backgrounds = [replace(source, backdrop=None) for source in backgrounds]
        before = None
    missing = [s for s in backgrounds if s.given.depth is None and s.backdrop is None]
    info = _common_unit(backgrounds, missing, own, model, before)
    estimates = _estimated(missing, recipe, model, progress)
    snapped = DepthCodec(replace(recipe, depth_format="png16"), info)
    made = []
    for source in backgrounds:
        given, old = source.given, source.backdrop
        if old is not None and given.depth is None and given.ground is None:
            made.append(source)
            continue
        by: DepthBy = "estimated" if given.depth is None else "measured"
        depth = given.depth
        if depth is None:
            depth = old.depth if old else next(estimates)
        else:
            depth = np.where((depth < info.near) | (depth > info.far), np.uint16(0), depth)
        depth = snapped.as_decoded(depth, b"")
        inverse = info.quantity == "inverse_depth"
        backdrop = Backdrop.of(depth, by, info.far, inverse=inverse, region=given.ground)
        entry = replace(source.entry, prepared_sha256=backdrop.sha256)
        made.append(replace(source, entry=entry, backdrop=backdrop, given=Given()))
    return tuple(made), info


def _common_unit(
    backgrounds: Sequence[Source],
    missing: Sequence[Source],
    info: DepthInfo | None,
    model: DepthModel | None,
    before: DepthInfo | None,
) -> DepthInfo:
    """Return what depth means, wide enough for what was measured; as before, in a set that is."""
    measured = [s for s in backgrounds if s.given.depth is not None]
    if info is None or (model is None and missing):
        names = listed([printable(source.entry.file) for source in missing or backgrounds])
        raise FgbgError(
            f"There is no depth of {names}: placement ground and composed depth need it. Name a "
            "--depth-model, or put measured depth beside each picture, as NAME.depth.png (16-bit "
            "grey, mm)."
        )
    if measured and info.kind != "metric":
        raise FgbgError(
            f"{measured[0].entry.file} has measured depth beside it, in mm, and depth model "
            f"{info.model!r} gives relative depth; name a metric model, or take that file away."
        )
    if before is not None:
        return replace(info, near=before.near, far=before.far)
    known = [s.given.depth[s.given.depth > 0] for s in measured if s.given.depth is not None]
    near = min([info.near, *(int(depth.min()) for depth in known)])
    return replace(info, near=near, far=max([info.far, *(int(depth.max()) for depth in known)]))


def _why_free(backgrounds: Iterable[Source]) -> str:
    reasons = Counter(s.backdrop.why_free for s in backgrounds if s.backdrop)
    return "; ".join(f"{count} times: {reason}" for reason, count in reasons.most_common(3))


def _estimated(
    backgrounds: Sequence[Source],
    recipe: Recipe,
    model: DepthModel | None,
    progress: Callable[[int], object] | None,
) -> Iterator[npt.NDArray[np.uint16]]:
    """Give the depth of backgrounds as the model sees them, one after another."""
    if not backgrounds or model is None:
        return
    estimator = DepthEstimator(model, recipe)
    for start in range(0, len(backgrounds), estimator.batch_size):
        some = backgrounds[start : start + estimator.batch_size]
        for depth in estimator(np.stack([source.pixels() for source in some])):
            yield depth
            if progress:
                progress(0)


def _check_heights(foregrounds: Sequence[Source], recipe: Recipe, info: DepthInfo | None) -> None:
    """Refuse true heights where depth has no unit to measure them by.

    Raises:
        FgbgError: see above.
    """
    measured = [s.entry.file for s in foregrounds if s.entry.height_m]
    if measured and recipe.placement == "ground" and (info is None or info.kind != "metric"):
        raise FgbgError(
            f"credits.csv gives the height of {measured[0]} in metres, and this depth is relative; "
            "name a metric --depth-model, or leave height_m out."
        )
