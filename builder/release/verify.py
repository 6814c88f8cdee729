"""Check a finished set, in a folder or on the Hub, against its own recipe, sources and figures.

A record is a pure function of the recipe, the prepared sources and its id, so it is composed again
and compared.

What cannot be found: depth that was exchanged for other depth of the same range (only the model
could tell), and a change of a lossy composite that is smaller than the loss of its encoding. Both
still show in the sha256 of the shard, and mostly in the statistics when every record is checked.
"""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from builder import __version__
from builder.errors import FgbgError, NewerVersionError, RecipeError
from builder.files import is_system_file, is_temporary, read_text, sha256_file
from builder.hub import request_errors
from builder.layout import (
    BACKGROUNDS_FILE,
    CARD_FILE,
    FIFTYONE_FILE,
    FOREGROUNDS_FILE,
    INFO_FILE,
    MAX_BYTES,
    PAGE_FILE,
    RECIPE_FILE,
    SHEET_FILE,
    SOURCES_FILE,
    STATISTICS_FILE,
    TABLE_FILE,
    DataFile,
    Figures,
    OtherFile,
    loads_by_path,
    parse_files,
    parse_statistics,
    shard_file,
)
from builder.pictures import open_picture
from builder.pinned import DepthInfo, PinnedRecipe, SourceEntry
from builder.recipe import Recipe
from builder.record import (
    ALPHA_IN_MASK,
    SPLITS,
    Ids,
    Plan,
    Renderer,
    SplitPlan,
    Statistics,
    unknown_depth,
)
from builder.release.access import FIXED_FILES, Folder, Repo, Stored, open_place
from builder.release.card import (
    blocks_of,
    card_parts,
    card_text,
    entries_of,
    own_entries,
    tables_of,
)
from builder.release.preview import (
    FIFTYONE_HINT,
    TABLE_RECORDS,
    coloured,
    draw_preview,
    same_page,
    same_picture,
    table_counts,
)
from builder.release.record_check import RecordCheck
from builder.schema import (
    Column,
    features,
    preview_columns,
    record_columns,
    source_columns,
)
from builder.sources import Source, SourceBank, prepared_source, uncredited
from builder.tables import Table, wrong_columns
from builder.typed import checked_fields, decisive, read
from builder.untrusted import Unreadable, listed, one_line, parse_json, printable, refusing, shown

