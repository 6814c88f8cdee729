"""FgbgDataset from Python: Arrow, streaming, cache names, the parts of `datasets` it relies on."""

from __future__ import annotations

import inspect
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from builder.build.options import BuildOptions
from builder.record import hold_out
from fgbg_dataset import (
    BadSourcesError,
    FgbgDataset,
    NotABuildError,
    OutputError,
    Recipe,
    RecipeError,
    RecipeMismatchError,
    extend_build,
)
from tests.limits import HANG_S
from tests.pictures import blob, scene

RECIPE = {
    "placements": 2,
    "size": 48,
    "foreground_size": 24,
    "depth_model": "none",
    "shard_records": 20,
    "holdout": 0.3,
}
QUIET = BuildOptions(progress=False)


@pytest.fixture
def builder(sources, tmp_path):
    return FgbgDataset(*sources, **RECIPE, cache_dir=str(tmp_path / "cache"))


def test_default_is_arrow_in_the_cache_and_is_mapped(builder, tmp_path):
    builder.download_and_prepare(num_proc=1, options=QUIET)
    train = builder.as_dataset("train")
    assert train.num_rows == 36
    assert [f["filename"].endswith(".arrow") for f in train.cache_files] == [True, True]
    assert all(f["filename"].startswith(str(tmp_path)) for f in train.cache_files)
    assert train[0]["mask"].size == (48, 48)
    assert builder.as_dataset("train[:5]").num_rows == 5
    assert set(builder.as_dataset()) == {
        "train", "unseen_background", "unseen_foreground", "unseen_both"
    }  # fmt: skip


def test_a_new_builder_finds_what_an_earlier_one_made(builder, sources, tmp_path):
    builder.download_and_prepare(num_proc=1, options=QUIET)
    again = FgbgDataset(*sources, **RECIPE, cache_dir=str(tmp_path / "cache"))
    assert (
        again.as_dataset("train")["pixel_hash"][:] == builder.as_dataset("train")["pixel_hash"][:]
    )
    other = FgbgDataset(*sources, **{**RECIPE, "seed": 1}, cache_dir=str(tmp_path / "cache"))
    assert other.cache_dir != again.cache_dir


def test_changed_sources_get_another_cache(sources, tmp_path):
    foregrounds = tmp_path / "fg"
    shutil.copytree(sources[0], foregrounds)
    options = {**RECIPE, "cache_dir": str(tmp_path / "cache")}
    before = FgbgDataset(foregrounds, sources[1], **options).cache_dir
    assert FgbgDataset(foregrounds, sources[1], **options).cache_dir == before
    shutil.copy(foregrounds / "blob0.png", foregrounds / "blob1.png")
    assert FgbgDataset(foregrounds, sources[1], **options).cache_dir != before


def test_parquet_is_read_back_too(builder, tmp_path):
    builder.download_and_prepare(tmp_path / "out", file_format="parquet", num_proc=1, options=QUIET)
    assert builder.as_dataset("unseen_both").num_rows == 8
    assert set(builder.as_dataset()) == set(builder.plan.splits)


def test_streaming_makes_the_stored_records_in_the_stored_order(builder):
    builder.download_and_prepare(num_proc=1, options=QUIET)
    for split in builder.plan.splits:
        stored, streamed = builder.as_dataset(split), builder.as_streaming_dataset(split)
        for one, other in zip(stored, streamed, strict=True):
            assert one.keys() == other.keys()
            for column, value in one.items():
                same = np.array_equal if column in ("fg_bg", "mask") else lambda a, b: a == b
                assert same(value, other[column]), column


def test_streaming_needs_no_build_and_resumes(sources, tiny_model, tmp_path):
    builder = FgbgDataset(
        *sources,
        **{**RECIPE, "placements": 12, "depth_model": str(tiny_model), "depth_input": 64},
        cache_dir=str(tmp_path / "cache"),
    )
    stream = builder.as_streaming_dataset("train")
    assert stream.num_shards == 7  # 216 records in units of 32
    ids, state = [], None
    for number, row in enumerate(stream):
        assert row["depth"].mode == "I;16"
        ids.append(row["record_id"])
        if number == 69:
            state = stream.state_dict()
    resumed = builder.as_streaming_dataset("train")
    resumed.load_state_dict(state)
    assert [row["record_id"] for row in resumed] == ids[70:]
    assert len(set(ids)) == 216


def test_a_streaming_builder_can_be_sent_to_another_process(builder):
    next(iter(builder.as_streaming_dataset("train")))
    copy = pickle.loads(pickle.dumps(builder))
    one, other = (next(iter(b.as_streaming_dataset("train"))) for b in (builder, copy))
    assert one["pixel_hash"] == other["pixel_hash"]


def test_recipe_is_given_whole_or_by_field(sources, tmp_path):
    recipe = Recipe(**RECIPE)
    cache = str(tmp_path)
    one = FgbgDataset(*sources, recipe=recipe, cache_dir=cache)
    assert one.plan.pinned == FgbgDataset(*sources, **RECIPE, cache_dir=cache).plan.pinned
    with pytest.raises(RecipeError, match="give either recipe or seed, not both"):
        FgbgDataset(*sources, recipe=recipe, seed=1, cache_dir=cache)
    with pytest.raises(RecipeError, match="unknown recipe field colour; known are "):
        FgbgDataset(*sources, colour="red", cache_dir=cache)


