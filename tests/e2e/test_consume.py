"""A set on the Hub loads, streams, projects, splits and resumes as its card and the docs say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from fgbg_dataset import FgbgDataset, PinnedRecipe
from tests.e2e.hub import Hub, serve
from tests.limits import HANG_S

ROOT = Path(__file__).parents[2]

# What every script below begins with: loaders of the local folder to compare with.
BEGIN = """
import itertools, json, os, sys, time
import numpy as np
from datasets import Image, load_dataset

FOLDER, REPO = sys.argv[1:]

def undecoded(ds):
    for column in ("fg_bg", "mask", "depth"):
        if column in ds.features:
            ds = ds.cast_column(column, Image(decode=False))
    return ds

def rows(ds):
    strip = lambda v: v["bytes"] if isinstance(v, dict) else v
    return [{k: strip(v) for k, v in row.items()} for row in undecoded(ds)]

def same_batches(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other):
        assert a.keys() == b.keys() == {"pixel_values", "mask", "depth_m"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])

HERE = load_dataset(FOLDER)
"""


@pytest.fixture(scope="module")
def hub(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    with serve(folder) as server:
        server.put_folder("ann/blobs", built)
        (folder / "other").mkdir()
        (folder / "other" / "README.md").write_text("# Nothing of ours\n")
        server.put_folder("ann/other", folder / "other")
        yield server


def run(script: str, hub: Hub, built: Path, home: Path) -> str:
    """Run a script as a user would, knowing only the server; return its output."""
    env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}
    path = home / "script.py"
    home.mkdir(exist_ok=True)
    path.write_text(f"{BEGIN}\n{script}")
    command = [sys.executable, "-W", "error", str(path), str(built), "ann/blobs"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=HANG_S, cwd=ROOT, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def python_blocks(text: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


LOADED = """
sets = load_dataset(REPO)
assert list(sets) == list(HERE)
for name in sets:
    assert rows(sets[name]) == rows(HERE[name])
for config in ("foregrounds", "backgrounds"):
    one, other = (load_dataset(place, config, split="train") for place in (REPO, FOLDER))
    assert len(one) == len(other) > 3
    assert one.column_names == other.column_names
    for a, b in zip(one, other):
        assert np.array_equal(a.pop("image"), b.pop("image"))
        assert a == b
"""

STREAMED = """
def streamed(**options):
    return load_dataset(REPO, split="train", streaming=True, **options)

wanted = rows(HERE["train"])
assert rows(streamed()) == wanted

projected = streamed(columns=["mask", "bbox"])
assert rows(projected) == [{k: row[k] for k in ("mask", "bbox")} for row in wanted]

from datasets.distributed import split_dataset_by_node
parts = [split_dataset_by_node(streamed(), r, 2, strategy="shards") for r in range(2)]
assert sorted(r["record_id"] for p in parts for r in p) == sorted(r["record_id"] for r in wanted)
assert min(len(list(part)) for part in parts) > 20

# The trap, and the calls that avoid it: how long `datasets` would sleep.
slept = []
time.sleep = lambda seconds: slept.append(seconds)
ids = lambda rows: [row["record_id"] for row in rows]
shuffled = streamed().shuffle(seed=0, buffer_size=1000, max_buffer_input_shards=1)
assert sorted(ids(shuffled)) == sorted(ids(wanted)) != ids(shuffled)

def in_epoch(epoch):
    stream = streamed()
    stream.set_epoch(epoch)
    return stream

orders = [ids(in_epoch(epoch)) for epoch in range(4)]
assert orders[0] == ids(wanted)
assert any(order != orders[0] for order in orders)
assert all(sorted(order) == sorted(orders[0]) for order in orders)
assert sum(slept) < 1, slept
list(streamed().shuffle(seed=0, buffer_size=1000))
assert sum(slept) >= 5, slept

for epoch, stop in ((0, 1), (3, 30), (3, 41)):
    stream = in_epoch(epoch)
    seen = ids(itertools.islice(stream, stop))
    state = json.loads(json.dumps(stream.state_dict()))
    again = in_epoch(epoch)
    again.load_state_dict(state)
    assert seen + ids(again) == orders[epoch]
"""

READ = """
from fgbg_dataset import FgbgError, NotABuildError, RecordReader
from torch.utils.data import DataLoader

reader, here = RecordReader.of(REPO), RecordReader.of(FOLDER)
assert (reader.mean == here.mean).all() and (reader.std == here.std).all()
assert RecordReader.of(REPO, revision="main").pinned == here.pinned

