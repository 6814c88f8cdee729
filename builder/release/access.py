"""A finished set of any hand: what lies in it, here, on a store or on the Hub, and its small files.

Nothing in it is executed, links are not followed, and only regular files that the layout names
are read.
"""

from __future__ import annotations

import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from builder.errors import FgbgError, NotABuildError
from builder.files import is_system_file
from builder.hub import is_absent, is_hub_id, request_errors, why
from builder.layout import (
    BACKGROUNDS_FILE,
    CARD_FILE,
    FOREGROUNDS_FILE,
    MAX_BYTES,
    PAGE_FILE,
    RECIPE_FILE,
    SHEET_FILE,
    STATISTICS_FILE,
    TABLE_FILE,
    built_format,
    refuse_set_aside,
)
from builder.remote import StorePath, place
from builder.tables import FileFormat

# Besides the shards, what every set has.
FIXED_FILES = (
    *(RECIPE_FILE, STATISTICS_FILE, CARD_FILE, FOREGROUNDS_FILE, BACKGROUNDS_FILE),
    *(TABLE_FILE, SHEET_FILE, PAGE_FILE),
)


@dataclass(frozen=True)
class File:
    """What lies under a name: its size and, where the Hub states it, its sha256.

    `fault` says what it is where it is not a regular file, as the end of a sentence.
    """

    size_bytes: int
    sha256: str | None = None
    fault: str = ""


class Folder:
    """A built folder on this machine."""

    is_local = True
    revision: str | None = None

    def __init__(self, root: Path) -> None:
        if not (root / RECIPE_FILE).is_file():
            raise NotABuildError(
                f"{root} is not a finished build of fgbg: it has no {RECIPE_FILE}."
            )
        self.name, self.root = str(root), root.resolve()
        self.file_format: FileFormat = built_format(root)
        self.files = dict(_walk(self.root))

    @contextmanager
    def opened(self, name: str, whole: bool, keep: bool = False) -> Iterator[Path | BinaryIO]:
        """Give a file's path."""
        yield self.root / name

    @contextmanager
    def parts(self, name: str) -> Iterator[Path | BinaryIO]:
        """Give a shard to read parts of."""
        yield self.root / name


def _walk(root: Path) -> Iterator[tuple[str, File]]:
    """Give every file below a folder; of hidden folders and those of systems the folder alone."""
    waiting = [root]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            path = Path(entry.path)
            name, status = path.relative_to(root).as_posix(), entry.stat(follow_symlinks=False)
            fault = ""
            if stat.S_ISDIR(status.st_mode):
                hidden = entry.name.startswith(".") or is_system_file(entry.name)
                if not hidden:
                    waiting.append(path)
                    continue
                name += "/"
            elif stat.S_ISLNK(status.st_mode):
                fault = "is a link; put the file itself there (`hf download --local-dir` does)"
            elif not stat.S_ISREG(status.st_mode):
                fault = "is not a regular file"
            yield name, File(status.st_size, fault=fault)


