"""Pascal VOC: one XML for each picture, and which object each pixel is of as PNG with a palette."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

from builder.exports.records import (
    Counts,
    Item,
    Job,
    Pixels,
    Thing,
    Tree,
    Writer,
    refuse_many_classes,
)
from builder.record import encode_indexed
from builder.untrusted import printable

_CLASSES = "classes.txt"
_BLOCK_RECORDS = 10_000


class Voc(Writer):
    """VOC's folders; corners of boxes count pixels from 1, and both are inside."""

    columns = ("fg_bg", "mask", "instances", "objects", "bbox", "coverage")
    about = (
        "Pascal VOC: `ImageSets/Main/SPLIT.txt` lists the pictures of a split. In "
        "`SegmentationObject` the value of a pixel is the number of its object in the XML, in "
        "`SegmentationClass` that of its class in `classes.txt`, both from 1."
    )

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        refuse_many_classes(job)
        self._palette = palette()

    def folders(self) -> list[str]:
        """Return VOC's own; all splits share them."""
        pictures = ["JPEGImages", "Annotations", "SegmentationObject", "SegmentationClass"]
        return [*pictures, "ImageSets/Main", "ImageSets/Segmentation"]

    def last_files(self) -> list[str]:
        """Return the lists of pictures and classes."""
        names = [name for split in self.job.splits for name in _lists(split.name)]
        return [*names, _CLASSES]

    def record(self, tree: Tree, split: str, item: Item, counts: Counts) -> None:
        """Write a picture, its XML and its two masks."""
        item.runs()  # checks that masks are what the columns say
        tree.write(f"JPEGImages/{item.stem}.{self.job.extension}", item.image)
        tree.write(f"Annotations/{item.stem}.xml", self._xml(item).encode())
        for folder, values in (
            ("SegmentationObject", item.numbered()),
            ("SegmentationClass", item.semantic()),
        ):
            tree.write(f"{folder}/{item.stem}.png", encode_indexed(values, self._palette))

    def _xml(self, item: Item) -> str:
        size = self.job.size
        return (
            f"<annotation>\n<folder>JPEGImages</folder>\n"
            f"<filename>{item.stem}.{self.job.extension}</filename>\n"
            f"<source><database>{_text(self.job.name)}</database></source>\n"
            f"<size><width>{size}</width><height>{size}</height><depth>3</depth></size>\n"
            f"<segmented>1</segmented>\n{''.join(map(self._object, item.things))}</annotation>\n"
        )

    def _object(self, thing: Thing) -> str:
        x, y, w, h = thing.box
        return (
            f"<object><name>{_text(self.job.classes[thing.category])}</name>"
            f"<pose>Unspecified</pose><truncated>{int(thing.truncated > 0)}</truncated>"
            f"<occluded>{int(thing.visible < 1)}</occluded><difficult>0</difficult>"
            f"<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>\n"
        )

    def finish(self, tree: Tree, notes: dict[str, list[Path]]) -> None:
        """Write the lists of splits, from the plan alone, and that of the classes."""
        for split in self.job.splits:
            main, other = _lists(split.name)
            with (tree.root / main).open("w", encoding="ascii") as file:
                for start in range(0, split.n_records, _BLOCK_RECORDS):
                    stop = min(start + _BLOCK_RECORDS, split.n_records)
                    ids = split.record_ids(start, stop).tolist()
                    file.writelines(f"{self.job.stem(record_id)}\n" for record_id in ids)
            tree.took(main)
            tree.write(other, (tree.root / main).read_bytes())
        classes = "".join(f"{printable(name)}\n" for name in self.job.classes)
        tree.write(_CLASSES, classes.encode())

    def lost(self, counts: Counts) -> list[str]:
        """Return what VOC has no place for."""
        return ["Depth, and boxes of what is hidden, are not in VOC."]


def _lists(split: str) -> tuple[str, str]:
    return f"ImageSets/Main/{split}.txt", f"ImageSets/Segmentation/{split}.txt"


def palette() -> Pixels:
    """Return the colours that VOC gives to numbers, (256, 3) uint8.

    The bits of a number go to red, green and blue in turn, the lowest to the highest of each.
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        channel, place = bit % 3, 7 - bit // 3
        colours[:, channel] |= (((numbers >> bit) & 1) << place).astype(np.uint8)
    return colours


def _text(text: str) -> str:
    return escape(printable(text))
