"""Properties of a plan that hold for every recipe."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from builder.pinned import PinnedRecipe
from builder.record.plan import Plan, _keys, _permute, shared_out
from tests.strategies import entry, pinned, pinned_recipes

small = pinned_recipes(placements=3, shard_records=17, records=None)


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
    record_id = data.draw(st.integers(0, held.n_possible - 1))
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


# --- fewer records than the sources give ------------------------------------------------------


def asking(held: PinnedRecipe, records: int | None) -> Plan:
    return Plan(replace(held, recipe=replace(held.recipe, records=records)))


def ids_of(plan: Plan) -> dict[str, list[int]]:
    return {n: split.record_ids(0, split.n_records).tolist() for n, split in plan.splits.items()}


@given(small, st.data())
def test_a_set_of_fewer_records_is_the_start_of_every_split(
    held: PinnedRecipe, data: st.DataObject
) -> None:
    whole = ids_of(Plan(held))
    fewer, more = sorted(data.draw(st.tuples(*[st.integers(1, held.n_records + 9)] * 2)))
    some, others = ids_of(asking(held, fewer)), ids_of(asking(held, more))
    for name, ids in some.items():
        assert ids == others[name][: len(ids)] == whole[name][: len(ids)]
    for asked, plan in ((fewer, asking(held, fewer)), (more, asking(held, more))):
        assert plan.n_records == plan.pinned.n_records == min(asked, held.n_possible)
        assert plan.n_records == sum(map(len, ids_of(plan).values()))
        assert asked < len(whole) or set(plan.splits) == set(whole)
    for name, split in asking(held, fewer).splits.items():
        ranges = [split.shard_range(shard) for shard in range(split.n_shards)]
        assert [i for r in ranges for i in split.record_ids(*r).tolist()] == some[name]
        assert all(0 < stop - start <= 17 for start, stop in ranges)


parts = st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any)


@given(parts)
def test_shares_are_exact_grow_with_the_number_and_stay_near_their_proportion(
    sizes: list[int],
) -> None:
    total, before = sum(sizes), [0] * len(sizes)
    n_parts = sum(size > 0 for size in sizes)
    for n in range(total + 1):
        shares = shared_out(n, sizes)
        assert sum(shares) == n
        assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
        assert all(old <= new for old, new in zip(before, shares, strict=True))
        given = [share > 0 for share, size in zip(shares, sizes, strict=True) if size]
        assert given == [i < n for i in range(n_parts)]
        for share, size in zip(shares, sizes, strict=True):
            assert abs(share - n * size / total) < n_parts
        before = shares
    assert before == sizes


@given(parts, st.integers(1, 10**15), st.data())
def test_shares_of_many_are_those_of_giving_one_by_one(
    sizes: list[int], scale: int, data: st.DataObject
) -> None:
    """The short way goes from below; a step more or less from it is a step of the long way."""
    many = [size * scale for size in sizes]
    n = data.draw(st.integers(0, sum(many) - 1))
    steps = [b - a for a, b in zip(shared_out(n, many), shared_out(n + 1, many), strict=True)]
    assert sorted(steps) == [0] * (len(sizes) - 1) + [1]


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 60), st.booleans())
def test_the_number_of_copies_is_what_is_drawn_on_the_average(
    places: int, backgrounds: int, placements: int, flip: bool
) -> None:
    held = pinned(1, backgrounds, size=16, foreground_size=16, placements=placements, flip=flip)
    foreground = entry("fg0", width=17 - places, height=16)
    plan = Plan(replace(held, foregrounds=(foreground,)))
    expected = places * (1 - (1 - 1 / places) ** placements) * backgrounds * (2 if flip else 1)
    assert plan.n_copies == round(held.n_records - expected)
    if places == 1:
        assert plan.n_copies == held.n_records - backgrounds * (2 if flip else 1)
