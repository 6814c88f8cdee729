"""A finished set: the names of its files, and what reads them."""

from __future__ import annotations

from typing import Any

from builder.errors import NotABuildError, RecipeError
from builder.files import read_text
from builder.pinned import MAX_RECIPE_BYTES, PinnedRecipe
from builder.record import Plan, SplitPlan, Statistics
from builder.remote import Place
from builder.tables import FileFormat
from builder.untrusted import parse_json, printable

RECIPE_FILE = "recipe.json"
CARD_FILE = "README.md"
STATISTICS_FILE = "assets/statistics.json"
SOURCES_FILE = "train-00000-of-00001.parquet"
ARROW_PREFIX = "fgbg_dataset"  # what `DatasetBuilder.as_dataset` looks for
MAX_STATISTICS_BYTES = 2**28


def built_format(out: Place) -> FileFormat:
    """Return the file format of a finished build."""
    return "parquet" if (out / "data").is_dir() else "arrow"


def read_recipe(folder: Place) -> PinnedRecipe:
    """Read the recipe of a finished or begun build.

    Raises:
        NotABuildError: the folder has none.
        NewerVersionError: a newer version of this package wrote it.
        RecipeError: it is damaged.
    """
    path = folder / RECIPE_FILE
    if not path.is_file():
        raise NotABuildError(f"{folder} is not a finished build of fgbg: it has no {RECIPE_FILE}.")
    try:
        text = read_text(path, MAX_RECIPE_BYTES)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from None
    return PinnedRecipe.from_json(text, str(path))


def is_complete(out: Place, pinned: PinnedRecipe) -> bool:
    """Whether OUT holds this very set."""
    try:
        return read_recipe(out).fingerprint == pinned.fingerprint
    except (NotABuildError, RecipeError):
        return False


def read_statistics(out: Place, plan: Plan) -> dict[str, Any]:
    """Read the figures of a finished build: by split its `shards`, as the file has them.

    and its `statistics`, as an object.

    Raises:
        NotABuildError: they are missing, damaged, or of another set.
    """
    path = out / STATISTICS_FILE
    try:
        content = parse_json(read_text(path, MAX_STATISTICS_BYTES))
        if content["fingerprint"] != plan.pinned.fingerprint:
            raise ValueError("it is of another set")
        if list(content["splits"]) != list(plan.splits):
            raise ValueError("it has other splits")
        for name, split in content["splits"].items():
            split["statistics"] = Statistics.from_json(split["statistics"])
            for shard in split["shards"]:
                str(shard["file"]), str(shard["sha256"])
                if not all(type(shard[key]) is int for key in ("rows", "size_bytes")):
                    raise ValueError(f"a file of {name} has no number of rows or bytes")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = printable(f"{type(error).__name__}: {error}")[:300]
        raise NotABuildError(f"{path} cannot be read ({why}); build the set again.") from None
    splits: dict[str, Any] = content["splits"]
    return splits


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
