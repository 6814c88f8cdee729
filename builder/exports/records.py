"""Records of a finished set as exports take them, what is counted of them, and where they go."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.errors import FgbgError
from builder.exports.shapes import Box, Mask, Runs, runs_of
from builder.pictures import JPEG_START
from builder.pinned import NO_CATEGORY, PinnedRecipe
from builder.record import DepthCodec, SplitPlan, decode_instances, decode_mask
from builder.untrusted import Unreadable, refusing

Pixels = npt.NDArray[np.uint8]

_MOST_CLASSES = 254
OBJECTS_OF_A_RECORD = 256  # ids of objects are the record's, this many for each

# What is read of the column `objects`, unless a format takes all of it.
OBJECT_FIELDS = ("id", "bbox", "area", "foreground_id", "visible", "truncated")


@dataclass(frozen=True)
class Thing:
    """An object of which something is seen: its value in the mask or `instances`, class, box.

    `visible` and `truncated` are shares, as in the column `objects`; pairs have whole objects.
    """

    k: int
    category: int
    box: Box
    area: int
    foreground_id: str
    visible: float = 1.0
    truncated: float = 0.0


class Job:
    """What is exported: a set, some of its splits, and how its objects are classed."""

    def __init__(
        self, name: str, pinned: PinnedRecipe, splits: tuple[SplitPlan, ...], single: bool
    ) -> None:
        self.name, self.pinned, self.splits, self.single = name, pinned, splits, single
        self.recipe, self.size = pinned.recipe, pinned.recipe.size
        self.is_scenes = pinned.recipe.layout == "scenes"
        self.classes: tuple[str, ...] = (NO_CATEGORY,) if single else pinned.categories
        self._digits = max(9, len(str(pinned.n_possible - 1)))
        numbers = {name: n for n, name in enumerate(self.classes)}
        self._class_of = {
            e.id: 0 if single else numbers[e.category or NO_CATEGORY] for e in pinned.foregrounds
        }

    @property
    def extension(self) -> str:
        """What the names of composites end in."""
        return {"jpeg": "jpg"}.get(self.recipe.image_format, self.recipe.image_format)

    def stem(self, record_id: int) -> str:
        """Return the name of a record's files, which sort as their records do."""
        return f"{record_id:0{self._digits}d}"

    def class_of(self, foreground_id: str) -> int:
        """Return the number of a foreground's class.

        Raises:
            Unreadable: the set has no such foreground.
        """
        if foreground_id not in self._class_of:
            raise Unreadable(f"names foreground {foreground_id!r}, which the set does not have")
        return self._class_of[foreground_id]

    @cached_property
    def codec(self) -> DepthCodec:
        """What reads the set's depth."""
        assert self.pinned.depth is not None
        return DepthCodec(self.recipe, self.pinned.depth)


