"""Records made on the fly: epochs, exact resume, nodes and workers, the fast stream of arrays."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from builder.build.options import BuildOptions
from builder.record.composition import pixel_hash
from builder.record.plan import random_words
from builder.streaming import units_of
from fgbg_dataset import FgbgDataset
from tests.limits import HANG_S

RECIPE: dict[str, Any] = {
    "placements": 8,
    "size": 48,
    "foreground_size": 24,
    "depth_model": "none",
    "shard_records": 50,
    "holdout": 0.3,
}
N_TRAIN = 144  # 3 foregrounds x 3 backgrounds x 2 flips x 8 places: 5 units of at most 32


@pytest.fixture
def builder(sources, tmp_path):
    return FgbgDataset(*sources, **RECIPE, cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def stream(builder):
    return builder.as_array_stream("train")


def ids(rows: Iterable[dict[str, Any]]) -> list[int]:
    return [row["record_id"] for row in rows]


def places(rows: Iterable[dict[str, Any]]) -> dict[int, tuple[int, ...]]:
    return {row["record_id"]: tuple(row["bbox"]) for row in rows}


def loaded(stream: Any, workers: int) -> list[dict[str, Any]]:
    return list(itertools.chain(*DataLoader(stream, 16, num_workers=workers, collate_fn=list)))


# --- random words -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 7, 2**63 + 1, 2**64 - 1])
def test_words_are_those_of_a_philox_made_for_the_record(seed):
    for record_id, epoch in itertools.product((0, 1, 2**62 - 1), (0, 1, 2**40)):
        philox = np.random.Philox(
            key=np.array([seed, record_id], np.uint64),
            counter=np.array([0, epoch, 0, 0], np.uint64),
        )
        assert random_words(seed, record_id, epoch) == philox.random_raw(2).tolist()
    assert random_words(seed, 5) == random_words(seed, 5, 0) != random_words(seed, 5, 1)


def test_threads_do_not_mix_up_their_words():
    numbers = range(4000)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda n: random_words(3, n, n % 3), numbers, chunksize=1))
    assert drawn == [random_words(3, n, n % 3) for n in numbers]


# --- the stream of arrays ---------------------------------------------------------------------


def test_arrays_are_the_stored_records_before_encoding(builder, stream):
    builder.download_and_prepare(num_proc=1, options=BuildOptions(progress=False))
    stored = builder.as_dataset("train")
    rows = list(stream)
    assert len(rows) == len(stored) == N_TRAIN
    for row, kept in zip(rows, stored, strict=True):
        assert row.keys() == kept.keys() - {"pixel_hash"}
        assert (row["fg_bg"].shape, row["fg_bg"].dtype) == ((48, 48, 3), np.uint8)
        assert (row["mask"].shape, row["mask"].dtype) == ((48, 48), np.uint8)
        assert pixel_hash(row["fg_bg"], row["mask"]) == kept["pixel_hash"]
        np.testing.assert_array_equal(row["mask"], np.asarray(kept["mask"]))
        for column in row.keys() - {"fg_bg", "mask"}:
            assert row[column] == kept[column], column


def test_a_dict_of_all_splits_and_no_other_split(builder):
    streams = builder.as_array_stream()
    assert {name: len(list(stream)) for name, stream in streams.items()} == {
        name: split.n_records for name, split in builder.plan.splits.items()
    }
    with pytest.raises(ValueError, match=r"no split 'train\[:5\]'; there are train, unseen_back"):
        builder.as_array_stream("train[:5]")


def test_the_reader_makes_batches_of_arrays(builder, stream):
    reader = builder.reader()
    batch = reader.collate(list(stream.take(3)))
    assert set(batch) == {"pixel_values", "mask"}
    row = next(iter(stream))
    pixels = row["fg_bg"].transpose(2, 0, 1) / 255
    wanted = (pixels - reader.mean[:, None, None]) / reader.std[:, None, None]
    np.testing.assert_allclose(batch["pixel_values"][0], wanted, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(batch["mask"][0, 0] * 255, row["mask"])


def test_mean_and_std_before_and_after_the_build(builder, stream):
    before = builder.reader()
    pixels = np.stack([row["fg_bg"] for row in stream]).reshape(-1, 3) / 255
    np.testing.assert_allclose(before.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(before.std, pixels.std(0), rtol=1e-12)
    builder.download_and_prepare(num_proc=1, options=BuildOptions(progress=False))
    decoded = np.stack([row["fg_bg"] for row in builder.as_dataset("train")]).reshape(-1, 3) / 255
    after = builder.reader()
    np.testing.assert_allclose(after.mean, decoded.mean(0), rtol=1e-12)
    np.testing.assert_allclose(after.std, decoded.std(0), rtol=1e-12)
    assert (before.mean != after.mean).all()  # JPEG


# --- epochs -----------------------------------------------------------------------------------


def test_an_epoch_places_anew_the_same_combinations(builder, stream):
    stored = list(stream)
    stream.set_epoch(3)
    fresh = list(stream)
    assert sorted(ids(fresh)) == sorted(ids(stored))
    assert ids(fresh) != ids(stored)
    old, new = places(stored), places(fresh)
    moved = sum(old[record_id] != new[record_id] for record_id in old)
    assert moved > 0.95 * N_TRAIN
    for row in fresh[:5]:
        what = builder.plan.combination(row["record_id"])
        assert row["foreground_id"] == builder.plan.pinned.foregrounds[what.foreground].id
        assert row["background_id"] == builder.plan.pinned.backgrounds[what.background].id
        assert row["flipped"] == what.flipped
        x, y, width, height = row["bbox"]
        assert row["mask"][y : y + height, x : x + width].any()
    assert places(stream) == new  # the same epoch again
    stream.set_epoch(4)
    assert places(stream) != new
    stream.set_epoch(0)
    assert ids(stream) == ids(stored)
    assert places(stream) == old


def test_encoded_rows_have_epochs_too(builder, stream):
    encoded = builder.as_streaming_dataset("train")
    for epoch in (0, 2):
        encoded.set_epoch(epoch)
        stream.set_epoch(epoch)
        assert places(encoded) == places(stream)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_every_worker_count_gives_the_same_records_of_an_epoch(stream, workers, epoch):
    """Epochs 1 and 2 are numbers of workers too, which `datasets` passes on the same way."""
    stream.set_epoch(epoch)
    rows = loaded(stream, workers)
    assert len(rows) == N_TRAIN
    assert places(rows) == places(stream)


def test_workers_that_stay_see_the_next_epoch(stream):
    loader = DataLoader(stream, 16, num_workers=2, persistent_workers=True, collate_fn=list)
    for epoch in (0, 1, 2):
        stream.set_epoch(epoch)
        assert places(itertools.chain(*loader)) == places(stream)


@pytest.mark.parametrize("epoch", [0, 1])
def test_nodes_share_the_records_of_an_epoch(stream, epoch):
    stream.set_epoch(epoch)
    wanted = places(stream)
    for strategy, workers in itertools.product(("auto", "shards"), (0, 2)):
        nodes = [split_dataset_by_node(stream, r, 2, strategy=strategy) for r in range(2)]
        for node in nodes:
            node.set_epoch(epoch)
        rows = [loaded(node, workers) for node in nodes]
        assert len(rows[0]) + len(rows[1]) == N_TRAIN
        assert min(map(len, rows)) >= N_TRAIN // 3
        assert places(rows[0] + rows[1]) == wanted


def test_shuffling_moves_no_foreground_and_keeps_epochs(stream):
    shuffled = stream.shuffle(seed=5, buffer_size=1)
    assert ids(shuffled) != ids(stream)
    assert places(shuffled) == places(stream)
    for view in (shuffled, stream.map(lambda row: row), stream.skip(0), stream.filter(bool)):
        for epoch in (1, 0):
            view.set_epoch(epoch)
            stream.set_epoch(epoch)
            assert places(view) == places(stream)


def test_one_node_of_a_shard_of_a_worker_of_an_epoch(stream):
    """All of it at once, with a first draw of workers equal to the epoch."""
    part = stream.shard(2, 0).shuffle(seed=1, buffer_size=1)
    node = split_dataset_by_node(part, 0, 2)
    for epoch in (1, 2):
        node.set_epoch(epoch)
        stream.set_epoch(epoch)
        assert places(loaded(node, 2)).items() <= places(stream).items()


# --- resume -----------------------------------------------------------------------------------


@pytest.fixture
def counted(builder, monkeypatch):
    """How many records each renderer has composed."""
    from builder.record.render import Renderer

    made: list[int] = []
    compose = Renderer.compose

    def counting(self: Renderer, record_id: int, epoch: int = 0) -> Any:
        made.append(record_id)
        return compose(self, record_id, epoch)

    monkeypatch.setattr(Renderer, "compose", counting)
    return made


@pytest.mark.parametrize("kind", ["as_array_stream", "as_streaming_dataset"])
@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("shuffled", [False, True])
def test_resume_is_exact_and_costs_next_to_nothing(builder, counted, kind, epoch, shuffled):
    # `shuffle` interleaves ten units, and looks one row ahead in each.
    again = 2 * 10 if shuffled else 0

    def fresh() -> Any:
        stream = getattr(builder, kind)("train")
        stream = stream.shuffle(seed=3, buffer_size=1) if shuffled else stream
        stream.set_epoch(epoch)
        return stream

    wanted = [(row["record_id"], row["bbox"]) for row in fresh()]
    got, state = [], None
    for stop in (1, 32, 50, 96, 143, 1000):  # killed after so many rows, resumed, killed ...
        stream = fresh()
        if state is not None:
            stream.load_state_dict(json.loads(json.dumps(state)))
        counted.clear()
        before = len(got)
        for row in itertools.islice(stream, stop - len(got)):
            got.append((row["record_id"], row["bbox"]))
            state = stream.state_dict()
        assert 0 <= len(counted) - (len(got) - before) <= again
    assert got == wanted


def test_units_cover_a_split_and_stay_few():
    for n in (1, 31, 32, 33, 1_600_000, 1_600_001, 10**7):
        units = units_of(n)
        assert [start for start, _ in units] == [0, *[stop for _, stop in units[:-1]]]
        assert units[-1][1] == n
        assert len(units) <= 50_000
        assert all(stop - start >= 32 for start, stop in units[:-1])


def test_what_datasets_tells_its_streams_is_what_we_use():
    """It shifts by the epoch, unless that is 0, and then in a worker by the worker's number."""
    from datasets.iterable_dataset import ExamplesIterable, IterableDataset

    calls: list[tuple[str, int]] = []

    class Told(ExamplesIterable):
        def shift_rngs(self, value):
            calls.append(("shift", value))
            return self

        def shuffle_data_sources(self, generator):
            calls.append(("shuffle", generator.bit_generator.seed_seq.entropy))
            return self

    told = IterableDataset(Told(lambda units: ((n, {"n": n}) for n in units), {"units": [1, 2]}))
    assert [row["n"] for row in told] == [1, 2]
    assert calls == []
    told.set_epoch(7)
    assert [row["n"] for row in told] == [1, 2]
    assert calls == [("shuffle", 7), ("shift", 7)]
    assert issubclass(datasets.IterableDataset, IterableDataset)
    state = told.state_dict()
    assert state["epoch"] == 7
    assert state["examples_iterable"]["shard_idx"] == 2


