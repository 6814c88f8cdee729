"""Records per CPU-second of an export to COCO, against datasets + pycocotools and + supervision.

    python benchmarks/export.py [--records 1000] [--repeats 5] [--json]

All read one set of 224 px from Parquet and leave a folder of the same JPEG bytes with one JSON that
holds every mask, in memory (`/dev/shm`). They run in turns in one process on one pinned core;
figures are medians of CPU time, user and system. The sources are the bundled ones. Masks are
compared with the set's before anything is timed.

`pycocotools` writes compressed run lengths, and `supervision` run lengths with `iscrowd: 1` or
polygons, so neither file trains everywhere; their loops are what people write with them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import supervision as sv
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from builder.exports import export
from builder.sources import demo_folders
from fgbg_dataset import FgbgDataset

SIZE = 224
WANTED = 3000  # records per CPU-second, of pairs


def build(folder: Path, layout: str, n: int) -> Path:
    """Build a set of one split and one file of bundled pictures."""
    more: dict[str, Any] = {"size": SIZE, "holdout": 0.0, "records": n, "shard_records": n}
    more |= {"layout": layout, "placements": 40}
    if layout == "pairs":
        more["depth_model"] = "none"
    dataset = FgbgDataset(*demo_folders(), **more)
    dataset.download_and_prepare(str(folder / layout), file_format="parquet", num_proc=1)
    return folder / layout


def ours(out: Path, dest: Path) -> Path:
    export(out, dest, "coco")
    return dest / "annotations" / "instances_train.json"


def rows_of(out: Path) -> Any:
    """The rows as `datasets` gives them, composites as bytes, the columns that are needed."""
    rows = datasets.load_dataset(str(out), split="train")
    names = {"record_id", "fg_bg", "mask", "instances", "objects", "bbox"}
    rows = rows.select_columns([name for name in rows.column_names if name in names])
    return rows.cast_column("fg_bg", datasets.Image(decode=False))


def masks_of(row: dict[str, Any]) -> list[tuple[int, np.ndarray]]:
    if "objects" not in row:
        return [(0, np.asarray(row["mask"]) > 0)]
    instances, objects = np.asarray(row["instances"]), row["objects"]
    return [(c, instances == k) for k, c in zip(objects["id"], objects["category"], strict=True)]


def with_pycocotools(out: Path, dest: Path) -> Path:
    (dest / "train").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row in rows_of(out):
        name = f"{row['record_id']:09d}.jpg"
        (dest / "train" / name).write_bytes(row["fg_bg"]["bytes"])
        images.append({"id": row["record_id"], "file_name": name, "width": SIZE, "height": SIZE})
        for category, mask in masks_of(row):
            runs = coco_masks.encode(np.asfortranarray(mask.view(np.uint8)))
            annotations.append({
                "id": len(annotations) + 1, "image_id": row["record_id"],
                "category_id": category + 1, "iscrowd": 0, "area": int(coco_masks.area(runs)),
                "bbox": coco_masks.toBbox(runs).tolist(),
                "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
            })  # fmt: skip
    path = dest / "instances_train.json"
    content = {"images": images, "annotations": annotations,
               "categories": [{"id": n + 1, "name": str(n)} for n in range(64)]}  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def with_supervision(out: Path, dest: Path) -> Path:
    (dest / "images").mkdir(parents=True)
    found: dict[str, Any] = {}
    for row in rows_of(out):
        path = dest / "images" / f"{row['record_id']:09d}.jpg"
        path.write_bytes(row["fg_bg"]["bytes"])
        pairs = masks_of(row)
        masks = np.stack([mask for _, mask in pairs])
        found[str(path)] = sv.Detections(
            xyxy=sv.mask_to_xyxy(masks), mask=masks, class_id=np.array([c for c, _ in pairs])
        )
    names = [str(n) for n in range(64)]
    path = dest / "instances_train.json"
    # The pictures are there as they are; to let it write them would encode them again.
    sv.DetectionDataset(names, list(found), found).as_coco(annotations_path=str(path))
    return path


READERS: dict[str, Callable[[Path, Path], Path]] = {
    "fgbg export": ours,
    "datasets + pycocotools": with_pycocotools,
    "datasets + supervision": with_supervision,
}


def exact(out: Path, path: Path) -> tuple[int, int]:
    """How many of the masks in a COCO file are the set's, bit for bit, and how many there are."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    files = {image["file_name"]: number for number, image in coco.imgs.items()}
    same = total = 0
    for row in rows_of(out):
        found = coco.imgToAnns[files[f"{row['record_id']:09d}.jpg"]]
        due = masks_of(row)
        total += len(due)
        if len(found) == len(due):
            same += sum(
                bool((coco.annToMask(a) == mask).all())
                for a, (_, mask) in zip(found, due, strict=True)
            )
    return same, total


def measure(out: Path, folder: Path, n: int, repeats: int) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for name, write in READERS.items():
        same, total = exact(out, write(out, folder / "dest"))
        results[name] = {"exact": f"{same} of {total}", "seconds": []}
        shutil.rmtree(folder / "dest")
    for _ in range(repeats):
        for name, write in READERS.items():
            start = time.process_time()
            write(out, folder / "dest")
            results[name]["seconds"].append(time.process_time() - start)
            shutil.rmtree(folder / "dest")
    for result in results.values():
        result["records_per_s"] = round(n / statistics.median(result.pop("seconds")))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    datasets.disable_progress_bars()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    results = {}
    with tempfile.TemporaryDirectory(dir=memory) as name:
        datasets.config.HF_DATASETS_CACHE = Path(name) / "cache"
        for layout in ("pairs", "scenes"):
            out = build(Path(name), layout, options.records)
            results[layout] = measure(out, Path(name), options.records, options.repeats)
    if options.json:
        print(json.dumps(results))
        return
    print("| set | writer | records per CPU-s | ratio | masks bit for bit |\n|---|---|---|---|---|")
    for layout, by_name in results.items():
        first = by_name["fgbg export"]["records_per_s"]
        for name, result in by_name.items():
            speed = result["records_per_s"]
            ratio = f"{first / speed:.1f}"
            print(f"| {layout} | {name} | {speed:,} | {ratio} | {result['exact']} |")
    print(f"\nWanted of pairs: {WANTED:,} records per CPU-s.")


if __name__ == "__main__":
    main()
