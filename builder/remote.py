"""Folders on an object store (`s3://bucket/sets/mine`), used as those of this machine are.

`StorePath` has what the other rooms use of `pathlib.Path`, over fsspec, so that one code builds
to both. Beyond `pathlib` a set needs to create an object unless it exists, to copy one on the
server, and to know at once when a listing has changed; no general path over fsspec has all three.

An object appears whole or not at all, which is what files are renamed for on a disk. Connections
that fail are tried again by the store's client, a few times. What it raises in the end becomes an
`OSError` with the address and one line. Credentials are found by the client, never in an address.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from stat import S_IFREG
from typing import Any, BinaryIO, cast
from urllib.request import url2pathname

from builder.errors import FgbgError, OutputError
from builder.untrusted import one_line, printable, without_secrets

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.+?)/*")
_BLOCK_BYTES = 2**23  # that are asked for at once; bounds memory
_PACKAGES = {"s3": "fgbg-dataset[remote]", "s3a": "fgbg-dataset[remote]", "gs": "gcsfs"}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
MAX_IMAGE_BYTES = 2 * 2**30  # of a file; more than any picture that is used has
_TRANSFERS = 8  # at once
_VERSIONS = ("ETag", "etag", "md5Hash", "xet_hash", "LastModified", "mtime", "created")


@dataclass(frozen=True)
class StorePath:
    """An object, or what objects with a common beginning are in; pickled, hashed as its address.

    Raises:
        OSError: from every method; the store cannot be reached, or refuses.
    """

    scheme: str
    key: str  # with the bucket

    @classmethod
    def parse(cls, address: str) -> StorePath:
        """Read an address.

        Raises:
            FgbgError: it is not one, or holds more than a place.
        """
        match = _ADDRESS.fullmatch(address)
        if match is None:
            shown = printable(without_secrets(address))
            raise FgbgError(f"{shown} is not an address; give one like s3://bucket/name.")
        scheme, key = match[1].lower(), match[2]
        bucket, *names = key.split("/")
        # Not even a name with an @: keys have slashes, so that it may stand behind one.
        secret = re.search(r"[@?]", key) if scheme != "hf" else re.search(r"[@?]", bucket)
        if secret or (re.search(r"[:#]", bucket) and not re.fullmatch(r"[^#]+:\d+", bucket)):
            raise FgbgError(
                f"an address of {scheme}:// names a place and nothing else, so no @ and no ?; give "
                "credentials and options where the store's client looks for them, such as "
                "AWS_ACCESS_KEY_ID."
            )
        if not {"", ".", ".."}.isdisjoint(names) or printable(key) != key:
            raise FgbgError(f"{printable(address)} has an empty, relative or unreadable part.")
        if scheme == "memory":
            raise FgbgError("memory:// is gone when this process ends; give a folder or a store.")
        return cls(scheme, key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(self.scheme, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its extension."""
        return Path(self.name).stem

    @property
    def parent(self) -> StorePath:
        """Where it lies.

        Raises:
            FgbgError: it is a whole bucket.
        """
        if "/" not in self.key:
            raise FgbgError(f"{self} is a whole bucket; name a folder in it: {self}/NAME.")
        return StorePath(self.scheme, self.key.rpartition("/")[0])

    @property
    def parents(self) -> tuple[StorePath, ...]:
        """Where it lies, where that lies, and so on."""
        found = [self]
        while "/" in found[-1].key:
            found.append(found[-1].parent)
        return tuple(found[1:])

    def absolute(self) -> StorePath:
        """Return itself."""
        return self

    @contextmanager
    def _system(self) -> Iterator[Any]:
        """Give the file system; say what goes wrong in one sentence."""
        import fsspec

        try:
            kind = fsspec.get_filesystem_class(self.scheme)
        except ImportError as error:
            name = _PACKAGES.get(self.scheme)
            hint = f"run `pip install {name}`" if name else one_line(error)
            raise OutputError(f"{self} needs a package that is not here; {hint}.") from None
        except ValueError:
            raise OutputError(f"{self} cannot be used: fsspec knows no {self.scheme}://.") from None
        try:
            system = kind(use_listings_cache=False)
            system.invalidate_cache()  # of file systems that have no such switch
            yield system
        except (FileNotFoundError, FileExistsError, FgbgError):
            raise
        except Exception as error:  # noqa: BLE001 - clients raise anything
            kind.clear_instance_cache()  # or credentials that are set now would not be seen
            raise _failure(self, error) from None

    def _kind(self) -> str | None:
        """Return what the store says there is; None where there is nothing.

        fsspec's own `exists`, `isfile` and `isdir` say no for every error, so that a store which
        cannot be reached would look empty.
        """
        with self._system() as system:
            try:
                return str(system.info(str(self))["type"])
            except FileNotFoundError:
                return None

    def exists(self) -> bool:
        """Whether there is an object, or any below it."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Whether there is an object."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return self._kind() == "directory"

    def iterdir(self) -> Iterator[StorePath]:
        """Give what lies in it; nothing where it is missing."""
        from fsspec.core import url_to_fs

        names: list[str] = []
        with self._system() as system, suppress(FileNotFoundError):
            names = [name.rstrip("/") for name in system.ls(str(self), detail=False)]
            root = url_to_fs(str(self), use_listings_cache=False)[1].rstrip("/")
            names = [name for name in names if name != root]  # what consoles mark a folder by
        yield from (self / name.rpartition("/")[2] for name in sorted(names))

    def glob(self, pattern: str) -> Iterator[StorePath]:
        """Give what lies in it and has such a name."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def files(self) -> dict[str, Mapping[str, Any]]:
        """Return what the store says of every object below it, by path from here."""
        from fsspec.core import url_to_fs

        with self._system() as system:
            found = system.find(str(self), detail=True)
            root = url_to_fs(str(self), use_listings_cache=False)[1].rstrip("/")
        return {name[len(root) :].removeprefix("/"): info for name, info in found.items()}

    def stat(self) -> os.stat_result:
        """Return the size of an object, as of a regular file; all else is 0."""
        with self._system() as system:
            size_bytes = int(system.info(str(self))["size"])
        return os.stat_result((S_IFREG, 0, 0, 0, 0, 0, size_bytes, 0, 0, 0))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: an object needs no folder."""

    @contextmanager
    def open(self, mode: str = "rb") -> Iterator[BinaryIO]:
        """Give an object to read from, at any place in it."""
        assert mode == "rb"
        with self._system() as system:
            file = system.open(str(self), "rb", block_size=_BLOCK_BYTES)
        with file:
            yield cast(BinaryIO, _RemoteFile(file, self))

    def read_bytes(self) -> bytes:
        """Return an object's content."""
        with self._system() as system:
            return bytes(system.cat_file(str(self)))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return an object's content as text."""
        return self.read_bytes().decode(encoding)

    def upload(self, file: Path) -> None:
        """Make the object of a local file, or replace it."""
        with self._system() as system:
            system.put_file(str(file), str(self))

    def download(self, file: Path) -> None:
        """Write the object to a local file."""
        with self._system() as system:
            system.get_file(str(self), str(file))

    def copy(self, target: StorePath) -> None:
        """Copy the object to another one of the same store, on the server."""
        with self._system() as system:
            system.cp_file(str(self), str(target))

    def create(self, content: bytes) -> bool:
        """Make an object unless it exists; say whether it was made.

        On a store that cannot do that in one request (see `probe`), two may both make it.
        """
        if self.exists():
            return False
        try:
            with self._system() as system:
                try:
                    system.pipe_file(str(self), content, mode="create")
                except (NotImplementedError, TypeError, ValueError):
                    system.pipe_file(str(self), content)
        except OSError as error:
            # Taken; or it is ours, and the answer was lost when it was made.
            held = self._content()
            if held is None and not isinstance(error, FileExistsError):
                raise
            return held == content
        return True

    def _content(self) -> bytes | None:
        try:
            return self.read_bytes()
        except FileNotFoundError:
            return None

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        with self._system() as system:
            try:
                system.rm_file(str(self))
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def rmtree(self) -> None:
        """Delete all objects below it."""
        with self._system() as system, suppress(FileNotFoundError):
            system.rm(str(self), recursive=True)

    def probe(self) -> bool:
        """Whether creating an object unless it exists is one request, tried beside this path.

        Raises:
            OutputError: nothing can be written.
        """
        path = self.parent / f".{self.name}.probe-{secrets.token_hex(8)}"
        try:
            with self._system() as system:
                system.pipe_file(str(path), b"1")
            try:
                with self._system() as system:
                    system.pipe_file(str(path), b"2", mode="create")
            except OSError as error:
                return isinstance(error, FileExistsError)
            return False
        except FileNotFoundError:
            bucket = self.key.partition("/")[0]
            raise OutputError(
                f"{self} cannot be written: there is no {self.scheme}://{bucket}; make it first, "
                "or check its name."
            ) from None
        except OSError as error:
            raise OutputError(f"{self} cannot be written: {error.strerror or error}.") from None
        finally:
            with suppress(OSError):
                path.unlink()


