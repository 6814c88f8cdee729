"""Photographs of any hand for `fgbg cutout`: used or refused, in bounded memory, nothing run."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builder.recipe import Recipe
from builder.sources import prepare
from tests.e2e.running import COMMAND
from tests.hostile.corpus import flat_png
from tests.hostile.running import PEAK, assert_sentence, limited
from tests.pictures import ADOBE_RGB, encoded, scene

WIDTH, HEIGHT = 160, 120
# The cell of a spreadsheet that begins so is run, a line of a shell is an option, and so on.
NAMES = (
    *("new\nline", "-rf", "=cmd()", "+1", "@SUM(1)", 'a,"b', "\x1b[31mred", "x'><script>alert(1)"),
    *("tab\t", " space ", "é", "\u202egpj", "%00", "$(touch ran)", ";touch ran"),
)


def studio(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A red ellipse before grey, with noise."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    pixels = np.where((np.hypot(x, y) < 0.6)[..., None], (200, 40, 50), (128, 128, 128))
    noise = np.random.default_rng(0).integers(-2, 3, pixels.shape)
    return Image.fromarray((pixels + noise).astype(np.uint8))


def used_files() -> dict[str, bytes]:
    plain = studio()
    jpeg, turned = encoded(plain, "JPEG", quality=95), Image.Exif()
    turned[274] = 6
    profile = {"quality": 95, "icc_profile": ADOBE_RGB}
    grey16 = Image.fromarray(np.asarray(plain.convert("L")).astype(np.uint16) * 257)
    on_side = plain.transpose(Image.Transpose.ROTATE_90)
    return {
        **{f"{name}.jpg": jpeg for name in NAMES},
        "16.png": encoded(grey16, "PNG"),
        "cmyk.jpg": encoded(plain.convert("CMYK"), "JPEG", quality=95),
        "palette.png": encoded(plain.quantize(64), "PNG"),
        "still.webp": encoded(plain, "WEBP", lossless=True),
        "turned.jpg": encoded(on_side, "JPEG", quality=95, exif=turned),
        "adobe.jpg": encoded(plain, "JPEG", **profile),
        "no-profile.jpg": encoded(plain, "JPEG", quality=95, icc_profile=b"junk" * 99),
    }


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut-short.jpg": (lambda: encoded(studio(), "JPEG")[:1500], "is damaged or cut short"),
    "bomb.png": (lambda: flat_png(13370, 1, 0, 1), "no photograph is that empty"),
    "line.png": (lambda: encoded(Image.new("RGB", (30000, 1)), "PNG"), "too small to use"),
    "strip.png": (lambda: encoded(scene(1, 30000, 3), "PNG"), "too small to cut out"),
    "moved.gif": (
        lambda: encoded(studio(), "GIF", save_all=True, append_images=[studio()]),
        "is a GIF",
    ),
    "moving.webp": (
        lambda: encoded(studio(), "WEBP", save_all=True, append_images=[scene(1, 160, 120)]),
        "has 2 frames",
    ),
    "hole.png": (lambda: encoded(studio().quantize(8), "PNG", transparency=3), "a cut-out already"),
    "drawing.jpg": (lambda: b"<svg><script>open(1)</script></svg>", "is not a JPEG"),
    "page.jpg": (lambda: b"<!doctype html><script>open('/ran')</script>", "is a web page"),
    "program.jpg": (lambda: Path(sys.executable).read_bytes()[:4096], "is not a JPEG"),
    "postscript.jpg": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n(ran) (w) file\n", "is not a JPEG"),
    "nothing.jpg": (lambda: b"", "is empty"),
    "noise.png": (lambda: np.random.default_rng(1).bytes(5000), "is not a JPEG"),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder of a run over everything at once, its result and what it printed."""
    root = tmp_path_factory.mktemp("hostile")
    photos = root / "photos"
    photos.mkdir()
    for name, data in used_files().items():
        (photos / name).write_bytes(data)
    for name, (make, _) in REFUSED.items():
        (photos / name).write_bytes(make())
    Path(os.fsdecode(os.fsencode(photos) + b"/\xff.jpg")).write_bytes(encoded(studio(), "JPEG"))
    os.mkfifo(photos / "pipe.jpg")
    (root / "outside.jpg").write_bytes(encoded(studio(), "JPEG"))
    (photos / "link.jpg").symlink_to(root / "outside.jpg")
    (photos / "zero.jpg").symlink_to("/dev/zero")
    (photos / "circle.jpg").symlink_to("circle.jpg")
    command = [*COMMAND, "cutout", "photos", "out", "--json", "--workers", "2"]
    done = limited(command, cwd=root)
    assert done.returncode == 2, done.stderr
    return root, json.loads(done.stdout), done.stderr


