"""A finished set in a folder or on the Hub, read without trust in what it holds.

Nothing in it is executed, only names that a plan gives are opened, images are refused by their
header before they are decoded, and whatever a decoder raises becomes one sentence.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.errors import FgbgError, NotABuildError
from builder.hub import is_absent, is_hub_id, request_errors, why
from builder.layout import (
    CARD_FILE,
    RECIPE_FILE,
    SOURCES_FILE,
    STATISTICS_FILE,
    TABLE_FILE,
    built_format,
)
from builder.remote import StorePath, place
from builder.schema import Column, features
from builder.tables import FileFormat
from builder.untrusted import Unreadable, refusing

if TYPE_CHECKING:
    import pyarrow as pa


# What load_dataset reads before, or instead of, the card and the data files it names.
def misleading_files(name: str) -> dict[str, str]:
    """Return the files that must not lie in a set of this name, and what each of them does."""
    return {
        f"{name}.py": "and load_dataset refuses a set with a module of its own name",
        ".huggingface.yaml": "which load_dataset reads instead of the card's configs",
        "dataset_infos.json": "which load_dataset reads beside the card",
    }


# Of the files that are read whole; far above what a set of 10^9 records needs.
MAX_BYTES = {RECIPE_FILE: 2**28, STATISTICS_FILE: 2**28, CARD_FILE: 2**20}

_BATCH_RECORDS = 100
_MAX_JPEG_SCANS = 100  # an encoder makes about ten; each takes time for the whole picture


@dataclass(frozen=True)
class File:
    """A file of the set: its size and, where the Hub states it, its sha256."""

    size_bytes: int
    sha256: str | None = None


class Folder:
    """A built folder on this machine."""

    is_local = True
    revision: str | None = None

    def __init__(self, root: Path) -> None:
        if not (root / RECIPE_FILE).is_file():
            raise NotABuildError(
                f"{root} is not a finished build of fgbg: it has no {RECIPE_FILE}."
            )
        self.name, self.root = str(root), root
        self.file_format: FileFormat = built_format(root)
        paths = [*(root / "data").rglob("*"), *root.glob("*.arrow")]
        self.files = {
            path.relative_to(root).as_posix(): File(path.stat().st_size if path.is_file() else -1)
            for path in paths
            if not path.is_dir()
        }

    @contextmanager
    def opened(self, name: str, whole: bool) -> Iterator[Path | BinaryIO]:
        """Give a shard's path."""
        yield self.root / name


class Repo:
    """A data set on the Hub: its small files in a temporary folder, its shards as they are read."""

    is_local = False
    file_format: FileFormat = "parquet"

    def __init__(self, repo_id: str, revision: str | None, token: str | None, root: Path) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        self.name, self.root = repo_id, root
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
        sources = (f"{kind}/{SOURCES_FILE}" for kind in ("foregrounds", "backgrounds"))
        small = (*MAX_BYTES, *sources, TABLE_FILE)
        for name in small:
            if name in self.files and self.files[name].size_bytes <= MAX_BYTES.get(name, math.inf):
                self._download(name, root)
        self.files = {n: f for n, f in self.files.items() if n.startswith("data/")}
        (root / "data").mkdir(exist_ok=True)  # what tells that it is Parquet

    def _download(self, name: str, folder: Path) -> Path:
        return Path(
            self._api.hf_hub_download(
                self.name, name, repo_type="dataset", revision=self.revision, local_dir=folder
            )
        )

    @contextmanager
    def opened(self, name: str, whole: bool) -> Iterator[Path | BinaryIO]:
        """Give a shard as a temporary file where all of it is needed, else as a remote file."""
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


class Stored:
    """A built folder on a store: its small files in a temporary folder, its shards one by one."""

    is_local = True  # every shard is looked into: no store states a sha256
    file_format: FileFormat = "parquet"
    revision: str | None = None

    def __init__(self, where: StorePath, root: Path) -> None:
        self.name, self.root, self._where = str(where), root, where
        found = {name: File(int(info["size"])) for name, info in where.files().items()}
        if RECIPE_FILE not in found:
            raise NotABuildError(f"{where} is not a finished build of fgbg: no {RECIPE_FILE}.")
        sources = (f"{kind}/{SOURCES_FILE}" for kind in ("foregrounds", "backgrounds"))
        for name in (*MAX_BYTES, *sources, TABLE_FILE):
            if name in found and found[name].size_bytes <= MAX_BYTES.get(name, math.inf):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (where / name).download(root / name)
        (root / "data").mkdir()  # what tells that it is Parquet
        self.files = {name: file for name, file in found.items() if name.startswith("data/")}

    @contextmanager
    def opened(self, name: str, whole: bool) -> Iterator[Path | BinaryIO]:
        """Give a shard as a temporary file."""
        with tempfile.TemporaryDirectory(prefix="fgbg-verify-") as folder:
            path = Path(folder) / "shard"
            (self._where / name).download(path)
            yield path


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
    if isinstance(where, StorePath):
        if revision is not None:
            raise FgbgError(f"{target} is a folder on a store; revision is for a set on the Hub.")
        with tempfile.TemporaryDirectory(prefix="fgbg-verify-") as folder:
            (root := Path(folder) / where.name).mkdir()  # the card tells the name
            yield Stored(where, root)
        return
    path = Path(target)
    if path.exists() or isinstance(target, Path) or "/" not in target or not is_hub_id(target):
        if not path.is_dir():
            raise NotABuildError(f"{target} is neither a folder nor the id of a set on the Hub.")
        if revision is not None:
            raise FgbgError(f"{target} is a folder here; revision is for a set on the Hub.")
        yield Folder(path)
        return
    with tempfile.TemporaryDirectory(prefix="fgbg-verify-") as folder:
        try:
            yield Repo(target, revision, token, Path(folder) / target.split("/")[1])
        except request_errors() as error:
            kind = NotABuildError if is_absent(error) else FgbgError
            raise kind(f"{target} {why(error, revision)}.") from None