Place = Path | StorePath


def place(target: str | os.PathLike[str] | StorePath) -> Place:
    """Return a path on this machine, or on a store where an address is given.

    Raises:
        FgbgError: it is an address that makes no sense.
    """
    if isinstance(target, StorePath):
        return target
    text = os.fspath(target)
    if re.match(r"(file|local)://", text, re.IGNORECASE):
        return _path_of_url(text)
    if re.match(r"(s3a?|gc?s|hf|az|abfss?|https?):/(?!/)", text.strip(), re.IGNORECASE):
        raise FgbgError(
            f"{printable(without_secrets(text.strip()))} is not an address; give two slashes, "
            "as in s3://bucket/name, or ./ before the name of a folder of this machine."
        )
    return StorePath.parse(text) if "://" in text else Path(text)


def _path_of_url(url: str) -> Path:
    """Return the path that a file:// URL means (RFC 8089)."""
    host, slash, path = url.partition("://")[2].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise FgbgError(
            f"{printable(without_secrets(url))} names another machine; give a path, or three "
            "slashes as in file:///data/photographs."
        )
    return Path(url2pathname(slash + path))


def on_this_machine(target: str | os.PathLike[str] | StorePath) -> Path:
    """Return a path on this machine.

    Raises:
        FgbgError: it lies on a store.
    """
    if isinstance(where := place(target), StorePath):
        raise FgbgError(
            f"{where} lies on a store, and this needs a folder of this machine; fetch it first, "
            "for example with `aws s3 sync`."
        )
    return where


