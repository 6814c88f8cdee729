"""encoding: every other reader decodes our bytes to the pixels that we encoded."""

from __future__ import annotations

import io
import struct
import zlib
from decimal import Decimal
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from builder.recipe import Recipe
from builder.record.encoding import (
    DepthCodec,
    decode_image,
    decode_instances,
    encode_image,
    encode_instances,
    encode_mask,
)
from builder.untrusted import Unreadable
from tests.pictures import scene
from tests.strategies import depth_info

Array = npt.NDArray[Any]


def by_pillow(data: bytes) -> Array:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def by_opencv(data: bytes) -> Array:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return image[..., ::-1] if image.ndim == 3 else image


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Split a PNG by the letter of its specification, checking each CRC."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (length,), kind = struct.unpack_from(">I", data, at), data[at + 4 : at + 8]
        content = data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length)[0] == zlib.crc32(kind + content)
        chunks.append((kind, content))
        at += 12 + length
    return chunks


def photo(width: int = 61, height: int = 47) -> Array:
    return np.asarray(scene(4, width, height))


# --- composites -----------------------------------------------------------------------------


def test_jpeg_is_444_of_the_asked_quality_and_decodes_as_in_pillow() -> None:
    recipe = Recipe(image_quality=83)
    data = encode_image(photo(), recipe)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (61, 47))
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3
        tables = image.quantization
    again = io.BytesIO()
    Image.fromarray(photo()).save(again, "JPEG", quality=83, subsampling="4:4:4")
    assert tables == Image.open(again).quantization
    np.testing.assert_array_equal(np.asarray(decode_image(data, recipe)), by_pillow(data))
    np.testing.assert_array_equal(by_opencv(data), by_pillow(data))


@pytest.mark.parametrize("quality", [60, 90, 100])
def test_jpeg_loses_no_more_than_pillows_encoder(quality: int) -> None:
    data = encode_image(photo(), Recipe(image_quality=quality))
    again = io.BytesIO()
    Image.fromarray(photo()).save(again, "JPEG", quality=quality, subsampling="4:4:4")
    ours, pillows = (
        np.abs(by_pillow(encoded).astype(int) - photo()).mean()
        for encoded in (data, again.getvalue())
    )
    assert ours < 1.05 * pillows


def test_png_composites_are_exact_in_every_reader() -> None:
    recipe = Recipe(image_format="png")
    data = encode_image(photo(), recipe)
    for read in (by_pillow, by_opencv):
        np.testing.assert_array_equal(read(data), photo())
    np.testing.assert_array_equal(np.asarray(decode_image(data, recipe)), photo())


def test_webp_decodes_as_in_pillow_and_obeys_quality() -> None:
    recipe, coarse = (Recipe(image_format="webp", image_quality=q) for q in (95, 10))
    data = encode_image(photo(), recipe)
    assert data[8:12] == b"WEBP"
    np.testing.assert_array_equal(np.asarray(decode_image(data, recipe)), by_pillow(data))
    assert np.abs(by_pillow(data).astype(int) - photo()).mean() < 6
    assert len(encode_image(photo(), coarse)) < len(data) / 2


@pytest.mark.parametrize("image_format", ["jpeg", "webp", "png"])
def test_equal_pixels_are_equal_bytes(image_format: str) -> None:
    recipe = Recipe(image_format=image_format)
    assert encode_image(photo(), recipe) == encode_image(photo().copy(), recipe)


# --- masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 7, 8, 9, 224])
def test_masks_are_one_bit_and_exact_in_every_reader(width: int) -> None:
    rng = np.random.default_rng(width)
    mask = np.where(rng.random((13, width)) < 0.5, 255, 0).astype(np.uint8)
    data = encode_mask(mask)
    kinds, contents = zip(*png_chunks(data), strict=True)
    assert kinds == (b"IHDR", b"IDAT", b"IEND")
    assert contents[0] == struct.pack(">IIBBBBB", width, 13, 1, 0, 0, 0, 0)
    row_bytes = -(-width // 8)
    assert len(zlib.decompress(contents[1])) == 13 * (1 + row_bytes)
    np.testing.assert_array_equal(by_opencv(data), mask)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "1"
        np.testing.assert_array_equal(np.asarray(image.convert("L")), mask)


def test_the_mask_feature_of_datasets_gives_0_and_255() -> None:
    from datasets import Image as ImageFeature

    mask = np.zeros((9, 9), np.uint8)
    mask[2:5, 3:8] = 255
    image = ImageFeature(mode="L").decode_example({"bytes": encode_mask(mask), "path": None})
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), mask)