def test_bad_sources_are_told_before_anything_is_written(sources, tmp_path):
    foregrounds = tmp_path / "fg"
    shutil.copytree(sources[0], foregrounds)
    (foregrounds / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    options = {**RECIPE, "cache_dir": str(tmp_path / "cache")}
    builder = FgbgDataset(foregrounds, sources[1], **options)
    with pytest.raises(BadSourcesError, match=r"fg/broken\.png: is "):
        builder.download_and_prepare(tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "fg"]
    patient = FgbgDataset(foregrounds, sources[1], skip_bad=True, **options)
    assert [name for name, _ in patient.project.pinned.skipped] == ["fg/broken.png"]


def test_an_output_that_holds_another_set_or_format_is_refused(builder, sources, tmp_path):
    out = tmp_path / "out"
    builder.download_and_prepare(out, file_format="parquet", num_proc=1, options=QUIET)
    with pytest.raises(OutputError, match="holds this set as parquet, asked for is arrow"):
        builder.download_and_prepare(out)
    other = FgbgDataset(*sources, **{**RECIPE, "seed": 5}, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(RecipeMismatchError, match="seed is 0, asked for is 5"):
        other.download_and_prepare(out, file_format="parquet")


def test_what_a_build_does_not_take_is_refused_first(builder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TypeError, match=r"does not use max_shard_size: .*shard_records"):
        builder.download_and_prepare(tmp_path / "new", max_shard_size=1)
    with pytest.raises(ValueError, match="file_format is 'json'"):
        builder.download_and_prepare(tmp_path / "new", file_format="json")
    assert builder._project is None  # not even the sources were read
    assert sorted(tmp_path.rglob("*")) == before


def test_as_dataset_before_and_after_a_failed_build_says_what_to_do(builder, tmp_path):
    with pytest.raises(NotABuildError, match="call download_and_prepare first"):
        builder.as_dataset("train")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "foreign").touch()
    with pytest.raises(OutputError):
        builder.download_and_prepare(tmp_path / "out", file_format="parquet", options=QUIET)
    with pytest.raises(NotABuildError, match=r"/out holds no finished set yet"):
        builder.as_dataset("train")


def test_building_reads_each_source_once_more_than_decoding_it(sources, tmp_path):
    """The name of the cache folder once hashed them all as well: minutes for 30 GB."""
    pictures = {str(p) for folder in sources for p in folder.iterdir() if p.suffix != ".csv"}
    program = (
        "import collections, sys\n"
        "from fgbg_dataset import FgbgDataset\n"
        "opened = collections.Counter()\n"
        "def hook(event, args):\n"
        "    if event == 'open': opened[str(args[0])] += 1\n"
        "sys.addaudithook(hook)\n"
        "builder = FgbgDataset(*sys.argv[1:3], depth_model='none', cache_dir=sys.argv[3])\n"
        "print(*(opened[path] for path in sys.argv[4:]))\n"
        "builder.project\n"
        "print(*(opened[path] for path in sys.argv[4:]))\n"
    )
    command = [sys.executable, "-c", program, *map(str, sources), str(tmp_path / "c"), *pictures]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG_S)
    made, prepared = (set(map(int, line.split())) for line in done.stdout.splitlines())
    assert made == {0}
    assert max(prepared) <= 3  # hashed, its header looked at, decoded


def test_another_set_at_the_same_path_is_not_taken_for_the_one_before(sources, tmp_path):
    """As in huggingface/datasets#2956: its cache knows files by path and time alone."""
    out, hashes = tmp_path / "out", []
    for seed in (0, 1):
        shutil.rmtree(out, ignore_errors=True)
        builder = FgbgDataset(*sources, **RECIPE, seed=seed, cache_dir=str(tmp_path / "cache"))
        builder.download_and_prepare(out, file_format="parquet", num_proc=1, options=QUIET)
        for file in out.rglob("*.parquet"):
            os.utime(file, (1, 1))  # as in images of containers and packages that are reproducible
        hashes.append(builder.as_dataset("train")["pixel_hash"][:])
        stored = [table.to_pylist() for table in map(pq.read_table, out.glob("data/train-*"))]
        assert sorted(hashes[-1]) == sorted(r["pixel_hash"] for rows in stored for r in rows)
    assert set(hashes[0]).isdisjoint(hashes[1])


@pytest.fixture
def saved_again(tmp_path):
    """Folders in which each picture stands twice, the second time compressed in another way."""
    folders = tmp_path / "fg", tmp_path / "bg"
    for folder, make in zip(folders, (blob, scene), strict=True):
        folder.mkdir()
        for i in range(5):
            for name, level in (("a", 1), ("b", 9)):
                make(i, 60, 60).save(folder / f"{i}{name}.png", compress_level=level)
    return folders


