"""Built sets whose rows were edited, as the builder writes them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builder.layout import state_files
from builder.tables import write_table

Rows = list[dict[str, Any]]
Edit = Callable[[Rows], object]


def change(path: Path, how: Edit) -> Rows:
    """Rewrite a Parquet file with changed rows, as the builder writes them; return those."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    how(rows)
    write_table(path, "parquet", table.schema, rows)
    return rows


def edited(built: Path, tmp_path: Path, *edits: tuple[str, Edit]) -> Path:
    """Return a copy of a set in which rows were edited, all else being stated to fit.

    Args:
        edits: the folder of a Parquet file, the first of its folder, and how its rows change.
    """
    out = Path(shutil.copytree(built, tmp_path / "edited"))
    for folder, how in edits:
        change(min((out / folder).glob("*.parquet")), how)
    state_files(out)
    return out
