"""FgbgDataset from Python: Arrow, streaming, cache names, the parts of `datasets` it leans on."""

from __future__ import annotations

import inspect
import pickle
import shutil

import datasets
import numpy as np
import pytest

from builder.build.engine import BuildOptions
from fgbg_dataset import (
    BadSourcesError,
    FgbgDataset,
    OutputError,
    Recipe,
    RecipeError,
    RecipeMismatchError,
)

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
    with pytest.raises(RecipeError, match="max_shard_size is not used here"):
        builder.download_and_prepare(tmp_path / "new", max_shard_size=1)


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
