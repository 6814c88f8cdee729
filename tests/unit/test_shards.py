"""shards: files as `datasets` writes them, whole or not at all, and their commit records."""

from __future__ import annotations

import errno
import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.arrow_writer import ParquetWriter
from PIL import Image

from builder import typed
from builder.build.shards import Commit, is_done, read_commit, sealed, write_shard
from builder.errors import NewerVersionError
from builder.files import create_bytes, write_text
from builder.pinned import PinnedRecipe
from builder.recipe import Recipe
from builder.record.encoder import Encoder
from builder.record.encoding import DepthCodec
from builder.record.plan import Plan
from builder.record.render import Record, Renderer
from builder.record.stats import Statistics
from builder.schema import features, record_columns, source_columns
from builder.sources.prepare import Source, SourceBank, prepare
from builder.sources.stored import read_sources, write_sources
from tests.strategies import depth_info

NAME = "train-00000-of-00001"


@pytest.fixture(scope="module")
def prepared(sources: tuple[Path, Path]) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    recipe = Recipe(size=48, foreground_size=20)
    return (
        prepare(sources[0], "foreground", recipe).sources,
        prepare(sources[1], "background", recipe).sources,
    )


Prepared = tuple[tuple[Source, ...], tuple[Source, ...]]


def pinned_of(prepared: Prepared, depth: bool = True, **fields: Any) -> PinnedRecipe:
    values = {"size": 48, "foreground_size": 20, "placements": 6, "holdout": 0}
    recipe = Recipe(**{**values, "depth_model": "demo" if depth else "none", **fields})
    return PinnedRecipe(
        recipe=recipe,
        foregrounds=tuple(source.entry for source in prepared[0]),
        backgrounds=tuple(source.entry for source in prepared[1]),
        depth=depth_info() if depth else None,
    )


def records(held: PinnedRecipe, prepared: Prepared, count: int = 240) -> Iterator[Record]:
    """The first records of the set, with a depth made of their ids, unknown in a corner."""
    rendered = Renderer(Plan(held), SourceBank(*prepared), None).records("train", 0, count)
    for record in rendered:
        if held.depth:
            rng = np.random.default_rng(record.record_id)
            depth = rng.integers(100, 10_001, (48, 48)).astype(np.uint16)
            depth[:9, :9] = 0
            yield replace(record, depth=depth)
        else:
            yield record


def written(folder: Path, held: PinnedRecipe, prepared: Prepared, **options: Any) -> Commit:
    file_format = options.pop("file_format", "parquet")
    return write_shard(folder, NAME, file_format, held, records(held, prepared), **options)


def stored(folder: Path, file_format: str = "parquet") -> Path:
    """The file of the shard in a folder."""
    (path,) = folder.glob(f"{NAME}.*.{file_format}")
    return path


# --- rows -----------------------------------------------------------------------------------


def test_a_row_says_what_the_record_is_and_decodes_to_its_pixels(prepared: Prepared) -> None:
    held = pinned_of(prepared, image_format="png", depth_precision=0)
    for record in records(held, prepared, 5):
        row = Encoder(held).row(record)
        assert list(row) == [column.name for column in record_columns(held.recipe)]
        images = {
            name: np.asarray(Image.open(io.BytesIO(row[name]["bytes"])))
            for name in ("fg_bg", "mask", "depth")
        }
        np.testing.assert_array_equal(images["fg_bg"], record.fg_bg)
        np.testing.assert_array_equal(images["mask"], record.mask > 0)
        np.testing.assert_array_equal(images["depth"], record.depth)
        assert {row[name]["path"] for name in images} == {None}
        plain = {name: value for name, value in row.items() if name not in images}
        beside = (*images, "scene", "canvas", "changed")
        wanted = {k: v for k, v in asdict(record).items() if k not in beside}
        wanted |= {"bbox": list(record.bbox), "pixel_hash": record.pixel_hash}
        assert plain == {**wanted, "coverage": pytest.approx(record.coverage, rel=1e-7)}


