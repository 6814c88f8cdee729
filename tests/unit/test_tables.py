"""Files of rows: how they are grouped, and what is refused before it is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.schema import SOURCE_COLUMNS, arrow_schema
from builder.tables import ROW_GROUP_RECORDS, Table, write_rows, write_table
from builder.untrusted import Unreadable

PICTURE = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])


def rows(n: int, size_bytes: int) -> list[dict[str, Any]]:
    return [{"image": {"bytes": os.urandom(size_bytes), "path": None}} for _ in range(n)]


def groups(path: Path) -> list[int]:
    metadata = pq.read_metadata(path)
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def read(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in Table(path, "parquet").rows(["image"])]


def test_row_groups_end_by_number_and_by_bytes(tmp_path: Path) -> None:
    schema = pa.schema(
        list(arrow_schema(SOURCE_COLUMNS))[:1], arrow_schema(SOURCE_COLUMNS).metadata
    )
    few = rows(2 * ROW_GROUP_RECORDS + 1, 60)
    write_table(tmp_path / "few", "parquet", schema, few)
    assert groups(tmp_path / "few") == [100, 100, 1]
    write_table(tmp_path / "large", "parquet", schema, iter(rows(5, 40_000_000)))
    assert groups(tmp_path / "large") == [2, 2, 1]
    assert read(tmp_path / "few") == few


def test_what_would_grow_in_memory_is_refused_by_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    zeros = [{"image": {"bytes": bytes(2**24), "path": None}}] * 20
    pq.write_table(pa.Table.from_pylist(zeros, schema=PICTURE), path, compression="zstd")
    assert path.stat().st_size < 10**6
    with pytest.raises(Unreadable, match=r"image.bytes compressed by ZSTD"):
        read(path)
    pq.write_table(pa.Table.from_pylist(zeros, schema=PICTURE), path, compression="none")
    with pytest.raises(Unreadable, match="more bytes of pictures than the whole file"):
        read(path)  # one value in a dictionary, named by twenty rows
    small = rows(1, 60) * 5000
    pq.write_table(pa.Table.from_pylist(small, schema=PICTURE), path, compression="none")
    with pytest.raises(Unreadable, match="too few for 5000 rows"):
        read(path)
    listed = pa.table({"objects": [{"id": [1] * 10**6, "box": [[0] * 4] * 255}] * 3})
    pq.write_table(listed, path, compression="snappy")
    assert path.stat().st_size < 10**6
    with pytest.raises(Unreadable, match=r"lists of too many values in objects\.id"):
        list(Table(path, "parquet").rows(["objects"]))


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        for kind in ("parquet", "arrow"):
            with pytest.raises(Unreadable, match="is not a regular file"):
                Table(tmp_path / name, kind)  # type: ignore[arg-type]


def test_lists_are_called_as_every_datasets_reads_them(tmp_path: Path) -> None:
    from builder.recipe import Recipe
    from builder.schema import record_columns

    columns = record_columns(Recipe(depth_model="none"))
    write_rows(tmp_path / "rows", columns, [])
    metadata = pq.read_metadata(tmp_path / "rows").metadata
    assert b'"_type": "Sequence"' in metadata[b"huggingface"]
    assert b'"_type": "List"' not in metadata[b"huggingface"]
    assert metadata[b"content_defined_chunking"] == metadata[b"use_content_defined_chunking"]
