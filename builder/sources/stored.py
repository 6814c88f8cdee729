"""Prepared sources as one Parquet file: a work folder holds it, and a finished set publishes it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import asdict

from builder.errors import NewerVersionError, NotABuildError
from builder.files import open_regular
from builder.pinned import SourceEntry
from builder.remote import Place
from builder.schema import SOURCE_COLUMNS, Column, source_columns
from builder.sources.prepare import Source
from builder.tables import Table, write_rows
from builder.typed import read
from builder.untrusted import Unreadable, one_line, refusing


def write_sources(path: Place, sources: Iterable[Source]) -> None:
    """Write prepared sources as one Parquet file, one row each, in order."""
    rows = (
        {"image": {"bytes": source.png, "path": None}, **asdict(source.entry)} for source in sources
    )
    write_rows(path, SOURCE_COLUMNS, rows)


def read_sources(path: Place) -> list[Source]:
    """Read what `write_sources` wrote.

    Raises:
        NotABuildError: the file is missing, damaged or something else.
        NewerVersionError: a newer version wrote it.
    """
    sources = []
    try:
        with (
            refusing("cannot be read as prepared sources", (OSError, NewerVersionError)),
            open_regular(path) as file,
        ):
            table = Table(file, "parquet")
            for _, row in table.rows(table.schema.names):
                png = row.pop("image")["bytes"]
                sources.append(_checked(Source(read(SourceEntry, row, str(path)), png)))
    except (OSError, Unreadable) as error:
        raise NotABuildError(f"{path} {one_line(error)}; build the set again.") from None
    return sources


def stored_columns(path: Place) -> tuple[Column, ...]:
    """Return the columns that a file of prepared sources has; those of 0.1.0 say `licence`."""
    import pyarrow.parquet as pq

    with open_regular(path) as opened:
        return source_columns(pq.read_schema(opened).names)


def _checked(source: Source) -> Source:
    """Refuse a picture whose header does not say what its entry says, before it is decoded."""
    kind, width, height, bits = struct.unpack_from(">12x4sIIB", source.png)
    if (kind, width, height, bits) != (b"IHDR", source.entry.width, source.entry.height, 8):
        raise Unreadable(f"holds a picture of {source.entry.id} of another size than its entry")
    return source