def test_every_photograph_is_used_or_refused_with_its_reason(run) -> None:
    root, result, printed = run
    reasons = {one["file"]: one["reason"] for one in result["refused"]}
    due = {name: words for name, (_, words) in REFUSED.items()} | {
        "\\udcff.jpg": "has a name that is not UTF-8", "pipe.jpg": "is a pipe",
        "link.jpg": "leads out of the folder", "zero.jpg": "leads out of the folder",
        "circle.jpg": "cannot be read",
    }  # fmt: skip
    assert reasons.keys() == due.keys()
    for name, words in due.items():
        assert words in reasons[name]
        assert_sentence(reasons[name])
    assert "Traceback" not in printed and "\x1b" not in printed
    made = {Path(name).with_suffix(".png").name for name in used_files()}
    assert set(result["cut"]) == made
    for name in made:
        with Image.open(root / "out" / name) as image:
            alpha = np.asarray(image)[..., 3]
            # As wide and high as the ellipse, turned upright.
            assert np.abs(np.subtract(alpha.shape, (0.6 * HEIGHT, 0.6 * WIDTH))).max() <= 8
            ellipse = np.pi * 0.3 * WIDTH * 0.3 * HEIGHT
            assert (alpha > 127).sum() == pytest.approx(ellipse, rel=0.05)


def test_nothing_of_them_was_run_and_nothing_outside_was_touched(run) -> None:
    root, _, _ = run
    assert {path.name for path in root.iterdir()} == {"photos", "out", "outside.jpg"}
    assert not list(root.rglob("ran"))
    page = (root / "out" / "report.html").read_text()
    assert "<script" not in page and "onerror" not in page
    assert "&lt;script&gt;" in page


def test_credits_name_every_cut_out_and_no_name_is_a_formula(run) -> None:
    root, result, _ = run
    with (root / "out" / "credits.csv").open(newline="", encoding="utf-8") as file:
        cells = [row["file"] for row in csv.DictReader(file)]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r"))]
    assert {cell.removeprefix("./") for cell in cells} == set(result["cut"])
    command = [*COMMAND, "cutout", "photos", "out", "--json", "--skip-bad"]
    again = json.loads(limited(command, cwd=root).stdout)
    assert (again["cut"], set(again["kept"])) == ([], set(result["cut"]))
    with (root / "out" / "credits.csv").open(newline="", encoding="utf-8") as file:
        assert [row["file"] for row in csv.DictReader(file)] == cells
    ready = prepare(root / "out", "foreground", Recipe(foreground_size=32))
    assert len(ready.sources) == len(cells)
    assert all(source.entry.tool.startswith("fgbg-dataset ") for source in ready.sources)


_CUTOUT = f"""{PEAK}
import sys
from builder.cutout import cutout
assert not cutout(sys.argv[1], sys.argv[2], workers=2).refused
print(peak_mib())
"""


@pytest.mark.slow
def test_many_photographs_of_12_megapixels_take_the_memory_of_two(tmp_path: Path) -> None:
    data = encoded(studio(4000, 3000), "JPEG", quality=90)
    peaks = []
    for number in (2, 8):
        photos = tmp_path / f"photos{number}"
        photos.mkdir()
        for n in range(number):
            (photos / f"{n}.jpg").write_bytes(data)
        command = [sys.executable, "-c", _CUTOUT, str(photos), str(tmp_path / f"out{number}")]
        done = limited(command)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 200
    assert peaks[1] < 1200
