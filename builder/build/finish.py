"""What a set being built becomes: the finished folder, and what can be said of it on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from builder.build.ledger import FinishedSplit
from builder.build.project import Project
from builder.build.work import WorkFolder
from builder.errors import NotABuildError, OutputError, RecipeMismatchError
from builder.files import link_or_copy, sha256_file, write_text
from builder.layout import (
    CARD_FILE,
    FOLDERS,
    RECIPE_FILE,
    SOURCES_FILE,
    STATISTICS_FILE,
    Figures,
    built_format,
    is_complete,
    read_recipe,
    read_statistics,
    shard_file,
    write_statistics,
)
from builder.pinned import PinnedRecipe
from builder.record import Plan
from builder.remote import Place, StorePath
from builder.sources import Kind, duplicates, read_sources
from builder.tables import FileFormat, arrow_to_parquet


def already_built(out: Place, pinned: PinnedRecipe, file_format: FileFormat) -> bool:
    """Whether OUT already holds this set; False when it is free, or holds what this set extends.

    Raises:
        RecipeMismatchError: it holds another set.
        OutputError: it holds something else.
    """
    if WorkFolder(out).is_free():
        return False
    held = read_recipe(out)
    if not pinned.holds(held):
        raise RecipeMismatchError(out, held.differences(pinned))
    if built_format(out) != file_format:
        raise OutputError(
            f"{out} holds this set as {built_format(out)}, asked for is {file_format}; choose "
            "another folder."
        )
    if held.fingerprint != pinned.fingerprint and isinstance(out, StorePath):
        raise OutputError(
            f"{out} holds a set that can only be extended in a folder of this machine; fetch it "
            "and extend it there, or choose another address."
        )
    return held.fingerprint == pinned.fingerprint


def write_metadata(
    folder: Path, work: WorkFolder, pinned: PinnedRecipe, finished: Mapping[str, FinishedSplit]
) -> None:
    """Write everything of a complete set but its shards, card and preview."""
    write_text(folder / RECIPE_FILE, pinned.to_json())
    kinds: tuple[Kind, ...] = ("foreground", "background")
    for kind in kinds:
        target = folder / f"{kind}s" / SOURCES_FILE
        target.parent.mkdir()
        link_or_copy(work.sources(kind, pinned.fingerprint), target)
    (folder / STATISTICS_FILE).parent.mkdir(exist_ok=True)
    figures = {name: split.figures for name, split in finished.items()}
    write_statistics(folder, pinned.fingerprint, figures)


def copy_as_parquet(out: Path, folder: Path) -> None:
    """Make of a finished Arrow build the folder that the same build as Parquet would have made."""
    pinned = read_recipe(out)
    plan, figures = Plan(pinned), {}
    (folder / "data").mkdir(exist_ok=True)
    for name, held in read_statistics(out, plan).items():
        shards = []
        for shard, stated in enumerate(held.shards):
            file = shard_file(plan.splits[name], shard, "parquet")
            arrow_to_parquet(out / stated.file, folder / file)
            size_bytes, sha256 = (folder / file).stat().st_size, sha256_file(folder / file)
            shards.append(replace(stated, file=file, size_bytes=size_bytes, sha256=sha256))
        figures[name] = Figures(tuple(shards), held.statistics)
    for name in (RECIPE_FILE, CARD_FILE, *FOLDERS):
        for source in (out / name).rglob("*") if name in FOLDERS else (out / name,):
            target = folder / source.relative_to(out)
            target.parent.mkdir(exist_ok=True)
            link_or_copy(source, target)
    (folder / STATISTICS_FILE).unlink()  # a link: written anew, or the original would change
    write_statistics(folder, pinned.fingerprint, figures)


def build_status(out: Place) -> dict[str, Any]:
    """Say how far the build of OUT is, by split.

    Raises:
        NotABuildError: neither a finished nor a begun build is there.
    """
    work = WorkFolder(out.absolute())
    work.restore()
    earlier = read_recipe(out) if (out / RECIPE_FILE).is_file() else None
    pinned = work.held() or earlier
    if pinned is None:
        raise NotABuildError(f"{out} is not a build of fgbg, nor is one being made there.")
    finished = is_complete(out, pinned)
    committed = {path.stem for path in work.shards.glob("*.json")}
    if earlier is not None:  # the set that is being extended
        for split in Plan(earlier).splits.values():
            committed |= {split.shard_name(shard) for shard in range(split.n_shards)}
    splits = {}
    for split in Plan(pinned).splits.values():
        rows = [split.shard_range(shard) for shard in range(split.n_shards)]
        done = [
            stop - start
            for shard, (start, stop) in enumerate(rows)
            if finished or split.shard_name(shard) in committed
        ]
        splits[split.name] = {
            "records": split.n_records,
            "records_done": sum(done),
            "shards": split.n_shards,
            "shards_done": len(done),
        }
    return {
        "out": str(out),
        "finished": finished,
        "fingerprint": pinned.fingerprint,
        "records": sum(split["records"] for split in splits.values()),
        "records_done": sum(split["records_done"] for split in splits.values()),
        "splits": splits,
    }


def begun_project(out: Place) -> tuple[Project, Place]:
    """Read a finished or begun build: the project, without depth model, and its folder.

    Raises:
        NotABuildError: neither is there.
    """
    work = WorkFolder(out)
    folder: Place
    if (held := work.held()) is not None and not is_complete(out, held):
        folder, pinned = work.sources("foreground", held.fingerprint).parents[1], held
    elif (out / RECIPE_FILE).is_file():
        folder, pinned = out, read_recipe(out)
    else:
        raise NotABuildError(f"{out} is not a build of fgbg, nor is one being made there.")
    foregrounds, backgrounds = (
        tuple(read_sources(folder / kind / SOURCES_FILE)) for kind in ("foregrounds", "backgrounds")
    )
    same = duplicates(foregrounds) + duplicates(backgrounds)
    return Project(pinned, None, foregrounds, backgrounds, same), folder
