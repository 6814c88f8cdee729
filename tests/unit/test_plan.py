"""plan: ids, splits, shards, order, placements; all by arithmetic."""

from __future__ import annotations

import hashlib
import math
import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from datasets.naming import filenames_for_dataset_split

from builder.layout import ARROW_PREFIX, shard_file
from builder.pinned import PinnedRecipe
from builder.recipe import Recipe
from builder.record.plan import (
    SPLITS,
    Combination,
    Plan,
    SplitPlan,
    _keys,
    _permute,
    hold_out,
    hold_out_more,
    random_words,
)
from tests.strategies import entry, pinned


def held(n_foregrounds: int, n_backgrounds: int, **fields: object) -> PinnedRecipe:
    """A pinned recipe whose sources are held out as a build does it."""
    whole = pinned(n_foregrounds, n_backgrounds, **fields)
    share, seed = whole.recipe.holdout, whole.recipe.seed
    return replace(
        whole,
        foregrounds=hold_out(whole.foregrounds, share, seed),
        backgrounds=hold_out(whole.backgrounds, share, seed),
    )


def all_ids(split: SplitPlan) -> list[int]:
    return split.record_ids(0, split.n_records).tolist()


# --- ids and splits -------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("holdout", [0.0, 0.1, 0.5])
def test_the_splits_hold_every_record_once(flip: bool, holdout: float) -> None:
    plan = Plan(held(5, 7, placements=3, flip=flip, holdout=holdout, shard_records=10))
    ids = [i for split in plan.splits.values() for i in all_ids(split)]
    assert sorted(ids) == list(range(5 * 7 * 3 * (1 + flip)))
    assert plan.n_records == len(ids) == plan.pinned.n_records
    assert plan.n_shards == sum(-(-s.n_records // 10) for s in plan.splits.values())


def test_splits_never_share_a_source_they_keep_apart() -> None:
    plan = Plan(held(6, 10, placements=2, holdout=0.3))
    assert list(plan.splits) == list(SPLITS)
    seen = {}
    for name, split in plan.splits.items():
        what = [plan.combination(i) for i in all_ids(split)]
        seen[name] = {c.foreground for c in what}, {c.background for c in what}
    assert {name: (len(f), len(b)) for name, (f, b) in seen.items()} == {
        "train": (4, 7),
        "unseen_background": (4, 3),
        "unseen_foreground": (2, 7),
        "unseen_both": (2, 3),
    }
    assert not seen["train"][0] & seen["unseen_foreground"][0]
    assert not seen["train"][1] & seen["unseen_background"][1]
    assert seen["unseen_both"] == (seen["unseen_foreground"][0], seen["unseen_background"][1])


def test_the_reference_run_is_one_train_split_of_400000() -> None:
    plan = Plan(held(100, 100, holdout=0))
    assert {name: (s.n_records, s.n_shards) for name, s in plan.splits.items()} == {
        "train": (400_000, 400)
    }


def test_combinations_count_placements_fastest_and_backgrounds_slowest() -> None:
    plan = Plan(pinned(2, 2, placements=2))
    assert [plan.combination(i) for i in (0, 1, 2, 3, 4, 8, 15)] == [
        Combination(0, 0, False, 0, 0, 0),
        Combination(0, 0, False, 1, 1, 0),
        Combination(0, 0, True, 0, 2, 0),
        Combination(0, 0, True, 1, 3, 0),
        Combination(0, 1, False, 0, 4, 0),
        Combination(1, 0, False, 0, 8, 0),
        Combination(1, 1, True, 1, 15, 0),
    ]


def test_without_flip_nothing_is_flipped() -> None:
    plan = Plan(pinned(2, 2, placements=3, flip=False))
    assert not any(plan.combination(i).flipped for i in range(plan.n_records))
    assert plan.combination(5) == Combination(0, 1, False, 2, 5, 0)


@pytest.mark.parametrize("record_id", [-1, 16, 2**63])
def test_a_record_that_is_not_there_is_an_index_error(record_id: int) -> None:
    with pytest.raises(IndexError, match=rf"^record {record_id} is not in 0\.\.15$"):
        Plan(pinned(2, 2, placements=2)).combination(record_id)


# --- shards ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("records", "most"), [(1, 1), (24, 1), (24, 7), (24, 24), (24, 1000)])
def test_shards_cut_the_split_without_gap_and_differ_by_one(records: int, most: int) -> None:
    split = Plan(pinned(1, 1, placements=records, flip=False, shard_records=most)).splits["train"]
    ranges = [split.shard_range(shard) for shard in range(split.n_shards)]
    assert (ranges[0][0], ranges[-1][1]) == (0, records)
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    sizes = {stop - start for start, stop in ranges}
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert split.n_shards == math.ceil(records / most)


def test_shard_names_are_known_beforehand() -> None:
    split = Plan(pinned(1, 1, placements=25, flip=False, shard_records=10)).splits["train"]
    assert [split.shard_name(i) for i in range(split.n_shards)] == [
        "train-00000-of-00003",
        "train-00001-of-00003",
        "train-00002-of-00003",
    ]


def test_the_names_of_a_million_shards_sort_as_the_shards_do() -> None:
    split = Plan(pinned(10, 10, placements=5_000_000)).splits["train"]
    assert split.shard_name(99_999) == "train-0099999-of-1000000"
    assert split.shard_name(999_999) == "train-0999999-of-1000000"
    some = [0, 9, 10, 99_999, 100_000, 999_999]
    assert sorted(map(split.shard_name, some)) == list(map(split.shard_name, some))


@pytest.mark.parametrize("shards", [1, 3, 100_001])
def test_arrow_shards_are_named_as_datasets_looks_for_them(shards: int) -> None:
    split = Plan(pinned(1, 1, placements=shards, flip=False, shard_records=1)).splits["train"]
    lengths = [1] * shards if shards > 1 else None
    wanted = filenames_for_dataset_split("", ARROW_PREFIX, "train", "arrow", shard_lengths=lengths)
    assert [shard_file(split, shard, "arrow") for shard in range(shards)] == wanted


def test_the_order_of_records_does_not_depend_on_the_shard_size() -> None:
    orders = []
    for most in (1, 7, 1000):
        plan = Plan(held(4, 5, placements=3, shard_records=most))
        orders.append(
            {
                name: [
                    i
                    for shard in range(split.n_shards)
                    for i in split.record_ids(*split.shard_range(shard)).tolist()
                ]
                for name, split in plan.splits.items()
            }
        )
    assert orders[0] == orders[1] == orders[2]


def test_no_records_are_an_empty_array_of_ids() -> None:
    ids = Plan(pinned()).splits["train"].record_ids(5, 5)
    assert (ids.shape, ids.dtype) == ((0,), np.int64)


# --- order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1023, 4095, 4096, 4097, 65_537])
def test_the_permutation_is_a_bijection(n: int) -> None:
    order = _permute(np.arange(n, dtype=np.uint64), n, _keys(n, "train"))
    np.testing.assert_array_equal(np.sort(order), np.arange(n, dtype=np.uint64))


def test_a_permuted_piece_is_a_piece_of_the_permutation() -> None:
    n, keys = 1000, _keys(3, "train")
    whole = _permute(np.arange(n, dtype=np.uint64), n, keys)
    np.testing.assert_array_equal(
        _permute(np.arange(300, 400, dtype=np.uint64), n, keys), whole[300:400]
    )


def slow_permute(position: int, n: int, keys: list[int]) -> int:
    """The same network in Python's integers, with SplitMix64's published constants."""
    ones = 2**64 - 1
    bits = 1
    while 4**bits < n:
        bits += 1
    while True:
        left, right = position >> bits, position & (2**bits - 1)
        for key in keys:
            z = right ^ key
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ones
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ones
            left, right = right, left ^ ((z ^ (z >> 31)) & (2**bits - 1))
        position = left << bits | right
        if position < n:
            return position


@pytest.mark.parametrize("n", [1, 5, 64, 1000, 10**9, 2**62 - 1, 2**62])
def test_the_permutation_equals_one_in_pure_python(n: int) -> None:
    digest = hashlib.sha256(b"order:11:unseen_both").digest()
    keys = [int.from_bytes(digest[i : i + 8], "little") for i in range(0, 32, 8)]
    positions = sorted({*range(min(n, 40)), n // 3, n - 1})
    got = _permute(np.array(positions, np.uint64), n, _keys(11, "unseen_both"))
    assert got.tolist() == [slow_permute(p, n, keys) for p in positions]


def test_reading_in_order_is_mixed() -> None:
    """Neighbours share no source more often than chance, and each shard sees all of them."""
    plan = Plan(pinned(10, 10, placements=20, shard_records=1000))
    split = plan.splits["train"]
    what = [plan.combination(i) for i in all_ids(split)]
    same = sum(a.background == b.background for a, b in pairwise(what)) / (len(what) - 1)
    assert abs(same - 0.1) < 4 * math.sqrt(0.1 * 0.9 / len(what))
    for shard in range(split.n_shards):
        start, stop = split.shard_range(shard)
        counts = Counter(c.background for c in what[start:stop])
        assert sum((counts[b] - 100) ** 2 / 100 for b in range(10)) < 27.9  # chi-square, p = 0.001


def test_the_order_changes_with_seed_and_split() -> None:
    orders = [
        _permute(np.arange(100, dtype=np.uint64), 100, _keys(*key)).tolist()
        for key in ((0, "train"), (1, "train"), (0, "unseen_both"))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


# --- randomness and placements --------------------------------------------------------------


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as published (Salmon et al. 2011, Random123), in Python's integers."""
    ones = 2**64 - 1
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], 2**64)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) & ones, (k[1] + 0xBB67AE8584CAA73B) & ones]
    return c


def test_the_reference_philox_gives_random123s_known_answers() -> None:
    ones = 2**64 - 1
    assert philox([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip
    assert philox([ones] * 4, [ones] * 2) == [
        0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1])
@pytest.mark.parametrize("record_id", [0, 1, 399_999, 2**53 + 1, 2**62 - 1])
def test_random_words_are_philox_keyed_by_seed_and_record(seed: int, record_id: int) -> None:
    # Seeds from 2^63 on once went through floats, so that neighbouring seeds gave equal sets.
    # NumPy counts up before the first block, so that its counter is 1.
    first = philox([1, 0, 0, 0], [seed, record_id])
    assert random_words(seed, record_id) == list(first)[:2]
    assert random_words(seed, record_id, n=6)[:4] == list(first)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 100), (100, 37), (100, 100)])
