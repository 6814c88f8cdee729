"""Export a finished set: shard by shard into a hidden folder beside DEST, which it then becomes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from builder import __version__
from builder.console import bar, quoted
from builder.errors import FgbgError, NotABuildError, OutputError
from builder.exports.coco import Coco
from builder.exports.hf import HfDetection, HfInstances
from builder.exports.records import OBJECT_FIELDS, Counts, Item, Job, Tree, Writer
from builder.exports.voc import Voc
from builder.exports.webdataset import WebDataset
from builder.exports.yolo import Yolo, YoloDepth, YoloSeg, YoloSemantic
from builder.files import rename, write_text
from builder.layout import (
    DataFile,
    Figures,
    content_digest,
    read_recipe,
    read_statistics,
    shard_file,
)
from builder.pinned import PinnedRecipe
from builder.record import Plan, SplitPlan
from builder.remote import StorePath, place
from builder.schema import record_columns
from builder.tables import Table, wrong_columns
from builder.untrusted import Unreadable, printable, refusing, shown

if TYPE_CHECKING:
    from builder.release import Folder, Repo, Stored

WRITERS: dict[str, type[Writer]] = {
    "coco": Coco,
    "yolo": Yolo,
    "yolo-seg": YoloSeg,
    "yolo-semantic": YoloSemantic,
    "yolo-depth": YoloDepth,
    "voc": Voc,
    "webdataset": WebDataset,
    "hf-detection": HfDetection,
    "hf-instances": HfInstances,
}
FORMATS = tuple(WRITERS)

# Raised when a format is written otherwise, so that no export is half of one and half of another.
_VERSION = 1

_ABOUT_FILE, _CREDITS_FILE, _README_FILE = "export.json", "credits.csv", "README.md"
_LAST_FILES = (_CREDITS_FILE, _README_FILE, _ABOUT_FILE)
_MADE_COLUMNS = ("tool", "weights", "weights_license")
_CREDIT_COLUMNS = ("kind", "id", "file", "author", "license", "url", *_MADE_COLUMNS)


@dataclass(frozen=True)
class Export:
    """An export: what is to be written, and once it is, exact counts.

    `splits` are the records of each split; `reads_bytes` is the size of their files. `objects`
    are those of which something is seen, by class in `classes`; `unseen` ones are in no format,
    and `without` is the number of records that have none. `lost` says what the format cannot.
    """

    source: str
    revision: str | None
    dest: str
    format: str
    splits: dict[str, int]
    shards: int
    shards_kept: int
    reads_bytes: int
    written: bool = False
    objects: int = 0
    unseen: int = 0
    without: int = 0
    classes: dict[str, int] | None = None
    files: int = 0
    size_bytes: int = 0
    lost: tuple[str, ...] = ()

    @property
    def records(self) -> int:
        """Number of records."""
        return sum(self.splits.values())


def export(
    target: str | Path,
    dest: str | Path,
    to: str,
    *,
    splits: Sequence[str] | None = None,
    category_from: str = "foreground",
    revision: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
    approve: Callable[[Export], bool] | None = None,
    progress: bool = False,
) -> Export:
    """Write a finished set in the format of another library.

    Composites are copied as they are stored. Interrupted and repeated, it goes on after the last
    finished shard; DEST is there whole or not at all.

    Args:
        target: a built folder, one on a store, or the id of a repository on the Hub, of which a
            shard at a time is fetched.
        dest: the folder to write; it must not be there, or be empty.
        to: one of `FORMATS`.
        splits: names of those to write; None: all of them.
        category_from: `foreground` classes an object as its foreground is; `single` makes all of
            them one class, `object`.
        revision: of the repository; its main branch by default.
        token: for the Hub; by default the one of `hf auth login`.
        dry_run: look what is to be written, and write nothing.
        approve: called with that; nothing is written if it returns False.
        progress: show a bar on stderr.

    Raises:
        NotABuildError: the target is not a finished set, or a file of it is missing or damaged.
        FgbgError: the format cannot hold the set, or an argument makes no sense.
        OutputError: DEST cannot be written; what is finished is kept.
    """
    from builder.release import open_place

    _check_choices(to, category_from)
    folder = _free(dest, target)
    with open_place(target, revision, token) as found:
        pinned = read_recipe(found.root)
        plan = Plan(pinned)
        stated = read_statistics(found.root, plan)
        chosen = _chosen(found.name, plan, splits)
        job = Job(_name(found.name), pinned, chosen, category_from == "single")
        writer = WRITERS[to](job)
        key = _key(found.root, to, chosen, category_from)
        aside = _Aside(folder, key)
        todo = _todo(found, str(dest), to, chosen, stated, aside.n_kept())
        if dry_run or (approve is not None and not approve(todo)):
            return todo
        try:
            with aside.held(), bar("records", to, not progress, todo.records) as shown_bar:
                aside.begin(writer.folders())
                run = _Run(found, job, writer, aside, todo, shown_bar.update)
                files = {split.name: stated[split.name].shards for split in chosen}
                return run.export(files)
        except OSError as error:
            raise OutputError.of(error, folder) from None


def _check_choices(to: str, category_from: str) -> None:
    if to not in WRITERS:
        raise FgbgError(f"there is no format {to!r}; choose one of {', '.join(FORMATS)}.")
    if category_from not in ("foreground", "single"):
        raise FgbgError(f"category_from is {category_from!r}; give foreground or single.")


def _todo(
    found: Folder | Repo | Stored,
    dest: str,
    to: str,
    chosen: Sequence[SplitPlan],
    stated: Mapping[str, Figures],
    shards_kept: int,
) -> Export:
    """Return what is to be written."""
    return Export(
        source=found.name,
        revision=found.revision,
        dest=dest,
        format=to,
        splits={split.name: split.n_records for split in chosen},
        shards=sum(split.n_shards for split in chosen),
        shards_kept=shards_kept,
        reads_bytes=sum(stated[split.name].size_bytes for split in chosen),
    )


def _free(dest: str | Path, target: str | Path) -> Path:
    """Return the folder to write, unless something is there."""
    where = place(dest)
    if isinstance(where, StorePath):
        raise FgbgError(
            f"{where} lies on a store; export to a folder of this machine, then copy it."
        )
    folder = Path(os.path.abspath(where))  # noqa: PTH100 - links stay as they are
    source = place(target)
    if isinstance(source, Path) and source.is_dir():
        inside = folder.resolve()
        if inside == source.resolve() or source.resolve() in inside.parents:
            raise FgbgError(f"{dest} lies inside the set {target}; choose a folder outside of it.")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{dest} is a file or a link; choose another folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{dest} is not empty; choose another folder, or delete it first.")
    if folder.parent.exists() and not folder.parent.is_dir():
        raise OutputError(f"{folder.parent} is not a folder; choose another DEST.")
    return folder


def _chosen(name: str, plan: Plan, splits: Sequence[str] | None) -> tuple[SplitPlan, ...]:
    """Return the splits to write, in the order of the set."""
    there = {split.name: split for split in plan.splits.values() if split.n_records}
    for split in splits or ():
        if split not in there:
            raise FgbgError(f"{name} has no split {split!r}; it has {', '.join(there)}.")
    return tuple(split for split in there.values() if not splits or split.name in splits)


def _name(target: str) -> str:
    return printable(re.split(r"[\\/]", target.rstrip("\\/"))[-1])


def _key(root: Path, to: str, splits: tuple[SplitPlan, ...], category_from: str) -> str:
    """Return what tells one export from another, so that neither resumes the other."""
    names = [split.name for split in splits]
    content = [_VERSION, to, content_digest(root), names, category_from]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class _Aside:
    """The hidden folder where an export grows, and what says which shards are in it."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key
        self.path = folder.parent / f".{folder.name}.fgbg-export"
        self.tree, self._notes = self.path / "tree", self.path / "notes"
        self._mark = self.path / "export"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other exports to the same folder out."""
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            with FileLock(lock, timeout=0):
                yield
                lock.unlink(missing_ok=True)
        except Timeout:
            raise OutputError(
                f"another export to {self.folder} is at work; wait for it, or choose another "
                "folder."
            ) from None

    def is_ours(self) -> bool:
        """Whether what lies there is of this very export, and not yet put in its place."""
        with suppress(OSError, ValueError):
            return self._mark.read_text("utf-8") == self._key and self.tree.is_dir()
        return False

    def n_kept(self) -> int:
        """Return how many shards an interrupted run has finished."""
        return len(list(self._notes.glob("*.json"))) if self.is_ours() else 0

    def begin(self, folders: list[str]) -> None:
        """Make the folders, and drop what is of another export."""
        if not self.is_ours():
            self.drop()
        for path in (self._notes, self.tree, *(self.tree / name for name in folders)):
            path.mkdir(parents=True, exist_ok=True)
        if not self.is_ours():
            write_text(self._mark, self._key)

    def note(self, split: SplitPlan, shard: int) -> Path:
        """Return the start of the name of what is noted of a shard."""
        return self._notes / f"{split.name}-{shard:07d}"

    def drop(self) -> None:
        """Delete it."""
        if self.path.exists():
            shutil.rmtree(self.path)

    def become(self) -> None:
        """Put the export in its place."""
        if hasattr(os, "sync"):
            os.sync()  # once for all of the files, or the power could take what the name promises
        if self.folder.is_dir():
            self.folder.rmdir()
        rename(self.tree, self.folder)
        self.drop()


class _Run:
    """One export on its way."""

    def __init__(
        self,
        found: Folder | Repo | Stored,
        job: Job,
        writer: Writer,
        aside: _Aside,
        todo: Export,
        progress: Callable[[int], object],
    ) -> None:
        self._found, self._job, self._writer = found, job, writer
        self._aside, self._todo, self._progress = aside, todo, progress
        self._record = ""  # the one that is being written, for errors

    def export(self, files: dict[str, tuple[DataFile, ...]]) -> Export:
        """Write what is not written yet, and put it in its place."""
        total, notes = Counts(), {}
        for split in self._job.splits:
            notes[split.name] = [self._aside.note(split, shard) for shard in range(split.n_shards)]
            for shard, note in enumerate(notes[split.name]):
                total.add(self._shard(split, shard, note))
        tree = Tree(self._aside.tree)
        for name in (*self._writer.last_files(), *_LAST_FILES):  # of a run that was ended there
            (tree.root / name).unlink(missing_ok=True)
        self._check(total)
        self._writer.finish(tree, notes)
        done = self._report(total)
        tree.write(_CREDITS_FILE, _credits(self._job.pinned).encode())
        tree.write(_README_FILE, self._readme(done).encode())
        about = {**_content(done), **_depth(self._job.pinned)}
        tree.write(_ABOUT_FILE, (json.dumps(about, indent=2) + "\n").encode())
        self._aside.become()
        return _with(
            done, files=total.files + tree.files, size_bytes=total.size_bytes + tree.size_bytes
        )

    def _shard(self, split: SplitPlan, shard: int, note: Path) -> Counts:
        """Write a shard unless that is done; its note comes last, and says so."""
        mark = note.with_suffix(".json")
        with suppress(OSError, ValueError, KeyError, TypeError):
            counts = Counts.from_json(json.loads(mark.read_text("utf-8")))
            self._progress(counts.records)
            return counts
        tree = Tree(self._aside.tree)
        name = shard_file(split, shard, self._found.file_format)
        try:
            file = self._found.files.get(name)
            if file is None or file.fault:
                raise Unreadable(file.fault if file else "is missing")
            with self._found.opened(name, whole=True) as source:
                table = Table(source, self._found.file_format)
                items = self._items(table, split, shard)
                counts = self._writer.shard(tree, note, split, shard, items)
        except Unreadable as reason:
            raise NotABuildError(
                f"{printable(self._found.name)}: {name}{self._record} {reason}; see what else is "
                f"wrong with fgbg verify {quoted(self._found.name)}."
            ) from None
        counts.files, counts.size_bytes = tree.files, tree.size_bytes
        write_text(mark, json.dumps(counts.to_json()))
        return counts

    def _items(self, table: Table, split: SplitPlan, shard: int) -> Iterator[Item]:
        pinned = self._job.pinned
        due = record_columns(pinned.recipe, pinned.categories)
        if different := wrong_columns(table.schema, due):
            raise Unreadable(different)
        start, stop = split.shard_range(shard)
        if table.n_rows != stop - start or not np.array_equal(
            table.integers("record_id"), split.record_ids(start, stop)
        ):
            raise Unreadable("does not hold the records that are due there")
        always = ("record_id", "background_id", "foreground_id", "distractors")
        wanted = {*always, *self._writer.columns}
        names = [c.name for c in due if c.name in wanted]
        if self._found.file_format == "parquet" and not self._writer.takes_all_of_objects:
            parts = {"objects": [f"objects.{name}" for name in OBJECT_FIELDS]}
            parts["distractors"] = ["distractors.foreground_id"]
            names = [part for name in names for part in parts.get(name, [name])]
        for _, row in table.rows(names):
            self._record = f" record {row['record_id']}"
            with refusing("has values that cannot be read"):
                item = Item(self._job, row)
            yield item
            self._record = ""
            self._progress(1)

    def _check(self, total: Counts) -> None:
        """Refuse what an interrupted run left if files of it are missing or cut short."""
        files = size_bytes = 0
        for folder, _, names in os.walk(self._aside.tree):
            for entry in os.scandir(folder) if names else ():
                if entry.is_file():
                    files, size_bytes = files + 1, size_bytes + entry.stat().st_size
        if total.records != self._todo.records or (files, size_bytes) != (
            total.files,
            total.size_bytes,
        ):
            self._aside.drop()
            raise OutputError(
                f"of {self._aside.folder} files are missing or damaged that an interrupted export "
                "had written; run the same command again to write all of them."
            )

    def _report(self, total: Counts) -> Export:
        return _with(
            self._todo,
            written=True,
            objects=total.objects,
            unseen=total.unseen,
            without=total.without,
            classes={name: total.classes[n] for n, name in enumerate(self._job.classes)},
            lost=tuple(_sentences(self._writer, total)),
        )

    def _readme(self, done: Export) -> str:
        """Return the text that lies in the export."""
        metadata = self._writer.metadata()
        lines = [f"---\n{metadata}---\n"] if metadata else []
        made = (
            f"Made by fgbg-dataset {__version__} from the set of fingerprint "
            f"`{self._job.pinned.fingerprint[:16]}`. `credits.csv` says who made the pictures and "
            "under which licenses; `export.json` has the numbers."
        )
        lines += [
            f"# {self._job.name} as {done.format}\n",
            f"{self._writer.about}\n",
            f"{made}\n",
            "| split | records |\n|---|---|",
            *(f"| {name} | {n:,} |" for name, n in done.splits.items()),
            "\n| class | objects |\n|---|---|",
            *(f"| {_cell(name)} | {n:,} |" for name, n in (done.classes or {}).items()),
            "",
            *(f"- {_cell(sentence)}" for sentence in done.lost),
        ]
        return "\n".join(lines) + "\n"


def _sentences(writer: Writer, total: Counts) -> Iterator[str]:
    """Say what the format cannot, and what a reader may stumble over."""
    yield from writer.lost(total)
    if total.unseen:
        yield f"{total.unseen:,} objects of which no pixel is seen are left out."
    if total.without:
        yield f"{total.without:,} records have no object: they are backgrounds."
    names = writer.job.classes
    if empty := [name for n, name in enumerate(names) if not total.classes[n]]:
        yield f"No object is of class {', '.join(map(shown, empty))}; the class keeps its number."


def _with(one: Export, **changes: Any) -> Export:
    return Export(**{**vars(one), **changes})


def _content(done: Export) -> dict[str, Any]:
    """Return what `export.json` holds; nothing that depends on where it was made."""
    left_out = ("dest", "shards", "shards_kept", "reads_bytes", "written", "files", "size_bytes")
    held = {name: value for name, value in asdict(done).items() if name not in left_out}
    return {**held, "source": _name(done.source), "version": __version__}


def _depth(pinned: PinnedRecipe) -> dict[str, Any]:
    depth = pinned.public().depth
    held = asdict(depth) if depth else None
    return {"fingerprint": pinned.fingerprint, "depth": held}


def _credits(pinned: PinnedRecipe) -> str:
    """Return a table of who made the sources, which licenses ask to be handed on."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(_CREDIT_COLUMNS)
    for kind, entries in (
        ("foreground", pinned.foregrounds),
        ("background", pinned.backgrounds),
    ):
        for e in entries:
            made = (getattr(e, name) for name in _MADE_COLUMNS)
            table.writerow((kind, e.id, e.file, e.author, e.license, e.url, *made))
    return buffer.getvalue()


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
