"""The set being built: its prepared sources, its hidden work folder, its finished folder.

OUT/README.md, recipe.json           the card and the pinned recipe
OUT/data/<split>-NNNNN-of-NNNNN.parquet
OUT/foregrounds/, OUT/backgrounds/   the prepared sources, configs of their own
OUT/preview/                         a sample with coloured depth, a config of its own
OUT/assets/statistics.json           exact statistics and the sha256 of every shard
.OUT.fgbg/                           beside OUT while it is being built, gone afterwards;
                                     OUT/.fgbg where OUT cannot be replaced

Several builds, on several machines, may be at work in one work folder. What one has made is never
changed by another: files are created, or replaced by the same, and OUT appears by one rename.
On an object store, where nothing can be renamed, OUT is complete when its recipe.json appears.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from builder.build.leases import Leases, Owner
from builder.build.project import Project
from builder.errors import NotABuildError, OutputError, RecipeError, RecipeMismatchError
from builder.files import (
    create_bytes,
    is_system_file,
    link_or_copy,
    read_text,
    replacing,
    write_text,
)
from builder.layout import (
    ARROW_PREFIX,
    OUR_NAMES,
    RECIPE_FILE,
    SOURCES_FILE,
    is_complete,
    read_recipe,
)
from builder.pinned import PinnedRecipe
from builder.recipe import Recipe
from builder.remote import Place, StorePath
from builder.sources import Kind, Source, read_sources, write_sources
from builder.typed import refuse_newer
from builder.untrusted import parse_json, printable

FINISH = "finish"  # the lease of who puts the set together
WORK_VERSION = 2  # of the work folder's layout; 1 had no claims and held no file that says so

_INSIDE = ".fgbg"  # the name of a work folder that lies in OUT
# What the pixels of prepared sources depend on, and what their depth and ground do, too.
_PREPARATION = (
    *("size", "largest_side", "has_ladder", "turns_deg", "background_fit", "relief"),
    "needs_background_depth",
)
_DEPTH_PREPARATION = (
    *("depth_model", "depth_revision", "depth_kind", "depth_input", "precision"),
    "depth_precision",
)


class WorkFolder:
    """The hidden folder beside OUT where a set is made; it goes away when OUT is complete."""

    def __init__(self, out: Place) -> None:
        # Links first: what is put in the place of a link would leave the set behind it as it was.
        self.out = Path(os.path.realpath(out)) if isinstance(out, Path) else out
        self.path = _work_path(self.out)
        self.recipe = self.path / RECIPE_FILE
        self.shards = self.path / "shards"
        self.publishing = self.path / "publishing"  # while a set goes into OUT file by file
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
        """Return the sources, by file, that were prepared in the same way.

        By an interrupted build; or, where depth and ground belong to them, for the finished set.
        """
        names = (*_PREPARATION, *(_DEPTH_PREPARATION if recipe.needs_background_depth else ()))
        folders: list[tuple[PinnedRecipe, Place]] = []
        if recipe.needs_background_depth and (self.out / RECIPE_FILE).is_file():
            folders.append((read_recipe(self.out), self.out / f"{kind}s" / SOURCES_FILE))
        if (held := self.held()) is not None:
            folders.append((held, self.sources(kind, held.fingerprint)))
        known: dict[str, Source] = {}
        for pinned, path in folders:
            if all(getattr(pinned.recipe, name) == getattr(recipe, name) for name in names):
                with suppress(NotABuildError):  # prepared again, as a damaged shard is made again
                    known |= {source.entry.file: source for source in read_sources(path)}
        return known

    def finished_sources(self, kind: Kind) -> list[Source]:
        """Return the prepared sources of the finished set in OUT, if there is one."""
        path = self.out / f"{kind}s" / SOURCES_FILE
        return read_sources(path) if path.is_file() else []

    def restore(self) -> None:
        """Go on where a build was killed while it put the set in its place."""
        if not isinstance(self.path, Path) or not isinstance(self.out, Path):
            return  # what is on a store is copied again
        before = self.path / "before"
        if not self.out.exists() and before.is_dir() and not before.is_symlink():
            before.rename(self.out)
        with suppress(OSError, ValueError):  # no such file, mostly
            name = read_text(self.publishing, 100)
            if re.fullmatch("built-[0-9a-f]{16}", name) and (self.path / name).is_dir():
                _move_in(self.path / name, self.out)
                self.drop_if_complete()

    def is_free(self) -> bool:
        """Whether OUT is missing or empty, or has parts of this set from an interrupted finish.

        Raises:
            OutputError: something else is there.
        """
        if isinstance(self.out, Path) and self.out.is_symlink():  # though links were resolved
            raise OutputError(f"{self.out} is a link that leads round in a circle; remove it.")
        is_folder = self.out.is_dir()
        if not self.out.exists() or (is_folder and not any(map(_is_foreign, self.out.iterdir()))):
            return True
        if (self.out / RECIPE_FILE).is_file():
            return False
        if self.publishing.is_file():
            return True
        what = "not empty and not a build of fgbg" if is_folder else "a file"
        raise OutputError(f"{self.out} is {what}; choose another folder.")

    @contextmanager
    def entered(self, fingerprint: str, expiry_s: float) -> Iterator[Leases]:
        """Take part in the build of a set; others may, too.

        The folder is dropped by all who leave it when OUT is complete, so that none is left.

        Raises:
            OutputError: it cannot be made, or another version of this package made it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_version()
            self.shards.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError.of(error, self.out) from None
        leases = Leases(self.path, fingerprint, expiry_s)
        try:
            with leases:
                yield leases
        finally:
            with suppress(OSError):
                self._clear_temporary(leases)  # of workers that were ended
            self.drop_if_complete()

    def drop_if_complete(self) -> None:
        """Delete this folder when OUT holds the set that was made here."""
        if (self.out / RECIPE_FILE).is_file():
            held = self.held()
            if held is None or is_complete(self.out, held):
                if isinstance(self._before, Path) and isinstance(self.out, Path):
                    _move_rest(self._before, self.out)
                _drop(self.path)

    def _clear_temporary(self, leases: Leases) -> list[Owner | None]:
        """Delete what killed writers left behind, if no others are at work; return those."""
        temporary: list[Place] = list(self.shards.glob(".*.tmp"))
        others = leases.others()  # after the listing: one that enters now writes none of these
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

    def begin(self, project: Project, leases: Leases) -> None:
        """Start a build, go on with one, or join one.

        Raises:
            RecipeMismatchError: a build of another recipe has finished shards here, or is at work.
            OutputError: a process that started this one is at work here.
        """
        mine, text = project.pinned.fingerprint, project.pinned.to_json()
        others, held = self._clear_temporary(leases), self.held()
        for owner in others:
            if owner is not None and owner.is_ancestor():
                # It waits for this process, which would wait for its shards.
                raise OutputError(
                    f"process {owner.pid}, which started this one, is building {self.out}. In a "
                    'script that starts processes, build below `if __name__ == "__main__":`.'
                )
        if held and held.fingerprint != mine:
            begun = any(self.shards.glob("*.json"))  # or there is nothing that could be lost
            if begun or any(other is None or other.fingerprint != mine for other in others):
                raise RecipeMismatchError(self.out, held.differences(project.pinned))
        if not others:
            leases.forget()
        self._write_sources(project)
        # Last: known_sources trusts that the sources are there when the recipe is.
        if held is None and not create_bytes(self.recipe, text.encode()):
            held = read_recipe(self.path)  # of a build that has begun at the same time
            if held.fingerprint != mine:
                raise RecipeMismatchError(self.out, held.differences(project.pinned))
        elif held is not None and held.fingerprint != mine:
            write_text(self.recipe, text)

    def _write_sources(self, project: Project) -> None:
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
                write_sources(path, kind, project.pinned.recipe, sources)

    def command(self) -> str:
        """Return a command that makes what is missing; made here, and quoted from no file."""
        if isinstance(self.recipe, StorePath):
            return "repeat the command that began the build."
        shown = [shlex.quote(printable(str(path))) for path in (self.out, self.recipe)]
        return f"fgbg build FOREGROUNDS BACKGROUNDS {shown[0]} --recipe {shown[1]}"

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
        """Move the complete set to OUT, from where an earlier set that it extends moves away.

        By one rename; file by file, with `recipe.json` last, where OUT has to stay what it is: a
        mount point, the folder that a shell is in, or one in a folder that cannot be written.
        """
        if is_complete(self.out, read_recipe(built)):
            return  # by another build
        if isinstance(self.out, StorePath):
            _upload(built, self.out)
            return
        try:
            if self.path.parent == self.out:  # this folder would move away with it
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self.out))
            if (self.out / RECIPE_FILE).is_file():
                self.out.rename(str(self._before))
            elif self.out.is_dir():
                self.out.rmdir()
        except OSError:
            if not is_complete(self.out, read_recipe(built)):
                write_text(self.publishing, built.name)
                _move_in(built, self.out)
        else:
            built.rename(self.out)


