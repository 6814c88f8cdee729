"""Damaged source files are used or refused with a sentence; nothing else happens."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from builder.errors import BadSourcesError
from builder.recipe import Recipe
from builder.sources.decode import Kind
from builder.sources.fringe import decontaminated
from builder.sources.prepare import PreparedFolder, prepare
from tests.pictures import blob, scene

RECIPE = Recipe(size=16, foreground_size=8)


def valid_images() -> list[bytes]:
    """Small files of every format that is read, with and without alpha."""
    made = []
    for image in (scene(0, 24, 20), blob(1, 24, 20), scene(2, 24, 20).quantize(16)):
        for file_format in ("PNG", "WEBP", "TIFF", "BMP", "JPEG"):
            if file_format == "JPEG" and image.mode != "RGB":
                continue
            exif = Image.Exif()
            exif[0x0112] = 6
            options = {} if file_format == "BMP" else {"exif": exif}
            buffer = io.BytesIO()
            image.save(buffer, file_format, **options)
            made.append(buffer.getvalue())
    return made


VALID = valid_images()


def outcome(files: dict[str, bytes], kind: Kind) -> PreparedFolder:
    """Prepare files with skip_bad; one good file is always among them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        good = io.BytesIO()
        blob(0, 24, 24).save(good, "PNG")
        (folder / "good.png").write_bytes(good.getvalue())
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return prepare(folder, kind, RECIPE, skip_bad=True)


def assert_used_or_refused(files: dict[str, bytes], kind: Kind) -> None:
    prepared = outcome(files, kind)
    used, refused = {s.entry.file for s in prepared.sources}, {n for n, _ in prepared.skipped}
    assert used | {name.removeprefix("in/") for name in refused} == {"good.png", *files}
    assert len(used) + len(refused) == len(files) + 1
    for source in prepared.sources:
        pixels = source.pixels()
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == (4 if kind == "foreground" else 3)
        if kind == "foreground":
            assert max(pixels.shape[:2]) == 8
            assert (pixels[..., 3] >= 128).any()
    for _, reason in prepared.skipped:
        assert reason
        assert "\n" not in reason
        assert reason.split()[0] in ("is", "has", "needs", "can")


kinds: st.SearchStrategy[Kind] = st.sampled_from(["foreground", "background"])


@given(st.binary(max_size=200), st.sampled_from([b"", *(v[:12] for v in VALID)]), kinds)
def test_random_bytes_behind_any_signature(content: bytes, head: bytes, kind: Kind) -> None:
    assert_used_or_refused({"x.png": head + content}, kind)


@given(st.sampled_from(VALID), st.integers(0, 10_000), kinds)
def test_a_valid_image_cut_anywhere(data: bytes, at: int, kind: Kind) -> None:
    assert_used_or_refused({"x.png": data[: at % len(data)]}, kind)


@settings(max_examples=200)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    kinds,
)
def test_a_valid_image_with_some_bytes_changed(
    data: bytes, changes: list[tuple[int, int]], kind: Kind
) -> None:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    assert_used_or_refused({"x.png": bytes(damaged)}, kind)


@pytest.mark.parametrize("kind", ["foreground", "background"])
def test_hundreds_of_damaged_files_at_once(kind: Kind) -> None:
    rng = np.random.default_rng(0)
    files = {}
    for i in range(300):
        damaged = bytearray(VALID[i % len(VALID)])
        for at in rng.integers(0, len(damaged), rng.integers(1, 6)):
            damaged[at] = rng.integers(256)
        files[f"{i:03}.img"] = bytes(damaged[: rng.integers(1, len(damaged) + 1)])
    assert_used_or_refused(files, kind)


@given(
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30
    )
)
def test_any_file_name_fits_on_one_line(name: str) -> None:
    name = name.encode()[:200].decode(errors="ignore")
    if name.startswith(".") or name in ("good.png", "credits.csv"):
        return
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "in"
        folder.mkdir()
        (folder / name).write_bytes(b"")
        with pytest.raises(BadSourcesError) as caught:
            prepare(folder, "background", RECIPE)
    ((label, reason),) = caught.value.problems
    assert label.isprintable()
    assert reason == "is empty (0 bytes)"


@given(st.text(max_size=60), kinds)
def test_any_credits_file_is_read_or_refused(text: str, kind: Kind) -> None:
    content = "file,author,license,url\n" + text
    data = content.encode("utf-8", errors="surrogatepass")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "in"
        folder.mkdir()
        blob(0, 24, 24).save(folder / "good.png")
        (folder / "credits.csv").write_bytes(data)
        try:
            problems = prepare(folder, kind, RECIPE, skip_bad=True).skipped
        except BadSourcesError as error:
            problems = tuple(error.problems)
    assert {name for name, _ in problems} <= {"in/credits.csv"}
    assert all(reason.isprintable() for _, reason in problems)


@settings(max_examples=60, deadline=None)
@given(
    pixels=st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
        lambda shape: st.integers(0, 2**32 - 1).map(
            lambda seed: np.random.default_rng(seed).integers(0, 256, (*shape, 4), np.uint8)
        )
    ),
    steps=st.sampled_from([(0, 128, 255), (0, 1, 239, 240, 255), tuple(range(256))]),
)
def test_opaque_and_transparent_pixels_of_a_cut_out_never_change(
    pixels: np.ndarray, steps: tuple[int, ...]
) -> None:
    pixels[..., 3] = np.array(steps, np.uint8)[pixels[..., 3].astype(int) * len(steps) // 256]
    image, alpha = Image.fromarray(pixels), pixels[..., 3]
    mended, halo = decontaminated(image)
    after = np.asarray(mended)
    assert (after[..., 3] == alpha).all()
    kept = (alpha == 0) | (alpha == 255)
    assert (after[kept] == pixels[kept]).all()
    assert (image.tobytes() == mended.tobytes()) or halo > 0
    assert 0 <= halo <= 255
    assert float(np.float32(halo)) == halo
    assert decontaminated(Image.fromarray(pixels))[0].tobytes() == mended.tobytes()
