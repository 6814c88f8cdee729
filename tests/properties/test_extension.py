"""Properties of a set that grows: earlier records, ids, files and splits stay as they were."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from builder.pinned import PinnedRecipe
from builder.record.plan import Plan, hold_out, hold_out_more
from tests.strategies import entry, recipes


@st.composite
def grown(draw: st.DrawFn) -> PinnedRecipe:
    """A set extended one to three times; a growth may be of one kind alone."""
    fixed = {"depth_model": "none", "placements": draw(st.integers(1, 3)), "shard_records": 7}
    recipe = draw(recipes(**fixed, records=draw(st.none() | st.integers(1, 40))))
    sizes = [draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))]
    for _ in range(draw(st.integers(1, 3))):
        more = draw(st.sampled_from([(0, 1), (1, 0), (2, 1), (0, 3), (3, 0)]))
        sizes.append((sizes[-1][0] + more[0], sizes[-1][1] + more[1]))
    kinds = []
    for kind, name in enumerate(("fg", "bg")):
        entries = hold_out(
            [entry(f"{name}{i}") for i in range(sizes[0][kind])], recipe.holdout, recipe.seed
        )
        for before, after in pairwise(sizes):
            new = [entry(f"{name}{i}") for i in range(before[kind], after[kind])]
            entries = (*entries, *hold_out_more(entries, new, recipe.holdout, recipe.seed))
        kinds.append(entries)
    return PinnedRecipe(
        recipe=recipe, foregrounds=kinds[0], backgrounds=kinds[1], stages=tuple(sizes[:-1])
    )


def names_and_ids(plan: Plan) -> dict[str, list[int]]:
    return {
        split.shard_name(shard): split.record_ids(*split.shard_range(shard)).tolist()
        for split in plan.splits.values()
        for shard in range(split.n_shards)
    }


@given(grown())
def test_every_stage_keeps_the_files_and_ids_of_the_one_before(pinned: PinnedRecipe) -> None:
    files = names_and_ids(Plan(pinned))
    for stage in range(len(pinned.stages)):
        earlier = pinned.at(stage)
        assert earlier.n_records < pinned.n_records
        for name, ids in names_and_ids(Plan(earlier)).items():
            assert files[name] == ids
        for record in range(0, earlier.n_records, 7):
            assert Plan(earlier).combination(record) == Plan(pinned).combination(record)
        assert pinned.holds(earlier)
        assert not earlier.holds(pinned)


@given(grown())
def test_ids_and_combinations_are_one_to_one(pinned: PinnedRecipe) -> None:
    plan = Plan(pinned)
    ids = [i for some in names_and_ids(plan).values() for i in some]
    assert len(set(ids)) == len(ids) == pinned.n_records
    if pinned.recipe.records is None:
        assert sorted(ids) == list(range(pinned.n_possible))
    assert len({plan.combination(i) for i in ids}) == pinned.n_records
    for split in plan.splits.values():
        for i in split.record_ids(0, split.n_records).tolist():
            what = plan.combination(i)
            assert what.foreground in split.foregrounds
            assert what.background in split.backgrounds
        names = [split.shard_name(shard) for shard in range(split.n_shards)]
        assert names == sorted(names)
        for position in range(split.n_records):
            start, stop = split.shard_range(split.shard_at(position))
            assert start <= position < stop
        whole = split.record_ids(0, split.n_records)
        middle = split.n_records // 2
        halves = split.record_ids(0, middle), split.record_ids(middle, split.n_records)
        assert np.array_equal(np.concatenate(halves), whole)


@given(grown())
def test_recipe_json_keeps_the_stages(pinned: PinnedRecipe) -> None:
    again = PinnedRecipe.from_json(pinned.to_json())
    assert again == pinned
    assert again.fingerprint != replace(pinned, stages=()).fingerprint


@given(
    st.integers(1, 12), st.integers(1, 12), st.floats(0, 0.9), st.integers(0, 2**64 - 1), st.data()
)
def test_new_sources_are_held_out_so_that_the_share_is_kept(n_old, n_new, share, seed, data):
    old = hold_out([entry(f"a{i}") for i in range(n_old)], share, seed)
    new = [entry(f"b{i}") for i in range(n_new)]
    copied = data.draw(st.integers(0, n_old - 1))
    new.append(replace(entry("copy"), sha256=old[copied].sha256))
    marked = hold_out_more(old, new, share, seed)
    assert [replace(m, held_out=False) for m in marked] == new
    assert marked[-1].held_out == old[copied].held_out
    wanted = round(share * (n_old + len(new))) - sum(s.held_out for s in old)
    assert sum(s.held_out for s in marked[:-1]) == min(max(wanted, 0), n_new)
