"""prepare: which pictures are read, how they are resized, which are refused and why."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from builder.errors import BadSourcesError, FgbgError
from builder.recipe import Recipe
from builder.record.composition import cut_out, paste
from builder.sources.credits import license_counts, uncredited
from builder.sources.prepare import PreparedFolder, Source, SourceBank, contents, prepare
from builder.sources.scan import scan
from builder.untrusted import printable
from tests.pictures import blob, encoded, png, scene

Pixels = npt.NDArray[np.uint8]

SIDE = 32
# A background of SIDE is not resized, and a foreground whose alpha fills it neither.
SAME = Recipe(size=SIDE, foreground_size=SIDE)
NEEDS_ALPHA = (
    "a foreground needs transparency around the object; run `fgbg cutout PHOTOS CUTOUTS` first, "
    "where PHOTOS is this folder, and build from the folder CUTOUTS"
)


def photo(width: int = SIDE, height: int = SIDE) -> Image.Image:
    return scene(3, width, height)


def cutout(side: int = SIDE) -> Image.Image:
    """RGBA whose alpha takes every value and whose box is the whole picture."""
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (side, side, 4), np.uint8)
    pixels[[0, -1], :, 3] = pixels[:, [0, -1], 3] = 200
    pixels[1, 1, 3] = 0
    return Image.fromarray(pixels)


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def background(tmp_path: Path, data: bytes, recipe: Recipe = SAME) -> Pixels:
    (source,) = prepare(folder_of(tmp_path / "bg", {"x": data}), "background", recipe).sources
    return source.pixels()


def foreground(tmp_path: Path, data: bytes, recipe: Recipe = SAME) -> Pixels:
    (source,) = prepare(folder_of(tmp_path / "fg", {"x": data}), "foreground", recipe).sources
    return source.pixels()


def reason(tmp_path: Path, data: bytes, kind: Any = "background") -> str:
    with pytest.raises(BadSourcesError) as caught:
        prepare(folder_of(tmp_path / "in", {"x.png": data}), kind, SAME)
    ((name, why),) = caught.value.problems
    assert name == "in/x.png"
    return why


def zeroed(pixels: Pixels) -> Pixels:
    """Colour under alpha 0 set to 0, as a prepared foreground has it."""
    return np.where(pixels[..., 3:] == 0, np.uint8(0), pixels)


# --- formats and modes ----------------------------------------------------------------------

LOSSLESS: dict[str, Callable[[Image.Image], bytes]] = {
    "png": lambda image: encoded(image, "PNG"),
    "bmp": lambda image: encoded(image, "BMP"),
    "tiff": lambda image: encoded(image, "TIFF"),
    "tiff-lzw": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": lambda image: encoded(image, "TIFF", compression="tiff_adobe_deflate"),
    "webp": lambda image: encoded(image, "WEBP", lossless=True, exact=True),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_backgrounds_keep_every_pixel(tmp_path: Path, name: str) -> None:
    np.testing.assert_array_equal(background(tmp_path, LOSSLESS[name](photo())), photo())


@pytest.mark.parametrize("name", ["png", "tiff", "tiff-lzw", "webp"])
def test_lossless_foregrounds_keep_every_visible_pixel(tmp_path: Path, name: str) -> None:
    wanted = zeroed(np.asarray(cutout()))
    np.testing.assert_array_equal(foreground(tmp_path, LOSSLESS[name](cutout())), wanted)


def test_bmp_with_alpha_is_a_foreground(tmp_path: Path) -> None:
    data = encoded(cutout(), "BMP")  # 32 bits; V3 masks with alpha
    with Image.open(io.BytesIO(data)) as image:
        alpha_is_read = image.mode == "RGBA"
    if alpha_is_read:
        np.testing.assert_array_equal(foreground(tmp_path, data), zeroed(np.asarray(cutout())))
    else:
        assert reason(tmp_path, data, "foreground") == f"has no alpha channel; {NEEDS_ALPHA}"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": "4:2:0"}])
def test_jpeg_equals_opencv(tmp_path: Path, options: dict[str, Any]) -> None:
    data = encoded(photo(), "JPEG", quality=95, **options)
    wanted = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    off = np.abs(background(tmp_path, data).astype(int) - wanted)
    assert off.max() <= (8 if "subsampling" in options else 2)  # chroma is enlarged differently


def test_a_phones_jpeg_with_a_preview_behind_is_its_first_picture(tmp_path: Path) -> None:
    data = encoded(photo(), "MPO", save_all=True, append_images=[photo().rotate(90)], quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
        wanted = np.asarray(image)
    np.testing.assert_array_equal(background(tmp_path, data), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, file_format: str) -> None:
    image = photo(SIDE, SIDE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if file_format == "JPEG" else {}
    options |= {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(image, file_format, exif=exif, **options)
    # EXIF 2.3, tag 274: where row 0 and column 0 of what is stored lie in what is shown.
    shown = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }[orientation]
    stored = np.asarray(image)
    if file_format == "JPEG":
        stored = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )[..., ::-1]
    off = np.abs(background(tmp_path, data).astype(int) - shown(stored))
    assert off.max() <= (2 if file_format == "JPEG" else 0)


def test_orientation_counts_for_the_size_of_the_source(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = folder_of(tmp_path / "bg", {"x.jpg": encoded(photo(40, 30), "JPEG", exif=exif)})
    (source,) = prepare(folder, "background", SAME).sources
    assert (source.entry.source_width, source.entry.source_height) == (30, 40)


def test_16_bit_grey_is_scaled_not_cut_off(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)
    wanted = np.floor(values / 257 + 0.5).astype(np.uint8)
    ok, data = cv2.imencode(".png", values)
    assert ok
    big_endian = encoded(Image.fromarray(values), "TIFF")
    for data_ in (data.tobytes(), big_endian):
        got = background(tmp_path, data_)
        for channel in range(3):
            np.testing.assert_array_equal(got[..., channel], wanted)


def test_16_bit_colour_and_alpha_keep_their_upper_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 65536, (SIDE, SIDE, 4)).astype(np.uint16)
    values[[0, -1]] = values[:, [0, -1]] = 65535
    rgba = png(SIDE, SIDE, 16, 6, [row.astype(">u2").tobytes() for row in values])
    np.testing.assert_array_equal(
        foreground(tmp_path, rgba), zeroed((values >> 8).astype(np.uint8))
    )
    rgb = png(SIDE, SIDE, 16, 2, [row.astype(">u2").tobytes() for row in values[..., :3]])
    np.testing.assert_array_equal(background(tmp_path, rgb), values[..., :3] >> 8)


def test_grey_with_alpha(tmp_path: Path) -> None:
    grey, alpha = np.asarray(cutout())[..., 0], np.asarray(cutout())[..., 3]
    wanted = zeroed(np.dstack([grey, grey, grey, alpha]))
    image = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    assert image.mode == "LA"
    np.testing.assert_array_equal(foreground(tmp_path, encoded(image, "PNG")), wanted)


def test_palette_with_graded_alpha(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    palette, alpha = rng.integers(0, 256, (256, 3), np.uint8), np.arange(256, dtype=np.uint8)
    indexes = rng.integers(0, 256, (SIDE, SIDE), np.uint8)
    indexes[[0, -1]] = 255
    indexes[:, [0, -1]] = 254
    data = png(
        SIDE, SIDE, 8, 3, [row.tobytes() for row in indexes],
        (b"PLTE", palette.tobytes()), (b"tRNS", alpha.tobytes()),
    )  # fmt: skip
    wanted = zeroed(np.dstack([palette[indexes], alpha[indexes]]))
    np.testing.assert_array_equal(foreground(tmp_path, data), wanted)


def test_palette_without_alpha_is_a_background(tmp_path: Path) -> None:
    image = photo().quantize(64)
    assert image.mode == "P"
    np.testing.assert_array_equal(
        background(tmp_path, encoded(image, "PNG")), np.asarray(image.convert("RGB"))
    )


@pytest.mark.parametrize(
    ("depth", "colour", "sample", "key"),
    [(8, 0, "B", (7,)), (8, 2, "BBB", (7, 7, 7)), (16, 0, "H", (1799,))],
)
def test_a_colour_declared_transparent_is_transparent(
    tmp_path: Path, depth: int, colour: int, sample: str, key: tuple[int, ...]
) -> None:
    other = tuple(200 if depth == 8 else 51_400 for _ in key)
    inner = struct.pack(f">{sample}", *key)
    outer = struct.pack(f">{sample}", *other)
    rows = [
        b"".join(inner if 4 <= x < 9 and 4 <= y < 20 else outer for x in range(SIDE))
        for y in range(SIDE)
    ]
    data = png(SIDE, SIDE, depth, colour, rows, (b"tRNS", struct.pack(f">{len(key)}H", *key)))
    wanted = np.full((SIDE, SIDE, 4), (200, 200, 200, 255), np.uint8)
    wanted[4:20, 4:9] = 0
    np.testing.assert_array_equal(foreground(tmp_path, data), wanted)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.random.default_rng(1).random((SIDE, SIDE)) < 0.5
    data = encoded(Image.fromarray(bits), "PNG")
    wanted = np.repeat(np.where(bits, np.uint8(255), np.uint8(0))[..., None], 3, axis=2)
    np.testing.assert_array_equal(background(tmp_path, data), wanted)


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb_the_right_way_round(tmp_path: Path, file_format: str) -> None:
    inks = Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0))
    inks.paste((0, 0, 0, 255), (0, 0, SIDE, 8))
    inks.paste((0, 0, 0, 0), (0, 24, SIDE, SIDE))
    options = {"quality": 100} if file_format == "JPEG" else {}
    got = background(tmp_path, encoded(inks, file_format, **options)).astype(int)
    for row, colour in ((3, (0, 0, 0)), (16, (0, 255, 255)), (29, (255, 255, 255))):
        assert np.abs(got[row] - colour).max() <= 2


def test_ycbcr_tiff_and_grey_jpeg(tmp_path: Path) -> None:
    grey = photo().convert("L")
    got = background(tmp_path, encoded(grey, "JPEG", quality=100)).astype(int)
    assert np.abs(got - np.asarray(grey)[..., None]).max() <= 2
    got = background(tmp_path, encoded(photo().convert("YCbCr"), "TIFF")).astype(int)
    assert np.abs(got - np.asarray(photo())).max() <= 3


def test_a_transparent_background_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.asarray(cutout()).astype(np.float64)
    share = pixels[..., 3:] / 255
    wanted = pixels[..., :3] * share + 255 * (1 - share)
    got = background(tmp_path, encoded(cutout(), "PNG"))
    assert np.abs(got - wanted).max() <= 1


def test_metadata_that_pillow_complains_about_hurts_nothing(tmp_path: Path) -> None:
    # Filters of warnings are not per thread: one thread once took another's away.
    broken = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20)
    files = {f"{i}.jpg": encoded(photo(), "JPEG", exif=broken, comment=str(i)) for i in range(40)}
    before = list(warnings.filters)
    prepared = prepare(folder_of(tmp_path / "bg", files), "background", SAME)
    assert len(prepared.sources) == 40
    assert warnings.filters == before


# --- resizing -------------------------------------------------------------------------------


def test_margins_are_trimmed_before_the_size_is_taken(tmp_path: Path) -> None:
    canvas = Image.new("RGBA", (300, 200), (255, 0, 0, 0))
    canvas.paste((10, 200, 30, 255), (31, 77, 31 + 80, 77 + 40))
    folder = folder_of(tmp_path / "fg", {"x.png": encoded(canvas, "PNG")})
    (source,) = prepare(folder, "foreground", Recipe(size=64, foreground_size=50)).sources
    entry = source.entry
    assert (entry.width, entry.height) == (50, 25)
    assert (entry.source_width, entry.source_height) == (300, 200)
    np.testing.assert_array_equal(
        source.pixels(), np.full((25, 50, 4), (10, 200, 30, 255), np.uint8)
    )


def test_the_faintest_alpha_belongs_to_the_object(tmp_path: Path) -> None:
    canvas = np.zeros((50, 50, 4), np.uint8)
    canvas[10:20, 10:20, 3] = 255
    canvas[10, 39, 3] = 1
    got = foreground(
        tmp_path, encoded(Image.fromarray(canvas), "PNG"), Recipe(size=64, foreground_size=30)
    )
    assert got.shape == (10, 30, 4)


@pytest.mark.parametrize(
    ("size", "wanted"), [((400, 100), (100, 25)), ((3, 200), (2, 100)), ((2, 900), (1, 100)),
                         ((20, 20), (100, 100)), ((101, 100), (100, 99))],
)  # fmt: skip
def test_the_longer_side_is_what_the_recipe_says(
    tmp_path: Path, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    image = Image.new("RGBA", size, (9, 9, 9, 255))
    image.putpixel((0, 0), (9, 9, 9, 200))
    got = foreground(tmp_path, encoded(image, "PNG"), Recipe())
    assert got.shape[1::-1] == wanted


def hamming(length: int, to: int) -> npt.NDArray[np.float64]:
    """Weights of Pillow's documented HAMMING filter (support 1, widened by the scale)."""
    scale = length / to
    centres = (np.arange(to) + 0.5) * scale
    x = np.abs((np.arange(length)[None] + 0.5 - centres[:, None]) / scale)
    weights = np.where(x < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0)
    return weights / weights.sum(1, keepdims=True)