# --- depth, 16-bit PNG ----------------------------------------------------------------------


def every_value() -> Array:
    return np.arange(65536, dtype=np.uint16).reshape(256, 256)


def test_depth_of_no_precision_is_exact_between_near_and_far() -> None:
    codec = DepthCodec(Recipe(depth_precision=0), depth_info(100, 10_000))
    data = codec.encode(every_value())
    wanted = np.where(every_value() == 0, 0, np.clip(every_value(), 100, 10_000))
    assert png_chunks(data)[0][1] == struct.pack(">IIBBBBB", 256, 256, 16, 0, 0, 0, 0)
    np.testing.assert_array_equal(by_opencv(data), wanted)
    assert by_opencv(data).dtype == np.uint16
    np.testing.assert_array_equal(by_pillow(data).astype(int), wanted)
    np.testing.assert_array_equal(codec.decode(data), wanted)


@pytest.mark.parametrize(("near", "far"), [(100, 10_000), (1, 65535), (400, 401), (700, 700)])
def test_snapped_depth_is_the_nearest_of_the_grid(near: int, far: int) -> None:
    series, value = [near], Decimal(near)
    while (value := value * Decimal("1.01")) < far:
        series.append(round(value))
    grid = np.unique([*series, far])
    codec = DepthCodec(Recipe(), depth_info(near, far))
    got = by_opencv(codec.encode(every_value())).reshape(-1).astype(int)
    assert got[0] == 0
    assert set(got[1:].tolist()) == set(grid.tolist())
    clipped = np.clip(np.arange(1, 65536), near, far)
    off = np.abs(got[1:] - clipped)
    assert (off <= clipped * 0.005 + 1).all()  # half a per cent and the rounding
    some = np.random.default_rng(0).choice(65535, 2000, replace=False)
    np.testing.assert_array_equal(off[some], np.abs(grid[:, None] - clipped[some]).min(axis=0))


def test_snapping_twice_changes_nothing() -> None:
    codec = DepthCodec(Recipe(), depth_info())
    once = codec.decode(codec.encode(every_value()))
    np.testing.assert_array_equal(codec.decode(codec.encode(once)), once)


@pytest.mark.parametrize("fields", [{}, {"depth_precision": 0}, {"depth_format": "jpeg8"}])
def test_the_shorter_way_gives_what_decoding_gives(fields: dict[str, Any]) -> None:
    codec = DepthCodec(Recipe(**fields), depth_info())
    noise = np.random.default_rng(0).integers(0, 65536, (50, 70)).astype(np.uint16)
    for depth in (every_value(), noise, noise[:, ::-1]):
        data = codec.encode(depth)
        np.testing.assert_array_equal(codec.decode(data), codec.stored(by_pillow(data)))
        np.testing.assert_array_equal(codec.as_decoded(depth, data), codec.decode(data))
        assert codec.as_decoded(depth, data).dtype.newbyteorder("=") == np.uint16


def test_depth_in_metres_is_nan_where_unknown() -> None:
    codec = DepthCodec(Recipe(depth_precision=0), depth_info())
    metres = codec.metres(np.array([[0, 100, 2500]], np.uint16))
    assert metres.dtype == np.float32
    np.testing.assert_array_equal(metres, np.array([[np.nan, 0.1, 2.5]], np.float32))


@given(st.integers(1, 300), st.integers(0, 65535), st.integers(0, 2**32 - 1))
def test_any_depth_survives_in_shape_type_and_unknown(near: int, more: int, seed: int) -> None:
    far = min(near + more, 65535)
    rng = np.random.default_rng(seed)
    depth = rng.integers(0, 65536, rng.integers(1, 40, 2)).astype(np.uint16)
    depth[rng.random(depth.shape) < 0.3] = 0
    got = DepthCodec(Recipe(), depth_info(near, far)).decode(
        DepthCodec(Recipe(), depth_info(near, far)).encode(depth)
    )
    assert (got.shape, got.dtype) == (depth.shape, np.uint16)
    np.testing.assert_array_equal(got == 0, depth == 0)
    assert ((got == 0) | ((got >= near) & (got <= far))).all()


