"""builder/finetune: orders that resume, units of depth, checkpoints, folders that are safe."""

from __future__ import annotations

import gc
import io
import json
import math
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import builder.finetune.pairs
from builder.errors import TrainingError
from builder.finetune.loop import (
    checkpoint_state,
    learning_rate,
    load_checkpoint,
    save_checkpoint,
)
from builder.finetune.pairs import Pairs, batches
from builder.finetune.tuning import nearest
from builder.record.encoding import DepthCodec
from tests.strategies import depth_info, pinned

ROWS = 23
COLUMNS = {"image_column": "image", "depth_column": "depth"}


def png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def write_set(folder: Path, depth: list[Any], feature: Any = None, files: int = 1) -> Path:
    """A set of as many rows as depth values; pictures are grey, of the row's number."""
    pictures = [png(np.full((6, 8, 3), row, np.uint8)) for row in range(len(depth))]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "depth": feature or datasets.Image(),
            "other": datasets.Value("int64"),
        }
    )
    rows = {"image": pictures, "depth": depth, "other": list(range(len(depth)))}
    whole = datasets.Dataset.from_dict(rows, features=features)
    (folder / "data").mkdir(parents=True)
    for index in range(files):
        part = whole.shard(files, index, contiguous=True)
        part.to_parquet(folder / "data" / f"train-{index:05d}-of-{files:05d}.parquet")
    return folder


