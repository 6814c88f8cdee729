"""Write shards so that a kill at any moment leaves nothing half-done.

A shard is written under a temporary name, synced and renamed; then its commit record (rows,
bytes, sha256, fingerprint, statistics) is written the same way. The commit record means "done".
The file is named by its content, so that a record fits the file it speaks of even where two
builds made the same shard and rounded depth differently.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.files import read_text, rename, sha256_file, temporary_for, write_text
from builder.pinned import PinnedRecipe
from builder.record import Encoder, Record, Statistics
from builder.remote import Place
from builder.schema import arrow_schema, record_columns
from builder.tables import FileFormat, write_table
from builder.typed import Sha256, check, read, stored
from builder.untrusted import parse_json

if TYPE_CHECKING:
    pass


logger = logging.getLogger(__name__)

ROW_GROUP_RECORDS = 100
_MIN_PNG_BYTES = 57  # signature, header, one empty chunk of data, end
_MAX_COMMIT_BYTES = 2**28
_AHEAD = 32  # records encoded at once in the background; bounds memory


@dataclass(frozen=True)
class Commit:
    """What the commit record of a finished shard says."""

    shard: str
    rows: int
    size_bytes: int
    sha256: Sha256
    fingerprint: Sha256
    statistics: dict[str, Any]

    def __post_init__(self) -> None:
        check(self)


def stored_name(shard: str, sha256: str, file_format: FileFormat) -> str:
    """Return the name of a finished shard's file while the set is being built."""
    return f"{shard}.{sha256[:16]}.{file_format}"


def _in_background(
    make: Callable[[Record], dict[str, Any]], records: Iterable[Record]
) -> Iterator[dict[str, Any]]:
    """Map in order, in a thread of its own while the next records are made."""
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as pool:
        waiting: deque[Future[dict[str, Any]]] = deque()
        for record in records:
            waiting.append(pool.submit(make, record))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def write_shard(
    folder: Place,
    name: str,
    file_format: FileFormat,
    pinned: PinnedRecipe,
    records: Iterable[Record],
    progress: Callable[[int], object] | None = None,
) -> Commit:
    """Write one shard and its commit record.

    Args:
        folder: where finished shards lie.
        name: of the shard, without extension.
        records: in order; consumed once.
        progress: called with the number of rows after each row group.

    Raises:
        OSError: the folder cannot be written.
    """
    encoder, statistics = Encoder(pinned), Statistics.of(pinned.recipe)

    def encode(record: Record) -> dict[str, Any]:
        return encoder.row(record, statistics=statistics)

    # Without a network to wait for, a second thread would only add its switching.
    rows = _in_background(encode, records) if pinned.depth else map(encode, records)
    schema = arrow_schema(record_columns(pinned.recipe, pinned.categories))
    schema = schema.with_metadata({**schema.metadata, **_metadata(pinned)})
    with temporary_for(folder / f"{name}.{file_format}") as temporary:
        write_table(temporary, file_format, schema, rows, progress)
        if pinned.depth and not statistics.depth_pixels()[0]:
            logger.warning("%s has no pixel of known depth: the model gives none for it.", name)
        commit = Commit(
            shard=name,
            rows=statistics.rows,
            size_bytes=temporary.stat().st_size,
            sha256=sha256_file(temporary),
            fingerprint=pinned.fingerprint,
            statistics=statistics.to_json(),
        )
        rename(temporary, folder / stored_name(name, commit.sha256, file_format))
    write_text(folder / f"{name}.json", sealed(vars(commit)))
    return commit


def _metadata(pinned: PinnedRecipe) -> dict[bytes, bytes]:
    pinned = pinned.public()  # shards are published as they are
    content: dict[str, Any] = {"fingerprint": pinned.fingerprint, "recipe": pinned.recipe.to_dict()}
    if pinned.depth:
        content["depth"] = stored(pinned.depth)
    return {b"fgbg": json.dumps(content).encode()}


def sealed(content: Mapping[str, Any]) -> str:
    """Return JSON that holds its own sha256: a flipped bit in a number is a number, too."""
    return json.dumps({**content, "sealed": _digest(content)})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_commit(folder: Place, name: str) -> Commit | None:
    """Return a shard's commit record; None when it is damaged, or the shard is not done.

    Raises:
        NewerVersionError: a newer version of this package wrote it.
    """
    try:
        content = parse_json(read_text(folder / f"{name}.json", _MAX_COMMIT_BYTES))
        whole = content.pop("sealed") == _digest(content)
        return read(Commit, content, str(folder / f"{name}.json")) if whole else None
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def is_done(folder: Place, name: str, file_format: FileFormat, fingerprint: str) -> bool:
    """Whether a shard is finished: committed for this fingerprint and unharmed on disk."""
    commit = read_commit(folder, name)
    if commit is None or commit.fingerprint != fingerprint:
        return False
    try:
        path = folder / stored_name(name, commit.sha256, file_format)
        unharmed = path.stat().st_size == commit.size_bytes and sha256_file(path) == commit.sha256
    except OSError:
        return False
    return unharmed and _has_statistics(commit)


def _has_statistics(commit: Commit) -> bool:
    try:
        return Statistics.from_json(commit.statistics).rows == commit.rows
    except ValueError:
        return False
