"""Properties of a plan that hold for every recipe."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from builder.pinned import PinnedRecipe
from builder.record.plan import Plan, _keys, _permute
from tests.strategies import pinned_recipes

small = pinned_recipes(placements=3, shard_records=17)


@given(small)
def test_the_shards_of_all_splits_hold_every_record_once(held: PinnedRecipe) -> None:
    plan = Plan(held)
    ids: list[int] = []
    for name, split in plan.splits.items():
        ranges = [split.shard_range(shard) for shard in range(split.n_shards)]
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
        assert all(0 < stop - start <= 17 for start, stop in ranges)
        for start, stop in ranges:
            shard = split.record_ids(start, stop).tolist()
            ids += shard
            for record_id in shard:
                what = plan.combination(record_id)
                out = (
                    held.foregrounds[what.foreground].held_out,
                    held.backgrounds[what.background].held_out,
                )
                assert (name == "train") == (out == (False, False))
                assert ("foreground" in name or "both" in name) == out[0]
                assert ("background" in name or "both" in name) == out[1]
    assert sorted(ids) == list(range(held.n_records))


@given(pinned_recipes(), st.data())
def test_any_record_lies_wholly_inside(held: PinnedRecipe, data: st.DataObject) -> None:
    plan = Plan(held)
    record_id = data.draw(st.integers(0, held.n_records - 1))
    what = plan.combination(record_id)
    source = held.foregrounds[what.foreground]
    left, top = plan.placement(record_id, what.foreground)
    assert 0 <= left <= held.recipe.size - source.width
    assert 0 <= top <= held.recipe.size - source.height
    flips = 2 if held.recipe.flip else 1
    back = (what.background * len(held.foregrounds) + what.foreground) * flips + what.flipped
    assert back * held.recipe.placements + what.k == record_id


@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.data())
def test_the_order_maps_different_positions_to_different_ones(
    n: int, seed: int, data: st.DataObject
) -> None:
    positions = data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=20))
    got = _permute(np.array(sorted(positions), np.uint64), n, _keys(seed, "train")).tolist()
    assert len(set(got)) == len(positions)
    assert all(0 <= value < n for value in got)