# --- streams as data sets -----------------------------------------------------------------------


@pytest.fixture
def stored(builder, tmp_path):
    """The stored set, streamed from its files."""
    out = tmp_path / "set"
    options = BuildOptions(progress=False)
    builder.download_and_prepare(out, file_format="parquet", num_proc=1, options=options)
    return datasets.load_dataset(str(out), split="train", streaming=True)


def pixels(row: dict[str, Any]) -> tuple[bytes, bytes]:
    return np.asarray(row["fg_bg"]).tobytes(), np.asarray(row["mask"]).tobytes()


def test_rows_without_depth_are_those_of_the_set_without_that_column(sources, tiny_model, tmp_path):
    """Leaving depth out once changed rows to arrays."""
    recipe = {**RECIPE, "placements": 1, "depth_model": str(tiny_model), "depth_input": 64}
    builder = FgbgDataset(*sources, **recipe, cache_dir=str(tmp_path))
    whole, part = (
        builder.as_streaming_dataset("unseen_both", with_depth=depth) for depth in (True, False)
    )
    assert part.column_names == [name for name in whole.column_names if name != "depth"]
    rows = list(whole)
    assert [row["depth"].mode for row in rows] == ["I;16"] * len(rows)
    assert [{**row, "depth": one["depth"]} for row, one in zip(part, rows, strict=True)] == rows