@dataclass
class Counts:
    """What was written: exact numbers, which add up over shards.

    `unseen` objects have no pixel and are in no format. Of outlines, `outlined` pixels are of
    masks, and `added` ones are of none but covered; `inexact` outlines cover some, and `long` ones
    have more points than readers keep.
    """

    records: int = 0
    objects: int = 0
    unseen: int = 0
    without: int = 0
    files: int = 0
    size_bytes: int = 0
    outlined: int = 0
    added: int = 0
    inexact: int = 0
    long: int = 0
    classes: Counter[int] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {**asdict(self), "classes": {str(k): n for k, n in sorted(self.classes.items())}}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Counts:
        """Return what `to_json` was made from."""
        classes = Counter({int(k): n for k, n in content["classes"].items()})
        return cls(**{**content, "classes": classes})

    def add(self, other: Counts) -> None:
        """Add what another shard counts."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Item:
    """A record on its way into another format."""

    def __init__(self, job: Job, row: dict[str, Any]) -> None:
        self.job, self.row = job, row
        self.record_id: int = row["record_id"]
        self.stem = job.stem(self.record_id)
        things = list(self._scene() if job.is_scenes else self._pair())
        self._check(things)
        self.things = [thing for thing in things if thing.area > 0]
        self.n_unseen = len(things) - len(self.things)

    def _pair(self) -> Iterator[Thing]:
        row, job = self.row, self.job
        area, name = round(row["coverage"] * job.size**2), row["foreground_id"]
        yield Thing(1, job.class_of(name), tuple(row["bbox"]), area, name)

    def _scene(self) -> Iterator[Thing]:
        for k, box, area, name, *shares in zip(
            *(self.row["objects"][name] for name in OBJECT_FIELDS), strict=True
        ):
            yield Thing(k, self.job.class_of(name), tuple(box), area, name, *shares)

    def _check(self, things: list[Thing]) -> None:
        """Refuse objects that no picture can have, for some formats take columns alone."""
        size = self.job.size
        if len({thing.k for thing in things}) < len(things):
            raise Unreadable("has two objects of one number")
        for thing in things:
            if thing.area < 0 or not 0 < thing.k < OBJECTS_OF_A_RECORD:
                raise Unreadable(f"has object {thing.k} with {thing.area} px, which cannot be")
            if not thing.area:
                continue
            x, y, w, h = thing.box
            if not (0 <= x < x + w <= size and 0 <= y < y + h <= size):
                raise Unreadable(f"has object {thing.k} outside of the picture")
            if not (0 <= thing.visible <= 1 and 0 <= thing.truncated <= 1):
                raise Unreadable(f"has shares of object {thing.k} that are not from 0 to 1")

    @property
    def image(self) -> bytes:
        """The composite, as it is stored."""
        encoded = self.encoded("fg_bg")
        if self.job.recipe.image_format == "jpeg" and encoded[:2] != JPEG_START:
            raise Unreadable("has a composite that is not a JPEG")
        return encoded

    def encoded(self, column: str) -> bytes:
        """Return a picture of the record, as it is stored."""
        cell = self.row[column]
        data = cell.get("bytes") if isinstance(cell, dict) else None
        if not isinstance(data, bytes):
            raise Unreadable(f"holds no picture in {column}")
        return data

    @cached_property
    def instances(self) -> Pixels:
        """Which object is seen at each pixel, (H, W) uint8: its k, or 0."""
        name, size = "instances" if self.job.is_scenes else "mask", self.job.size
        with refusing(f"has a damaged picture in {name}"):
            if self.job.is_scenes:
                return decode_instances(self.encoded(name), size)
            return decode_mask(self.encoded(name), size).view(np.uint8)

    def part(self, thing: Thing) -> Mask:
        """Return the mask of an object, (h, w) bool, within its box."""
        x, y, w, h = thing.box
        within: Mask = self.instances[max(0, y) : y + h, max(0, x) : x + w] == thing.k
        if within.shape != (h, w):
            raise Unreadable(f"has object {thing.k} outside of the picture")
        return within

    def runs(self) -> list[Runs]:
        """Return the runs of every object, checked: no pixel is lost, boxes and areas are exact.

        Raises:
            Unreadable: the columns say something else than the picture.
        """
        size, found, total = self.job.size, [], 0
        for thing in self.things:
            part = self.part(thing)
            if not part.any():
                raise Unreadable(f"does not show object {thing.k} where its box is")
            runs = runs_of(part, thing.box[0], thing.box[1], size, size)
            if (runs.box, runs.area) != (thing.box, thing.area):
                raise Unreadable(f"has another box or area of object {thing.k} than its picture")
            found.append(runs)
            total += runs.area
        if total != np.count_nonzero(self.instances):
            raise Unreadable("has pixels of objects that are in no box")
        return found

    def numbered(self) -> Pixels:
        """Return `instances` with the objects numbered from 1 as they stand in `things`."""
        return self._looked_up(range(1, len(self.things) + 1))

    def semantic(self) -> Pixels:
        """Return the class of each pixel, (H, W) uint8, from 1 on; 0 where there is no object."""
        return self._looked_up(thing.category + 1 for thing in self.things)

    def _looked_up(self, values: Iterable[int]) -> Pixels:
        table = np.zeros(256, np.uint8)
        for thing, value in zip(self.things, values, strict=True):
            table[thing.k] = value
        found: Pixels = table[self.instances]
        if np.count_nonzero(found) != np.count_nonzero(self.instances):
            raise Unreadable("shows objects that its columns do not name")
        return found

    def foreground_ids(self) -> list[str]:
        """Return the foregrounds of all that is pasted, without a label too."""
        named = [self.row["foreground_id"]]
        for column in ("objects", "distractors"):
            named += (self.row.get(column) or {}).get("foreground_id", [])
        return list(dict.fromkeys(named))


class Tree:
    """The folder that becomes the export; counts the files and bytes that are written."""

    def __init__(self, root: Path) -> None:
        self.root, self._start = root, os.fspath(root)
        self.files = self.size_bytes = 0

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole; its folder is there."""
        # A tenth of the time that pathlib takes, and there are millions of these.
        descriptor = os.open(
            f"{self._start}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666
        )
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
        self.files += 1
        self.size_bytes += len(data)

    def took(self, name: str) -> None:
        """Count a file that another has written."""
        self.files += 1
        self.size_bytes += (self.root / name).stat().st_size


