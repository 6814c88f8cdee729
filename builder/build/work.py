"""The set being built: its prepared sources, its hidden work folder, its finished folder.

OUT/README.md, recipe.json           the card and the pinned recipe
OUT/data/<split>-NNNNN-of-NNNNN.parquet
OUT/foregrounds/, OUT/backgrounds/   the prepared sources, configs of their own
OUT/preview/                         a sample with coloured depth, a config of its own
OUT/assets/statistics.json           exact statistics and the sha256 of every shard
.OUT.fgbg/                           beside OUT while it is being built, gone afterwards

Several builds, on several machines, may be at work in one work folder. What one has made is never
changed by another: files are created, or replaced by the same, and OUT appears by one rename.
On an object store, where nothing can be renamed, OUT is complete when its recipe.json appears.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from builder.build.leases import Owner, Presence
from builder.build.machine import n_cores
from builder.build.project import Project
from builder.build.shards import Commit, is_done, read_commit, stored_name
from builder.errors import NotABuildError, OutputError, RecipeError, RecipeMismatchError
from builder.files import create_bytes, link_or_copy, read_text, sha256_file, write_text
from builder.layout import (
    CARD_FILE,
    FOLDERS,
    RECIPE_FILE,
    SOURCES_FILE,
    STATISTICS_FILE,
    DataFile,
    Figures,
    built_format,
    is_complete,
    read_recipe,
    read_statistics,
    shard_file,
    write_statistics,
)
from builder.pinned import PinnedRecipe
from builder.recipe import Recipe
from builder.record import Plan, SplitPlan, Statistics
from builder.remote import Place, StorePath
from builder.sources import Kind, Source, duplicates, read_sources, write_sources
from builder.tables import FileFormat, arrow_to_parquet
from builder.typed import refuse_newer
from builder.untrusted import parse_json, printable

FINISH = "finish"  # what is claimed to put the set together
WORK_VERSION = 2  # of the work folder's layout; 1 had no claims and held no file that says so


_PREPARATION_FIELDS = ("size", "foreground_size", "background_fit")


class WorkFolder:
    """The hidden folder beside OUT where a set is made; it goes away when OUT is complete."""

    def __init__(self, out: Place) -> None:
        self.out = out
        self.path = out.parent / f".{out.name}.fgbg"
        self.recipe = self.path / RECIPE_FILE
        self.shards = self.path / "shards"
        self.publishing = self.path / "publishing"  # while a set is copied to OUT on a store
        self._version = self.path / "version.json"
        self._before = self.path / "before"  # where OUT lies while its extension takes its place

    def sources(self, kind: Kind, fingerprint: str) -> Place:
        """Return the file that holds the prepared sources of a kind, for a recipe's fingerprint."""
        return self.path / fingerprint[:16] / f"{kind}s" / SOURCES_FILE

    def held(self) -> PinnedRecipe | None:
        """Return the recipe of the build that was begun here, if any.

        Raises:
            OutputError: it is damaged.
        """
        try:
            return read_recipe(self.path) if self.recipe.is_file() else None
        except RecipeError as error:
            raise OutputError(f"{error}\nDelete {self.path} to start again.") from None

    def known_sources(self, kind: Kind, recipe: Recipe) -> dict[str, Source]:
        """Return the sources, by file, that an interrupted build prepared in the same way."""
        held = self.held()
        if held is None or any(
            getattr(held.recipe, name) != getattr(recipe, name) for name in _PREPARATION_FIELDS
        ):
            return {}
        try:
            sources = read_sources(self.sources(kind, held.fingerprint))
        except NotABuildError:
            return {}  # prepared again, as a damaged shard is made again
        return {source.entry.file: source for source in sources}

    def finished_sources(self, kind: Kind) -> list[Source]:
        """Return the prepared sources of the finished set in OUT, if there is one."""
        path = self.out / f"{kind}s" / SOURCES_FILE
        return read_sources(path) if path.is_file() else []

    def restore(self) -> None:
        """Bring OUT back if a build was killed while it put the extended set in its place."""
        if isinstance(self._before, Path) and not self.out.exists() and self._before.is_dir():
            self._before.rename(str(self.out))

    @contextmanager
    def entered(self, fingerprint: str, expiry_s: float) -> Iterator[Presence]:
        """Take part in the build of a set; others may, too.

        The folder is dropped by all who leave it when OUT is complete, so that none is left.

        Raises:
            OutputError: it cannot be made, or an earlier version of this package made it.
            NewerVersionError: a later one did.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_version()
            self.shards.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError.of(error, self.out) from None
        presence = Presence(self.path, fingerprint, expiry_s)
        try:
            with presence:
                yield presence
        finally:
            with suppress(OSError):
                self._clear_temporary(presence)  # of workers that were ended
            self.drop_if_complete()

    def drop_if_complete(self) -> None:
        """Delete this folder when OUT holds the set that was made here."""
        if (self.out / RECIPE_FILE).is_file():
            held = self.held()
            if held is None or is_complete(self.out, held):
                _drop(self.path)

    def _clear_temporary(self, presence: Presence) -> list[Owner | None]:
        """Delete what killed writers left behind, if no others are at work; return those."""
        temporary: list[Place] = list(self.shards.glob(".*.tmp"))
        others = presence.look()  # after the listing: one that enters now writes none of these
        if not others:
            for path in temporary:
                with suppress(OSError):
                    path.unlink()
        return others

    def check_writable(self) -> None:
        """Find out before any work whether a build can be written here.

        Raises:
            OutputError: it cannot.
        """
        if isinstance(self.out, StorePath):
            self.out.probe()
            return
        try:
            folder = next(path for path in (self.path, *self.path.parents) if path.exists())
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"?")
        except OSError as error:
            error.filename = None  # of the file that was tried, in some folder above
            raise OutputError.of(error, self.out) from None

    def _check_version(self) -> None:
        from builder import __version__

        mine, where = {"version": WORK_VERSION, "fgbg": __version__}, str(self._version)
        if not self.recipe.exists():
            create_bytes(self._version, json.dumps(mine).encode())
        try:
            held = parse_json(read_text(self._version, 1000))
            version, by = int(held["version"]), printable(str(held["fgbg"]))
            refuse_newer({**held, "format": version}, (*mine, "format"), where, WORK_VERSION)
        except FileNotFoundError:
            version, by = 1, "before 0.1.0"
        except (ValueError, TypeError, KeyError):
            version, by = 0, "that cannot be read"
        if version != WORK_VERSION:
            raise OutputError(
                f"{self.path} is the unfinished build of another version of fgbg ({by}); finish it "
                "with that version, or delete the folder to start again."
            )

    def begin(self, project: Project, presence: Presence, command: str) -> None:
        """Start a build, go on with one, or join one.

        Args:
            command: that makes all of the set; told when parts of it are missing.

        Raises:
            RecipeMismatchError: a build of another recipe has finished shards here, or is at work.
        """
        mine, text = project.pinned.fingerprint, project.pinned.to_json()
        others, held = self._clear_temporary(presence), self.held()
        if held and held.fingerprint != mine:
            begun = any(self.shards.glob("*.json"))  # or there is nothing that could be lost
            if begun or any(other is None or other.fingerprint != mine for other in others):
                raise RecipeMismatchError(self.out, held.differences(project.pinned))
        self._write_sources(project, command)
        # Last: known_sources trusts that the sources are there when the recipe is.
        if held is None and not create_bytes(self.recipe, text.encode()):
            held = read_recipe(self.path)  # of a build that has begun at the same time
            if held.fingerprint != mine:
                raise RecipeMismatchError(self.out, held.differences(project.pinned))
        elif held is not None and held.fingerprint != mine:
            write_text(self.recipe, text)

    def _write_sources(self, project: Project, command: str) -> None:
        kinds: dict[Kind, tuple[Source, ...]] = {
            "foreground": project.foregrounds,
            "background": project.backgrounds,
        }
        for kind, sources in kinds.items():
            path = self.sources(kind, project.pinned.fingerprint)
            try:
                read_sources(path)
            except NotABuildError:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_sources(path, sources)
        whole = re.sub(r" --shard-range[ =]\S+", "", command)
        create_bytes(self._command(project.pinned.fingerprint), whole.encode())

    def _command(self, fingerprint: str) -> Place:
        return self.path / fingerprint[:16] / "command.txt"

    def command(self, fingerprint: str) -> str:
        """Return the command that makes all of the set."""
        return self._command(fingerprint).read_text(encoding="utf-8")

    @contextmanager
    def new_folder(self) -> Iterator[Path]:
        """Give a folder, not made yet, for this process alone to put the set together in."""
        if isinstance(self.path, StorePath):
            create_bytes(self.publishing, b"yes")
            with tempfile.TemporaryDirectory(prefix="fgbg-") as folder:
                yield Path(folder) / "built"
            return
        for path in self.path.glob("built-*"):  # of builds that ended while they did
            _drop(path)
        yield self.path / f"built-{secrets.token_hex(8)}"

    def put_shard(self, stored: str, built: Path, file: str, shown: bool) -> None:
        """Give a finished shard its place in the set that is put together.

        Args:
            stored: it among the shards made, or its whole path.
            built: where the set is put together.
            file: its path in the set.
            shown: whether the preview reads it; on a store it stays there otherwise.
        """
        source = self.shards / stored
        if isinstance(source, StorePath) and isinstance(self.out, StorePath):
            source.copy(self.out / file)
            if not shown:
                return
        target = built / file
        target.parent.mkdir(exist_ok=True)
        link_or_copy(source, target)

    def publish(self, built: Path) -> None:
        """Move the complete set to OUT, from where an earlier set that it extends moves away."""
        if is_complete(self.out, read_recipe(built)):
            return  # by another build
        if isinstance(self.out, StorePath):
            _upload(built, self.out)
            return
        if (self.out / RECIPE_FILE).is_file():
            self.out.rename(str(self._before))
        elif self.out.is_dir():
            self.out.rmdir()  # `already_built` accepts only an empty one
        built.rename(self.out)


def _drop(folder: Place) -> None:
    """Delete a folder as far as that can be done."""
    if isinstance(folder, StorePath):
        with suppress(OSError):
            folder.rmtree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _upload(built: Path, out: StorePath) -> None:
    """Put all of a set on a store but its shards, which are there; last what tells that it is."""
    names = [path.relative_to(built).as_posix() for path in built.rglob("*") if path.is_file()]
    for name in names:
        if name != RECIPE_FILE and not name.startswith("data/"):
            (out / name).upload(built / name)
    (out / RECIPE_FILE).upload(built / RECIPE_FILE)


@dataclass(frozen=True)
class FinishedSplit:
    """The finished shards of a split: their files, and what they hold.

    `stored` are paths, relative to the work folder's shards, or whole.
    """

    stored: tuple[str, ...]
    figures: Figures


class Ledger:
    """Which shards of a set are done; each one's file is hashed once.

    A byte a shard is kept, and nothing of what is in them. The shards of a finished set in OUT
    that this one extends are done; they are not made again.
    """

    def __init__(self, work: WorkFolder, pinned: PinnedRecipe, file_format: FileFormat) -> None:
        self.plan = Plan(pinned)
        self.file_format = file_format
        self._folder, self._out = work.shards, work.out
        self._fingerprints = [pinned.at(n).fingerprint for n in range(len(pinned.stages) + 1)]
        self._done = bytearray(self.plan.n_shards)
        self._earlier: dict[str, Figures] = {}
        held = read_recipe(work.out) if (work.out / RECIPE_FILE).is_file() else None
        if held is not None and pinned.holds(held):
            self._earlier = read_statistics(work.out, Plan(held))

    def _n_earlier(self, split: str) -> int:
        return len(self._earlier[split].shards) if split in self._earlier else 0

    def name(self, number: int) -> str:
        """Return the name of a shard by its number among all, without extension."""
        split, shard = self.plan.shard(number)
        return split.shard_name(shard)

    def rows(self, numbers: Iterable[int]) -> int:
        """Return how many records some shards have."""
        rows = 0
        for split, shard in map(self.plan.shard, numbers):
            start, stop = split.shard_range(shard)
            rows += stop - start
        return rows

    def add(self, number: int) -> None:
        """Take a shard for done that this build has just made."""
        self._done[number] = True

    def check(self, number: int) -> bool:
        """Whether a shard is committed for this set and unharmed on disk.

        Raises:
            OutputError: one of the finished set that this one extends is damaged.
        """
        if not self._done[number]:
            split, shard = self.plan.shard(number)
            if shard < self._n_earlier(split.name):
                self._check_earlier(self._earlier[split.name].shards[shard])
                self._done[number] = True
            else:
                self._done[number] = is_done(
                    self._folder,
                    split.shard_name(shard),
                    self.file_format,
                    self._fingerprints[split.stage(shard)],
                )
        return bool(self._done[number])

    def _check_earlier(self, stated: DataFile) -> None:
        path = self._out / stated.file
        try:
            unharmed = sha256_file(path) == stated.sha256
        except OSError:
            unharmed = False
        if not unharmed:
            raise OutputError(
                f"{path} is damaged or gone: its sha256 is not that of {STATISTICS_FILE}. Mend the "
                "set before extending it, for example from where it was published."
            )

    def missing(self, numbers: Iterable[int]) -> array[int]:
        """Return those of some shards that are not done."""
        missing, rest = array("q"), iter(numbers)
        with ThreadPoolExecutor(n_cores()) as pool:  # hashing leaves Python's lock alone
            while some := list(islice(rest, 1024)):
                checked = pool.map(self.check, some)
                missing.extend(n for n, done in zip(some, checked, strict=True) if not done)
        return missing

    def n_committed(self) -> int:
        """Return how many shards have a commit record; says nothing of their files."""
        made = sum(path.name.endswith(".json") for path in self._folder.iterdir())
        return made + sum(map(self._n_earlier, self._earlier))

    def finished(self) -> dict[str, FinishedSplit]:
        """Return all splits of a set whose shards are all done; reads each commit record once."""
        return {split.name: self._finished(split) for split in self.plan.splits.values()}

    def _finished(self, split: SplitPlan) -> FinishedSplit:
        statistics = Statistics(self.plan.pinned.recipe.size)
        stored, shards = [], []
        if earlier := self._earlier.get(split.name):
            statistics.merge(earlier.statistics)
            for shard, stated in enumerate(earlier.shards):
                stored.append(str(self._out / stated.file))
                shards.append(replace(stated, file=shard_file(split, shard, self.file_format)))
        for shard in range(len(shards), split.n_shards):
            commit = self._commit(split.shard_name(shard))
            statistics.merge(Statistics.from_json(commit.statistics))
            stored.append(stored_name(commit.shard, commit.sha256, self.file_format))
            shards.append(
                DataFile(
                    file=shard_file(split, shard, self.file_format),
                    rows=commit.rows,
                    size_bytes=commit.size_bytes,
                    sha256=commit.sha256,
                )
            )
        return FinishedSplit(tuple(stored), Figures(tuple(shards), statistics))

    def _commit(self, name: str) -> Commit:
        commit = read_commit(self._folder, name)
        if commit is None:
            raise OutputError(
                f"the commit record of {name} in {self._folder} is gone or damaged; run the same "
                "command again."
            )
        return commit


def already_built(out: Place, pinned: PinnedRecipe, file_format: FileFormat) -> bool:
    """Whether OUT already holds this set; False when it is free, or holds what this set extends.

    Raises:
        RecipeMismatchError: it holds another set.
        OutputError: it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / RECIPE_FILE).is_file():
        if isinstance(out, StorePath) and WorkFolder(out).publishing.is_file():
            return False
        raise OutputError(f"{out} is not empty and not a build of fgbg; choose another folder.")
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
