"""Write the parts of README and docs that repeat the code: columns, commands, options, rooms.

    python -m docs.generate

Each part stands between `<!-- NAME -->` and `<!-- /NAME -->`; tests/unit/test_docs.py fails where a
page differs from what the code says.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from builder.cli import main
from builder.recipe import LOOK_FIELDS, layout_default, meaning
from builder.schema import (
    BACKDROP_COLUMNS,
    COLUMNS,
    FOREGROUND_COLUMNS,
    LADDER_COLUMNS,
    LOOK_COLUMNS,
    OBJECT_LOOKS,
    OBJECTS,
    RELIEF_COLUMNS,
    SCENE_COLUMNS,
    SOURCE_COLUMNS,
    Column,
)
from tests.unit.test_layers import ROOMS, room_files

ROOT = Path(__file__).parents[1]
MANY = 6  # options shared with build, from which on they are only named
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return a Markdown table; a bar inside a cell is escaped."""
    cells = [[text.replace("|", "\\|") for text in row] for row in rows]
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in cells),
    ]


def columns(of: tuple[Column, ...]) -> list[str]:
    """Return one row for each column."""
    rows = [(f"`{c.name}`", _feature(c.feature), c.shape, c.unit, c.meaning) for c in of]
    return table(("column", "feature", "shape", "unit", "meaning"), rows)


def _feature(text: str) -> str:
    dtype, _, detail = text.partition(":")
    dtype = "list of Image" if dtype == "Images" else dtype
    return f"{dtype}[{detail}]" if detail else dtype


def scene_columns() -> list[str]:
    """Return one row for each column of scenes beside those of pairs, and each field of objects."""
    rows = [(f"`{c.name}`", _feature(c.feature), c.unit, c.meaning) for c in SCENE_COLUMNS]
    rows += [
        (f"`objects.{name}`", _feature(kind), *rest) for name, (kind, *rest) in OBJECTS.items()
    ]
    return table(("column", "feature", "unit", "meaning"), rows)


def looks() -> list[str]:
    """Return one row for each choice of appearance: what it does, and what says so in a record."""
    said: dict[str, list[str]] = {name: [] for name in LOOK_FIELDS}
    columns = [(names, column.name) for names, column in LOOK_COLUMNS]
    columns += [(names, f"objects.{name}") for names, name, _ in OBJECT_LOOKS]
    for names, column in columns:
        for name in names:
            said[name].append(f"`{column}`")
    rows = [
        (
            f"`--{name.replace('_', '-')}`",
            meaning(name),
            f"`{layout_default(name, 'scenes')}`",
            ", ".join(said[name]),
        )
        for name in LOOK_FIELDS
    ]
    return table(("option", "what it does", "in scenes", "column that says it"), rows)


def commands() -> list[str]:
    """Return every command with its options, in the order of `fgbg --help`.

    Options that a command shares with `fgbg build` are described there and only named elsewhere.
    """
    lines: list[str] = []
    context = click.Context(main, info_name="fgbg")
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        if not command.hidden:
            lines += [f"## fgbg {name}", "", *_command(name, command, context), ""]
    return lines[:-1]


def _command(name: str, command: click.Command, parent: click.Context) -> list[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(piece for piece in command.collect_usage_pieces(context))
    rows = _options(command, context)
    shared: list[str] = []
    if name != "build":
        of_build = set(_options(main.commands["build"], parent))
        shared = [flags for flags, text in rows if (flags, text) in of_build]
    if len(shared) < MANY:
        shared = []
    own = [row for row in rows if row[0] not in shared]
    lines = ["```", f"fgbg {name} {usage}", "```", "", inspect.cleandoc(command.help or "")]
    if own:
        lines += ["", *table(("option", "what it does"), own)]
    if shared:
        lines += ["", f"As for `fgbg build`: {', '.join(map(_name, shared))}."]
    return lines


def _name(flags: str) -> str:
    return f"`{re.findall('--[a-z-]+', flags)[0]}`"


def _options(command: click.Command, context: click.Context) -> list[tuple[str, str]]:
    """Return flags and help of every option that is not hidden."""
    records = [
        option.get_help_record(context)
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
    ]
    return [
        (
            f"`{flags.replace(' RANGE', '')}`",
            " ".join(re.sub(r"\[x[<>].*?\]|; x>=\d+", "", text).split()),
        )
        for flags, text in filter(None, records)
    ]


def rooms() -> list[str]:
    """Return the wings and their rooms, each with the first line of its docstring."""
    files = room_files()
    width = max(len(room.rpartition(".")[2]) for room in ROOMS) + 3
    lines, wing = [], ""
    for room in ROOMS:
        parent, _, name = room.rpartition(".")
        if parent != wing and parent:
            lines.append(f"{parent + '/':<{width}}{_about(ROOT / 'builder' / parent)}")
        wing = parent
        path = next((p for p in files[room] if p.name == "__init__.py"), files[room][0])
        lines.append(f"{'  ' * bool(parent) + name:<{width}}{_about(path)}")
    return ["```", *lines, "```"]


def _about(path: Path) -> str:
    source = path / "__init__.py" if path.is_dir() else path
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


PARTS: dict[str, Any] = {
    "columns": lambda: columns(COLUMNS),
    "source columns": lambda: columns(SOURCE_COLUMNS),
    "scene columns": scene_columns,
    "looks": looks,
    "foreground columns": lambda: columns((*FOREGROUND_COLUMNS, *LADDER_COLUMNS, *RELIEF_COLUMNS)),
    "backdrop columns": lambda: columns(BACKDROP_COLUMNS),
    "commands": commands,
    "rooms": rooms,
}


def parts_of(text: str) -> Iterator[str]:
    """Yield the names of the parts that a page holds."""
    yield from (name for name in PARTS if f"<!-- {name} -->" in text)


def written(text: str) -> str:
    """Return a page with all its parts as the code has them now."""
    for name in parts_of(text):
        part = "\n".join(PARTS[name]())
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, part=part: f"{found[1]}{part}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
