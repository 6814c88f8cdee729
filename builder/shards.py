"""Write shards so that a kill at any moment leaves nothing half-done.

A shard is written under a temporary name, synced and renamed; then its commit record (rows,
bytes, sha256, fingerprint, statistics) is written the same way. The commit record means "done".
The file is named by its content, so that a record fits the file it speaks of even where two
builds made the same shard and rounded depth differently.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.encoding import DepthCodec, decode_image, encode_image, encode_mask
from builder.errors import NotABuildError, RecipeError
from builder.files import _rename, _temporary, sha256_file, write_text
from builder.layout import FileFormat
from builder.recipe import PinnedRecipe, SourceEntry
from builder.render import Record
from builder.schema import IMAGE_COLUMNS, SOURCE_COLUMNS, Column, features, record_columns
from builder.sources import Source
from builder.stats import Statistics
from builder.store import Place
from builder.untrusted import parse_json, printable, read_text

if TYPE_CHECKING:
    import pyarrow as pa


ROW_GROUP_RECORDS = 100
_MIN_PNG_BYTES = 57  # signature, header, one empty chunk of data, end
_MAX_COMMIT_BYTES = 2**28
_AHEAD = 32  # records encoded at once in the background; bounds memory


@dataclass(frozen=True)
class Commit:
    """What the commit record of a finished shard says."""

    shard: str
    rows: int
    size_bytes: int
    sha256: str
    fingerprint: str
    statistics: dict[str, Any]


def stored_name(shard: str, sha256: str, file_format: FileFormat) -> str:
    """Return the name of a finished shard's file while the set is being built."""
    return f"{shard}.{sha256[:16]}.{file_format}"


class Encoder:
    """Turns records of a set into rows of bytes, and counts what a consumer will decode."""

    def __init__(self, pinned: PinnedRecipe) -> None:
        self._recipe = pinned.recipe
        self._codec = DepthCodec(pinned.recipe, pinned.depth) if pinned.depth else None

    def row(self, record: Record) -> dict[str, Any]:
        """Encode one record; images become `{"bytes": ..., "path": None}`."""
        images = {
            "fg_bg": encode_image(record.fg_bg, self._recipe),
            "mask": encode_mask(record.mask),
        }
        if self._codec and record.depth is not None:
            images["depth"] = self._codec.encode(record.depth)
        return {
            "record_id": record.record_id,
            **{column: {"bytes": data, "path": None} for column, data in images.items()},
            **record.described(),
            "pixel_hash": record.pixel_hash,
        }

    def count(self, record: Record, row: dict[str, Any], statistics: Statistics) -> None:
        """Add one record's pixels, as decoded from its row, to statistics."""
        depth = None
        if self._codec and record.depth is not None:
            depth = self._codec.as_decoded(record.depth, row["depth"]["bytes"])
        statistics.add(
            decode_image(row["fg_bg"]["bytes"], self._recipe),
            record.mask,
            depth,
            record.bbox,
            {column: len(row[column]["bytes"]) for column in IMAGE_COLUMNS if column in row},
        )


def _in_background(
    make: Callable[[Record], dict[str, Any]], records: Iterable[Record]
) -> Iterator[dict[str, Any]]:
    """Map in order, in a thread of its own while the next records are made."""
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
        waiting: deque[Future[dict[str, Any]]] = deque()
        for record in records:
            waiting.append(pool.submit(make, record))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def write_shard(
    folder: Place,
    name: str,
    file_format: FileFormat,
    pinned: PinnedRecipe,
    records: Iterable[Record],
    progress: Callable[[int], object] | None = None,
) -> Commit:
    """Write one shard and its commit record.

    Args:
        folder: where finished shards lie.
        name: of the shard, without extension.
        records: in order; consumed once.
        progress: called with the number of rows after each row group.

    Raises:
        OSError: the folder can not be written.
    """
    encoder, statistics = Encoder(pinned), Statistics(pinned.recipe.size)

    def encode(record: Record) -> dict[str, Any]:
        row = encoder.row(record)
        encoder.count(record, row, statistics)
        return row

    # Without a network to wait for, a second thread would only add its switching.
    rows = _in_background(encode, records) if pinned.depth else map(encode, records)
    schema = features(record_columns(pinned.recipe)).arrow_schema
    schema = schema.with_metadata({**schema.metadata, **_metadata(pinned)})
    with _temporary(folder / f"{name}.{file_format}") as temporary:
        write_table(temporary, file_format, schema, rows, progress)
        commit = Commit(
            shard=name,
            rows=statistics.rows,
            size_bytes=temporary.stat().st_size,
            sha256=sha256_file(temporary),
            fingerprint=pinned.fingerprint,
            statistics=statistics.to_json(),
        )
        _rename(temporary, folder / stored_name(name, commit.sha256, file_format))
    write_text(folder / f"{name}.json", sealed(vars(commit)))
    return commit


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
            rows = iter(rows)
            while group := list(islice(rows, ROW_GROUP_RECORDS)):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                if progress:
                    progress(len(group))
        file.flush()
        os.fsync(file.fileno())


