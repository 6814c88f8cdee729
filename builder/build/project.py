"""What a set is built from: checked sources and a depth model, pinned to one recipe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from builder.build.backdrops import depth_info, with_backdrops
from builder.depth import DepthModel, locate_model
from builder.errors import BadSourcesError, RecipeMismatchError
from builder.layout import RECIPE_FILE, read_recipe
from builder.pinned import PinnedRecipe, SourceEntry
from builder.recipe import Recipe
from builder.record import hold_out, hold_out_more
from builder.remote import Place
from builder.sources import (
    Kind,
    PreparedFolder,
    Source,
    contents,
    prepare,
    refuse_overlap,
)

_log = logging.getLogger(__name__)


class Begun(Protocol):
    """What a build that was begun in OUT has left to go on with; see `WorkFolder`."""

    out: Place

    def held(self) -> PinnedRecipe | None:
        """Return its recipe."""

    def known_sources(self, kind: Kind, recipe: Recipe) -> dict[str, Source]:
        """Return the sources, by file, that it prepared in the same way."""

    def finished_sources(self, kind: Kind) -> list[Source]:
        """Return the prepared sources of the finished set in OUT."""


@dataclass(frozen=True)
class Project:
    """A set to be built: pinned recipe, prepared sources, depth model."""

    pinned: PinnedRecipe
    model: DepthModel | None
    foregrounds: tuple[Source, ...]
    backgrounds: tuple[Source, ...]
    duplicates: tuple[tuple[str, ...], ...]

    @classmethod
    def prepare(
        cls,
        foreground_dir: Path,
        background_dir: Path,
        recipe: Recipe,
        *,
        skip_bad: bool = False,
        work: Begun | None = None,
        earlier: PinnedRecipe | None = None,
        repeats: PinnedRecipe | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Project:
        """Check and prepare the sources, find the depth model, pin the recipe.

        Args:
            work: of an interrupted build; what it prepared is used again.
            earlier: a set whose sources keep their places and splits; new ones extend it. Where
                `work.out` holds it, a source of it need not be in the folders any more.
            repeats: a set that is made again. Its sources keep their ids and pixels, and depth the
                meaning it has there, as they do in a set that is extended or resumed.
            progress: called with 1 after each source file.

        Raises:
            BadSourcesError: files of either folder that cannot be used, all at once.
            DepthModelError: the depth model cannot be found.
            RecipeMismatchError: sources of the earlier set have changed or are gone.
            FgbgError: one folder lies where another one's files are looked for.
        """
        refuse_overlap(foreground_dir, background_dir, work.out if work else None)
        held = work.held() if work else None
        if held and recipe.precision == "auto" and held.recipe.depth_model == recipe.depth_model:
            # It led to this when the build began, maybe on another machine.
            recipe = replace(recipe, precision=held.recipe.precision)
        before = earlier or repeats or held or (_finished(work.out) if work else None)
        recipe, model = locate_model(recipe, before.depth if before else None)
        folders: dict[Kind, Path] = {"foreground": foreground_dir, "background": background_dir}
        prepared = _prepare_both(folders, recipe, skip_bad, work, before, progress)
        sources = {kind: folder.sources for kind, folder in prepared.items()}
        info = depth_info(recipe, model)
        groundless: tuple[tuple[str, str], ...] = ()
        if recipe.needs_background_depth:
            sources["background"], info, groundless = with_backdrops(
                sources, recipe, model, before.depth if before else None, progress
            )
        stages: tuple[tuple[int, int], ...] = ()
        if earlier is None:
            held_out = _split(sources, before, recipe)
        else:
            sources = _earlier_first(sources, earlier, work)
            held_out, stages = _extended(sources, earlier, recipe)
        left = *(p for folder in prepared.values() for p in folder.skipped), *groundless
        fg, bg = held_out["foreground"], held_out["background"]
        pinned = PinnedRecipe(
            recipe=recipe, foregrounds=fg, backgrounds=bg, depth=info, skipped=left, stages=stages
        )
        foregrounds = _with_entries(sources["foreground"], pinned.foregrounds)
        backgrounds = _with_entries(sources["background"], pinned.backgrounds)
        duplicates = tuple(group for folder in prepared.values() for group in folder.duplicates)
        return cls(pinned, model, foregrounds, backgrounds, duplicates)


def _finished(out: Place) -> PinnedRecipe | None:
    """Return the recipe of the finished set in OUT, if there is one."""
    return read_recipe(out) if (out / RECIPE_FILE).is_file() else None


def _prepare_both(
    folders: Mapping[Kind, Path],
    recipe: Recipe,
    skip_bad: bool,
    work: Begun | None,
    before: PinnedRecipe | None,
    progress: Callable[[int], object] | None,
) -> dict[Kind, PreparedFolder]:
    """Prepare both folders, so that the bad files of both are told together."""
    prepared: dict[Kind, PreparedFolder] = {}
    problems: list[tuple[str, str]] = []
    skippable = True
    for kind, folder in folders.items():
        try:
            prepared[kind] = prepare(
                folder,
                kind,
                recipe,
                skip_bad=skip_bad,
                known=work.known_sources(kind, recipe) if work else {},
                like=_entries(before, kind) if before else (),
                like_has_ladder=before is not None and before.recipe.has_ladder,
                apart=[other for other in folders.values() if other != folder],
                progress=progress,
            )
        except BadSourcesError as error:
            problems += error.problems
            skippable = skippable and error.skippable
    if problems:
        raise BadSourcesError(problems, skippable=skippable)
    return prepared


def _entries(pinned: PinnedRecipe, kind: Kind) -> tuple[SourceEntry, ...]:
    return pinned.foregrounds if kind == "foreground" else pinned.backgrounds


def _earlier_first(
    sources: Mapping[Kind, tuple[Source, ...]], earlier: PinnedRecipe, work: Begun | None
) -> dict[Kind, tuple[Source, ...]]:
    """Return the sources of an earlier set in its order, then those of new content."""
    arranged: dict[Kind, tuple[Source, ...]] = {}
    differences = []
    for kind, found in sources.items():
        held = {source.entry.id: source for source in work.finished_sources(kind)} if work else {}
        by_id = {source.entry.id: source for source in found}
        old = []
        for entry in _entries(earlier, kind):
            source = by_id.pop(entry.id, None) or held.get(entry.id)
            if source is None:
                differences.append(f"{kind}s: {entry.id} is gone")
            elif source.entry.sha256 != entry.sha256:
                differences.append(f"{kind}s: the file of {entry.id} has changed")
            else:
                old.append(_as_it_was(source, held.get(entry.id)))
        arranged[kind] = (*old, *_new(by_id.values(), old))
    if differences:
        raise RecipeMismatchError(work.out if work else "the earlier set", differences)
    return arranged


def _as_it_was(source: Source, held: Source | None) -> Source:
    """Return a source of an earlier set with the sizes, relief, depth and ground it has there."""
    if held is None or held.entry.prepared_sha256 == source.entry.prepared_sha256:
        return source
    kept = {name: getattr(held.entry, name) for name in ("prepared_sha256", "has_relief")}
    return replace(held, entry=replace(source.entry, **kept))


def _new(found: Iterable[Source], old: Sequence[Source]) -> list[Source]:
    """Return the sources whose content the earlier set has not, under whatever name."""
    held, new = {source.entry.sha256: source.entry.id for source in old}, []
    for source in found:
        if (id_ := held.get(source.entry.sha256)) is None:
            new.append(source)
        else:
            _log.warning("%s is not added: it is %s of the set", source.entry.file, id_)
    return new


def _split(
    sources: Mapping[Kind, tuple[Source, ...]], before: PinnedRecipe | None, recipe: Recipe
) -> dict[Kind, tuple[SourceEntry, ...]]:
    return {
        kind: _held_out(some, recipe, _entries(before, kind) if before else None)
        for kind, some in sources.items()
    }


def _held_out(
    sources: Sequence[Source], recipe: Recipe, before: Sequence[SourceEntry] | None
) -> tuple[SourceEntry, ...]:
    """Return the entries of sources; a set of the same ones that is made again keeps its splits.

    Versions before 0.2.0 told sources apart by their files alone.
    """
    entries = [source.entry for source in sources]
    marked = hold_out(entries, recipe.holdout, recipe.seed)
    if before is not None and [(e.id, e.sha256, e.held_out) for e in marked] == [
        (e.id, e.sha256, e.held_out) for e in before
    ]:
        return marked
    return hold_out(entries, recipe.holdout, recipe.seed, contents(sources))


def _extended(
    sources: Mapping[Kind, tuple[Source, ...]], earlier: PinnedRecipe, recipe: Recipe
) -> tuple[dict[Kind, tuple[SourceEntry, ...]], tuple[tuple[int, int], ...]]:
    """Return the entries of sources, an earlier set's first, by what it held out; the stages."""
    entries: dict[Kind, tuple[SourceEntry, ...]] = {}
    for kind, some in sources.items():
        before, found = _entries(earlier, kind), [source.entry for source in some]
        old = [
            replace(entry, held_out=was.held_out)
            for entry, was in zip(found[: len(before)], before, strict=True)
        ]
        added = found[len(before) :]
        new = hold_out_more(old, added, recipe.holdout, recipe.seed, contents(some))
        entries[kind] = (*old, *new)
    had = len(earlier.foregrounds), len(earlier.backgrounds)
    grown = had != (len(entries["foreground"]), len(entries["background"]))
    return entries, (*earlier.stages, had) if grown else earlier.stages


def _with_entries(
    sources: tuple[Source, ...], entries: tuple[SourceEntry, ...]
) -> tuple[Source, ...]:
    return tuple(replace(s, entry=e) for s, e in zip(sources, entries, strict=True))
