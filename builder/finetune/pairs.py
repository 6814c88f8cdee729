"""Pictures and their depth from any dataset that has a column of each, in an order that resumes.

A dataset is a folder or Hub id that `datasets.load_dataset` takes, mapped or streamed. Pictures
are PIL images in RGB, depth maps (H, W) float32 in metres with 0 for unknown.

Rows come in an endless seeded shuffle, each with the position behind it: a small JSON object from
which the rest follows exactly as if there had been no stop. Mapped sets are permuted anew every
epoch, so a row's number is position enough. Streamed sets are shuffled by shard (`datasets`) and
within blocks of consecutive rows (here): the shuffle buffer of `datasets` forgets what it holds
when it is stopped.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from builder.errors import TrainingError
from builder.finetune.settings import Position
from builder.hub import is_hub_id, request_errors, why
from builder.layout import read_recipe
from builder.pinned import DepthInfo
from builder.recipe import Recipe
from builder.record import DepthCodec
from builder.typed import read
from builder.untrusted import one_line, parse_json

Depth = npt.NDArray[np.float32]
Row = dict[str, Any]
Example = TypeVar("Example")

logger = logging.getLogger(__name__)

MM_PER_M = 1000.0
# Share of known pixels that must lie in the model's range for a unit that nothing but their type
# speaks for; for one that was given, or that the set states, a single pixel will do.
_LEAST_INSIDE = 0.9
BLOCK = 256  # rows of a stream shuffled together; as many are read again when a run resumes
_AHEAD = 2  # batches prepared while the network works


class Pairs:
    """One split of a dataset as pairs of a picture and its depth.

    Args:
        name: folder or Hub id.
        split: of the dataset, such as "train" or "train[:90%]" (the latter not when streaming).
        image_column, depth_column: their names. Depth may be a grey image of 8, 16 or 32 bits,
            an array or nested lists of numbers.
        depth_scale: stored units per metre. None reads the unit and code from a set made by fgbg
            (also its compact jpeg8), and takes whole numbers of other sets for millimetres.
        config: which of the set's configurations.
        streaming: read rows as they are needed instead of preparing the whole set first.

    Raises:
        TrainingError: there is no such set, split or column, or its depth is not in metres.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        image_column: str,
        depth_column: str,
        depth_scale: float | None = None,
        config: str | None = None,
        streaming: bool = False,
    ) -> None:
        self.name, self.split, self.streaming = name, split, streaming
        self._image_column, self._depth_column = image_column, depth_column
        self._metres = _depth_reader(name, depth_scale)
        self._dataset = _load(name, config, split, streaming)
        self._decode: dict[str, Callable[[Any], Any]] = {}
        # A streamed set of, say, JSON lines knows its columns by its first row.
        columns = self._dataset.column_names or list(next(iter(self._dataset), {}))
        for column in (image_column, depth_column):
            if column not in columns:
                raise TrainingError(
                    f"{name} has no column {column!r} in split {split!r}; it has "
                    f"{', '.join(columns) or 'none that is known'}. Name yours with "
                    "--image-column and --depth-column."
                )
        self._dataset = self._dataset.select_columns([image_column, depth_column])
        for column in (image_column, depth_column):
            self._prepare_column(column, (self._dataset.features or {}).get(column))

    def _prepare_column(self, column: str, feature: Any) -> None:
        """Set how a column's values are decoded, which is done by worker threads."""
        import datasets

        if isinstance(feature, datasets.Image):
            # Images stay bytes until then, so that passing over rows is cheap.
            self._decode[column] = datasets.Image(mode=feature.mode).decode_example
            self._dataset = self._dataset.cast_column(column, datasets.Image(decode=False))
            return
        while hasattr(feature, "feature"):  # of lists
            feature = feature.feature
        # Rows hold arrays as lists of Python's numbers, which have lost their type.
        dtype = str(getattr(feature, "dtype", ""))
        if dtype.startswith(("int", "uint", "float")):
            self._decode[column] = lambda value: np.asarray(value, dtype)

    def read(self, row: Row) -> tuple[Image.Image, Depth]:
        """Decode one row to its picture, RGB, and its depth (H, W) in metres, 0 = unknown.

        Raises:
            TrainingError: a value is missing, damaged or of the wrong shape.
        """
        try:
            picture = self._value(row, self._image_column)
            if not isinstance(picture, Image.Image):
                picture = Image.fromarray(_eight_bits(picture))
            depth_m = np.asarray(self._metres(self._value(row, self._depth_column)), np.float32)
        except (OSError, UnidentifiedImageError, ValueError, TypeError) as error:
            raise TrainingError(f"a row of {self.name} cannot be read: {one_line(error)}") from None
        if depth_m.ndim == 3 and depth_m.shape[0] == 1:
            depth_m = depth_m[0]
        if depth_m.ndim != 2:
            raise TrainingError(
                f"column {self._depth_column!r} of {self.name} holds arrays of shape "
                f"{depth_m.shape}; depth must be one (height, width) map, such as a grey image."
            )
        known = np.isfinite(depth_m) & (depth_m > 0)
        return picture.convert("RGB"), np.where(known, depth_m, np.float32(0))

    def _value(self, row: Row, column: str) -> Any:
        value = row[column]
        if value is None:
            raise ValueError(f"column {column!r} is empty")
        return self._decode[column](value) if column in self._decode else value

    def check_unit(self, range_m: tuple[float, float], rows: int) -> None:
        """Compare the depth of the first rows with what a model can say.

        Args:
            range_m: nearest and farthest depth of the model in metres.
            rows: how many to look at.

        Raises:
            TrainingError: the depth lies elsewhere, so its unit must be another one.
        """
        maps = [self.read(row)[1] for row in islice(self.in_order(), rows)]
        known = np.concatenate([np.zeros(0, np.float32), *(m[m > 0] for m in maps)])
        if not known.size:
            return  # sparse labels may begin so; the metrics refuse a split without any
        near, far = range_m
        inside = np.count_nonzero((known >= near) & (known <= far)) / known.size
        guessed = self._metres is _whole_millimetres
        unit = ", read as millimetres," if guessed else ""
        found = (
            f"the depth of {self.name}{unit} is {known.min():.4g} to {known.max():.4g} m in the "
            f"first {len(maps)} rows"
        )
        if inside < _LEAST_INSIDE if guessed else not inside:
            raise TrainingError(
                f"{found}, and the model says {near:g} to {far:g} m. Give the unit with "
                "--depth-scale, in stored units per metre: 1 for metres, 100 for cm, 256 for "
                "KITTI's, 1000 for mm."
            )
        if guessed:
            logger.warning(
                "%s. If that is wrong, give --depth-scale.", found[0].upper() + found[1:]
            )

    def in_order(self) -> Iterator[Row]:
        """Yield every row once, in the order of the files."""
        yield from self._dataset

    def endless(self, seed: int, position: Position | None) -> Iterator[tuple[Row, Position]]:
        """Yield rows in a seeded order for ever, each with the position behind it.

        Args:
            seed: decides the order.
            position: where to go on; None starts from the first row. Its "row" is the number of
                rows before it, over all epochs.

        Raises:
            TrainingError: the split has no rows.
        """
        rows = self._streamed if self.streaming else self._mapped
        return rows(seed, dict(position or {"row": 0}))

    def _mapped(self, seed: int, position: Position) -> Iterator[tuple[Row, Position]]:
        count, row = len(self._dataset), position["row"]
        if not count:
            raise TrainingError(f"split {self.split!r} of {self.name} has no rows.")
        while True:
            epoch, first = divmod(row, count)
            order = np.random.default_rng([seed, 0, epoch]).permutation(count)
            for index in order[first:]:
                row += 1
                yield self._dataset[int(index)], {"row": row}

    def _streamed(self, seed: int, position: Position) -> Iterator[tuple[Row, Position]]:
        """Position: epoch, block in it, rows of the block used, state of the stream before it."""
        # One input shard at a time: more of them make `datasets` 5.2 sleep after every pass.
        stream = self._dataset.shuffle(seed=seed, buffer_size=1, max_buffer_input_shards=1)
        row, epoch = position["row"], position.get("epoch", 0)
        block, used, state = (position.get(key) for key in ("block", "used", "state"))
        block, used = block or 0, used or 0
        while True:
            stream.set_epoch(epoch)  # before the state, which holds for its epoch alone
            stream.load_state_dict(state)
            rows = iter(stream)
            while group := list(islice(rows, BLOCK)):
                order = np.random.default_rng([seed, 1, epoch, block]).permutation(len(group))
                for index in order[used:]:
                    row, used = row + 1, used + 1
                    here = {"epoch": epoch, "block": block, "used": used, "state": state}
                    yield group[index], {"row": row, **here}
                state, used, block = stream.state_dict(), 0, block + 1
            if not block:
                raise TrainingError(f"split {self.split!r} of {self.name} has no rows.")
            epoch, block, state = epoch + 1, 0, None


