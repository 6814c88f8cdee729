"""The stream of records made on the fly: which unit, which epoch, where to go on.

`datasets` tells its streams neither the epoch nor where in a shard to go on; what it does tell is
enough to know both (pinned by tests/unit/test_streaming.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from datasets.iterable_dataset import ExamplesIterable

# What `datasets` shuffles and deals out to nodes and workers: positions [start, stop) of a split.
Unit = tuple[int, int]

_UNIT_RECORDS = 32
_MAX_UNITS = 50_000  # `datasets` slows down beyond some ten thousand


def units_of(n_records: int) -> list[Unit]:
    """Cut a split into units."""
    size = max(_UNIT_RECORDS, -(-n_records // _MAX_UNITS))
    return [(start, min(start + size, n_records)) for start in range(0, n_records, size)]


class RecordsIterable(ExamplesIterable):  # type: ignore[misc]
    """What an `IterableDataset` of records iterates over.

    Args:
        generate: called with `split`, `units` (a list of one) and `epoch`; yields keys and rows.
        kwargs: `split` and `units`.
        shifts: see `shift_rngs`.
    """

    def __init__(
        self,
        generate: Callable[..., Iterator[tuple[int, dict[str, Any]]]],
        kwargs: dict[str, Any],
        shifts: tuple[int, ...] = (),
    ) -> None:
        super().__init__(generate, kwargs)
        self._shifts = shifts

    def shift_rngs(self, value: int) -> RecordsIterable:
        """Return a stream for another random state.

        `datasets` calls this with the epoch, unless it is 0, and then in a worker of a data loader
        with the worker's number.
        """
        return RecordsIterable(self.generate_examples_fn, self.kwargs, (*self._shifts, value))

    def shuffle_data_sources(self, generator: np.random.Generator) -> RecordsIterable:
        """Return a stream of the units in another order."""
        return self._with_units_of(super().shuffle_data_sources(generator))

    def shard_data_sources(
        self, num_shards: int, index: int, contiguous: bool = True
    ) -> RecordsIterable:
        """Return a stream of some of the units."""
        return self._with_units_of(super().shard_data_sources(num_shards, index, contiguous))

    def reshard_data_sources(self) -> RecordsIterable:
        """Return the same stream: its units are small enough."""
        return self

    def _with_units_of(self, other: ExamplesIterable) -> RecordsIterable:
        return RecordsIterable(self.generate_examples_fn, other.kwargs, self._shifts)

    def _epoch(self) -> int:
        shifts = self._shifts
        if "torch" in sys.modules:
            from torch.utils.data import get_worker_info

            worker = get_worker_info()
            if worker is not None and shifts and shifts[-1] == worker.id:
                shifts = shifts[:-1]
        return shifts[0] if shifts else 0

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        split, units, epoch = self.kwargs["split"], self.kwargs["units"], self._epoch()
        state = self._state_dict or {"shard_idx": 0, "shard_example_idx": 0}
        while state["shard_idx"] < len(units):
            start, stop = units[state["shard_idx"]]
            left = [(start + state["shard_example_idx"], stop)]
            for key_example in self.generate_examples_fn(split=split, units=left, epoch=epoch):
                state["shard_example_idx"] += 1
                yield key_example
            state["shard_idx"] += 1
            state["shard_example_idx"] = 0
