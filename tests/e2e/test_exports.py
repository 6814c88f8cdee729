"""Every export is read back by what people use for it, and compared with the set itself."""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
import yaml
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from builder.exports import FORMATS
from builder.exports.coco import license_url
from builder.exports.run import WRITERS
from builder.exports.shapes import outline_of, runs_of
from builder.exports.voc import palette
from builder.tables import write_table
from fgbg_dataset import FgbgDataset, FgbgError, NotABuildError, OutputError, export
from tests.e2e.hub import Hub
from tests.e2e.running import fgbg, files_of
from tests.limits import HANG_S

with contextlib.suppress(ImportError):
    import supervision as sv

# pycocotools hands NumPy an object of its own.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 96
SPLITS = ("train", "unseen_background", "unseen_foreground", "unseen_both")
SCENES = (
    *("--layout", "scenes", "--placements", "4", "--size", str(SIZE), "--holdout", "0.3"),
    *("--depth-model", "measured", "--records", "40", "--shard-records", "8", "--workers", "1"),
)


@pytest.fixture(scope="module")
def scenes(floors: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 scenes of 96 px of two classes, with composed depth; one source has a license."""
    out = tmp_path_factory.mktemp("scenes") / "floors"
    fgbg("build", *floors, out, *SCENES)
    return out


@pytest.fixture(params=["scenes", "pairs"])
def out(request: pytest.FixtureRequest, scenes: Path, built: Path) -> Path:
    return scenes if request.param == "scenes" else built


def rows_of(out: Path, split: str) -> dict[int, dict[str, Any]]:
    rows = datasets.load_dataset(str(out), split=split).cast_column(
        "fg_bg", datasets.Image(decode=False)
    )
    return {row["record_id"]: row for row in rows}


def objects_of(row: dict[str, Any]) -> list[tuple[int, np.ndarray, list[int]]]:
    """Class, mask and box of every object of a row, from its pictures and columns alone."""
    if "objects" not in row:
        return [(0, np.asarray(row["mask"]) > 0, list(row["bbox"]))]
    instances, objects = np.asarray(row["instances"]), row["objects"]
    return [
        (category, instances == k, list(box))
        for k, category, box in zip(
            objects["id"], objects["category"], objects["bbox"], strict=True
        )
    ]


def classes_of(out: Path) -> list[str]:
    return ["round", "tall"] if out.name == "floors" else ["object"]


def side_of(out: Path) -> int:
    return SIZE if out.name == "floors" else 64


# --- COCO -----------------------------------------------------------------------------------------


def test_coco_gives_back_every_mask_bit_for_bit(out: Path, tmp_path: Path) -> None:
    done = export(out, dest := tmp_path / "coco", "coco")
    n_objects = 0
    for split in SPLITS:
        rows = rows_of(out, split)
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(dest / "annotations" / f"instances_{split}.json"))
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == classes_of(out)
        assert set(coco.imgs) == set(rows)
        assert len({*(dest / split).iterdir()}) == len(rows) == done.splits[split]
        for record_id, row in rows.items():
            image = coco.imgs[record_id]
            assert (dest / split / image["file_name"]).read_bytes() == row["fg_bg"]["bytes"]
            assert (image["width"], image["height"]) == (side_of(out), side_of(out))
            found, due = coco.imgToAnns[record_id], objects_of(row)
            assert len(found) == len(due)
            for annotation, (category, mask, box) in zip(found, due, strict=True):
                assert (coco.annToMask(annotation) == mask).all()
                assert annotation["bbox"] == box and annotation["area"] == mask.sum()
                assert annotation["category_id"] == category + 1 and annotation["iscrowd"] == 0
                assert isinstance(annotation["segmentation"]["counts"], list)
            n_objects += len(due)
        assert all(number >= 1 for number in coco.anns)
    assert done.objects == n_objects == sum((done.classes or {}).values())
    content = files_of(dest)
    assert done.files == len(content)
    assert done.size_bytes == sum(p.stat().st_size for p in dest.rglob("*") if p.is_file())


def test_supervision_reads_coco(out: Path, tmp_path: Path) -> None:
    export(out, dest := tmp_path / "coco", "coco", splits=["train"])
    found = sv.DetectionDataset.from_coco(
        str(dest / "train"), str(dest / "annotations" / "instances_train.json"), force_masks=True
    )
    rows = rows_of(out, "train")
    assert found.classes == classes_of(out) and len(found) == len(rows)
    for path, image, detections in found:
        due = objects_of(rows[int(Path(path).stem)])
        assert image.shape == (side_of(out), side_of(out), 3)
        assert (detections.mask == np.stack([mask for _, mask, _ in due])).all()
        assert detections.class_id.tolist() == [category for category, _, _ in due]
        boxes = [[x, y, x + w, y + h] for _, _, (x, y, w, h) in due]
        assert detections.xyxy.tolist() == boxes


def tiny_detr() -> Any:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    return DetrForObjectDetection(
        DetrConfig(
            backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, num_queries=8, num_labels=2,
        )
    )  # fmt: skip


def train_a_step(model: Any, **batch: Any) -> None:
    """One step of gradient descent, which must move the weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_detr_trains_a_step_on_coco_with_masks(scenes: Path, tmp_path: Path) -> None:
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    export(scenes, dest := tmp_path / "coco", "coco", splits=["train"])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(dest / "annotations" / "instances_train.json"))
    ids = sorted(coco.imgs)[:2]
    processor = DetrImageProcessorPil(do_resize=False)
    encoding = processor(
        images=[Image.open(dest / "train" / coco.imgs[i]["file_name"]) for i in ids],
        annotations=[{"image_id": i, "annotations": coco.imgToAnns[i]} for i in ids],
        return_segmentation_masks=True,
        return_tensors="pt",
    )
    for number, label in zip(ids, encoding["labels"], strict=True):
        annotations = coco.imgToAnns[number]
        assert len(label["class_labels"]) == len(label["masks"]) == len(annotations)
        for mask, annotation in zip(label["masks"], annotations, strict=True):
            assert (np.asarray(mask) > 0).tolist() == (coco.annToMask(annotation) > 0).tolist()
        label["class_labels"] -= 1
    train_a_step(tiny_detr(), pixel_values=encoding["pixel_values"], labels=encoding["labels"])


