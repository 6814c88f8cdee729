"""Damaged and malicious pictures: each is used or refused by name; nothing crashes or hangs."""

from __future__ import annotations

import struct
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builder.sources.decode import Kind
from tests.hostile.corpus import damaged, flat_png, valid_files, zeros
from tests.hostile.running import assert_sentence, prepared
from tests.pictures import as_jpeg_of, blob, encoded, png, scene

KINDS: tuple[Kind, ...] = ("background", "foreground")


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def used_and_refused(folder: Path, kind: Kind) -> tuple[set[str], dict[str, str]]:
    """Prepare in a limited process; check that every file is used or refused with a sentence."""
    result = prepared(folder, kind)
    used, refused = set(result["used"]), {}
    for label, why in result["refused"]:
        assert_sentence(why)
        assert why.split()[0] in ("is", "has", "needs", "can")
        refused[label.removeprefix(f"{folder.name}/")] = why
    assert used | set(refused) == {path.name for path in folder.iterdir()}
    assert not used & set(refused)
    return used, refused


def test_the_undamaged_files_are_what_they_claim(tmp_path: Path) -> None:
    """Or the damaged ones would test nothing: only GIF and animations may be refused."""
    folder = folder_of(tmp_path / "in", valid_files())
    used, refused = used_and_refused(folder, "background")
    assert refused == {
        "gif": "is a GIF, which is not read; convert it to JPEG or PNG",
        "png-animated": "has 3 frames; save one of them as an image",
        "webp-animated": "has 3 frames; save one of them as an image",
        "tiff-pages": "has 3 frames; save one of them as an image",
    }
    assert len(used) > 45
    for name, pixels in (
        ("tiff-tiles", scene(1, 37, 29)),
        ("png-rgba-interlaced", blob(2, 37, 29)),
    ):
        with Image.open(folder / name) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(pixels))


def fuzz(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Prepare damaged files as either kind; return how many were used and refused."""
    files = {"good.png": encoded(blob(0, 24, 24), "PNG"), **dict(damaged(count, seed))}
    counts = {"files": count, "used": 0, "refused": 0}
    folder_of(folder, files)
    for kind in KINDS:
        used, refused = used_and_refused(folder, kind)
        assert "good.png" in used
        counts["used"] += len(used) - 1
        counts["refused"] += len(refused)
    return counts


def test_damaged_files_of_every_format_are_used_or_refused(tmp_path: Path) -> None:
    counts = fuzz(tmp_path / "in", 240, seed=0)
    assert counts["used"] > 40
    assert counts["refused"] > 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began, total = time.monotonic(), {"files": 0, "used": 0, "refused": 0}
    for seed in range(1, 11):
        for name, count in fuzz(tmp_path / f"{seed}", 1000, seed).items():
            total[name] += count
    assert total["files"] == 10_000
    with capsys.disabled():
        print(
            f"\nfuzzed images: {total['files']:,} files of {len(valid_files())} kinds, each as "
            f"background and as foreground: used {total['used']:,}, refused {total['refused']:,}, "
            f"crashes 0, {time.monotonic() - began:.0f} s"
        )


def webp_canvas(side: int) -> bytes:
    """A WebP animation of one 16 px frame on a canvas that is `side` square."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return name + struct.pack("<I", len(content)) + content

    little = (15).to_bytes(3, "little")
    picture = encoded(scene(1, 16, 16), "WEBP", lossless=True)[12:]
    canvas = b"\x12\0\0\0" + (side - 1).to_bytes(3, "little") * 2
    frame = bytes(6) + little * 2 + bytes(4) + picture
    body = chunk(b"VP8X", canvas) + chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", frame)
    return chunk(b"RIFF", b"WEBP" + body)


def tiff_of(**tags: int) -> bytes:
    entries = {"256": 9, "257": 9, "258": 8, "259": 1, "262": 1, "273": 200, "277": 1, "279": 81}
    entries |= {"278": 9, **{name[1:]: value for name, value in tags.items()}}
    ordered = sorted((int(tag), value) for tag, value in entries.items())
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in ordered)
    return b"II*\0" + struct.pack("<IH", 8, len(ordered)) + listed + bytes(200)