def millimetres(value: int = 1500) -> np.ndarray:
    return np.array([[0, value, 65535, 1]], np.uint16)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 rows in 3 files."""
    folder = tmp_path_factory.mktemp("numbered") / "set"
    return write_set(folder, [png(millimetres())] * ROWS, files=3)


@pytest.fixture(params=[False, True], ids=["mapped", "streamed"])
def pairs(request, numbered: Path, monkeypatch: pytest.MonkeyPatch) -> Pairs:
    monkeypatch.setattr(builder.finetune.pairs, "BLOCK", 5)  # several blocks, the last not full
    return Pairs(str(numbered), "train", streaming=request.param, **COLUMNS)


def number(pairs: Pairs, row: dict[str, Any]) -> int:
    return pairs.read(row)[0].getpixel((0, 0))[0]


def test_every_epoch_holds_every_row_once_in_another_order(pairs):
    rows = [number(pairs, row) for row, _ in islice(pairs.endless(7, None), 3 * ROWS)]
    epochs = [rows[start : start + ROWS] for start in range(0, 3 * ROWS, ROWS)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(ROWS))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    again = [number(pairs, row) for row, _ in islice(pairs.endless(7, None), ROWS)]
    assert again == epochs[0]
    other = [number(pairs, row) for row, _ in islice(pairs.endless(8, None), ROWS)]
    assert other != epochs[0]
    assert [number(pairs, row) for row in pairs.in_order()] == list(range(ROWS))


def test_from_every_position_the_rest_is_the_same(pairs, numbered):
    """Across blocks, files and epochs; the position goes through JSON, as in a checkpoint."""
    taken = list(islice(pairs.endless(7, None), 2 * ROWS + 4))
    rows = [number(pairs, row) for row, _ in taken]
    for done, (_, position) in enumerate(taken[:-6], start=1):
        assert position["row"] == done
        fresh = Pairs(str(numbered), "train", streaming=pairs.streaming, **COLUMNS)
        rest = fresh.endless(7, json.loads(json.dumps(position)))
        assert [number(fresh, row) for row, _ in islice(rest, 6)] == rows[done : done + 6], done


def test_three_stops_in_a_row_lose_and_repeat_nothing(pairs):
    expected = [number(pairs, row) for row, _ in islice(pairs.endless(7, None), 60)]
    seen, position = [], None
    for length in (3, 9, 17, 31):
        part = list(islice(pairs.endless(7, position), length))
        seen += [number(pairs, row) for row, _ in part]
        position = part[-1][1]
    assert seen == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_a_split_without_rows_is_refused(tmp_path, streaming):
    folder = write_set(tmp_path / "set", [])
    with pytest.raises(TrainingError, match=r"has no rows|corresponds to no data"):
        next(Pairs(str(folder), "train", streaming=streaming, **COLUMNS).endless(0, None))


def test_batches_are_in_order_whatever_the_threads_do(pairs):
    rows = list(islice(pairs.endless(7, None), 11))
    expected = [number(pairs, row) for row, _ in rows]
    got = list(batches(rows, 4, lambda row, index: (index, number(pairs, row)), workers=3))
    assert [len(examples) for examples, _ in got] == [4, 4, 3]
    assert [n for examples, _ in got for _, n in examples] == expected
    assert [index for examples, _ in got for index, _ in examples] == list(range(11))
    assert [position["row"] for _, position in got] == [4, 8, 11]


def only_depth(folder: Path, **options: Any) -> np.ndarray:
    pairs = Pairs(str(folder), "train", streaming=True, **COLUMNS, **options)
    (row,) = pairs.in_order()
    picture, depth_m = pairs.read(row)
    assert picture.mode == "RGB" and depth_m.dtype == np.float32
    return depth_m


def test_any_set_of_16_bit_depth_is_in_mm_unless_told_otherwise(tmp_path):
    folder = write_set(tmp_path / "set", [png(millimetres())])
    np.testing.assert_allclose(only_depth(folder), [[0, 1.5, 65.535, 0.001]])
    np.testing.assert_allclose(only_depth(folder, depth_scale=100), [[0, 15, 655.35, 0.01]])


def test_8_bit_depth_of_unknown_unit_is_not_guessed(tmp_path):
    folder = write_set(tmp_path / "set", [png(np.full((2, 2), 200, np.uint8))])
    with pytest.raises(TrainingError, match=r"8 bits, and no recipe\.json .* give --depth-scale"):
        only_depth(folder)
    np.testing.assert_array_equal(only_depth(folder, depth_scale=50), np.full((2, 2), 4))


def test_lists_of_metres_with_unknown_pixels(tmp_path):
    feature = datasets.List(datasets.List(datasets.Value("float32")))
    folder = write_set(tmp_path / "set", [[[1.5, math.nan], [-1.0, math.inf]]], feature)
    np.testing.assert_array_equal(only_depth(folder, depth_scale=1), [[1.5, 0], [0, 0]])


# `datasets` 5.2 leaves the metadata file open.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_loose_images(tmp_path, streaming):
    """What `datasets` calls an image folder: two columns of file names in metadata.csv."""
    for row in range(3):
        (tmp_path / f"{row}.png").write_bytes(png(np.full((6, 8, 3), row, np.uint8))["bytes"])
        (tmp_path / f"{row}_depth.png").write_bytes(png(millimetres(1000 + row))["bytes"])
    lines = "".join(f"{row}.png,{row}_depth.png\n" for row in range(3))
    (tmp_path / "metadata.csv").write_text(f"file_name,depth_file_name\n{lines}")
    pairs = Pairs(str(tmp_path), "train", streaming=streaming, **COLUMNS)
    for row, _ in islice(pairs.endless(0, None), 6):
        assert pairs.read(row)[1][0, 1] == np.float32(1 + number(pairs, row) / 1000)
    del pairs
    gc.collect()  # that file is closed here, where it is expected, and not in some later test


def test_streamed_lines_of_json(tmp_path):
    """Their columns are not known before the first row."""
    row = {"image": [[[1, 2, 3], [4, 5, 6]]], "depth": [[1.5, 0.0]]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    np.testing.assert_array_equal(only_depth(tmp_path, depth_scale=1), [[1.5, 0]])
    with pytest.raises(TrainingError, match=r"has no column 'x' .* it has image, depth"):
        Pairs(str(tmp_path), "train", streaming=True, image_column="x", depth_column="depth")


FLOATS, BYTES = datasets.Value("float32"), datasets.Value("uint8")


@pytest.mark.parametrize(
    ("value", "feature"),
    [
        ([[1.5, 2.0]], datasets.Array2D((1, 2), "float32")),
        ([[1, 2]], datasets.Array2D((1, 2), "float64")),
        ([[1.5, 2.0]], datasets.List(datasets.List(FLOATS))),
        ([[1, 2]], datasets.List(datasets.List(FLOATS))),
        ([[1, 2]], datasets.Array2D((1, 2), "uint8")),
        ([[1, 2]], datasets.List(datasets.List(BYTES))),
    ],
)
def test_metres_and_bytes_in_arrays_and_lists_are_not_guessed(tmp_path, value, feature):
    folder = write_set(tmp_path / "set", [value], feature)
    with pytest.raises(TrainingError, match=r"no recipe\.json says .* give --depth-scale"):
        only_depth(folder)
    np.testing.assert_allclose(only_depth(folder, depth_scale=1), np.float32(value))


def test_whole_numbers_in_arrays_are_in_mm(tmp_path):
    feature = datasets.Array2D((1, 2), "uint16")
    folder = write_set(tmp_path / "set", [[[1500, 0]]], feature)
    np.testing.assert_allclose(only_depth(folder), [[1.5, 0]])


@pytest.mark.parametrize(
    ("stored", "scale", "fine"),
    [
        ([900, 5000, 9000], None, True),  # mm
        ([2, 5, 8], None, False),  # whole metres
        ([1280, 7000, 20480], None, False),  # KITTI's 1/256, of 5 to 80 m
        ([1280, 7000, 20480], 256, True),  # is not disputed: a part of it can be learned from
        ([900, 5000, 9000], 1, False),
        ([0, 0, 0], None, True),  # the first rows of sparse labels
    ],
)
def test_the_first_rows_are_compared_with_the_models_range(tmp_path, caplog, stored, scale, fine):
    folder = write_set(tmp_path / "set", [png(np.array([stored], np.uint16))] * 3)
    pairs = Pairs(str(folder), "train", depth_scale=scale, **COLUMNS)
    if fine:
        pairs.check_unit((0.1, 10.0), rows=2)
        said = "read as millimetres, is 0.9 to 9 m in the first 2 rows" in caplog.text
        assert said == (scale is None and stored[0] > 0)
    else:
        with pytest.raises(TrainingError, match=r"first 2 rows, .* 0\.1 to 10 m.* --depth-scale"):
            pairs.check_unit((0.1, 10.0), rows=2)


def test_pictures_scaled_to_0_to_1_are_refused(tmp_path):
    row = {"image": [[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]], "depth": [[1500, 900]]}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(TrainingError, match="not in whole numbers from 0 to 255"):
        only_depth(tmp_path)


@pytest.mark.parametrize("where", ["recipe.json", "Parquet metadata"])
@pytest.mark.parametrize("depth_format", ["png16", "jpeg8"])
def test_a_set_made_by_fgbg_tells_how_its_depth_is_stored(tmp_path, where, depth_format):
    held = pinned(depth_format=depth_format, depth=depth_info())
    codec = DepthCodec(held.recipe, held.depth)
    stored = np.repeat(np.linspace(0, 9000, 8).astype(np.uint16), 32)[None].repeat(16, 0)
    encoded = codec.encode(stored)
    folder = write_set(tmp_path / "set", [{"bytes": encoded, "path": None}])
    if where == "recipe.json":
        (folder / "recipe.json").write_text(held.to_json())
    else:
        import pyarrow.parquet as pq

        (path,) = folder.rglob("*.parquet")
        table = pq.read_table(path)
        made = {"recipe": held.recipe.to_dict(), "depth": asdict(held.depth)}
        metadata = {**table.schema.metadata, b"fgbg": json.dumps(made).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), path)
    depth_m = only_depth(folder)
    np.testing.assert_array_equal(depth_m, codec.decode(encoded).astype(np.float32) / 1000)
    assert np.abs(depth_m - stored / 1000).max() < 0.4
    assert (depth_m == 0).mean() == pytest.approx(1 / 8, abs=0.02)


def test_relative_depth_is_refused(tmp_path):
    folder = write_set(tmp_path / "set", [png(millimetres())])
    info = depth_info(kind="relative", quantity="inverse_depth", unit="", scale=10.0)
    (folder / "recipe.json").write_text(pinned(depth=info).to_json())
    with pytest.raises(TrainingError, match=r"is relative .* learns metres"):
        only_depth(folder)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "column 'depth' is empty"),
        ({"bytes": b"no picture", "path": None}, "cannot be read"),
        (png(np.zeros((4, 4, 3), np.uint16).astype(np.uint8)), "8 bits"),
    ],
)
def test_rows_that_can_not_be_used_are_told(tmp_path, value, sentence):
    folder = write_set(tmp_path / "set", [value])
    with pytest.raises(TrainingError, match=sentence):
        only_depth(folder)


def test_depth_of_three_channels_is_refused(tmp_path):
    folder = write_set(tmp_path / "set", [png(np.ones((4, 5, 3), np.uint8))])
    with pytest.raises(TrainingError, match=r"shape \(4, 5, 3\); depth must be one"):
        only_depth(folder, depth_scale=1)


def test_nearest_takes_the_pixel_under_the_centre():
    depth = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(nearest(depth, 3, 4), depth)
    np.testing.assert_array_equal(nearest(depth, 1, 2), [[5, 7]])
    np.testing.assert_array_equal(nearest(depth, 6, 8), depth.repeat(2, 0).repeat(2, 1))


def test_the_learning_rate_rises_straight_and_falls_like_a_cosine():
    rates = [learning_rate(step, 104, 1.0, 4) for step in range(104)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert rates[54] == pytest.approx(0.5)
    assert rates[29] == pytest.approx(0.5 + math.sqrt(0.5) / 2)
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, 1, 2.0, 0) == 2
    assert learning_rate(1, 2, 1.0, 10) == 0.2  # a run that ends on its way up


def network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    layers = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    layers[0].weight.requires_grad_(False)
    trained = [p for p in layers.parameters() if p.requires_grad]
    return layers, torch.optim.Adam(trained, 0.1)


def step(layers: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    pixels = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (layers(pixels) ** 3).sum().backward()
    optimizer.step()


def test_a_checkpoint_brings_model_optimizer_and_state_back(tmp_path):
    layers, optimizer = network()
    for seed in range(3):
        step(layers, optimizer, seed)
    path = tmp_path / "checkpoint.safetensors"
    (tmp_path / f".checkpoint.safetensors.{'1' * 16}.tmp").write_bytes(b"of a killed run")
    save_checkpoint(path, layers, optimizer, {"step": 3, "place": {"row": 24}})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert checkpoint_state(path) == {"step": 3, "place": {"row": 24}}
    others, other_optimizer = network()
    load_checkpoint(path, others, other_optimizer)
    for seed in (3, 4):
        step(layers, optimizer, seed)
        step(others, other_optimizer, seed)
    for value, other in zip(
        layers.state_dict().values(), others.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match="is not a checkpoint of this command"):
        checkpoint_state(path)