class Table:
    """The rows of a shard, Parquet or Arrow, read a small batch at a time.

    Raises:
        Unreadable: it is damaged or something else; from every method.
    """

    def __init__(self, source: Path | BinaryIO, file_format: FileFormat) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._source, self._parquet = source, None
        self._damaged = f"cannot be read as {file_format.capitalize()}"
        with refusing(self._damaged, request_errors()):
            if file_format == "arrow":
                with pa.ipc.open_stream(str(source)) as reader:
                    self.schema: pa.Schema = reader.schema
                    self.n_rows: int = sum(batch.num_rows for batch in reader)
                return
            metadata = pq.read_metadata(source)
            self.schema = metadata.schema.to_arrow_schema()
            # Not `num_rows`, which is only said.
            groups = range(metadata.num_row_groups)
            self.n_rows = sum(metadata.row_group(group).num_rows for group in groups)
            leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
            # Kept as the dictionaries they are stored as, so that one long value named by many
            # rows does not become many copies of it.
            texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
            self._parquet = pq.ParquetFile(source, metadata=metadata, read_dictionary=texts)

    def integers(self, column: str) -> npt.NDArray[np.int64]:
        """Return a column of whole numbers."""
        parts = [np.zeros(0, np.int64)]
        for _, batch in self._batches([column], None):
            if batch.column(0).null_count:
                raise Unreadable(f"has rows without {column}")
            parts.append(np.asarray(batch.column(0)))
        return np.concatenate(parts)

    def rows(
        self, columns: list[str], wanted: npt.NDArray[np.int64] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Give (number, row) of some rows, images as their bytes; None: all rows."""
        for start, batch in self._batches(columns, wanted):
            numbers = np.arange(start, start + batch.num_rows)
            for number in numbers if wanted is None else np.intersect1d(numbers, wanted):
                with refusing(self._damaged, request_errors()):
                    (row,) = batch.slice(number - start, 1).to_pylist()
                yield int(number), row

    def _batches(
        self, columns: list[str], wanted: npt.NDArray[np.int64] | None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Give (number of the first row, batch) for every batch of a group with a wanted row."""
        start = 0
        # This is a generator, so what its user raises does not pass here.
        with refusing(self._damaged, request_errors()):
            for n_rows, read in self._groups():
                if wanted is None or np.any((wanted >= start) & (wanted < start + n_rows)):
                    first = start
                    for batch in read(columns=columns):
                        batch.validate(full=True)
                        yield first, batch
                        first += batch.num_rows
                start += n_rows

    def _groups(self) -> Iterator[tuple[int, Callable[..., Iterable[pa.RecordBatch]]]]:
        """Give the number of rows of each group, and what reads some columns of it."""
        import pyarrow as pa

        if self._parquet is None:
            with pa.ipc.open_stream(str(self._source)) as reader:
                for batch in reader:
                    yield batch.num_rows, partial(_columns_of, batch)
            return
        for group in range(self._parquet.metadata.num_row_groups):
            read = partial(self._parquet.iter_batches, _BATCH_RECORDS, [group])
            yield self._parquet.metadata.row_group(group).num_rows, read


def _columns_of(batch: pa.RecordBatch, columns: list[str]) -> list[pa.RecordBatch]:
    return [batch.select(columns)]


def open_image(
    data: object, formats: tuple[str, ...], size: tuple[int, int], modes: tuple[str, ...]
) -> Image.Image:
    """Decode an image, once its header says the format, size and mode that are due.

    Raises:
        Unreadable: it is something else, or damaged.
    """
    if not isinstance(data, bytes):
        raise Unreadable("holds no image")
    with refusing("is damaged"):
        image = Image.open(io.BytesIO(data), formats=formats)
        if image.size != size or getattr(image, "n_frames", 1) != 1:
            raise Unreadable(f"is {image.width}x{image.height} px, not {size[0]}x{size[1]} px")
        if image.mode not in modes:
            raise Unreadable(f"is of mode {image.mode}, not {' or '.join(modes)}")
        if image.format == "JPEG" and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
            raise Unreadable("has more scans than any encoder makes")
        image.load()
        return image


def wrong_columns(schema: pa.Schema, columns: tuple[Column, ...]) -> str | None:
    """Return what distinguishes the columns of a file from those due; None if nothing does."""
    mine, theirs = (  # how the item of a list is called is the writer's affair
        {field.name: str(field.type).replace("<element:", "<item:") for field in one}
        for one in (features(columns).arrow_schema, schema)
    )
    if list(mine.items()) == list(theirs.items()):
        return None
    wrong = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    return f"has not the columns of the recipe (see {', '.join(wrong) or 'their order'})"
