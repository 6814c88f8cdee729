"""Which record lies where: record ids, splits, shards, placements, all by arithmetic.

    layout_id = ((background * n_foregrounds + foreground) * n_flips + flip) * placements + k
    record_id = layout_id * n_siblings + sibling

The records that an extension of the set adds have the ids that follow, see `_stages`.
A keyed permutation spreads the records of a split over its shards, so reading in order is already
mixed; a set of fewer records than its sources give holds the first of that order. Nothing here
grows with the number of records, opens a file or imports torch.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.pinned import PinnedRecipe, SourceEntry
from builder.recipe import Recipe

TRAIN = "train"
# Split name -> (foregrounds held out, backgrounds held out)
SPLITS = {
    TRAIN: (False, False),
    "unseen_background": (False, True),
    "unseen_foreground": (True, False),
    "unseen_both": (True, True),
}

Ids = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_ROUNDS = 4


@dataclass(frozen=True)
class Combination:
    """What a record combines: indexes into the recipe's sources, the flip, the placement's k.

    Random choices go by `layout_id`; records that share it differ by `sibling`.
    """

    background: int
    foreground: int
    flipped: bool
    k: int
    layout_id: int
    sibling: int


@dataclass(frozen=True)
class _Block:
    """Pairs of sources whose ids follow each other: by background, then by foreground.

    `first` is the id of the first pair of the block, `first_chosen` the number, in its part of a
    split, of the first pair of those whose sources are `chosen_*` (indexes into the recipe's).
    """

    first: int
    backgrounds: range
    foregrounds: range
    first_chosen: int
    chosen_backgrounds: tuple[int, ...]
    chosen_foregrounds: tuple[int, ...]

    @property
    def n_chosen(self) -> int:
        return len(self.chosen_backgrounds) * len(self.chosen_foregrounds)

    def chosen_pairs(self, numbers: Ids) -> Ids:
        """Return the ids of chosen pairs, by their numbers 0 .. n_chosen - 1."""
        row, column = np.divmod(numbers, len(self.chosen_foregrounds))
        background = np.asarray(self.chosen_backgrounds, dtype=np.int64)[row]
        foreground = np.asarray(self.chosen_foregrounds, dtype=np.int64)[column]
        pairs: Ids = (background - self.backgrounds.start) * len(self.foregrounds)
        return pairs + (foreground - self.foregrounds.start) + self.first


@dataclass(frozen=True)
class _Part:
    """What one stage of a set adds to a split: its place in it, and its pairs of sources.

    `n_possible` records those pairs give; the split holds the first `n_records` of their order.
    """

    stage: int
    start: int
    first_shard: int
    n_possible: int
    n_records: int
    n_shards: int
    blocks: tuple[_Block, ...]


@dataclass(frozen=True)
class SplitPlan:
    """One split: its sources (indexes into the recipe's), its records and its shards.

    The records of an extended set lie behind those it had before, in shards of their own.
    """

    name: str
    foregrounds: tuple[int, ...]
    backgrounds: tuple[int, ...]
    recipe: Recipe
    parts: tuple[_Part, ...]

    @property
    def n_records(self) -> int:
        """Number of records in the split."""
        return sum(part.n_records for part in self.parts)

    @property
    def n_shards(self) -> int:
        """Number of files the split is cut into."""
        return sum(part.n_shards for part in self.parts)

    def _part_of(self, shard: int) -> _Part:
        return next(p for p in reversed(self.parts) if p.first_shard <= shard)

    def stage(self, shard: int) -> int:
        """Return the stage of the set that a shard came with: 0, or which extension."""
        return self._part_of(shard).stage

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the positions [start, stop) of a shard; shards differ by one record at most.

        Those of one stage, that is.
        """
        part = self._part_of(shard)
        n, shards, number = part.n_records, part.n_shards, shard - part.first_shard
        return part.start + number * n // shards, part.start + (number + 1) * n // shards

    def shard_at(self, position: int) -> int:
        """Return the shard that a position of the split lies in."""
        part = next(p for p in reversed(self.parts) if p.start <= position)
        return part.first_shard + (
            ((position - part.start + 1) * part.n_shards - 1) // part.n_records
        )

    def shard_name(self, shard: int) -> str:
        """Return the name of a shard's file, without extension; the names sort as the shards."""
        part = self._part_of(shard)
        digits, number = max(5, len(str(part.n_shards))), shard - part.first_shard
        stage = f"x{part.stage:03d}-" if part.stage else ""
        return f"{self.name}-{stage}{number:0{digits}d}-of-{part.n_shards:0{digits}d}"

    def record_ids(self, start: int, stop: int) -> Ids:
        """Return the record ids at positions [start, stop) of the split, (stop - start,) int64."""
        ids: Ids = np.empty(stop - start, dtype=np.int64)
        for part in self.parts:
            low, high = max(start, part.start), min(stop, part.start + part.n_records)
            if low < high:
                ids[low - start : high - start] = self._ids_of(part, low, high)
        return ids

    def _ids_of(self, part: _Part, start: int, stop: int) -> Ids:
        n_siblings = self.recipe.n_siblings  # which stay together
        positions = np.arange(start - part.start, stop - part.start, dtype=np.uint64)
        layouts, sibling = np.divmod(positions, np.uint64(n_siblings))
        order = f"{self.name}:{part.stage}" if part.stage else self.name
        keys = _keys(self.recipe.seed, order)
        local = _permute(layouts, part.n_possible // n_siblings, keys) * n_siblings + sibling
        per_pair = self.recipe.per_pair
        number, rest = np.divmod(local.astype(np.int64), per_pair)
        pairs: Ids = np.empty_like(number)
        for block in part.blocks:
            inside = number - block.first_chosen
            chosen = (inside >= 0) & (inside < block.n_chosen)
            pairs[chosen] = block.chosen_pairs(inside[chosen])
        return pairs * per_pair + rest


class Plan:
    """The whole plan of a pinned recipe; `splits` leaves out those without records."""

    def __init__(self, pinned: PinnedRecipe) -> None:
        self.pinned = pinned
        self.splits: dict[str, SplitPlan] = {}
        sources = {
            name: (_indexes(pinned.foregrounds, fg), _indexes(pinned.backgrounds, bg))
            for name, (fg, bg) in SPLITS.items()
        }
        for name, parts in _parts(pinned, sources).items():
            if parts:
                self.splits[name] = SplitPlan(name, *sources[name], pinned.recipe, parts)
        stages = _stages(pinned)
        self._blocks = [block for stage in stages for block in stage]
        self._stage_of = [number for number, stage in enumerate(stages) for _ in stage]
        self._companions: dict[tuple[int, bool], tuple[tuple[int, ...], ...]] = {}

    @property
    def n_records(self) -> int:
        """Number of records of all splits."""
        return sum(split.n_records for split in self.splits.values())

    @property
    def n_copies(self) -> int:
        """About how many records are copies of another one, by arithmetic.

        Places are drawn with replacement: where a foreground has few of them, for it is nearly as
        large as the record, some are drawn again. It is the number to be expected.
        """
        recipe, pinned = self.pinned.recipe, self.pinned
        if recipe.is_composed:  # sizes, others and places differ, too
            return 0
        held = self.n_records / pinned.n_possible  # of the draws
        distinct = 0.0
        for entry in pinned.foregrounds:
            places = (recipe.size - entry.width + 1) * (recipe.size - entry.height + 1)
            distinct += places * (1 - (1 - held / places) ** recipe.placements)
        flips = recipe.per_pair // recipe.placements
        return round(self.n_records - distinct * flips * len(pinned.backgrounds))

    @property
    def n_shards(self) -> int:
        """Number of shards of all splits."""
        return sum(split.n_shards for split in self.splits.values())

    def shard(self, number: int) -> tuple[SplitPlan, int]:
        """Return the split, and the place in it, of one of all shards, 0 .. n_shards - 1.

        Raises:
            IndexError: there is no such shard.
        """
        for split in self.splits.values() if number >= 0 else ():
            if number < split.n_shards:
                return split, number
            number -= split.n_shards
        raise IndexError(f"there is no shard {number} among {self.n_shards}")

    def shard_number(self, split: str, shard: int) -> int:
        """Return the number, among all shards, of a split's shard."""
        names = list(self.splits)
        before = names[: names.index(split)]
        return sum(self.splits[name].n_shards for name in before) + shard

    def combination(self, record_id: int) -> Combination:
        """Return what a record combines, one of all that the sources give.

        Raises:
            IndexError: there is no such record.
        """
        if not 0 <= record_id < self.pinned.n_possible:
            raise IndexError(f"record {record_id} is not in 0..{self.pinned.n_possible - 1}")
        recipe = self.pinned.recipe
        layout_id, sibling = divmod(record_id, recipe.n_siblings)
        rest, k = divmod(layout_id, recipe.placements)
        pair, flip = divmod(rest, 2) if recipe.flip else (rest, 0)
        first, backgrounds, foregrounds = self._blocks[self._block_of(pair)]
        background, foreground = divmod(pair - first, len(foregrounds))
        return Combination(
            *(backgrounds[background], foregrounds[foreground], bool(flip), k, layout_id, sibling)
        )

    def _block_of(self, pair: int) -> int:
        numbers = range(len(self._blocks) - 1, -1, -1)
        return next(n for n in numbers if self._blocks[n][0] <= pair)

    def companions(self, record_id: int, foreground: int) -> tuple[tuple[int, ...], ...]:
        """Return the foregrounds that a record's objects may be, in groups drawn from evenly.

        They are on the same side of the split as the record's own, so that none leaks, and were
        there when the record was planned, so that an extension moves nothing. There is one group,
        or with `balance` one a category.
        """
        recipe, entries = self.pinned.recipe, self.pinned.foregrounds
        pair = record_id // recipe.per_pair
        stage, held_out = self._stage_of[self._block_of(pair)], entries[foreground].held_out
        if (found := self._companions.get((stage, held_out))) is None:
            groups: dict[str, list[int]] = {}
            for index in range(len(self.pinned.at(stage).foregrounds)):
                if entries[index].held_out == held_out:
                    name = entries[index].category if recipe.balance == "category" else ""
                    groups.setdefault(name, []).append(index)
            found = tuple(tuple(groups[name]) for name in sorted(groups))
            self._companions[stage, held_out] = found
        return found

    def placement(self, record_id: int, foreground: int, epoch: int = 0) -> tuple[int, int]:
        """Return (left_px, top_px): uniform over all places wholly inside the background.

        Every epoch has its own; those of epoch 0 are the stored set's.
        """
        recipe, entry = self.pinned.recipe, self.pinned.foregrounds[foreground]
        left, top = random_words(recipe.seed, record_id, epoch)
        # High bits of a 64 x 64 bit product: even to 2^-52 and the same in every NumPy, which
        # promises stable streams for its bit generators but not for Generator.integers.
        free_left, free_top = recipe.size - entry.width + 1, recipe.size - entry.height + 1
        return (left * free_left) >> 64, (top * free_top) >> 64


def random_words(seed: int, record_id: int, epoch: int = 0, n: int = 2) -> list[int]:
    """Return the first random 64-bit words of a record in an epoch.

    Philox 4x64, keyed by seed and record id; the epoch is the second word of its counter.
    """
    own = _philox
    own.key[0], own.key[1], own.counter[1] = seed, record_id, epoch
    own.philox.state = own.state
    words: list[int] = own.philox.random_raw(n).tolist()
    return words


class _ThreadPhilox(threading.local):
    """One generator a thread: a new one for each record would take six times as long."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        # As uint64 from the start: NumPy takes a list that passes 2^63 for inexact floats.
        self.key, self.counter = np.zeros(2, np.uint64), np.zeros(4, np.uint64)
        words = {"key": self.key, "counter": self.counter}
        self.state: Any = {**self.philox.state, "state": words}


_philox = _ThreadPhilox()


def hold_out(
    sources: Sequence[SourceEntry],
    share: float,
    seed: int,
    contents: Sequence[str] | None = None,
) -> tuple[SourceEntry, ...]:
    """Mark the share of sources that is kept out of `train`, chosen by keyed hash of content.

    At least one is held out where share > 0 and there are two or more, and at least one is not.
    Sources of equal content stay together, so that none of them leaks from one split to another.

    Args:
        contents: what each source is told apart by; without it the sha256 of its file.
    """
    if share == 0 or len(sources) < 2:
        return tuple(replace(source, held_out=False) for source in sources)
    keys = [_hold_out_key(content, seed) for content in contents or _files(sources)]
    wanted = max(1, round(share * len(sources)))
    # Something must be left for train; when all are copies of one file, everything is.
    last = min(sorted(keys)[wanted - 1], max(set(keys) - {max(keys)}, default=b""))
    return tuple(
        replace(source, held_out=key <= last) for source, key in zip(sources, keys, strict=True)
    )


def hold_out_more(
    held: Sequence[SourceEntry],
    new: Sequence[SourceEntry],
    share: float,
    seed: int,
    contents: Sequence[str] | None = None,
) -> tuple[SourceEntry, ...]:
    """Mark new sources of an extended set, so that the share is kept as nearly as can be.

    What was decided before stays. A copy of an earlier source goes where that one is.

    Args:
        contents: as for `hold_out`, of the earlier sources and then of the new ones.
    """
    known = contents or _files((*held, *new))
    before = dict(zip(known, (source.held_out for source in held), strict=False))
    added = known[len(held) :]
    wanted = round(share * (len(held) + len(new))) - sum(source.held_out for source in held)
    keys = sorted(_hold_out_key(content, seed) for content in added if content not in before)
    last = keys[min(wanted, len(keys)) - 1] if wanted > 0 and keys else b""
    return tuple(
        replace(source, held_out=before.get(content, _hold_out_key(content, seed) <= last))
        for source, content in zip(new, added, strict=True)
    )


def _files(sources: Sequence[SourceEntry]) -> list[str]:
    return [source.sha256 for source in sources]


def _hold_out_key(content: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{content}".encode()).digest()


def _stages(pinned: PinnedRecipe) -> list[list[tuple[int, range, range]]]:
    """Return by stage the blocks of pairs it has added: first id, backgrounds, foregrounds.

    The first stage is one block. An extension adds its backgrounds with all foregrounds, then the
    earlier backgrounds with its foregrounds; so earlier ids keep their meaning.
    """
    sizes = [*pinned.stages, (len(pinned.foregrounds), len(pinned.backgrounds))]
    stages, had = [], (0, 0)
    for foregrounds, backgrounds in sizes:
        first = had[0] * had[1]
        new_backgrounds = range(had[1], backgrounds)
        blocks = [
            (first, new_backgrounds, range(foregrounds)),
            (
                first + len(new_backgrounds) * foregrounds,
                range(had[1]),
                range(had[0], foregrounds),
            ),
        ]
        stages.append([block for block in blocks if block[1] and block[2]])
        had = foregrounds, backgrounds
    return stages


def _parts(
    pinned: PinnedRecipe, sources: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> dict[str, tuple[_Part, ...]]:
    """Return by split what each stage adds to it, where it adds anything."""
    recipe = pinned.recipe
    parts: dict[str, tuple[_Part, ...]] = dict.fromkeys(sources, ())
    for stage, ranges in enumerate(_stages(pinned)):
        blocks = {name: _blocks(ranges, *chosen) for name, chosen in sources.items()}
        group = recipe.n_siblings
        layouts = [
            sum(block.n_chosen for block in some) * recipe.per_pair // group
            for some in blocks.values()
        ]
        held = shared_out(pinned.stage_records[stage] // group, layouts)
        for name, possible, chosen in zip(sources, layouts, held, strict=True):
            n_possible, n_records = possible * group, chosen * group
            if not n_records:
                continue
            start = first_shard = 0
            if parts[name]:
                last = parts[name][-1]
                start, first_shard = last.start + last.n_records, last.first_shard + last.n_shards
            n_shards = -(-n_records // recipe.shard_records)
            part = _Part(stage, start, first_shard, n_possible, n_records, n_shards, blocks[name])
            parts[name] += (part,)
    return parts


def _blocks(
    ranges: list[tuple[int, range, range]],
    foregrounds: tuple[int, ...],
    backgrounds: tuple[int, ...],
) -> tuple[_Block, ...]:
    """Return the pairs of some sources among those that a stage has added."""
    blocks: list[_Block] = []
    for first, all_backgrounds, all_foregrounds in ranges:
        block = _Block(
            first,
            all_backgrounds,
            all_foregrounds,
            sum(block.n_chosen for block in blocks),
            tuple(index for index in backgrounds if index in all_backgrounds),
            tuple(index for index in foregrounds if index in all_foregrounds),
        )
        blocks.append(block)
    return tuple(blocks)


def shared_out(n: int, sizes: Sequence[int]) -> list[int]:
    """Share n out over parts in proportion to their sizes, exactly, none getting more than it has.

    Every part that has anything gets one first, in their order. A larger n gives no part less, so
    that a set of more records holds all of one of fewer. The largest remainders do not promise
    that, so the rounding is Webster's (Balinski and Young, Fair Representation, 1982).
    """
    total = sum(sizes)
    if n == total:
        return list(sizes)
    # Rounding takes less than this from a part; so only a few are left to be given one by one.
    shares = [max(0, n * size // total - 2 * len(sizes)) for size in sizes]

    def claim(part: int) -> tuple[bool, Fraction, int]:
        empty = shares[part] == 0
        return empty, Fraction(0 if empty else sizes[part], 2 * shares[part] + 1), -part

    for _ in range(n - sum(shares)):
        shares[max((p for p, size in enumerate(sizes) if size), key=claim)] += 1
    return shares


def _indexes(sources: Sequence[SourceEntry], held_out: bool) -> tuple[int, ...]:
    return tuple(index for index, source in enumerate(sources) if source.held_out == held_out)


def _keys(seed: int, name: str) -> _Words:
    digest = hashlib.sha256(f"order:{seed}:{name}".encode()).digest()
    return np.frombuffer(digest, dtype="<u8", count=_ROUNDS)


def _permute(positions: _Words, n: int, keys: _Words) -> _Words:
    """Permute [0, n): a Feistel network on the next power of four, walked until inside [0, n)."""
    half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
    values = _feistel(positions, half_bits, keys)
    outside = np.flatnonzero(values >= np.uint64(n))
    while outside.size:
        values[outside] = _feistel(values[outside], half_bits, keys)
        outside = outside[values[outside] >= np.uint64(n)]
    return values


def _feistel(values: _Words, half_bits: int, keys: _Words) -> _Words:
    shift, low = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & low
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & low)
    return (left << shift) | right


def _mix(words: _Words) -> _Words:
    """Scatter the bits of each word (the finaliser of SplitMix64, Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