def test_placements_lie_wholly_inside_and_reach_every_edge(width: int, height: int) -> None:
    plan = Plan(
        replace(pinned(1, 1, placements=4000, size=108), foregrounds=(entry("a", width, height),))
    )
    lefts, tops = zip(*(plan.placement(i, 0) for i in range(4000)), strict=True)
    assert (min(lefts), max(lefts)) == (0, 108 - width)
    assert (min(tops), max(tops)) == (0, 108 - height)


def test_a_foreground_as_large_as_the_record_has_one_place() -> None:
    recipe = Recipe(size=64, foreground_size=64, depth_model="none")
    plan = Plan(
        PinnedRecipe(recipe=recipe, foregrounds=(entry("a", 64, 64),), backgrounds=(entry("b"),))
    )
    assert {plan.placement(i, 0) for i in range(20)} == {(0, 0)}


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_placements_are_uniform(seed: int) -> None:
    """Chi-square over a 7 x 7 table of places: 48 degrees of freedom, 84.0 is p = 0.001."""
    plan = Plan(
        replace(pinned(1, 1, seed=seed, placements=12_800), foregrounds=(entry("a", 64, 64),))
    )
    assert plan.pinned.recipe.size - 64 + 1 == 161 == 7 * 23  # places on a side
    table = Counter()
    for i in range(12_800):
        left, top = plan.placement(i, 0)
        table[left * 7 // 161, top * 7 // 161] += 1
    expected = 12_800 / 49
    assert len(table) == 49
    assert sum((n - expected) ** 2 / expected for n in table.values()) < 84.0


def test_a_placement_depends_on_seed_and_record_alone() -> None:
    first = Plan(held(4, 5, placements=2))
    other = Plan(held(4, 5, placements=2, holdout=0, shard_records=1, image_format="png"))
    places = [first.placement(i, first.combination(i).foreground) for i in range(80)]
    assert places == [other.placement(i, other.combination(i).foreground) for i in range(80)]
    moved = Plan(held(4, 5, placements=2, seed=1))
    assert places != [moved.placement(i, moved.combination(i).foreground) for i in range(80)]


# --- hold out -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "share", "wanted"),
    [(1, 0.5, 0), (2, 0.01, 1), (2, 0.9, 1), (3, 0.9, 2), (10, 0.1, 1), (100, 0.1, 10),
     (1000, 0.123, 123), (10, 0, 0)],
)  # fmt: skip
def test_the_share_held_out_is_exact(n: int, share: float, wanted: int) -> None:
    sources = [entry(f"s{i}") for i in range(n)]
    for seed in range(5):
        marked = hold_out(sources, share, seed)
        assert sum(s.held_out for s in marked) == wanted
        assert [replace(s, held_out=False) for s in marked] == sources