def test_several_splits_are_one_stream(builder):
    splits = builder.as_array_stream()
    both = builder.as_array_stream("unseen_both + unseen_background")
    assert ids(both) == ids(splits["unseen_both"]) + ids(splits["unseen_background"])
    assert sorted(ids(builder.as_streaming_dataset("all"))) == list(range(builder.plan.n_records))
    both.set_epoch(1)
    state = next(both.state_dict() for _ in both)
    again = builder.as_array_stream("unseen_both+unseen_background")
    again.load_state_dict(state)
    assert ids(again) == ids(both)[1:]


@pytest.mark.parametrize("join", [datasets.interleave_datasets, datasets.concatenate_datasets])
@pytest.mark.parametrize("epoch", [0, 1])
def test_streams_of_arrays_join(builder, sources, tmp_path, join, epoch):
    """They had no features, and their arrays have none that `datasets` could guess."""
    other = FgbgDataset(*sources, **{**RECIPE, "seed": 9}, cache_dir=str(tmp_path / "other"))
    parts = [b.as_array_stream("unseen_both") for b in (builder, other)]
    joined = join(parts)
    assert joined.features == parts[0].features
    for stream in (joined, *parts):
        stream.set_epoch(epoch)
    rows, wanted = list(joined), [list(part) for part in parts]
    if join is datasets.interleave_datasets:
        wanted = [[row for pair in zip(*wanted, strict=True) for row in pair][:-1]]
    for row, due in zip(rows, itertools.chain(*wanted), strict=True):
        assert row.keys() == due.keys()
        assert all(np.array_equal(row[name], due[name]) for name in row)
        assert (row["fg_bg"].dtype, row["mask"].shape) == (np.uint8, (48, 48))


