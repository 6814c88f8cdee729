"""Checked dataclasses: what their fields may hold, and how later versions read stored ones.

A field's annotation says its type and, by `Annotated`, its rules; `check` holds every value to
them. The metadata of a field says what it means for sets that are stored:

before   it came after version 0.1.0; this value means what was done before there was the field
pixels   False: no pixel depends on it, so it is not part of a fingerprint
was      the name that version 0.1.0 gave it
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from builder.errors import NewerVersionError, RecipeError
from builder.untrusted import printable, shown

T = TypeVar("T")

# What is wrong with a value, given the whole it is a field of: the sentence without its subject.
Rule = Callable[[Any, Any], "str | None"]


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`, both allowed; `high` may be the name of another field."""

    low: float
    high: float | str

    def __call__(self, value: float | None, whole: Any) -> str | None:
        """Say why a number does not fit; None, where a field allows it, does."""
        high: Any = self.high
        upper = f"{high}"
        if isinstance(high, str):
            high = getattr(whole, high)
            upper += f" ({high})"
        # Written so that NaN fails too.
        if value is None or self.low <= value <= high:
            return None
        return f"is {shown(value)}; it must lie between {self.low} and {upper}"


@dataclass(frozen=True)
class Text:
    """A text of at most `most` characters, none of them for controlling a terminal."""

    most: int

    def __call__(self, value: str | None, _whole: Any) -> str | None:
        """Say why a text does not fit."""
        if value is None or (len(value) <= self.most and printable(value) == value):
            return None
        if len(value) > self.most:
            return f"has {len(value)} characters; at most {self.most} are allowed"
        return f"is {shown(value)}; control characters are not allowed"


@dataclass(frozen=True)
class Matching:
    """A text that a regular expression matches whole; `what` it must be then."""

    pattern: str
    what: str

    def __call__(self, value: str | None, _whole: Any) -> str | None:
        """Say why a text does not fit."""
        if value is None or re.fullmatch(self.pattern, value, re.ASCII):
            return None
        return f"is {shown(value)}; it must be {self.what}"


Sha256 = Annotated[str, Matching("[0-9a-f]{64}", "64 hexadecimal digits")]


@dataclass(frozen=True)
class Field:
    """What the annotation and the metadata of a field say."""

    name: str
    types: tuple[type, ...]
    choices: tuple[Any, ...]
    rules: tuple[Rule, ...]
    required: bool
    metadata: Mapping[str, Any]

    def name_in(self, names: Container[str]) -> str | None:
        """Return what a stored object of these names calls this field; None if it has none."""
        known = (self.name, self.metadata.get("was", self.name))
        return next((name for name in known if name in names), None)

    def value_in(self, content: Mapping[str, Any]) -> Any:
        """Return the value of this field in a stored object; an absent one is as it was before.

        Raises:
            LookupError: the object lacks a field that every version writes.
        """
        name = self.name_in(content)
        return self.metadata["before"] if name is None else content[name]

    def wrong_type(self, value: object) -> str | None:
        """Say why a value cannot be of this field's type; None if it can."""
        if self.choices:
            if value in self.choices:
                return None
            return f"is {shown(value)}; it must be one of {', '.join(map(str, self.choices))}"
        # bool is an int to Python, but `placements=True` is a mistake to everybody else.
        if isinstance(value, bool) and bool not in self.types:
            pass
        elif isinstance(value, self.types) or (isinstance(value, int) and float in self.types):
            return None
        names = " | ".join("None" if t is type(None) else t.__name__ for t in self.types)
        return f"is {shown(value)}; it must be of type {names}"


def checked_fields(cls: Any) -> tuple[Field, ...]:
    """Return what the fields of a dataclass may hold, in their order."""
    return _checked_fields(cls)


@cache
def _checked_fields(cls: Any) -> tuple[Field, ...]:
    hints = get_type_hints(cls, include_extras=True)
    return tuple(_checked_field(field, hints[field.name]) for field in fields(cls))


def _checked_field(field: dataclasses.Field[Any], hint: Any) -> Field:
    rules: list[Rule] = []
    if get_origin(hint) is Annotated:
        hint, *rules = get_args(hint)
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    types = () if choices else tuple(get_origin(part) or part for part in parts)
    required = field.default is MISSING and field.default_factory is MISSING
    return Field(field.name, types, choices, tuple(rules), required, field.metadata)


def check(values: Any) -> None:
    """Hold the fields of a dataclass to their annotations.

    Raises:
        RecipeError: a field has the wrong type, or a value that its rules do not allow.
    """
    known = checked_fields(type(values))
    for field in known:
        if fault := field.wrong_type(getattr(values, field.name)):
            raise RecipeError(f"{field.name} {fault}.")
    for field in known:
        for rule in field.rules:
            if fault := rule(getattr(values, field.name), values):
                raise RecipeError(f"{field.name} {fault}.")


def read(cls: type[T], content: object, where: str) -> T:
    """Make a dataclass of a JSON object or a row that this or another version has written.

    Args:
        where: what holds it, for the error about a newer version.

    Raises:
        NewerVersionError: it has fields that are not known here.
        RecipeError: it is something else.
    """
    if not isinstance(content, dict):
        raise RecipeError(f"{shown(content)} stands where an object should.")
    known = checked_fields(cls)
    values = dict(content)
    for field in known:
        if field.name in values:
            continue
        if name := field.name_in(values):
            values[field.name] = values.pop(name)
        elif "before" in field.metadata:
            values[field.name] = field.metadata["before"]
        elif field.required:
            raise RecipeError(f"{field.name} is missing.")
    refuse_newer(values, {field.name for field in known}, where)
    return cls(**values)


def refuse_newer(
    content: Mapping[str, Any], known: Iterable[str], where: str, newest: int | None = None
) -> None:
    """Refuse a stored object that this version cannot know how to read.

    Args:
        newest: the latest `format` that is known; None where there is no such field.

    Raises:
        NewerVersionError: its format is a later one, or it has fields that are not known.
        RecipeError: its format is not a whole number from 1.
    """
    if newest is not None:
        given = content.get("format", 1)
        if type(given) is not int or given < 1:
            raise RecipeError(f"format is {shown(given)}; it must be a whole number from 1.")
        if given > newest:
            raise NewerVersionError.of(where, f"format {shown(given)}")
    if unknown := sorted(set(content) - set(known)):
        raise NewerVersionError.of(where, f"it has a field {shown(unknown[0])}")


def stored(values: Any) -> dict[str, Any]:
    """Return the fields as they are stored; `read` reads them.

    Those that came after version 0.1.0 are left out where they say nothing, so that versions that
    do not know them can read what does not need them.
    """
    return {
        field.name: value
        for field in checked_fields(type(values))
        for value in (getattr(values, field.name),)
        if "before" not in field.metadata or value != field.metadata["before"]
    }


def decisive(values: Any) -> dict[str, Any]:
    """Return the fields that a fingerprint covers: those that pixels depend on.

    Those of version 0.1.0 always are; a later one is only where it differs from what was done
    before. So sets made by any version keep their fingerprints.
    """
    content = stored(values)
    return {
        field.name: content[field.name]
        for field in checked_fields(type(values))
        if field.name in content and field.metadata.get("pixels", True)
    }
