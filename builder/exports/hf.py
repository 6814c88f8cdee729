"""What Transformers' own examples train on: object detection and instance segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.exports.records import (
    OBJECTS_OF_A_RECORD,
    Counts,
    Item,
    Job,
    Tree,
    Writer,
    count,
    refuse_many_classes,
)
from builder.exports.webdataset import data_files
from builder.record import SplitPlan, encode_rgb
from builder.schema import Column, arrow_schema
from builder.tables import write_table

if TYPE_CHECKING:
    import pyarrow as pa


class _Parquet(Writer):
    """A Parquet file for each shard."""

    def metadata(self) -> str:
        """Return which files are of which split."""
        return data_files(self.job, "*.parquet")

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the rows, with their features."""
        raise NotImplementedError

    def row(self, item: Item) -> dict[str, Any]:
        """Return the row of a record."""
        raise NotImplementedError

    def shard(
        self, tree: Tree, note: Path, split: SplitPlan, number: int, items: Iterator[Item]
    ) -> Counts:
        """Write the Parquet file of a shard."""
        counts = Counts()

        def rows() -> Iterator[dict[str, Any]]:
            for item in items:
                yield self.row(item)
                count(counts, item)

        name = f"{split.name}-{number:05d}-of-{split.n_shards:05d}.parquet"
        write_table(tree.root / name, "parquet", self.schema, rows())
        tree.took(name)
        return counts


class HfDetection(_Parquet):
    """`image_id, image, width, height, objects`, a dict of lists, as in the examples and cppe-5."""

    columns = ("fg_bg", "objects", "bbox", "coverage")
    about = (
        "Object detection as Transformers' example takes it: "
        "`run_object_detection.py --dataset_name THIS_FOLDER`."
    )

    @cached_property
    def schema(self) -> pa.Schema:
        """That of the example."""
        kinds = {"id": "int64", "area": "int64", "bbox": "float32:4", "category": "category"}
        fields = tuple((name, (kind, "", "")) for name, kind in kinds.items())
        return arrow_schema(
            (
                Column("image_id", "int64", "", "", ""),
                Column("image", "Image", "", "", ""),
                Column("width", "int32", "", "", ""),
                Column("height", "int32", "", "", ""),
                Column("objects", "lists", "", "", "", self.job.classes, fields),
            )
        )

    def row(self, item: Item) -> dict[str, Any]:
        """Return a picture and the boxes on it."""
        first, things = item.record_id * OBJECTS_OF_A_RECORD, item.things
        return {
            "image_id": item.record_id,
            "image": {"bytes": item.image, "path": None},
            "width": self.job.size,
            "height": self.job.size,
            "objects": {
                "id": [first + thing.k for thing in things],
                "area": [thing.area for thing in things],
                "bbox": [list(thing.box) for thing in things],
                "category": [thing.category for thing in things],
            },
        }

    def lost(self, counts: Counts) -> list[str]:
        """Return what boxes do not say."""
        return ["Masks and depth are not in it."]


class HfInstances(_Parquet):
    """`image` and `annotation`, a PNG whose red is the class and whose green is the object."""

    columns = ("fg_bg", "mask", "instances", "objects", "bbox", "coverage")
    about = (
        "Instance segmentation as Transformers' example takes it: `run_instance_segmentation.py "
        "--dataset_name THIS_FOLDER`. Red is the class, green the object; 0 is the background."
    )

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        refuse_many_classes(job)
        self._numbers = {"background": 0}
        for n, name in enumerate(job.classes, 1):
            self._numbers[name if name != "background" else "background (object)"] = n

    @cached_property
    def schema(self) -> pa.Schema:
        """That of the example, which looks for the classes in the first row."""
        from datasets import Features, Image, Value

        numbers = {name: Value("int64") for name in self._numbers}
        pictures = {"image": Image(), "annotation": Image()}
        columns = {"image_id": Value("int64"), **pictures, "semantic_class_to_id": numbers}
        return Features(columns).arrow_schema

    def row(self, item: Item) -> dict[str, Any]:
        """Return a picture and its annotation."""
        item.runs()  # checks that masks are what the columns say
        pixels = np.zeros((self.job.size, self.job.size, 3), np.uint8)
        pixels[..., 0], pixels[..., 1] = item.semantic(), item.numbered()
        return {
            "image_id": item.record_id,
            "image": {"bytes": item.image, "path": None},
            "annotation": {"bytes": encode_rgb(pixels), "path": None},
            "semantic_class_to_id": self._numbers,
        }

    def lost(self, counts: Counts) -> list[str]:
        """Return what masks do not say."""
        return ["Depth, and boxes of what is hidden, are not in it."]