def shrunk(pixels: npt.NDArray[np.float64], to: tuple[int, int]) -> npt.NDArray[np.float64]:
    height, width = pixels.shape[:2]
    rows = np.einsum("oi,iwc->owc", hamming(height, to[0]), pixels)
    return np.einsum("oi,hic->hoc", hamming(width, to[1]), rows)


def test_a_shrunk_foreground_equals_a_float_reference_premultiplied(tmp_path: Path) -> None:
    """Over any background the composite is what exact arithmetic gives, but for rounding."""
    rng = np.random.default_rng(7)
    image = np.asarray(blob(3, 90, 70)).copy()
    image[..., :3] = rng.integers(0, 256, (1, 1, 3))
    image[image[..., 3] == 0, :3] = (0, 255, 0)  # loud colour where nothing is to be seen
    box = Image.fromarray(image).getchannel("A").getbbox()
    inner = image[box[1] : box[3], box[0] : box[2]].astype(np.float64)
    got = foreground(
        tmp_path, encoded(Image.fromarray(image), "PNG"), Recipe(size=64, foreground_size=24)
    )
    height, width = got.shape[:2]
    assert max(height, width) == 24
    share = inner[..., 3:] / 255
    exact_alpha = shrunk(share, (height, width))
    exact_colour = shrunk(inner[..., :3] * share, (height, width))
    assert np.abs(got[..., 3:] - exact_alpha * 255).max() <= 1
    for level in (0, 128, 255):
        canvas = np.full((height, width, 3), level, np.uint8)
        composite = paste(canvas, cut_out(got), 0, 0).fg_bg
        wanted = exact_colour + level * (1 - exact_alpha)
        assert np.abs(composite - wanted).max() < 2.5
        assert abs((composite - wanted).mean()) < 0.1


