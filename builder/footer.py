"""What a Parquet file's columns take, read from its footer without pyarrow.

To ask pyarrow of a column whose footer is damaged ends the whole process. The footer is a struct in
the compact protocol of Apache Thrift; read here are row groups, their columns, codecs and counts.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "LZO", "BROTLI", "LZ4", "ZSTD", "LZ4_RAW")

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MAX_DEPTH = 32
# Numbers of fields in parquet.thrift.
_ROW_GROUPS, _COLUMNS, _ROWS, _META_DATA, _ENCRYPTED = 4, 1, 3, 3, (8, 9)
_PATH, _CODEC, _VALUES = 3, 4, 5
_TAIL_BYTES = 8  # the footer's length and the magic number


class ColumnChunk(NamedTuple):
    """A column within a row group."""

    path: str
    codec: str
    n_values: int  # those of lists counted one by one


def column_chunks(file: BinaryIO, size_bytes: int) -> Iterator[tuple[int, list[ColumnChunk]]]:
    """Give for each row group the number of its rows and its columns.

    Args:
        file: seekable.
        size_bytes: of the file.

    Raises:
        ValueError: it has no footer that can be read, or is encrypted.
    """
    file.seek(max(0, size_bytes - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1" or length + _TAIL_BYTES > size_bytes:
        raise ValueError("it has no footer")
    file.seek(size_bytes - _TAIL_BYTES - length)
    try:
        for group in _Thrift(file.read(length)).struct().get(_ROW_GROUPS) or []:
            yield _count(group[_ROWS]), [_chunk(c) for c in group.get(_COLUMNS) or []]
    except (LookupError, TypeError, AttributeError) as error:  # values of other kinds than are due
        raise ValueError(f"its footer is not that of a Parquet file ({error})") from None


def _chunk(column: dict[int, Any]) -> ColumnChunk:
    about = column.get(_META_DATA)
    if about is None or any(number in column for number in _ENCRYPTED):
        raise ValueError("a column is encrypted, or says nothing of itself")
    codec = about[_CODEC]
    return ColumnChunk(
        b".".join(about[_PATH]).decode(),
        CODECS[codec] if 0 <= codec < len(CODECS) else str(codec),
        _count(about[_VALUES]),
    )


def _count(value: Any) -> int:
    number = operator.index(value)
    if number < 0:
        raise ValueError("its footer counts fewer than none")
    return number


class _Thrift:
    """Reads the compact protocol; structs become dicts by the numbers of their fields."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def _take(self, n: int) -> bytes:
        if n > len(self._data) - self._at:
            raise ValueError("its footer is cut short")
        self._at += n
        return self._data[self._at - n : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            (byte,) = self._take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a number of its footer has no end")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct."""
        fields: dict[int, Any] = {}
        number = 0
        while True:
            (head,) = self._take(1)
            if not head:
                return fields
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 0x0F, depth + 1)

    def _value(self, kind: int, depth: int, in_list: bool = False) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError("its footer is nested without end")
        if kind in (_TRUE, _FALSE):
            return self._take(1) == b"\x01" if in_list else kind == _TRUE
        if kind == _BYTE:
            return self._take(1)[0]
        if kind in (_I16, _I32, _I64):
            return self._zigzag()
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            (head,) = self._take(1)
            count = head >> 4 if head >> 4 < 15 else self._varint()
            if count > len(self._data) - self._at:  # each takes a byte at least
                raise ValueError("a list of its footer is longer than the footer")
            return [self._value(head & 0x0F, depth + 1, in_list=True) for _ in range(count)]
        if kind == _STRUCT:
            return self.struct(depth)
        raise ValueError(f"its footer holds a value of kind {kind}")