def batches(
    rows: Iterable[tuple[Row, Position]],
    size: int,
    prepare: Callable[[Row, int], Example],
    workers: int,
) -> Iterator[tuple[list[Example], Position]]:
    """Prepare rows in threads, a little ahead, and yield them in order by `size`.

    Args:
        rows: with the positions behind them.
        prepare: called with a row and its number, counted over all epochs from 0.
        workers: number of threads.

    Yields:
        Up to `size` prepared examples (fewer at the end) and the position behind the last.
    """
    rows = iter(rows)
    with ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
        waiting: deque[tuple[list[Any], Position]] = deque()
        while True:
            if taken := list(islice(rows, size)):
                futures = [pool.submit(prepare, row, at["row"] - 1) for row, at in taken]
                waiting.append((futures, taken[-1][1]))
            if not waiting:
                return
            if not taken or len(waiting) > _AHEAD:
                futures, position = waiting.popleft()
                yield [future.result() for future in futures], position


def _eight_bits(picture: Any) -> npt.NDArray[np.uint8]:
    """Return the pixels of a picture that is not an image file.

    Raises:
        ValueError: they are of another range, as those that were scaled to 0..1.
    """
    pixels = np.asarray(picture)
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError("its picture is not in whole numbers from 0 to 255")
    return pixels.astype(np.uint8)


