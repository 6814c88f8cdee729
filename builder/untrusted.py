"""Read small text files that anybody may have written: bounded, strict, and told in one line."""

from __future__ import annotations

import json
import stat
from typing import Any, NoReturn, Protocol

_MAX_SHOWN = 200  # characters of a foreign text in one of our sentences


class _Readable(Protocol):
    """What is read of a path, on this machine or on a store."""

    def stat(self) -> Any:
        """Return size and kind."""

    def read_text(self, encoding: str) -> str:
        """Return the content."""


def read_text(path: _Readable, most_bytes: int) -> str:
    """Read a UTF-8 text file of at most `most_bytes`.

    Raises:
        OSError: it cannot be read, or is a pipe, socket or device, which might never end.
        ValueError: it is larger, or not UTF-8.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(f"{printable(str(path))} is not a regular file")
    if status.st_size > most_bytes:
        raise ValueError(f"it has {status.st_size:,} bytes; at most {most_bytes:,} are read")
    return path.read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """Parse JSON of one meaning: no NaN or infinity, no key twice, no nesting without end.

    Raises:
        ValueError: it is not such JSON; the text says why.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise ValueError(f"key {shown(twice)} stands there twice")
    return content


def printable(text: str) -> str:
    """Return text with control and undecodable characters escaped, for one line of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """Return a foreign value as it is quoted in a sentence: on one line, and not without end."""
    if isinstance(value, str):
        value = value[: _MAX_SHOWN + 1]
    text = printable(repr(value))
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
