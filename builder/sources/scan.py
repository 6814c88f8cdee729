"""Find the pictures of a source folder, hash them, and say which of them are the same source.

A source is known by its content and by its path in the folder; of paths neither case nor the way
accents are written counts, since file systems and archives change both.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from builder.errors import FgbgError
from builder.files import is_system_file, open_regular, sha256_file
from builder.pinned import SourceEntry
from builder.remote import MAX_IMAGE_BYTES, Place
from builder.untrusted import printable

CREDITS_FILE = "credits.csv"
# What `fgbg cutout` writes beside its cut-outs, and how it begins; it is no source.
REPORT_FILE = "report.html"
CUTOUT_REPORT_MARK = "<!doctype html>\n<!-- fgbg cutout -->\n"

_LEADS_OUT = (
    "is a link that leads out of the folder; put the file itself there (cp -RL copies what links "
    "lead to; from the Hub: hf download --local-dir; from DVC: dvc config cache.type copy, then "
    "dvc checkout --relink)"
)
_RECIPE_FILE = "recipe.json"  # of a finished set
_RECIPE_HEAD_BYTES = 4096  # in which its fingerprint stands


@dataclass(frozen=True)
class SourceFile:
    """A file of a source folder: its path inside the folder and its content's sha256 (hex)."""

    path: Path
    file: str
    sha256: str


@dataclass(frozen=True)
class Scan:
    """The pictures and credits files of a folder, in path order; what was left out, and why."""

    files: tuple[SourceFile, ...]
    credits: tuple[Path, ...]
    left_out: tuple[tuple[str, str], ...]


