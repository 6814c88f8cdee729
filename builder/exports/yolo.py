"""The layouts of Ultralytics: boxes, outlines, class masks and depth beside the pictures."""

from __future__ import annotations

import io
import json

import numpy as np

from builder.errors import FgbgError
from builder.exports.records import Counts, Item, Job, Tree, Writer, refuse_many_classes
from builder.exports.shapes import outline_of
from builder.record import TRAIN, encode_instances
from builder.untrusted import Unreadable

_SETTINGS = "data.yaml"
_MAX_POINTS = 1000  # of an outline, to which Ultralytics resamples


class _Ultralytics(Writer):
    """Pictures in `images/SPLIT`, and beside that a folder of labels of the same names."""

    labels = "labels"

    def folders(self) -> list[str]:
        """Return those of pictures and labels, for each split."""
        names = [split.name for split in self.job.splits]
        return [f"{folder}/{name}" for folder in ("images", self.labels) for name in names]

    def last_files(self) -> list[str]:
        """Return the one that Ultralytics is given."""
        return [_SETTINGS]

    def record(self, tree: Tree, split: str, item: Item, counts: Counts) -> None:
        """Write a picture and its label."""
        tree.write(f"images/{split}/{item.stem}.{self.job.extension}", item.image)
        end, data = self.label(item, counts)
        tree.write(f"{self.labels}/{split}/{item.stem}.{end}", data)

    def label(self, item: Item, counts: Counts) -> tuple[str, bytes]:
        """Return what the name of a record's label ends in, and the label."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Return the classes in the order of their numbers."""
        return list(self.job.classes)

    def more(self) -> list[str]:
        """Return further lines of data.yaml."""
        return []

    def finish(self, tree: Tree, notes: object) -> None:
        """Write data.yaml. Its path is empty, which is the folder it lies in, wherever that is."""
        train, val, test = _roles([split.name for split in self.job.splits])
        lines = ['path: ""  # this folder', f"train: images/{train}"]
        lines.append(f"val: {json.dumps([f'images/{name}' for name in val])}")
        if test:
            lines.append(f"test: images/{test}")
        lines += [*self.more(), f"nc: {len(self.names())}", "names:"]
        lines += [f"  {n}: {json.dumps(name)}" for n, name in enumerate(self.names())]
        tree.write(_SETTINGS, ("\n".join(lines) + "\n").encode())

    def lost(self, counts: Counts) -> list[str]:
        """Return which splits take which part."""
        train, val, test = _roles([split.name for split in self.job.splits])
        said = f"data.yaml: train is {train}, val {' and '.join(val)}"
        if val == [train]:
            said += ", for Ultralytics asks for one and no other split was exported"
        return [said + (f", test {test}." if test else ".")]


def _roles(names: list[str]) -> tuple[str, list[str], str]:
    """Return which splits are for training, for validation and for the test at the end.

    A record of `unseen_both` shares nothing with training, so it is kept for the end.
    """
    train = TRAIN if TRAIN in names else names[0]
    others = [name for name in names if name != train]
    test = "unseen_both" if "unseen_both" in others and len(others) > 1 else ""
    return train, [name for name in others if name != test] or [train], test


class Yolo(_Ultralytics):
    """A box a line, `class cx cy w h` as shares of the picture; an empty file is a background."""

    columns = ("fg_bg", "objects", "bbox", "coverage")
    about = "YOLO detection, as Ultralytics reads it: `yolo detect train data=data.yaml`."

    def label(self, item: Item, counts: Counts) -> tuple[str, bytes]:
        """Return a line a box."""
        lines = []
        for thing in item.things:
            x, y, w, h = thing.box
            shares = (value / self.job.size for value in (x + w / 2, y + h / 2, w, h))
            lines.append(f"{thing.category} {' '.join(f'{share:.7f}' for share in shares)}\n")
        return "txt", "".join(lines).encode()

    def lost(self, counts: Counts) -> list[str]:
        """Return what boxes do not say."""
        return ["Masks and depth are not in it.", *super().lost(counts)]