def _depth_reader(name: str, depth_scale: float | None) -> Callable[[Any], Any]:
    """Return what turns a value of the depth column into metres, NaN or 0 where unknown.

    Raises:
        TrainingError: the set says that its depth is relative, and no scale was given.
    """
    if depth_scale is not None:
        return lambda value: np.asarray(value, np.float32) / np.float32(depth_scale)
    made = _fgbg_depth(name)
    if made is None:
        return _whole_millimetres
    recipe, info = made
    if info.kind != "metric":
        raise TrainingError(
            f"the depth of {name} is relative ({info.quantity} by {info.model}), and DenseDepth "
            "learns metres. Build the set with a metric --depth-model."
        )
    return DepthCodec(recipe, info).metres


def _whole_millimetres(value: Any) -> Any:
    """Return metres of whole numbers of more than 8 bits, as most sets store them.

    Anything else could be metres, a code, or stretched per image, and is not guessed.
    """
    pixels = np.asarray(value)
    if pixels.dtype.kind not in "iu":
        raise ValueError(
            "its depth is not in whole numbers, and no recipe.json says their unit; give "
            "--depth-scale: 1 for metres, 1000 for millimetres"
        )
    if pixels.dtype.itemsize == 1:
        raise ValueError(
            "its depth has 8 bits, and no recipe.json says their unit; give --depth-scale, in "
            "stored units per metre"
        )
    return pixels.astype(np.float32) / np.float32(MM_PER_M)


def _fgbg_depth(name: str) -> tuple[Recipe, DepthInfo] | None:
    """Read how a set made by fgbg stores depth; None for other sets, and for those without."""
    folder = Path(name)
    if not folder.is_dir():
        downloaded = _download_recipe(name)
        if downloaded is None:
            return None
        folder = downloaded.parent
    if (folder / "recipe.json").is_file():
        pinned = read_recipe(folder)
        return (pinned.recipe, pinned.depth) if pinned.depth else None
    import pyarrow.parquet as pq

    for path in sorted(folder.rglob("*.parquet")):
        try:
            content = (pq.read_schema(path).metadata or {}).get(b"fgbg")
            if content is not None:
                made = parse_json(content.decode())
                depth = made.get("depth")
                recipe = read(Recipe, made["recipe"], str(path))
                return (recipe, read(DepthInfo, depth, str(path))) if depth else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{path} does not say how it stores depth ({one_line(error)}); fetch it again, or "
                "give --depth-scale."
            ) from None
    return None


def _download_recipe(repo_id: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not is_hub_id(repo_id):
        raise TrainingError(f"{repo_id} is neither a folder here nor the id of a dataset.")
    try:
        return Path(hf_hub_download(repo_id, "recipe.json", repo_type="dataset"))
    except request_errors() as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise TrainingError(
            f"dataset {repo_id} {why(error)}. With --depth-scale, one that is in the cache is used "
            "as it is."
        ) from None


def _load(name: str, config: str | None, split: str, streaming: bool) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = one_line(error) or type(error).__name__
        raise TrainingError(f"split {split!r} of {name} cannot be loaded: {reason}") from None
