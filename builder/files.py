"""Files of this machine or of a store: written whole or not at all, read whoever made them."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import BinaryIO

from builder.remote import Place, StorePath
from builder.untrusted import printable

_HASH_BLOCK = 2**20
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.tmp")
_ABANDONED_S = 86_400  # no file or folder takes a day to write

# What macOS, Windows, Linux desktops, storage boxes and archives leave in any folder; lower case.
_SYSTEM_NAME = re.compile(
    r"""
    \._.* | \.ds_store | \.appledouble | \.apple(db|desktop) | \.localized | icon\r | __macosx
    | \.(spotlight-v100|trashes|fseventsd|temporaryitems|documentrevisions-v100)
    | (eh)?thumbs(_vista)?\.db(:encryptable)? | desktop\.ini | \$recycle\.bin | recycler
    | system\ volume\ information
    | \.directory | \.trash-\d+ | lost\+found | \.nfs[0-9a-f]+ | \.fuse_hidden[0-9a-f]+
    | @(eadir|recycle|recently-snapshot|tmp) | \#(recycle|snapshot) | \.@__thumb
    | \.ipynb_checkpoints
    """,
    re.VERBOSE,
)


def is_system_file(path: str | PurePath) -> bool:
    """Whether a path inside a folder is, or lies in, what a system left there by itself.

    Such files (`.DS_Store`, `._x`, `Thumbs.db`, `@eaDir/x`, `__MACOSX/x`) belong to no set: they
    are neither sources nor an error in a finished set, and are not published.
    """
    return any(_SYSTEM_NAME.fullmatch(part.lower()) for part in PurePath(path).parts)


@contextmanager
def open_regular(path: Place, *, within: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file of another hand for reading, without ever waiting for a pipe or device.

    Args:
        path: the file; on a store all objects are regular.
        within: a folder above it; no link may lie between the two.

    Raises:
        OSError: it cannot be read, is not a regular file, or is or lies behind a link.
    """
    if isinstance(path, StorePath):
        with path.open("rb") as remote:
            yield remote
        return
    flags = os.O_RDONLY
    if within is not None:
        inside = path.absolute().relative_to(within.absolute()).parent
        if path.parent.resolve() != within.resolve() / inside:
            raise OSError(
                errno.ELOOP, "it lies behind a link; put the file itself there", str(path)
            )
        flags |= getattr(os, "O_NOFOLLOW", 0)
    _refuse_special(path, path.stat() if within is None else path.lstat())
    # Another may have taken its place since: opening does not wait then, and is checked again.
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _refuse_special(path, os.fstat(file.fileno()))
        yield file


def _refuse_special(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise OSError(f"{printable(str(path))} is a link; put the file itself there")
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{printable(str(path))} is not a regular file")


def read_bytes(path: Place, most_bytes: int, *, within: Path | None = None) -> bytes:
    """Read a file of at most `most_bytes`; see `open_regular`.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is larger.
    """
    too_large = "it has {:,} bytes; at most {:,} are read"
    if isinstance(path, StorePath):
        if (size_bytes := path.stat().st_size) > most_bytes:
            raise ValueError(too_large.format(size_bytes, most_bytes))
        return path.read_bytes()
    with open_regular(path, within=within) as file:
        if (size_bytes := os.fstat(file.fileno()).st_size) > most_bytes:
            raise ValueError(too_large.format(size_bytes, most_bytes))
        return file.read(size_bytes)  # a larger number would take that much memory first


def read_text(path: Place, most_bytes: int, *, within: Path | None = None) -> str:
    """Read a UTF-8 text file as `read_bytes` does.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        ValueError: it is larger, or not UTF-8.
    """
    return read_bytes(path, most_bytes, within=within).decode("utf-8")


def sha256_file(path: Place) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Place, text: str) -> None:
    """Write a text file that is either there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Place, content: bytes) -> None:
    """Write a file that is either there whole or not at all."""
    with replacing(path) as temporary:
        _write(temporary, content)


@contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """Give another name to write a file under; it becomes `path` when the block ends well."""
    with temporary_for(path) as temporary:
        yield temporary
        rename(temporary, path)


def create_bytes(path: Place, content: bytes) -> bool:
    """Write a file unless it exists, whole or not at all; say whether it was written."""
    if isinstance(path, StorePath):
        return path.create(content)
    with temporary_for(path) as temporary:
        _write(temporary, content)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            # NFS repeats a request whose answer was lost, and then refuses what it has done.
            return temporary.stat().st_nlink > 1
        except OSError:  # no hard links: not there whole at once, but still there once
            try:
                with path.open("xb") as file, _whole_or_gone(path):
                    file.write(content)
                    file.flush()
            except FileExistsError:
                return False
        return True


@contextmanager
def _whole_or_gone(path: Path) -> Iterator[None]:
    """Delete a new file that could not be written: half a claim is one of nobody."""
    try:
        yield
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def temporary_for(path: Place) -> Iterator[Path]:
    """Give a name beside `path`, or in a folder of this machine, that no other writer has."""
    if isinstance(path, StorePath):
        with tempfile.TemporaryDirectory(prefix="fgbg-") as folder:
            yield Path(folder) / path.name
        return
    temporary = path.parent / temporary_name(path.name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str) -> str:
    """Return a hidden name for what will be called `name`, which no other writer has."""
    return f".{name}.{secrets.token_hex(8)}.tmp"


def is_temporary(name: str) -> bool:
    """Whether a name is one of `temporary_name`: of a writer at work, or of one that was killed."""
    return _TEMPORARY.fullmatch(name) is not None


def sweep(path: Path, older_s: float = _ABANDONED_S) -> None:
    """Delete what writers of a file or folder left beside it when they were killed.

    Args:
        path: of the file or folder.
        older_s: seconds; what is younger may be of a writer at work.
    """
    before = time.time() - older_s
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            if is_temporary(left.name) and left.lstat().st_mtime <= before:
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def rename(temporary: Path, path: Place) -> None:
    """Give a file its own name, for good: the folder is synced too."""
    if isinstance(path, StorePath):
        path.upload(temporary)
        return
    temporary.replace(path)
    if os.name == "nt":  # Windows cannot open a directory
        return
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # or the rename itself could be lost with the power
    finally:
        os.close(directory)


def link_or_copy(source: Place, target: Path) -> None:
    """Give a finished file a second name, or copy it where the file system has no hard links."""
    if isinstance(source, StorePath):
        source.download(target)
        return
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
