"""Hypothesis strategies that the property tests share: the one place to extend."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from builder.pinned import DepthInfo, PinnedRecipe, SourceEntry
from builder.recipe import Recipe

Pixels = npt.NDArray[np.uint8]

_LETTERS = "aZ09 ._-'\"\\<&,äß中👩"
# Alpha values where a wrong rounding or threshold would show.
EDGE_ALPHA = np.array([0, 1, 127, 128, 254, 255], np.uint8)


@st.composite
def foregrounds(draw: st.DrawFn, max_side: int = 24) -> Pixels:
    """(h, w, 4) uint8 with at least one pixel in the mask; alpha often at its edge values."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
    if draw(st.booleans()):
        pixels[..., 3] = rng.choice(EDGE_ALPHA, (height, width))
    pixels[rng.integers(height), rng.integers(width), 3] = rng.integers(128, 256)
    return pixels


@st.composite
def backgrounds(draw: st.DrawFn, min_side: int = 24, max_side: int = 40) -> Pixels:
    """(H, W, 3) uint8."""
    shape = draw(st.integers(min_side, max_side)), draw(st.integers(min_side, max_side)), 3
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 256, shape, np.uint8)


@st.composite
def placements(draw: st.DrawFn) -> tuple[Pixels, Pixels, int, int]:
    """A background, a foreground that fits into it, and where: left_px, top_px."""
    background, foreground = draw(backgrounds()), draw(foregrounds())
    left = draw(st.integers(0, background.shape[1] - foreground.shape[1]))
    top = draw(st.integers(0, background.shape[0] - foreground.shape[0]))
    return background, foreground, left, top


@st.composite
def recipes(draw: st.DrawFn, **fixed: Any) -> Recipe:
    """Any allowed recipe; `fixed` fields are taken as given."""
    size = draw(st.integers(16, 4096))
    values: dict[str, Any] = {
        "placements": draw(st.integers(1, 10**6)),
        "flip": draw(st.booleans()),
        "records": draw(st.none() | st.integers(1, 10**6)),
        "size": size,
        "foreground_size": draw(st.integers(2, size)),
        "background_fit": draw(st.sampled_from(["crop", "stretch"])),
        "holdout": draw(st.floats(0, 0.9)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "depth_model": draw(st.sampled_from(["demo", "none", "some/model", "ein/Modell-ä"])),
        "depth_revision": draw(st.none() | st.sampled_from(["main", "0" * 40])),
        "depth_kind": draw(st.sampled_from(["auto", "metric", "relative-inverse"])),
        "depth_input": draw(st.none() | st.integers(1, 128).map(lambda n: 32 * n)),
        "image_format": draw(st.sampled_from(["jpeg", "webp", "png"])),
        "image_quality": draw(st.integers(1, 100)),
        "depth_format": draw(st.sampled_from(["png16", "jpeg8"])),
        "depth_precision": draw(st.floats(0, 0.1)),
        "shard_records": draw(st.integers(1, 10**6)),
    }
    return Recipe(**{**values, **fixed})


@st.composite
def source_entries(draw: st.DrawFn, name: str | None = None, max_side: int = 16) -> SourceEntry:
    """A source entry; its sides are at most `max_side`."""
    text = st.text(_LETTERS, max_size=8)
    stem = draw(st.text(_LETTERS, min_size=1, max_size=8)) if name is None else name
    side = st.integers(1, max_side)
    return SourceEntry(
        id=stem,
        file=f"{stem}.png",
        sha256=f"{draw(st.integers(0, 2**256 - 1)):064x}",
        width=draw(side),
        height=draw(side),
        source_width=draw(st.integers(2, 9999)),
        source_height=draw(st.integers(2, 9999)),
        held_out=draw(st.booleans()),
        author=draw(text),
        license=draw(st.sampled_from(["", "CC0-1.0", "CC-BY-4.0"])),
        url=draw(text),
    )


@st.composite
def entry_lists(
    draw: st.DrawFn, prefix: str, max_size: int = 6, max_side: int = 16
) -> tuple[SourceEntry, ...]:
    """Source entries with different ids."""
    count = draw(st.integers(1, max_size))
    return tuple(draw(source_entries(f"{prefix}{i}", max_side)) for i in range(count))


@st.composite
def pinned_recipes(draw: st.DrawFn, **fixed: Any) -> PinnedRecipe:
    """A pinned recipe with up to six sources of each kind."""
    recipe = draw(recipes(**fixed))
    side = recipe.foreground_size
    return PinnedRecipe(
        recipe=recipe,
        foregrounds=draw(entry_lists("fg", max_side=side)),
        backgrounds=draw(entry_lists("bg", max_side=recipe.size)),
        depth=depth_info() if recipe.has_depth else None,
        skipped=draw(st.sampled_from([(), (("fg/ä\\n.png", "is empty (0 bytes)"),)])),
    )


def entry(name: str, width: int = 10, height: int = 10, **fields: Any) -> SourceEntry:
    """A source entry whose sha256 comes from its name."""
    import hashlib

    values: dict[str, Any] = {
        "id": name,
        "file": f"{name}.png",
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "width": width,
        "height": height,
        "source_width": 640,
        "source_height": 480,
    }
    return SourceEntry(**{**values, **fields})


def depth_info(near: int = 100, far: int = 10_000, **fields: Any) -> DepthInfo:
    """A metric depth model's description, stored in mm."""
    values: dict[str, Any] = {
        "model": "demo",
        "revision": None,
        "weights_sha256": "5" * 64,
        "model_type": "densedepth",
        "kind": "metric",
        "quantity": "depth",
        "unit": "mm",
        "scale": 1000.0,
        "near": near,
        "far": far,
    }
    return DepthInfo(**{**values, **fields})


def pinned(
    n_foregrounds: int = 3, n_backgrounds: int = 4, *, depth: DepthInfo | None = None, **fields: Any
) -> PinnedRecipe:
    """A small pinned recipe, without depth unless `depth` is given."""
    recipe = Recipe(**{"depth_model": "demo" if depth else "none", **fields})
    return PinnedRecipe(
        recipe=recipe,
        foregrounds=tuple(entry(f"fg{i}") for i in range(n_foregrounds)),
        backgrounds=tuple(entry(f"bg{i}", recipe.size, recipe.size) for i in range(n_backgrounds)),
        depth=depth,
    )