def test_the_statistics_of_a_shard_are_those_of_its_decoded_pixels(
    tmp_path: Path, prepared: Prepared
) -> None:
    held = pinned_of(prepared)
    commit = written(tmp_path, held, prepared)
    rows = pq.read_table(stored(tmp_path)).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(r["fg_bg"]["bytes"]))) for r in rows])
    masks = np.stack([np.asarray(Image.open(io.BytesIO(r["mask"]["bytes"]))) for r in rows])
    depths = np.stack([np.asarray(Image.open(io.BytesIO(r["depth"]["bytes"]))) for r in rows])
    got = Statistics.from_json(commit.statistics)
    assert got.rows == commit.rows == len(rows) == 240
    for channel in range(3):
        wanted = np.bincount(pixels[..., channel].reshape(-1), minlength=256)
        np.testing.assert_array_equal(got.tallies["fg_bg"].counts[channel], wanted)
    assert got.tallies["mask"].channel(0).total == 255 * int(masks.sum())
    wanted = np.bincount(depths.reshape(-1), minlength=65536)
    np.testing.assert_array_equal(got.tallies["depth"].counts[0], wanted)
    assert got.tallies["depth"].counts[0, 0] == 240 * 81
    for i, summary in enumerate(got.tallies["bbox"].summaries()):
        assert summary.total == sum(row["bbox"][i] for row in rows)
    assert got.size_bytes == {
        name: sum(len(row[name]["bytes"]) for row in rows) for name in ("fg_bg", "mask", "depth")
    }


# --- Parquet --------------------------------------------------------------------------------


def by_datasets(path: Path, held: PinnedRecipe, prepared: Prepared) -> pq.ParquetFile:
    """The same rows written by the writer of `datasets` itself."""
    encoder = Encoder(held)
    with ParquetWriter(
        path=str(path), features=features(record_columns(held.recipe)), writer_batch_size=100
    ) as writer:
        for record in records(held, prepared):
            writer.write(encoder.row(record))
        writer.finalize()
    return pq.ParquetFile(path)


@pytest.mark.parametrize("depth", [True, False])
def test_a_parquet_shard_is_laid_out_as_datasets_does(
    tmp_path: Path, prepared: Prepared, depth: bool
) -> None:
    held = pinned_of(prepared, depth)
    written(tmp_path, held, prepared)
    ours = pq.ParquetFile(stored(tmp_path))
    theirs = by_datasets(tmp_path / "theirs.parquet", held, prepared)
    assert ours.schema_arrow.equals(theirs.schema_arrow, check_metadata=False)
    assert ours.schema.equals(theirs.schema)
    assert ours.read().equals(theirs.read())
    assert ours.metadata.num_row_groups == theirs.metadata.num_row_groups == 3
    for group in range(3):
        for column in range(ours.metadata.num_columns):
            mine, other = (file.metadata.row_group(group).column(column) for file in (ours, theirs))
            for name in (
                "path_in_schema", "physical_type", "compression", "encodings", "num_values",
                "has_offset_index", "has_column_index", "total_uncompressed_size",
            ):  # fmt: skip
                assert getattr(mine, name) == getattr(other, name), name
    assert [ours.metadata.row_group(i).num_rows for i in range(3)] == [100, 100, 40]


def test_pictures_are_stored_plain_and_indexed(tmp_path: Path, prepared: Prepared) -> None:
    held = pinned_of(prepared)
    written(tmp_path, held, prepared)
    group = pq.ParquetFile(stored(tmp_path)).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in ("fg_bg.bytes", "mask.bytes", "depth.bytes"):
        assert columns[name].compression == "UNCOMPRESSED"
        assert "PLAIN" in columns[name].encodings
        assert not columns[name].has_dictionary_page
    assert columns["foreground_id"].compression == "SNAPPY"
    assert all(column.has_offset_index for column in columns.values())