wanted = [here.collate([row]) for row in HERE["train"]]
whole = {k: np.concatenate([batch[k] for batch in wanted]) for k in wanted[0]}
for streaming in (False, True):
    dataset = load_dataset(REPO, split="train", streaming=streaming)
    for workers in (0, 2):
        options = {"batch_size": 16, "num_workers": workers, "collate_fn": reader.collate}
        fast, slow = (DataLoader(ds, **options) for ds in (reader.undecoded(dataset), dataset))
        batches = list(fast)
        same_batches(batches, slow)
        got = {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}
        for name in got:  # workers of a stream take files in turns
            key = lambda values: sorted(value.tobytes() for value in values)
            assert key(got[name]) == key(whole[name]), name

for source, error, text in (
    ("ann/nothing", FgbgError, "'ann/nothing' is neither a folder here nor on the Hub"),
    ("no/such/folder", FgbgError, "'no/such/folder' is neither a folder here nor the id of a"),
    ("ann/other", NotABuildError, "'ann/other' was not made by fgbg: it has no recipe.json or no"),
):
    try:
        RecordReader.of(source)
    except error as problem:
        assert text in str(problem), problem
    else:
        raise AssertionError(source)
try:
    RecordReader.of(REPO, revision="v9")
except FgbgError as problem:
    assert "has no revision 'v9' on the Hub" in str(problem)
"""


def test_a_set_on_the_hub_is_the_built_folder(hub, built, tmp_path):
    # In one process: importing takes longer than all the rest. The last one replaces time.sleep.
    run(LOADED + READ + STREAMED, hub, built, tmp_path / "home")


def test_the_code_in_the_card_runs(hub, built, tmp_path):
    card = hub.read("ann/blobs", "README.md").decode()
    code = python_blocks(card.split("## Use")[1].split("## Columns")[0])
    assert code.count('load_dataset("blobs"') == 4
    code = code.replace('"blobs"', '"ann/blobs"')
    check = """
assert row["fg_bg"].size == row["mask"].size == row["depth"].size == (64, 64)
assert len(cutouts) == 4 and cutouts[0]["image"].mode == "RGBA"
assert set(next(iter(masks))) == {"mask", "bbox"}
assert 0 < len(list(part)) < len(ds)
assert batch["pixel_values"].shape[1:] == (3, 64, 64) and batch["mask"].shape[1:] == (1, 64, 64)
assert 0.1 <= np.nanmin(depth) < np.nanmax(depth) <= 10
np.testing.assert_array_equal(depth, reader.metres(row["depth"]))
"""
    run(code + check, hub, built, tmp_path / "home")


def test_the_code_in_the_readme_and_on_training_runs(hub, built, sources, tmp_path):
    page = (ROOT / "docs" / "training.md").read_text().split("## A complete example\n")[0]
    readme = (ROOT / "README.md").read_text().split("## Use it\n")[1].split("\n## ")[0]
    code = python_blocks(readme) + "\n" + python_blocks(page)
    assert code.count('"ann/mine"') == 8
    recipe: dict[str, Any] = {"placements": 2, "size": 64, "foreground_size": 24,
                              "depth_model": "none", "cache_dir": str(tmp_path)}  # fmt: skip
    begin = f"""
from fgbg_dataset import FgbgDataset
builder = FgbgDataset(*{[str(folder) for folder in sources]!r}, **{recipe!r})
"""
    check = """
assert row["fg_bg"].size == row["mask"].size == row["depth"].size == (64, 64)
assert batch.keys() == {"pixel_values", "mask"}
assert metres.shape == unknown.shape == (64, 64) and not unknown.any()
assert set(next(iter(masks))) == {"mask", "bbox"}
assert set(ds.with_transform(reader.collate)[0]) == {"pixel_values", "mask"}
"""
    run(begin + code.replace('"ann/mine"', '"ann/blobs"') + check, hub, built, tmp_path / "home")


def test_records_made_on_the_fly_are_the_stored_ones_to_the_byte(built, sources, tmp_path):
    recipe = PinnedRecipe.from_json((built / "recipe.json").read_text()).recipe
    builder = FgbgDataset(*sources, recipe=recipe, cache_dir=str(tmp_path))
    reader = builder.reader()
    for split, stream in builder.as_streaming_dataset().items():
        stored = reader.undecoded(load_dataset(str(built), split=split))
        assert list(reader.undecoded(stream)) == list(stored)
