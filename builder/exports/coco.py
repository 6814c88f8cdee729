"""COCO: pictures in a folder for each split, and one JSON with every mask as its runs."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from builder import __version__
from builder.exports.records import OBJECTS_OF_A_RECORD, Counts, Item, Job, Tree, Writer, count
from builder.record import SplitPlan

_MAX_BITS = 50  # of an id that every reader of JSON takes exactly

_Licenses = frozenset[str]


class Coco(Writer):
    """COCO instances; masks are uncompressed run lengths, which lose nothing.

    Lists work everywhere: compressed ones fail where Transformers' DETR reads them, and
    `iscrowd: 1` would make it drop the objects.
    """

    columns = ("fg_bg", "mask", "instances", "objects", "bbox", "coverage")
    about = (
        "COCO instances: `SPLIT/` holds the pictures, and "
        "`annotations/instances_SPLIT.json` what is on them. The id of an image is its `record_id`."
    )

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        named = {
            kind: {e.id: e.license or "not stated" for e in getattr(job.pinned, kind)}
            for kind in ("foregrounds", "backgrounds")
        }
        self._of_foreground, self._of_background = named["foregrounds"], named["backgrounds"]
        self._names = sorted({name for of in named.values() for name in of.values()})
        self._numbers = {name: n for n, name in enumerate(self._names)}

    def folders(self) -> list[str]:
        """Return one for each split, and that of the JSON."""
        return ["annotations", *(split.name for split in self.job.splits)]

    def last_files(self) -> list[str]:
        """Return one for each split."""
        return [_annotations(split.name) for split in self.job.splits]

    def shard(
        self, tree: Tree, note: Path, split: SplitPlan, number: int, items: Iterator[Item]
    ) -> Counts:
        """Write the pictures of a shard, and beside the export its part of the JSON."""
        counts, licenses = Counts(), set[_Licenses]()
        with (
            note.with_suffix(".images").open("w", encoding="ascii") as images,
            note.with_suffix(".annotations").open("w", encoding="ascii") as annotations,
        ):
            for item in items:
                tree.write(f"{split.name}/{item.stem}.{self.job.extension}", item.image)
                licenses.add(held := self._licenses(item))
                images.write(",\n" if counts.records else "")
                images.write(self._image(item, self._license_id(held)))
                texts = ",\n".join(self._annotations(item))
                annotations.write(",\n" if counts.objects and texts else "")
                annotations.write(texts)
                count(counts, item)
        found = sorted(sorted(names) for names in licenses)
        note.with_suffix(".licenses").write_text(json.dumps(found), "ascii")
        return counts

    def _image(self, item: Item, license: int) -> str:
        size = self.job.size
        return (
            f'{{"id": {item.record_id}, "file_name": "{item.stem}.{self.job.extension}", '
            f'"width": {size}, "height": {size}, "license": {license}}}'
        )

    def _annotations(self, item: Item) -> Iterator[str]:
        size, first = self.job.size, item.record_id * OBJECTS_OF_A_RECORD
        for thing, runs in zip(item.things, item.runs(), strict=True):
            yield (
                f'{{"id": {first + thing.k}, "image_id": {item.record_id}, '
                f'"category_id": {thing.category + 1}, "bbox": {list(thing.box)}, '
                f'"area": {thing.area}, "iscrowd": 0, "segmentation": '
                f'{{"size": [{size}, {size}], "counts": {runs.counts}}}}}'
            )

    def _licenses(self, item: Item) -> _Licenses:
        """Return the licenses of all that a record shows."""
        named = [self._of_background.get(item.row["background_id"], "not stated")]
        named += (self._of_foreground.get(name, "not stated") for name in item.foreground_ids())
        return frozenset(named)

    def _license_id(self, names: Iterable[str]) -> int:
        """Return the id of licenses that hold together; every shard gives the same."""
        if len(self._names) <= _MAX_BITS:
            return sum(1 << self._numbers[name] for name in names)
        digest = hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()
        return int(digest[: _MAX_BITS // 4], 16) + 1

    def finish(self, tree: Tree, notes: dict[str, list[Path]]) -> None:
        """Put the JSON of each split together, a shard at a time."""
        categories = [
            {"id": n, "name": name, "supercategory": name}
            for n, name in enumerate(self.job.classes, 1)
        ]
        for split, parts in notes.items():
            name = _annotations(split)
            head = {
                "info": {
                    "description": f"{self.job.name}, split {split}",
                    "version": self.job.pinned.fingerprint,
                    "contributor": f"fgbg-dataset {__version__}",
                },
                "licenses": self._license_entries(parts),
                "categories": categories,
            }
            with (tree.root / name).open("wb") as file:
                file.write(json.dumps(head)[:-1].encode())
                for key in ("images", "annotations"):
                    file.write(f',\n"{key}": ['.encode())
                    begun = False
                    for part in parts:
                        with part.with_suffix(f".{key}").open("rb") as source:
                            if part.with_suffix(f".{key}").stat().st_size:
                                file.write(b",\n" if begun else b"\n")
                                shutil.copyfileobj(source, file, 2**20)
                                begun = True
                    file.write(b"]")
                file.write(b"}\n")
            tree.took(name)

    def _license_entries(self, parts: list[Path]) -> list[dict[str, object]]:
        found: set[_Licenses] = set()
        for part in parts:
            held = json.loads(part.with_suffix(".licenses").read_text("ascii"))
            found |= {frozenset(names) for names in held}
        return sorted(
            (
                {
                    "id": self._license_id(names),
                    "name": " + ".join(sorted(names)),
                    "url": license_url(next(iter(names))) if len(names) == 1 else "",
                }
                for names in found
            ),
            key=lambda entry: str(entry["id"]).zfill(20),
        )

    def lost(self, counts: Counts) -> list[str]:
        """Return what COCO has no place for."""
        return ["Depth, and boxes of what is hidden, are not in COCO."]


def _annotations(split: str) -> str:
    return f"annotations/instances_{split}.json"


def license_url(name: str) -> str:
    """Return where the text of a license is: its own name if that is an address, or that of CC."""
    if re.match(r"https?://", name):
        return name
    words = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    if re.match(r"cc0|cc-zero", words):
        return "https://creativecommons.org/publicdomain/zero/1.0/"
    found = re.fullmatch(r"cc-(by(?:-nc)?(?:-sa|-nd)?)-(\d\.\d)", words)
    return f"https://creativecommons.org/licenses/{found[1]}/{found[2]}/" if found else ""