_BINARY = getattr(os, "O_BINARY", 0)


class Writer:
    """A format: which columns it takes, what it writes of a shard, and what of the whole set.

    A shard may be written again after a kill, to the same names and bytes.
    """

    columns: tuple[str, ...] = ()
    takes_all_of_objects = False
    about = ""  # what the format is, for README.md, and how it is loaded

    def __init__(self, job: Job) -> None:
        """Refuse a set that the format cannot hold."""
        self.job = job

    def folders(self) -> list[str]:
        """Return the folders of the export that files of shards go to."""
        return []

    def last_files(self) -> list[str]:
        """Return the names of the files that `finish` writes."""
        return []

    def metadata(self) -> str:
        """Return what stands at the top of README.md, as the Hub reads it."""
        return ""

    def shard(
        self, tree: Tree, note: Path, split: SplitPlan, number: int, items: Iterator[Item]
    ) -> Counts:
        """Write the records of a shard.

        Args:
            tree: where the export grows.
            note: start of the name of files beside the export, for `finish`.
            split: the shard's.
            number: the shard's.
            items: its records, in their order.
        """
        counts = Counts()
        for item in items:
            self.record(tree, split.name, item, counts)
            count(counts, item)
        return counts

    def record(self, tree: Tree, split: str, item: Item, counts: Counts) -> None:
        """Write the files of one record."""
        raise NotImplementedError

    def finish(self, tree: Tree, notes: dict[str, list[Path]]) -> None:
        """Write what is said of the whole set.

        Args:
            tree: where the export has grown.
            notes: the `note` of every shard, by split, in the order of the set.
        """

    def lost(self, counts: Counts) -> list[str]:
        """Return a sentence on each thing that the format cannot say."""
        return []


def count(counts: Counts, item: Item) -> None:
    """Count a record that was written."""
    counts.records += 1
    counts.objects += len(item.things)
    counts.unseen += item.n_unseen
    counts.without += not item.things
    for thing in item.things:
        counts.classes[thing.category] += 1


def refuse_many_classes(job: Job) -> None:
    """Refuse a set with more classes than a pixel of a class mask can name.

    Raises:
        FgbgError: it has more; 0 is the background, and 255 has a meaning of its own.
    """
    if len(job.classes) > _MOST_CLASSES:
        raise FgbgError(
            f"{job.name} has {len(job.classes)} classes, and a class mask of 8 bits names "
            f"{_MOST_CLASSES}; export it with --category-from single, or to coco."
        )
