"""examples/train_streaming.py on stored, published and fresh records, as a person runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from builder.errors import FgbgError
from builder.finetune import load_checkpoint
from examples.train_streaming import CHECKPOINT, PICTURE, RESULTS, Network, main
from tests.e2e.running import files_of, is_newer, wait_until, written

# 54 or 72 train records in batches of 8: over two epochs; a kill falls into any part of one.
from tests.pictures import scene

RUN = ("--steps", "20", "--batch-size", "8", "--images", "8", "--every", "4")
SPLITS = ["train", "unseen_background", "unseen_foreground", "unseen_both"]
SIDE, PITCH, TOP, GAP = 144, 172, 28, 10  # of the picture, in px


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(built, floors, tmp_path_factory):
    """Undisturbed runs on stored records and on the fly: words, folders and what they told."""
    root = tmp_path_factory.mktemp("example")
    fresh = ("--on-the-fly", *floors, "--size", "64", "--depth-model", "measured")
    fresh = (*fresh, "--foreground-size", "0.6-1.1")  # seen in the few steps there are
    chosen = {"stored": (built,), "fresh": fresh}
    done = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "cache"))
        for name, source in chosen.items():
            words = [str(word) for word in (*source, *RUN)]
            told = []
            patch.setattr("examples.train_streaming.report", told.append)
            main([*words, "--out", str(root / name)])
            done[name] = (words, root / name, told)
    return done


@pytest.mark.parametrize("name", ["stored", "fresh"])
def test_the_losses_fall_and_what_was_made_is_told(runs, name):
    _, out, told = runs[name]
    pattern = r"step (\d+) of 20  epoch \d+  mask loss ([\d.]+)  depth loss ([\d.]+)"
    lines = [re.fullmatch(pattern, line) for line in told[:-1]]
    assert [int(line[1]) for line in lines] == list(range(4, 21, 4))
    for loss in (2, 3):
        values = [float(line[loss]) for line in lines]
        assert np.mean(values[-2:]) < 0.85 * values[0], told
    assert told[-1] == f"{PICTURE}, {RESULTS} and {CHECKPOINT} are in {out}."
    results = json.loads((out / RESULTS).read_text())
    assert list(results["splits"]) == SPLITS


def test_the_numbers_are_those_of_a_recomputation(runs, built):
    _, out, _ = runs["stored"]
    network = Network()
    load_checkpoint(out / CHECKPOINT, network, torch.optim.AdamW(network.parameters()))
    network.train(mode=False)
    train = datasets.load_dataset(str(built), split="train")
    pixels = np.stack([np.asarray(picture) for picture in train["fg_bg"]]) / 255
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    results = json.loads((out / RESULTS).read_text())["splits"]
    median_mm = None
    for split in SPLITS:
        ious, shares, errors, flat_errors, depths = [], [], [], [], []
        rows = datasets.load_dataset(str(built), split=split)
        for row in rows.select(range(8)):
            pixels = (np.asarray(row["fg_bg"]) / 255 - mean) / std
            values = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float()
            with torch.no_grad():
                logits, log_depth = network(values)
            found, mask = logits[0, 0].numpy() > 0, np.asarray(row["mask"]) == 255
            ious.append(np.count_nonzero(found & mask) / np.count_nonzero(found | mask))
            shares.append(row["coverage"])
            depths.append(np.asarray(row["depth"]).astype(float))
            errors.append(abs(np.exp(log_depth[0, 0].numpy()) * 1000 / depths[-1] - 1).mean())
        median_mm = median_mm or np.median(depths)
        flat_errors = [abs(median_mm / depth - 1).mean() for depth in depths]
        assert results[split] == pytest.approx(
            {
                "images": len(ious),
                "mask_iou": np.mean(ious),
                "mask_iou_everything": np.mean(shares),
                "depth_abs_rel": np.mean(errors),
                "depth_abs_rel_median": np.mean(flat_errors),
            },
            rel=1e-3,
        )


@pytest.mark.parametrize("name", ["stored", "fresh"])
def test_a_killed_run_resumes_to_the_same_bytes(runs, tmp_path, monkeypatch, name):
    words, undisturbed, _ = runs[name]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    out = tmp_path / name
    words = [*words, "--out", str(out), "--resume"]
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.train_streaming", *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    further = wait_until(process, partial(is_newer, out / CHECKPOINT, written(out / CHECKPOINT)))
    process.kill()
    _, stderr = process.communicate()
    assert further, stderr
    assert not (out / RESULTS).exists(), "it ended before it could be disturbed"
    main(words)
    ours, theirs = files_of(out), files_of(undisturbed)
    for file in (CHECKPOINT, PICTURE):
        assert ours[file] == theirs[file]
    ours, theirs = (json.loads((folder / RESULTS).read_text()) for folder in (out, undisturbed))
    assert ours["splits"] == theirs["splits"]


def test_a_set_on_the_hub_trains_as_the_same_set_here(runs, built, hub, tmp_path, monkeypatch):
    words, here, _ = runs["stored"]
    hub.put_folder("ann/blobs", built)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    main(["ann/blobs", *words[1:], "--out", str(tmp_path / "out")])
    assert files_of(tmp_path / "out")[CHECKPOINT] == files_of(here)[CHECKPOINT]
    shards = {path for path in hub.paths if path.endswith(".parquet")}
    assert {Path(path).name for path in shards} >= {p.name for p in built.glob("data/train-*")}


def test_the_picture_shows_composites_masks_and_depth(runs, built):
    _, out, _ = runs["stored"]
    with Image.open(out / PICTURE) as image:
        assert image.size == (5 * (SIDE + GAP) + GAP, TOP + 4 * PITCH)
        pixels = np.asarray(image)
    rows = datasets.load_dataset(str(built))
    for number, split in enumerate(SPLITS):
        tiles = [
            pixels[TOP + number * PITCH :, GAP + column * (SIDE + GAP) :][:SIDE, :SIDE]
            for column in range(5)
        ]
        # The composite is one of the first records of its split, and its mask is beside it.
        shown = [
            np.asarray(row["mask"].convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for row in rows[split]
            if np.array_equal(tiles[0], row["fg_bg"].resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        ]
        assert len(shown) == 1
        assert np.array_equal(tiles[1], shown[0])
        assert set(np.unique(tiles[2][..., 0])) >= {0, 255}
        for tile in tiles[3:]:
            assert (tile[..., 0] != tile[..., 2]).mean() > 0.9  # colours, not greys


def test_masks_alone_need_no_depth_model(sources, tmp_path, capsys):
    words = ["--on-the-fly", *map(str, sources), "--depth-model", "none", "--size", "50"]
    words += ["--steps", "2", "--batch-size", "3", "--images", "4", "--out", str(tmp_path / "out")]
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        scene(i, 80, 60).save(tmp_path / "images" / f"{i}.jpg")
        mask = Image.new("L", (80, 60))
        mask.paste(255, (20, 10, 60, 50))
        mask.save(tmp_path / "masks" / f"{i}.png")
    real = ["--real", str(tmp_path / "images"), str(tmp_path / "masks")]
    main([*words, *real, "--json"])
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((tmp_path / "out" / RESULTS).read_text())
    assert list(results["splits"]) == [*SPLITS, "photographs"]
    for split, values in results["splits"].items():
        assert set(values) == {"images", "mask_iou", "mask_iou_everything"}
        assert values["images"] == (3 if split == "photographs" else 4)
    real_share = results["splits"]["photographs"]["mask_iou_everything"]
    assert real_share == pytest.approx(40 * 40 / (80 * 60), abs=0.02)
    with Image.open(tmp_path / "out" / PICTURE) as image:
        assert image.size == (3 * (SIDE + GAP) + GAP, TOP + 5 * PITCH)


def test_what_can_not_be_continued_is_told(runs, built, sources, capsys):
    words, out, _ = runs["stored"]
    held = files_of(out)
    for wrong, sentence in (
        (words, f"{out / CHECKPOINT} exists; add --resume or choose another --out"),
        ([*words, "--on-the-fly", *map(str, sources)], "give a set or --on-the-fly, not both"),
    ):
        with pytest.raises(SystemExit):
            main([*wrong, "--out", str(out)])
        assert sentence in capsys.readouterr().err
    with pytest.raises(FgbgError, match=r"'seed': 0.*'seed': 5.*choose another --out"):
        main([*words, "--out", str(out), "--resume", "--seed", "5"])
    assert files_of(out) == held