@pytest.mark.parametrize("side", [20, 77, 300])
def test_no_fringe_from_colour_hidden_under_alpha_0(tmp_path: Path, side: int) -> None:
    """A disc on its own colour vanishes, and what is hidden around it changes no byte."""
    colour = (180, 90, 40)
    y, x = np.mgrid[0:120, 0:120]
    image = np.empty((120, 120, 4), np.uint8)
    image[..., :3] = colour
    image[..., 3] = np.clip((50 - np.hypot(x - 60, y - 60)) * 60, 0, 255)
    made = []
    for hidden in ((0, 0, 0), (255, 255, 255), (0, 255, 0)):
        image[image[..., 3] == 0, :3] = hidden
        data = encoded(Image.fromarray(image), "PNG")
        made.append(foreground(tmp_path, data, Recipe(size=300, foreground_size=side)))
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
    canvas = np.full((300, 300, 3), colour, np.uint8)
    off = paste(canvas, cut_out(made[0]), 0, 0).fg_bg.astype(int) - colour
    assert np.abs(off).max() <= 2  # rounding of premultiplied colour and of the blend
    assert np.abs(off).mean() < 0.1
    assert (made[0][made[0][..., 3] == 0] == 0).all()


def test_shrinking_leaves_no_halo_around_a_hard_edge(tmp_path: Path) -> None:
    image = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (80, 80, 320, 320))
    image.putpixel((0, 0), (0, 0, 0, 1))
    image.putpixel((399, 399), (0, 0, 0, 1))
    alpha = foreground(tmp_path, encoded(image, "PNG"), Recipe(foreground_size=100))[..., 3]
    wanted = np.zeros((100, 100), np.uint8)
    wanted[20:80, 20:80] = 255
    near_edge = np.zeros((100, 100), bool)
    near_edge[18:82, 18:82] = True
    near_edge[22:78, 22:78] = False
    np.testing.assert_array_equal(alpha[~near_edge], wanted[~near_edge])