def sides(entries):
    """By picture, on which sides of the split its two files are."""
    found = {}
    for entry in entries:
        found.setdefault(entry.id[0], set()).add(entry.held_out)
    return found


def test_a_picture_that_was_saved_again_is_on_one_side_of_the_split(saved_again, tmp_path):
    for seed in range(8):
        builder = FgbgDataset(*saved_again, **RECIPE, seed=seed, cache_dir=str(tmp_path / "cache"))
        for entries in (builder.project.pinned.foregrounds, builder.project.pinned.backgrounds):
            assert all(len(which) == 1 for which in sides(entries).values())
            assert set.union(*sides(entries).values()) == {True, False}
        assert len(builder.project.duplicates) == 10


def test_a_set_that_parted_such_files_is_made_again_and_extended_as_it_was(saved_again, tmp_path):
    options = {"cache_dir": str(tmp_path / "cache")}
    pinned = FgbgDataset(*saved_again, **RECIPE, **options).project.pinned
    kinds = ("foregrounds", "backgrounds")
    parted = replace(pinned, **{k: hold_out(getattr(pinned, k), 0.3, 0) for k in kinds})
    assert any(len(which) == 2 for which in sides(parted.foregrounds).values())
    again = FgbgDataset(*saved_again, recipe=parted.recipe, repeats=parted, **options)
    assert again.project.pinned.fingerprint == parted.fingerprint

    whole = pinned
    scene(0, 60, 60).save(saved_again[1] / "0c.bmp")
    grown = FgbgDataset(*saved_again, recipe=whole.recipe, earlier=whole, **options).project.pinned
    assert grown.backgrounds[:-1] == whole.backgrounds
    assert len(sides(grown.backgrounds)["0"]) == 1


def test_a_folder_whose_name_is_a_pattern_is_loaded(builder, tmp_path):
    out = tmp_path / "set [a-b] * ? {c,d} #1 %20"
    builder.download_and_prepare(out, file_format="parquet", num_proc=1, options=QUIET)
    assert builder.as_dataset("train").num_rows == 36
    assert set(builder.as_dataset()) == set(builder.plan.splits)


def test_a_finished_set_with_a_damaged_info_is_refused_in_a_sentence(builder, tmp_path):
    out = tmp_path / "out"
    builder.download_and_prepare(out, file_format="parquet", num_proc=1, options=QUIET)
    for content in (b"{", b"[]", b"\xff", b'{"features": 3}', b'{"splits": [1]}'):
        (out / "dataset_info.json").write_bytes(content)
        with pytest.raises(NotABuildError, match=r"out/dataset_info\.json cannot be read"):
            builder.download_and_prepare(out, file_format="parquet", options=QUIET)
    (out / "dataset_info.json").unlink()
    os.mkfifo(out / "dataset_info.json")
    with pytest.raises(NotABuildError, match=r"out/dataset_info\.json cannot be read"):
        builder.download_and_prepare(out, file_format="parquet", options=QUIET)


def test_a_set_is_extended_by_one_call(builder, sources, tmp_path):
    out, more = tmp_path / "out", tmp_path / "bg"
    builder.download_and_prepare(out, file_format="parquet", num_proc=1, options=QUIET)
    more.mkdir()
    scene(50, 90, 90).save(more / "fresh.jpg")
    extended = extend_build(sources[0], more, out, num_proc=1, options=QUIET)
    assert extended.plan.n_records == 4 * 6 * 2 * 2
    assert sum(split.num_rows for split in extended.as_dataset().values()) == 4 * 6 * 2 * 2


@pytest.mark.parametrize("place", ["a file", "~"])
def test_a_cache_that_cannot_be_made_hinders_only_what_needs_it(
    sources, tmp_path, monkeypatch, place
):
    (tmp_path / "file").touch()
    cache = str(tmp_path / "file" / "cache") if place == "a file" else "~/.cache/x"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.chdir(tmp_path)
    if place == "~":  # what a user without a home has
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    builder = FgbgDataset(*sources, **RECIPE)
    with pytest.raises(OutputError, match="pass output_dir or cache_dir, or set HF_HOME"):
        builder.download_and_prepare(options=QUIET)
    builder.download_and_prepare("out", file_format="parquet", num_proc=1, options=QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]
    with pytest.raises(OutputError, match=r"cannot be written"):
        FgbgDataset(*sources, **RECIPE, cache_dir=str(tmp_path / "file" / "cache"))


def test_what_we_use_of_datasets_is_still_there():
    """Override points and attributes that only the library's source promises."""
    base = datasets.GeneratorBasedBuilder
    assert list(inspect.signature(base._download_and_prepare).parameters)[:3] == [
        "self", "dl_manager", "verification_mode"
    ]  # fmt: skip
    prepare = inspect.signature(datasets.DatasetBuilder._prepare_split).parameters
    assert {"split_generator", "file_format"} <= set(prepare)
    source = inspect.getsource(datasets.DatasetBuilder)
    for name in ("_output_dir", "_cache_dir", "_file_format"):
        assert f"self.{name}" in source
    from datasets.arrow_writer import get_parquet_column_options

    assert list(inspect.signature(get_parquet_column_options).parameters) == ["features", "schema"]