class Repo:
    """A data set on the Hub: its small files in a temporary folder, its shards as they are read."""

    is_local = False
    file_format: FileFormat = "parquet"

    def __init__(self, repo_id: str, revision: str | None, token: str | None, root: Path) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        self.name, self.root, self.token = repo_id, root, token
        self._api = api = HfApi(token=token)
        self.revision = api.dataset_info(repo_id, revision=revision).sha
        tree = api.list_repo_tree(
            repo_id, recursive=True, revision=self.revision, repo_type="dataset"
        )
        self.files = {
            entry.path: File(entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in tree
            if isinstance(entry, RepoFile)
        }
        if RECIPE_FILE not in self.files:
            raise NotABuildError(f"{repo_id} on the Hub is not a set of fgbg: no {RECIPE_FILE}.")
        for name in _small(self.files):
            self._download(name, root)

    def _download(self, name: str, folder: Path) -> Path:
        return Path(
            self._api.hf_hub_download(
                self.name, name, repo_type="dataset", revision=self.revision, local_dir=folder
            )
        )

    @contextmanager
    def opened(self, name: str, whole: bool, keep: bool = False) -> Iterator[Path | BinaryIO]:
        """Give a shard as a temporary file where all of it is needed, else as a remote file.

        `keep` puts it beside the small files, to be read again.
        """
        if keep:
            yield self._download(name, self.root)
            return
        if whole or self.files[name].sha256 is None:
            with tempfile.TemporaryDirectory(prefix="fgbg-verify-") as folder:
                yield self._download(name, Path(folder))
            return
        from huggingface_hub import HfFileSystem

        system = HfFileSystem(
            endpoint=self._api.endpoint, token=self._api.token, skip_instance_cache=True
        )
        with system.open(f"datasets/{self.name}@{self.revision}/{name}") as file:
            yield file

    @contextmanager
    def parts(self, name: str) -> Iterator[Path | BinaryIO]:
        """Give a shard to read parts of, of which no more is fetched than is read."""
        with self.opened(name, whole=False) as file:
            yield file


class Stored:
    """A built folder on a store: its small files in a temporary folder, its shards one by one."""

    is_local = True  # every shard is looked into: no store states a sha256
    file_format: FileFormat = "parquet"
    revision: str | None = None

    def __init__(self, where: StorePath, root: Path) -> None:
        self.name, self.root, self._where = str(where), root, where
        self.files = {name: File(int(info["size"])) for name, info in where.files().items()}
        if RECIPE_FILE not in self.files:
            raise NotABuildError(f"{where} is not a finished build of fgbg: no {RECIPE_FILE}.")
        for name in _small(self.files):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (where / name).download(root / name)

    @contextmanager
    def opened(self, name: str, whole: bool, keep: bool = False) -> Iterator[Path | BinaryIO]:
        """Give a shard as a temporary file."""
        with tempfile.TemporaryDirectory(prefix="fgbg-verify-") as folder:
            path = self.root / name if keep else Path(folder) / "shard"
            (self._where / name).download(path)
            yield path

    @contextmanager
    def parts(self, name: str) -> Iterator[Path | BinaryIO]:
        """Give a shard to read parts of, of which no more is fetched than is read."""
        with (self._where / name).open() as file:
            yield file


def _small(files: dict[str, File]) -> list[str]:
    """Return the files to fetch at once: those of the layout but the shards, if not too large."""
    return [
        name
        for name in {**dict.fromkeys(FIXED_FILES), **MAX_BYTES}
        if name in files and files[name].size_bytes <= MAX_BYTES.get(name, math.inf)
    ]


@contextmanager
def open_place(
    target: str | Path, revision: str | None, token: str | None
) -> Iterator[Folder | Repo | Stored]:
    """Find a finished set.

    Raises:
        NotABuildError: the target is neither a finished build nor a repository that holds one.
        FgbgError: the Hub cannot be read; raised from within the block too.
    """
    where = place(target)
    refuse_set_aside(where)
    if isinstance(where, Path):
        named = isinstance(target, str) and "/" in target and is_hub_id(target)
        if where.exists() or not named:
            if not where.is_dir():
                raise NotABuildError(
                    f"{target} is neither a folder nor the id of a set on the Hub."
                )
            if revision is not None:
                raise FgbgError(f"{target} is a folder here; revision is for a set on the Hub.")
            yield Folder(where)
            return
    elif revision is not None:
        raise FgbgError(f"{target} is a folder on a store; revision is for a set on the Hub.")
    with tempfile.TemporaryDirectory(prefix="fgbg-verify-") as folder:
        root = Path(folder) / where.name  # the card says the name
        (root / "data").mkdir(parents=True)  # what says that it is Parquet
        if isinstance(where, StorePath):
            yield Stored(where, root)
            return
        try:
            yield Repo(str(target), revision, token, root)
        except request_errors() as error:
            kind = NotABuildError if is_absent(error) else FgbgError
            raise kind(f"{target} {why(error, revision)}.") from None
