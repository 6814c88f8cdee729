"""footer: codecs as pyarrow reports them, and bytes of any hand end in a sentence."""

from __future__ import annotations

import contextlib
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.footer import column_codecs


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


def codecs(data: bytes) -> list[list[tuple[str, str]]]:
    return list(column_codecs(io.BytesIO(data), len(data)))


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", {"id": "brotli"}])
def test_codecs_are_those_that_pyarrow_reports(compression) -> None:
    data = parquet(compression=compression)
    metadata = pq.read_metadata(io.BytesIO(data))
    due = [
        [
            (chunk.path_in_schema, chunk.compression)
            for column in range(metadata.num_columns)
            for chunk in (metadata.row_group(group).column(column),)
        ]
        for group in range(metadata.num_row_groups)
    ]
    assert codecs(data) == due
    assert len(due) == 3


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_a_damaged_footer_gives_codecs_or_an_error(seed: int, n_flips: int) -> None:
    import numpy as np

    data = bytearray(parquet())
    rng = np.random.default_rng(seed)
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for bit in rng.integers(8 * start, 8 * len(data), n_flips).tolist():
        data[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(ValueError):
        assert all(isinstance(path, str) for group in codecs(bytes(data)) for path, _ in group)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_groups_or_an_error(data: bytes) -> None:
    tail = len(data).to_bytes(4, "little") + b"PAR1"
    with contextlib.suppress(ValueError):
        assert codecs(data + tail) == []
