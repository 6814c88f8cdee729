"""Who made the pictures, and what may be done with them: `credits.csv` beside them.

A file that cannot be read stops everything, for a set without it would go out under wrong terms.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

from builder.files import read_bytes
from builder.pinned import CutAt, SourceEntry, Stance, credit_fault
from builder.sources.scan import name_key, unread
from builder.untrusted import shown

CREDIT_COLUMNS = ("file", "author", "license", "url")
MORE_COLUMNS = ("category", "height_m", "stance", "cut_at")
MADE_COLUMNS = ("tool", "weights", "weights_license")  # by what a cut-out was made
_MAX_HEIGHT_M = 10_000
_DELIMITERS = ",;\t"  # spreadsheets write the others, by country or as "Unicode text"
_MAX_CREDITS_BYTES = 16 * 2**20
_MAX_PROBLEMS = 20  # of a file


class Credit(NamedTuple):
    """What a picture is credited with, what scenes go by, and what cut it out."""

    author: str = ""
    license: str = ""
    url: str = ""
    category: str = ""
    height_m: float = 0.0
    stance: Stance = "ground"
    cut_at: CutAt = ""
    tool: str = ""
    weights: str = ""
    weights_license: str = ""


@dataclass
class Credits:
    """The credits of a folder by file, and lines that are wrong: a path and what is wrong each.

    `lost` credits belong to a picture, or may; `unused` ones name a file that is not there.
    """

    by_file: dict[str, Credit] = field(default_factory=dict)
    lost: list[tuple[str, str]] = field(default_factory=list)
    unused: list[tuple[str, str]] = field(default_factory=list)


def read_credits(folder: Path, paths: Sequence[Path], files: Collection[str]) -> Credits:
    """Read the credits files of a source folder; each names files by their path from it.

    Args:
        paths: the credits files.
        files: what there is to credit, by path from the folder.
    """
    credits, root = Credits(), folder.resolve()
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if reason := unread(path, root):
            credits.lost.append((name, reason))
            continue
        try:
            text = _decoded(read_bytes(path, _MAX_CREDITS_BYTES))
            _Reader(name, files, credits).read(text)
        except UnicodeDecodeError:
            credits.lost.append((name, "is not in UTF-8; save it as `CSV UTF-8`"))
        except (OSError, ValueError, csv.Error) as error:
            credits.lost.append((name, f"cannot be read as CSV ({error})"))
    return credits


def _decoded(data: bytes) -> str:
    utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if utf_16 else "utf-8-sig")


def _rows(text: str) -> Iterator[list[str]]:
    """Split a text by the delimiter that gives its first line most of the columns."""
    first = text.split("\n", 1)[0]

    def known(delimiter: str) -> int:
        cells = next(csv.reader([first], delimiter=delimiter), [])
        return len({_column(cell) for cell in cells} & set(CREDIT_COLUMNS))

    return csv.reader(io.StringIO(text), delimiter=max(_DELIMITERS, key=known), strict=True)


def credit_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a credits file as it stands: its columns, and each line's cells by column.

    Raises:
        OSError, ValueError, csv.Error: it cannot be read.
    """
    rows = _rows(_decoded(read_bytes(path, _MAX_CREDITS_BYTES)))
    header = [_column(cell) for cell in next(rows, [])]
    return header, [dict(zip(header, row, strict=False)) for row in rows if any(row)]


def _column(cell: str) -> str:
    return cell.strip().lower().replace("licence", "license")


def _more(cells: dict[str, str]) -> tuple[dict[str, Any], str]:
    """Read what scenes go by; return the values that are given, and what is wrong with one."""
    values: dict[str, Any] = {name: text for name, text in cells.items() if text}
    for name in ("category", *MADE_COLUMNS):
        if fault := credit_fault(cells[name]):
            return {}, f"{fault} ({name})"
    for name, choices in (("stance", ("ground", "free")), ("cut_at", get_args(CutAt)[1:])):
        if values.get(name, choices[0]) not in choices:
            return {}, f"has {name} {shown(values[name])}; it must be one of {', '.join(choices)}"
    if "height_m" in values:
        try:
            values["height_m"] = float(values["height_m"].replace(",", "."))
            fits = 0 < values["height_m"] <= _MAX_HEIGHT_M
        except ValueError:
            fits = False
        if not fits:
            return {}, f"has height_m {shown(cells['height_m'])}; it must be a height in metres"
    return values, ""


