"""Rooms import only rooms above them, and wings by their names; importing is light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Top to bottom: a room imports only rooms that stand before it. A wing is a folder of rooms; rooms
# of others know it by what its `__init__` names.
ROOMS = (
    "errors",
    "untrusted",
    "console",
    "hub",
    "remote",
    "files",
    "model_folder",
    "pictures",
    "typed",
    "recipe",
    "ladder",
    "caches",
    "pinned",
    "schema",
    "footer",
    "tables",
    "sources.scan",
    "sources.credits",
    "sources.samples",
    "sources.colour",
    "sources.decode",
    "sources.fringe",
    "sources.ground",
    "sources.backdrop",
    "sources.companions",
    "sources.relief",
    "sources.prepare",
    "sources.licenses",
    "sources.stored",
    "record.plan",
    "record.scene",
    "record.board",
    "record.composition",
    "record.compose",
    "record.stage",
    "record.stats",
    "record.encoding",
    "record.spliced",
    "record.canvas",
    "record.appearance",
    "record.looks",
    "record.render",
    "record.encoder",
    "layout",
    "depth.densedepth",
    "depth.backends",
    "depth.models",
    "depth.choice",
    "depth.estimator",
    "depth.precision",
    "cutout.shapes",
    "cutout.sweep",
    "cutout.objects",
    "cutout.key",
    "cutout.edge",
    "cutout.models",
    "cutout.by_rembg",
    "cutout.cutter",
    "cutout.credits",
    "cutout.notes",
    "cutout.depth",
    "cutout.report",
    "cutout.folder",
    "cutout.command",
    "build.machine",
    "build.options",
    "build.shards",
    "build.leases",
    "build.backdrops",
    "build.project",
    "build.work",
    "build.ledger",
    "build.worker",
    "build.crew",
    "build.local",
    "build.on_ray",
    "build.engine",
    "build.estimate",
    "build.finish",
    "batches",
    "streaming",
    "densedepth",
    "release.card",
    "release.ground_sheet",
    "release.preview",
    "release.access",
    "release.shelf",
    "release.browse",
    "release.record_check",
    "release.verify",
    "release.publish",
    "exports.shapes",
    "exports.records",
    "exports.coco",
    "exports.yolo",
    "exports.voc",
    "exports.webdataset",
    "exports.hf",
    "exports.run",
    "finetune.loop",
    "finetune.settings",
    "finetune.card",
    "finetune.pairs",
    "finetune.tuning",
    "finetune.command",
    "fgbg_dataset",
    "cli",
)
# What a room may import when it is itself imported; all else only inside functions.
HEAVY = ("torch", "transformers", "ray", "datasets", "pyarrow", "huggingface_hub", "jinja2")
LIGHT_ROOMS = ROOMS[: ROOMS.index("layout") + 1]
WINGS = tuple(dict.fromkeys(room.split(".")[0] for room in ROOMS if "." in room))


def room_of(module: str) -> str | None:
    """The room or wing that a module is, or lies in; None for the package itself."""
    parts = module.split(".")
    if parts[0] == "fgbg_dataset":
        return parts[0]
    if parts[0] != "builder" or parts[1:] in ([], ["__init__"], ["__main__"]):
        return None
    depth = 2 if parts[1] in WINGS and parts[2:] not in ([], ["__init__"]) else 1
    return ".".join(parts[1 : 1 + depth])


def modules() -> dict[str, Path]:
    """Every module of the product, by its dotted name."""
    found = {"fgbg_dataset": ROOT / "fgbg_dataset.py"}
    for path in sorted((ROOT / "builder").rglob("*.py")):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = path
    return found


def room_files() -> dict[str, list[Path]]:
    """Room name -> its files; some rooms are folders. Wings' `__init__` are no rooms."""
    rooms: dict[str, list[Path]] = {}
    for module, path in modules().items():
        if (room := room_of(module)) is not None and room not in WINGS:
            rooms.setdefault(room, []).append(path)
    return rooms


def imported(source: str, top_level_only: bool = False) -> set[str]:
    """Dotted names of all that some source text imports, relative imports left out."""
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


@cache
def names_of(wing: str) -> set[str]:
    """What a wing's `__init__` names."""
    source = modules()[f"builder.{wing}.__init__"].read_text(encoding="utf-8")
    return {name.rpartition(".")[2] for name in imported(source)}


def module_of(name: str) -> str:
    """The module that a dotted name is, or is in; a wing's own names come before its rooms'."""
    known = modules()
    parent, _, last = name.rpartition(".")
    if parent in {f"builder.{wing}" for wing in WINGS} and last in names_of(parent.split(".")[1]):
        return parent
    while name not in known and f"{name}.__init__" not in known and "." in name:
        name = name.rpartition(".")[0]
    return name


def rooms_in(names: set[str]) -> set[str]:
    """The rooms and wings among imported names."""
    return {room for name in names if (room := room_of(module_of(name))) is not None}


