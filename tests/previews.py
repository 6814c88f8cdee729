"""Finished builds for the tests of the preview, made without a depth model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from builder.build.shards import stored_name, write_shard
from builder.depth import DepthEstimator
from builder.files import write_text
from builder.layout import RECIPE_FILE, SOURCES_FILE, STATISTICS_FILE, shard_file
from builder.pinned import DepthInfo, PinnedRecipe
from builder.recipe import Recipe
from builder.record.plan import Plan, hold_out
from builder.record.render import Renderer
from builder.sources.prepare import Source, SourceBank, prepare
from builder.sources.stored import write_sources
from builder.tables import FileFormat

METRIC = DepthInfo(
    model="demo",
    revision=None,
    weights_sha256="0" * 64,
    model_type="densedepth",
    kind="metric",
    quantity="depth",
    unit="mm",
    scale=1000.0,
    near=500,
    far=10000,
)
RELATIVE = replace(
    METRIC,
    model="/home/ann/models/any-depth",
    model_type="depth_anything",
    kind="relative",
    quantity="inverse_depth",
    unit="1/100",
    scale=100.0,
)


class Slope:
    """Depth that falls from 8 m on top to 1 m at the bottom, unknown in one corner."""

    batch_size = 4

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
        count, height, width, _ = images.shape
        slope = np.linspace(8000, 1000, height).astype(np.uint16)
        depth = np.broadcast_to(slope[None, :, None], (count, height, width)).copy()
        depth[:, : height // 4, : width // 4] = 0
        return depth


def make_build(
    out: Path,
    sources: tuple[Path, Path],
    *,
    file_format: FileFormat = "parquet",
    depth: DepthInfo | None = METRIC,
    **choices: Any,
) -> tuple[Renderer, Plan]:
    """Lay out a finished build in OUT; return what makes its records (without depth) again."""
    recipe = Recipe(**choices, depth_model=depth.model if depth else "none")
    foregrounds, entries_fg = _prepared(sources[0], "foreground", recipe)
    backgrounds, entries_bg = _prepared(sources[1], "background", recipe)
    pinned = PinnedRecipe(
        recipe=recipe, foregrounds=entries_fg, backgrounds=entries_bg, depth=depth
    )
    plan, bank = Plan(pinned), SourceBank(foregrounds, backgrounds)
    renderer = Renderer(plan, bank, cast("DepthEstimator", Slope()) if depth else None)
    for kind, prepared in (("foregrounds", foregrounds), ("backgrounds", backgrounds)):
        (out / kind).mkdir(parents=True)
        write_sources(out / kind / SOURCES_FILE, kind[:-1], recipe, prepared)
    for split in plan.splits.values():
        for shard in range(split.n_shards):
            path = out / shard_file(split, shard, file_format)
            path.parent.mkdir(exist_ok=True)
            records = renderer.records(split.name, *split.shard_range(shard))
            commit = write_shard(path.parent, path.stem, file_format, pinned, records)
            stored = path.parent / stored_name(path.stem, commit.sha256, file_format)
            stored.rename(path)
            path.with_suffix(".json").unlink()  # the commit record; stays in the work folder
    write_text(out / RECIPE_FILE, pinned.to_json())
    (out / STATISTICS_FILE).parent.mkdir()
    write_text(out / STATISTICS_FILE, "{}")  # as of version 0.1.0: it states no other files
    return renderer, plan


def _prepared(folder: Path, kind: Any, recipe: Recipe) -> tuple[list[Source], tuple[Any, ...]]:
    sources = prepare(folder, kind, recipe).sources
    entries = hold_out([source.entry for source in sources], recipe.holdout, recipe.seed)
    return [replace(s, entry=e) for e, s in zip(entries, sources, strict=True)], entries