# --- depth, logarithmic JPEG ----------------------------------------------------------------


def jpeg8(near: int = 400, far: int = 10_000) -> DepthCodec:
    return DepthCodec(Recipe(depth_format="jpeg8"), depth_info(near, far))


def test_the_log_code_is_one_grey_jpeg_and_one_scale_for_all() -> None:
    """Code 16 is near, 255 is far, equal ratios between; below 8 is unknown, up to 16 near."""
    codec = jpeg8()
    codes = np.arange(256, dtype=np.uint8)[None]
    wanted = 400 * (10_000 / 400) ** ((np.arange(16, 256) - 16) / 239)
    got = codec.stored(codes)[0].astype(int)
    assert got[:8].tolist() == [0] * 8
    assert got[8:17].tolist() == [400] * 9
    assert np.abs(got[16:] - wanted).max() <= 0.5 + 1e-9
    with Image.open(io.BytesIO(codec.encode(np.full((9, 5), 900, np.uint16)))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (5, 9))


def test_flat_depth_returns_as_the_nearest_code() -> None:
    codec = jpeg8()
    step = (10_000 / 400) ** (1 / 239) - 1
    for depth_mm in (400, 1234, 5000, 10_000):
        flat = np.full((32, 32), depth_mm, np.uint16)
        got = codec.decode(codec.encode(flat)).astype(int)
        assert np.abs(got - depth_mm).max() <= depth_mm * step + 1


def test_smooth_depth_stays_within_three_per_cent() -> None:
    y, x = np.mgrid[0:224, 0:224]
    depth = (400 * 25 ** ((x + y) / 446)).round().astype(np.uint16)
    off = np.abs(jpeg8().decode(jpeg8().encode(depth)).astype(float) / depth - 1)
    assert off.max() < 0.03
    assert off.mean() < 0.006


def test_a_whole_unknown_region_stays_unknown_and_known_stays_known() -> None:
    depth = np.full((64, 64), 3000, np.uint16)
    depth[16:48, 24:56] = 0  # whole JPEG blocks
    got = jpeg8().decode(jpeg8().encode(depth))
    np.testing.assert_array_equal(got == 0, depth == 0)


def test_unknown_depth_of_any_shape_mostly_stays_unknown() -> None:
    y, x = np.mgrid[0:224, 0:224]
    depth = np.where(np.hypot(x - 100, y - 90) < 50, 0, 400 + 20 * x).astype(np.uint16)
    got = jpeg8().decode(jpeg8().encode(depth))
    assert ((got == 0) & (depth > 0)).sum() == 0
    assert ((got > 0) & (depth == 0)).sum() < 0.02 * (depth == 0).sum()


def test_out_of_range_depth_is_clipped() -> None:
    codec = jpeg8()
    for value, wanted in ((1, 400), (65535, 10_000)):
        got = codec.decode(codec.encode(np.full((16, 16), value, np.uint16)))
        assert (np.abs(got.astype(int) - wanted) <= wanted * 0.014).all()


def test_metres_of_jpeg8() -> None:
    metres = jpeg8().metres(np.array([[0, 7, 8, 16, 255]], np.uint8))
    np.testing.assert_array_equal(metres, np.array([[np.nan, np.nan, 0.4, 0.4, 10]], np.float32))


def test_instances_are_read_from_any_png_of_theirs_and_from_nothing_else() -> None:
    """Large pictures are refused by their header, and PostScript never reaches Ghostscript."""
    instances = np.arange(81, dtype=np.uint8).reshape(9, 9)
    pictures = {}
    for name, pixels, kind in (
        ("ours", instances, "PNG"),
        ("large", np.zeros((5000, 5000), np.uint8), "PNG"),
        ("other size", instances[:8], "PNG"),
        ("lossy", instances, "WEBP"),
        ("colours", np.zeros((9, 9, 3), np.uint8), "PNG"),
    ):
        Image.fromarray(pixels).save(pictures.setdefault(name, io.BytesIO()), kind)
    np.testing.assert_array_equal(decode_instances(pictures.pop("ours").getvalue(), 9), instances)
    np.testing.assert_array_equal(decode_instances(encode_instances(instances), 9), instances)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    for data in (eps, *(picture.getvalue() for picture in pictures.values())):
        with pytest.raises(Unreadable):
            decode_instances(data, 9)
