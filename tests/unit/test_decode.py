"""Where a file becomes pixels: its own bits, its transparency and its colours; the values are
computed here from the numbers that the standards publish."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from builder.sources.decode import Decoded, decode
from builder.sources.samples import BadImageError
from tests.pictures import ADOBE_RGB, encoded, icc, icc_gamma, icc_xyz, png, scene, tiff

SIDE = 16
Floats = npt.NDArray[np.float64]


def decoded(tmp_path: Path, data: bytes, kind: Any = "background", **options: Any) -> Decoded:
    path = tmp_path / "picture"
    path.write_bytes(data)
    return decode(path, kind, alone=True, **options)


def pixels(tmp_path: Path, data: bytes, kind: Any = "background") -> npt.NDArray[np.int64]:
    result = decoded(tmp_path, data, kind)
    assert result.image.info == {}
    return np.asarray(result.image).astype(np.int64)


def refusal(tmp_path: Path, data: bytes, kind: Any = "background") -> str:
    with pytest.raises(BadImageError) as caught:
        decoded(tmp_path, data, kind)
    return str(caught.value)


def noise(*shape: int, most: int = 255, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, most + 1, shape)


# --- colours --------------------------------------------------------------------------------

# IEC 61966-2-1: linear sRGB of XYZ (D65), and the curve.
XYZ_TO_SRGB = np.array(
    [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
)
# Adobe RGB (1998), 4.3.5.3: XYZ (D65) of linear Adobe RGB.
ADOBE_TO_XYZ = np.array(
    [[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]]
)
# SMPTE EG 432-1: XYZ (D65) of linear Display P3.
P3_TO_XYZ = np.array(
    [[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0.0, 0.04511, 1.04394]]
)


def coded(linear: Floats) -> Floats:
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def linear_srgb(values: npt.NDArray[Any]) -> Floats:
    share = np.asarray(values) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def from_adobe(values: npt.NDArray[Any]) -> Floats:
    return coded((values / 255) ** (563 / 256) @ (XYZ_TO_SRGB @ ADOBE_TO_XYZ).T)


COLOURS = noise(SIDE, SIDE, 3).astype(np.uint8)
COLOURS[0] = (60, 160, 60)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_adobe_rgb_becomes_srgb(tmp_path: Path, file_format: str) -> None:
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    if file_format == "JPEG":
        options = {"quality": 100, "subsampling": 0}
    data = encoded(Image.fromarray(COLOURS), file_format, icc_profile=ADOBE_RGB, **options)
    got = pixels(tmp_path, data)
    with Image.open(io.BytesIO(data)) as image:
        stored = np.asarray(image)
    assert np.abs(got - from_adobe(stored)).max() <= 1.1  # of rounding in matrix and curve
    if file_format != "JPEG":
        assert got[0, 0].tolist() == [0, 161, 47]
    assert decoded(tmp_path, data).intake == 2
    assert np.array_equal(decoded(tmp_path, data, as_before=True).image, stored)


def test_alpha_stays_as_it_is_beside_a_profile(tmp_path: Path) -> None:
    alpha = noise(SIDE, SIDE).astype(np.uint8)
    image = Image.fromarray(np.dstack([COLOURS, alpha]))
    got = pixels(tmp_path, encoded(image, "PNG", icc_profile=ADOBE_RGB), "foreground")
    assert np.array_equal(got[..., 3], alpha)
    assert np.abs(got[..., :3] - from_adobe(COLOURS)).max() <= 1.1


def test_a_palette_is_by_the_profile_too(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS).quantize(32)
    got = pixels(tmp_path, encoded(image, "PNG", icc_profile=ADOBE_RGB))
    assert np.abs(got - from_adobe(np.asarray(image.convert("RGB")))).max() <= 1.1


def test_a_profile_of_srgb_itself_changes_no_pixel(tmp_path: Path) -> None:
    share = np.arange(1024) / 1023
    curve = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    table = struct.pack(">4s4xI1024H", b"curv", 1024, *(curve * 65535).round().astype(int))
    tags = {
        b"wtpt": icc_xyz(0.9505, 1, 1.0891),
        b"rXYZ": icc_xyz(0.43607, 0.22249, 0.01392),
        b"gXYZ": icc_xyz(0.38515, 0.71687, 0.09708),
        b"bXYZ": icc_xyz(0.14307, 0.06061, 0.71410),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), table),
    }  # as the file of Hewlett-Packard has it that most cameras and programs embed
    data = encoded(Image.fromarray(COLOURS), "PNG", icc_profile=icc(b"RGB ", tags))
    assert np.array_equal(pixels(tmp_path, data), COLOURS)
    assert decoded(tmp_path, data).intake == 1


def grey_icc(gamma: float) -> bytes:
    return icc(b"GRAY", {b"wtpt": icc_xyz(0.9642, 1, 0.8249), b"kTRC": icc_gamma(gamma)})


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_grey_is_by_its_profile(tmp_path: Path, file_format: str, gamma: float) -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(stored)
    got = pixels(tmp_path, encoded(image, file_format, icc_profile=grey_icc(gamma)))
    wanted = coded((stored / 255) ** (round(gamma * 256) / 256))
    assert np.abs(got - wanted[..., None]).max() <= 0.51
    with_alpha = Image.merge("LA", [image, Image.fromarray(stored[::-1])])
    if file_format == "PNG":
        got = pixels(tmp_path, encoded(with_alpha, "PNG", icc_profile=grey_icc(gamma)))
        assert np.abs(got[..., :3] - wanted[..., None]).max() <= 0.51
        assert np.array_equal(got[..., 3], stored[::-1])


def test_grey_of_16_bits_is_by_its_profile_before_it_is_rounded(tmp_path: Path) -> None:
    stored = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    data = encoded(Image.fromarray(stored), "PNG", icc_profile=grey_icc(1.0))
    wanted = coded(stored / 65535)
    assert np.abs(pixels(tmp_path, data) - wanted[..., None]).max() <= 0.51
    assert len(np.unique(pixels(tmp_path, data))) > 170  # of 8 bits first, the darks would be few


def test_grey_with_a_profile_of_colours_is_by_its_curve(tmp_path: Path) -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for values in (stored, stored.astype(np.uint16) * 257):
        data = encoded(Image.fromarray(values), "PNG", icc_profile=ADOBE_RGB)
        wanted = coded((stored / 255) ** (563 / 256))[..., None]
        assert np.abs(pixels(tmp_path, data) - wanted).max() <= 1


# A printer's table of two steps for each ink: CIELAB of its 16 mixtures, cyan changing slowest.
INKS = np.array([[(9 * i) % 101, (37 * i) % 161 - 80, (53 * i) % 161 - 80] for i in range(16)])
INKS[0] = (100, 0, 0)


def cmyk_icc() -> bytes:
    lab = np.stack([INKS[:, 0] * 65280 / 100, *((INKS[:, i] + 128) * 256 for i in (1, 2))], 1)
    table = struct.pack(">4s4x4B", b"mft2", 4, 3, 2, 0)
    table += struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table += struct.pack(">2H", 2, 2) + struct.pack(">8H", *(0, 65535) * 4)
    table += struct.pack(">48H", *lab.round().astype(int).ravel())
    table += struct.pack(">6H", *(0, 65535) * 3)
    tags = {b"wtpt": icc_xyz(0.9642, 1, 0.8249), b"A2B0": table, b"A2B1": table}
    return icc(b"CMYK", tags, b"Lab ")


def from_lab(lab: Floats) -> Floats:
    """CIE 15:2004, 8.2.1 backwards from D50; Bradford to D65 (ICC.1:2010, annex E); sRGB."""
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], -1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * (0.9642, 1, 0.8249)
    to_d65 = np.array(
        [[0.9555766, -0.0230393, 0.0631636], [-0.0282895, 1.0099416, 0.0210077],
         [0.0122982, -0.0204830, 1.3299098]]
    )  # fmt: skip
    return coded(xyz @ (XYZ_TO_SRGB @ to_d65).T)


@pytest.mark.parametrize("file_format", ["TIFF", "JPEG"])
def test_cmyk_is_by_its_profile(tmp_path: Path, file_format: str) -> None:
    bits = (np.arange(16)[:, None] >> np.array([3, 2, 1, 0])) & 1
    inks = Image.fromarray((bits * 255).astype(np.uint8)[:, None].repeat(16, 1), mode="CMYK")
    if file_format == "JPEG":  # in blocks of 8 px, so that they stay what they are
        inks = inks.resize((128, 128), Image.Resampling.NEAREST)
    options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {}
    data = encoded(inks, file_format, icc_profile=cmyk_icc(), **options)
    result = decoded(tmp_path, data)
    got = np.asarray(result.image).astype(int)[:: inks.height // 16, 0]
    assert np.abs(got - from_lab(INKS.astype(float))).max() <= (4 if file_format == "JPEG" else 2)
    assert (result.intake, result.notes) == (2, ())


def test_cmyk_without_a_profile_is_told(tmp_path: Path) -> None:
    result = decoded(tmp_path, encoded(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF"))
    assert result.image.getpixel((0, 0)) == (0, 255, 255)
    assert result.notes == ("CMYK without a colour profile, so the colours are approximate",)


def test_cielab_is_converted(tmp_path: Path) -> None:
    lab = np.array([[50, 0, 0], [80, 40, -30], [30, -20, 45], [100, 0, 0]])
    stored = np.stack([lab[:, 0] * 255 / 100, lab[:, 1] % 256, lab[:, 2] % 256], -1).round()
    strip = stored.astype(np.uint8)[None].repeat(4, 0).tobytes()
    data = tiff([({256: (4,), 257: (4,), 258: (8, 8, 8), 259: (1,), 262: (8,), 277: (3,)}, strip)])
    assert np.abs(pixels(tmp_path, data)[0] - from_lab(lab.astype(float))).max() <= 3


@pytest.mark.parametrize(
    ("profile", "why"),
    [
        (ADOBE_RGB[:200], "damaged colour profile"),
        (b"no profile at all" * 20, "damaged colour profile"),
        (cmyk_icc(), "colour profile of CMYK for RGB pixels"),
        (grey_icc(2.2), "colour profile of GRAY for RGB pixels"),
    ],
)
def test_a_profile_that_cannot_be_used_is_told(tmp_path: Path, profile: bytes, why: str) -> None:
    result = decoded(tmp_path, encoded(Image.fromarray(COLOURS), "TIFF", icc_profile=profile))
    assert result.notes == (f"{why}, ignored",)
    assert np.array_equal(result.image, COLOURS)
    assert result.image.info == {}


@given(st.data())
def test_a_profile_with_any_bytes_changed_is_used_or_told(data: st.DataObject) -> None:
    kinds = [("RGB", ADOBE_RGB), ("L", grey_icc(2.2)), ("CMYK", cmyk_icc())]
    mode, profile = data.draw(st.sampled_from(kinds))
    spoilt = bytearray(profile)
    changes = st.tuples(st.integers(0, len(profile) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(changes, min_size=1, max_size=5)):
        spoilt[at] = value
    image = Image.new(mode, (4, 4), 99 if mode == "L" else (99,) * len(mode))
    with tempfile.TemporaryDirectory() as folder:
        made = decoded(Path(folder), encoded(image, "TIFF", icc_profile=bytes(spoilt)))
    assert made.image.mode == "RGB"
    assert all(note.isprintable() for note in made.notes)


def png_of(*chunks: tuple[bytes, bytes], colours: npt.NDArray[np.uint8] = COLOURS) -> bytes:
    kind = 2 if colours.ndim == 3 else 0
    return png(SIDE, SIDE, 8, kind, [row.tobytes() for row in colours], *chunks)


def chrm(*places: float) -> tuple[bytes, bytes]:
    return b"cHRM", struct.pack(">8I", *(round(place * 100_000) for place in places))


def gama(gamma: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(gamma * 100_000))


OF_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
OF_ADOBE = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)


@pytest.mark.parametrize("gamma", [1.0, 1 / 1.8])
def test_the_gamma_of_a_png_is_applied(tmp_path: Path, gamma: float) -> None:
    wanted = coded((COLOURS / 255) ** (1 / gamma))
    for chunks in ([gama(gamma)], [gama(gamma), chrm(*OF_SRGB)]):
        assert np.abs(pixels(tmp_path, png_of(*chunks)) - wanted).max() <= 1
    grey = COLOURS[..., 0].copy()
    got = pixels(tmp_path, png_of(gama(gamma), colours=grey))
    assert np.abs(got - coded((grey / 255) ** (1 / gamma))[..., None]).max() <= 1


def test_the_primaries_of_a_png_are_applied(tmp_path: Path) -> None:
    got = pixels(tmp_path, png_of(gama(256 / 563), chrm(*OF_ADOBE)))
    assert np.abs(got - from_adobe(COLOURS)).max() <= 1.2


@pytest.mark.parametrize(
    "chunks",
    [
        [gama(1 / 2.2)],
        [gama(0.45455), chrm(*OF_SRGB)],
        [chrm(*OF_ADOBE)],  # says nothing without a gamma
        [(b"sRGB", b"\0"), gama(1.0), chrm(*OF_ADOBE)],
        [gama(0.0)],
        [(b"cICP", bytes([1, 13, 0, 1])), gama(1.0)],
    ],
)
def test_a_png_that_is_srgb_by_its_chunks_stays(
    tmp_path: Path, chunks: list[tuple[bytes, bytes]]
) -> None:
    assert np.array_equal(pixels(tmp_path, png_of(*chunks)), COLOURS)


@pytest.mark.parametrize(
    "places", [(0.3, 0.3) * 4, (0.3, 0.3, 0.001, 0.9, 0.001, 0.9, 0.001, 0.9), (21474,) * 8]
)
def test_impossible_primaries_of_a_png_are_left_aside(
    tmp_path: Path, places: tuple[float, ...]
) -> None:
    got = pixels(tmp_path, png_of(gama(1.0), chrm(*places)))
    assert np.abs(got - coded(COLOURS / 255)).max() <= 1


def test_display_p3_by_numbers_becomes_srgb(tmp_path: Path) -> None:
    wanted = coded(linear_srgb(COLOURS) @ (XYZ_TO_SRGB @ P3_TO_XYZ).T)
    data = png_of((b"cICP", bytes([12, 13, 0, 1])))
    assert np.abs(pixels(tmp_path, data) - wanted).max() <= 1.1


@pytest.mark.parametrize("code", [(9, 16, 0, 1), (9, 18, 0, 1), (12, 13, 1, 0)])
def test_high_dynamic_range_is_refused(tmp_path: Path, code: tuple[int, ...]) -> None:
    why = refusal(tmp_path, png_of((b"cICP", bytes(code))))
    assert why.startswith(f"has colours of the kind {'/'.join(map(str, code))}")


def camera_jpeg(index: str, space: int) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: space, 0xA005: {1: index, 2: b"0100"}})
    return encoded(Image.fromarray(COLOURS), "JPEG", quality=100, subsampling=0, exif=exif)


def test_the_mark_of_a_camera_for_adobe_rgb_is_read(tmp_path: Path) -> None:
    data = camera_jpeg("R03", 0xFFFF)
    with Image.open(io.BytesIO(data)) as image:
        stored = np.asarray(image)
    assert np.abs(pixels(tmp_path, data) - from_adobe(stored)).max() <= 1.1
    for other in (camera_jpeg("R98", 1), camera_jpeg("R03", 1)):
        assert np.array_equal(pixels(tmp_path, other), stored)


def test_the_profile_inside_a_bmp_is_read(tmp_path: Path) -> None:
    rows = COLOURS[::-1, :, ::-1].tobytes()
    header = struct.pack(
        "<IiiHHIIiiII4I4s36x3I4I",
        124, SIDE, SIDE, 1, 24, 0, len(rows), 0, 0, 0, 0, 0, 0, 0, 0, b"DEBM", 0, 0, 0,
        4, 124 + len(rows), len(ADOBE_RGB), 0,
    )  # fmt: skip
    size = 14 + 124 + len(rows) + len(ADOBE_RGB)
    data = struct.pack("<2sIII", b"BM", size, 0, 138) + header + rows + ADOBE_RGB
    assert np.abs(pixels(tmp_path, data) - from_adobe(COLOURS)).max() <= 1.1


# --- bits -----------------------------------------------------------------------------------


def grey_tiff(bits: int, photometric: int, strip: bytes, order: str = "<", **more: Any) -> bytes:
    tags = {256: (SIDE,), 257: (SIDE,), 258: (bits,), 259: (1,), 262: (photometric,), 277: (1,)}
    return tiff([({**tags, **{int(k[1:]): v for k, v in more.items()}}, strip)], order)


def test_12_bits_reach_from_black_to_white(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, SIDE * SIDE).round().astype(int)
    pairs = values.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1
    )
    data = grey_tiff(12, 1, packed.astype(np.uint8).tobytes())
    wanted = np.floor(values * 255 / 4095 + 0.5).reshape(SIDE, SIDE, 1)
    assert np.array_equal(pixels(tmp_path, data), wanted.repeat(3, 2))
    assert decoded(tmp_path, data).intake == 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_of_all_bits_whichever_end_is_white(
    tmp_path: Path, bits: int, photometric: int, order: str
) -> None:
    most = 2**bits - 1
    values = noise(SIDE, SIDE, most=most, seed=bits)
    if bits == 16:
        strip = values.astype(f"{order}u2").tobytes()
    else:
        each = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        strip = np.packbits(each.reshape(SIDE, -1).astype(np.uint8), axis=1).tobytes()
    light = values if photometric else most - values
    if bits == 16 and order == ">" and not photometric:
        why = refusal(tmp_path, grey_tiff(bits, photometric, strip, order))
        assert why.startswith("is a TIFF of 16 bits")
        return
    got = pixels(tmp_path, grey_tiff(bits, photometric, strip, order))
    wanted = np.floor(light * 255 / most + 0.5)[..., None].repeat(3, 2)
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("key", [0, 1, -1])
def test_a_transparent_grey_of_a_png_is_in_its_own_bits(
    tmp_path: Path, bits: int, key: int
) -> None:
    most = 2**bits - 1
    key %= most + 1
    values = noise(SIDE, SIDE, most=min(most, 40), seed=bits)
    values[3] = key
    each = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(each.reshape(SIDE, -1).astype(np.uint8), axis=1)
    data = png(SIDE, SIDE, bits, 0, [r.tobytes() for r in rows], (b"tRNS", struct.pack(">H", key)))
    got = pixels(tmp_path, data, "foreground")
    assert np.array_equal(got[..., 3], np.where(values == key, 0, 255))
    grey = np.floor(values * 255 / most + 0.5)
    assert np.array_equal(got[..., :3], grey[..., None].repeat(3, 2))


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_transparent_colour_of_16_bits_is_matched_to_the_last_bit(
    tmp_path: Path, interlaced: bool
) -> None:
    values = noise(SIDE, SIDE, 3, most=300)  # all near the key in their upper bytes
    values[2:5, 2:9] = key = (0, 259, 7)
    values[5, 5] = (0, 259, 8)
    data = bytearray(
        png(
            SIDE, SIDE, 16, 2, [row.astype(">u2").tobytes() for row in values],
            (b"tRNS", struct.pack(">3H", *key)),
        )
    )  # fmt: skip
    if interlaced:
        data = bytearray(adam7(values, key))
    wanted = np.where((values == key).all(2), 0, 255)
    assert 21 <= (wanted == 0).sum() < 30
    got = pixels(tmp_path, bytes(data), "foreground")
    assert np.array_equal(got[..., 3], wanted)
    assert np.array_equal(got[..., :3], values >> 8)


def adam7(values: npt.NDArray[np.int64], key: tuple[int, ...]) -> bytes:
    """The same picture interlaced (PNG, 8.2)."""
    rows = []
    for top, left, down, right in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):  # fmt: skip
        rows += [row.astype(">u2").tobytes() for row in values[top::down, left::right]]
    whole = png(SIDE, SIDE, 16, 2, rows, (b"tRNS", struct.pack(">3H", *key)))
    header = whole[12:28] + b"\1"
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


@given(st.integers(0, 255), st.integers(0, 2**16 - 1))
def test_a_key_beyond_the_files_bits_breaks_nothing(value: int, key: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for bits, colour in ((1, 0), (2, 0), (4, 0), (8, 0), (8, 2), (16, 0), (16, 2)):
            n_bytes = -(-4 * bits * (3 if colour else 1) // 8)
            chunk = struct.pack(">H", key) * (3 if colour else 1)
            data = png(4, 4, bits, colour, [bytes([value]) * n_bytes] * 4, (b"tRNS", chunk))
            assert decoded(Path(folder), data, "foreground").image.mode == "RGBA"


# --- transparency of a TIFF -----------------------------------------------------------------


def rgba_tiff(
    extra: int,
    stored: npt.NDArray[Any],
    bits: int = 8,
    photometric: int = 2,
    deflated: bool = False,
) -> bytes:
    channels = stored.shape[2]
    strip = stored.astype(np.uint8 if bits == 8 else np.uint16).tobytes()
    tags: dict[int, tuple[int, ...] | bytes] = {
        256: (SIDE,), 257: (SIDE,), 258: (bits,) * channels, 259: (8 if deflated else 1,),
        262: (photometric,), 277: (channels,), 338: (extra,),
    }  # fmt: skip
    return tiff([(tags, zlib.compress(strip) if deflated else strip)])


STRAIGHT = np.dstack([noise(SIDE, SIDE, 3, seed=4), noise(SIDE, SIDE, seed=5)])


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [0, 2])
def test_unspecified_and_straight_alpha_are_straight(tmp_path: Path, extra: int, bits: int) -> None:
    stored = STRAIGHT * (257 if bits == 16 else 1)
    got = pixels(tmp_path, rgba_tiff(extra, stored, bits), "foreground")
    assert np.array_equal(got, STRAIGHT)


def test_a_photograph_may_have_any_fourth_channel(tmp_path: Path) -> None:
    assert np.array_equal(pixels(tmp_path, rgba_tiff(0, STRAIGHT)), STRAIGHT[..., :3])


@pytest.mark.parametrize("bits", [8, 16])
def test_associated_alpha_is_divided_out(tmp_path: Path, bits: int) -> None:
    most = 2**bits - 1
    share = STRAIGHT[..., 3:] / 255
    stored = np.dstack([STRAIGHT[..., :3] * share, STRAIGHT[..., 3]]) * (most / 255)
    got = pixels(tmp_path, rgba_tiff(1, np.floor(stored + 0.5), bits), "foreground")
    assert np.array_equal(got[..., 3], STRAIGHT[..., 3])
    for composite in (0, 255):  # what is seen of it over any background
        seen = got[..., :3] * share + composite * (1 - share)
        wanted = STRAIGHT[..., :3] * share + composite * (1 - share)
        assert np.abs(seen - wanted).max() <= 1.6


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_grey_tiffs_have_alpha_too(tmp_path: Path, extra: int) -> None:
    grey, alpha = STRAIGHT[..., 0], STRAIGHT[..., 3]
    stored = np.floor(grey * alpha / 255 + 0.5) if extra == 1 else grey
    data = rgba_tiff(extra, np.dstack([stored, alpha]), photometric=1)
    got = pixels(tmp_path, data, "foreground")
    assert np.array_equal(got[..., 3], alpha)
    off = np.abs(got[..., 0] - grey) * alpha / 255
    assert off.max() <= (1 if extra == 1 else 0)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_compressed_tiff_shows_its_fourth_channel(tmp_path: Path, bits: int) -> None:
    stored = STRAIGHT * (257 if bits == 16 else 1)
    data = rgba_tiff(0, stored, bits, deflated=True)
    assert np.array_equal(pixels(tmp_path, data, "foreground"), STRAIGHT)
    assert decoded(tmp_path, data, "foreground").intake == 2


REFUSED = {
    "signed 8": (grey_tiff(8, 1, bytes(256), _339=(2,)), "has signed values"),
    "signed 16": (grey_tiff(16, 1, bytes(512), _339=(2,)), "has signed values"),
    "32 bits": (grey_tiff(32, 1, bytes(1024)), "has 32-bit values"),
    "float": (grey_tiff(32, 1, bytes(1024), _339=(3,)), "has floating-point values"),
    "half float": (grey_tiff(16, 1, bytes(512), _339=(3,)), "is a TIFF of floating-point 16 bits"),
    "double": (grey_tiff(64, 1, bytes(2048), _339=(3,)), "is a TIFF of floating-point 64 bits"),
    "10 bits": (grey_tiff(10, 1, bytes(512)), "is a TIFF of 10 bits"),
    "raw": (grey_tiff(16, 32803, bytes(512)), "is a TIFF of 16 bits, raw camera, which"),
    "12-bit RGB": (
        rgba_tiff(0, STRAIGHT[..., :3]).replace(
            struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 12, 12, 12)
        ),
        "is a TIFF of 12/12/12 bits, RGB, which is not read",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_with_the_true_reason(tmp_path: Path, name: str) -> None:
    data, why = REFUSED[name]
    told = refusal(tmp_path, data)
    assert told.startswith(why)
    assert "save it with 8 or 16 bits per channel" in told


def test_a_jpeg_of_12_bits_is_called_one(tmp_path: Path) -> None:
    data = encoded(scene(1, 16, 16), "JPEG")
    at = data.index(b"\xff\xc0") + 4
    assert refusal(tmp_path, data[:at] + b"\x0c" + data[at + 1 :]).startswith(
        "has 12 bits per channel"
    )


def test_transparency_beside_cmyk_is_refused_for_a_cut_out(tmp_path: Path) -> None:
    stored = noise(SIDE, SIDE, 5)
    data = rgba_tiff(0, stored, photometric=5)
    assert refusal(tmp_path, data, "foreground").startswith("has its transparency beside CMYK")
    assert pixels(tmp_path, data).shape == (SIDE, SIDE, 3)


# --- pages ----------------------------------------------------------------------------------


def page(side: int, seed: int, **more: tuple[int, ...]) -> tuple[dict[int, Any], bytes]:
    tags = {256: (side,), 257: (side,), 258: (8,), 259: (1,), 262: (1,), 277: (1,)}
    tags |= {int(name[1:]): value for name, value in more.items()}
    return tags, noise(side, side, seed=seed).astype(np.uint8).tobytes()


PAGES = {
    "thumbnail behind": ([page(16, 1), page(5, 2, _254=(1,))], 0),
    "thumbnail first": ([page(5, 2, _254=(1,)), page(16, 1)], 1),
    "old tag": ([page(16, 1), page(16, 2, _255=(2,))], 0),
    "not said": ([page(16, 1), page(4, 2)], 0),
    "pyramid": ([page(16, 1), *(page(16 >> n, 2, _254=(1,)) for n in (1, 2, 3))], 0),
    "mask": ([page(16, 1), page(16, 2, _254=(4,))], 0),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_picture_of_a_tiff_is_found_among_its_smaller_copies(tmp_path: Path, name: str) -> None:
    pages, wanted = PAGES[name]
    got = pixels(tmp_path, tiff(pages))
    assert np.array_equal(got[..., 0], np.frombuffer(pages[wanted][1], np.uint8).reshape(16, 16))


@pytest.mark.parametrize(
    "pages",
    [[page(16, 1), page(16, 2)], [page(16, 1), page(12, 2)], [page(16, 1), page(5, 2)] * 20],
)
def test_several_pictures_are_refused(tmp_path: Path, pages: list[Any]) -> None:
    why = f"has {len(pages)} frames; save one of them as an image"
    assert refusal(tmp_path, tiff(pages)) == why
