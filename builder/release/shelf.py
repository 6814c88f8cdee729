"""The records of a finished set by number: what is said of each in memory, pictures on demand.

Records are numbered from 0 in the order of splits, files and rows. What a record says of itself
becomes NumPy columns, some 25 bytes a record and 30 an object, read once; a picture is taken from
the row group it lies in, and the groups used last are kept.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.errors import FgbgError, NotABuildError
from builder.layout import BACKGROUNDS_FILE, FOREGROUNDS_FILE, read_recipe, shard_file
from builder.pinned import PinnedRecipe, SourceEntry
from builder.record import Plan
from builder.release.access import Folder, Repo, Stored
from builder.schema import IMAGE_COLUMNS, record_columns
from builder.tables import Table, wrong_columns
from builder.untrusted import Unreadable, one_line, refusing

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int32]

_GROUPS_BYTES = 192_000_000  # of row groups that are kept
_MOST_OPEN = 32  # files at once
_REMOTE_READERS = 8
_BINS = 32
_NO_BIN = 255  # of an unknown value
_LOG_FROM = 20  # ratio of largest to smallest from which distances get bins of equal ratios
_RESULTS = 8  # that are kept


@dataclass(frozen=True)
class Place:
    """Where a record lies: its split, its position in it, its file and its row in that."""

    split: str
    position: int
    file: str
    row: int


@dataclass(frozen=True)
class _Shard:
    split: str
    first: int  # position in the split
    start: int  # number of its first record
    n_rows: int
    file: str


@dataclass
class _Opened:
    """An open file. One thread at a time reads from it; it is closed when nobody has it."""

    table: Table
    lock: threading.Lock
    stack: ExitStack


@dataclass(frozen=True)
class Number:
    """A column of numbers: one a record, or one an object where `of_objects`.

    Bin k holds values from edges[k] to below edges[k + 1]; NaN, which is unknown, is in none.
    """

    values: Array
    edges: npt.NDArray[np.float64]
    bins: npt.NDArray[np.uint8]
    of_objects: bool
    title: str
    unit: str

    @classmethod
    def of(cls, values: Array, title: str, unit: str, *, of_objects: bool) -> Number:
        """Choose the bins of some values."""
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        if values.dtype.kind in "iu":
            width = (int(high - low) + _BINS) // _BINS
            edges = np.arange(low, high + width + 1, width)
        else:
            above = high * (1 + 1e-6) + 1e-6
            above = low + 1 if above - low < 1e-3 else above
            if unit == "m" and low > 0 and high > _LOG_FROM * low:
                edges = np.geomspace(low, above, _BINS + 1)
            else:
                edges = np.linspace(low, above, _BINS + 1)
            edges[0] = low
        bins = np.full(len(values), _NO_BIN, np.uint8)
        finite = np.isfinite(values)
        at = np.searchsorted(edges, values[finite].astype(np.float64), "right") - 1
        bins[finite] = at.clip(0, len(edges) - 2)
        return cls(values, edges, bins, of_objects, title, unit)


@dataclass(frozen=True)
class Choice:
    """A column of names: a code a record, or one an object where `of_objects`."""

    codes: Array
    names: tuple[str, ...]
    of_objects: bool
    title: str


@dataclass(frozen=True)
class Question:
    """Which records are wanted.

    Of one record some single object has to have all that is asked of objects. `ranges` are from
    the first to below the second number; of `choices` any of the names will do.
    """

    ranges: tuple[tuple[str, float, float], ...] = ()
    choices: tuple[tuple[str, tuple[str, ...]], ...] = ()
    text: str = ""
    layout: int | None = None
    among: tuple[int, ...] | None = None  # record ids


@dataclass(frozen=True)
class Answer:
    """The numbers of the records that were asked for, and how many of them are in each bin."""

    rows: Rows
    counts: Mapping[str, list[int]]


@dataclass
class _Gathered:
    """What is read of the records and their objects, file by file."""

    parts: dict[str, list[Array]] = field(default_factory=dict)

    def add(self, name: str, values: Array) -> None:
        self.parts.setdefault(name, []).append(values)

    def take(self, name: str) -> Array:
        return np.concatenate(self.parts.pop(name))


class Columns:
    """What the records of a set say of themselves, to be asked.

    Args:
        gathered: columns of the records, and of their objects.
        pinned: the set's recipe.
        splits: name and number of records of each, in order.
    """

    def __init__(
        self, gathered: _Gathered, pinned: PinnedRecipe, splits: Mapping[str, int]
    ) -> None:
        take, has = gathered.take, gathered.parts.__contains__
        self.record_ids: npt.NDArray[np.int64] = take("record_id")
        self.n_records = len(self.record_ids)
        self._layout_ids = take("layout_id") if has("layout_id") else None
        counts = take("n_objects")
        self.owners = np.repeat(np.arange(self.n_records, dtype=np.int32), counts)
        self.numbers: dict[str, Number] = {}
        self.choices: dict[str, Choice] = {}
        metric = pinned.depth is not None and pinned.depth.kind == "metric"
        for name, title, unit, of_objects in (
            ("size", "size", "px", True),
            ("distance", "distance", "m" if metric else "", True),
            ("coverage", "coverage", "%", False),
            ("visible", "visible share", "%", True),
            ("truncated", "outside of the frame", "%", True),
        ):
            if has(name):
                self.numbers[name] = Number.of(take(name), title, unit, of_objects=of_objects)
        if has("of_scenes"):
            take("of_scenes")
            self.numbers["objects"] = Number.of(counts, "objects", "", of_objects=False)
        of_splits = np.repeat(np.arange(len(splits), dtype=np.uint8), list(splits.values()))
        self.choices["split"] = Choice(of_splits, tuple(splits), False, "split")
        self.choices["category"] = Choice(take("category"), pinned.categories, True, "category")
        if has("blend"):
            blends, codes = np.unique(take("blend"), return_inverse=True)
            names = tuple(blends.tolist())
            self.choices["blend"] = Choice(codes.astype(np.uint16), names, False, "blend")
        for kind, of_objects in (("foreground", True), ("background", False)):
            entries = getattr(pinned, f"{kind}s")
            names = tuple(entry.id for entry in entries)
            self.choices[kind] = Choice(take(kind), names, of_objects, kind)
        self._answers: OrderedDict[Question, Answer] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, question: Question) -> Answer:
        """Return which records are wanted; the last few answers are kept.

        Raises:
            FgbgError: it asks for a column or a name that the set does not have.
        """
        with self._lock:
            if (held := self._answers.get(question)) is None:
                held = self._answers[question] = self._found(question)
                if len(self._answers) > _RESULTS:
                    self._answers.popitem(last=False)
            self._answers.move_to_end(question)
            return held

    def _found(self, question: Question) -> Answer:
        records = np.ones(self.n_records, bool)
        objects = np.ones(len(self.owners), bool)
        asked_of_objects = False
        for column, fits in (*self._in_ranges(question), *self._chosen(question)):
            if column.of_objects:
                objects &= fits
                asked_of_objects = True
            else:
                records &= fits
        if question.text:
            records &= self._named(question.text)
        if question.layout is not None:
            if self._layout_ids is None:
                raise FgbgError("this set has no layout_id; it was made without siblings.")
            records &= self._layout_ids == question.layout
        if question.among is not None:
            records &= np.isin(self.record_ids, np.array(question.among, np.int64))
        if asked_of_objects:
            records &= self._with_any(objects)
        kept = {True: objects & records[self.owners], False: records}
        counts = {
            name: np.bincount(column.bins[kept[column.of_objects]], minlength=_NO_BIN + 1)[
                : len(column.edges) - 1
            ].tolist()
            for name, column in self.numbers.items()
        }
        for name, choice in self.choices.items():
            chosen = choice.codes[kept[choice.of_objects]]
            counts[name] = np.bincount(chosen, minlength=len(choice.names)).tolist()
        return Answer(np.flatnonzero(records).astype(np.int32), counts)

    def _in_ranges(self, question: Question) -> Iterator[tuple[Number | Choice, Array]]:
        for name, low, high in question.ranges:
            if name not in self.numbers:
                raise FgbgError(f"this set has no column {one_line(name)} of numbers.")
            column = self.numbers[name]
            values = column.values.astype(np.float64, copy=False)
            yield column, (values >= low) & (values < high)

    def _chosen(self, question: Question) -> Iterator[tuple[Number | Choice, Array]]:
        for name, names in question.choices:
            if name not in self.choices:
                raise FgbgError(f"this set has no column {one_line(name)} of names.")
            column = self.choices[name]
            codes = [n for n, each in enumerate(column.names) if each in names]
            yield column, np.isin(column.codes, codes)

    def _named(self, text: str) -> Array:
        """Return which records have a text in the id of a source, or have that id."""
        wanted = text.casefold()
        found = np.zeros(self.n_records, bool)
        if wanted.isdecimal() and len(wanted) < 19:
            found |= self.record_ids == int(wanted)
        for kind in ("foreground", "background"):
            choice = self.choices[kind]
            codes = [n for n, name in enumerate(choice.names) if wanted in name.casefold()]
            fits = np.isin(choice.codes, codes)
            found |= self._with_any(fits) if choice.of_objects else fits
        return found

    def _with_any(self, objects: Array) -> Array:
        records = np.zeros(self.n_records, bool)
        records[self.owners[objects]] = True
        return records


class Shelf:
    """A finished set, of any hand: its columns, its records one by one, its sources.

    Raises:
        NotABuildError: a file is missing or damaged; from every method.
        FgbgError: it cannot be read, as when the connection is lost.
    """

    def __init__(self, where: Folder | Repo | Stored) -> None:
        self._where = where
        self.name = where.name
        self.pinned: PinnedRecipe = read_recipe(where.root)
        self.plan = Plan(self.pinned)
        self._columns = record_columns(self.pinned.recipe, self.pinned.categories)
        self._shards = tuple(self._shards_of_plan())
        self._starts = [shard.start for shard in self._shards]
        self.n_records = self.plan.n_records
        self._tables: OrderedDict[int, _Opened] = OrderedDict()
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[int, int, tuple[str, ...]], list[Any]] = OrderedDict()
        self._groups_bytes = 0
        self._schema: Any = None  # of files whose columns are those that are due
        self._stopped = False
        self.n_read = 0  # records whose columns are in memory
        self._sources_lock = threading.Lock()

    def _shards_of_plan(self) -> Iterator[_Shard]:
        start = 0
        missing = []
        for split in self.plan.splits.values():
            for number in range(split.n_shards):
                first, stop = split.shard_range(number)
                name = shard_file(split, number, self._where.file_format)
                file = self._where.files.get(name)
                if file is None or file.fault:
                    missing.append(f"{name} {file.fault if file else 'is missing'}")
                yield _Shard(split.name, first, start, stop - first, name)
                start += stop - first
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise NotABuildError(f"{self.name}: {missing[0]}{more}; see `fgbg verify`.")

    # -- columns

    @cached_property
    def columns(self) -> Columns:
        """The columns of all records, read when they are first asked for."""
        due = [
            *("record_id", "background_id", "coverage"),
            *(c.name for c in self._columns if c.name in ("layout_id", "blend")),
        ]
        scenes = self.pinned.recipe.layout == "scenes"
        fields = ["category", "bbox_amodal", "foreground_id", "visible", "truncated", "depth_mm"]
        due += [f"objects.{name}" for name in fields] if scenes else ["foreground_id", "bbox"]
        gathered = _Gathered()
        readers = 1 if isinstance(self._where, Folder) else _REMOTE_READERS
        with ThreadPoolExecutor(readers, thread_name_prefix="columns") as pool:
            waiting = []
            for number in range(len(self._shards)):
                # No more than a few tables wait, however many files there are.
                waiting.append((number, pool.submit(self._read_columns, number, due)))
                if len(waiting) > 2 * readers:
                    self._gather(gathered, *waiting.pop(0))
            for each in waiting:
                self._gather(gathered, *each)
        splits = {name: split.n_records for name, split in self.plan.splits.items()}
        return Columns(gathered, self.pinned, splits)

    def _read_columns(self, number: int, names: list[str]) -> Any:
        shard = self._shards[number]
        if self._stopped:
            raise FgbgError("the page was closed while the columns were read.")
        with self._reading(shard.file):
            opened = self._opened(number)
            with opened.lock:
                return list(opened.table.columns(names))

    def _gather(self, gathered: _Gathered, number: int, reading: Any) -> None:
        shard, batches = self._shards[number], reading.result()
        with self._reading(shard.file), refusing("has values that no record has"):
            for batch in batches:
                self._gather_batch(gathered, batch)
        self.n_read += shard.n_rows

    def _gather_batch(self, gathered: _Gathered, batch: Any) -> None:
        n, column = batch.num_rows, batch.column
        recipe, add = self.pinned.recipe, gathered.add

        add("record_id", column("record_id").to_numpy(zero_copy_only=False).astype(np.int64))
        add("coverage", column("coverage").to_numpy(zero_copy_only=False) * np.float32(100))
        add("background", self._codes("background", column("background_id")))
        for name in ("layout_id", "blend"):
            if name in batch.schema.names:
                values = column(name)
                add(name, np.array(values.to_pylist(), np.int64 if name == "layout_id" else "U"))
        if recipe.layout != "scenes":
            boxes = column("bbox").flatten().to_numpy(zero_copy_only=False).reshape(n, 4)
            foregrounds = self._codes("foreground", column("foreground_id"))
            add("n_objects", np.ones(n, np.uint8))
            add("foreground", foregrounds)
            add("category", self._categories[foregrounds])
            add("size", boxes[:, 2:].max(axis=1).astype(np.int32))
            return
        objects = column("objects")
        lists = {f.name: objects.field(f.name) for f in objects.type}
        counts = lists["category"].value_lengths().to_numpy(zero_copy_only=False)
        flat = {name: values.flatten() for name, values in lists.items()}
        m = int(counts.sum())
        if any(len(values) != m for values in flat.values()):
            raise ValueError("lists of one record differ in length")
        boxes = flat["bbox_amodal"].flatten().to_numpy(zero_copy_only=False).reshape(m, 4)
        category = flat["category"].to_numpy(zero_copy_only=False)
        if m and not 0 <= category.min() <= category.max() < len(self.pinned.categories):
            raise ValueError("a category is none of the recipe's")
        add("of_scenes", np.zeros(0))
        add("n_objects", counts.astype(np.uint8))
        add("foreground", self._codes("foreground", flat["foreground_id"]))
        add("category", category.astype(np.uint16))
        add("size", boxes[:, 2:].max(axis=1, initial=0).astype(np.int32))
        for name in ("visible", "truncated"):
            shares = flat[name].to_numpy(zero_copy_only=False)
            add(name, shares.astype(np.float32) * np.float32(100))
        depth = self.pinned.depth
        if depth is not None and depth.quantity == "depth":
            units = flat["depth_mm"].to_numpy(zero_copy_only=False).astype(np.float32)
            units[units == 0] = np.nan
            add("distance", units / np.float32(depth.scale))

    def _codes(self, kind: str, ids: Any) -> Array:
        """Return the numbers of sources that are named by their ids."""
        known = self._sources_numbers[kind]
        ids = ids.dictionary_encode() if not hasattr(ids, "indices") else ids
        numbers = np.array([known[name] for name in ids.dictionary.to_pylist()], np.int32)
        found: Array = numbers[ids.indices.to_numpy(zero_copy_only=False)]
        return found

    def number_of(self, kind: str, source_id: str) -> int | None:
        """Return which of the sources of a kind has an id."""
        return self._sources_numbers[kind].get(source_id)

    @cached_property
    def _sources_numbers(self) -> dict[str, dict[str, int]]:
        return {
            kind: {entry.id: n for n, entry in enumerate(self.entries(kind))}
            for kind in ("foreground", "background")
        }

    @cached_property
    def _categories(self) -> Array:
        names = {name: n for n, name in enumerate(self.pinned.categories)}
        entries = self.pinned.foregrounds
        fallback = names.get("object", 0)
        return np.array([names.get(e.category, fallback) for e in entries], np.uint16)

    # -- records

    def place(self, number: int) -> Place:
        """Return where a record lies.

        Raises:
            IndexError: there is no such record.
        """
        if not 0 <= number < self.n_records:
            raise IndexError(f"record {number} is not in 0..{self.n_records - 1}")
        shard = self._shards[bisect_right(self._starts, number) - 1]
        row = number - shard.start
        return Place(shard.split, shard.first + row, shard.file, row)

    def row(self, number: int) -> dict[str, Any]:
        """Return the columns of a record but its pictures."""
        names = tuple(c.name for c in self._columns if c.name not in IMAGE_COLUMNS)
        return self._cells(number, names)

    def picture(self, number: int, column: str) -> bytes:
        """Return a picture of a record as it is stored.

        Raises:
            KeyError: the set has no such column.
        """
        if column not in IMAGE_COLUMNS or column not in {c.name for c in self._columns}:
            raise KeyError(column)
        cell = self._cells(number, (column,))[column]
        data = cell and cell.get("bytes")
        if not isinstance(data, bytes):
            raise NotABuildError(f"{self.place(number).file} has no {column} there.")
        return data

    def _cells(self, number: int, names: tuple[str, ...]) -> dict[str, Any]:
        place = self.place(number)
        at = bisect_right(self._starts, number) - 1
        with self._reading(place.file):
            sizes = self._opened(at).table.group_sizes
            ends = list(accumulate(sizes))
            group = bisect_right(ends, place.row)
            left = place.row - (ends[group - 1] if group else 0)
            for batch in self._group(at, group, names):
                if left < batch.num_rows:
                    with refusing("is damaged"):
                        (cells,) = batch.slice(left, 1).to_pylist()
                    return dict(cells)
                left -= batch.num_rows
            raise Unreadable("has fewer rows than it says")

    def _group(self, shard: int, group: int, names: tuple[str, ...]) -> list[Any]:
        """Return the batches of a row group; those used last are kept."""
        key, opened = (shard, group, names), self._opened(shard)
        with opened.lock:  # so that two who want one group read it once
            with self._lock:
                if (held := self._groups.get(key)) is not None:
                    self._groups.move_to_end(key)
                    return held
            made = opened.table.group(group, list(names))
            with self._lock:
                self._groups[key] = made
                self._groups_bytes += _size_bytes(made)
                while self._groups_bytes > _GROUPS_BYTES and len(self._groups) > 1:
                    self._groups_bytes -= _size_bytes(self._groups.popitem(last=False)[1])
            return made

    def _opened(self, number: int) -> _Opened:
        """Return an open file; those used last are kept."""
        with self._lock:
            if (found := self._tables.get(number)) is not None:
                self._tables.move_to_end(number)
                return found
        shard, stack = self._shards[number], ExitStack()
        source = stack.enter_context(self._where.parts(shard.file))
        table = Table(source, self._where.file_format)
        if self._schema is None or not table.schema.equals(self._schema):
            if (wrong := wrong_columns(table.schema, self._columns)) is not None:
                raise Unreadable(wrong)
            self._schema = table.schema
        if table.n_rows != shard.n_rows:
            raise Unreadable(f"has {table.n_rows} rows, not {shard.n_rows}")
        with self._lock:
            opened = self._tables.setdefault(number, _Opened(table, threading.Lock(), stack))
            if len(self._tables) > _MOST_OPEN:
                self._tables.popitem(last=False)
        return opened

    def _reading(self, name: str) -> _Reading:
        return _Reading(f"{self.name}: {name}")

    def stop(self) -> None:
        """Read no more columns."""
        self._stopped = True

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._tables.clear()
            self._groups.clear()

    # -- sources

    def entries(self, kind: str) -> tuple[SourceEntry, ...]:
        """Return the sources of a kind, "foreground" or "background", in the recipe's order."""
        entries: tuple[SourceEntry, ...] = getattr(self.pinned, f"{kind}s")
        return entries

    def source(self, kind: str, number: int, columns: Sequence[str]) -> dict[str, Any]:
        """Return some columns of a prepared source; those that its file has not are left out."""
        name = FOREGROUNDS_FILE if kind == "foreground" else BACKGROUNDS_FILE
        with self._reading(name), self._sources_lock:
            table = self._source_table(name)
            there = [column for column in columns if column in table.schema.names]
            ids = self._source_ids(name)
            at = ids.get(self.entries(kind)[number].id)
            if at is None:
                raise Unreadable("lacks a source that the recipe names")
            rows = list(table.rows(there, np.array([at], np.int64))) if there else []
            return rows[0][1] if rows else {}

    def source_rows(self, kind: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return some columns, none of pictures, of all prepared sources of a kind."""
        name = FOREGROUNDS_FILE if kind == "foreground" else BACKGROUNDS_FILE
        with self._reading(name), self._sources_lock:
            batches = self._source_table(name).columns(list(columns))
            return [row for batch in batches for row in batch.to_pylist()]

    def _source_table(self, name: str) -> Table:
        if name not in self._source_tables:
            file = self._where.files.get(name)
            if file is None or file.fault:
                raise Unreadable(file.fault if file else "is missing")
            self._source_tables[name] = Table(Path(self._where.root) / name, "parquet")
        return self._source_tables[name]

    @cached_property
    def _source_tables(self) -> dict[str, Table]:
        return {}

    def _source_ids(self, name: str) -> dict[str, int]:
        if name not in self._ids_of_sources:
            batches = self._source_table(name).columns(["id"])
            ids = [each for batch in batches for each in batch.column("id").to_pylist()]
            self._ids_of_sources[name] = {each: n for n, each in enumerate(ids)}
        return self._ids_of_sources[name]

    @cached_property
    def _ids_of_sources(self) -> dict[str, dict[str, int]]:
        return {}


def _size_bytes(batches: list[Any]) -> int:
    return sum(batch.nbytes for batch in batches)


class _Reading:
    """Says of a file of another hand, in one sentence, why it cannot be read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Unreadable | OSError):
            raise NotABuildError(f"{self._name} {one_line(error)}; see `fgbg verify`.") from None
