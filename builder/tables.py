"""Rows become Parquet or Arrow files, the way `datasets` writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from builder.files import replacing
from builder.remote import Place
from builder.schema import Column, features

if TYPE_CHECKING:
    import pyarrow as pa

FileFormat = Literal["parquet", "arrow"]

ROW_GROUP_RECORDS = 100


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


def write_rows(path: Place, columns: tuple[Column, ...], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as one Parquet file that is either there whole or not at all."""
    with replacing(path) as temporary:
        write_table(temporary, "parquet", features(columns).arrow_schema, rows)
