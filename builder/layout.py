"""A finished set: the names of its files, and what reads them."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from builder.errors import FgbgError, NotABuildError, RecipeError
from builder.files import read_text, sha256_file, sweep, write_text
from builder.pinned import MAX_RECIPE_BYTES, PinnedRecipe
from builder.record import Plan, SplitPlan, Statistics
from builder.remote import Place, StorePath
from builder.tables import FileFormat
from builder.typed import Between, Sha256, check, read, refuse_newer
from builder.untrusted import parse_json, printable

# Every name in a finished set, but those of its records' files: `shard_file` makes them.
RECIPE_FILE = "recipe.json"  # PinnedRecipe
CARD_FILE = "README.md"
INFO_FILE = "dataset_info.json"  # by `datasets`
SOURCES_FILE = "train-00000-of-00001.parquet"  # the one file of each config that holds no records
FOREGROUNDS_FILE = f"foregrounds/{SOURCES_FILE}"  # prepared sources
BACKGROUNDS_FILE = f"backgrounds/{SOURCES_FILE}"
TABLE_FILE = f"preview/{SOURCES_FILE}"  # some records of all splits
STATISTICS_FILE = "assets/statistics.json"
SHEET_FILE = "assets/samples.png"
PAGE_FILE = "assets/preview.html"
FIFTYONE_FILE = "fiftyone.yml"  # how FiftyOne's load_from_hub opens the records
FOLDERS = ("foregrounds", "backgrounds", "preview", "assets")  # all but those of the records
# What else lies in OUT or in assets/ is a person's own.
OUR_NAMES = (RECIPE_FILE, CARD_FILE, INFO_FILE, FIFTYONE_FILE, "data", *FOLDERS)

ARROW_PREFIX = "fgbg_dataset"  # what `DatasetBuilder.as_dataset` looks for

# Of the files that are read whole; far above what a set of 10^9 records needs.
MAX_BYTES = {
    RECIPE_FILE: MAX_RECIPE_BYTES,
    STATISTICS_FILE: 2**28,
    CARD_FILE: 2**20,
    PAGE_FILE: 2**26,
    SHEET_FILE: 2**26,
    INFO_FILE: 2**20,
    FIFTYONE_FILE: 2**16,
}

# Raised when statistics.json becomes something that earlier versions would misread.
STATISTICS_FORMAT = 1

_STATISTICS_KEYS = ("format", "fingerprint", "splits", "files")

_Count = Annotated[int, Between(0, 2**62)]


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file of records as `assets/statistics.json` states it; `file` is its name in the set.

    Raises:
        RecipeError: a field has the wrong type or a value that it cannot have.
    """

    file: str
    rows: _Count
    size_bytes: _Count
    sha256: Sha256

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class OtherFile:
    """A file of a set as `assets/statistics.json` states it; not of records, card or itself.

    Raises:
        RecipeError: a field has the wrong type or a value that it cannot have.
    """

    size_bytes: _Count
    sha256: Sha256

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Figures:
    """What `assets/statistics.json` holds of a split: its files in order, and its statistics."""

    shards: tuple[DataFile, ...]
    statistics: Statistics

    @property
    def rows(self) -> int:
        """Number of records in the files."""
        return sum(shard.rows for shard in self.shards)

    @property
    def size_bytes(self) -> int:
        """Size of the files."""
        return sum(shard.size_bytes for shard in self.shards)


def loads_by_path(folder: str) -> bool:
    """Whether `load_dataset` takes a folder's path as it is: it may be no pattern, and UTF-8."""
    return not glob.has_magic(folder) and not re.search("[\ud800-\udfff]", folder)


def built_format(out: Place) -> FileFormat:
    """Return the file format of a finished build."""
    return "parquet" if (out / "data").is_dir() else "arrow"


def content_digest(out: Place) -> str:
    """Return the sha256 (hex) of what a finished build says of itself and of all its files."""
    digest = hashlib.sha256()
    for name in (RECIPE_FILE, STATISTICS_FILE):
        if (out / name).is_file():
            digest.update(read_text(out / name, MAX_BYTES[name]).encode())
    return digest.hexdigest()


def refuse_set_aside(out: Place) -> None:
    """Say where a set is whose extension was stopped while it took the set's place.

    Raises:
        NotABuildError: it lies beside OUT, and nothing is in OUT.
    """
    if not isinstance(out, Path) or out.exists():
        return
    if (out.parent / f".{out.name}.fgbg" / "before" / RECIPE_FILE).is_file():
        raise NotABuildError(
            f"{out} was being extended when that was stopped; `fgbg status {out}` puts the set "
            "back, and the same `fgbg extend` goes on."
        )


