"""builder/batches: batches hold exactly the stored pixels, normalised, and metres."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from builder.layout import DataFile, Figures, shard_file, write_statistics
from builder.record.encoding import DepthCodec, encode_image, encode_mask
from builder.record.plan import Plan
from builder.record.stats import Statistics, Tally
from fgbg_dataset import NotABuildError, PinnedRecipe, RecordReader
from tests.pictures import scene
from tests.strategies import depth_info, pinned

Array = npt.NDArray[Any]
Row = dict[str, Any]
SIZE = 36
MEAN, STD = (0.5, 0.25, 0.4), (0.3, 0.2, 0.25)


def a_set(**fields: Any) -> PinnedRecipe:
    depth = None if fields.pop("no_depth", False) else depth_info()
    return pinned(depth=depth, size=SIZE, foreground_size=20, **fields)


SET = a_set()


def rows_of(set_: PinnedRecipe, n: int = 3) -> list[Row]:
    """Undecoded rows as a built set holds them, some depth unknown."""
    rng = np.random.default_rng(n)
    codec = DepthCodec(set_.recipe, set_.depth) if set_.depth else None
    rows = []
    for number in range(n):
        mask = np.where(rng.random((SIZE, SIZE)) < 0.4, 255, 0).astype(np.uint8)
        row: Row = {
            "record_id": number,
            "fg_bg": encode_image(np.asarray(scene(number, SIZE, SIZE)), set_.recipe),
            "mask": encode_mask(mask),
        }
        if codec:
            depth = rng.integers(100, 10_001, (SIZE, SIZE)).astype(np.uint16)
            depth[: SIZE // 2, :16] = 0
            row["depth"] = codec.encode(depth)
        rows.append({k: {"bytes": v, "path": None} if k != "record_id" else v
                     for k, v in row.items()})  # fmt: skip
    return rows


def decoded(rows: list[Row]) -> list[Row]:
    """The rows as `load_dataset` gives them: Pillow images."""

    def image(column: str, value: Any) -> Any:
        if column == "record_id":
            return value
        picture = Image.open(io.BytesIO(value["bytes"]))
        return picture.convert("L") if column == "mask" else picture

    return [{k: image(k, v) for k, v in row.items()} for row in rows]


def reader_of(set_: PinnedRecipe) -> RecordReader:
    return RecordReader(set_, MEAN, STD)


@pytest.mark.parametrize("image_format", ["jpeg", "webp", "png"])
@pytest.mark.parametrize("depth_format", ["png16", "jpeg8"])
def test_batches_equal_a_plain_recomputation_with_pillow(image_format, depth_format):
    set_ = a_set(image_format=image_format, depth_format=depth_format)
    rows = rows_of(set_)
    batch = reader_of(set_).collate(rows)
    assert {name: tuple(t.shape) for name, t in batch.items()} == {
        "pixel_values": (3, 3, SIZE, SIZE), "mask": (3, 1, SIZE, SIZE),
        "depth_m": (3, 1, SIZE, SIZE),
    }  # fmt: skip
    assert all(t.dtype.is_floating_point and t.is_contiguous() for t in batch.values())
    codec = DepthCodec(set_.recipe, set_.depth)
    for number, row in enumerate(decoded(rows)):
        pixels = np.asarray(row["fg_bg"]).transpose(2, 0, 1) / 255
        wanted = (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
        np.testing.assert_allclose(batch["pixel_values"][number], wanted, rtol=0, atol=2e-6)
        np.testing.assert_array_equal(batch["mask"][number, 0] * 255, np.asarray(row["mask"]))
        stored = codec.stored(row["depth"])
        metres = np.where(stored == 0, np.nan, stored / np.float32(1000))
        np.testing.assert_array_equal(batch["depth_m"][number, 0], metres)
        assert np.isnan(metres).any()
        assert np.nanmin(metres) >= 0.1


@pytest.mark.parametrize("depth_format", ["png16", "jpeg8"])
def test_rows_columns_images_arrays_and_bytes_give_one_batch(depth_format):
    set_ = a_set(depth_format=depth_format)
    reader, rows = reader_of(set_), rows_of(set_)
    pictures = decoded(rows)
    arrays = [
        {k: np.asarray(v) if k != "record_id" else v for k, v in row.items()} for row in pictures
    ]
    bare = [{k: v["bytes"] if k != "record_id" else v for k, v in row.items()} for row in rows]
    wanted = reader.collate(rows)
    for some in (pictures, arrays, bare):
        for form in (some, {k: [row[k] for row in some] for k in some[0]}):
            batch = reader.collate(form)
            assert batch.keys() == wanted.keys()
            for name, tensor in batch.items():
                np.testing.assert_array_equal(tensor, wanted[name])


def test_pictures_of_another_make_are_decoded_too():
    """PNG by Pillow (row filters, 8-bit masks), as a set that was written again may hold."""
    set_ = a_set()
    reader, rows = reader_of(set_), rows_of(set_)

    def again(picture: Image.Image) -> Row:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    other = [{k: again(v) for k, v in row.items() if k != "record_id"} for row in decoded(rows)]
    assert other[0]["mask"]["bytes"] != rows[0]["mask"]["bytes"]
    for name, tensor in reader.collate(other).items():
        np.testing.assert_array_equal(tensor, reader.collate(rows)[name])


def test_a_set_without_depth_has_no_depth_m():
    set_ = a_set(no_depth=True)
    reader = reader_of(set_)
    assert set(reader.collate(rows_of(set_))) == {"pixel_values", "mask"}
    with pytest.raises(ValueError, match="this set has no depth"):
        reader.metres(np.zeros((SIZE, SIZE), np.uint16))


def test_projected_columns_leave_depth_out():
    set_ = a_set()
    rows = [{k: row[k] for k in ("fg_bg", "mask")} for row in rows_of(set_)]
    assert set(reader_of(set_).collate(rows)) == {"pixel_values", "mask"}


def test_metres_and_unknown_of_every_form_of_a_depth():
    set_ = a_set(depth_precision=0)
    reader, codec = reader_of(set_), DepthCodec(set_.recipe, set_.depth)
    stored = np.full((SIZE, SIZE), 2500, np.uint16)
    stored[0, 0], stored[1, 1] = 0, 101
    encoded = codec.encode(stored)
    image = Image.open(io.BytesIO(encoded))
    for depth in (stored, stored.astype(np.int32), image, encoded, {"bytes": encoded}):
        metres = reader.metres(depth)
        assert metres.dtype == np.float32
        assert np.isnan(metres[0, 0])
        assert metres[1, 1] == np.float32(0.101)
        assert metres[2, 2] == np.float32(2.5)
        np.testing.assert_array_equal(reader.unknown(depth), stored == 0)


def without(rows: list[Row], column: str) -> list[Row]:
    return [{k: v for k, v in row.items() if k != column} for row in rows]


def changed(rows: list[Row], column: str, value: Any) -> list[Row]:
    return [rows[0], {**rows[1], column: value}, *rows[2:]]


SMALL = encode_image(np.zeros((20, 30, 3), np.uint8), a_set().recipe)
WRONG = {
    "nothing": (lambda r: [], "give a list of at least one row"),
    "a row alone": (lambda r: r[0]["mask"], "no column fg_bg and no mask; they have bytes, path"),
    "text": (lambda r: "train", "give a list of at least one row, or a dict"),
    "no mask": (lambda r: without(r, "mask"), "no column mask; they have record_id, fg_bg, depth"),
    "uneven rows": (lambda r: [*r, *without(r, "depth")], "some rows have no column 'depth'"),
    "uneven objects": (
        lambda r: [{**r[0], "objects": {}}, *r[1:]], "some rows have no column 'objects'"
    ),
    "uneven columns": (
        lambda r: {"fg_bg": [x["fg_bg"] for x in r], "mask": [r[0]["mask"]]},
        "different numbers of rows: fg_bg 3, mask 1",
    ),
    "cut jpeg": (
        lambda r: changed(r, "fg_bg", r[0]["fg_bg"]["bytes"][:-200]), "row 1 of the batch, fg_bg: "
    ),
    "damaged depth": (
        lambda r: changed(r, "depth", flipped(r[0]["depth"]["bytes"])), "row 1 of the batch, depth:"
    ),
    "no image": (lambda r: changed(r, "mask", b"hello"), "row 1 of the batch, mask: "),
    "empty": (lambda r: changed(r, "mask", {"bytes": None, "path": None}), "mask: it has no bytes"),
    "other size": (
        lambda r: changed(r, "fg_bg", SMALL),
        r"row 1 of the batch, fg_bg: .*30x20 px",
    ),
    "channels first": (
        lambda r: changed(r, "fg_bg", np.zeros((3, SIZE, SIZE), np.uint8)),
        r"its shape is \(3, 36, 36\), and this set's are \(36, 36, 3\); give rows as load_",
    ),
    "normalised": (
        lambda r: changed(r, "fg_bg", np.zeros((SIZE, SIZE, 3), np.float32)), "it is float32, "
    ),
    "mask of 0 and 1": (
        lambda r: changed(r, "mask", np.eye(SIZE, dtype=np.uint8)), "a mask holds 0 and 255 only"
    ),
    "depth of another size": (
        lambda r: changed(r, "depth", np.full((20, 30), 500, np.uint16)),
        r"depth: its shape is \(20, 30\), and this set's are \(36, 36\)",
    ),
    "depth in metres": (
        lambda r: changed(r, "depth", np.full((SIZE, SIZE), 2.0)), "it is float64, and depth of "
    ),
    "depth as a mask": (
        lambda r: changed(r, "depth", np.ones((SIZE, SIZE), bool)), "it is bool, and depth of this"
    ),
    "depth out of range": (
        lambda r: changed(r, "depth", np.full((SIZE, SIZE), 70_000)), "numbers from 0 to 65535"
    ),
    "None": (lambda r: changed(r, "fg_bg", None), "row 1 of the batch, fg_bg: its shape is "),
}  # fmt: skip


def flipped(encoded: bytes) -> bytes:
    at = len(encoded) // 2
    return encoded[:at] + bytes([encoded[at] ^ 16]) + encoded[at + 1 :]


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told(case):
    set_ = a_set()
    spoil, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        reader_of(set_).collate(spoil(rows_of(set_)))


@pytest.mark.parametrize("std", [(0.1, 0.2), (0.1, -0.1, 0.2), (0.1, np.nan, 0.2)])
def test_mean_and_std_are_three_numbers(std):
    with pytest.raises(ValueError, match="give three numbers each, and no std below 0"):
        RecordReader(a_set(), MEAN, std)


def test_a_channel_that_is_the_same_everywhere_is_normalised_to_0():
    """Its std of 0 once made the reader refuse the set."""
    set_ = a_set()
    flat = np.full((SIZE, SIZE, 3), 51, np.uint8)
    tally = Tally(256, 3)
    tally.add(flat)
    reader = RecordReader.counted(set_, tally)
    assert reader.std.tolist() == [1, 1, 1]
    batch = reader.collate([{**rows_of(set_)[0], "fg_bg": flat}])
    np.testing.assert_allclose(batch["pixel_values"], 0, atol=1e-7)


@settings(max_examples=300)
@given(st.sampled_from(["fg_bg", "mask", "depth"]), st.data())
def test_bytes_of_any_kind_are_a_value_error(column, data):
    """Decoders raise SyntaxError, struct.error and more; readers were promised ValueError."""
    row = rows_of(SET)[0]
    good = row[column]["bytes"]
    if data.draw(st.booleans()):
        start = data.draw(
            st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"RIFF", b"GIF89a", b""])
        )
        bad = start + data.draw(st.binary(max_size=60))
    else:
        at = data.draw(st.integers(0, len(good) - 1))
        bad = (
            good[:at] + data.draw(st.binary(max_size=9)) + good[at + data.draw(st.integers(0, 9)) :]
        )
    for read in (
        lambda: reader_of(SET).collate([{**row, column: bad}]),
        lambda: reader_of(SET).metres(bad),
    ):
        with contextlib.suppress(ValueError):
            read()


def test_large_or_foreign_pictures_are_refused_by_their_header() -> None:
    """Few bytes that would take gigabytes, and PostScript, for which Pillow runs a program."""
    row = rows_of(SET)[0]
    wide = np.zeros((5000, 5000), np.uint8)
    buffers = {}
    for kind in ("PNG", "WEBP", "JPEG"):
        Image.fromarray(wide).save(buffers.setdefault(kind, io.BytesIO()), kind)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 36 36\n%%EndComments\n"
    for data in (*(buffer.getvalue() for buffer in buffers.values()), eps):
        for column in ("fg_bg", "mask", "depth"):
            with pytest.raises(ValueError, match=rf"row 0 of the batch, {column}: "):
                reader_of(SET).decode([{**row, column: data}])
    jpeg8 = a_set(depth_format="jpeg8")
    with pytest.raises(ValueError, match="is 5000x5000 px"):
        reader_of(jpeg8).metres(buffers["JPEG"].getvalue())


# --- of a folder ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    set_, statistics = a_set(), Statistics(SIZE)
    statistics.tallies["fg_bg"].add(np.array([[0, 51, 255], [102, 51, 0]], np.uint8))
    statistics.tallies["fg_bg"].add(np.array([[0, 102, 0], [102, 102, 255]], np.uint8))
    (tmp_path / "recipe.json").write_text(set_.to_json())
    (tmp_path / "assets").mkdir()
    (split,) = Plan(set_).splits.values()
    file = DataFile(
        file=shard_file(split, 0, "parquet"), rows=split.n_records, size_bytes=1, sha256="0" * 64
    )
    write_statistics(tmp_path, set_.fingerprint, {split.name: Figures((file,), statistics)})
    return tmp_path


def test_mean_and_std_are_those_of_the_train_split(folder):
    reader = RecordReader.of(folder)
    np.testing.assert_allclose(reader.mean, [0.2, 0.3, 0.5], rtol=1e-15)
    np.testing.assert_allclose(reader.std, [0.2, 0.1, 0.5], rtol=1e-15)
    assert reader.pinned == a_set()
    np.testing.assert_array_equal(RecordReader.of(str(folder)).mean, reader.mean)


def test_a_folder_that_is_no_set_is_refused(folder, tmp_path):
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(NotABuildError, match=r"empty is not a finished build of fgbg: it has no"):
        RecordReader.of(empty)
    statistics = folder / "assets" / "statistics.json"
    content = json.loads(statistics.read_text())
    statistics.write_text(json.dumps({**content, "fingerprint": "0" * 64}))
    with pytest.raises(NotABuildError, match=r"it is of another set"):
        RecordReader.of(folder)
    statistics.write_text(json.dumps({"fingerprint": content["fingerprint"], "splits": {}}))
    with pytest.raises(NotABuildError, match=r"cannot be read \(it has other splits"):
        RecordReader.of(folder)


# --- with datasets ----------------------------------------------------------------------------


def as_dataset(set_: PinnedRecipe, rows: list[Row]) -> Any:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"record_id": Value("int64"), "fg_bg": ImageFeature(),
                         "mask": ImageFeature(mode="L"), "depth": ImageFeature()})  # fmt: skip
    return Dataset.from_dict({k: [row[k] for row in rows] for k in rows[0]}, features=features)


def test_undecoded_leaves_pictures_as_bytes_in_every_kind_of_set():
    from datasets import DatasetDict

    set_ = a_set()
    reader, rows = reader_of(set_), rows_of(set_)
    mapped = as_dataset(set_, rows)
    wanted = reader.collate(list(mapped))
    for dataset in (
        mapped,
        mapped.to_iterable_dataset(),
        mapped.select_columns(["mask", "fg_bg", "depth"]),
        DatasetDict(train=mapped)["train"],
    ):
        given = list(reader.undecoded(dataset))
        assert given[0]["mask"] == rows[0]["mask"]
        for name, tensor in reader.collate(given).items():
            np.testing.assert_array_equal(tensor, wanted[name])
    both = reader.undecoded(DatasetDict(train=mapped, unseen_both=mapped))
    assert both["unseen_both"][0]["fg_bg"] == rows[0]["fg_bg"]
    with pytest.raises(ValueError, match="none of the columns fg_bg, mask, depth"):
        reader.undecoded(mapped.select_columns("record_id"))


def test_collate_serves_loaders_transforms_and_map():
    from torch.utils.data import DataLoader

    set_ = a_set()
    reader, rows = reader_of(set_), rows_of(set_, 5)
    wanted = reader.collate(rows)
    dataset = reader.undecoded(as_dataset(set_, rows))

    def check(batches: Any) -> None:
        for name, tensor in wanted.items():
            got = np.concatenate([np.asarray(batch[name]) for batch in batches])
            np.testing.assert_array_equal(got, tensor)

    check(list(DataLoader(dataset, batch_size=2, collate_fn=reader.collate)))
    check(list(DataLoader(dataset.with_transform(reader.collate), batch_size=2)))
    stream = dataset.to_iterable_dataset()
    check(list(DataLoader(stream.batch(2), batch_size=None, collate_fn=reader.collate)))
    assert dataset.with_transform(reader.collate)[1]["mask"].shape == (1, SIZE, SIZE)
    columns = dataset.column_names
    streamed = stream.map(reader.collate, batched=True, batch_size=2, remove_columns=columns)
    check([{k: np.asarray(v)[None] for k, v in row.items()} for row in streamed])