def test_a_background_is_cropped_in_the_middle(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste((0, 255, 0), (32, 0, 64, 32))
    got = background(tmp_path, encoded(wide, "PNG"))
    np.testing.assert_array_equal(got, np.full((32, 32, 3), (0, 255, 0), np.uint8))


def test_a_background_is_stretched_when_the_recipe_says_so(tmp_path: Path) -> None:
    data = encoded(photo(96, 48), "PNG")
    got = background(tmp_path, data, Recipe(size=32, foreground_size=9, background_fit="stretch"))
    # Lanczos with widened support as OpenCV has it not: the mean of areas is near enough.
    wanted = cv2.resize(np.asarray(photo(96, 48)), (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(got.astype(int) - wanted).mean() < 6
    assert got.shape == (32, 32, 3)


def test_cropping_equals_pillows_fit_at_any_shape(tmp_path: Path) -> None:
    for size in ((50, 40), (33, 101), (20, 20)):
        image = photo(*size)
        wanted = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(background(tmp_path, encoded(image, "PNG")), wanted)


# --- refusals -------------------------------------------------------------------------------


def opaque() -> Image.Image:
    return photo().convert("RGBA")


def clear() -> Image.Image:
    return Image.new("RGBA", (SIDE, SIDE), (9, 9, 9, 0))


def animated(file_format: str, **options: Any) -> bytes:
    options |= {"save_all": True, "append_images": [cutout().rotate(90)]}
    return encoded(cutout(), file_format, **options)


def declared(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be this large."""
    return png(width, height, 8, 6, [b"\0" * 4])


FOREGROUND_REFUSALS = {
    "without alpha": (lambda: encoded(photo(), "PNG"), f"has no alpha channel; {NEEDS_ALPHA}"),
    "jpeg": (lambda: encoded(photo(), "JPEG"), f"has no alpha channel; {NEEDS_ALPHA}"),
    "16-bit grey": (
        lambda: encoded(Image.fromarray(np.full((9, 9), 999, np.uint16)), "PNG"),
        f"has no alpha channel; {NEEDS_ALPHA}",
    ),
    "opaque": (lambda: encoded(opaque(), "PNG"), f"is wholly opaque; {NEEDS_ALPHA}"),
    "opaque webp": (
        lambda: encoded(cutout().convert("RGB"), "WEBP"),
        f"has no alpha channel; {NEEDS_ALPHA}",
    ),
    "transparent": (lambda: encoded(clear(), "PNG"), f"is wholly transparent; {NEEDS_ALPHA}"),
    "faint": (
        lambda: encoded(Image.new("RGBA", (64, 32), (9, 9, 9, 127)), "PNG"),
        "has no pixel that is at least half opaque at 32x16 px",
    ),
}


@pytest.mark.parametrize("name", FOREGROUND_REFUSALS)
def test_a_foreground_without_a_real_alpha_channel_is_refused(tmp_path: Path, name: str) -> None:
    make, sentence = FOREGROUND_REFUSALS[name]
    assert reason(tmp_path, make(), "foreground") == sentence


REFUSALS = {
    "empty": (lambda: b"", "is empty (0 bytes)"),
    "text": (lambda: b"hello\n" * 9, "is not a JPEG, PNG, WebP, TIFF or BMP image"),
    "svg": (lambda: b"<svg/>", "is not a JPEG, PNG, WebP, TIFF or BMP image"),
    "gif": (
        lambda: encoded(photo(), "GIF"), "is a GIF, which is not read; convert it to JPEG or PNG",
    ),
    "avif": (
        lambda: encoded(photo(), "AVIF"),
        "is a HEIC or AVIF picture, which is not read; convert it to JPEG or PNG",
    ),
    "heic": (
        lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "is a HEIC or AVIF picture, which is not read; convert it to JPEG or PNG",
    ),
    "page": (
        lambda: b"<!DOCTYPE html><title>404</title>",
        "is a web page and not a picture; download the picture again",
    ),
    "pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "is only Git LFS's note of where the picture is; run git lfs pull in its repository",
    ),
    "signature only": (
        lambda: b"\x89PNG\r\n\x1a\n", "is not a JPEG, PNG, WebP, TIFF or BMP image",
    ),
    "one pixel": (lambda: encoded(photo(1, 1), "PNG"), "is 1x1 px; too small to use"),
    "one row": (lambda: encoded(photo(9, 1), "BMP"), "is 9x1 px; too small to use"),
    "apng": (lambda: animated("PNG"), "has 2 frames; save one of them as an image"),
    "webp animation": (
        lambda: animated("WEBP", lossless=True), "has 2 frames; save one of them as an image",
    ),
    "tiff pages": (lambda: animated("TIFF"), "has 2 frames; save one of them as an image"),
    "bomb": (
        lambda: declared(13_378, 13_378), "is larger than 178956970 px; too large to be safe",
    ),
    "huge": (
        lambda: declared(2**31 - 1, 2**31 - 1), "is larger than 178956970 px; too large to be safe",
    ),
    "float": (
        lambda: encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"),
        "has floating-point values; save it with 8 or 16 bits per channel",
    ),
    "32 bits": (
        lambda: encoded(Image.fromarray(np.full((9, 9), 70_000, np.int32)), "TIFF"),
        "has 32-bit values; save it with 8 or 16 bits per channel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["foreground", "background"])
@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_single_image_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    make, sentence = REFUSALS[name]
    assert reason(tmp_path, make(), kind) == sentence


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_a_file_cut_short_is_refused(tmp_path: Path, file_format: str) -> None:
    data = encoded(scene(1, 200, 200), file_format)
    why = reason(tmp_path, data[: len(data) * 2 // 3])
    assert why.startswith(("is damaged or cut short (", "is not a JPEG, PNG,"))


def test_a_png_below_the_limit_but_without_its_data_is_damaged(tmp_path: Path) -> None:
    why = reason(tmp_path, declared(5_000, 5_000))
    assert why.startswith("is damaged or cut short (")


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(photo(), "PNG"))
    folder = folder_of(tmp_path / "bg", {"sub/a.png": encoded(photo(), "PNG")})
    (folder / "inside.png").symlink_to(folder / "sub" / "a.png")
    (folder / "outside.png").symlink_to(secret)
    with pytest.raises(BadSourcesError) as caught:
        prepare(folder, "background", SAME)
    ((name, why),) = caught.value.problems
    assert name == "bg/outside.png"
    assert why.startswith("is a link that leads out of the folder; put the file itself there (cp")
    assert "hf download --local-dir" in why


def test_a_link_that_leads_nowhere_is_told_not_passed_over(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "bg", {"a.png": encoded(photo(), "PNG")})
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "round.png").symlink_to(folder / "round.png")
    with pytest.raises(BadSourcesError) as caught:
        prepare(folder, "background", SAME)
    why = "cannot be read; check that it is there and that you may read it"
    assert caught.value.problems == [("bg/gone.png", why), ("bg/round.png", why)]


# --- all problems at once, skipping, ids ----------------------------------------------------


def mixed(tmp_path: Path) -> Path:
    good = encoded(cutout(), "PNG")
    return folder_of(
        tmp_path / "fg",
        {
            "b.png": good,
            "a.webp": LOSSLESS["webp"](cutout()),
            "empty.png": b"",
            "sub/notes.txt": b"to do",
            "twin.png": good,
            "TWIN.tif": LOSSLESS["tiff"](cutout()),
            "credits.csv": b"file,author,license,url\nb.png,Ann,CC0-1.0,u\nnone.png,Bob,MIT,u\n",
        },
    )


PROBLEMS = [
    ("fg/credits.csv", "line 3 names 'none.png', which is not there"),
    ("fg/TWIN.tif", "has the same name (without extension) as twin.png; rename one of them"),
    ("fg/twin.png", "has the same name (without extension) as TWIN.tif; rename one of them"),
    ("fg/empty.png", "is empty (0 bytes)"),
    ("fg/sub/notes.txt", "is not a JPEG, PNG, WebP, TIFF or BMP image"),
]


def test_every_problem_of_a_folder_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadSourcesError) as caught:
        prepare(mixed(tmp_path), "foreground", SAME)
    assert caught.value.problems == PROBLEMS
    assert str(caught.value).startswith("5 sources cannot be used:\n  fg/credits.csv: line 3")


def test_a_caption_beside_its_picture_does_not_spoil_it(tmp_path: Path) -> None:
    files = {"a.png": encoded(photo(), "PNG"), "a.txt": b"an a"}
    prepared = prepare(folder_of(tmp_path / "bg", files), "background", SAME, skip_bad=True)
    assert [source.entry.file for source in prepared.sources] == ["a.png"]
    assert prepared.skipped == (("bg/a.txt", "is not a JPEG, PNG, WebP, TIFF or BMP image"),)


def test_a_clash_of_many_files_stays_one_short_line_each(tmp_path: Path) -> None:
    endings = ("bmp", "jpg", "png", "tif", "tiff", "webp")
    files = {f"a.{ending}": encoded(photo(), "PNG") for ending in endings}
    with pytest.raises(BadSourcesError) as caught:
        prepare(folder_of(tmp_path / "bg", files), "background", SAME)
    assert len(caught.value.problems) == 6
    name, why = caught.value.problems[0]
    assert name == "bg/a.bmp"
    others = "a.jpg, a.png, a.tif ..."
    assert why == f"has the same name (without extension) as {others}; rename one of them"


def test_skip_bad_goes_on_and_records_what_it_left_out(tmp_path: Path) -> None:
    ticks: list[int] = []
    prepared = prepare(mixed(tmp_path), "foreground", SAME, skip_bad=True, progress=ticks.append)
    assert [source.entry.id for source in prepared.sources] == ["a", "b"]
    assert prepared.skipped == tuple(PROBLEMS)
    assert ticks == [1] * 6
    (first, second) = (source.entry for source in prepared.sources)
    assert (first.author, first.license, first.url) == ("", "", "")
    assert (second.author, second.license, second.url) == ("Ann", "CC0-1.0", "u")


def test_skipping_everything_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(FgbgError) as caught:
        prepare(folder_of(tmp_path / "fg", {"a.png": b""}), "foreground", SAME, skip_bad=True)
    assert str(caught.value).startswith(
        f"{tmp_path / 'fg'} holds no foreground that can be used.\n1 source cannot be used:\n"
        "  fg/a.png: is empty (0 bytes)\n"
    )


def test_a_missing_or_empty_folder(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(FgbgError) as caught:
        scan(nowhere)
    assert str(caught.value) == (
        f"{nowhere} is not a folder; give the folder that holds the images."
    )
    nowhere.mkdir()
    (nowhere / ".hidden.png").write_bytes(b"x")
    (nowhere / "credits.csv").write_text("file,author,license,url\n")
    with pytest.raises(FgbgError) as caught:
        scan(nowhere)
    assert str(caught.value) == f"{nowhere} holds no image; put the images into it."


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    files = {"a.png": b"1", ".DS_Store": b"2", ".git/b.png": b"3", "sub/c.png": b"4"}
    found = scan(folder_of(tmp_path / "bg", files))
    assert [f.file for f in found.files] == ["a.png", "sub/c.png"]


def test_an_entry_tells_name_hash_and_sizes(tmp_path: Path) -> None:
    import hashlib

    data = encoded(photo(50, 40), "PNG")
    folder = folder_of(tmp_path / "bg", {"deep/er/My photo.v2.png": data})
    (source,) = prepare(folder, "background", SAME).sources
    entry = source.entry
    assert (entry.id, entry.file) == ("My photo.v2", "deep/er/My photo.v2.png")
    assert entry.sha256 == hashlib.sha256(data).hexdigest()
    assert (entry.width, entry.height) == (32, 32)
    assert (entry.source_width, entry.source_height) == (50, 40)
    assert not entry.held_out
    assert source.png[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_folder_in_a_label_has_a_name_even_for_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder_of(tmp_path / "fg", {"a.png": b""}))
    with pytest.raises(BadSourcesError) as caught:
        prepare(Path(), "foreground", SAME)
    assert caught.value.problems == [("fg/a.png", "is empty (0 bytes)")]


def test_names_with_a_newline_an_emoji_and_quotes(tmp_path: Path) -> None:
    data = encoded(photo(), "PNG")
    names = ["a\nb.png", "🐘.png", 'it\'s "q".png', "bad\x1b[31m.png"]
    folder = folder_of(tmp_path / "bg", {**dict.fromkeys(names, data), "no\nne.png": b""})
    with pytest.raises(BadSourcesError) as caught:
        prepare(folder, "background", SAME)
    assert caught.value.problems == [("bg/no\\nne.png", "is empty (0 bytes)")]
    prepared = prepare(folder, "background", SAME, skip_bad=True)
    assert [s.entry.id for s in prepared.sources] == [
        "a\\nb", "bad\\x1b[31m", "it's \"q\"", "🐘",
    ]  # fmt: skip


def test_a_name_that_is_not_utf_8_can_be_stored(tmp_path: Path) -> None:
    # Its surrogates once ended the build when recipe.json was written.
    folder = folder_of(tmp_path / "bg", {})
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.png"), "wb") as file:  # noqa: PTH118, PTH123
        file.write(encoded(photo(), "PNG"))
    (source,) = prepare(folder, "background", SAME).sources
    assert (source.entry.id, source.entry.file) == ("caf\\udce9", "caf\\udce9.png")
    (again,) = prepare(folder, "background", SAME, known={source.entry.file: source}).sources
    assert again.png is source.png


def test_names_that_only_escaping_makes_equal_clash(tmp_path: Path) -> None:
    data = encoded(photo(), "PNG")
    folder = folder_of(tmp_path / "bg", {"a\nb.png": data, "a\\nb.png": data})
    with pytest.raises(BadSourcesError) as caught:
        prepare(folder, "background", SAME)
    assert [why for _, why in caught.value.problems] == [
        "has the same name (without extension) as a\\nb.png; rename one of them"
    ] * 2


def test_printable_keeps_letters_of_all_scripts() -> None:
    assert printable("Ä 大 ñ-🐘") == "Ä 大 ñ-🐘"
    assert printable("a\tb\r\x00\u202e\udce9") == "a\\tb\\r\\x00\\u202e\\udce9"


def test_duplicates_by_content_are_reported(tmp_path: Path) -> None:
    one, two = encoded(photo(), "PNG"), encoded(photo(40, 40), "PNG")
    folder = folder_of(tmp_path / "bg", {"c.png": one, "a.png": one, "b.png": two, "d.jpg": one})
    prepared = prepare(folder, "background", SAME)
    assert prepared.duplicates == (("a", "c", "d"),)
    assert len(prepared.sources) == 4


@pytest.mark.parametrize(("layout", "left_out"), [("scenes", True), ("pairs", False)])
def test_specks_that_nobody_sees_do_not_make_an_object_small(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, layout: str, left_out: bool
) -> None:
    # As hauxir/imgpush#49 has it of rembg: alpha of 1 or 2 at the edges of the picture.
    clean = np.zeros((120, 160, 4), np.uint8)
    clean[40:70, 50:90] = (200, 10, 10, 255)
    clean[40:70, 88:90, 3] = 90  # a soft edge belongs to the object
    specked, near = clean.copy(), clean.copy()
    specked[0, 0] = specked[-1, -1] = (9, 9, 9, 10)
    near[39, 49] = (9, 9, 9, 10)
    files = {
        name: encoded(Image.fromarray(pixels), "PNG")
        for name, pixels in (("clean.png", clean), ("near.png", near), ("specked.png", specked))
    }
    recipe = Recipe.from_dict({"layout": layout, "depth_model": "demo"})
    prepared = prepare(folder_of(tmp_path / "fg", files), "foreground", recipe)
    plain, close, cleaned = (source.pixels() for source in prepared.sources)
    assert np.array_equal(cleaned, plain) == left_out
    assert not np.array_equal(close, plain)  # hardly larger, so it is taken as it is
    assert [line for line in caplog.messages if "specks" in line] == [
        "fg: specks that nobody sees, far around it, are left out: specked.png"
        if left_out
        else "fg: specks that nobody sees, far around it, make it smaller than it should be; "
        "erase them: specked.png"
    ]


def test_a_picture_that_was_saved_again_is_the_same_source(tmp_path: Path) -> None:
    # As in tqwei05/PlantSeg#11 and stefyste/RIAWELC#2, where such copies stood in train and test.
    cut, other = blob(1, 40, 30), blob(2, 40, 30)
    files = {
        "a.png": encoded(cut, "PNG", compress_level=1),
        "b.png": encoded(cut, "PNG", compress_level=9),
        "c.webp": encoded(cut, "WEBP", lossless=True, exact=True),
        "d.png": encoded(other, "PNG"),
    }
    prepared = prepare(folder_of(tmp_path / "fg", files), "foreground", SAME)
    assert prepared.duplicates == (("a", "b", "c"),)
    known_by = contents(prepared.sources)
    hashes = [source.entry.sha256 for source in prepared.sources]
    assert known_by == (*[min(hashes[:3])] * 3, hashes[3])


# --- credits --------------------------------------------------------------------------------


def credited(tmp_path: Path, text: str | bytes) -> PreparedFolder:
    data = {name: encoded(photo(), "PNG") for name in ("a.png", "sub/b.png", "c,d.png")}
    csv = text.encode() if isinstance(text, str) else text
    return prepare(folder_of(tmp_path / "bg", {**data, "credits.csv": csv}), "background", SAME)


def credit_problems(tmp_path: Path, text: str | bytes) -> list[tuple[str, str]]:
    with pytest.raises(BadSourcesError) as caught:
        credited(tmp_path, text)
    return caught.value.problems


@pytest.mark.parametrize(
    "text",
    [
        "file,author,license,url\na.png,Ann Ä,CC0-1.0,https://x\n",
        "\ufefffile,author,license,url\r\na.png,Ann Ä,CC0-1.0,https://x\r\n",
        "URL, License ,Author,File,note\nhttps://x, CC0-1.0 ,Ann Ä,a.png,mine\n\n , , , ,\n",
        'file,author,license,url\n"a.png","Ann Ä","CC0-1.0","https://x"',
        "sep=;\r\nfile;author;license;url\r\na.png;Ann Ä;CC0-1.0;https://x\r\n",
        "file;author;license;url\r\na.png;Ann Ä;CC0-1.0;https://x\r\n",
        "file\tauthor\tlicence\turl\na.png\tAnn Ä\tCC0-1.0\thttps://x\n",
        "file\tauthor\tlicense\turl\na.png\tAnn Ä\tCC0-1.0\thttps://x\n".encode("utf-16"),
        "file,author,license,url\nA.PNG,Ann Ä,CC0-1.0,https://x\n",
    ],
    ids=[
        *(
            "plain",
            "excel",
            "licence, other order",
            "quoted",
            "sep=",
            "semicolons",
            "tabs",
            "unicode text",
        ),
        "another case",
    ],
)
def test_credits_are_read_and_carried(tmp_path: Path, text: str | bytes) -> None:
    entries = [source.entry for source in credited(tmp_path, text).sources]
    assert [(e.id, e.author, e.license, e.url) for e in entries] == [
        ("a", "Ann Ä", "CC0-1.0", "https://x"),
        ("b", "", "", ""),
        ("c,d", "", "", ""),
    ]
    assert uncredited(entries) == ["b", "c,d"]
    assert license_counts(entries) == {"CC0-1.0": 1}


def test_credits_name_files_of_subfolders_and_with_commas(tmp_path: Path) -> None:
    text = 'file,author,license,url\nsub/b.png,B,MIT,\n"c,d.png","D, Dora",MIT,\n'
    entries = [source.entry for source in credited(tmp_path, text).sources]
    assert [(e.author, e.license) for e in entries] == [("", ""), ("B", "MIT"), ("D, Dora", "MIT")]
    assert license_counts(entries) == {"MIT": 2}


@pytest.mark.parametrize(
    "name", ["./sub/b.png", " sub/b.png ", "sub\\b.png", ".\\sub\\b.png", "SUB/B.PNG"]
)
def test_credits_name_files_as_systems_list_them(tmp_path: Path, name: str) -> None:
    entries = [source.entry for source in credited(tmp_path, f"{HEAD}{name},B,MIT,\n").sources]
    assert license_counts(entries) == {"MIT": 1}


HEAD = "file,author,license,url\n"
NAME_ALL = "its first line must name all of file, author, license, url"


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (HEAD + "x.png,A,B,C\n", ["line 2 names 'x.png', which is not there"]),
        (HEAD + "b.png,A,B,C\n", ["line 2 names 'b.png', which is not there"]),
        (HEAD + "a.png,A,B,C\na.png,A,B,C\n", ["line 3 names 'a.png' a second time"]),
        (HEAD + "a.png,A,B\nsub/b.png,A,B,C,D\n",
         ["line 2 has 3 cells, not 4", "line 3 has 5 cells, not 4"]),
        ("file,author\n", [f"has no column license, url; {NAME_ALL}"]),
        ("", [f"has no column file, author, license, url; {NAME_ALL}"]),
        ("file:author:license:url\n", [f"has no column file, author, license, url; {NAME_ALL}"]),
    ],
)  # fmt: skip
def test_wrong_credits_are_told_by_line(tmp_path: Path, text: str, reasons: list[str]) -> None:
    assert credit_problems(tmp_path, text) == [("bg/credits.csv", why) for why in reasons]


@pytest.mark.parametrize(
    ("data", "due"),
    [
        (b"\xff\xfe\x00", "is not in UTF-8; save it as `CSV UTF-8`"),
        (HEAD.encode() + b"a.png,Andr\xe9,B,C\n", "is not in UTF-8; save it as `CSV UTF-8`"),
        (HEAD.encode() + b'"a.png', "cannot be read as CSV (unexpected end of data)"),
        (b"sep=;\r\nfile;author;license;url\r\na.png;B;C\r\n", "line 3 has 3 cells, not 4"),
    ],
)
def test_credits_that_are_no_utf_8_csv(tmp_path: Path, data: bytes, due: str) -> None:
    assert credit_problems(tmp_path, data) == [("bg/credits.csv", due)]


TOO_LARGE = "it has 16,777,240 bytes; at most 16,777,216 are read"


def test_credits_of_absurd_size_are_not_read(tmp_path: Path) -> None:
    assert credit_problems(tmp_path, HEAD.encode() + b"\n" * 2**24) == [
        ("bg/credits.csv", f"cannot be read as CSV ({TOO_LARGE})")
    ]


# --- preparing again ------------------------------------------------------------------------


def test_what_was_prepared_before_is_used_again_only_with_equal_content(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path / "bg",
        {"a.png": encoded(photo(), "PNG"), "b.png": encoded(photo(40, 40), "PNG"),
         "credits.csv": b"file,author,license,url\na.png,Ann,MIT,u\n"},
    )  # fmt: skip
    first = prepare(folder, "background", SAME)
    known = {source.entry.file: source for source in first.sources}
    (folder / "b.png").write_bytes(encoded(photo(50, 50), "PNG"))
    (folder / "credits.csv").write_bytes(b"file,author,license,url\nb.png,Bob,MIT,u\n")
    second = prepare(folder, "background", SAME, known=known)
    assert second.sources[0].png is first.sources[0].png
    assert second.sources[1].png != first.sources[1].png
    assert second.sources[1].entry.source_width == 50
    # Credits are always those of today.
    assert [source.entry.author for source in second.sources] == ["", "Bob"]


def test_equal_files_prepare_to_equal_bytes(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path / "fg", {f"{i}.png": encoded(blob(i, 60, 90), "PNG") for i in range(6)}
    )
    runs = [prepare(folder, "foreground", Recipe()).sources for _ in range(2)]
    assert runs[0] == runs[1]


def test_the_bank_gives_the_prepared_pixels(sources: tuple[Path, Path]) -> None:
    prepared: list[tuple[Source, ...]] = [
        prepare(folder, kind, Recipe()).sources
        for folder, kind in zip(sources, ("foreground", "background"), strict=True)
    ]
    bank = SourceBank(*prepared)
    for index, source in enumerate(prepared[0]):
        image = cv2.imdecode(np.frombuffer(source.png, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(bank.foreground(index), image[..., [2, 1, 0, 3]])
        assert max(bank.foreground(index).shape) == 100
    assert bank.background(2).shape == (224, 224, 3)
    assert bank.background(2) is bank.background(2)


def test_what_lies_beside_a_background_is_stretched_with_it(tmp_path: Path) -> None:
    wide = np.full((40, 80), 1000, np.uint16)
    wide[:, :20] = 2000  # which a crop would take away
    files = {"x.png": encoded(scene(1, 80, 40), "PNG")}
    files["x.depth.png"] = encoded(Image.fromarray(wide), "PNG")
    files["x.ground.png"] = encoded(Image.fromarray((wide > 1000) * np.uint8(255)), "PNG")
    folder = folder_of(tmp_path / "bg", files)
    for fit, left in (("stretch", 10), ("crop", 0)):
        recipe = Recipe(
            size=40, foreground_size=20, background_fit=fit, depth_source="composed",
            depth_model="measured",
        )  # fmt: skip
        if fit == "crop":
            (folder / "x.ground.png").unlink()
        (source,) = prepare(folder, "background", recipe).sources
        assert source.given.depth is not None
        assert (source.given.depth[:, :left] == 2000).all()
        assert (source.given.depth[:, left:] == 1000).all()
        if source.given.ground is not None:
            assert (source.given.ground == (source.given.depth == 2000)).all()


def test_of_two_companions_the_bad_one_is_named(tmp_path: Path) -> None:
    files = {"x.png": encoded(scene(1, 40, 40), "PNG")}
    files["x.depth.png"] = encoded(Image.fromarray(np.full((40, 40), 9, np.uint16)), "PNG")
    files["x.ground.png"] = encoded(Image.new("L", (40, 40)), "PNG")
    recipe = Recipe(layout="scenes", size=32, depth_model="measured")
    with pytest.raises(BadSourcesError) as caught:
        prepare(folder_of(tmp_path / "bg", files), "background", recipe)
    ((_, reason),) = caught.value.problems
    assert reason.startswith("has x.ground.png beside it, which has no pixel that is ground")


def test_a_cut_out_that_turning_leaves_nothing_of_is_refused(tmp_path: Path) -> None:
    dots = np.zeros((70, 70, 4), np.uint8)
    dots[::69, ::69] = (200, 200, 200, 128)
    folder = folder_of(tmp_path / "fg", {"x.png": encoded(Image.fromarray(dots), "PNG")})
    with pytest.raises(BadSourcesError, match="half opaque when it is turned"):
        prepare(folder, "foreground", Recipe(layout="scenes", size=64, rotation=10.0))


def test_all_sizes_of_a_foreground_are_hashed_with_the_set(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "fg", {"x.png": encoded(blob(1, 30, 40), "PNG")})
    (source,) = prepare(folder, "foreground", Recipe(layout="scenes", size=64)).sources
    assert source.entry.prepared_sha256 == source.sizes_sha256
    fewer, swapped = source.levels[:-1], (*source.levels[:-2], *source.levels[:-3:-1])
    for levels in (fewer, swapped):
        assert replace(source, levels=levels).sizes_sha256 != source.sizes_sha256
    (pair,) = prepare(folder, "foreground", Recipe(size=64, foreground_size=40)).sources
    assert pair.entry.prepared_sha256 == ""  # as it was in 0.1.0