def test_the_files_metadata_carries_features_recipe_and_depth(
    tmp_path: Path, prepared: Prepared
) -> None:
    held = pinned_of(prepared)
    written(tmp_path, held, prepared)
    theirs = by_datasets(tmp_path / "theirs.parquet", held, prepared).schema_arrow.metadata
    metadata = pq.read_schema(stored(tmp_path)).metadata
    mine, by_them = (json.loads(one[b"huggingface"])["info"] for one in (metadata, theirs))
    bbox = by_them["features"]["bbox"]
    assert bbox["_type"] == "List"
    assert mine == {"features": {**by_them["features"], "bbox": {**bbox, "_type": "Sequence"}}}
    assert json.loads(metadata[b"fgbg"]) == {
        "fingerprint": held.fingerprint,
        "recipe": held.recipe.to_dict(),
        "depth": typed.stored(depth_info()),
    }


def test_the_files_metadata_declares_content_defined_chunking(
    tmp_path: Path, prepared: Prepared
) -> None:
    held = pinned_of(prepared)
    written(tmp_path, held, prepared)
    theirs = by_datasets(tmp_path / "theirs.parquet", held, prepared).metadata.metadata
    ours = pq.read_metadata(stored(tmp_path)).metadata
    assert ours[b"content_defined_chunking"] == theirs[b"content_defined_chunking"]


def test_every_byte_before_the_footer_is_what_datasets_writes(
    tmp_path: Path, prepared: Prepared
) -> None:
    """Pages, their content-defined borders and both page indexes."""
    held = pinned_of(prepared)
    written(tmp_path, held, prepared)
    by_datasets(tmp_path / "theirs.parquet", held, prepared)
    bodies = []
    for path in (stored(tmp_path), tmp_path / "theirs.parquet"):
        data = path.read_bytes()
        assert data[-4:] == b"PAR1"
        bodies.append(data[: -8 - int.from_bytes(data[-8:-4], "little")])
    assert bodies[0] == bodies[1]


