"""Rooms import only rooms above them; `import builder` is light and exports what it says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import builder

ROOT = Path(__file__).parents[2]

# Top to bottom: a room imports only rooms that stand before it. Rooms not yet built may stand here.
ROOMS = (
    "errors",
    "untrusted",
    "store",
    "files",
    "resources",
    "recipe",
    "schema",
    "sources",
    "licences",
    "plan",
    "stats",
    "layout",
    "composition",
    "densedepth",
    "backends",
    "model_folder",
    "depth",
    "render",
    "encoding",
    "reading",
    "shards",
    "claims",
    "project",
    "work",
    "streaming",
    "engine",
    "ray_engine",
    "card",
    "preview",
    "finished",
    "record_check",
    "verify",
    "publish",
    "fgbg_dataset",
    "forecast",
    "cli",
)
# What a room may import when it is itself imported; all else only inside functions.
HEAVY = ("torch", "transformers", "ray", "datasets", "pyarrow", "huggingface_hub", "jinja2")
LIGHT_ROOMS = (
    "errors",
    "untrusted",
    "store",
    "recipe",
    "schema",
    "sources",
    "licences",
    "plan",
    "composition",
    "stats",
    "encoding",
)


def room_files() -> dict[str, list[Path]]:
    """Room name -> its files; densedepth is a folder, fgbg_dataset lies beside `builder`."""
    rooms = {"fgbg_dataset": [ROOT / "fgbg_dataset.py"]}
    for path in sorted((ROOT / "builder").rglob("*.py")):
        name = path.relative_to(ROOT / "builder").parts[0].removesuffix(".py")
        rooms.setdefault(name, []).append(path)
    return rooms


def imported(source: str, top_level_only: bool = False) -> set[str]:
    """Dotted names of all modules that some source text imports, relative imports left out."""
    tree = ast.parse(source)
    found = set()
    nodes = ast.walk(tree)
    if top_level_only:
        nodes = iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_in(names: set[str]) -> set[str]:
    """The rooms among imported names."""
    rooms = {name.split(".")[1] for name in names if name.startswith("builder.")}
    rooms |= {"fgbg_dataset" for name in names if name.split(".")[0] == "fgbg_dataset"}
    return {room for room in rooms if room in room_files()}


def test_every_room_is_in_the_list() -> None:
    assert set(room_files()) - {"__init__", "__main__"} <= set(ROOMS)
    assert len(set(ROOMS)) == len(ROOMS)


@pytest.mark.parametrize("room", [room for room in ROOMS if room in room_files()])
def test_a_room_imports_only_rooms_above_it(room: str) -> None:
    above = set(ROOMS[: ROOMS.index(room)])
    for path in room_files()[room]:
        below = rooms_in(imported(path.read_text(encoding="utf-8"))) - above - {room}
        assert not below, f"{path.name} imports {sorted(below)}"


def test_the_check_would_notice_a_room_below() -> None:
    source = "def f():\n    from builder.shards import x\n    import builder.cli\n"
    assert rooms_in(imported(source)) == {"shards"} | ({"cli"} & set(room_files()))
    assert rooms_in(imported("from builder import plan, __version__")) == {"plan"}
    assert rooms_in(imported("if TYPE_CHECKING:\n    from builder.depth import D")) == {"depth"}


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_upper_rooms_import_heavy_libraries_only_when_used(room: str) -> None:
    (path,) = room_files()[room]
    names = imported(path.read_text(encoding="utf-8"), top_level_only=True)
    assert not {name.split(".")[0] for name in names} & set(HEAVY)


def test_plan_and_composition_open_nothing_and_read_no_clock() -> None:
    for room in ("plan", "composition"):
        (path,) = room_files()[room]
        source = path.read_text(encoding="utf-8")
        roots = {name.split(".")[0] for name in imported(source)}
        assert not roots & {"os", "io", "pathlib", "time", "datetime", "random", "secrets", "PIL"}
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"open", "print", "input", "exec", "eval"}


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in a fresh Python after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_import_builder_loads_neither_torch_nor_ray_nor_transformers() -> None:
    loaded = loaded_by("import builder")
    assert "builder" in loaded
    assert not loaded & {"torch", "ray", "transformers", "datasets", "pyarrow", "tensorflow"}


def test_the_check_would_notice_torch() -> None:
    assert "torch" in loaded_by("import builder, torch")
    assert "datasets" in loaded_by("import builder.schema; builder.schema.features(())")


def test_all_is_exactly_what_builder_exports() -> None:
    assert builder.__all__ == sorted(builder.__all__)
    source = (ROOT / "builder" / "__init__.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    public = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    } | {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id != "__all__"
    }
    assert set(builder.__all__) == public
    for name in builder.__all__:
        assert getattr(builder, name) is not None


def test_every_error_a_user_can_meet_is_exported() -> None:
    from builder import errors

    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.FgbgError)
    }
    assert classes <= set(builder.__all__)