def test_licenses_come_from_the_credits(scenes: Path, tmp_path: Path) -> None:
    export(scenes, dest := tmp_path / "coco", "coco")
    for split in SPLITS:
        content = json.loads((dest / "annotations" / f"instances_{split}.json").read_text())
        names = {entry["id"]: entry["name"] for entry in content["licenses"]}
        rows = rows_of(scenes, split)
        for image in content["images"]:
            pasted = set(rows[image["id"]]["objects"]["foreground_id"])
            free = bool(pasted & {"c", "lamp"})  # the others, and the floors, have no credits
            assert names[image["license"]] == ("CC0-1.0 + not stated" if free else "not stated")
    table = list(csv.DictReader((dest / "credits.csv").read_text().splitlines()))
    assert len(table) == 5 + 4
    assert {row["author"] for row in table if row["license"] == "CC0-1.0"} == {"Ann"}


def test_addresses_of_licenses() -> None:
    assert license_url("CC0-1.0") == "https://creativecommons.org/publicdomain/zero/1.0/"
    assert license_url("cc-by-nc-sa-4.0") == "https://creativecommons.org/licenses/by-nc-sa/4.0/"
    assert license_url("CC BY 4.0") == "https://creativecommons.org/licenses/by/4.0/"
    assert license_url("https://example.org/terms") == "https://example.org/terms"
    assert license_url("as agreed") == ""


# --- shapes ---------------------------------------------------------------------------------------


def shapes() -> list[np.ndarray]:
    """Masks of every kind: noise, smooth blots with holes and islands, whole pictures, lines."""
    rng = np.random.default_rng(0)
    masks = [rng.random(rng.integers(1, 20, 2)) < rng.choice([0.1, 0.5, 0.9]) for _ in range(300)]
    for _ in range(40):
        noise = cv2.GaussianBlur(rng.random((50, 70)), (0, 0), 3)
        masks.append(noise > np.quantile(noise, rng.uniform(0.2, 0.8)))
    return [mask for mask in masks if mask.any()] + [np.ones((5, 7), bool), np.eye(9, dtype=bool)]


def cut(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    ys, xs = np.nonzero(mask)
    return mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1], int(xs.min()), int(ys.min())


def test_runs_and_outlines_of_any_mask() -> None:
    for mask in shapes():
        check_shape(mask)


def check_shape(mask: np.ndarray) -> None:
    height, width = mask.shape
    part, left, top = cut(mask)
    runs = runs_of(part, left, top, height, width)
    own = coco_masks.frPyObjects({"size": [height, width], "counts": runs.counts}, height, width)
    assert own["counts"] == coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert runs.box == (left, top, part.shape[1], part.shape[0])
    assert runs.area == mask.sum()

    outline = outline_of(part, left, top)
    drawn = drawn_by_ultralytics(outline.points / (width, height), width, height)
    assert (drawn >= mask).all()
    assert drawn.sum() - mask.sum() == outline.added
    if cv2.connectedComponents(mask.astype(np.uint8))[0] == 2:
        assert outline.added == 0  # in one part, with any holes: nothing is lost


