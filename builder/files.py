"""Files that are there whole or not at all, here or on a store; their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.remote import Place, StorePath

_HASH_BLOCK = 2**20


def sha256_file(path: Place) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
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
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


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
