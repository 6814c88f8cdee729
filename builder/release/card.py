"""Write the dataset card, README.md, of a finished build from what its folder holds."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.errors import CardError, summarized
from builder.files import read_text, sweep, write_text
from builder.layout import (
    ARROW_PREFIX,
    CARD_FILE,
    MAX_BYTES,
    SOURCES_FILE,
    TABLE_FILE,
    Figures,
    built_format,
    data_glob,
    read_recipe,
    read_statistics,
)
from builder.pinned import PinnedRecipe, SourceEntry
from builder.recipe import DEMO_DEPTH_MODEL, Recipe, meaning
from builder.record import Plan, Statistics, Summary, Tally
from builder.schema import Column, features, object_fields, preview_columns, record_columns
from builder.sources import (
    Kind,
    check_license_id,
    license_counts,
    read_sources,
    stored_columns,
    uncredited,
)
from builder.tables import FileFormat, Table
from builder.untrusted import Unreadable, one_line, printable, refusing, shown

if TYPE_CHECKING:
    from datasets import DatasetInfo

# Beside the package, in a checkout as in an installation.
TEMPLATE = Path(__file__).parents[2] / "dataset_card.md"
_MAX_CREDITS = 200
_MAX_TOOLS = 20

RECORDS_CONFIG = "default"
_FOLDERS = ("foregrounds/", "backgrounds/", "preview/")

# Keys of the card's YAML that a build decides; all others a person may set and keeps.
_OWNED = ("annotations_creators", "configs", "dataset_info", "size_categories", "task_categories")


def write_card(
    out: Path,
    *,
    license: str | None = None,
    title: str | None = None,
    name: str | None = None,
) -> Path:
    """Write README.md of a finished build and return its path.

    Args:
        out: the built folder; nothing else is read.
        license: Hub license identifier of the set (`cc-by-4.0`). None keeps what the card says.
        title: heading of the card; None keeps what the card says, or takes the folder's name.
        name: the folder's name, where it is still to be given it.

    Raises:
        NotABuildError: `out` is not a finished build.
        CardError: the card there cannot be read, its metadata is not YAML, or the license is no
            identifier.
    """
    path = out / CARD_FILE
    sweep(path)
    write_text(path, card_text(out, license=license, title=title, name=name))
    return path


def card_text(
    out: Path,
    *,
    old: str | None = None,
    license: str | None = None,
    title: str | None = None,
    name: str | None = None,
    location: str | None = None,
    config: str | None = None,
    table: Path | None = None,
) -> str:
    """Return the card of a finished build: of an untouched card that fits it, the card itself.

    Of the old card everything is kept that a build does not decide: other keys of its YAML, other
    configs, and all text outside of the marked blocks.

    Args:
        old: the card so far; None takes README.md of `out`, if there is one.
        license: as for `write_card`.
        title, name: as for `write_card`.
        location: what `load_dataset` is given; None keeps what the card says, or takes the name
            of the folder.
        config: name of the records' config; None keeps what the card says, or takes `default`.
        table: the file of the config `preview`; None takes that of `out`.

    Raises:
        NotABuildError: `out` is not a finished build.
        CardError: the old card cannot be read, its metadata is not YAML, or the card would be
            too large to be read again.
    """
    import jinja2

    pinned = read_recipe(out).public()
    splits = read_statistics(out, Plan(pinned))
    metadata, text = _halves(read_card(out / CARD_FILE) if old is None else old)
    nodes, keys = _read_metadata(metadata)
    kept = [(key, value) for key, value in nodes if key.value not in _OWNED]
    if license:
        check_license_id(license)
    config = config or _records_config(keys)
    values = _yaml(out, pinned, splits, config, table or out / TABLE_FILE)
    ours = {entry["config_name"] for entry in values["configs"]}
    for key in ("configs", "dataset_info"):
        values[key] += _foreign(keys, key, ours)
    if license and license != keys.get("license"):
        kept = [(key, value) for key, value in kept if key.value != "license"]
        values["license"] = license
    title = printable(title) if title else None
    variables = _variables(out, pinned, splits)
    name = name or out.absolute().name
    variables["title"] = title or printable(_cell(name))
    variables["location"] = _literal(location or _location(text) or name)
    variables["config"] = config
    _, _, template = TEMPLATE.read_text(encoding="utf-8").split("---\n", 2)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)  # noqa: S701 - Markdown
    body = _merged(text, environment.from_string(template).render(**variables))
    card = f"---\n{_yaml_text(values, kept)}---\n\n{_titled(body, title)}"
    _check_size(card, location or out)
    return card


def _titled(body: str, title: str | None) -> str:
    """Return the text of a card with another heading; None keeps the one it has."""
    if not title:
        return body
    start, stop = _heading(body)
    gap = "" if stop else "\n\n"
    return f"{body[:start]}# {title}{gap}{body[stop:]}"


def _check_size(card: str, of: object) -> None:
    if (size_bytes := len(card.encode())) > MAX_BYTES[CARD_FILE]:
        raise CardError(
            f"{CARD_FILE} of {of} would have {size_bytes:,} bytes, and at most "
            f"{MAX_BYTES[CARD_FILE]:,} are read; shorten what was written into it."
        )


def read_card(path: Path) -> str:
    """Return the text of a card; of one that is not there, none.

    Raises:
        CardError: it cannot be read, or is not UTF-8, or larger than any card.
    """
    try:
        return read_text(path, MAX_BYTES[CARD_FILE])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise CardError(f"{path} cannot be read: {one_line(error)}.") from None


# Everything between the two is written by us and replaced as a whole. No other marker stands
# inside, so that one that lost its partner swallows nothing; a person may speak of them in a line.
_BLOCK = (
    r"^<!-- fgbg:(?P<name>\w+) begin\b[^>\n]*-->$(?:(?!^<!-- fgbg:).)*"
    r"^<!-- fgbg:(?P=name) end -->$"
)
# Where Markdown reads no heading (CommonMark 4.5, 4.6) and a mark is only spoken of: code, HTML.
_FENCE = r"^ {0,3}(?P<fence>`{3,16}(?=[^`\n]*$)|~{3,16}(?!~))"
_ENDS = r"(?=^<!-- fgbg:)|\Z"  # of what has no end of its own
_HTML = (
    rf"^ {{0,3}}(?:<!--.*?(?:-->|{_ENDS})"
    rf"|<(?P<tag>pre|script|style|textarea)\b.*?(?:</(?P=tag)>|{_ENDS})"
    r"|</?[A-Za-z][\w-]*(?:[ \t/][^\n]*)?>[ \t]*$(?:\n[ \t]*[^\s<][^\n]*)*)"
)
_HEADING = r"^ {0,3}#[ \t][^\n]*$|^(?![ \t>#-])[^\n]+\n {0,3}=+[ \t]*$"
_PART = re.compile(f"{_BLOCK}|{_FENCE}|{_HTML}|(?P<heading>{_HEADING})", re.DOTALL | re.MULTILINE)
_WHOLE = re.compile(_BLOCK, re.DOTALL | re.MULTILINE)
_MARK = re.compile("^<!-- fgbg:", re.MULTILINE)
_WEB_ADDRESS = re.compile(r"https?://[^\s<>|`\\]+", re.ASCII)
_LOCATION = re.compile(r'load_dataset\(("(?:[^"\\\n]|\\.)+")')
_MAX_YAML_EVENTS, _MAX_YAML_DEPTH = 100_000, 40


def card_keys(card: str) -> dict[str, Any]:
    """Return the YAML keys of a card's text."""
    return card_parts(card)[0]