_BLOCK_RECORDS = 25  # neighbours in a shard that are drawn together, for they are read together
_MAX_PER_CHECK = 1000
_MAX_CHARACTERS = 500  # of a sentence, which may quote what is foreign
_MAX_CHANGED = 5  # lines in a note
_CREDITS = ("author", "license", "url", "tool", "weights", "weights_license")  # of a source
_MAY_BE = {INFO_FILE, FIFTYONE_FILE}  # in a set, beside the fixed files and the shards
_COLOUR_LEVELS = 8  # of 256, that a JPEG of coloured depth is off by at most, on average
_OUR_FOLDERS = ("data/", "foregrounds/", "backgrounds/", "preview/")
# What `datasets` reads by itself where no config names it, or before the card; at the top alone.
_MISLEADING = re.compile(r"[^/]*\.(py|parquet|arrow)|\.huggingface\.yaml|dataset_infos\.json")
_ANEW = "fgbg preview writes it again"
_METADATA = {
    *(b"huggingface", b"content_defined_chunking", b"use_content_defined_chunking"),
    b"ARROW:schema",
}
_CARD_VERSION = re.compile(r"^By fgbg-dataset (\S+), fingerprint", re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """What is wrong: the check that found it, the file or record, one sentence."""

    check: str
    where: str
    what: str


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and what is wrong.

    `records_checked` of `records` were composed again; of `files` shards `files_hashed` were
    compared by sha256 (as the Hub states it, or computed) and `files_read` were opened;
    `statistics` names the splits whose figures were recomputed whole; `uncredited` is the number
    of sources without author or license; `notes` says what could not be checked.
    """

    target: str
    revision: str | None
    fingerprint: str | None
    records: int
    records_checked: int
    files: int
    files_hashed: int
    files_read: int
    sources: int
    uncredited: int
    statistics: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[Problem, ...]

    def __repr__(self) -> str:
        counts = f"records_checked={self.records_checked}, problems={len(self.problems)}"
        return f"VerifyReport(target={self.target!r}, ok={self.ok}, {counts})"

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; `ok` is in it."""
        return {"ok": self.ok, **asdict(self)}

    def lines(self, most: int) -> list[str]:
        """Return the report as text, with at most so many problems of each check."""
        lines = [
            f"{self.target}: {self.records_checked} of {self.records} records checked.",
            f"Of {self.files} files {self.files_read} read, {self.files_hashed} by sha256.",
            f"Of {self.sources} sources {self.uncredited} without author or license.",
            f"Statistics recomputed of: {', '.join(self.statistics) or 'no split (see --all)'}.",
            *self.notes,
        ]
        found: Counter[str] = Counter(problem.check for problem in self.problems)
        shown: Counter[str] = Counter()
        for problem in self.problems:
            shown[problem.check] += 1
            if shown[problem.check] <= most:
                lines.append(f"  {problem.check}: {problem.where}: {problem.what}")
        lines += [f"  {check}: {n - most} more" for check, n in found.items() if n > most]
        n = len(self.problems)
        lines.append(f"{n} {'problem' if n == 1 else 'problems'} found." if n else "All is well.")
        return lines


def verify(
    target: str | Path,
    *,
    sample: int | None = 1000,
    revision: str | None = None,
    token: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> VerifyReport:
    """Check a finished set: files, recipe, sources, records, statistics and card.

    Args:
        target: a built folder, or the id of a repository on the Hub; of the latter no more is
            fetched than is read.
        sample: number of records to compose again, drawn evenly from all splits in blocks of 25
            neighbours by the set's fingerprint, so the same ones each time; None: all of them.
        revision: of the repository; its main branch by default.
        token: for the Hub; by default the one of `hf auth login`.
        progress: called with 1 after each record.

    Raises:
        NotABuildError: the target is neither a finished build nor such a repository.
        FgbgError: the Hub cannot be read.
    """
    if sample is not None and sample < 1:
        raise FgbgError(f"sample is {sample}; it must be at least 1, or None for every record.")
    with warnings.catch_warnings(), open_place(target, revision, token) as place:
        warnings.simplefilter("ignore")  # of damaged metadata in images, as when they were prepared
        return _Verification(place, sample, progress or _no_progress).report()


def _no_progress(_records: int) -> None:
    return


@dataclass
class _Counts:
    """What was looked at so far."""

    records: int = 0
    hashed: int = 0
    read: int = 0
    composed: Counter[tuple[str, str]] = field(default_factory=Counter)
    misfits: Counter[tuple[str, str]] = field(default_factory=Counter)


class _Verification:
    """One run over one set."""

    def __init__(
        self,
        place: Folder | Repo | Stored,
        sample: int | None,
        progress: Callable[[int], object],
    ) -> None:
        self._place, self._sample, self._progress = place, sample, progress
        self._problems: list[Problem] = []
        self._by_check: Counter[str] = Counter()
        self._counts = _Counts()
        self._notes: list[str] = []
        self._first_depths: dict[int, Any] = {}  # of records that the preview may show

    def _problem(self, check: str, where: str, what: str) -> None:
        self._by_check[check] += 1
        if self._by_check[check] <= _MAX_PER_CHECK:
            shown = printable(where[:_MAX_CHARACTERS]), printable(what[:_MAX_CHARACTERS])
            self._problems.append(Problem(check, *shown))

    def report(self) -> VerifyReport:
        """Run every check."""
        complete: list[str] = []
        pinned, plan = self._recipe(), None
        if pinned is not None:
            plan = Plan(pinned)
            self._check_leaks(pinned)
            stated, files = self._statistics(plan)
            bank = self._sources(pinned)
            self._check = RecordCheck(pinned)
            self._renderer = Renderer(plan, bank, None) if bank else None
            if self._check_names(plan):
                self._check_files(files)
                self._check_info(plan)
                complete = self._check_splits(plan, stated)
            self._check_preview(plan)
            self._blame_sources()
            if stated is not None and bank is not None:
                self._card()
            if not self._problems and not isinstance(self._place, Stored):
                self._check_loading(plan)
            if not self._problems and stated is not None:
                self._check_shown(plan)
            if pinned.depth:
                self._notes.append(
                    "Depth was composed again from the depth stored with the backgrounds, to the "
                    "last bit; that of the backgrounds was not estimated again."
                    if pinned.recipe.composes_depth
                    else "Depth was checked for size, range and grid and counted, not estimated "
                    "again."
                )
                counts = {name: split.statistics for name, split in (stated or {}).items()}
                self._notes += filter(None, [unknown_depth(counts)] if counts else [])
        for check, n in self._by_check.items():
            if n > _MAX_PER_CHECK:
                where = f"{n - _MAX_PER_CHECK} more"
                self._problems.append(Problem(check, where, "of the same kind are not listed"))
        entries = [*pinned.foregrounds, *pinned.backgrounds] if pinned else []
        return VerifyReport(
            target=self._place.name,
            revision=self._place.revision,
            fingerprint=pinned.fingerprint if pinned else None,
            records=plan.n_records if plan else 0,
            records_checked=self._counts.records,
            files=plan.n_shards if plan else 0,
            files_hashed=self._counts.hashed,
            files_read=self._counts.read,
            sources=len(entries),
            uncredited=len(uncredited(entries)),
            statistics=tuple(complete),
            notes=tuple(self._notes),
            problems=tuple(self._problems),
        )

    # -- recipe, statistics, sources

    def _text(self, check: str, name: str) -> str | None:
        try:
            root = self._place.root
            return read_text(root / name, MAX_BYTES[name], within=root)
        except FileNotFoundError:  # of a repository, what is too large was not fetched
            self._problem(check, name, f"is missing, or larger than {MAX_BYTES[name]} bytes")
        except (OSError, ValueError) as error:
            self._problem(check, name, f"cannot be read ({one_line(error)})")
        return None

    def _table(self, name: str) -> Table:
        """Open a small Parquet file of the set."""
        file = self._place.files.get(name)
        if file is None or file.fault:
            raise Unreadable(file.fault if file else "is missing")
        return Table(self._place.root / name, "parquet")

    def _recipe(self) -> PinnedRecipe | None:
        text = self._text("recipe", RECIPE_FILE)
        if text is None:
            return None
        try:
            with refusing("cannot be read"):
                try:
                    return PinnedRecipe.from_json(text)
                except (NewerVersionError, RecipeError) as error:
                    raise Unreadable(str(error).removeprefix(f"{RECIPE_FILE}: ")) from None
        except Unreadable as reason:
            self._problem("recipe", RECIPE_FILE, str(reason))
            return None

    def _check_leaks(self, pinned: PinnedRecipe) -> None:
        """No source, by id or by content, on both sides of the split."""
        for kind in ("foregrounds", "backgrounds"):
            by_id: dict[str, SourceEntry] = {}
            by_content: dict[str, SourceEntry] = {}
            for entry in getattr(pinned, kind):
                if entry.id in by_id:
                    self._problem("recipe", f"{kind}/{entry.id}", "is in the recipe twice")
                by_id[entry.id] = entry
                copy = by_content.setdefault(entry.sha256, entry)
                if copy.held_out != entry.held_out:
                    self._problem(
                        "splits",
                        f"{kind}/{entry.id}",
                        f"is a copy of {copy.id}, but only one of the two is held out of train",
                    )

    def _statistics(
        self, plan: Plan
    ) -> tuple[dict[str, Figures] | None, dict[str, OtherFile] | None]:
        """Return what is stated of each split, and of the other files."""
        text = self._text("statistics", STATISTICS_FILE)
        if text is None:
            return None, None
        try:
            with refusing("is not as fgbg build writes it", (NewerVersionError,)):
                splits = parse_statistics(text, plan, STATISTICS_FILE)
                return splits, parse_files(text, STATISTICS_FILE)
        except Unreadable as reason:
            self._problem("statistics", STATISTICS_FILE, str(reason))
            return None, None

    def _sources(self, pinned: PinnedRecipe) -> SourceBank | None:
        """Check the prepared sources; return them if all of them can be used."""
        foregrounds, backgrounds = (
            self._sources_of(pinned, kind) for kind in ("foregrounds", "backgrounds")
        )
        if foregrounds is None or backgrounds is None:
            self._notes.append("Nothing was composed again, for the sources are not as they were.")
            return None
        return SourceBank(foregrounds, backgrounds)

    def _sources_of(self, pinned: PinnedRecipe, kind: str) -> list[Source] | None:
        name, found = f"{kind}/{SOURCES_FILE}", []
        entries: tuple[SourceEntry, ...] = getattr(pinned, kind)
        try:
            table = self._table(name)
            columns = source_columns(kind.removesuffix("s"), pinned.recipe, table.schema.names)
            if different := wrong_columns(table.schema, columns):
                raise Unreadable(different)
            self._check_metadata(name, table, columns, None)
            if table.n_rows != len(entries):
                raise Unreadable(f"has {table.n_rows} rows, the recipe {len(entries)}")
            for number, row in table.rows([column.name for column in columns]):
                found.append(self._source(pinned.recipe, kind, entries[number], row))
        except Unreadable as reason:
            self._problem("sources", name, str(reason))
        usable = [source for source in found if source]
        return usable if len(usable) == len(entries) else None

    def _source(
        self, recipe: Recipe, kind: str, entry: SourceEntry, row: dict[str, Any]
    ) -> Source | None:
        """Compare a prepared source with its entry in the recipe; None if it cannot be used."""
        where, image = f"{kind}/{entry.id}", row["image"]
        for column in checked_fields(SourceEntry):
            name, value, due = column.name, column.value_in(row), getattr(entry, column.name)
            if value != due:
                check = "credits" if name in _CREDITS else "sources"
                self._problem(check, where, f"its {name} is {value!r}, in the recipe {due!r}")
        foreground, width, height = kind == "foregrounds", entry.width, entry.height
        longest, shortest = max(width, height), min(width, height)
        fits = longest == recipe.largest_side if foreground else shortest == recipe.size
        if not fits or not (foreground or longest == recipe.size):
            self._problem("sources", where, f"is {width}x{height} px, not what the recipe makes")
            return None
        try:
            png: bytes = image["bytes"] if image else b""
            cells = [image, row.get("depth"), row.get("ground")]
            cells += [*(row.get("levels") or ()), *(row.get("relief") or ())]
            if any(cell and cell["path"] is not None for cell in cells):
                raise Unreadable("has a path beside its bytes")
            mode = "RGBA" if foreground else "RGB"
            opened = open_picture(png, (width, height), ("PNG",), (mode,))
            if foreground and np.asarray(opened)[..., 3].max() < ALPHA_IN_MASK:
                raise Unreadable("has no pixel that is at least half opaque")
            more = self._levels_and_backdrop(recipe, entry, row)
        except Unreadable as reason:
            self._problem("sources", where, f"its image {reason}")
            return None
        return replace(more, png=png) if row["id"] == entry.id else None

    def _levels_and_backdrop(
        self, recipe: Recipe, entry: SourceEntry, row: dict[str, Any]
    ) -> Source:
        with refusing("has smaller sizes, relief, depth or ground that cannot be read"):
            source = prepared_source(row, entry)
        for level in source.levels:
            alpha = np.asarray(open_picture(level, None, ("PNG",), ("RGBA",)))[..., 3]
            if alpha.max() < ALPHA_IN_MASK:
                raise Unreadable("has a size without a pixel that is at least half opaque")
        if "levels" not in row:
            return source
        if (1 + len(source.levels)) % len(recipe.turns_deg):
            raise Unreadable("has not as many sizes at one angle as at another")
        if source.sizes_sha256 != entry.prepared_sha256:
            raise Unreadable("has sizes that are not the recipe's, or relief that is not")
        return source

    # -- shards

    def _check_names(self, plan: Plan) -> bool:
        """Nothing missing, nothing extra; False where the plan is not worth walking through."""
        files, file_format = self._place.files, self._place.file_format
        if plan.n_shards > 2 * len(files) + 100:
            self._problem("files", "data", f"holds {len(files)} files of {plan.n_shards}")
            return False
        due = {
            shard_file(split, shard, file_format)
            for split in plan.splits.values()
            for shard in range(split.n_shards)
        }
        due |= {*FIXED_FILES}
        checked = {
            RECIPE_FILE,
            STATISTICS_FILE,
            CARD_FILE,
            TABLE_FILE,
            FOREGROUNDS_FILE,
            BACKGROUNDS_FILE,
        }
        for name in sorted(due - files.keys() - checked):
            self._problem("files", name, "is missing")
        left, foreign = [], []
        for name, file in sorted(files.items()):
            last = name.rstrip("/").rpartition("/")[2]
            if is_system_file(name) or is_temporary(last):
                left.append(name)
            elif name in due or name in _MAY_BE:
                if file.fault and name not in checked:
                    self._problem("files", name, file.fault)
            elif _MISLEADING.fullmatch(name) or name.startswith(_OUR_FOLDERS):
                self._problem("files", name, "is not part of the set")
            elif file.fault:
                self._problem("files", name, file.fault)
            elif not name.startswith("."):
                foreign.append(name)
        self._list("Left by a system or a killed command, and ignored", left)
        self._list("Not of the set: not checked, and not sent by a push", foreign)
        return True

    def _list(self, what: str, names: list[str]) -> None:
        if names:
            self._notes.append(f"{what}: {listed([*map(printable, names)])}.")

    def _check_files(self, stated: Mapping[str, OtherFile] | None) -> None:
        """Compare all files but shards and card with what the statistics say of them."""
        if stated is None:
            self._notes.append(
                "Made by version 0.1.0, which states no sha256 of page, sheet, preview and sources."
            )
            return
        others = {*FIXED_FILES, *(_MAY_BE & self._place.files.keys())}
        others -= {CARD_FILE, STATISTICS_FILE}
        for name in sorted(others - stated.keys()):
            self._problem("files", name, f"is not stated in {STATISTICS_FILE}")
        for name in sorted(stated.keys() - {*FIXED_FILES, *_MAY_BE}):
            self._problem("statistics", STATISTICS_FILE, f"states {shown(name)}, which no set has")
        for name, due in stated.items():
            file, path = self._place.files.get(name), self._place.root / name
            if file is None and name in _MAY_BE:
                self._problem("files", name, "is missing")
            if file is None or file.fault:
                continue  # reported by its name
            if file.size_bytes != due.size_bytes:
                what = f"is {file.size_bytes} bytes, by {STATISTICS_FILE} {due.size_bytes}"
                self._problem("files", name, what)
            elif (file.sha256 or path.is_file()) and due.sha256 != (
                file.sha256 or sha256_file(path)
            ):
                self._problem("files", name, f"its sha256 is not that of {STATISTICS_FILE}")

    def _check_splits(self, plan: Plan, stated: Mapping[str, Figures] | None) -> list[str]:
        """Check the shards of every split; return the splits whose statistics were recomputed."""
        pinned, complete = plan.pinned, []
        stages = [pinned.at(stage) for stage in range(len(pinned.stages) + 1)]
        for split in plan.splits.values():
            drawn = _drawn(split, plan, self._sample)
            statistics = Statistics.of(pinned.recipe) if drawn is None else None
            for shard in range(split.n_shards):
                name = shard_file(split, shard, self._place.file_format)
                if name not in self._place.files or self._place.files[name].fault:
                    continue
                wanted = None if drawn is None else drawn.get(shard, np.zeros(0, np.int64))
                entry = stated[split.name].shards[shard] if stated else None
                rows = split.shard_range(shard)
                one = _Shard(split, plan, name, rows, wanted, entry, stages[split.stage(shard)])
                self._check_shard(one, statistics)
            # A record with a fault was not counted; then the sums cannot be equal anyway.
            if stated and statistics and statistics.rows == split.n_records:
                self._compare_statistics(split.name, statistics, stated[split.name].statistics)
                complete.append(split.name)
        return complete

    def _check_shard(self, shard: _Shard, statistics: Statistics | None) -> None:
        place, name = self._place, shard.name
        rows = shard.range[1] - shard.range[0]
        self._check_stated(shard)
        looked_into = place.is_local or shard.wanted is None or len(shard.wanted) > 0
        stated = place.files[name].sha256
        if not looked_into and stated is not None:
            self._check_sha256(shard, stated)
            return
        try:
            keep = self._sample is None and shard.range[0] == 0  # sheet and page show its records
            with place.opened(name, shard.wanted is None, keep) as source:
                own = sha256_file(source) if isinstance(source, Path) else stated
                self._check_sha256(shard, own)
                table = Table(source, place.file_format)
                self._check_table(shard, table, rows)
                columns = [column.name for column in record_columns(shard.plan.pinned.recipe)]
                for number, row in table.rows(columns, shard.wanted):
                    if "depth" in row and shard.range[0] + number < TABLE_RECORDS:
                        self._first_depths[row["record_id"]] = row["depth"]
                    self._check_record(shard.name, shard.plan, row, statistics)
                    self._counts.records += 1
                    self._progress(1)
        except Unreadable as reason:
            self._problem("files", name, str(reason))

    def _check_stated(self, shard: _Shard) -> None:
        """Compare what the statistics say of a shard with what lies there."""
        file, stated = self._place.files[shard.name], shard.stated
        if stated is None:
            return
        if stated.size_bytes != file.size_bytes:
            what = f"is {file.size_bytes} bytes, by {STATISTICS_FILE} {stated.size_bytes}"
            self._problem("files", shard.name, what)

    def _check_sha256(self, shard: _Shard, sha256: str | None) -> None:
        self._counts.hashed += 1
        if shard.stated is not None and shard.stated.sha256 != sha256:
            self._problem("files", shard.name, f"its sha256 is not that of {STATISTICS_FILE}")

    def _check_table(self, shard: _Shard, table: Table, rows: int) -> None:
        self._counts.read += 1
        pinned = shard.pinned  # an extension may have brought classes that this shard knows not of
        if table.n_rows > 2 * rows + 100:  # ids of a few bytes may be said to be many
            raise Unreadable(f"has {table.n_rows} rows, by the plan {rows}")
        columns = record_columns(pinned.recipe, pinned.categories)
        if different := wrong_columns(table.schema, columns):
            raise Unreadable(different)
        self._check_metadata(
            shard.name, table, columns, pinned, extended=bool(shard.plan.pinned.stages)
        )
        held, due = table.integers("record_id"), shard.split.record_ids(*shard.range)
        if not np.array_equal(held, due):
            self._tell_ids(shard, held, due)

    def _check_metadata(
        self,
        name: str,
        table: Table,
        columns: tuple[Column, ...],
        pinned: PinnedRecipe | None,
        extended: bool = False,
    ) -> None:
        """Compare all that a file says of itself: its features and, of a shard, its recipe."""
        from datasets import Features

        metadata = table.schema.metadata or {}
        due = _METADATA | ({b"fgbg"} if pinned else set())
        if foreign := sorted(metadata.keys() - due):
            self._problem("files", name, f"has metadata of another hand: {shown(foreign[0])}")
        with refusing("has metadata that cannot be read"):
            content = parse_json(metadata[b"huggingface"].decode())
            held = Features.from_dict(content["info"].pop("features"))
            if content != {"info": {}} or held != features(columns):
                self._problem("files", name, "has other features by its metadata")
            if pinned is None:
                return
            content = parse_json(metadata[b"fgbg"].decode())
            recipe, depth = read(Recipe, content["recipe"], name), content.get("depth")
            mine: list[Any] = [content["fingerprint"], decisive(recipe)]
            mine.append(decisive(read(DepthInfo, depth, name)) if depth else None)
        theirs: list[Any] = [pinned.fingerprint, decisive(pinned.recipe)]
        theirs.append(decisive(pinned.depth) if pinned.depth else None)
        if not extended:  # of an extension the same weights may have another name
            mine.append(depth and depth.get("model"))
            theirs.append((public := pinned.public().depth) and public.model)
        if mine != theirs or not content.keys() <= {"fingerprint", "recipe", "depth"}:
            self._problem("recipe", name, "is of another fingerprint by its metadata")

    def _tell_ids(self, shard: _Shard, held: Ids, due: Ids) -> None:
        ids, counts = np.unique(held, return_counts=True)
        missing, foreign = np.setdiff1d(due, ids), np.setdiff1d(ids, due)
        for record, n in zip(ids[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
            self._problem("ids", shard.name, f"holds record {record} {n} times")
        for record in missing.tolist():
            self._problem("ids", shard.name, f"lacks record {record}")
        for record in foreign.tolist():
            home = _home(shard.plan, record)
            if home not in (None, shard.split.name):
                self._problem("splits", shard.name, f"holds record {record}, which is of {home}")
            else:
                self._problem("ids", shard.name, f"holds record {record}, which is not due there")
        if np.array_equal(np.sort(held), np.sort(due)):
            row = int(np.flatnonzero(held != due)[0])
            self._problem(
                "ids", shard.name, f"row {row} is record {held[row]}, by the plan {due[row]}"
            )

    def _check_record(
        self, file: str, plan: Plan, row: dict[str, Any], statistics: Statistics | None
    ) -> None:
        record_id = row["record_id"]
        if not 0 <= record_id < plan.pinned.n_possible:
            return  # reported by its id
        again = self._renderer.compose(record_id) if self._renderer else None
        faults = self._check.faults(row, again, statistics)
        for check, what in faults:
            self._problem(check, f"{file} record {record_id}", what)
        if again is not None and file != TABLE_FILE:
            misfit = any(check == "pixel_hash" for check, _ in faults)
            for source in (
                ("backgrounds", again.background_id),
                ("foregrounds", again.foreground_id),
            ):
                self._counts.composed[source] += 1
                self._counts.misfits[source] += misfit

    def _check_preview(self, plan: Plan) -> None:
        """Check the records of the config `preview`, which are copies of some of the set."""
        try:
            table = self._table(TABLE_FILE)
            columns = preview_columns(
                plan.pinned.recipe, plan.pinned.categories, table.schema.names
            )
            if different := wrong_columns(table.schema, columns):
                raise Unreadable(different)
            self._check_metadata(TABLE_FILE, table, columns, None)
            ids = table.integers("record_id").tolist()
            due = [
                record
                for name, count in table_counts(plan).items()
                for record in plan.splits[name].record_ids(0, count).tolist()
            ]
            if ids != due:
                raise Unreadable(f"does not hold the first {len(due)} records; {_ANEW}")
            pictures = []
            for _, row in table.rows([column.name for column in columns]):
                home, split = _home(plan, row["record_id"]), row.pop(columns[-1].name)
                if home is None or split != home:
                    where = f"{TABLE_FILE} record {row['record_id']}"
                    self._problem("preview", where, f"is of split {home}")
                pictures.append((row["record_id"], row.get("depth"), row.pop("depth_colour", None)))
                self._check_record(TABLE_FILE, plan, row, None)
            if plan.pinned.depth:
                self._check_colours(plan.pinned, pictures)
        except Unreadable as reason:
            self._problem("preview", TABLE_FILE, str(reason))

    def _check_colours(self, pinned: PinnedRecipe, rows: list[tuple[int, Any, Any]]) -> None:
        """Compare the preview's depth with the set's, and its coloured depth with its depth."""
        with refusing("has depth that cannot be read"):
            colours = coloured(pinned, [depth["bytes"] for _, depth, _ in rows])
        for (record_id, depth, shown_as), due in zip(rows, colours, strict=True):
            where = f"{TABLE_FILE} record {record_id}"
            if self._first_depths.get(record_id, depth) != depth:
                self._problem("preview", where, "has other depth than the set")
            try:
                height, width = due.shape[:2]
                data = (shown_as or {}).get("bytes")
                if (shown_as or {}).get("path") is not None:
                    raise Unreadable("has a path beside its bytes")
                held = np.asarray(open_picture(data, (width, height), modes=("RGB",)))
            except Unreadable as reason:
                self._problem("preview", where, f"depth_colour {reason}")
                continue
            if np.abs(held.astype(np.int16) - due).mean() > _COLOUR_LEVELS:
                self._problem("preview", where, "has depth_colour of other depth")

    def _blame_sources(self) -> None:
        """Name the sources most of whose records are of other pixels; others only met those."""
        for (kind, name), n in self._counts.composed.items():
            misfits = self._counts.misfits[kind, name]
            if n > 1 and 2 * misfits > n:
                self._problem(
                    "sources",
                    f"{kind}/{name}",
                    f"{misfits} of its {n} records checked were composed of another image",
                )

    # -- figures

    def _compare_statistics(self, split: str, counted: Statistics, stated: Statistics) -> None:
        mine, theirs = counted.to_json(), stated.to_json()
        wrong = [key for key in ("rows", "size_bytes") if theirs[key] != mine[key]]
        wrong += [k for k, tally in mine["tallies"].items() if theirs["tallies"][k] != tally]
        if self._renderer is None and "left_out" in wrong:
            wrong.remove("left_out")  # which shows where a record is composed again alone
        if wrong:
            where, said = f"{STATISTICS_FILE} {split}", ", ".join(wrong)
            self._problem("statistics", where, f"{said}: not what the records hold")

    def _card(self) -> None:
        """Compare the figures of the card, and its own blocks, with those of one written now."""
        text = self._text("card", CARD_FILE)
        if text is None:
            return
        try:
            with refusing("cannot be written again"):
                (held, body), (due, own) = map(card_parts, (text, card_text(self._place.root)))
        except Unreadable as reason:
            self._problem("card", CARD_FILE, str(reason))
            return
        version = _CARD_VERSION.search(text)
        same = version is None or version[1] == __version__
        for key, what in _changed_keys(held, due, same):
            self._problem("card", f"{CARD_FILE} {key}", what)
        compare = _changed_lines if same else _changed_figures
        lines = text.splitlines()
        for name, block in blocks_of(own).items():
            theirs = blocks_of(body).get(name)
            if theirs is None:
                self._problem("card", CARD_FILE, f"has no block fgbg:{name}; see fgbg card")
            elif theirs is not None:
                mark = next(n for n, line in enumerate(lines) if f"fgbg:{name} begin" in line)
                for number, what in compare(theirs, block):
                    self._problem("card", f"{CARD_FILE} line {mark + number + 1}", what)

    def _check_shown(self, plan: Plan) -> None:
        """Make sheet and page of what was checked again, and compare."""
        place = self._place
        version = _CARD_VERSION.search(read_text(place.root / CARD_FILE, MAX_BYTES[CARD_FILE]))
        if version is None or version[1] != __version__:
            self._notes.append("Sheet and page are of another version, and were not made again.")
            return
        if not isinstance(place, Folder) and self._sample is not None:
            self._notes.append("Sheet and page were not made again (see --all).")
            return
        sheet, page = draw_preview(place.root, plan.pinned)
        if not same_picture((place.root / SHEET_FILE).read_bytes(), sheet):
            self._problem("preview", SHEET_FILE, f"shows something else than the set; {_ANEW}")
        if not same_page((place.root / PAGE_FILE).read_bytes(), page.encode()):
            self._problem("preview", PAGE_FILE, f"is not the page of this set; {_ANEW}")
        hint = place.root / FIFTYONE_FILE
        if hint.exists() and hint.read_text(encoding="utf-8") != FIFTYONE_HINT:
            self._problem("preview", FIFTYONE_FILE, f"is not that of this set; {_ANEW}")

    def _check_info(self, plan: Plan) -> None:
        """Compare `dataset_info.json`, which a build leaves for `datasets`, with the set."""
        from datasets import Features

        if INFO_FILE not in self._place.files or not isinstance(self._place, Folder):
            return
        if (text := self._text("files", INFO_FILE)) is None:
            return
        try:
            with refusing("is not as a build writes it"):
                content = parse_json(text)
                held = {name: split["num_examples"] for name, split in content["splits"].items()}
                same = Features.from_dict(content["features"]) == features(
                    record_columns(plan.pinned.recipe, plan.pinned.categories)
                )
        except Unreadable as reason:
            self._problem("files", INFO_FILE, str(reason))
            return
        if not same or held != {split.name: split.n_records for split in plan.splits.values()}:
            self._problem("files", INFO_FILE, "speaks of other columns or records than the set has")

    def _check_loading(self, plan: Plan) -> None:
        """Let `datasets` say what it would load, without reading it: this very set, all of it."""
        from datasets import load_dataset_builder

        place = self._place
        due = record_columns(plan.pinned.recipe, plan.pinned.categories)
        where: dict[str, Any] = {"path": str(place.root)}
        if isinstance(place, Repo):
            where |= {"path": place.name, "revision": place.revision, "token": place.token}
        try:
            with (
                TemporaryDirectory(prefix="fgbg-verify-") as cache,
                refusing("makes load_dataset fail", request_errors()),
            ):
                if not isinstance(place, Repo) and not loads_by_path(str(place.root)):
                    where["path"] = _linked(place.root, place.files, Path(cache) / "set")
                loaded = load_dataset_builder(**where, cache_dir=cache)
        except Unreadable as reason:
            self._problem("card", CARD_FILE, f"{reason}; see fgbg card")
            return
        config: Any = loaded.config
        held = {
            str(split): sorted(str(file).rpartition("/")[2] for file in files)
            for split, files in (config.data_files or {}).items()
        }
        files = {
            split.name: sorted(
                shard_file(split, shard, place.file_format).rpartition("/")[2]
                for shard in range(split.n_shards)
            )
            for split in plan.splits.values()
        }
        wrong = {
            "files": held != files,
            "format": place.file_format not in type(loaded).__module__,
            "columns": getattr(config, "columns", None) is not None,
            "filters": getattr(config, "filters", None) is not None,
            "features": loaded.info.features != features(due),
        }
        if others := [name for name, is_wrong in wrong.items() if is_wrong]:
            what = f"makes load_dataset give other {', '.join(others)}; see fgbg card"
            self._problem("card", CARD_FILE, what)


def _linked(root: Path, names: Iterable[str], folder: Path) -> str:
    """Make a folder of links to the files of a set, and return its path."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((root / name).absolute())
    return str(folder)


@dataclass(frozen=True)
class _Shard:
    """A shard to check: its place in the plan, the rows wanted (None: all), what is stated.

    `pinned` is the set it was made for; of an extended set, before the extension.
    """

    split: SplitPlan
    plan: Plan
    name: str
    range: tuple[int, int]
    wanted: npt.NDArray[np.int64] | None
    stated: DataFile | None
    pinned: PinnedRecipe


def _home(plan: Plan, record_id: int) -> str | None:
    """Return the split that a record is of."""
    if not 0 <= record_id < plan.pinned.n_possible:
        return None
    what, pinned = plan.combination(record_id), plan.pinned
    sides = (
        pinned.foregrounds[what.foreground].held_out,
        pinned.backgrounds[what.background].held_out,
    )
    return next(name for name, held_out in SPLITS.items() if held_out == sides)


def _drawn(
    split: SplitPlan, plan: Plan, sample: int | None
) -> dict[int, npt.NDArray[np.int64]] | None:
    """Draw rows of a split by shard, in blocks of neighbours; None: every row."""
    if sample is None:
        return None
    n = split.n_records
    wanted = -(-sample * n // plan.n_records)
    if wanted >= n:
        return None
    blocks = max(1, n // _BLOCK_RECORDS)  # the last one is longer
    # Not against a forger, who can know it: --all is. So that a second run looks at the same.
    rng = random.Random(f"{plan.pinned.fingerprint} {split.name}")  # noqa: S311
    rows: dict[int, list[int]] = {}
    for block in rng.sample(range(blocks), min(blocks, -(-wanted // _BLOCK_RECORDS))):
        start = block * _BLOCK_RECORDS
        for position in range(start, n if block == blocks - 1 else start + _BLOCK_RECORDS):
            shard = split.shard_at(position)
            rows.setdefault(shard, []).append(position - split.shard_range(shard)[0])
    return {shard: np.asarray(sorted(numbers), np.int64) for shard, numbers in rows.items()}


def _changed_keys(
    held: dict[str, Any], due: dict[str, Any], same: bool
) -> Iterator[tuple[str, str]]:
    """Give (key, what is wrong) for what a build decides of the card's YAML.

    A person's own keys and configs are compared with nothing, wherever they stand. A card of
    another version (`same` is False) may lack the description of a config.
    """
    for key, value in due.items():
        if key not in ("configs", "dataset_info"):
            yield from _difference(held.get(key), value, key)
            continue
        mine = own_entries(due, key)
        theirs = [e for e in entries_of(held, key) if e.get("config_name") in mine]
        for name, entry in mine.items():
            found = [e for e in theirs if e.get("config_name") == name]
            if len(found) > 1:
                yield f"{key}[{name}]", f"stands there {len(found)} times"
            elif found or same or key == "configs":
                yield from _difference(found[0] if found else None, entry, f"{key}[{name}]")
    ours = own_entries(due, "configs")
    for entry in entries_of(held, "configs"):
        if entry.get("default") and entry.get("config_name") not in ours:
            where = f"configs[{shown(entry.get('config_name'))}]"
            yield where, "is the default too; the records' config alone is"


def _difference(held: Any, due: Any, key: str) -> Iterator[tuple[str, str]]:
    """Give (key, what is wrong) for values that are not as they should be, neither more nor less.

    The card was parsed without aliases, so its values are no larger than its text.
    """
    if isinstance(due, dict) and isinstance(held, dict):
        for name in {**due, **held}:
            yield from _difference(held.get(name), due.get(name), f"{key}.{printable(str(name))}")
    elif isinstance(due, list) and isinstance(held, list) and len(due) == len(held):
        for number, (theirs, ours) in enumerate(zip(held, due, strict=True)):
            name = ours.get("name", number) if isinstance(ours, dict) else number
            yield from _difference(theirs, ours, f"{key}[{name}]")
    elif type(held) is not type(due) or held != due:
        yield key, f"is {_named(held)}, by the data it is {_named(due)}"


def _named(value: Any) -> str:
    """Return a value of the YAML as it is quoted; of a large one its kind."""
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "missing" if value is None else shown(value)


def _changed_lines(held: str, due: str) -> Iterator[tuple[int, str]]:
    """Give (line number, what is wrong) for the first lines of a block that are not as due."""
    pairs = zip_longest(held.splitlines(), due.splitlines(), fillvalue="")
    changed = ((number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
    for number, (theirs, ours) in islice(changed, _MAX_CHANGED):
        yield number, f"says {shown(theirs)}, by the data it is {shown(ours)}"


def _changed_figures(held: str, due: str) -> Iterator[tuple[int, str]]:
    """Give (line number, what is wrong) for cells of tables that are not as they are due.

    Rows are found by their first cell and columns by their heading, since another version may
    have arranged them otherwise.
    """
    theirs, ours = tables_of(held), tables_of(due)
    for row, (number, cells) in theirs.items():
        _, right = ours.get(row, (0, {}))
        for heading in cells.keys() & right.keys() - {"meaning"}:  # words, which versions change
            if cells[heading] != right[heading]:
                said = f"says {shown(cells[heading])} as {heading} of {shown(row[0])}"
                yield number, f"{said}, by the data it is {shown(right[heading])}"
    for row in ours.keys() - theirs.keys():
        yield 0, f"does not speak of {shown(row[0])}"
