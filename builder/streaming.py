"""The stream of records made on the fly: what makes them, which epoch, where to go on.

`datasets` says to its streams neither the epoch nor where in a shard to go on; what it does say is
enough to know both (pinned by tests/unit/test_streaming.py).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import numpy as np
from datasets import Array2D, Array3D, DatasetInfo, Features, IterableDataset, NamedSplit
from datasets import formatting as formats
from datasets.formatting.torch_formatter import TorchFormatter
from datasets.iterable_dataset import ExamplesIterable

from builder.build import BuildOptions, Project, load_estimator
from builder.pinned import PinnedRecipe
from builder.record import Encoder, Plan, Renderer
from builder.schema import features, record_columns
from builder.sources import SourceBank

# What `datasets` shuffles and deals out to nodes and workers: positions [start, stop) of a split.
Unit = tuple[int, int]
Rows = Iterator[tuple[int, dict[str, Any]]]

_UNIT_RECORDS = 32
_MAX_UNITS = 50_000  # `datasets` slows down beyond some ten thousand


def units_of(n_records: int) -> list[Unit]:
    """Cut a split into units."""
    size = max(_UNIT_RECORDS, -(-n_records // _MAX_UNITS))
    return [(start, min(start + size, n_records)) for start in range(0, n_records, size)]


def encoded_features(pinned: PinnedRecipe, with_depth: bool = True) -> Features:
    """Return the columns of the stored set, with or without depth."""
    columns = record_columns(pinned.recipe, pinned.categories)
    return features(tuple(c for c in columns if with_depth or c.name != "depth"))


def array_features(pinned: PinnedRecipe) -> Features:
    """Return the columns of a stream of arrays: those of the set, but for its hash.

    They hold depth where it is composed.
    """
    recipe = pinned.recipe
    found = encoded_features(pinned, recipe.composes_depth)
    del found["pixel_hash"]
    for name in ("mask", "instances", "depth"):
        if name in found:
            dtype = "uint16" if name == "depth" else "uint8"
            found[name] = Array2D((recipe.size, recipe.size), dtype)
    found["fg_bg"] = Array3D((recipe.size, recipe.size, 3), "uint8")
    return found


class RecordMaker:
    """Makes the records of a project, encoded or as arrays.

    It can be sent to other processes; each loads sources and depth model when it needs them.
    """

    def __init__(self, project: Project) -> None:
        self._project, self._plan = project, Plan(project.pinned)
        self._renderers: dict[bool, Renderer] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_renderers": {}}

    def renderer(self, with_depth: bool) -> Renderer:
        """Return what makes the records, loaded once in each process."""
        if with_depth not in self._renderers:
            project = self._project
            model = project.model if with_depth else None
            estimator = load_estimator(model, project.pinned.recipe, BuildOptions())
            bank = SourceBank(project.foregrounds, project.backgrounds)
            self._renderers[with_depth] = Renderer(self._plan, bank, estimator)
        return self._renderers[with_depth]

    def encoded(self, split: str, units: list[Unit], epoch: int = 0) -> Rows:
        """Yield record ids and rows of the stored set."""
        return self._encoded(split, units, epoch, with_depth=True)

    def encoded_without_depth(self, split: str, units: list[Unit], epoch: int = 0) -> Rows:
        """Yield record ids and rows of the stored set without their depth."""
        return self._encoded(split, units, epoch, with_depth=False)

    def _encoded(self, split: str, units: list[Unit], epoch: int, with_depth: bool) -> Rows:
        encoder = Encoder(self._project.pinned)
        for start, stop in units:
            for record in self.renderer(with_depth).records(split, start, stop, epoch):
                yield record.record_id, encoder.row(record, with_depth=with_depth)

    def arrays(self, split: str, units: list[Unit], epoch: int = 0) -> Rows:
        """Yield record ids and rows with pictures as they were composed."""
        pictures: dict[str, Any]
        for start, stop in units:
            for record in self.renderer(with_depth=False).composites(split, start, stop, epoch):
                pictures = {"fg_bg": record.fg_bg, "mask": record.mask}
                if record.scene is not None and record.scene.objects is not None:
                    pictures["instances"] = record.scene.instances
                if record.depth is not None:
                    pictures["depth"] = record.depth
                yield (
                    record.record_id,
                    {"record_id": record.record_id, **pictures, **record.described()},
                )


class RecordsIterable(ExamplesIterable):  # type: ignore[misc]
    """What an `IterableDataset` of records iterates over.

    Args:
        generate: called with `split`, `units` (a list of one) and `epoch`; yields keys and rows.
        kwargs: `split` and `units`.
        columns: the features that rows have as they are made; None where `datasets` decodes them.
        shifts: see `shift_rngs`.
    """

    def __init__(
        self,
        generate: Callable[..., Iterator[tuple[int, dict[str, Any]]]],
        kwargs: dict[str, Any],
        columns: Features | None = None,
        shifts: tuple[int, ...] = (),
    ) -> None:
        super().__init__(generate, kwargs)
        self._columns, self._shifts = columns, shifts

    @property
    def features(self) -> Features | None:
        """The columns of rows that need no decoding."""
        return self._columns

    def shift_rngs(self, value: int) -> RecordsIterable:
        """Return a stream for another random state.

        `datasets` calls this with the epoch, unless it is 0, and then in a worker of a data loader
        with the worker's number.
        """
        return self._like(self.kwargs, (*self._shifts, value))

    def shuffle_data_sources(self, generator: np.random.Generator) -> RecordsIterable:
        """Return a stream of the units in another order."""
        return self._like(super().shuffle_data_sources(generator).kwargs, self._shifts)

    def shard_data_sources(
        self, num_shards: int, index: int, contiguous: bool = True
    ) -> RecordsIterable:
        """Return a stream of some of the units."""
        other = super().shard_data_sources(num_shards, index, contiguous)
        return self._like(other.kwargs, self._shifts)

    def reshard_data_sources(self) -> RecordsIterable:
        """Return the same stream: its units are small enough."""
        return self

    def _like(self, kwargs: dict[str, Any], shifts: tuple[int, ...]) -> RecordsIterable:
        return RecordsIterable(self.generate_examples_fn, kwargs, self._columns, shifts)

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


class PictureFormatter(TorchFormatter):  # type: ignore[misc]
    """Makes tensors as the format `torch` of `datasets` does, but leaves uint8 what is uint8.

    That one makes every array of whole numbers int64: eight times the memory of a picture.
    """

    def _tensorize(self, value: Any) -> Any:
        import torch

        if isinstance(value, np.ndarray) and value.dtype == np.uint8:
            return torch.tensor(value, dtype=torch.uint8)
        if isinstance(value, torch.Tensor):  # of a row, when rows are put together to a batch
            return value
        return super()._tensorize(value)


_TORCH_PICTURES = "fgbg_torch"
formats._register_formatter(PictureFormatter, _TORCH_PICTURES)  # noqa: SLF001


class RecordStream(IterableDataset):  # type: ignore[misc]
    """A stream of records made on the fly.

    It is an `IterableDataset` that resumes in the epoch its state was saved in, and whose format
    `torch` keeps pictures uint8; what its own methods return is one, too. What functions such as
    `interleave_datasets` and `split_dataset_by_node` return is not: there call `set_epoch` before
    `load_state_dict`, and `with_format` before the function.
    """

    @classmethod
    def of(cls, stream: IterableDataset) -> RecordStream:
        """Make a stream one of these, in place."""
        stream.__class__ = cls
        made: RecordStream = stream
        return made

    @classmethod
    def make(
        cls,
        generate: Callable[..., Rows],
        plan: Plan,
        split: str,
        info: DatasetInfo,
        columns: Features | None = None,
    ) -> RecordStream:
        """Make the stream of a split.

        Args:
            generate, columns: see `RecordsIterable`.
        """
        kwargs = {"split": split, "units": units_of(plan.splits[split].n_records)}
        iterable = RecordsIterable(generate, kwargs, columns)
        return cls(iterable, info=info, split=NamedSplit(split))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the record that a `state_dict` was taken at, in its epoch."""
        self.set_epoch(state_dict["epoch"])
        super().load_state_dict(state_dict)

    def with_format(self, type: str | None = None) -> RecordStream:
        """Return a stream of another format, as `IterableDataset.with_format` does.

        Pictures are uint8 in `torch` too: (H, W, 3) and (H, W) where rows hold arrays, and
        (3, H, W) and (1, H, W), as of every data set, where they hold encoded images.
        """
        if formats.get_format_type_from_alias(type) == "torch":
            type = _TORCH_PICTURES
        return RecordStream.of(super().with_format(type))


def _staying(name: str) -> Callable[..., RecordStream]:
    method = getattr(IterableDataset, name)

    @wraps(method)
    def stays(self: RecordStream, *args: Any, **kwargs: Any) -> RecordStream:
        return RecordStream.of(method(self, *args, **kwargs))

    return stays


for _name in (
    *("batch", "cast", "cast_column", "decode", "filter", "map", "remove_columns", "rename_column"),
    *("rename_columns", "repeat", "reshard", "select_columns", "shard", "shuffle", "skip", "take"),
):
    setattr(RecordStream, _name, _staying(_name))
