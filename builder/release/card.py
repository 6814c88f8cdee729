"""Write the dataset card, README.md, of a finished build from what its folder holds."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.errors import CardError, summarized
from builder.files import write_text
from builder.layout import (
    ARROW_PREFIX,
    CARD_FILE,
    SOURCES_FILE,
    Figures,
    built_format,
    data_glob,
    read_recipe,
    read_statistics,
)
from builder.pinned import PinnedRecipe, SourceEntry
from builder.recipe import DEMO_DEPTH_MODEL, Recipe, meaning
from builder.record import Plan, Statistics, Summary, Tally
from builder.schema import Column, features, record_columns
from builder.sources import license_counts, read_sources, stored_columns, uncredited

if TYPE_CHECKING:
    from datasets import DatasetInfo

# Beside the package, in a checkout as in an installation.
TEMPLATE = Path(__file__).parents[2] / "dataset_card.md"
_MAX_CREDITS = 200

RECORDS_CONFIG = "default"
_FOLDERS = ("foregrounds/", "backgrounds/", "preview/")
_DATA_FILES = ("data/", ARROW_PREFIX)

# Keys of the card's YAML that a build decides; all others a person may set and keeps.
_OWNED = ("annotations_creators", "configs", "dataset_info", "size_categories", "task_categories")


def write_card(out: Path, *, license: str | None = None, title: str | None = None) -> Path:
    """Write README.md of a finished build and return its path.

    Args:
        out: the built folder; nothing else is read.
        license: Hub license identifier of the set (`cc-by-4.0`). None keeps what the card says.
        title: heading of the card; None keeps what the card says, or takes the folder's name.

    Raises:
        NotABuildError: `out` is not a finished build.
        CardError: the metadata of the card there is no YAML.
    """
    path = out / CARD_FILE
    write_text(path, card_text(out, license=license, title=title))
    return path


def card_text(
    out: Path,
    *,
    old: str | None = None,
    license: str | None = None,
    title: str | None = None,
    location: str | None = None,
    config: str | None = None,
) -> str:
    """Return the card of a finished build: of an untouched card that fits it, the card itself.

    Of the old card everything is kept that a build does not decide: other keys of its YAML, other
    configs, and all text outside of the marked blocks.

    Args:
        old: the card so far; None takes README.md of `out`, if there is one.
        license: as for `write_card`.
        title: as for `write_card`.
        location: what `load_dataset` is given; None keeps what the card says, or takes the title.
        config: name of the records' config; None keeps what the card says, or takes `default`.

    Raises:
        NotABuildError: `out` is not a finished build.
        CardError: the metadata of the old card is no YAML.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    pinned, path = read_recipe(out).public(), out / CARD_FILE
    splits = read_statistics(out, Plan(pinned))
    if old is None and path.is_file():
        old = path.read_text(encoding="utf-8")
    keys, text = card_parts(old or "")
    kept = {k: v for k, v in keys.items() if k not in _OWNED}
    if license:
        kept["license"] = license
    config = config or _records_config(keys)
    values = _yaml(out, pinned, splits, config)
    ours = {entry["config_name"] for entry in values["configs"]}
    for key in ("configs", "dataset_info"):
        values[key] += _foreign(keys, key, ours)
    data = DatasetCardData(**{**values, **kept})
    heading, used = re.search(r"^# (.+)$", text, re.MULTILINE), _LOCATION.search(text)
    variables = _variables(out, pinned, splits)
    variables["title"] = title or (heading[1] if heading else out.absolute().name)
    variables["location"] = location or (used[1] if used else variables["title"])
    variables["config"] = config
    card = DatasetCard.from_template(data, template_path=str(TEMPLATE), **variables)
    head, _, body = card.content.partition("\n---\n")
    body = _merged(text, body)
    if title:
        body = re.sub(r"^# .+$", lambda _: f"# {title}", body, count=1, flags=re.MULTILINE)
    return f"{head}\n---\n\n{body}"


# Everything between the two is written by us and replaced as a whole. No other marker stands
# inside, so that one that lost its partner swallows nothing.
_BLOCK = re.compile(
    r"<!-- fgbg:(?P<name>\w+) begin\b[^>]*-->(?:(?!<!-- fgbg:).)*<!-- fgbg:(?P=name) end -->",
    re.DOTALL,
)
_WEB_ADDRESS = re.compile(r"https?://[^\s<>|`\\]+", re.ASCII)
_LOCATION = re.compile(r'load_dataset\("([^"\n]+)"')


def card_keys(card: str) -> dict[str, Any]:
    """Return the YAML keys of a card's text."""
    return card_parts(card)[0]


def records_config(card: str) -> str:
    """Return what a card calls the config of the records."""
    return _records_config(card_keys(card))