def drawn_by_ultralytics(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """The mask that Ultralytics draws: float32, digits cut off, filled by OpenCV."""
    pixels = points.astype(np.float32) * np.array([width, height], np.float32)
    canvas = np.zeros((height, width), np.uint8)
    cv2.fillPoly(canvas, [pixels.astype(np.int32)], 1)
    return canvas > 0


# --- YOLO -----------------------------------------------------------------------------------------


def read_yolo(dest: Path, labels: str, end: str) -> tuple[dict[str, Any], dict[str, list[Path]]]:
    """What Ultralytics finds by data.yaml: its settings, and the label files of each role."""
    settings = yaml.safe_load((dest / "data.yaml").read_text())
    root = Path(settings.get("path") or dest)
    found: dict[str, list[Path]] = {}
    for role in ("train", "val", "test"):
        folders = settings.get(role) or []
        for folder in [folders] if isinstance(folders, str) else folders:
            pictures = sorted((root / folder).iterdir())
            assert pictures and all(p.suffix == ".jpg" for p in pictures)
            paths = [root / labels / Path(folder).name / f"{p.stem}.{end}" for p in pictures]
            assert all(path.is_file() for path in paths)
            found.setdefault(role, []).extend(paths)
    assert settings["nc"] == len(settings["names"])
    assert list(settings["names"]) == list(range(settings["nc"]))
    return settings, found


def lines_of(path: Path) -> list[tuple[int, np.ndarray]]:
    """The labels of a file, as strictly as Ultralytics checks them."""
    found = []
    for line in path.read_text().splitlines():
        number, *values = line.split(" ")
        numbers = np.array(values, dtype=np.float64)
        assert number.isdigit() and ((numbers >= 0) & (numbers <= 1)).all()
        assert len(numbers) == 4 or (len(numbers) >= 6 and len(numbers) % 2 == 0)
        found.append((int(number), numbers))
    return found


def test_yolo_boxes_are_those_of_the_set(out: Path, tmp_path: Path) -> None:
    export(out, dest := tmp_path / "yolo", "yolo")
    settings, labels = read_yolo(dest, "labels", "txt")
    assert list(settings["names"].values()) == classes_of(out)
    assert {len(labels[role]) > 0 for role in ("train", "val", "test")} == {True}
    assert {path.parent.name for path in labels["test"]} == {"unseen_both"}
    size = side_of(out)
    for split in SPLITS:
        rows = rows_of(out, split)
        for record_id, row in rows.items():
            due = objects_of(row)
            found = lines_of(dest / "labels" / split / f"{record_id:09d}.txt")
            assert [number for number, _ in found] == [category for category, _, _ in due]
            for (_, (cx, cy, w, h)), (_, _, box) in zip(found, due, strict=True):
                corner = np.array([cx - w / 2, cy - h / 2, w, h]) * size
                assert np.abs(corner - box).max() < 1e-4
    train = sv.DetectionDataset.from_yolo(
        *(str(dest / name) for name in ("images/train", "labels/train", "data.yaml"))
    )
    assert train.classes == classes_of(out) and len(train) == len(labels["train"])


def test_yolo_outlines_lose_what_is_said_and_no_more(out: Path, tmp_path: Path) -> None:
    done = export(out, dest := tmp_path / "seg", "yolo-seg")
    read_yolo(dest, "labels", "txt")
    size, both, either = side_of(out), 0, 0
    for split in SPLITS:
        for record_id, row in rows_of(out, split).items():
            due = objects_of(row)
            found = lines_of(dest / "labels" / split / f"{record_id:09d}.txt")
            assert len(found) == len(due)
            for (number, values), (category, mask, (x, y, w, h)) in zip(found, due, strict=True):
                assert number == category
                points = values.reshape(-1, 2)
                drawn = drawn_by_ultralytics(points, size, size)
                both += (drawn & mask).sum()
                either += (drawn | mask).sum()
                box = np.concatenate([points.min(0), points.max(0)]) * size
                assert np.abs(box - (x, y, x + w, y + h)).max() < 0.011
    assert f"IoU of {both / either:.6f} over all {done.objects} objects" in done.lost[0]
    assert both / either > 0.999
    found = sv.DetectionDataset.from_yolo(
        *(str(dest / name) for name in ("images/train", "labels/train", "data.yaml"))
    )
    path, _, detections = found[0]
    due = objects_of(rows_of(out, "train")[int(Path(path).stem)])
    for mask, (_, exact, _) in zip(detections.mask, due, strict=True):
        # It rounds where Ultralytics cuts off, so what is to the right and below comes to it.
        padded = np.pad(exact, 1)
        near = padded[1:, 1:] | padded[:-1, 1:] | padded[1:, :-1] | padded[:-1, :-1]
        assert (mask >= exact).all() and (mask <= near[:-1, :-1]).all()


def test_class_masks(out: Path, tmp_path: Path) -> None:
    export(out, dest := tmp_path / "semantic", "yolo-semantic")
    settings, _ = read_yolo(dest, settings_masks := "masks", "png")
    assert settings["masks_dir"] == settings_masks
    assert list(settings["names"].values()) == ["background", *classes_of(out)]
    for record_id, row in rows_of(out, "train").items():
        found = np.asarray(Image.open(dest / "masks" / "train" / f"{record_id:09d}.png"))
        due = np.zeros_like(found)
        for category, mask, _ in objects_of(row):
            due[mask] = category + 1
        assert found.dtype == np.uint8 and (found == due).all()


def test_depth_in_metres(out: Path, tmp_path: Path) -> None:
    export(out, dest := tmp_path / "depth", "yolo-depth")
    settings, _ = read_yolo(dest, "depth", "npy")
    assert settings["names"] == {0: "depth"}
    unknown = 0
    for record_id, row in rows_of(out, "train").items():
        found = np.load(dest / "depth" / "train" / f"{record_id:09d}.npy")
        stored = np.asarray(row["depth"])
        assert found.dtype == np.float32 and found.shape == stored.shape
        assert (found == stored.astype(np.float32) / np.float32(1000)).all()
        unknown += (found <= 0).sum()
    assert (unknown > 0) == (out.name == "floors")  # the floors have a hole


# --- VOC, WebDataset ------------------------------------------------------------------------------


def test_voc(out: Path, tmp_path: Path) -> None:
    export(out, dest := tmp_path / "voc", "voc")
    size = side_of(out)
    for split in SPLITS:
        rows = rows_of(out, split)
        stems = (dest / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        assert stems == [f"{record_id:09d}" for record_id in rows]
        assert (dest / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split() == stems
        for stem, row in zip(stems, rows.values(), strict=True):
            tree = ET.parse(dest / "Annotations" / f"{stem}.xml").getroot()
            assert tree.findtext("size/width") == str(size)
            picture = dest / "JPEGImages" / str(tree.findtext("filename"))
            assert picture.read_bytes() == row["fg_bg"]["bytes"]
            objects, due = tree.findall("object"), objects_of(row)
            assert len(objects) == len(due)
            instances = Image.open(dest / "SegmentationObject" / f"{stem}.png")
            classes = Image.open(dest / "SegmentationClass" / f"{stem}.png")
            assert instances.mode == classes.mode == "P"
            assert instances.getpalette()[: 3 * 4] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
            for n, (found, (category, mask, (x, y, w, h))) in enumerate(
                zip(objects, due, strict=True), 1
            ):
                corners = [int(found.findtext(f"bndbox/{c}") or 0)
                           for c in ("xmin", "ymin", "xmax", "ymax")]  # fmt: skip
                assert corners == [x + 1, y + 1, x + w, y + h]
                assert found.findtext("name") == classes_of(out)[category]
                assert ((np.asarray(instances) == n) == mask).all()
                assert (np.asarray(classes)[mask] == category + 1).all()
            assert ((np.asarray(classes) > 0) == (np.asarray(instances) > 0)).all()
    found = sv.DetectionDataset.from_pascal_voc(str(dest / "JPEGImages"), str(dest / "Annotations"))
    every = {k: row for split in SPLITS for k, row in rows_of(out, split).items()}
    assert set(found.classes) == set(classes_of(out)) and len(found) == len(every)
    for path, _, detections in found:
        boxes = [
            [x, y, x + w, y + h] for _, _, (x, y, w, h) in objects_of(every[int(Path(path).stem)])
        ]
        assert detections.xyxy.tolist() == boxes


def test_colours_of_voc() -> None:
    assert palette()[[1, 15, 20, 255]].tolist() == [
        [128, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset(out: Path, tmp_path: Path) -> None:
    export(out, dest := tmp_path / "web", "webdataset")
    tars = sorted(str(path) for path in dest.glob("train-*.tar"))
    rows = rows_of(out, "train")
    loaded = datasets.load_dataset("webdataset", data_files={"train": tars}, split="train")
    by_folder = datasets.load_dataset(str(dest))
    assert list(by_folder) == list(SPLITS)
    assert by_folder["train"].num_rows == loaded.num_rows == len(rows)
    for found in loaded:
        row = rows[int(found["__key__"])]
        assert (np.asarray(found["mask.png"].convert("L")) == np.asarray(row["mask"])).all()
        assert (np.asarray(found["depth.png"]) == np.asarray(row["depth"])).all()
        assert found["json"]["record_id"] == row["record_id"]
        assert found["json"]["background_id"] == row["background_id"]
        if "objects" in row:
            assert (np.asarray(found["instances.png"]) == np.asarray(row["instances"])).all()
            names = [classes_of(out)[number] for number in row["objects"]["category"]]
            assert found["json"]["objects"]["category"] == names
            assert found["json"]["objects"]["bbox_amodal"] == row["objects"]["bbox_amodal"]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert {s["__key__"]: s["jpg"] for s in samples} == {
        f"{k:09d}": row["fg_bg"]["bytes"] for k, row in rows.items()
    }
    del loaded, by_folder, samples
    gc.collect()  # now, while it may be said that readers leave their tars open


# --- Transformers' own examples -------------------------------------------------------------------


def test_hf_detection_trains_a_step_of_detr(out: Path, tmp_path: Path) -> None:
    from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

    export(out, dest := tmp_path / "detection", "hf-detection")
    sets = datasets.load_dataset(str(dest))
    assert list(sets) == list(SPLITS)
    features = sets["train"].features
    assert list(features) == ["image_id", "image", "width", "height", "objects"]
    assert list(features["objects"]) == ["id", "area", "bbox", "category"]
    assert features["objects"]["category"].feature.names == classes_of(out)
    rows = rows_of(out, "train")
    stored = sets["train"].cast_column("image", datasets.Image(decode=False))
    for found in stored:
        due = objects_of(rows[found["image_id"]])
        assert found["image"]["bytes"] == rows[found["image_id"]]["fg_bg"]["bytes"]
        assert found["objects"]["bbox"] == [box for _, _, box in due]
        assert found["objects"]["area"] == [mask.sum() for _, mask, _ in due]
        assert found["objects"]["category"] == [category for category, _, _ in due]

    examples = [sets["train"][k] for k in range(2)]
    annotations = [
        {
            "image_id": e["image_id"],
            "annotations": [
                {"image_id": e["image_id"], "category_id": c, "iscrowd": 0, "area": a, "bbox": b}
                for c, a, b in zip(
                    *(e["objects"][n] for n in ("category", "area", "bbox")), strict=True
                )
            ],
        }
        for e in examples
    ]  # as run_object_detection.py makes them
    encoding = DetrImageProcessorPil(do_resize=False)(
        images=[e["image"] for e in examples], annotations=annotations, return_tensors="pt"
    )
    train_a_step(tiny_detr(), pixel_values=encoding["pixel_values"], labels=encoding["labels"])


def test_hf_instances_train_a_step_of_mask2former(out: Path, tmp_path: Path) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
    from transformers.models.mask2former.image_processing_pil_mask2former import (
        Mask2FormerImageProcessorPil,
    )

    export(out, dest := tmp_path / "instances", "hf-instances")
    train = datasets.load_dataset(str(dest), split="train")
    names = train[0]["semantic_class_to_id"]
    assert names == {name: n for n, name in enumerate(["background", *classes_of(out)])}
    rows, batch = rows_of(out, "train"), []
    processor = Mask2FormerImageProcessorPil(
        do_resize=False, do_reduce_labels=True, ignore_index=255
    )
    for found in train:
        pixels = np.asarray(found["annotation"])
        due = objects_of(rows[found["image_id"]])
        for n, (category, mask, _) in enumerate(due, 1):
            assert ((pixels[..., 1] == n) == mask).all()
            assert (pixels[mask][:, 0] == category + 1).all()
        assert (pixels[pixels[..., 1] == 0] == 0).all()
        # As run_instance_segmentation.py makes them.
        pairs = np.unique(pixels[..., :2].reshape(-1, 2), axis=0)
        inputs = processor(
            images=[np.asarray(found["image"])],
            segmentation_maps=[pixels[..., 1]],
            instance_id_to_semantic_id={int(k): int(c) for c, k in pairs},
            return_tensors="pt",
        )
        assert inputs["class_labels"][0].tolist() == [category for category, _, _ in due]
        masks = np.asarray(inputs["mask_labels"][0]) > 0
        assert (masks == np.stack([mask for _, mask, _ in due])).all()
        batch.append(inputs)
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=side_of(out), embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
        window_size=4, out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
            encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
            dim_feedforward=16, num_queries=8, train_num_points=64, num_labels=len(names) - 1,
        )
    )  # fmt: skip
    train_a_step(
        model,
        pixel_values=torch.cat([b["pixel_values"] for b in batch[:2]]),
        mask_labels=[b["mask_labels"][0] for b in batch[:2]],
        class_labels=[b["class_labels"][0] for b in batch[:2]],
    )


# --- kills, the Hub, what is refused --------------------------------------------------------------

# Ends the process with SIGKILL at the n-th call of a function, as a machine that dies does.
_KILLED = """
import os, signal, sys
from builder.exports import records, run
out, dest, to, where, n = sys.argv[1:]
owner, name = {"file": (records.Tree, "write"), "note": (run, "write_text"),
               "end": (run, "rename")}[where]
call, left = getattr(owner, name), int(n)
def killed(*arguments, **more):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*arguments, **more)
setattr(owner, name, killed)
run.export(out, dest, to)
"""


@pytest.mark.parametrize("to", ["coco", "yolo-seg", "webdataset", "hf-detection"])
def test_a_killed_export_goes_on_to_the_same_bytes(to: str, scenes: Path, tmp_path: Path) -> None:
    export(scenes, whole := tmp_path / "whole", to)
    dest = tmp_path / "killed"
    kept = []
    for where, n in (("note", 2), ("note", 3), ("file", 2), ("end", 0)):
        process = subprocess.run(
            [sys.executable, "-c", _KILLED, str(scenes), str(dest), to, where, str(n)],
            capture_output=True,
            timeout=HANG_S,
        )
        assert process.returncode == -9, process.stderr.decode()
        assert not dest.exists()
        kept.append(export(scenes, dest, to, dry_run=True).shards_kept)
        assert not dest.exists()
    assert kept == sorted(kept)
    done = export(scenes, dest, to)
    assert done.shards_kept == done.shards == kept[-1]
    assert files_of(dest) == files_of(whole)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_another_export_left_is_not_mixed_in(scenes: Path, tmp_path: Path) -> None:
    export(scenes, whole := tmp_path / "whole", "yolo")
    dest = tmp_path / "dest"
    subprocess.run(
        [sys.executable, "-c", _KILLED, str(scenes), str(dest), "coco", "end", "0"],
        capture_output=True,
        timeout=HANG_S,
    )
    assert export(scenes, dest, "coco", dry_run=True).shards_kept > 0
    assert export(scenes, dest, "coco", splits=["train"], dry_run=True).shards_kept == 0
    export(scenes, dest, "yolo")
    assert files_of(dest) == files_of(whole)


def test_a_file_lost_with_the_power_is_noticed(scenes: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    subprocess.run(
        [sys.executable, "-c", _KILLED, str(scenes), str(dest), "coco", "end", "0"],
        capture_output=True,
        timeout=HANG_S,
    )
    picture = next((tmp_path / ".dest.fgbg-export" / "tree" / "train").iterdir())
    picture.write_bytes(b"")
    with pytest.raises(OutputError, match=r"missing or damaged .* run the same command again"):
        export(scenes, dest, "coco")
    assert export(scenes, dest, "coco").written


def test_a_set_on_the_hub_is_exported_like_a_folder(scenes: Path, hub: Hub, tmp_path: Path) -> None:
    hub.put_folder("ann/floors", scenes)
    done = export("ann/floors", tmp_path / "there", "coco")
    export(scenes, tmp_path / "here", "coco")
    assert done.revision == hub.repos["datasets", "ann/floors"].refs["main"]
    mine, theirs = files_of(tmp_path / "here"), files_of(tmp_path / "there")
    assert {name for name in mine if mine[name] != theirs[name]} == {"export.json"}
    said = json.loads((tmp_path / "there" / "export.json").read_text())
    assert said["revision"] == done.revision
    with pytest.raises(FgbgError, match="has no revision 'x' on the Hub"):
        export("ann/floors", tmp_path / "x", "coco", revision="x")


def test_one_class_and_one_split(scenes: Path, tmp_path: Path) -> None:
    done = export(
        scenes, dest := tmp_path / "one", "yolo", splits=["unseen_both"], category_from="single"
    )
    settings, labels = read_yolo(dest, "labels", "txt")
    assert settings["names"] == {0: "object"}
    assert settings["train"] == "images/unseen_both" and settings["val"] == [settings["train"]]
    assert {number for path in labels["train"] for number, _ in lines_of(path)} == {0}
    assert list(done.splits) == ["unseen_both"]
    assert any("asks for one and no other split was exported" in line for line in done.lost)


def test_arrow_webp_and_sets_of_the_first_version(floors: Any, tmp_path: Path) -> None:
    FgbgDataset(
        *floors, layout="scenes", depth_model="measured", size=SIZE, records=12, distractors="0-2"
    ).download_and_prepare(str(tmp_path / "arrow"), file_format="arrow")
    done = export(tmp_path / "arrow", tmp_path / "coco", "coco")
    assert done.records == 12 and sum((done.classes or {}).values()) == done.objects

    old = Path(__file__).parents[1] / "golden" / "0.1.0" / "depth"  # WebP, depth as a code
    export(old, dest := tmp_path / "old", "webdataset")
    row = datasets.load_dataset(str(dest), split="train")[0]
    stored = rows_of(old, "train")[int(row["__key__"])]
    assert row["webp"].format == "WEBP" and row["depth.jpg"].mode == "L"
    assert (np.asarray(row["depth.jpg"]) == np.asarray(stored["depth"])).all()
    export(old, metres := tmp_path / "metres", "yolo-depth")
    found = np.load(next((metres / "depth" / "train").iterdir()))
    assert found.dtype == np.float32 and 0.1 < np.median(found) < 100


def changed(out: Path, where: Path, how: Any) -> Path:
    """A copy of a set with other rows in every file."""
    copy = Path(shutil.copytree(out, where))
    for path in (copy / "data").iterdir():
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            how(row)
        write_table(path, "parquet", table.schema, rows)
    return copy


def hide(row: dict[str, Any]) -> None:
    """Make a record one in which nothing is seen of any object."""
    buffer = io.BytesIO()
    Image.new("L", (SIZE, SIZE)).save(buffer, "PNG")
    row["mask"]["bytes"] = row["instances"]["bytes"] = buffer.getvalue()
    for k in range(len(row["objects"]["id"])):
        row["objects"]["area"][k], row["objects"]["bbox"][k] = 0, [0, 0, 0, 0]


@pytest.mark.parametrize("to", FORMATS)
def test_records_without_objects_are_backgrounds(to: str, scenes: Path, tmp_path: Path) -> None:
    bare = changed(scenes, tmp_path / "floors", hide)
    done = export(bare, dest := tmp_path / to, to)
    assert (done.records, done.objects, done.without) == (40, 0, 40)
    text = " ".join(done.lost)
    assert "40 records have no object" in text and "no pixel is seen are left out" in text
    assert "No object is of class 'round', 'tall'" in text
    if to == "coco":
        content = json.loads((dest / "annotations" / "instances_train.json").read_text())
        assert content["images"] and content["annotations"] == []
    if to in ("yolo", "yolo-seg"):
        _, labels = read_yolo(dest, "labels", "txt")
        assert {path.read_text() for paths in labels.values() for path in paths} == {""}
    if to.startswith("hf-"):
        assert datasets.load_dataset(str(dest))["train"].num_rows == done.splits["train"]


def move_box(row: dict[str, Any]) -> None:
    row["objects"]["bbox"][0][0] += 1


def grow_area(row: dict[str, Any]) -> None:
    row["objects"]["area"][0] += 1


def drop_object(row: dict[str, Any]) -> None:
    row["objects"] = {name: values[1:] for name, values in row["objects"].items()}


def not_a_jpeg(row: dict[str, Any]) -> None:
    row["fg_bg"]["bytes"] = row["mask"]["bytes"]


def other_id(row: dict[str, Any]) -> None:
    row["record_id"] += 1


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (move_box, "object 1"),
        (grow_area, "another box or area of object 1 than its picture"),
        (drop_object, "pixels of objects that are in no box"),
        (not_a_jpeg, "a composite that is not a JPEG"),
        (other_id, "does not hold the records that are due there"),
    ],
)
def test_a_set_that_contradicts_itself_is_refused(
    how: Any, text: str, scenes: Path, tmp_path: Path
) -> None:
    bad = changed(scenes, tmp_path / "floors", how)
    with pytest.raises(NotABuildError, match=text) as caught:
        export(bad, tmp_path / "coco", "coco")
    assert re.search(r"data/train-00000-of-\d+.parquet", str(caught.value))
    assert str(caught.value).endswith(f"fgbg verify {bad}.")
    assert not (tmp_path / "coco").exists()


def put(name: str, value: Any) -> Any:
    def how(row: dict[str, Any]) -> None:
        row["objects"][name][0] = value

    return how


def same_number(row: dict[str, Any]) -> None:
    row["objects"]["id"][1:] = row["objects"]["id"][:1] * (len(row["objects"]["id"]) - 1)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        (put("bbox", [-50, -50, 5000, 5000]), "object 1 outside of the picture"),
        (put("bbox", [0, 0, 0, 9]), "object 1 outside of the picture"),
        (put("area", -4), "object 1 with -4 px"),
        (put("id", 300), "object 300 with"),
        (put("visible", None), "values that cannot be read"),
        (put("truncated", float("nan")), "shares of object 1"),
        (same_number, "two objects of one number"),
    ],
)
@pytest.mark.parametrize("to", ["yolo", "yolo-semantic"])
def test_formats_that_take_columns_alone_refuse_what_no_picture_has(
    to: str, how: Any, text: str, scenes: Path, tmp_path: Path
) -> None:
    bad = changed(scenes, tmp_path / "floors", how)
    with pytest.raises(NotABuildError, match=text):
        export(bad, tmp_path / to, to)
    assert not (tmp_path / to).exists()