@pytest.mark.parametrize("first", ["stored", "made"])
def test_stored_and_made_records_mix(builder, stored, first):
    made = builder.as_streaming_dataset("train")
    pair = [stored, made] if first == "stored" else [made, stored]
    mixed = datasets.interleave_datasets(pair, probabilities=[0.5, 0.5], seed=3)
    mixed.set_epoch(1)
    made.set_epoch(1)
    kinds = {pixels(row): "stored" for row in stored} | {pixels(row): "made" for row in made}
    found = [kinds[pixels(row)] for row in mixed]
    assert min(found.count("stored"), found.count("made")) > N_TRAIN // 4
    made.set_epoch(0)
    both = datasets.concatenate_datasets(pair)
    assert [pixels(row) for row in both] == [pixels(row) for row in itertools.chain(*pair)]


def test_a_mix_resumes_at_the_next_record(builder, stored):
    def mixed() -> Any:
        pair = [builder.as_streaming_dataset("train"), stored]
        stream = datasets.interleave_datasets(pair, stopping_strategy="all_exhausted")
        stream.set_epoch(2)
        return stream

    wanted = [pixels(row) for row in mixed()]
    stream = mixed()
    got = [pixels(row) for row in itertools.islice(stream, 41)]
    state = json.loads(json.dumps(stream.state_dict()))
    rest = mixed()
    rest.load_state_dict(state)
    assert got + [pixels(row) for row in rest] == wanted


VIEWS = {
    "plain": lambda stream: stream,
    "shuffled": lambda stream: stream.shuffle(seed=1, buffer_size=4),
    "mapped": lambda stream: stream.map(lambda row: row),
    "filtered": lambda stream: stream.filter(lambda row: row["record_id"] % 2),
    "part": lambda stream: stream.skip(3).take(20).select_columns(["fg_bg", "mask", "bbox"]),
}


@pytest.mark.parametrize("view", VIEWS)
def test_torch_pictures_are_uint8(builder, view):
    """`datasets` makes int64 of every array of whole numbers."""
    for format_first in (True, False):
        for stream, shapes in (
            (builder.as_array_stream("train"), ((48, 48, 3), (48, 48))),
            (builder.as_streaming_dataset("train"), ((3, 48, 48), (1, 48, 48))),
        ):
            plain = next(iter(VIEWS[view](stream)))
            formatted = (
                VIEWS[view](stream.with_format("torch"))
                if format_first
                else VIEWS[view](stream).with_format("torch")
            )
            row = next(iter(formatted))
            assert (row["fg_bg"].dtype, row["mask"].dtype) == (torch.uint8, torch.uint8)
            assert (row["fg_bg"].shape, row["mask"].shape) == shapes
            assert row["bbox"].tolist() == plain["bbox"]
            picture = row["fg_bg"] if shapes[0][2] == 3 else row["fg_bg"].permute(1, 2, 0)
            np.testing.assert_array_equal(picture, np.asarray(plain["fg_bg"]))
    batch = next(formatted.iter(batch_size=5))
    assert (batch["fg_bg"].shape, batch["fg_bg"].dtype) == ((5, *shapes[0]), torch.uint8)