def test_the_choice_depends_on_seed_and_content_but_not_on_name_or_order() -> None:
    sources = [entry(f"s{i}") for i in range(40)]
    chosen = [{s.sha256 for s in hold_out(sources, 0.25, seed) if s.held_out} for seed in (0, 1)]
    assert chosen[0] != chosen[1]
    renamed = [replace(s, id=f"x{s.id}") for s in reversed(sources)]
    assert {s.sha256 for s in hold_out(renamed, 0.25, 0) if s.held_out} == chosen[0]


def test_files_of_equal_content_are_never_parted() -> None:
    for seed in range(50):
        sources = [entry(f"s{i}", sha256=f"{i // 3:064x}") for i in range(12)]
        marked = hold_out(sources, 0.3, seed)
        for i in range(0, 12, 3):
            assert len({s.held_out for s in marked[i : i + 3]}) == 1
        assert 4 <= sum(s.held_out for s in marked) <= 6


def test_sources_that_became_the_same_pixels_are_never_parted() -> None:
    sources = [entry(f"s{i}") for i in range(12)]
    same = [sources[i // 3 * 3].sha256 for i in range(12)]
    apart = 0
    for seed in range(50):
        marked = hold_out(sources, 0.3, seed, same)
        assert all(len({s.held_out for s in marked[i : i + 3]}) == 1 for i in range(0, 12, 3))
        alone = hold_out(sources, 0.3, seed)
        apart += any(len({s.held_out for s in alone[i : i + 3]}) > 1 for i in range(0, 12, 3))
        more = hold_out_more(marked[:10], sources[10:], 0.3, seed, same)
        assert {s.held_out for s in more} == {marked[9].held_out}
    assert apart > 25  # by their files alone, most would be


def test_copies_do_not_keep_the_only_other_file_from_being_held_out() -> None:
    # [a, b, b] at 0.5 once held out nothing where the copies came last.
    sources = [entry("a"), entry("b"), replace(entry("c"), sha256=entry("b").sha256)]
    for seed in range(20):
        marked = hold_out(sources, 0.5, seed)
        assert 0 < sum(s.held_out for s in marked) < 3
        assert marked[1].held_out == marked[2].held_out != marked[0].held_out


def test_copies_of_one_file_all_stay_in_train() -> None:
    sources = [entry(name, sha256="0" * 64) for name in "abc"]
    assert not any(s.held_out for s in hold_out(sources, 0.5, 0))


# --- constant cost --------------------------------------------------------------------------


def planning_peak(placements: int) -> int:
    """Bytes at the peak of planning a set and looking at three of its shards."""
    held_recipe = pinned(10, 10, placements=placements, shard_records=1000)
    tracemalloc.start()
    plan = Plan(held_recipe)
    for split in plan.splits.values():
        for shard in (0, split.n_shards // 2, split.n_shards - 1):
            start, stop = split.shard_range(shard)
            split.shard_name(shard)
            for record_id in split.record_ids(start, start + min(stop - start, 900)).tolist()[:9]:
                plan.placement(record_id, plan.combination(record_id).foreground)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_billion_records_take_no_more_memory_than_a_thousand() -> None:
    planning_peak(5)  # imports and caches
    few, many = planning_peak(5), planning_peak(5_000_000)
    assert Plan(pinned(10, 10, placements=5_000_000)).n_records == 10**9
    assert few < 200_000
    assert many <= few + 4096


def test_any_record_of_the_largest_set_is_reached_at_once() -> None:
    sources = tuple(entry(f"s{i}") for i in range(1 << 11))
    recipe = Recipe(placements=2**29, flip=True, depth_model="none", shard_records=1_000_000)
    plan = Plan(PinnedRecipe(recipe=recipe, foregrounds=sources, backgrounds=sources))
    assert plan.n_records == 2**52
    split = plan.splits["train"]
    stop = split.n_records
    ids = split.record_ids(stop - 1000, stop).tolist()
    assert len(set(ids)) == 1000
    assert plan.combination(2**52 - 1) == Combination(2047, 2047, True, 2**29 - 1, 2**52 - 1, 0)
    assert all(0 <= i < 2**52 for i in ids)