def records_config(card: str) -> str:
    """Return what a card calls the config of the records."""
    return _records_config(card_keys(card))


def card_parts(card: str) -> tuple[dict[str, Any], str]:
    """Return the YAML keys of a card, and the text below them.

    Raises:
        CardError: the metadata is not YAML, or is not written out.
    """
    metadata, text = _halves(card)
    return _read_metadata(metadata)[1], text


def _halves(card: str) -> tuple[str, str]:
    """Return the YAML at the top of a card, which may be missing, and the text below it."""
    card = card.removeprefix("\ufeff")
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", card, re.DOTALL | re.MULTILINE)
    metadata, text = (found[1], card[found.end() :]) if found else ("", card)
    return metadata, text.replace("\r\n", "\n")


def _read_metadata(text: str) -> tuple[list[tuple[Any, Any]], dict[str, Any]]:
    """Return the keys of a card's YAML as nodes, which are what was written, and as values.

    Raises:
        CardError: it is not YAML, or is not written out.
    """
    try:
        with refusing("is not YAML"):
            root, keys = _parsed(text)
            if not keys:
                return [], {}
            if not isinstance(keys, dict):
                raise Unreadable("holds no keys")
    except Unreadable as reason:
        raise CardError(f"the metadata at the top of {CARD_FILE} {reason}.") from None
    return root.value, keys


