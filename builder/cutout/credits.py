"""The credits of cut-outs: those of their photographs carried over, and what made them."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from builder.errors import BadSourcesError
from builder.files import write_bytes
from builder.pinned import credit_fault
from builder.sources import CREDITS_FILE, Credit, credit_rows

COLUMNS = (
    *("file", "author", "license", "url", "tool", "weights", "weights_license"),
    *("category", "height_m", "stance", "cut_at"),
)


_FORMULA = "=+-@\t\r"  # how a cell begins that a spreadsheet runs


class Made(NamedTuple):
    """A cut-out, its photograph's credit, the side it is cut off at and what made it.

    `is_new`: it was made now, so that what is said of an earlier one no longer holds. `label` is
    the class that a network gives it, the category of one that has none.
    """

    file: str
    credit: Credit
    cut_at: str
    tool: str
    is_new: bool
    weights: str = ""
    weights_license: str = ""
    label: str = ""


def check_credits(out: Path) -> None:
    """Refuse a folder whose credits could not be carried on.

    Raises:
        BadSourcesError: its credits file cannot be read.
    """
    _rows(out)


def _rows(out: Path) -> tuple[list[str], list[dict[str, str]]]:
    path = out / CREDITS_FILE
    if not path.exists():
        return [], []
    try:
        header, rows = credit_rows(path)
    except (OSError, ValueError, csv.Error) as error:
        reason = f"cannot be read as CSV ({error})"
        raise BadSourcesError([(str(path), reason)], skippable=False) from None
    if "file" not in header:
        reason = "has no column file; repair it, or move it away"
        raise BadSourcesError([(str(path), reason)], skippable=False)
    if any("file" not in row for row in rows):
        reason = "has a line that ends before its column file; repair it, or move it away"
        raise BadSourcesError([(str(path), reason)], skippable=False)
    for row in rows:
        row["file"] = PurePosixPath(row["file"]).as_posix()  # `./a.png` is `a.png`
    return header, rows


def _cells(row: dict[str, str]) -> dict[str, str]:
    """Return a row as it is written: no name of a file is a formula to a spreadsheet."""
    file = row["file"]
    return {**row, "file": f"./{file}" if file.startswith(tuple(_FORMULA)) else file}


def write_credits(out: Path, made: Sequence[Made], deleted: Collection[str] = ()) -> None:
    """Write the credits of cut-outs; what a person wrote there beside ours is kept.

    A photograph's author, license, url, category, height and stance win where it has them. Of files
    that were deleted nothing is said any more.
    """
    header, rows = _rows(out)
    columns = [*COLUMNS, *(name for name in header if name not in COLUMNS)]
    by_file = {row["file"]: row for row in rows if row["file"] not in deleted}
    for one in made:
        row = by_file.setdefault(one.file, {"file": one.file})
        credit = one.credit
        stated = {
            "author": credit.author,
            "license": credit.license,
            "url": credit.url,
            "category": credit.category,
            "height_m": f"{credit.height_m:g}" if credit.height_m else "",
            "stance": "free" if credit.stance == "free" else "",
        }
        row.update({name: text for name, text in stated.items() if text})
        if one.is_new or "tool" not in row:
            row["tool"], row["cut_at"] = one.tool, credit.cut_at or one.cut_at
            # What a model's folder says of itself is no formula either.
            for column in ("weights", "weights_license"):
                row[column] = getattr(one, column).lstrip(_FORMULA)
            if not credit_fault(one.label):
                row["category"] = row.get("category") or one.label.lstrip(_FORMULA)
            row["stance"] = row.get("stance") or "ground"
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(by_file[name]) for name in sorted(by_file))
    content = text.getvalue().encode()
    path = out / CREDITS_FILE
    if not path.exists() or path.read_bytes() != content:
        write_bytes(path, content)
