"""Prepared sources as one Parquet file: a work folder holds it, and a finished set publishes it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from builder.errors import NewerVersionError, NotABuildError
from builder.files import open_regular
from builder.pinned import SourceEntry
from builder.recipe import Recipe
from builder.remote import Place
from builder.schema import BACKDROP_COLUMNS, Column, source_columns
from builder.sources.backdrop import Backdrop
from builder.sources.decode import Kind
from builder.sources.prepare import Source
from builder.tables import Table, write_rows
from builder.typed import read
from builder.untrusted import Unreadable, one_line, refusing

_TURNED = 2  # times, more than a picture is wider when it is turned
_BACKDROP_FIELDS = tuple(c.name for c in BACKDROP_COLUMNS if c.name != "prepared_sha256")


def write_sources(path: Place, kind: Kind, recipe: Recipe, sources: Iterable[Source]) -> None:
    """Write prepared sources as one Parquet file, one row each, in order."""
    rows = (
        {
            "image": {"bytes": source.png, "path": None},
            **asdict(source.entry),
            "levels": [{"bytes": png, "path": None} for png in source.levels],
            "relief": [{"bytes": png, "path": None} for png in source.relief],
            **(source.backdrop.row() if source.backdrop else {}),
        }
        for source in sources
    )
    write_rows(path, source_columns(kind, recipe), rows)


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
                sources.append(_source(row, str(path)))
    except (OSError, Unreadable) as error:
        raise NotABuildError(f"{path} {one_line(error)}; build the set again.") from None
    return sources


def stored_columns(path: Place, kind: Kind, recipe: Recipe) -> tuple[Column, ...]:
    """Return the columns due in a file of prepared sources; those of 0.1.0 say `licence`.

    Raises:
        NotABuildError: the file is missing, damaged or something else.
    """
    import pyarrow.parquet as pq

    try:
        with refusing("cannot be read as prepared sources", (OSError,)), open_regular(path) as file:
            return source_columns(kind, recipe, pq.read_schema(file).names)
    except (OSError, Unreadable) as error:
        raise NotABuildError(f"{path} {one_line(error)}; build the set again.") from None


def _source(row: dict[str, Any], where: str) -> Source:
    known = {"image", "levels", "relief", *_BACKDROP_FIELDS}
    entry = read(SourceEntry, {name: row[name] for name in row if name not in known}, where)
    return prepared_source(row, entry)


def prepared_source(row: dict[str, Any], entry: SourceEntry) -> Source:
    """Make the prepared source of a row of a stored file.

    Raises:
        Unreadable: a picture has another size than is due, or depth and ground are not those that
            the entry names.
        ValueError: they are something else.
    """
    levels, relief = (
        tuple(picture["bytes"] for picture in row.get(name) or ()) for name in ("levels", "relief")
    )
    source = _checked(Source(entry, row["image"]["bytes"], levels, relief))
    for level in levels:
        width, height, bits = struct.unpack_from(">16xIIB", level)
        if max(width, height) > _TURNED * max(entry.width, entry.height) or bits != 8:
            raise Unreadable(f"holds a size of {entry.id} that is none of its smaller ones")
    if len(relief) != (1 + len(levels) if entry.has_relief else 0):
        raise Unreadable(
            f"holds not as much relief of {entry.id} as sizes, or some that is not due"
        )
    for picture, png in zip((source.png, *levels), relief, strict=False):
        if struct.unpack_from(">12x4sIIBB", png) != (
            *struct.unpack_from(">12x4sII", picture),
            16,
            0,
        ):
            raise Unreadable(f"holds relief of {entry.id} of another size than its picture")
    if "depth_by" in row:
        source = replace(source, backdrop=Backdrop.from_row(row, entry.width))
        assert source.backdrop is not None
        if source.backdrop.sha256 != entry.prepared_sha256:
            raise Unreadable(f"holds depth or ground of {entry.id} that are not the recipe's")
    return source


def _checked(source: Source) -> Source:
    """Refuse a picture whose header does not say what its entry says, before it is decoded."""
    _check_png(source.entry, source.png, (source.entry.width, source.entry.height))
    return source


def _check_png(entry: SourceEntry, png: bytes, size: tuple[int, int]) -> None:
    kind, width, height, bits = struct.unpack_from(">12x4sIIB", png)
    if (kind, width, height, bits) != (b"IHDR", *size, 8):
        raise Unreadable(f"holds a picture of {entry.id} of another size than its entry")
