"""Read records for training: decoded in batches, normalised, depth in metres.

    reader = RecordReader.of("out/mine")                      # or a Hub repo id
    train = reader.undecoded(load_dataset("out/mine", split="train"))
    loader = DataLoader(train, batch_size=32, shuffle=True, collate_fn=reader.collate)

Nearly all the time a reader takes goes into decoding. `undecoded` leaves that to `decode`, which
does it straight into the batch, about twice as fast as Pillow picture by picture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.errors import FgbgError, NotABuildError
from builder.hub import is_hub_id, request_errors, why
from builder.layout import (
    RECIPE_FILE,
    STATISTICS_FILE,
    read_recipe,
    read_statistics,
    refuse_set_aside,
)
from builder.pinned import PinnedRecipe
from builder.record import (
    TRAIN,
    DepthCodec,
    Plan,
    Tally,
    decode_image_into,
    decode_instances,
    decode_mask,
    mask_pixels,
)
from builder.remote import StorePath, place
from builder.schema import IMAGE_COLUMNS
from builder.untrusted import refusing

_AS_LOADED = "give rows as load_dataset returns them, without set_format."

Channels = npt.NDArray[np.float64]
# A list of rows, as a data loader gives them, or a dict of columns, as `map` and transforms do.
Rows = Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]


class RecordReader:
    """Decodes the records of one set and makes training batches of them.

    Args:
        pinned: the set's recipe.
        mean, std: of each colour channel of `fg_bg` on a scale of 0 to 1, (3,). The std of a
            channel that is the same everywhere, 0, counts as 1.

    Raises:
        ValueError: these are not three numbers each, or a std is below 0.
    """

    def __init__(self, pinned: PinnedRecipe, mean: npt.ArrayLike, std: npt.ArrayLike) -> None:
        self.pinned = pinned
        self.mean: Channels = np.asarray(mean, dtype=np.float64)
        self.std: Channels = np.array(std, dtype=np.float64)
        if self.mean.shape != (3,) or self.std.shape != (3,) or not (self.std >= 0).all():
            raise ValueError(
                f"mean is {mean!r}, std is {std!r}; give three numbers each, and no std below 0."
            )
        self.std[self.std == 0] = 1
        self._codec = DepthCodec(pinned.recipe, pinned.depth) if pinned.depth else None

    def __repr__(self) -> str:
        recipe, info = self.pinned.recipe, self.pinned.depth
        depth = f"{recipe.depth_format} in {info.unit}" if info else None
        mean, std = ([round(float(n), 3) for n in values] for values in (self.mean, self.std))
        return f"RecordReader(size={recipe.size}, depth={depth!r}, mean={mean}, std={std})"

    @classmethod
    def of(
        cls,
        source: str | os.PathLike[str] | StorePath,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> RecordReader:
        """Make the reader of a built folder or of a set on the Hub.

        Mean and std are exact: over all pixels of the train split as decoded.

        Args:
            source: the folder, on this machine or a store, or a repo id; of a set on the Hub two
                small files are fetched.
            revision: of the repo.
            token: as everywhere in huggingface_hub.

        Raises:
            NotABuildError: it is not a set made by fgbg, or not a whole one.
            FgbgError: the Hub or the store cannot be reached, or has no such repo for this token.
        """
        folder = place(source)
        refuse_set_aside(folder)
        if isinstance(folder, Path) and not folder.is_dir():
            folder = _fetch(str(source), revision, token)
        pinned = read_recipe(folder)
        statistics = read_statistics(folder, Plan(pinned))[TRAIN].statistics
        return cls.counted(pinned, statistics.tallies["fg_bg"])

    @classmethod
    def counted(cls, pinned: PinnedRecipe, fg_bg: Tally) -> RecordReader:
        """Make the reader of a set whose composites' pixels have been counted, by channel."""
        channels = fg_bg.summaries()
        mean, std = ([getattr(c, name) / 255 for c in channels] for name in ("mean", "std"))
        return cls(pinned, mean, std)

    def metres(self, depth: Any) -> npt.NDArray[np.float32]:
        """Return metres, (H, W) float32, NaN where unknown, of a value of the column `depth`.

        For a relative model the unit is that of its prediction, not metres.

        Args:
            depth: decoded (a Pillow image or an array) or not (`{"bytes": ...}` or bytes).

        Raises:
            ValueError: it is not such a value, or the set has no depth.
        """
        if self._codec is None:
            raise ValueError("this set has no depth: it was built with --depth-model none.")
        with refusing("it cannot be decoded", (ValueError, MemoryError)):
            return self._codec.metres(_depth_pixels(self._codec, depth))

    def unknown(self, depth: Any) -> npt.NDArray[np.bool_]:
        """Return which pixels of a value of the column `depth` are unknown, (H, W) bool."""
        return np.isnan(self.metres(depth))

    def undecoded(self, dataset: Any) -> Any:
        """Return a loaded set that gives picture bytes, which `collate` decodes much faster.

        Args:
            dataset: `Dataset`, `IterableDataset`, or a dict of them.

        Raises:
            ValueError: it has none of the picture columns.
        """
        from datasets import DatasetDict, Image, IterableDatasetDict

        if isinstance(dataset, DatasetDict | IterableDatasetDict):
            return type(dataset)({name: self.undecoded(split) for name, split in dataset.items()})
        present = [column for column in IMAGE_COLUMNS if column in (dataset.features or {})]
        if not present:
            raise ValueError(
                f"the dataset has none of the columns {', '.join(IMAGE_COLUMNS)} (or does not "
                "know its columns); give what load_dataset returned, before map or select_columns."
            )
        for column in present:
            if isinstance(dataset.features[column], Image):
                dataset = dataset.cast_column(column, Image(decode=False))
        return dataset

    def decode(self, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Decode rows to `fg_bg` (B, H, W, 3) uint8, `mask` (B, H, W) bool, `depth_m`.

        `depth_m` is (B, H, W) float32 in metres with NaN where unknown; a set without depth has
        none, nor do rows without their column `depth`. Of scenes also `instances` (B, H, W) uint8.

        Args:
            rows: a list of rows, or a dict of columns. Pictures may be decoded or not.

        Raises:
            ValueError: a picture is missing, damaged or of another size than the set's.
        """
        pictures = _columns(rows)
        size, n = self.pinned.recipe.size, len(pictures["fg_bg"])
        batch: dict[str, npt.NDArray[Any]] = {
            "fg_bg": np.empty((n, size, size, 3), dtype=np.uint8),
            "mask": np.empty((n, size, size), dtype=np.bool_),
        }
        fill: dict[str, Callable[[Any, Any], None]] = {"fg_bg": _fill_image, "mask": _fill_mask}
        if "instances" in pictures:
            batch["instances"] = np.empty((n, size, size), dtype=np.uint8)
            fill["instances"] = _fill_instances
        if self._codec and "depth" in pictures:
            batch["depth_m"] = np.empty((n, size, size), dtype=np.float32)
            fill["depth_m"] = partial(_fill_depth, self._codec)
        for name, targets in batch.items():
            column = "depth" if name == "depth_m" else name
            for number, value in enumerate(pictures[column]):
                try:
                    with refusing("it cannot be decoded", (ValueError, MemoryError)):
                        fill[name](value, targets[number])
                except ValueError as error:
                    raise ValueError(f"row {number} of the batch, {column}: {error}") from error
        return batch

    def collate(self, rows: Rows) -> dict[str, Any]:
        """Make a training batch of rows; for `DataLoader(collate_fn=...)`, `map` and transforms.

        Returns:
            `pixel_values` (B, 3, H, W) float32, the composites less the set's mean, over its std;
            `mask` (B, 1, H, W) float32, 0 or 1; `depth_m` (B, 1, H, W) float32 in metres, NaN
            where unknown, as in `decode`. Of scenes also `instances` (B, H, W) uint8 and
            `objects`, a list of B dicts, which hold a list for each field. Of siblings also
            `layout_id` (B,) int64, and where there are several kinds of edge `blend`, B texts.

        Raises:
            ValueError: see `decode`.
        """
        import torch

        batch = self.decode(rows)
        n, size = len(batch["fg_bg"]), self.pinned.recipe.size
        pixel_values = np.empty((n, 3, size, size), dtype=np.float32)
        shift = (255 * self.mean).astype(np.float32)[:, None, None]
        factor = (1 / (255 * self.std)).astype(np.float32)[:, None, None]
        # NumPy, picture by picture: it stays in the cache, and takes no cores from other workers.
        for pixels, values in zip(batch["fg_bg"], pixel_values, strict=True):
            values[...] = pixels.transpose(2, 0, 1)
            values -= shift
            values *= factor
        tensors = {"pixel_values": pixel_values, "mask": batch["mask"][:, None].astype(np.float32)}
        if "depth_m" in batch:
            tensors["depth_m"] = batch["depth_m"][:, None]
        if "instances" in batch:
            tensors["instances"] = batch["instances"]
        made: dict[str, Any] = {name: torch.from_numpy(values) for name, values in tensors.items()}
        for name in ("objects", "blend", "layout_id"):
            if (column := _values(rows, name)) is not None:
                made[name] = torch.tensor(column) if name == "layout_id" else column
        return made


def _fill_image(value: Any, target: npt.NDArray[np.uint8]) -> None:
    encoded = _encoded(value)
    if encoded is not None:
        decode_image_into(encoded, target)
        return
    pixels = np.asarray(value.convert("RGB") if isinstance(value, Image.Image) else value)
    _fill(pixels, target)


def _fill_mask(value: Any, target: npt.NDArray[np.bool_]) -> None:
    encoded = _encoded(value)
    _fill(mask_pixels(value) if encoded is None else decode_mask(encoded, len(target)), target)


def _fill_instances(value: Any, target: npt.NDArray[np.uint8]) -> None:
    encoded = _encoded(value)
    _fill(np.asarray(value) if encoded is None else decode_instances(encoded, len(target)), target)


def _values(rows: Rows, name: str) -> list[Any] | None:
    """Return a column of a batch as a list; None where there is none."""
    if isinstance(rows, Mapping):
        return list(rows[name]) if name in rows else None
    lacking = sum(name not in row for row in rows)
    if 0 < lacking < len(rows):
        raise ValueError(f"some rows have no column {name!r}; give rows of one set.")
    return None if lacking else [row[name] for row in rows]


def _fill_depth(codec: DepthCodec, value: Any, target: npt.NDArray[np.float32]) -> None:
    pixels = _depth_pixels(codec, value)
    _check_shape(pixels, target)
    codec.metres(pixels, target)


def _depth_pixels(codec: DepthCodec, depth: Any) -> npt.NDArray[Any]:
    encoded = _encoded(depth)
    return np.asarray(depth) if encoded is None else codec.pixels(encoded)


def _fill(pixels: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    _check_shape(pixels, target)
    if pixels.dtype != target.dtype:
        raise ValueError(f"it is {pixels.dtype}, and this set's are {target.dtype}; {_AS_LOADED}")
    target[...] = pixels


def _check_shape(pixels: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
    if pixels.shape != target.shape:
        raise ValueError(
            f"its shape is {pixels.shape}, and this set's are {target.shape}; {_AS_LOADED}"
        )


def _encoded(value: Any) -> bytes | None:
    """Return the bytes of an undecoded picture; None when it is decoded."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
        if value is None:
            raise ValueError("it has no bytes.")
    return value if isinstance(value, bytes) else None


def _columns(rows: Rows) -> dict[str, Sequence[Any]]:
    """Return the picture columns of rows given either way."""
    if isinstance(rows, Mapping):
        columns = {column: rows[column] for column in IMAGE_COLUMNS if column in rows}
    elif isinstance(rows, Sequence) and rows and all(isinstance(row, Mapping) for row in rows):
        present = [column for column in IMAGE_COLUMNS if column in rows[0]]
        try:
            columns = {column: [row[column] for row in rows] for column in present}
        except KeyError as error:
            raise ValueError(f"some rows have no column {error}; give rows of one set.") from None
    else:
        raise ValueError(
            "give a list of at least one row, or a dict of columns, as `datasets` returns them."
        )
    missing = [column for column in ("fg_bg", "mask") if column not in columns]
    if missing:
        raise ValueError(
            f"the rows have no column {' and no '.join(missing)}; they have "
            f"{', '.join(map(str, rows if isinstance(rows, Mapping) else rows[0]))}."
        )
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{column} {len(values)}" for column, values in columns.items())
        raise ValueError(f"the columns have different numbers of rows: {lengths}.")
    return columns


def _fetch(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    """Download what a reader needs from a dataset repo; return the folder of its files."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if not is_hub_id(repo_id):
        raise FgbgError(f"{repo_id!r} is neither a folder here nor the id of a dataset on the Hub.")
    try:
        paths = [
            hf_hub_download(repo_id, file, repo_type="dataset", revision=revision, token=token)
            for file in (STATISTICS_FILE, RECIPE_FILE)
        ]
    except RemoteEntryNotFoundError:
        raise NotABuildError(
            f"dataset {repo_id!r} was not made by fgbg: it has no {RECIPE_FILE} or no "
            f"{STATISTICS_FILE}."
        ) from None
    except request_errors() as error:
        raise FgbgError(f"dataset {repo_id!r} {why(error, revision)}.") from None
    return Path(paths[-1]).parent
