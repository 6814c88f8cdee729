"""Rows become Parquet or Arrow files, as `datasets` writes them, and are read without trust."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from builder.files import open_regular, replacing
from builder.footer import ColumnChunk, column_chunks
from builder.hub import request_errors
from builder.remote import Place
from builder.schema import Column, arrow_schema
from builder.untrusted import Unreadable, printable, refusing

if TYPE_CHECKING:
    import pyarrow as pa

FileFormat = Literal["parquet", "arrow"]

ROW_GROUP_RECORDS = 100
_ROW_GROUP_BYTES = 100_000_000  # the Hub's viewer shows no larger ones than three times this

_MIN_PICTURE_BYTES = 57  # of a PNG: signature, header, one empty chunk of data, end
_MAX_LISTED = 2048  # values of lists in a row, on average: four for each of 255 objects, twice
_MAX_TEXT_BYTES = 2**16  # of a value that is not a picture


def write_table(
    path: Path,
    file_format: FileFormat,
    schema: pa.Schema,
    rows: Iterable[dict[str, Any]],
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write rows as Parquet or Arrow, the way `datasets` writes them, and sync the file."""
    import pyarrow as pa

    with path.open("wb") as file:
        with _writer(file, file_format, schema) as writer:
            for group in _row_groups(rows):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                if progress:
                    progress(len(group))
        file.flush()
        os.fsync(file.fileno())


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Give the rows in groups of at most so many, and so many bytes of pictures."""
    group: list[dict[str, Any]] = []
    size_bytes = 0
    for row in rows:
        more = sum(len(v.get("bytes") or b"") for v in row.values() if isinstance(v, dict))
        if group and (len(group) == ROW_GROUP_RECORDS or size_bytes + more > _ROW_GROUP_BYTES):
            yield group
            group, size_bytes = [], 0
        group.append(row)
        size_bytes += more
    if group:
        yield group


def arrow_to_parquet(source: Path, target: Path) -> None:
    """Write the rows of an Arrow shard as the Parquet shard of the same records."""
    import pyarrow as pa

    with pa.memory_map(os.fsencode(source)) as file, pa.ipc.open_stream(file) as reader:
        rows = (row for batch in reader for row in batch.to_pylist())
        write_table(target, "parquet", reader.schema, rows)


def _writer(file: Any, file_format: FileFormat, schema: pa.Schema) -> Any:
    if file_format == "arrow":
        import pyarrow as pa

        return pa.ipc.new_stream(file, schema)
    import pyarrow.parquet as pq
    from datasets import Features, config
    from datasets.arrow_writer import get_parquet_column_options

    columns = Features.from_arrow_schema(schema)
    writer = pq.ParquetWriter(
        file,
        schema,
        # Stable chunk borders let the Hub store a changed set as its difference.
        use_content_defined_chunking=config.DEFAULT_CDC_OPTIONS,
        write_page_index=True,
        **get_parquet_column_options(columns, schema),
    )
    chunking = json.dumps(config.DEFAULT_CDC_OPTIONS)
    # `datasets` writes the one, and the Hub's viewer looks for the other.
    names = ("content_defined_chunking", "use_content_defined_chunking")
    writer.add_key_value_metadata(dict.fromkeys(names, chunking))
    return writer


def write_rows(path: Place, columns: tuple[Column, ...], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as one Parquet file that is either there whole or not at all."""
    with replacing(path) as temporary:
        write_table(temporary, "parquet", arrow_schema(columns), rows)


