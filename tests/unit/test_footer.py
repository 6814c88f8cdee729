"""footer: columns as pyarrow reports them, and bytes of any hand end in a sentence."""

from __future__ import annotations

import contextlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.footer import ColumnChunk, column_chunks


def parquet(**options) -> bytes:
    """A file of three groups, with a list, a struct and a text."""
    table = pa.table(
        {
            "id": list(range(30)),
            "image": [{"bytes": b"x" * n, "path": None} for n in range(30)],
            "bbox": [[n, n + 1] for n in range(30)],
            "name": [f"name {n % 3}" for n in range(30)],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=10, **options)
    return buffer.getvalue()


def chunks(data: bytes) -> list[tuple[int, list[ColumnChunk]]]:
    return list(column_chunks(io.BytesIO(data), len(data)))


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", {"id": "brotli"}])
def test_columns_are_those_that_pyarrow_reports(compression) -> None:
    data = parquet(compression=compression)
    metadata = pq.read_metadata(io.BytesIO(data))
    due = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(column) for column in range(group.num_columns)]
        said = [(one.path_in_schema, one.compression, one.num_values) for one in columns]
        due.append((group.num_rows, said))
    assert chunks(data) == due
    assert len(due) == 3


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_a_damaged_footer_gives_columns_or_an_error(seed: int, n_flips: int) -> None:
    import numpy as np

    data = bytearray(parquet())
    rng = np.random.default_rng(seed)
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for bit in rng.integers(8 * start, 8 * len(data), n_flips).tolist():
        data[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(ValueError):
        for n_rows, columns in chunks(bytes(data)):
            assert n_rows >= 0
            assert all(column.n_values >= 0 for column in columns)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_groups_or_an_error(data: bytes) -> None:
    tail = len(data).to_bytes(4, "little") + b"PAR1"
    with contextlib.suppress(ValueError):
        assert chunks(data + tail) == []
