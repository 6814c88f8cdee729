"""Notes on what was made of each photograph, in a hidden folder beside its cut-outs.

The folder may come from somebody else, and what its notes say is shown, opened and deleted. So a
note counts only where all of it is what this package writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from builder.files import read_text
from builder.pinned import CutAt
from builder.untrusted import parse_json

Note = dict[str, Any]

_MAX_NOTE_BYTES = 2**22
_MAX_SIDE = 2**16
_DEPTH_END = ".depth.png"
_Shape = Mapping[str, Callable[[Any], bool]]


def read_note(path: Path) -> Note | None:
    """Read a note; None where there is none that can be read, and the photograph is made again."""
    try:
        note = parse_json(read_text(path, _MAX_NOTE_BYTES))
    except (OSError, ValueError):
        return None
    return note if _is(note, _NOTE, _NOTE_MORE) else None


def files_of(note: Note) -> dict[str, str]:
    """Return the sha256 of all files that were written for a photograph, those of earlier runs too.

    By their paths, the cut-outs before their depth.
    """
    files = dict(note.get("earlier", {}))
    files |= {one["file"]: one["sha256"] for one in note["made"]}
    depths = [one["depth"] for one in note["made"] if one.get("depth")]
    return files | {depth["file"]: depth["sha256"] for depth in depths}


def depth_file(name: str) -> str:
    """Return the file of the depth of a cut-out."""
    return f"{name.removesuffix('.png')}{_DEPTH_END}"


def cutout_file(name: str) -> str:
    """Return the file of the cut-out that a file is, or is the depth of."""
    return f"{name.removesuffix(_DEPTH_END)}.png" if name.endswith(_DEPTH_END) else name


def _is(value: Any, needed: _Shape, more: _Shape) -> bool:
    return (
        isinstance(value, dict)
        and set(value) >= set(needed)
        and all(fits(value[key]) for key, fits in {**more, **needed}.items() if key in value)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9+/]*=*", value) is not None


def _is_inside(value: Any) -> bool:
    if not isinstance(value, str) or not value.endswith(".png"):
        return False
    path = PurePosixPath(value)
    return not path.is_absolute() and ".." not in path.parts


def _is_pair(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(type(n) is int and 0 <= n <= _MAX_SIDE for n in value)


def _are_figures(value: Any) -> bool:
    return isinstance(value, dict) and all(type(n) in (int, float) for n in value.values())


def _are_files(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_inside, value)) and all(
        map(_is_text, value.values())
    )  # fmt: skip


_DEPTH: _Shape = {
    "file": _is_inside,
    "sha256": _is_text,
    "options": _is_mapping,
    "picture": _is_picture,
}
_MADE: _Shape = {
    "file": _is_inside,
    "sha256": _is_text,
    "cut_at": lambda value: value in get_args(CutAt),
    "size": _is_pair,
    "at": _is_pair,
    "figures": _are_figures,
    "strip": _is_picture,
}
_MADE_MORE: _Shape = {
    "edge": _is_text,
    "label": _is_text,
    "depth": lambda value: _is(value, _DEPTH, {}),
}
_NOTE: _Shape = {
    "photograph": _is_text,
    "sha256": _is_text,
    "options": _is_mapping,
    "tool": _is_text,
    "made": lambda value: isinstance(value, list) and all(_is(v, _MADE, _MADE_MORE) for v in value),
    "refused": _is_text,
    "picture": _is_picture,
}
_NOTE_MORE: _Shape = {"weights": _is_text, "weights_license": _is_text, "earlier": _are_files}