class Table:
    """The rows of a Parquet or Arrow file of any hand, read a small batch at a time.

    What a file takes in memory is bounded by its size: pictures lie in it plain, as they are
    written, and everything else in the one compression that is used, which gains little.

    Raises:
        Unreadable: it is damaged or something else; from every method.
    """

    def __init__(self, source: Path | BinaryIO, file_format: FileFormat) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._source, self._parquet = source, None
        self._damaged = f"cannot be read as {file_format.capitalize()}"
        with refusing(self._damaged, request_errors()):
            self._size_bytes = _size_bytes(source)
            if file_format == "arrow":
                with pa.ipc.open_stream(_for_arrow(source)) as reader:
                    self.schema: pa.Schema = reader.schema
                    self.group_sizes = [batch.num_rows for batch in reader]
                self.n_rows: int = sum(self.group_sizes)
                return
            with _opened(source) as file:
                groups = list(column_chunks(file, self._size_bytes))
            opened = _for_arrow(source)
            metadata = pq.read_metadata(opened)
            self.schema = metadata.schema.to_arrow_schema()
            self.group_sizes = [n_rows for n_rows, _ in groups]
            self.n_rows = sum(self.group_sizes)  # `num_rows` is only said
            leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
            _check_storage(groups, self._size_bytes)
            # Kept as the dictionaries they are stored as, so that one long value named by many
            # rows does not become many copies of it.
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            self._parquet = pq.ParquetFile(opened, metadata=metadata, read_dictionary=texts)

    def integers(self, column: str) -> npt.NDArray[np.int64]:
        """Return a column of whole numbers."""
        parts = [np.zeros(0, np.int64)]
        for _, batch in self._batches([column], None):
            if batch.column(0).null_count:
                raise Unreadable(f"has rows without {column}")
            parts.append(np.asarray(batch.column(0)))
        return np.concatenate(parts)

    def rows(
        self, columns: Iterable[str], wanted: npt.NDArray[np.int64] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Give (number, row) of some rows in their order, pictures as bytes; None: all rows."""
        left_bytes = self._size_bytes
        for start, batch in self._batches(list(columns), wanted):
            numbers = np.arange(start, start + batch.num_rows)
            for number in numbers if wanted is None else np.intersect1d(numbers, wanted):
                with refusing(self._damaged, request_errors()):
                    (row,) = batch.slice(number - start, 1).to_pylist()
                left_bytes -= _picture_bytes(row)
                if left_bytes < 0:
                    raise Unreadable("has more bytes of pictures than the whole file")
                yield int(number), row

    def group(self, number: int, columns: list[str]) -> list[pa.RecordBatch]:
        """Return some columns of one group of rows, of which `group_sizes` says the sizes."""
        with refusing(self._damaged, request_errors()):
            _, read = next(islice(self._groups(), number, None))
            batches = list(read(columns=columns))
            for batch in batches:
                batch.validate(full=True)
            return batches

    def columns(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        """Give some columns of all rows, in batches; `objects.area` is a field of a struct."""
        if self._parquet is None:
            names = list(dict.fromkeys(name.partition(".")[0] for name in names))
        for _, batch in self._batches(names, None):
            yield batch

    def _batches(
        self, columns: list[str], wanted: npt.NDArray[np.int64] | None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Give (number of the first row, batch) for every batch of a group with a wanted row."""
        start = 0
        # This is a generator, so what its user raises does not pass here.
        with refusing(self._damaged, request_errors()):
            for n_rows, read in self._groups():
                if wanted is None or np.any((wanted >= start) & (wanted < start + n_rows)):
                    first = start
                    for batch in read(columns=columns):
                        batch.validate(full=True)
                        yield first, batch
                        first += batch.num_rows
                start += n_rows

    def _groups(self) -> Iterator[tuple[int, Callable[..., Iterable[pa.RecordBatch]]]]:
        """Give the number of rows of each group, and what reads some columns of it."""
        import pyarrow as pa

        if self._parquet is None:
            with pa.ipc.open_stream(_for_arrow(self._source)) as reader:
                for batch in reader:
                    yield batch.num_rows, partial(_columns_of, batch)
            return
        for group in range(self._parquet.metadata.num_row_groups):
            read = partial(self._parquet.iter_batches, ROW_GROUP_RECORDS, [group])
            yield self._parquet.metadata.row_group(group).num_rows, read


def wrong_columns(schema: pa.Schema, columns: tuple[Column, ...]) -> str | None:
    """Say how a file's columns differ from those that are due."""
    mine, theirs = (  # how the item of a list is called is the writer's affair
        {field.name: str(field.type).replace("<element:", "<item:") for field in one}
        for one in (arrow_schema(columns), schema)
    )
    if list(mine.items()) == list(theirs.items()):
        return None
    wrong = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    return f"has not the columns of the recipe (see {', '.join(wrong) or 'their order'})"


def _columns_of(batch: pa.RecordBatch, columns: list[str]) -> list[pa.RecordBatch]:
    return [batch.select(columns)]


def _for_arrow(source: Path | BinaryIO) -> Any:
    """Open a file by the bytes of its name, which pyarrow would encode as UTF-8 only."""
    import pyarrow as pa

    return pa.OSFile(os.fsencode(source)) if isinstance(source, Path) else source


def _size_bytes(source: Path | BinaryIO) -> int:
    with _opened(source) as file:  # refuses pipes and devices
        return file.seek(0, os.SEEK_END)


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[BinaryIO]:
    """Give a file to read from, which stands where it stood when the block ends."""
    if isinstance(source, Path):
        with open_regular(source) as file:
            yield file
        return
    at = source.tell()
    yield source
    source.seek(at)


def _check_storage(groups: list[tuple[int, list[ColumnChunk]]], size_bytes: int) -> None:
    """Refuse what is stored so that little in the file becomes much in memory.

    No more values of a column are read than the footer says.
    """
    total = sum(n_rows for n_rows, _ in groups)
    for n_rows, columns in groups:
        for path, codec, n_values in columns:
            is_picture = path.endswith(".bytes")
            if codec not in ("UNCOMPRESSED", *(() if is_picture else ("SNAPPY",))):
                raise Unreadable(f"has {printable(path)} compressed by {codec}")
            if is_picture and total > size_bytes // _MIN_PICTURE_BYTES:
                raise Unreadable(f"has {size_bytes} bytes, too few for {total} rows")
            # Millions of equal values in lists take a few bytes.
            if n_values > _MAX_LISTED * max(1, n_rows):
                raise Unreadable(f"has lists of too many values in {printable(path)}")


def _picture_bytes(row: dict[str, Any]) -> int:
    """Return how many bytes the pictures of a row have.

    Raises:
        Unreadable: another value of it is longer than any is.
    """
    size_bytes = 0
    for name, value in row.items():
        if isinstance(value, dict):
            size_bytes += len(value.get("bytes") or b"")
        elif isinstance(value, str | bytes) and len(value) > _MAX_TEXT_BYTES:
            raise Unreadable(f"has a {name} of {len(value)} characters")
    return size_bytes