def faults(room: str, names: set[str]) -> set[str]:
    """Those of the rooms and wings imported by a room that it may not import."""
    above, own = ROOMS[: ROOMS.index(room)], room.split(".")[0]
    fine = {room, *(other for other in above if other.split(".")[0] in (other, own))}
    fine |= {wing for wing in WINGS if all(r in above for r in ROOMS if r.split(".")[0] == wing)}
    # DenseDepth is a package of its own, laid out as Transformers' models are.
    fine |= {"depth.densedepth"} & set(above)
    return rooms_in(names) - fine


def test_every_room_is_in_the_list() -> None:
    assert set(room_files()) == set(ROOMS)
    assert len(set(ROOMS)) == len(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_above_it_and_wings_by_their_names(room: str) -> None:
    for path in room_files()[room]:
        below = faults(room, imported(path.read_text(encoding="utf-8")))
        assert not below, f"{path.name} imports {sorted(below)}"


def test_the_check_would_notice_a_room_below() -> None:
    names = imported("def f():\n    from builder.build.shards import x\n    import builder.cli\n")
    assert rooms_in(names) == {"build.shards", "cli"}
    assert faults("build.engine", names) == {"cli"}
    assert faults("build.leases", {"builder.build.work.Ledger"}) == {"build.work"}
    assert faults("batches", {"builder.build.shards.read_commit"}) == {
        "build.shards"
    }  # by its wing
    assert faults("batches", {"builder.build.Project", "builder.errors"}) == set()
    assert faults("record.plan", {"builder.depth.Device", "builder.__version__"}) == {"depth"}
    assert faults("build.work", {"builder.build.Project"}) == {"build"}  # inside it by the room
    source = "if TYPE_CHECKING:\n    from builder.depth.estimator import D"
    assert rooms_in(imported(source)) == {"depth.estimator"}


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_names_what_others_use_of_it_and_nothing_else(wing: str) -> None:
    init = modules()[f"builder.{wing}.__init__"].read_text(encoding="utf-8")
    assert all(name.startswith(f"builder.{wing}.") for name in imported(init))
    others = [path for module, path in modules().items() if f".{wing}." not in module]
    for folder in ("factory", "examples", "benchmarks"):
        others += (ROOT / folder).rglob("*.py")
    used = {
        name.rpartition(".")[2]
        for path in others
        for name in imported(path.read_text(encoding="utf-8"))
        if name.rpartition(".")[0] == f"builder.{wing}"
    }
    assert names_of(wing) == used


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_upper_rooms_import_heavy_libraries_only_when_used(room: str) -> None:
    (path,) = room_files()[room]
    names = imported(path.read_text(encoding="utf-8"), top_level_only=True)
    assert not {name.split(".")[0] for name in names} & set(HEAVY)


def test_plan_and_composition_open_nothing_and_read_no_clock() -> None:
    for room in ("record.plan", "record.composition"):
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


@pytest.mark.parametrize("module", ["builder.cli", "fgbg_dataset"])
def test_the_front_doors_load_neither_torch_nor_ray_nor_transformers(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert "builder" in loaded
    assert not loaded & {"torch", "ray", "transformers", "tensorflow"}


def test_the_check_would_notice_torch() -> None:
    assert "torch" in loaded_by("import builder, torch")
    assert "datasets" in loaded_by("import builder.schema; builder.schema.features(())")


def test_every_error_a_user_can_meet_is_exported() -> None:
    import fgbg_dataset
    from builder import errors

    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.FgbgError)
    }
    assert classes <= set(fgbg_dataset.__all__)


def test_all_names_what_there_is_and_nothing_private() -> None:
    import fgbg_dataset

    names = fgbg_dataset.__all__
    assert names == sorted(names)
    assert all(not name.startswith("_") and hasattr(fgbg_dataset, name) for name in names)


def test_no_test_imports_another() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        names = imported(path.read_text(encoding="utf-8"))
        others = {name for name in names if re.search(r"(^|\.)(test_|conftest)", name)}
        assert not others, f"{path.name} imports {sorted(others)}"


def test_pictures_are_opened_in_one_place() -> None:
    """Where formats are named, so that no cell of a set reaches Ghostscript or another program."""
    opening: dict[str, set[str]] = {"open": set(), "jpeg": set()}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")}
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            module = getattr(node, "module", None)
            if re.search(r"(^|\.)(Image\.open|ImageFile\.Parser)$", text) or (
                module in ("PIL.Image", "PIL.ImageFile") and names & {"open", "Parser"}
            ):
                opening["open"].add(name)
            if text.endswith(".decode_jpeg") or (module == "simplejpeg" and names):
                opening["jpeg"].add(name)
    assert opening == {"open": {"builder.pictures"}, "jpeg": {"builder.record.encoding"}}
