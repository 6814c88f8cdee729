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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from builder import __version__
from builder.errors import FgbgError, NewerVersionError, RecipeError
from builder.files import read_text, sha256_file
from builder.layout import (
    CARD_FILE,
    RECIPE_FILE,
    SOURCES_FILE,
    STATISTICS_FILE,
    TABLE_FILE,
    shard_file,
)
from builder.pinned import PinnedRecipe, SourceEntry
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
from builder.release.access import (
    MAX_BYTES,
    Folder,
    Repo,
    Stored,
    Table,
    open_image,
    open_place,
    wrong_columns,
)
from builder.release.card import card_parts, card_text
from builder.release.preview import TABLE_RECORDS
from builder.release.record_check import RecordCheck
from builder.schema import preview_columns, record_columns, source_columns
from builder.sources import Source, SourceBank, uncredited
from builder.typed import checked_fields
from builder.untrusted import Unreadable, parse_json, printable, refusing, shown

_BLOCK_RECORDS = 25  # neighbours in a shard that are drawn together, for they are read together
_MAX_PER_CHECK = 1000
_MAX_CHARACTERS = 500  # of a sentence, which may quote what is foreign
_MAX_FOREIGN_LINES = 1000  # of a card; comparing far more takes long
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
        told: Counter[str] = Counter(problem.check for problem in self.problems)
        shown: Counter[str] = Counter()
        for problem in self.problems:
            shown[problem.check] += 1
            if shown[problem.check] <= most:
                lines.append(f"  {problem.check}: {problem.where}: {problem.what}")
        lines += [f"  {check}: {n - most} more" for check, n in told.items() if n > most]
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
            stated = self._statistics(pinned, plan)
            bank = self._sources(pinned)
            self._check = RecordCheck(pinned)
            self._renderer = Renderer(plan, bank, None) if bank else None
            if self._check_names(plan):
                complete = self._check_splits(plan, stated)
            self._check_preview(plan)
            self._blame_sources()
            if stated is not None and bank is not None:
                self._card()
            if pinned.depth:
                self._notes.append(
                    "Depth was checked for size, range and grid and counted, not estimated again."
                )
                counts = {name: split[1] for name, split in (stated or {}).items()}
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
            return read_text(self._place.root / name, MAX_BYTES[name])
        except FileNotFoundError:  # of a repository, what is too large was not fetched
            self._problem(check, name, f"is missing, or larger than {MAX_BYTES[name]} bytes")
        except (OSError, ValueError) as error:
            self._problem(check, name, f"cannot be read ({error})")
        return None

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
        self, pinned: PinnedRecipe, plan: Plan
    ) -> dict[str, tuple[list[dict[str, Any]], Statistics]] | None:
        """Return for each split its files as stated, and its statistics as stated."""
        text = self._text("statistics", STATISTICS_FILE)
        if text is None:
            return None
        try:
            with refusing("is not as fgbg build writes it"):
                content = parse_json(text)
                if content["fingerprint"] != pinned.fingerprint:
                    self._problem("statistics", STATISTICS_FILE, "is of another fingerprint")
                if list(content["splits"]) != list(plan.splits):
                    raise Unreadable(f"has not the splits of the recipe: {', '.join(plan.splits)}")
                stated = {}
                for name, split in content["splits"].items():
                    if len(split["shards"]) != plan.splits[name].n_shards:
                        raise Unreadable(f"names {len(split['shards'])} files of {name}")
                    for shard in split["shards"]:
                        str(shard["sha256"]), int(shard["size_bytes"]), int(shard["rows"])
                    counts = Statistics.from_json(split["statistics"])
                    if counts.tallies["mask_px"].counts.shape[1] != pinned.recipe.size**2 + 1:
                        raise Unreadable("counts pixels of records of another size")
                    stated[name] = split["shards"], counts
                return stated
        except Unreadable as reason:
            self._problem("statistics", STATISTICS_FILE, str(reason))
            return None

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
            if not (self._place.root / name).is_file():
                raise Unreadable("is missing")
            table = Table(self._place.root / name, "parquet")
            columns = source_columns(table.schema.names)
            if different := wrong_columns(table.schema, columns):
                raise Unreadable(different)
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
        where, image = f"{kind}/{entry.id}", row.pop("image")
        for column in checked_fields(SourceEntry):
            name, value, due = column.name, column.value_in(row), getattr(entry, column.name)
            if value != due:
                check = "credits" if name in ("author", "license", "url") else "sources"
                self._problem(check, where, f"its {name} is {value!r}, in the recipe {due!r}")
        foreground, width, height = kind == "foregrounds", entry.width, entry.height
        longest, shortest = max(width, height), min(width, height)
        fits = longest == recipe.foreground_size if foreground else shortest == recipe.size
        if not fits or not (foreground or longest == recipe.size):
            self._problem("sources", where, f"is {width}x{height} px, not what the recipe makes")
            return None
        try:
            png: bytes = image["bytes"] if image else b""
            opened = open_image(png, ("PNG",), (width, height), ("RGBA" if foreground else "RGB",))
            if foreground and np.asarray(opened)[..., 3].max() < ALPHA_IN_MASK:
                raise Unreadable("has no pixel that is at least half opaque")
        except Unreadable as reason:
            self._problem("sources", where, f"its image {reason}")
            return None
        return Source(entry, png) if row["id"] == entry.id else None

    # -- shards

    def _check_names(self, plan: Plan) -> bool:
        """Nothing missing, nothing extra; False where the plan is not worth walking through."""
        files, file_format = set(self._place.files), self._place.file_format
        if plan.n_shards > 2 * len(files) + 100:
            self._problem("files", "data", f"holds {len(files)} files of {plan.n_shards}")
            return False
        due = {
            shard_file(split, shard, file_format)
            for split in plan.splits.values()
            for shard in range(split.n_shards)
        }
        for name in sorted(due - files):
            self._problem("files", name, "is missing")
        for name in sorted(files - due):
            self._problem("files", name, "is not part of the set")
        return True

    def _check_splits(self, plan: Plan, stated: Mapping[str, Any] | None) -> list[str]:
        """Check the shards of every split; return the splits whose statistics were recomputed."""
        pinned, complete = plan.pinned, []
        fingerprints = [pinned.at(stage).fingerprint for stage in range(len(pinned.stages) + 1)]
        for split in plan.splits.values():
            drawn = _drawn(split, plan, self._sample)
            statistics = Statistics(pinned.recipe.size) if drawn is None else None
            for shard in range(split.n_shards):
                name = shard_file(split, shard, self._place.file_format)
                if name not in self._place.files:
                    continue
                wanted = None if drawn is None else drawn.get(shard, np.zeros(0, np.int64))
                entry = stated[split.name][0][shard] if stated else None
                fingerprint = fingerprints[split.stage(shard)]
                rows = split.shard_range(shard)
                one = _Shard(split, plan, name, rows, wanted, entry, fingerprint)
                self._check_shard(one, statistics)
            # A record with a fault was not counted; then the sums cannot be equal anyway.
            if stated and statistics and statistics.rows == split.n_records:
                self._compare_statistics(split.name, statistics, stated[split.name][1])
                complete.append(split.name)
        return complete

    def _check_shard(self, shard: _Shard, statistics: Statistics | None) -> None:
        place, name = self._place, shard.name
        rows = shard.range[1] - shard.range[0]
        self._check_stated(shard, rows)
        looked_into = place.is_local or shard.wanted is None or len(shard.wanted) > 0
        stated = place.files[name].sha256
        if not looked_into and stated is not None:
            self._check_sha256(shard, stated)
            return
        try:
            with place.opened(name, whole=shard.wanted is None) as source:
                own = sha256_file(source) if isinstance(source, Path) else stated
                self._check_sha256(shard, own)
                table = Table(source, place.file_format)
                self._check_table(shard, table, rows)
                columns = [column.name for column in record_columns(shard.plan.pinned.recipe)]
                for _, row in table.rows(columns, shard.wanted):
                    self._check_record(shard.name, shard.plan, row, statistics)
                    self._counts.records += 1
                    self._progress(1)
        except Unreadable as reason:
            self._problem("files", name, str(reason))

    def _check_stated(self, shard: _Shard, rows: int) -> None:
        """Compare what the statistics say of a shard with the plan, and with what lies there."""
        file, stated = self._place.files[shard.name], shard.stated
        if stated is None:
            return
        if stated.get("file") != shard.name or stated["rows"] != rows:
            self._problem(
                "statistics", shard.name, f"is stated otherwise than the plan's {rows} rows"
            )
        if stated["size_bytes"] != file.size_bytes:
            self._problem(
                "files",
                shard.name,
                f"is {file.size_bytes} bytes, by {STATISTICS_FILE} {stated['size_bytes']}",
            )

    def _check_sha256(self, shard: _Shard, sha256: str | None) -> None:
        self._counts.hashed += 1
        if shard.stated is not None and shard.stated["sha256"] != sha256:
            self._problem("files", shard.name, f"its sha256 is not that of {STATISTICS_FILE}")

    def _check_table(self, shard: _Shard, table: Table, rows: int) -> None:
        self._counts.read += 1
        pinned = shard.plan.pinned
        if table.n_rows > 2 * rows + 100:  # ids of a few bytes may be said to be many
            raise Unreadable(f"has {table.n_rows} rows, by the plan {rows}")
        if different := wrong_columns(table.schema, record_columns(pinned.recipe)):
            raise Unreadable(different)
        with refusing("has metadata that cannot be read"):
            content = parse_json((table.schema.metadata or {}).get(b"fgbg", b"{}").decode())
            fingerprint = content.get("fingerprint")
        if fingerprint != shard.fingerprint:
            self._problem("recipe", shard.name, "is of another fingerprint by its metadata")
        held, due = table.integers("record_id"), shard.split.record_ids(*shard.range)
        if not np.array_equal(held, due):
            self._tell_ids(shard, held, due)

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
            return  # told of by its id
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
            if not (self._place.root / TABLE_FILE).is_file():
                raise Unreadable("is missing")
            table, columns = Table(self._place.root / TABLE_FILE, "parquet"), preview_columns
            if different := wrong_columns(table.schema, columns(plan.pinned.recipe)):
                raise Unreadable(different)
            if table.n_rows > TABLE_RECORDS:
                raise Unreadable(f"has {table.n_rows} rows, more than {TABLE_RECORDS}")
            homes = [_home(plan, record_id) for record_id in table.integers("record_id").tolist()]
            names = [column.name for column in columns(plan.pinned.recipe)]
            for number, row in table.rows(names):
                if homes[number] is None or row.pop("split") != homes[number]:
                    where = f"{TABLE_FILE} record {row['record_id']}"
                    self._problem("preview", where, f"is of split {homes[number]}")
                self._check_record(TABLE_FILE, plan, row, None)
        except Unreadable as reason:
            self._problem("preview", TABLE_FILE, str(reason))

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
        if wrong:
            where, said = f"{STATISTICS_FILE} {split}", ", ".join(wrong)
            self._problem("statistics", where, f"{said}: not what the records hold")

    def _card(self) -> None:
        """Compare the card with the one that would be written now."""
        text = self._text("card", CARD_FILE)
        if text is None:
            return
        version = _CARD_VERSION.search(text)
        if version and version[1] != __version__:
            self._notes.append(
                f"The card is by fgbg-dataset {version[1]}, this is {__version__}: not compared."
            )
            return
        try:
            with refusing("cannot be written again"):
                (held, body), (due, own) = map(card_parts, (text, card_text(self._place.root)))
                differences = list(_changed_keys(held, due, "", set()))
        except Unreadable as reason:
            self._problem("card", CARD_FILE, str(reason))
            return
        for key, what in differences:
            self._problem("card", f"{CARD_FILE} {key.lstrip('.')}", what)
        above = len(text.splitlines()) - len(body.lstrip().splitlines())
        lines, expected = body.strip().splitlines(), own.strip().splitlines()
        if len(lines) > len(expected) + _MAX_FOREIGN_LINES:
            self._problem("card", CARD_FILE, f"has {len(lines)} lines, by the data {len(expected)}")
            return
        for line, what in _changed_lines(lines, expected):
            self._problem("card", f"{CARD_FILE} line {above + line}", what)


