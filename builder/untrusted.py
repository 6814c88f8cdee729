"""Text that anybody may have written: parsed strictly, and quoted on one line without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

_MAX_SHOWN = 200  # characters of a foreign text in one of our sentences
_MAX_LINE = 300  # characters of a foreign error
_MAX_NAMES = 5  # of files or the like that a sentence lists


class Unreadable(ValueError):
    """Why a file or a picture of another hand cannot be read, as the end of a sentence."""


@contextmanager
def refusing(what: str, let_through: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever a decoder raises on the bytes of another hand into `Unreadable`."""
    passing: tuple[type[Exception], ...] = (Unreadable, *let_through)
    try:
        yield
    except passing:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        raise Unreadable(f"{what} ({type(error).__name__}: {one_line(error)})") from None


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
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"key {shown(name)} stands there twice")
        content[name] = value
    return content


def printable(text: str) -> str:
    """Return text with control and undecodable characters escaped, for one line of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Sequence[str]) -> str:
    """Return the first few of many names, and how many more there are."""
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def one_line(error: object) -> str:
    """Return a foreign error, or what another program says, on one line and without secrets."""
    return printable(without_secrets(" ".join(str(error).split())))[:_MAX_LINE]


def shown(value: object) -> str:
    """Return a foreign value as it is quoted in a sentence: on one line, and not without end."""
    if isinstance(value, str):
        value = value[: _MAX_SHOWN + 1]
    text = printable(repr(value))
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def without_secrets(text: str) -> str:
    """Return a text whose addresses have lost what may be a secret: user names, keys and queries.

    Of a text that is itself an address all goes that stands before its last `@`, since keys may
    hold slashes and blanks. Inside a text an `@` behind the place may be part of a name, but of a
    web address. hf:// alone puts a revision behind an `@`, and no secret before it.
    """
    text = re.sub(r"^((?!hf:)[\w+.-]+\s*:/+).*@", r"\1", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"(https?://+)[^\s\"'<>]*@", r"\1", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<!hf)(://+)[^\s\"'<>/]*@", r"\1", text, flags=re.IGNORECASE)
    return re.sub(r"(://[^\s?#\"'<>]*)[?#][^\s\"'<>]*", r"\1", text)