def test_a_shard_without_a_pixel_of_known_depth_is_named(
    tmp_path: Path, prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    held = pinned_of(prepared)
    some = list(records(held, prepared))
    write_shard(tmp_path, "train-known", "parquet", held, some)
    assert not caplog.records
    none = [replace(record, depth=np.zeros_like(record.depth)) for record in some]
    write_shard(tmp_path, "train-none", "parquet", held, none)
    assert "train-none has no pixel of known depth" in caplog.text


def test_load_dataset_gives_the_records_back(tmp_path: Path, prepared: Prepared) -> None:
    held = pinned_of(prepared, image_format="png")
    written(tmp_path, held, prepared)
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train")
    assert loaded.features == features(record_columns(held.recipe))
    codec = DepthCodec(held.recipe, depth_info())
    for row, record in zip(loaded, records(held, prepared), strict=True):
        np.testing.assert_array_equal(np.asarray(row["fg_bg"]), record.fg_bg)
        np.testing.assert_array_equal(np.asarray(row["mask"]), record.mask)
        off = np.abs(codec.stored(row["depth"]).astype(int) - record.depth)
        assert (off <= record.depth * 0.005 + 1).all()
        assert row["pixel_hash"] == record.pixel_hash


# --- Arrow ----------------------------------------------------------------------------------


def test_an_arrow_shard_is_a_stream_that_datasets_maps(tmp_path: Path, prepared: Prepared) -> None:
    held = pinned_of(prepared)
    written(tmp_path, held, prepared)
    written(tmp_path, held, prepared, file_format="arrow")
    path = stored(tmp_path, "arrow")
    with pa.memory_map(str(path)) as file:
        stream = pa.ipc.open_stream(file)
        table = stream.read_all()
    assert table.equals(pq.read_table(stored(tmp_path)))
    assert json.loads(table.schema.metadata[b"fgbg"])["fingerprint"] == held.fingerprint
    loaded = datasets.Dataset.from_file(str(path))
    assert loaded.features == features(record_columns(held.recipe))
    assert loaded[7]["fg_bg"].size == (48, 48)


# --- commit records -------------------------------------------------------------------------


def test_a_commit_record_says_what_the_file_is(tmp_path: Path, prepared: Prepared) -> None:
    held = pinned_of(prepared)
    ticks: list[int] = []
    commit = written(tmp_path, held, prepared, progress=ticks.append)
    data = stored(tmp_path).read_bytes()
    assert (commit.shard, commit.rows, commit.size_bytes) == (NAME, 240, len(data))
    assert commit.sha256 == hashlib.sha256(data).hexdigest()
    assert commit.fingerprint == held.fingerprint
    assert read_commit(tmp_path, NAME) == commit
    assert ticks == [100, 100, 40]
    names = {f"{NAME}.{commit.sha256[:16]}.parquet", f"{NAME}.json"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
@pytest.mark.parametrize("depth", [True, False])
def test_equal_records_are_equal_bytes(
    tmp_path: Path, prepared: Prepared, file_format: str, depth: bool
) -> None:
    held = pinned_of(prepared, depth)
    commits = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        commits.append(written(tmp_path / name, held, prepared, file_format=file_format))
    assert commits[0] == commits[1]
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two


@pytest.fixture
def done(tmp_path: Path, prepared: Prepared) -> tuple[Path, str]:
    held = pinned_of(prepared, depth=False)
    written(tmp_path, held, prepared)
    return tmp_path, held.fingerprint


def test_a_whole_shard_is_done(done: tuple[Path, str]) -> None:
    folder, fingerprint = done
    assert is_done(folder, NAME, "parquet", fingerprint)
    assert not is_done(folder, NAME, "arrow", fingerprint)
    assert not is_done(folder, "train-00001-of-00001", "parquet", fingerprint)
    assert not is_done(folder, NAME, "parquet", "0" * 64)


@pytest.mark.parametrize("at", [0, 5000, -1])
def test_one_flipped_bit_is_not_done(done: tuple[Path, str], at: int) -> None:
    path = stored(done[0])
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert not is_done(*done[:1], NAME, "parquet", done[1])


def test_a_truncated_longer_or_missing_file_is_not_done(done: tuple[Path, str]) -> None:
    path = stored(done[0])
    data = path.read_bytes()
    for content in (data[:-1], data + b"\0", b""):
        path.write_bytes(content)
        assert not is_done(done[0], NAME, "parquet", done[1])
    path.unlink()
    assert not is_done(done[0], NAME, "parquet", done[1])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"shard": "x"}', "\x00", '"x"'])
def test_a_damaged_or_missing_commit_record_is_not_done(done: tuple[Path, str], text: str) -> None:
    record = done[0] / f"{NAME}.json"
    record.write_text(text)
    assert read_commit(done[0], NAME) is None
    assert not is_done(done[0], NAME, "parquet", done[1])
    record.unlink()
    assert not is_done(done[0], NAME, "parquet", done[1])


def test_a_commit_record_that_lacks_a_field_or_has_a_wrong_one_is_not_done(
    done: tuple[Path, str],
) -> None:
    record = done[0] / f"{NAME}.json"
    content = {k: v for k, v in json.loads(record.read_text()).items() if k != "sealed"}
    fewer = {k: v for k, v in content.items() if k != "rows"}
    for edited in (fewer, {**content, "rows": "240"}, {**content, "sha256": "../../x"}):
        record.write_text(sealed(edited))
        assert not is_done(done[0], NAME, "parquet", done[1])


def test_a_commit_record_of_a_newer_version_is_not_made_again(done: tuple[Path, str]) -> None:
    record = done[0] / f"{NAME}.json"
    content = {k: v for k, v in json.loads(record.read_text()).items() if k != "sealed"}
    record.write_text(sealed({**content, "more": 1}))
    with pytest.raises(NewerVersionError, match=r"a field 'more'"):
        is_done(done[0], NAME, "parquet", done[1])


def test_a_digit_changed_in_a_commit_record_is_found(done: tuple[Path, str]) -> None:
    record = done[0] / f"{NAME}.json"
    text = record.read_text()
    digits = [at for at, letter in enumerate(text) if letter.isdigit()]
    for at in digits[:: len(digits) // 50]:  # statistics, rows, sha256: all of it
        record.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])
        assert read_commit(done[0], NAME) is None
    record.write_text(text)
    assert is_done(done[0], NAME, "parquet", done[1])


