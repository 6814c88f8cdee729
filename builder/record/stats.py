"""Exact statistics: histograms that merge to the bit in any order.

Every number (n, mean, std, min, max, quantiles) is derived from the counts of whole values, so
merging is addition and a card's numbers equal a recomputation from the published pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from builder.recipe import Recipe

Counts = npt.NDArray[np.int64]

# Of the largest record, 4096 px square, and of what a set of 2^62 records could hold of it.
_MAX_CATEGORIES = 65536
_MAX_LEVELS, _MAX_CHANNELS, _MAX_COUNT = 4096**2 + 1, 4, 2**62


def histogram(picture: Image.Image) -> Counts:
    """Return how often each value occurs in an RGB picture, (3, 256)."""
    # Pillow counts in C, three times as fast as bincount on three channels.
    return np.asarray(picture.histogram()).reshape(3, 256)


class Tally:
    """How often each whole number 0 .. levels - 1 occurs in each channel.

    `counts` is (channels, levels) int64.
    """

    def __init__(self, levels: int, channels: int = 1) -> None:
        self.counts: Counts = np.zeros((channels, levels), dtype=np.int64)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count values, (..., channels) or any shape when there is one channel."""
        channels = len(self.counts)
        flat = values.reshape(-1, channels)
        for channel in range(channels):
            counts = np.bincount(flat[:, channel])
            self.counts[channel, : len(counts)] += counts  # most are far below `levels`

    def merge(self, other: Tally) -> None:
        """Add the counts of another tally of the same shape."""
        self.counts += other.counts

    def to_json(self) -> dict[str, Any]:
        """Return the counts, without the values that never occur."""
        channels = []
        for counts in self.counts:
            present = np.flatnonzero(counts)
            channels.append({"values": present.tolist(), "counts": counts[present].tolist()})
        return {"levels": self.counts.shape[1], "channels": channels}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tally:
        """Read what `to_json` returned.

        Raises:
            ValueError: it is something else.
        """
        levels, channels = content["levels"], content["channels"]
        if not (_is_count(levels, _MAX_LEVELS) and 1 <= len(channels) <= _MAX_CHANNELS):
            raise ValueError("a tally has a size that none has")
        tally = cls(levels, len(channels))
        for counts, channel in zip(tally.counts, channels, strict=True):
            values, given = np.asarray(channel["values"]), np.asarray(channel["counts"])
            if not len(values):
                continue
            if not (values.shape == given.shape and values.dtype == given.dtype == np.int64):
                raise ValueError("a tally does not hold whole numbers")
            fits = 0 <= values.min() <= values.max() < levels
            if not fits or not 0 < given.min() <= given.max() < _MAX_COUNT:
                raise ValueError("a tally counts what cannot be")
            counts[values] = given
        return tally

    def channel(self, channel: int, first: int = 0) -> Summary:
        """Summarise one channel, leaving values below `first` out."""
        return Summary(self.counts[channel], first)

    def summaries(self) -> list[Summary]:
        """Summarise each channel."""
        return [Summary(counts) for counts in self.counts]


class Summary:
    """Exact figures of one channel: integers `n`, `total`, `total_squares`, `low`, `high`."""

    def __init__(self, counts: Counts, first: int = 0) -> None:
        self._values = np.flatnonzero(counts[first:]) + first
        self._counts = counts[self._values]
        # Python's integers: sums of squares of 65535 over 10^9 pictures pass 64 bits.
        pairs = list(zip(self._values.tolist(), self._counts.tolist(), strict=True))
        self.n = sum(count for _, count in pairs)
        self.total = sum(value * count for value, count in pairs)
        self.total_squares = sum(value * value * count for value, count in pairs)
        self.low: int = pairs[0][0] if pairs else 0
        self.high: int = pairs[-1][0] if pairs else 0

    @property
    def mean(self) -> float:
        """Mean; NaN when there is no value."""
        return self.total / self.n if self.n else math.nan

    @property
    def std(self) -> float:
        """Population standard deviation; NaN when there is no value."""
        if not self.n:
            return math.nan
        return float(math.sqrt(self.n * self.total_squares - self.total**2) / self.n)

    def quantile(self, share: float) -> float:
        """Smallest value that at least this share of all do not exceed; NaN when there is none."""
        if not self.n:
            return math.nan
        position = np.searchsorted(np.cumsum(self._counts), share * self.n)
        return int(self._values[min(position, len(self._values) - 1)])