def test_relative_depth_and_none_are_no_metres(
    sources: tuple[Path, Path], tiny_model: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"placements": 1, "size": 64, "foreground_size": 32, "records": 4}
    relative = {"depth_model": str(tiny_model), "depth_kind": "relative-inverse", "depth_input": 64}
    for name, more, text in (
        ("relative", relative, "holds relative depth by .* takes metres"),
        ("none", {"depth_model": "none"}, "holds no depth, for it was built with"),
    ):
        FgbgDataset(*sources, **options, **more).download_and_prepare(
            str(tmp_path / name), file_format="parquet"
        )
        with pytest.raises(FgbgError, match=text):
            export(tmp_path / name, tmp_path / "depth", "yolo-depth")
        done = export(tmp_path / name, tmp_path / f"web-{name}", "webdataset")
        assert done.written and done.records == 4
    held = json.loads((tmp_path / "web-relative" / "export.json").read_text())["depth"]
    assert (held["kind"], held["quantity"]) == ("relative", "inverse_depth")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"to": "tfrecord"}, "there is no format 'tfrecord'; choose one of coco, yolo"),
        ({"splits": ["test"]}, "has no split 'test'; it has train, unseen_background"),
        ({"category_from": "x"}, "category_from is 'x'; give foreground or single"),
        ({"dest": "s3://bucket/x"}, "lies on a store; export to a folder of this machine"),
        ({"dest": "OUT/inside"}, "lies inside the set"),
        ({"dest": "full"}, "is not empty; choose another folder"),
        ({"dest": "file"}, "is a file or a link; choose another folder"),
        ({"revision": "main"}, "is a folder here; revision is for a set on the Hub"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    arguments: dict[str, Any], text: str, scenes: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "file").touch()
    dest = arguments.pop("dest", "new")
    if "://" not in dest:
        dest = scenes / "inside" if dest.startswith("OUT") else tmp_path / dest
    with pytest.raises(FgbgError, match=re.escape(text)):
        export(scenes, dest, **{"to": "coco", **arguments})
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file"}
    assert not (scenes / "inside").exists()


def test_more_classes_than_a_mask_can_name(scenes: Path) -> None:
    from builder.exports.records import Job
    from builder.layout import read_recipe

    job = Job("many", read_recipe(scenes), (), single=False)
    job.classes = tuple(map(str, range(255)))
    for to in ("voc", "hf-instances", "yolo-semantic"):
        with pytest.raises(
            FgbgError, match="has 255 classes, and a class mask of 8 bits names 254"
        ):
            WRITERS[to](job)


def test_the_command(scenes: Path, tmp_path: Path) -> None:
    run = partial(fgbg, "export", scenes, tmp_path / "coco", "--to", "coco")
    shown = run("--dry-run")
    assert shown.stdout == "Nothing was written.\n"
    assert "40 records of" in shown.stderr and "split     unseen_both" in shown.stderr
    refused = run(code=2)
    assert "add --yes to write it" in refused.stderr
    assert list(tmp_path.iterdir()) == []
    done = run("--yes", "--json")
    held = json.loads(done.stdout)
    assert held["records"] == 40 and held["format"] == "coco" and held["written"]
    assert held["classes"].keys() == {"round", "tall"}
    again = run("--yes", code=1)
    assert "is not empty; choose another folder, or delete it first" in again.stderr