def _parsed(text: str) -> tuple[Any, Any]:
    """Parse YAML that stands for no more than is written: no aliases, no nesting without end.

    Returns:
        Its root node, None of an empty text, and what that stands for.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for number, event in enumerate(yaml.parse(text, loader)):
        if isinstance(event, yaml.AliasEvent):
            raise Unreadable(f"uses *{event.anchor}; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if number > _MAX_YAML_EVENTS or depth > _MAX_YAML_DEPTH:
            raise Unreadable("is longer, or nested more deeply, than that of any card")
    reader = loader(text)
    try:
        if (root := reader.get_single_node()) is None:
            return None, None
        _refuse_equal_keys(root)
        return root, reader.construct_document(root)
    finally:
        reader.dispose()


def _refuse_equal_keys(node: Any) -> None:
    """Of keys that stand there twice YAML takes the last, and a reader sees the first."""
    inner = [] if node.id == "scalar" else node.value
    if node.id == "mapping":
        keys = Counter(key.value for key, _ in inner if key.id == "scalar")
        if twice := [key for key, count in keys.items() if count > 1]:
            raise Unreadable(f"has the key {shown(twice[0])} twice")
        inner = [value for _, value in inner]
    for each in inner:
        _refuse_equal_keys(each)


def _yaml_text(values: dict[str, Any], kept: list[tuple[Any, Any]]) -> str:
    """Return the YAML of our values, with a person's keys, as nodes, in their places or below.

    Nodes, for `language: no` and `arxiv: 2401.10` are not what Python would write of their values.
    """
    import yaml
    from yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):  # type: ignore[misc] # untyped
        def ignore_aliases(self, _data: object) -> bool:
            return True

    root = Representer(default_flow_style=False, sort_keys=False).represent_data(values)
    theirs = {key.value: (key, value) for key, value in kept}
    root.value = [theirs.pop(key.value, (key, value)) for key, value in root.value]
    root.value += theirs.values()
    text: str = yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True)
    return text


def blocks_of(text: str) -> dict[str, str]:
    """Return the blocks of a card's text that are written by us, with their marks, by name."""
    return {block["name"]: block[0] for block in _parts(text) if block["name"]}


def tables_of(block: str) -> dict[tuple[str, str], tuple[int, dict[str, str]]]:
    """Return the rows of a block's tables, by their first two cells (the second if it is a kind).

    Returns:
        For each row the number of its line in the block, and its cells by the heading.
    """
    rows: dict[tuple[str, str], tuple[int, dict[str, str]]] = {}
    headings: list[str] = []
    for number, line in enumerate(block.splitlines()):
        if not line.startswith("|"):
            headings = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not headings:
            headings = ["license" if cell == "licence" else cell for cell in cells]  # as 0.1.0
        elif set(line) - set("|-: "):
            named = dict(zip(headings, cells, strict=False))
            rows[cells[0] if cells else "", named.get("kind", "")] = number, named
    return rows


def _heading(text: str) -> tuple[int, int]:
    """Return start and end of the first main heading outside of our blocks; (0, 0) without one."""
    return next((part.span() for part in _parts(text) if part["heading"]), (0, 0))


def _parts(text: str) -> Iterator[re.Match[str]]:
    """Give our blocks, as the group `name`, and main headings of a card, outside of code and HTML.

    A fence that is never closed is no code: it would swallow all blocks below it.
    """
    at, open_for_good = 0, set[str]()
    while part := _PART.search(text, at):
        at = part.end()
        fence = part["fence"]
        if fence is None:
            yield part
        elif fence not in open_for_good:
            close = re.compile(rf"^ {{0,3}}{fence}{fence[0]}*[ \t]*$", re.MULTILINE)
            if end := close.search(text, at):
                at = _lone_mark(text, at, end.start()) or end.end()
            else:
                open_for_good.add(fence)


def _lone_mark(text: str, start: int, stop: int) -> int | None:
    """Return where a mark without its partner stands between two places."""
    while mark := _MARK.search(text, start, stop):
        if not (block := _WHOLE.match(text, mark.start(), stop)):
            return mark.start()
        start = block.end()
    return None