def _work_path(out: Place) -> Place:
    """Return where the set is made: beside OUT, or hidden in it where it has to stay in its place.

    Where one is there already it is gone on with, whatever has become of OUT since.
    """
    beside = out.parent / f".{out.name}.fgbg"
    if isinstance(out, StorePath) or isinstance(beside, StorePath):
        return beside
    inside = out / _INSIDE
    if inside.is_dir() or (out.is_dir() and not beside.is_dir() and _has_to_stay(out)):
        return inside
    return beside


def _has_to_stay(out: Path) -> bool:
    """Whether a folder cannot, or should not, be replaced by another of its name."""
    here = Path(os.path.realpath(os.curdir))
    may_rename = os.access(out.parent, os.W_OK | os.X_OK)
    return out.is_mount() or out in (here, *here.parents) or not may_rename


def _is_foreign(path: Place) -> bool:
    return path.name != _INSIDE and not is_system_file(path.name)


def _move_in(built: Path, out: Path) -> None:
    """Move a complete set into OUT; at any number of times, by any number of processes at once."""
    names = [path.relative_to(built) for path in built.rglob("*") if path.is_file()]
    # New records come before what describes them, and the recipe, which means "done", comes last.
    names.sort(key=lambda name: (name == Path(RECIPE_FILE), name.parts[0] != "data", name))
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (built / name).replace(out / name)
        except FileNotFoundError:
            continue  # moved by another meanwhile
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with replacing(out / name) as copy:
                shutil.copyfile(built / name, copy)


def _move_rest(before: Path, out: Path) -> None:
    """Move what a person put beside a set (notes, `.git`, a picture for the card) to its extension.

    Whatever moment this ends at, the next process that drops the work folder goes on.
    """
    for folder in (Path(), Path("assets")):
        if before.is_symlink() or not (before / folder).is_dir():
            continue
        for path in (before / folder).iterdir():
            target = out / folder / path.name
            is_ours = path.name in OUR_NAMES or path.name.startswith(ARROW_PREFIX)
            if not is_ours and not os.path.lexists(target):
                with suppress(OSError):  # moved by another meanwhile
                    path.rename(target)


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