@dataclass(frozen=True)
class _Shard:
    """A shard to check: its place in the plan, the rows wanted (None: all), what is stated.

    `fingerprint` is that of the set it was made for; of an extended set, before the extension.
    """

    split: SplitPlan
    plan: Plan
    name: str
    range: tuple[int, int]
    wanted: npt.NDArray[np.int64] | None
    stated: Mapping[str, Any] | None
    fingerprint: str


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
    held: Any, due: Any, key: str, seen: set[tuple[int, int]]
) -> Iterator[tuple[str, str]]:
    """Give (key, what is wrong) for values of the card's YAML that are not as they should be.

    `seen` are pairs compared before: YAML can name one value in very many places.
    """
    if isinstance(due, (dict, list)):
        if (id(held), id(due)) in seen:
            return
        seen.add((id(held), id(due)))
    if isinstance(due, dict) and isinstance(held, dict):
        for name, value in due.items():
            yield from _changed_keys(held.get(name), value, f"{key}.{name}", seen)
    elif isinstance(due, list) and isinstance(held, list) and len(due) == len(held):
        for number, (theirs, ours) in enumerate(zip(held, due, strict=True)):
            names = ours if isinstance(ours, dict) else {}
            name = names.get("config_name", names.get("name", number))
            yield from _changed_keys(theirs, ours, f"{key}[{name}]", seen)
    elif type(held) is not type(due) or held != due:
        yield key, f"is {_named(held)}, by the data it is {_named(due)}"


def _named(value: Any) -> str:
    """Return a value of the YAML as it is told; of a large one its kind."""
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return "missing" if value is None else shown(value)


def _changed_lines(held: list[str], due: list[str]) -> Iterator[tuple[int, str]]:
    """Give (line number, what is wrong) for lines that are not as they should be."""
    for kind, start, stop, first, last in SequenceMatcher(None, held, due).get_opcodes():
        if kind == "equal":
            continue
        both = min(stop - start, last - first)
        for n in range(both):
            says, data = shown(held[start + n]), shown(due[first + n])
            yield start + n + 1, f"says {says}, by the data it is {data}"
        if more := stop - start - both:
            says = shown(held[start + both])
            yield start + both + 1, f"says {says}, which is not of the data ({more} such lines)"
        if more := last - first - both:
            data = shown(next(filter(None, due[first + both : last]), ""))
            yield stop + 1, f"is where {data} is missing ({more} lines in all)"