# --- atomic writing -------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [True, False])
@pytest.mark.parametrize("at", [0, 50, 150, 239])
def test_a_failure_midway_leaves_nothing(
    tmp_path: Path, prepared: Prepared, at: int, depth: bool
) -> None:
    held = pinned_of(prepared, depth)

    def failing() -> Iterator[Record]:
        for i, record in enumerate(records(held, prepared)):
            if i == at:
                raise RuntimeError("the model fell over")
            yield record

    with pytest.raises(RuntimeError, match=r"^the model fell over$"):
        write_shard(tmp_path, NAME, "parquet", held, failing())
    assert list(tmp_path.iterdir()) == []
    assert not is_done(tmp_path, NAME, "parquet", held.fingerprint)


def test_a_failure_while_remaking_keeps_the_earlier_file(
    done: tuple[Path, str], prepared: Prepared
) -> None:
    before = {path.name: path.read_bytes() for path in done[0].iterdir()}
    held = pinned_of(prepared, depth=False, seed=1)

    def failing() -> Iterator[Record]:
        yield from records(held, prepared, 120)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(done[0], NAME, "parquet", held, failing())
    assert {path.name: path.read_bytes() for path in done[0].iterdir()} == before


def test_a_file_without_its_commit_record_changes_nothing(
    done: tuple[Path, str], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As after a kill between the two, or while another build makes the same shard."""
    held, other = pinned_of(prepared, depth=False, seed=1), tmp_path_factory.mktemp("other")
    written(other, held, prepared)
    stored(other).rename(done[0] / stored(other).name)
    assert is_done(done[0], NAME, "parquet", done[1])
    assert not is_done(done[0], NAME, "parquet", held.fingerprint)


def test_a_file_is_created_by_one_of_many_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    with ThreadPoolExecutor(8) as pool:
        contents = [f"{i}".encode() * 1000 for i in range(64)]
        created = list(pool.map(lambda content: create_bytes(path, content), contents))
    assert created.count(True) == 1
    assert path.read_bytes() == contents[created.index(True)]
    assert [p.name for p in tmp_path.iterdir()] == ["claim"]


def test_a_file_is_created_once_without_hard_links_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)  # as on exFAT
    assert create_bytes(tmp_path / "claim", b"one")
    assert not create_bytes(tmp_path / "claim", b"two")
    assert (tmp_path / "claim").read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["claim"]


def test_a_folder_that_is_gone_is_an_os_error(tmp_path: Path, prepared: Prepared) -> None:
    with pytest.raises(FileNotFoundError):
        written(tmp_path / "gone", pinned_of(prepared, depth=False), prepared)


def test_write_text_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    write_text(path, "one\nä\n")
    assert path.read_bytes() == "one\nä\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "two\n\ud800")
    assert path.read_bytes() == "one\nä\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.json"]


# --- sources --------------------------------------------------------------------------------


def test_prepared_sources_survive_their_file(tmp_path: Path, prepared: Prepared) -> None:
    for kind, some in zip(("foregrounds", "backgrounds"), prepared, strict=True):
        path = tmp_path / f"{kind}.parquet"
        write_sources(path, "foreground", Recipe(), some)
        again = read_sources(path)
        assert tuple(again) == some
        for one, other in zip(again, some, strict=True):
            np.testing.assert_array_equal(one.pixels(), other.pixels())
    assert {source.entry.author for source in prepared[0]} == {"Ann", ""}


def test_prepared_sources_load_as_a_dataset_of_their_own(
    tmp_path: Path, prepared: Prepared
) -> None:
    write_sources(tmp_path / "train.parquet", "foreground", Recipe(), prepared[0])
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train")
    assert loaded.features == features(source_columns("foreground", Recipe()))
    assert loaded["id"][:] == [source.entry.id for source in prepared[0]]
    for row, source in zip(loaded, prepared[0], strict=True):
        assert row["image"].mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(row["image"]), source.pixels())