def _location(text: str) -> str | None:
    """Return what `load_dataset` is given in our own block of a card's text."""
    used = _LOCATION.search(blocks_of(text).get("use", ""))
    try:
        return str(json.loads(used[1])) if used else None
    except ValueError:
        return None


def _literal(text: str) -> str:
    """Return a text as it stands between quotes in Python, and does no harm in Markdown."""
    quoted = printable(json.dumps(text, ensure_ascii=False)[1:-1])
    return re.sub("[`|<]", lambda found: f"\\u{ord(found[0]):04x}", quoted)


def _merged(old: str, new: str) -> str:
    """Return the old text with the blocks of the new one; those it lacks come at its end."""
    new = re.sub(r"\n{3,}", "\n\n", new).strip() + "\n"
    blocks, held = blocks_of(new), blocks_of(old)
    if not old.strip():
        return new
    if not held.keys() & blocks.keys():  # others wrote it: ours goes below, without its heading
        start, stop = _heading(new)
        return f"{old.strip()}\n\n{(new[:start] + new[stop:]).strip()}\n"
    text, at = "", 0
    for part in _parts(old):
        if part["name"]:
            text += old[at : part.start()] + blocks.get(part["name"], "")
            at = part.end()
    text += old[at:]
    lacking = [block for name, block in blocks.items() if name not in held]
    return "\n\n".join([text.strip(), *lacking]) + "\n"


def _records_config(keys: dict[str, Any]) -> str:
    """Return what a card calls the config of the records: that of just the files of our splits."""
    return _held_config(keys) or RECORDS_CONFIG


def _held_config(keys: dict[str, Any]) -> str | None:
    found = [entry for entry in entries_of(keys, "configs") if _is_records(entry)]
    found.sort(key=lambda entry: (not entry.get("default"), -len(entry["data_files"])))
    name = str(found[0].get("config_name", "")) if found else ""
    return name if re.fullmatch(r"\w[\w.-]*", name) else None