class YoloSeg(_Ultralytics):
    """An outline a line, `class x1 y1 x2 y2 ...`: one polygon around an object, joined by seams."""

    columns = ("fg_bg", "mask", "instances", "objects", "bbox", "coverage")
    about = "YOLO segmentation, as Ultralytics reads it: `yolo segment train data=data.yaml`."

    def label(self, item: Item, counts: Counts) -> tuple[str, bytes]:
        """Return a line an object."""
        item.runs()  # checks that masks are what the columns say
        lines = []
        for thing in item.things:
            outline = outline_of(item.part(thing), thing.box[0], thing.box[1])
            numbers = (outline.points / self.job.size).ravel().tolist()
            lines.append(f"{thing.category} {' '.join([f'{n:.6f}' for n in numbers])}\n")
            counts.outlined += thing.area
            counts.added += outline.added
            counts.inexact += outline.added > 0
            counts.long += len(outline.points) > _MAX_POINTS
        return "txt", "".join(lines).encode()

    def lost(self, counts: Counts) -> list[str]:
        """Return the IoU of outlines with masks over the whole set."""
        iou = counts.outlined / (counts.outlined + counts.added) if counts.outlined else 1.0
        what = f"Outlines cover masks with an IoU of {iou:.6f} over all {counts.objects:,} objects"
        if counts.added:
            what += (
                f": {counts.added:,} px too many for {counts.outlined:,} px, where lines of 1 px "
                f"join the parts of {counts.inexact:,} of them"
            )
        said = [f"{what}; holes are kept."]
        if counts.long:
            more = f"{counts.long:,} outlines have over {_MAX_POINTS:,} points"
            said.append(f"{more}, which Ultralytics thins out.")
        return [*said, "Depth is not in it.", *super().lost(counts)]


class YoloSemantic(_Ultralytics):
    """A grey PNG of classes beside each picture: 0 is background, 255 would be ignored."""

    columns = ("fg_bg", "mask", "instances", "objects", "bbox", "coverage")
    labels = "masks"
    about = "Semantic masks, as Ultralytics reads them: `yolo semantic train data=data.yaml`."

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        refuse_many_classes(job)

    def names(self) -> list[str]:
        """Return the classes behind that of the background."""
        return ["background", *self.job.classes]

    def more(self) -> list[str]:
        """Return where the masks are."""
        return [f"masks_dir: {self.labels}"]

    def label(self, item: Item, counts: Counts) -> tuple[str, bytes]:
        """Return the classes of all pixels."""
        return "png", encode_instances(item.semantic())

    def lost(self, counts: Counts) -> list[str]:
        """Return what classes of pixels do not say."""
        return ["Objects of one class are not told apart, and depth is not in it.",
                *super().lost(counts)]  # fmt: skip


class YoloDepth(_Ultralytics):
    """Depth in metres as float32 `.npy` beside each picture; 0 is unknown."""

    columns = ("fg_bg", "depth", "objects", "bbox", "coverage")
    labels = "depth"
    about = "Depth in metres, as Ultralytics reads it: `yolo depth train data=data.yaml`."

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if job.pinned.depth is None:
            raise FgbgError(
                f"{job.name} holds no depth, for it was built with --depth-model none; build a set "
                "with a depth model, or export it to another format."
            )
        if job.pinned.depth.kind != "metric":
            raise FgbgError(
                f"{job.name} holds relative depth by {job.pinned.depth.model}, and yolo-depth "
                "takes metres; build the set with a metric depth model, or export it to "
                "webdataset, which keeps depth as it is."
            )

    def names(self) -> list[str]:
        """Return the one class that Ultralytics asks for."""
        return ["depth"]

    def label(self, item: Item, counts: Counts) -> tuple[str, bytes]:
        """Return the metres of all pixels."""
        codec, size = self.job.codec, self.job.size
        metres = codec.metres(codec.pixels(item.encoded("depth")))
        if metres.shape != (size, size):
            raise Unreadable(
                f"has depth of {metres.shape[1]}x{metres.shape[0]} px, not of its own size"
            )
        buffer = io.BytesIO()
        np.save(buffer, np.nan_to_num(metres, copy=False, nan=0.0))
        return "npy", buffer.getvalue()

    def lost(self, counts: Counts) -> list[str]:
        """Return what depth alone does not say."""
        return ["Masks, boxes and classes are not in it.", *super().lost(counts)]