def test_torch_pictures_of_workers_and_of_joined_streams(builder):
    streams = [builder.as_array_stream(name).with_format("torch") for name in ("train", "all")]
    joined = datasets.concatenate_datasets(streams)
    for stream in (streams[0], joined):
        batch = next(iter(DataLoader(stream, 4, num_workers=1, multiprocessing_context="spawn")))
        assert (batch["fg_bg"].shape, batch["fg_bg"].dtype) == ((4, 48, 48, 3), torch.uint8)


def test_arrays_cost_no_encoding(builder, monkeypatch):
    """With features given, `datasets` would pass every row through its own encoding."""
    from datasets import Features

    calls: list[Any] = []
    monkeypatch.setattr(Features, "encode_example", lambda *row: calls.append(row))
    assert len(list(builder.as_array_stream("train"))) == N_TRAIN
    assert calls == []


# --- resuming in a new process ------------------------------------------------------------------

RESUMED = """
import itertools, json, sys
from fgbg_dataset import FgbgDataset

kind, view, epoch, start, stop, workers, *folders = sys.argv[1:]
recipe, state, epoch = json.load(sys.stdin), None, int(epoch)
recipe, state = recipe["recipe"], recipe["state"]


def main():
    stream = getattr(FgbgDataset(*folders[:2], **recipe, cache_dir=folders[2]), kind)("train")
    if view == "shuffled":
        stream = stream.shuffle(seed=4, buffer_size=1)
    loader = stream
    if int(workers):
        from torchdata.stateful_dataloader import StatefulDataLoader

        loader = StatefulDataLoader(stream, None, num_workers=int(workers))
    if state is None:
        stream.set_epoch(epoch)
    else:
        loader.load_state_dict(state)
    rows = []
    for row in itertools.islice(loader, int(stop) - int(start)):
        rows.append([int(row["record_id"]), [int(n) for n in row["bbox"]]])
    json.dump({"rows": rows, "state": loader.state_dict()}, sys.stdout)


if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("kind", "view", "workers"),
    [("as_array_stream", "plain", 0), ("as_streaming_dataset", "shuffled", 0),
     ("as_array_stream", "plain", 2)],
)  # fmt: skip
def test_a_new_process_goes_on_in_the_epoch_of_the_state(sources, tmp_path, kind, view, workers):
    """Nobody calls `set_epoch` there: the state alone says that the epoch is 2."""
    script = tmp_path / "resume.py"
    script.write_text(RESUMED)

    def process(start: int, stop: int, state: Any) -> dict[str, Any]:
        arguments = map(str, (kind, view, 2, start, stop, workers, *sources, tmp_path / "cache"))
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            input=json.dumps({"recipe": RECIPE, "state": state}),
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    builder = FgbgDataset(*sources, **RECIPE, cache_dir=str(tmp_path / "cache"))
    wanted = builder.as_array_stream("train")
    wanted.set_epoch(2)
    first = process(0, 50, None)
    second = process(50, 1000, first["state"])
    rows = [(record_id, tuple(bbox)) for record_id, bbox in first["rows"] + second["rows"]]
    assert len(rows) == N_TRAIN
    assert dict(rows) == places(wanted)


# --- what it says of itself ---------------------------------------------------------------------


def test_builder_and_reader_have_a_short_repr(builder, sources):
    text = repr(builder)
    assert text.startswith(f"FgbgDataset({str(sources[0])!r}, {str(sources[1])!r}, placements=8, ")
    assert "depth_model='none'" in text
    assert "seed" not in text  # as it is by default
    assert repr(builder.reader()).startswith("RecordReader(size=48, depth=None, mean=[0.")


def test_info_has_a_description_and_a_homepage(builder):
    assert "exact masks" in builder.info.description
    assert builder.info.homepage.startswith("https://")
    assert builder.as_array_stream("train").info.description == builder.info.description