def arrow_to_parquet(source: Path, target: Path) -> None:
    """Write the rows of an Arrow shard as the Parquet shard of the same records."""
    import pyarrow as pa

    with pa.memory_map(str(source)) as file, pa.ipc.open_stream(file) as reader:
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
    writer.add_key_value_metadata({"content_defined_chunking": chunking})
    return writer


def _metadata(pinned: PinnedRecipe) -> dict[bytes, bytes]:
    pinned = pinned.public()  # shards are published as they are
    content: dict[str, Any] = {"fingerprint": pinned.fingerprint, "recipe": pinned.recipe.to_dict()}
    if pinned.depth:
        content["depth"] = asdict(pinned.depth)
    return {b"fgbg": json.dumps(content).encode()}


def write_sources(path: Place, sources: Iterable[Source]) -> None:
    """Write prepared sources as one Parquet file, one row each, in order."""
    rows = (
        {"image": {"bytes": source.png, "path": None}, **asdict(source.entry)} for source in sources
    )
    write_rows(path, SOURCE_COLUMNS, rows)


def write_rows(path: Place, columns: tuple[Column, ...], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as one Parquet file that is either there whole or not at all."""
    with _temporary(path) as temporary:
        write_table(temporary, "parquet", features(columns).arrow_schema, rows)
        _rename(temporary, path)


def read_sources(path: Place) -> list[Source]:
    """Read what `write_sources` wrote.

    Raises:
        NotABuildError: the file is missing, damaged or something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sources = []
    try:
        with path.open("rb") as opened, pq.ParquetFile(opened) as file:
            # A picture is stored plain and has more bytes than this, so the file is no smaller.
            if file.metadata.num_rows > path.stat().st_size // _MIN_PNG_BYTES:
                raise ValueError("it claims more rows than it can hold")
            for batch in file.iter_batches(ROW_GROUP_RECORDS):
                for row in batch.to_pylist():
                    png = row.pop("image")["bytes"]
                    sources.append(_checked(Source(SourceEntry(**row), png)))
    except (OSError, pa.ArrowException, ValueError, TypeError, LookupError, RecipeError) as error:
        why = printable(str(error))[:300]
        raise NotABuildError(f"{path} can not be read as prepared sources: {why}") from None
    return sources


def _checked(source: Source) -> Source:
    """Refuse a picture whose header does not say what its entry says, before it is decoded."""
    if len(source.png) < _MIN_PNG_BYTES:
        raise ValueError(f"the picture of {source.entry.id} is no PNG")
    kind, width, height, bits = struct.unpack_from(">12x4sIIB", source.png)
    if (kind, width, height, bits) != (b"IHDR", source.entry.width, source.entry.height, 8):
        raise ValueError(f"the picture of {source.entry.id} has another size than its entry")
    return source


def sealed(content: Mapping[str, Any]) -> str:
    """Return JSON that holds its own sha256: a flipped bit in a number is a number, too."""
    return json.dumps({**content, "sealed": _digest(content)})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_commit(folder: Place, name: str) -> Commit | None:
    """Return a shard's commit record; None when it is damaged, or the shard is not done."""
    try:
        content = parse_json(read_text(folder / f"{name}.json", _MAX_COMMIT_BYTES))
        return Commit(**content) if content.pop("sealed") == _digest(content) else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def is_done(folder: Place, name: str, file_format: FileFormat, fingerprint: str) -> bool:
    """Whether a shard is finished: committed for this fingerprint and unharmed on disk."""
    commit = read_commit(folder, name)
    if commit is None or commit.fingerprint != fingerprint:
        return False
    try:
        path = folder / stored_name(name, commit.sha256, file_format)
        unharmed = path.stat().st_size == commit.size_bytes and sha256_file(path) == commit.sha256
    except (OSError, TypeError, ValueError):  # the record may be of any hand
        return False
    return unharmed and _has_statistics(commit)


def _has_statistics(commit: Commit) -> bool:
    try:
        return Statistics.from_json(commit.statistics).rows == commit.rows
    except ValueError:
        return False