def _is_records(entry: dict[str, Any]) -> bool:
    files = entry.get("data_files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        return False
    formats: tuple[FileFormat, ...] = ("parquet", "arrow")
    return bool(files) and all(
        file.get("path") in [data_glob(str(file.get("split")), form) for form in formats]
        for file in files
    )


def _foreign(keys: dict[str, Any], key: str, ours: set[str]) -> list[dict[str, Any]]:
    """Return the entries of configs that others added: of other names than ours has, and had.

    Raises:
        CardError: one has the name of ours, and files that lie elsewhere.
    """
    held = [entry for entry in _entries(keys, key) if "config_name" in entry]
    ours = {*ours, _held_config(keys) or ""}
    others = [entry for entry in held if str(entry["config_name"]) not in ours]
    names = [entry.get("config_name") for entry in _entries(keys, "configs")]
    if key == "dataset_info":
        return [entry for entry in others if entry["config_name"] in names]
    for entry in held:
        if entry not in others and _lies_elsewhere(entry):
            raise CardError(
                f"{CARD_FILE} has a config {shown(entry['config_name'])} of files that are not of "
                "this set, and would lose it; give that config another name, or (fgbg push) the "
                "records' another --config."
            )
    # There is one default, and it is ours.
    return [{k: v for k, v in entry.items() if k != "default"} for entry in others]


def _lies_elsewhere(entry: dict[str, Any]) -> bool:
    """Whether a config names files, and none in the folders that are ours."""
    files = " ".join(str(entry[key]) for key in ("data_files", "data_dir") if entry.get(key))
    ours = "|".join(map(re.escape, ("data/", ARROW_PREFIX, *_FOLDERS)))
    return files != "" and not re.search(rf"(?<![\w/-])({ours})", files)


def _entries(keys: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = keys.get(key)
    return [e for e in (value if isinstance(value, list) else [value]) if isinstance(e, dict)]


def entries_of(keys: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the entries of `configs` or `dataset_info`; what is not an entry is left out."""
    return [e for e in _entries(keys, key) if isinstance(e.get("config_name", ""), str)]


def own_entries(keys: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """Return our own entries of `configs` or `dataset_info` by the name of their config."""
    ours = (_records_config(keys), *(folder[:-1] for folder in _FOLDERS))
    return {
        entry["config_name"]: entry
        for entry in entries_of(keys, key)
        if entry.get("config_name") in ours
    }


def _yaml(
    out: Path, pinned: PinnedRecipe, splits: dict[str, Figures], config: str, table: Path
) -> dict[str, Any]:
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    recipe, file_format = pinned.recipe, built_format(out)
    rows = {name: split.rows for name, split in splits.items()}
    sizes = {name: split.size_bytes for name, split in splits.items()}
    infos = {config: _info(config, record_columns(recipe, pinned.categories), rows, sizes)}
    for kind, entries in _kinds(pinned):
        path = out / kind / SOURCES_FILE
        singular: Kind = "foreground" if kind == "foregrounds" else "background"
        columns, size = stored_columns(path, singular, recipe), path.stat().st_size
        infos[kind] = _info(kind, columns, {"train": len(entries)}, {"train": size})
    with suppress(Unreadable):  # then verify says so
        preview = Table(table, "parquet")
        columns = preview_columns(recipe, pinned.categories, preview.schema.names)
        size = table.stat().st_size
        infos["preview"] = _info("preview", columns, {"train": preview.n_rows}, {"train": size})
    data = DatasetCardData(
        task_categories=["image-segmentation"] + (["depth-estimation"] if recipe.has_depth else []),
        size_categories=[_size_category(sum(rows.values()))],
        annotations_creators=["machine-generated"],
        tags=["synthetic", "compositing", "fgbg-dataset"],
    )
    DatasetInfosDict(infos).to_dataset_card_data(data)
    values: dict[str, Any] = data.to_dict()
    patterns = [{"split": n, "path": data_glob(n, file_format)} for n in splits]
    values["configs"] = [
        {"config_name": config, "data_files": patterns, "default": True},
        *(
            {"config_name": folder[:-1], "data_files": f"{folder}{SOURCES_FILE}"}
            for folder in _FOLDERS
        ),
    ]
    return values


def _info(
    config: str, columns: tuple[Column, ...], rows: dict[str, int], sizes: dict[str, int]
) -> DatasetInfo:
    from datasets import DatasetInfo, SplitDict, SplitInfo

    splits = [SplitInfo(name, sizes[name], number) for name, number in rows.items()]
    size = sum(sizes.values())
    return DatasetInfo(
        config_name=config,
        features=features(columns),
        splits=SplitDict({split.name: split for split in splits}),
        download_size=size,
        dataset_size=size,
    )


def _size_category(n: int) -> str:
    """Return the Hub's name for a number of records."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    for power, name in enumerate(names):
        if n < 10 ** (power + 3):
            return f"n<{name}" if power == 0 else f"{names[power - 1]}<n<{name}"
    return "n>1T"


def _variables(out: Path, pinned: PinnedRecipe, splits: dict[str, Figures]) -> dict[str, Any]:
    from builder import __version__

    recipe, plan = pinned.recipe, Plan(pinned)
    total = reduce(_added, (split.statistics for split in splits.values()))
    listed, shown = _credits(pinned), recipe.to_dict()
    return {
        "n_records": _number(plan.n_records),
        "n_possible": (_number(pinned.n_possible) if plan.n_records < pinned.n_possible else None),
        "recipe": recipe,
        "depth": pinned.depth,
        "depth_model": _cell(pinned.depth.model.replace("./", "")) if pinned.depth else None,
        "demo": recipe.depth_model == DEMO_DEPTH_MODEL,
        "version": __version__,
        "fingerprint": pinned.fingerprint,
        "columns": record_columns(recipe, pinned.categories),
        "splits": _split_rows(plan, splits),
        "statistics": _statistics_rows(out, pinned, total),
        **_scenes(out, pinned, total),
        "depth_summary": _depth_summary(total, pinned) if pinned.depth else None,
        "depth_top": f"{pinned.depth.far / pinned.depth.scale:g}" if pinned.depth else None,
        **_placement(total, recipe),
        "recipe_rows": [
            {"name": f.name, "value": _value(getattr(recipe, f.name)), "meaning": meaning(f.name)}
            for f in fields(Recipe)
            if getattr(recipe, f.name) is not None
            and f.name in shown
            and (pinned.depth or not f.name.startswith(("depth_", "precision")))
        ],
        "sources": [
            {
                "name": kind,
                "number": len(entries),
                "licenses": {_cell(k): v for k, v in license_counts(entries).items()},
                "uncredited": len(uncredited(entries)),
            }
            for kind, entries in _kinds(pinned)
        ],
        "tools": _tools(pinned),
        "credits": listed[:_MAX_CREDITS],
        "more_credits": max(0, len(listed) - _MAX_CREDITS),
        "skipped": [(_cell(name), _cell(reason)) for name, reason in summarized(pinned.skipped)],
    }


def _tools(pinned: PinnedRecipe) -> list[str]:
    """Return what cut foregrounds out of photographs, by which weights, the most frequent first."""
    made = Counter(
        (e.tool, e.weights, e.weights_license) for e in pinned.foregrounds if e.tool or e.weights
    )
    lines = []
    for (tool, weights, license), number in made.most_common(_MAX_TOOLS):
        by = [_cell(tool)] if tool else []
        by += [f"weights {_cell(weights)}"] if weights else []
        by += [f"license of the weights: {_cell(license) or 'not stated'}"] if weights else []
        lines.append(f"{', '.join(by)} ({number})")
    if more := len(made) - _MAX_TOOLS:
        lines += [f"{more} more, in the config `foregrounds`"] if more > 0 else []
    return lines


def _scenes(out: Path, pinned: PinnedRecipe, total: Statistics) -> dict[str, Any]:
    """Return what a card says of scenes, and of depth that is composed."""
    recipe = pinned.recipe
    scenes, depth_by = recipe.layout == "scenes", Counter[str]()
    if recipe.composes_depth:
        backgrounds = read_sources(out / "backgrounds" / SOURCES_FILE)
        depth_by.update(s.backdrop.depth_by for s in backgrounds if s.backdrop)
    categories = total.tallies["category"].counts[0] if scenes else ()
    return {
        "scenes": scenes,
        "composed": recipe.composes_depth,
        "depth_by": {by: depth_by[by] for by in ("measured", "estimated")},
        "relief": recipe.has_relief
        and {
            "number": _number(sum(source.has_relief for source in pinned.foregrounds)),
            "of": _number(len(pinned.foregrounds)),
        },
        "ladder": recipe.has_ladder,
        "largest_side": recipe.largest_side,
        "halo": max(source.halo for source in pinned.foregrounds),
        "object_fields": [
            (name, kind.replace("category", "ClassLabel"), unit, what)
            for name, (kind, unit, what) in object_fields(recipe).items()
        ],
        "objects": _object_rows(total, pinned) if scenes else [],
        "classes": [
            (_cell(name), _number(int(n)))
            for name, n in zip(pinned.categories, categories, strict=False)
        ],
    }


def _object_rows(total: Statistics, pinned: PinnedRecipe) -> list[dict[str, str]]:
    """Return exact figures of objects: how many a record, how large, how far, how much seen."""
    metric = pinned.depth is not None and pinned.depth.kind == "metric"
    unit = "mm" if metric else "stored units"
    figures = [
        ("objects a record", "objects", 0, 1),
        ("objects left out of a record", "left_out", 0, 1),
        ("size (px seen)", "object_px", 0, 1),
        (f"depth at the foot ({unit})", "object_depth", 1, 1),
        ("share seen of what is in the frame", "visible", 0, 1000),
        ("share outside of the frame", "truncated", 0, 1000),
    ]
    rows = []
    for name, kind, first, scale in figures:
        summary = total.tallies[kind].channel(0, first=first)
        if summary.n:
            digits = 3 if scale > 1 else 1
            rows.append(
                {
                    "name": name,
                    "number": _number(summary.n),
                    "mean": f"{summary.mean / scale:.{digits}f}",
                    "std": f"{summary.std / scale:.{digits}f}",
                    "low": f"{summary.low / scale:g}",
                    "median": f"{summary.quantile(0.5) / scale:g}",
                    "high": f"{summary.high / scale:g}",
                }
            )
    return rows


def _split_rows(plan: Plan, splits: dict[str, Figures]) -> list[dict[str, Any]]:
    return [
        {
            "name": split.name,
            "foregrounds": len(split.foregrounds),
            "backgrounds": len(split.backgrounds),
            "records": _number(split.n_records),
            "files": split.n_shards,
            "size_bytes": _number(splits[split.name].size_bytes),
        }
        for split in plan.splits.values()
    ]


def _placement(total: Statistics, recipe: Recipe) -> dict[str, Any]:
    """Return the figures of coverage and of the mask's box."""
    coverage, area = total.tallies["mask_px"].channel(0), recipe.size**2
    return {
        "coverage": {
            name: f"{getattr(coverage, name) / area:.4f}" for name in ("mean", "std", "low", "high")
        },
        "boxes": [
            {
                "name": name,
                "mean": f"{box.mean:.2f}",
                "std": f"{box.std:.2f}",
                "low": box.low,
                "high": box.high,
            }
            for name, box in zip(
                ("x", "y", "width", "height"), total.tallies["bbox"].summaries(), strict=True
            )
        ],
    }


def _kinds(pinned: PinnedRecipe) -> tuple[tuple[str, tuple[SourceEntry, ...]], ...]:
    return ("foregrounds", pinned.foregrounds), ("backgrounds", pinned.backgrounds)


def _added(one: Statistics, other: Statistics) -> Statistics:
    one.merge(other)
    return one


def _statistics_rows(out: Path, pinned: PinnedRecipe, total: Statistics) -> list[dict[str, str]]:
    size, n = pinned.recipe.size, total.rows
    rows = []
    for kind, channels, entries in (
        ("backgrounds", 3, pinned.backgrounds),
        ("foregrounds", 4, pinned.foregrounds),
    ):
        tally, size_bytes = Tally(256, channels), 0
        for source in read_sources(out / kind / SOURCES_FILE):
            tally.add(source.pixels())
            size_bytes += len(source.png)
        short = "bg" if kind == "backgrounds" else "fg"
        largest = max(e.height for e in entries), max(e.width for e in entries)
        extent = f"{largest[0]}x{largest[1]}x{channels}"
        extent = extent if kind == "backgrounds" else f"up to {extent}"
        rows.append(_row(short, len(entries), extent, tally.summaries(), 255, size_bytes))
    image = f"{size}x{size}"
    for kind, extent in (("fg_bg", f"{image}x3"), ("mask", image)):
        summaries = total.tallies[kind].summaries()
        rows.append(_row(kind, n, extent, summaries, 255, total.size_bytes[kind]))
    if pinned.depth:
        depth = [total.tallies["depth"].channel(0, first=1)]
        rows.append(_row("depth", n, image, depth, pinned.depth.far, total.size_bytes["depth"]))
    return rows


def _row(
    kind: str, number: int, extent: str, summaries: list[Summary], top: int, size_bytes: int
) -> dict[str, str]:
    return {
        "kind": kind,
        "number": _number(number),
        "size": extent,
        "mean": " ".join(_figure(s.mean / top, 4) for s in summaries),
        "std": " ".join(_figure(s.std / top, 4) for s in summaries),
        "bytes": _number(size_bytes),
    }


def _figure(value: float, digits: int) -> str:
    """Return a number for a table; a dash where nothing was counted, as of depth never known."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _depth_summary(total: Statistics, pinned: PinnedRecipe) -> dict[str, str]:
    assert pinned.depth is not None
    depth, scale = total.tallies["depth"].channel(0, first=1), pinned.depth.scale
    figures = {
        "mean": depth.mean,
        "std": depth.std,
        "low": depth.quantile(0),
        "high": depth.quantile(1),
        "q05": depth.quantile(0.05),
        "q50": depth.quantile(0.5),
        "q95": depth.quantile(0.95),
    }
    return {
        **{name: _figure(value / scale, 3) for name, value in figures.items()},
        "unit": "m" if pinned.depth.kind == "metric" else "units of the prediction",
        "known": _number(depth.n),
        "unknown": _number(int(np.sum(total.tallies["depth"].counts)) - depth.n),
    }


def _credits(pinned: PinnedRecipe) -> list[dict[str, str]]:
    return [
        {
            "id": _cell(entry.id),
            "kind": kind[:-1],
            "author": _cell(entry.author),
            "license": _cell(entry.license),
            "url": _link(entry.url),
        }
        for kind, entries in _kinds(pinned)
        for entry in entries
        if entry.author or entry.license or entry.url
    ]


def _number(n: int) -> str:
    return f"{n:,}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _cell(f"{value:g}" if isinstance(value, float) else value)


def _link(url: str) -> str:
    """Return a web address as a link that survives its underscores, anything else as text."""
    return f"<{url}>" if _WEB_ADDRESS.fullmatch(url) else _cell(url)


def _cell(value: object) -> str:
    """Return text that stays inside one cell of a Markdown table and makes no markup."""
    text = " ".join(str(value).split())
    return re.sub(r"([\\`*_{}\[\]<>|#!$~])", r"\\\1", text)