def name_key(name: str) -> str:
    """Return the form in which names are compared: without case, accents composed (NFC)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def scan(folder: Path, *, apart: Collection[Path] = (), wanted: Collection[str] = ()) -> Scan:
    """List and hash the files of a source folder and its subfolders.

    Hidden files, credits files, what systems leave in folders, finished sets and the folders of
    `apart` are left out, and links to folders are not followed. Whether a file is a picture is
    seen from its content, not from its name. The sha256 of what is not to be read, or cannot be,
    is empty.

    Args:
        apart: folders that are for something else, should they lie in this one.
        wanted: files that an earlier set was made of; they are taken whatever they are.

    Raises:
        FgbgError: the folder is missing, holds no file, or is a finished set itself.
    """
    if not folder.is_dir():
        raise FgbgError(f"{folder} is not a folder; give the folder that holds the images.")
    if _is_finished_set(folder):
        raise FgbgError(f"{folder} is a finished set; give the folder that holds the images.")
    walk = _Walk(folder, apart, {name_key(name) for name in wanted})
    paths = sorted(walk.files())
    if not paths:
        raise FgbgError(f"{folder} holds no image; put the images into it.")
    root = folder.resolve()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = pool.map(lambda path: _sha256_or_empty(path, root), paths)
        files = tuple(
            SourceFile(path, path.relative_to(folder).as_posix(), sha256)
            for path, sha256 in zip(paths, hashes, strict=True)
        )
    return Scan(files, tuple(sorted(walk.credits)), tuple(walk.left_out))


def refuse_overlap(foregrounds: Path, backgrounds: Path, out: Place | None) -> None:
    """Refuse folders of which one would be taken for the content of another.

    Raises:
        FgbgError: both source folders are one, or OUT is or lies in one of them.
    """
    # `Path.resolve` raises where links go round in a circle.
    first, second = (Path(os.path.realpath(folder)) for folder in (foregrounds, backgrounds))
    if first == second:
        raise FgbgError(
            f"{foregrounds} is given for both foregrounds and backgrounds; give a folder for each."
        )
    for folder, real in ((foregrounds, first), (backgrounds, second)):
        if isinstance(out, Path) and Path(os.path.realpath(out)).is_relative_to(real):
            raise FgbgError(
                f"{out} lies in {folder}, whose files are sources; choose an output folder outside."
            )


class _Walk:
    """One walk through a source folder."""

    def __init__(self, folder: Path, apart: Collection[Path], wanted: set[str]) -> None:
        self._folder, self._wanted = folder, wanted
        self._apart = {_identity(path) for path in apart} - {None}
        self.credits: list[Path] = []
        self.left_out: list[tuple[str, str]] = []

    def files(self) -> Iterator[Path]:
        """Give all that is to be looked at: files, links to folders, and folders shut to us."""
        shut: list[Path] = []
        for where, folders, files in os.walk(
            self._folder, onerror=lambda e: shut.append(Path(e.filename))
        ):
            folders[:] = [name for name in folders if self._is_searched(Path(where, name))]
            links = [name for name in folders if Path(where, name).is_symlink()]
            yield from (
                path for name in files + links if self._is_looked_at(path := Path(where, name))
            )
        yield from (path for path in shut if path != self._folder)

    def _key(self, path: Path) -> str:
        return name_key(printable(path.relative_to(self._folder).as_posix()))

    def _leave_out(self, path: Path, reason: str) -> bool:
        self.left_out.append((printable(path.relative_to(self._folder).as_posix()), reason))
        return False

    def _is_searched(self, path: Path) -> bool:
        if name_key(path.name) == CREDITS_FILE:
            self.credits.append(path)  # cannot be read as one, and that is reported
            return False
        start = f"{self._key(path)}/"
        if any(name.startswith(start) for name in self._wanted):
            return True
        if is_system_file(path.name):
            return self._leave_out(path, "system files")
        if path.name.startswith("."):
            return False
        if path.is_symlink():
            return True  # reported as one
        if self._apart and _identity(path) in self._apart:
            return self._leave_out(path, "the other source folder")
        if _is_finished_set(path):
            return self._leave_out(path, "a finished set")
        return True

    def _is_looked_at(self, path: Path) -> bool:
        if name_key(path.name) == CREDITS_FILE:
            self.credits.append(path)
            return False
        if self._key(path) in self._wanted:
            return True
        if is_system_file(path.name):
            return self._leave_out(path, "system files")
        if path.name == REPORT_FILE and _is_cutout_report(path):
            return self._leave_out(path, "the report of fgbg cutout")
        return not path.name.startswith(".")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_finished_set(folder: Path) -> bool:
    try:
        with open_regular(folder / _RECIPE_FILE) as file:
            return b'"fingerprint"' in file.read(_RECIPE_HEAD_BYTES)
    except OSError:
        return False


def _is_cutout_report(path: Path) -> bool:
    mark = CUTOUT_REPORT_MARK.encode()
    try:
        with open_regular(path) as file:
            return file.read(len(mark)) == mark
    except OSError:
        return False


def unread(path: Path, root: Path) -> str | None:
    """Say why a file must not be read at all, before it is opened; `root` is the real folder."""
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return _LEADS_OUT
        status = path.stat()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return "cannot be read; check that it is there and that you may read it"
    if stat.S_ISDIR(status.st_mode) and path.is_symlink():
        return "is a link to a folder; copy the folder instead"
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return "is a pipe, socket or device and not a file; remove it"
    if status.st_size > MAX_IMAGE_BYTES:
        return f"has {status.st_size:,} bytes; too large to be an image"
    return None


def _sha256_or_empty(path: Path, root: Path) -> str:
    try:
        return "" if unread(path, root) else sha256_file(path)
    except OSError:
        return ""  # unreadable: said with the others when it is decoded


def same_sources(
    files: Sequence[SourceFile], entries: Sequence[SourceEntry]
) -> dict[str, SourceEntry]:
    """Return which files are sources of an earlier set: its entries by the file's path.

    A file is a source of it by its path, whatever it holds now; else by its content, where no file
    is there by the path that the source had.
    """
    exact = {entry.file: entry for entry in entries}
    by_key = {name_key(entry.file): entry for entry in entries}
    found = {}
    for file in files:
        name = printable(file.file)
        if entry := exact.get(name) or by_key.get(name_key(name)):
            found[file.file] = entry
    missing = {entry.id for entry in entries} - {entry.id for entry in found.values()}
    by_content = {entry.sha256: entry for entry in entries if entry.id in missing}
    for file in files:
        if file.file not in found and (entry := by_content.pop(file.sha256, None)):
            found[file.file] = entry
    return found


def ids_of(
    files: Sequence[str], taken: Collection[str] = ()
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the ids of files, by path, and the files whose ids clash, with why.

    An id is the file's name without extension. Where that is another's too, as `1` of `apple/1.png`
    and `pear/1.png`, it is the whole path (`apple-1`).

    Args:
        taken: ids that other sources have.
    """
    reserved = {name_key(name) for name in taken}
    stems, ids = defaultdict(list), {}
    for file in files:
        stems[name_key(printable(PurePosixPath(file).stem))].append(file)
    for stem, same in stems.items():
        alone = len(same) == 1 and stem not in reserved
        for file in same:
            path = PurePosixPath(file)
            name = path.stem if alone else "-".join([*path.parts[:-1], path.stem])
            ids[file] = printable(name)
    by_id = defaultdict(list)
    for file, name in ids.items():
        by_id[name_key(name)].append(file)
    clashes = []
    for key, same in by_id.items():
        for file in same if len(same) > 1 or key in reserved else ():
            others = [printable(other) for other in same if other != file] or ["an earlier source"]
            listed = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
            reason = f"has the same name (without extension) as {listed}; rename one of them"
            clashes.append((file, reason))
    return ids, clashes