class _Reader:
    """Reads one credits file into what was read before."""

    def __init__(self, name: str, files: Collection[str], credits: Credits) -> None:
        self._name, self._credits = name, credits
        self._folder = name.rpartition("/")[0]
        self._files = set(files)
        counts = Counter(map(name_key, files))
        self._by_key = {key: file for file in files if counts[key := name_key(file)] == 1}

    def read(self, text: str) -> None:
        """Read all rows; the first wrong ones are reported, of the rest how many they are."""
        named = re.match(r"sep=.\r?\n", text)  # by Excel, above the header
        rows = _rows(text[named.end() :] if named else text)
        header = [_column(cell) for cell in next(rows, [])]
        if missing := [column for column in CREDIT_COLUMNS if column not in header]:
            reason = f"has no column {', '.join(missing)}; its first line must name all of "
            self._credits.lost.append((self._name, reason + ", ".join(CREDIT_COLUMNS)))
            return
        n_wrong: Counter[bool] = Counter()
        for line, row in enumerate(rows, start=3 if named else 2):
            if not any(cell.strip() for cell in row):
                continue
            reason, is_lost = self._take(dict(zip(header, row, strict=False)), row, len(header))
            if reason:
                n_wrong[is_lost] += 1
                if n_wrong[is_lost] <= _MAX_PROBLEMS:
                    self._list(is_lost).append((self._name, f"line {line} {reason}"))
        for is_lost, count in n_wrong.items():
            if (more := count - _MAX_PROBLEMS) > 0:
                reason = f"and {more} more lines of it are wrong"
                self._list(is_lost).append((self._name, reason))

    def _list(self, is_lost: bool) -> list[tuple[str, str]]:
        return self._credits.lost if is_lost else self._credits.unused

    def _take(self, cells: dict[str, str], row: list[str], n_columns: int) -> tuple[str, bool]:
        """Keep the credit of a row; return what is wrong with it, and whether that loses it."""
        if len(row) != n_columns:
            return f"has {len(row)} cells, not {n_columns}", True
        file = self._find(cells["file"])
        texts = [cells[column].strip() for column in CREDIT_COLUMNS[1:]]
        if file is None:
            return f"names {shown(cells['file'].strip())}, which is not there", False
        if file in self._credits.by_file:
            return f"names {shown(file)} a second time", True
        if fault := next(filter(None, map(credit_fault, texts)), ""):
            return fault, True
        columns = (*MORE_COLUMNS, *MADE_COLUMNS)
        more, fault = _more({name: " ".join(cells.get(name, "").split()) for name in columns})
        if not fault:
            self._credits.by_file[file] = Credit(*texts, **more)  # type: ignore[arg-type]
        return fault, True

    def _find(self, named: str) -> str | None:
        """Return the file that a cell means; names may begin or end with spaces.

        Or with `./`, as `find` lists files; Windows writes backslashes.
        """
        start = f"{self._folder}/" if self._folder else ""
        plain = PurePosixPath(named.strip().replace("\\", "/")).as_posix()
        meant = [start + text for text in (named, named.strip(), plain)]
        exact = next((text for text in meant if text in self._files), None)
        return exact or next(filter(None, (self._by_key.get(name_key(m)) for m in meant)), None)


def uncredited(entries: Sequence[SourceEntry]) -> list[str]:
    """Return the ids of sources without author or license."""
    return [e.id for e in entries if not (e.author and e.license)]


def license_counts(entries: Sequence[SourceEntry]) -> dict[str, int]:
    """Return how many sources have each license, the most frequent first."""
    return dict(Counter(e.license for e in entries if e.license).most_common())