def card_parts(card: str) -> tuple[dict[str, Any], str]:
    """Return the YAML keys of a card, and the text below them.

    Raises:
        CardError: the metadata is no YAML.
    """
    import yaml

    card = card.removeprefix("\ufeff")
    found = re.match(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", card, re.DOTALL | re.MULTILINE)
    if not found:
        return {}, card
    try:
        keys = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise CardError(f"the metadata at the top of {CARD_FILE} is no YAML: {error}") from None
    if not isinstance(keys, dict):
        raise CardError(f"the metadata at the top of {CARD_FILE} holds no keys.")
    return keys, card[found.end() :].replace("\r\n", "\n")


def _merged(old: str, new: str) -> str:
    """Return the old text with the blocks of the new one; those it lacks come at its end."""
    new = re.sub(r"\n{3,}", "\n\n", new).strip() + "\n"
    blocks = {block["name"]: block[0] for block in _BLOCK.finditer(new)}
    held = {block["name"] for block in _BLOCK.finditer(old)}
    if not old.strip():
        return new
    if not held & blocks.keys():  # others wrote it: ours goes below, without its heading
        new = re.sub(r"^# .+$", "", new, count=1, flags=re.MULTILINE)
        return f"{old.strip()}\n\n{new.strip()}\n"
    text = _BLOCK.sub(lambda block: blocks.get(block["name"], ""), old)
    lacking = [block for name, block in blocks.items() if name not in held]
    return "\n\n".join([text.strip(), *lacking]) + "\n"


def _records_config(keys: dict[str, Any]) -> str:
    """Return what a card calls the config of the records: the one whose files lie in data/."""
    for entry in _entries(keys, "configs"):
        if any(path.startswith(_DATA_FILES) for path in _paths(entry)):
            return str(entry.get("config_name", RECORDS_CONFIG))
    return RECORDS_CONFIG


def _foreign(keys: dict[str, Any], key: str, ours: set[str]) -> list[dict[str, Any]]:
    """Return the entries of configs that others added: by name and files none of ours."""
    others = [
        entry
        for entry in _entries(keys, "configs")
        if entry.get("config_name") not in ours
        and not any(path.startswith((*_FOLDERS, *_DATA_FILES)) for path in _paths(entry))
    ]
    names = {entry.get("config_name") for entry in others}
    if key == "configs":  # there is one default, and it is ours
        return [{k: v for k, v in entry.items() if k != "default"} for entry in others]
    return [entry for entry in _entries(keys, key) if entry.get("config_name") in names]


def _entries(keys: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = keys.get(key) or []
    return [entry for entry in (value if isinstance(value, list) else [value]) if entry]


def _paths(entry: Any) -> list[str]:
    """Return all texts under `data_files` and `data_dir` of a config, however they are nested."""
    if isinstance(entry, dict):
        entry = [v for k, v in entry.items() if k in ("data_files", "data_dir", "path")]
    if isinstance(entry, list):
        return [path for value in entry for path in _paths(value)]
    return [entry] if isinstance(entry, str) else []


def _yaml(
    out: Path, pinned: PinnedRecipe, splits: dict[str, Figures], config: str
) -> dict[str, Any]:
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    recipe, file_format = pinned.recipe, built_format(out)
    rows = {name: split.rows for name, split in splits.items()}
    sizes = {name: split.size_bytes for name, split in splits.items()}
    infos = {config: _info(config, record_columns(recipe), rows, sizes)}
    for kind, entries in _kinds(pinned):
        path = out / kind / SOURCES_FILE
        columns, size = stored_columns(path), path.stat().st_size
        infos[kind] = _info(kind, columns, {"train": len(entries)}, {"train": size})
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
    listed = _credits(pinned)
    return {
        "n_records": _number(plan.n_records),
        "n_possible": (_number(pinned.n_possible) if plan.n_records < pinned.n_possible else None),
        "recipe": recipe,
        "depth": pinned.depth,
        "depth_model": _cell(pinned.depth.model.replace("./", "")) if pinned.depth else None,
        "demo": recipe.depth_model == DEMO_DEPTH_MODEL,
        "version": __version__,
        "fingerprint": pinned.fingerprint,
        "columns": record_columns(recipe),
        "splits": _split_rows(plan, splits),
        "statistics": _statistics_rows(out, pinned, total),
        "depth_summary": _depth_summary(total, pinned) if pinned.depth else None,
        "depth_top": f"{pinned.depth.far / pinned.depth.scale:g}" if pinned.depth else None,
        **_placement(total, recipe),
        "recipe_rows": [
            {"name": f.name, "value": _value(getattr(recipe, f.name)), "meaning": meaning(f.name)}
            for f in fields(Recipe)
            if getattr(recipe, f.name) is not None
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
        "credits": listed[:_MAX_CREDITS],
        "more_credits": max(0, len(listed) - _MAX_CREDITS),
        "skipped": [(_cell(name), _cell(reason)) for name, reason in summarized(pinned.skipped)],
    }


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
