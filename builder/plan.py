"""Which record lies where: record ids, splits, shards, placements, all by arithmetic.

    record_id = ((background * n_foregrounds + foreground) * n_flips + flip) * placements + k

A keyed permutation spreads the records of a split over its shards, so reading in order is already
mixed. Nothing here grows with the number of records, opens a file or imports torch.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.recipe import PinnedRecipe, Recipe, SourceEntry

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
    """What a record combines: indexes into the recipe's sources, the flip, the placement's k."""

    background: int
    foreground: int
    flipped: bool
    k: int


@dataclass(frozen=True)
class SplitPlan:
    """One split: its sources (indexes into the recipe's), its records and its shards."""

    name: str
    foregrounds: tuple[int, ...]
    backgrounds: tuple[int, ...]
    recipe: Recipe
    n_all_foregrounds: int

    @property
    def n_records(self) -> int:
        """Number of records in the split."""
        return len(self.foregrounds) * len(self.backgrounds) * _per_pair(self.recipe)

    @property
    def n_shards(self) -> int:
        """Number of files the split is cut into."""
        return -(-self.n_records // self.recipe.shard_records)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the positions [start, stop) of a shard; shards differ by one record at most."""
        n, shards = self.n_records, self.n_shards
        return shard * n // shards, (shard + 1) * n // shards

    def shard_name(self, shard: int) -> str:
        """Return the name of a shard's file, without extension; the names sort as the shards."""
        digits = max(5, len(str(self.n_shards)))
        return f"{self.name}-{shard:0{digits}d}-of-{self.n_shards:0{digits}d}"

    def record_ids(self, start: int, stop: int) -> Ids:
        """Return the record ids at positions [start, stop) of the split, (stop - start,) int64."""
        positions = np.arange(start, stop, dtype=np.uint64)
        local = _permute(positions, self.n_records, _keys(self.recipe.seed, self.name))
        per_pair = _per_pair(self.recipe)
        pair, rest = np.divmod(local.astype(np.int64), per_pair)
        background, foreground = np.divmod(pair, len(self.foregrounds))
        backgrounds = np.asarray(self.backgrounds, dtype=np.int64)[background]
        foregrounds = np.asarray(self.foregrounds, dtype=np.int64)[foreground]
        ids: Ids = (backgrounds * self.n_all_foregrounds + foregrounds) * per_pair + rest
        return ids


class Plan:
    """The whole plan of a pinned recipe; `splits` leaves out those without records."""

    def __init__(self, pinned: PinnedRecipe) -> None:
        self.pinned = pinned
        self._n_foregrounds = len(pinned.foregrounds)
        self.splits: dict[str, SplitPlan] = {}
        for name, (unseen_foreground, unseen_background) in SPLITS.items():
            split = SplitPlan(
                name,
                _indexes(pinned.foregrounds, unseen_foreground),
                _indexes(pinned.backgrounds, unseen_background),
                pinned.recipe,
                self._n_foregrounds,
            )
            if split.n_records:
                self.splits[name] = split

    @property
    def n_records(self) -> int:
        """Number of records of all splits."""
        return sum(split.n_records for split in self.splits.values())

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
        """Return what a record combines.

        Raises:
            IndexError: there is no such record.
        """
        if not 0 <= record_id < self.pinned.n_records:
            raise IndexError(f"record {record_id} is not in 0..{self.pinned.n_records - 1}")
        recipe = self.pinned.recipe
        rest, k = divmod(record_id, recipe.placements)
        rest, flip = divmod(rest, 2) if recipe.flip else (rest, 0)
        background, foreground = divmod(rest, self._n_foregrounds)
        return Combination(background, foreground, bool(flip), k)

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


def random_words(seed: int, record_id: int, epoch: int = 0) -> tuple[int, int]:
    """Return the two random 64-bit words of a record in an epoch.

    Philox 4x64, keyed by seed and record id; the epoch is the second word of its counter.
    """
    own = _philox
    own.key[0], own.key[1], own.counter[1] = seed, record_id, epoch
    own.philox.state = own.state
    first, second = own.philox.random_raw(2).tolist()
    return first, second


class _ThreadPhilox(threading.local):
    """One generator a thread: a new one for each record would take six times as long."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        # As uint64 from the start: NumPy takes a list that passes 2^63 for inexact floats.
        self.key, self.counter = np.zeros(2, np.uint64), np.zeros(4, np.uint64)
        words = {"key": self.key, "counter": self.counter}
        self.state: Any = {**self.philox.state, "state": words}


_philox = _ThreadPhilox()


def hold_out(sources: Sequence[SourceEntry], share: float, seed: int) -> tuple[SourceEntry, ...]:
    """Mark the share of sources that is kept out of `train`, chosen by keyed hash of content.

    At least one is held out where share > 0 and there are two or more, and at least one is not.
    Files of equal content stay together, so that none of them leaks from one split to another.
    """
    if share == 0 or len(sources) < 2:
        return tuple(replace(source, held_out=False) for source in sources)
    keys = [hashlib.sha256(f"{seed}:{source.sha256}".encode()).digest() for source in sources]
    wanted = max(1, round(share * len(sources)))
    # Something must be left for train; when all are copies of one file, everything is.
    last = min(sorted(keys)[wanted - 1], max(set(keys) - {max(keys)}, default=b""))
    return tuple(
        replace(source, held_out=key <= last) for source, key in zip(sources, keys, strict=True)
    )


def _per_pair(recipe: Recipe) -> int:
    return (2 if recipe.flip else 1) * recipe.placements


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