def read_recipe(folder: Place) -> PinnedRecipe:
    """Read the recipe of a finished or begun build.

    Raises:
        NotABuildError: the folder has none.
        NewerVersionError: a newer version of this package wrote it.
        RecipeError: it is damaged.
        FgbgError: it cannot be read, as on a store that cannot be reached.
    """
    path = folder / RECIPE_FILE
    try:
        text = read_text(path, MAX_RECIPE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        refuse_set_aside(folder)
        missing = f"{folder} is not a finished build of fgbg: it has no {RECIPE_FILE}."
        raise NotABuildError(missing) from None
    except (OSError, ValueError) as error:
        if isinstance(path, StorePath) and isinstance(error, OSError):
            raise FgbgError(f"{path} cannot be read: {error.strerror or error}.") from None
        raise RecipeError(f"{path} cannot be read: {error}") from None
    return PinnedRecipe.from_json(text, str(path))


def is_complete(out: Place, pinned: PinnedRecipe) -> bool:
    """Whether OUT holds this very set."""
    try:
        return read_recipe(out).fingerprint == pinned.fingerprint
    except (NotABuildError, RecipeError):
        return False


def write_statistics(folder: Place, fingerprint: str, splits: Mapping[str, Figures]) -> None:
    """Write `assets/statistics.json` of a set."""
    content = {
        name: {"shards": [vars(shard) for shard in s.shards], "statistics": s.statistics.to_json()}
        for name, s in splits.items()
    }
    text = json.dumps({"fingerprint": fingerprint, "splits": content})
    write_text(folder / STATISTICS_FILE, text + "\n")


def read_statistics(out: Place, plan: Plan) -> dict[str, Figures]:
    """Read the figures of a finished build, by split.

    Raises:
        NotABuildError: they are missing, damaged, or of another set.
        NewerVersionError: a newer version of this package wrote them.
    """
    path = out / STATISTICS_FILE
    try:
        return parse_statistics(read_text(path, MAX_BYTES[STATISTICS_FILE]), plan, str(path))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Place, error: Exception) -> NotABuildError:
    why = printable(str(error))[:300]
    return NotABuildError(f"{path} cannot be read ({why}); build the set again.")


def parse_statistics(text: str, plan: Plan, where: str) -> dict[str, Figures]:
    """Return what the text of `assets/statistics.json` says of the set of a plan, by split.

    Args:
        where: what holds it, for the error about a newer version.

    Raises:
        ValueError: it is something else, or speaks of other files than the set has.
        NewerVersionError: a newer version of this package wrote it.
    """
    content = parse_json(text)
    try:
        refuse_newer(content, _STATISTICS_KEYS, where, STATISTICS_FORMAT)
        if content["fingerprint"] != plan.pinned.fingerprint:
            raise ValueError("it is of another set")
        if list(content["splits"]) != list(plan.splits):
            raise ValueError("it has other splits")
        return {
            name: _figures(content["splits"][name], split, where)
            for name, split in plan.splits.items()
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def parse_files(text: str, where: str) -> dict[str, OtherFile] | None:
    """Return the other files that the text of `assets/statistics.json` states, by name.

    None for a set of version 0.1.0, which states none.

    Raises:
        ValueError: it is something else.
    """
    content = parse_json(text)
    try:
        if "files" not in content:
            return None
        return {name: read(OtherFile, file, where) for name, file in content["files"].items()}
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def state_files(out: Path, names: Iterable[str] | None = None) -> None:
    """Write into `assets/statistics.json` what the other files of a finished build are.

    Args:
        out: the built folder.
        names: of the files that were written anew; None: all there are.

    Raises:
        NotABuildError: what is there cannot be read.
    """
    path = out / STATISTICS_FILE
    sweep(path)
    try:
        text = read_text(path, MAX_BYTES[STATISTICS_FILE])
        stated = parse_json(text).get("files")
    except (OSError, ValueError, AttributeError) as error:
        raise _unreadable(path, error) from None
    if names is None:
        names = [
            name
            for name in (path.relative_to(out).as_posix() for path in out.rglob("*"))
            if (out / name).is_file()
            and not name.startswith(("data/", ARROW_PREFIX))
            and name not in (CARD_FILE, STATISTICS_FILE)
        ]
        stated = {}
    elif not isinstance(stated, dict):
        return  # a set of version 0.1.0, of which nothing was stated, or a damaged one
    new = {
        name: {"size_bytes": (out / name).stat().st_size, "sha256": sha256_file(out / name)}
        for name in names
    }
    write_text(path, with_files(text, {**stated, **new}))


def with_files(statistics: str, files: Mapping[str, Mapping[str, object]]) -> str:
    """Return the text of `assets/statistics.json` with what is stated of other files."""
    return json.dumps({**parse_json(statistics), "files": dict(sorted(files.items()))}) + "\n"


def _figures(content: Mapping[str, object], split: SplitPlan, where: str) -> Figures:
    refuse_newer(content, ("shards", "statistics"), where)
    shards, statistics = content["shards"], content["statistics"]
    if not (isinstance(shards, list) and isinstance(statistics, dict)):
        raise ValueError(f"it holds no files or no statistics of {split.name}")
    if len(shards) != split.n_shards:
        raise ValueError(f"it names {len(shards)} files of {split.name}, not {split.n_shards}")
    files = tuple(read(DataFile, shard, where) for shard in shards)
    for number, file in enumerate(files):
        start, stop = split.shard_range(number)
        names = (shard_file(split, number, "parquet"), shard_file(split, number, "arrow"))
        if file.file not in names or file.rows != stop - start:
            raise ValueError(f"it has another file {number} of {split.name} than the set")
    counts = Statistics.from_json(statistics)
    if counts.size != split.recipe.size:
        raise ValueError(f"it counts pixels of {split.name} in records of another size")
    return Figures(files, counts)


def shard_file(split: SplitPlan, shard: int, file_format: FileFormat) -> str:
    """Return the path of a shard inside OUT, as `datasets` expects it for the format."""
    if file_format == "parquet":
        return f"data/{split.shard_name(shard)}.parquet"
    # What `datasets` calls the files of a split that has one or several of them.
    several = f"-{shard:05d}-of-{split.n_shards:05d}" if split.n_shards > 1 else ""
    return f"{ARROW_PREFIX}-{split.name}{several}.arrow"


def data_glob(split: str, file_format: FileFormat) -> str:
    """Return the pattern of a split's files inside OUT."""
    return f"data/{split}-*" if file_format == "parquet" else f"{ARROW_PREFIX}-{split}*.arrow"