def local_folder(target: str | os.PathLike[str] | StorePath) -> Path:
    """Return a folder of sources, fetched to the cache where it lies on a store.

    What is there already is fetched again only where the store says that it has changed. The
    folder has the name of the one on the store, so that nothing tells the two apart later.

    Raises:
        FgbgError: it holds no file, or one that is not to be fetched.
    """
    where = place(target)
    if isinstance(where, Path):
        return where
    from filelock import FileLock

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgbg"
    root = cache / "sources" / hashlib.sha256(str(where).encode()).hexdigest()[:32]
    folder = root / "files" / where.name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "lock"):
        try:
            _fetch(where, folder, root / "fetched.json")
        except FileNotFoundError as error:
            raise FgbgError(f"{where} cannot be fetched: {error}.") from None
    return folder


def _fetch(where: StorePath, folder: Path, record: Path) -> None:
    """Make a folder hold what a store has, and nothing else."""
    due = {}
    for name, info in where.files().items():
        if name and not name.endswith("/"):
            _check(where, name, int(info["size"]))
            due[name] = [int(info["size"]), *(str(info[key]) for key in _VERSIONS if key in info)]
    if not due:
        raise FgbgError(f"{where} holds no file; give the address of the folder with the images.")
    for path in list(folder.rglob("*")):
        if not path.is_dir() and path.relative_to(folder).as_posix() not in due:
            path.unlink()
    held = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    kept = {name: due[name] for name in due if held.get(name) == due[name]}
    kept = {name: stamp for name, stamp in kept.items() if (folder / name).is_file()}
    record.write_text(json.dumps(kept), "utf-8")  # first, or one cut off here would be trusted
    with tempfile.TemporaryDirectory(dir=record.parent) as scratch:

        def fetch(numbered: tuple[int, str]) -> None:
            number, name = numbered
            fresh, path = Path(scratch) / str(number), folder / name
            (where / name).download(fresh)
            if fresh.stat().st_size != due[name][0]:
                raise FgbgError(f"{where / name} changed while it was fetched; try again.")
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.replace(path)

        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(fetch, enumerate(name for name in due if name not in kept)))
    record.write_text(json.dumps(due), "utf-8")


def _check(where: StorePath, name: str, size_bytes: int) -> None:
    """Refuse what would be written outside of the folder, or is not a picture."""
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or re.search(r"[\\\0]", name) or Path(name).drive:
        raise FgbgError(f"{where}: an object is called {printable(name)!r}; rename it.")
    if size_bytes > MAX_IMAGE_BYTES:
        raise FgbgError(f"{where / name} has {size_bytes:,} bytes; too large to be an image.")


class _RemoteFile:
    """A remote file whose reading fails with an `OSError` and one line."""

    def __init__(self, file: Any, path: StorePath) -> None:
        self._file, self._path = file, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, length: int = -1) -> bytes:
        """Read bytes from where the file stands."""
        try:
            return bytes(self._file.read(length))
        except FileNotFoundError:  # Deleted since it was opened, as a lease that is given back.
            raise FileNotFoundError(errno.ENOENT, "is gone", str(self._path)) from None
        except Exception as error:  # noqa: BLE001 - clients raise anything
            raise _failure(self._path, error) from None


def _failure(path: StorePath, error: Exception) -> OSError:
    kind = type(error).__name__
    if kind in _NO_CREDENTIALS:
        reason = "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        reason += "whatever else the store's client looks for"
        return PermissionError(errno.EACCES, reason, str(path))
    if isinstance(error, PermissionError):
        reason = f"the store refuses these credentials ({one_line(error)})"
        return PermissionError(errno.EACCES, reason, str(path))
    return OSError(errno.EIO, f"the store cannot be used ({kind}: {one_line(error)})", str(path))