class Statistics:
    """The statistics of a shard, a split or a set.

    `tallies` by kind: `fg_bg` and `mask` over pixels 0..255, `depth` over stored units (0 =
    unknown), `mask_px` over the number of mask pixels a record has, `bbox` over x, y, width,
    height. Scenes count their objects too: `objects` a record, `left_out` of it, and over all of
    them `object_px` (pixels seen), `object_depth` (stored units at the foot), `visible` and
    `truncated` (whole thousandths), `category`. `size_bytes` sums the encoded bytes of each image
    column.

    Args:
        size: side of a record in px.
        scenes: whether there are objects to count.
    """

    def __init__(self, size: int, *, scenes: bool = False) -> None:
        self.size = size
        self.rows = 0
        self.size_bytes: dict[str, int] = {}
        self.tallies = {
            "fg_bg": Tally(256, 3),
            "mask": Tally(256),
            "depth": Tally(65536),
            "mask_px": Tally(size * size + 1),
            "bbox": Tally(size + 1, 4),
        }
        if scenes:
            self.tallies |= {
                "objects": Tally(256),
                "left_out": Tally(256),
                "object_px": Tally(size * size + 1),
                "object_depth": Tally(65536),
                "visible": Tally(1001),
                "truncated": Tally(1001),
                "category": Tally(_MAX_CATEGORIES),
            }

    @classmethod
    def of(cls, recipe: Recipe) -> Statistics:
        """Return the statistics, so far of nothing, of a set with this recipe."""
        return cls(recipe.size, scenes=recipe.layout == "scenes")

    def add(
        self,
        fg_bg: Counts,
        mask: npt.NDArray[np.uint8],
        depth: npt.NDArray[np.uint16] | None,
        bbox: Sequence[int],
        size_bytes: Mapping[str, int],
        objects: Mapping[str, Sequence[Any]] | None = None,
        left_out: int = 0,
    ) -> None:
        """Count one record's pixels, and its objects, as a consumer decodes them.

        Args:
            fg_bg: the `histogram` of its composite.
            left_out: objects of a scene of which too little would have been seen.
        """
        self.rows += 1
        self.tallies["fg_bg"].counts += fg_bg
        n_mask = int(np.count_nonzero(mask))
        self.tallies["mask"].counts[0, 255] += n_mask
        self.tallies["mask"].counts[0, 0] += mask.size - n_mask
        self.tallies["mask_px"].counts[0, n_mask] += 1
        self.tallies["bbox"].counts[range(4), bbox] += 1
        if depth is not None:
            self.tallies["depth"].add(depth)
        if objects is not None:
            self._add_objects(objects)
            self.tallies["left_out"].counts[0, left_out] += 1
        for column, count in size_bytes.items():
            self.size_bytes[column] = self.size_bytes.get(column, 0) + count

    def _add_objects(self, objects: Mapping[str, Sequence[Any]]) -> None:
        self.tallies["objects"].counts[0, len(objects["id"])] += 1
        for kind, column in (("object_px", "area"), ("object_depth", "depth_mm")):
            np.add.at(self.tallies[kind].counts[0], objects[column], 1)
        np.add.at(self.tallies["category"].counts[0], objects["category"], 1)
        for column in ("visible", "truncated"):
            thousandths = [round(1000 * share) for share in objects[column]]
            np.add.at(self.tallies[column].counts[0], thousandths, 1)

    def merge(self, other: Statistics) -> None:
        """Add another's counts to this one's."""
        self.rows += other.rows
        for kind, tally in self.tallies.items():
            tally.merge(other.tallies[kind])
        for column, count in other.size_bytes.items():
            self.size_bytes[column] = self.size_bytes.get(column, 0) + count

    def depth_pixels(self) -> tuple[int, int]:
        """Return the number of pixels whose depth is known, and of all that were counted."""
        counts = self.tallies["depth"].counts
        return int(counts[0, 1:].sum()), int(counts.sum())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        tallies = {kind: tally.to_json() for kind, tally in self.tallies.items()}
        return {"rows": self.rows, "size_bytes": self.size_bytes, "tallies": tallies}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Statistics:
        """Read what `to_json` returned.

        Raises:
            ValueError: it is something else.
        """
        try:
            rows, size_bytes, tallies = (content[k] for k in ("rows", "size_bytes", "tallies"))
            levels = tallies["mask_px"]["levels"]
            if not all(_is_count(n, _MAX_COUNT) for n in (rows, levels - 1, *size_bytes.values())):
                raise ValueError("a count is none")
            read = {kind: Tally.from_json(tally) for kind, tally in tallies.items()}
            statistics = cls(math.isqrt(levels - 1), scenes="objects" in tallies)
            statistics.rows, statistics.size_bytes = rows, dict(size_bytes)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"no statistics ({type(error).__name__}: {error})") from None
        shapes = [{k: t.counts.shape for k, t in one.items()} for one in (read, statistics.tallies)]
        if shapes[0] != shapes[1]:
            raise ValueError("the tallies do not belong together")
        statistics.tallies = read
        return statistics


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def unknown_depth(parts: Mapping[str, Statistics]) -> str | None:
    """Say how much depth is unknown, and in which parts all is; None if all is known.

    Args:
        parts: statistics of splits or files, by their names.
    """
    pixels = {name: part.depth_pixels() for name, part in parts.items()}
    known, counted = (sum(numbers) for numbers in zip(*pixels.values(), strict=True))
    if known == counted:
        return None
    share = f"Depth is unknown (0) in {(counted - known) / counted:.2%} of the pixels"
    if none := [name for name, (known, counted) in pixels.items() if counted and not known]:
        return f"{share}, and in all of {', '.join(none)}."
    return f"{share}."
