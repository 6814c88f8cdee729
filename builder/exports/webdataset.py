"""WebDataset: a tar for each file of records, with every picture as it is and the rest as JSON."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from builder.exports.records import Counts, Item, Job, Tree, Writer, count
from builder.pictures import JPEG_START
from builder.record import SplitPlan
from builder.schema import record_columns

_LEFT_OUT = ("distractors",)  # often empty, which readers take for a type of its own


class WebDataset(Writer):
    """Tars of `KEY.jpg`, `KEY.mask.png`, `KEY.depth.png` and `KEY.json`; KEY is the record's id."""

    takes_all_of_objects = True
    about = (
        "WebDataset: tars of `KEY.jpg`, `KEY.mask.png`, `KEY.json` and, where the set has them, "
        "`KEY.instances.png` and `KEY.depth.png` (0 is unknown; `export.json` has the unit)."
    )

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        columns = record_columns(job.recipe)
        self.columns = tuple(c.name for c in columns if c.name not in _LEFT_OUT)
        self._pictures = [c.name for c in columns if c.feature.startswith("Image")]

    def metadata(self) -> str:
        """Return which tars are of which split."""
        return data_files(self.job, "*.tar")

    def shard(
        self, tree: Tree, note: Path, split: SplitPlan, number: int, items: Iterator[Item]
    ) -> Counts:
        """Write the tar of a shard."""
        counts, name = Counts(), f"{split.name}-{number:06d}.tar"
        with tarfile.open(tree.root / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for item in items:
                for end, data in self._members(item):
                    member = tarfile.TarInfo(f"{item.stem}.{end}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                count(counts, item)
        tree.took(name)
        return counts

    def _members(self, item: Item) -> Iterator[tuple[str, bytes]]:
        yield self.job.extension, item.image
        for name in self._pictures:
            if name != "fg_bg":
                data = item.encoded(name)
                yield f"{name}.{'jpg' if data[:2] == JPEG_START else 'png'}", data
        values = {name: item.row[name] for name in self.columns if name not in self._pictures}
        yield "json", json.dumps(self._named(item, values)).encode()

    def _named(self, item: Item, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values with classes by their names."""
        classes, job = self.job.classes, item.job
        if not job.is_scenes:
            return {**values, "category": classes[job.class_of(values["foreground_id"])]}
        objects = values["objects"]
        named = [classes[job.class_of(name)] for name in objects["foreground_id"]]
        return {**values, "objects": {**objects, "category": named}}

    def lost(self, counts: Counts) -> list[str]:
        """Return what is left out."""
        has = any(c.name in _LEFT_OUT for c in record_columns(self.job.recipe))
        return ["The column `distractors` is not in it."] if has else []


def data_files(job: Job, end: str) -> str:
    """Return the metadata by which `load_dataset` finds the splits of a folder."""
    lines = ["configs:", "- config_name: default", "  data_files:"]
    for split in job.splits:
        lines += [f"  - split: {split.name}", f"    path: {split.name}-{end}"]
    return "\n".join(lines) + "\n"