@cache
def scans_of(repeats: int) -> bytes:
    """A progressive JPEG whose last scan is there many times, 31 bytes each."""
    data = encoded(Image.new("L", (640, 640), 128), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * repeats + data[-2:]


TEXT_BOMB = "Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK"
BOMBS = {
    "zTXt": (lambda: text_bomb(b"zTXt", b"k\0\0"), TEXT_BOMB),
    "iTXt": (lambda: text_bomb(b"iTXt", b"k\0\1\0\0\0"), TEXT_BOMB),
    "iCCP": (lambda: text_bomb(b"iCCP", b"k\0\0"), TEXT_BOMB),
    "jpeg": (lambda: as_jpeg_of(65500, 65500), "too large to be safe"),
    "webp": (lambda: webp_canvas(16383), "too large to be safe"),
    "webp over its limit": (lambda: webp_canvas(2**24), "too large to be safe"),
    "tiff": (lambda: tiff_of(_256=2**31 - 1, _257=2**31 - 1), "too large to be safe"),
    "tiff, one strip": (lambda: tiff_of(_256=13000, _257=13000, _278=13000), "no photograph"),
    "bmp": (
        lambda: b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 2**31 - 1, 1 - 2**31, 1, 24)
        + bytes(24),
        "too large to be safe",
    ),
    "webp of 34 bytes": (
        lambda: encoded(Image.new("RGBA", (8000, 8000)), "WEBP", lossless=True, method=0),
        "is 8000x8000 px in 34 bytes; no photograph is that empty",
    ),
    "jpeg of a kilobyte": (lambda: as_jpeg_of(13000, 13000), "no photograph is that empty"),
    "png, 1 bit": (lambda: flat_png(13370, 1, 0, 1), "no photograph is that empty"),
    "scans": (lambda: scans_of(2000), "has more than 100 scans; save it again as JPEG"),
}  # fmt: skip


def text_bomb(kind: bytes, head: bytes) -> bytes:
    rows = [bytes(24 * 4)] * 20
    return png(24, 20, 8, 6, rows, (kind, head + zeros(2**26)))


def test_bombs_are_refused_without_their_memory(tmp_path: Path) -> None:
    """Each of these is below half a megabyte and claims up to gigabytes, or hours of decoding."""
    files = {name: make() for name, (make, _) in BOMBS.items()}
    assert max(map(len, files.values())) < 500_000
    folder = folder_of(tmp_path / "in", {**files, "good": encoded(scene(0, 24, 24), "PNG")})
    result = prepared(folder, "background")
    assert result["used"] == ["good"]
    refused = {label.removeprefix("in/"): why for label, why in result["refused"]}
    for name, (_, sentence) in BOMBS.items():
        assert sentence in refused[name]
        assert_sentence(refused[name])
    assert result["peak_mib"] < 250


def test_ordinary_progressive_jpegs_are_used(tmp_path: Path) -> None:
    files = {f"{n}.jpg": scans_of(n) for n in (0, 50)}
    # A picture inside the metadata, as phones store it, has scans of its own.
    files["preview.jpg"] = encoded(scene(1, 64, 64), "JPEG", progressive=True, comment=scans_of(99))
    used, refused = used_and_refused(folder_of(tmp_path / "in", files), "background")
    assert (used, refused) == (set(files), {})


def test_large_pictures_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    files = {f"{n}.png": flat_png(6000, 8, 6, 4) for n in range(2)}
    folder = folder_of(tmp_path / "in", files)
    result = prepared(folder, "background")
    assert sorted(result["used"]) == sorted(files)
    assert result["peak_mib"] < 450  # one takes 340, two at once 600
    # Refused, for they are wholly transparent; the errors once kept every picture decoded.
    assert prepared(folder, "foreground")["peak_mib"] < 350


@pytest.mark.slow
def test_the_largest_pictures_take_little_more_than_their_pixels(tmp_path: Path) -> None:
    """178 million pixels are 682 MiB as Pillow holds them; a second copy is made of some."""
    files = {
        "rgba.png": flat_png(13370, 8, 6, 4),
        "rgb16.png": flat_png(13370, 16, 2, 3),
        "grey16.png": flat_png(13370, 16, 0, 1),
        "grey-alpha.png": flat_png(13370, 8, 4, 2),
    }
    folder = folder_of(tmp_path / "in", files)
    result = prepared(folder, "background")
    assert sorted(result["used"]) == sorted(files)
    assert result["peak_mib"] < 1600
    assert prepared(folder, "foreground")["peak_mib"] < 1600


@pytest.mark.parametrize("size", [(65535, 2), (2, 65535)])
def test_strips_of_65535_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    for kind, image in (("background", scene(1, *size)), ("foreground", blob(1, *size))):
        folder = folder_of(tmp_path / kind, {"strip.png": encoded(image, "PNG")})
        assert prepared(folder, kind)["used"] == ["strip.png"]
