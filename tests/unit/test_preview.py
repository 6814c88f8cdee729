"""The sample sheet and the preview page show what the build holds, pixel by pixel."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from builder.errors import NotABuildError
from builder.record.composition import Pixels
from builder.record.plan import Plan
from builder.record.render import Record, Renderer
from builder.release.preview import (
    FARTHEST,
    LUT,
    NEAREST,
    PAGE_RECORDS,
    SHEET_ROWS,
    DepthScale,
    SheetLayout,
    choose,
    read_rows,
    shares,
    write_preview,
)
from tests.previews import METRIC, RELATIVE, make_build

Folders = tuple[Path, Path]
WITH_DEPTH = ("foreground", "background", "fg_bg", "mask", "depth")
UNKNOWN = {tuple(LUT[0].tolist()), tuple(LUT[255].tolist())}


class Page(HTMLParser):
    """Tags with their attributes, and all text, as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def cards(self) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if attrs.get("class") == "card"]

    def pictures(self, alt: str) -> list[Image.Image]:
        """Return the images whose alternative text starts like this."""
        found = [a for tag, a in self.tags if tag == "img" and str(a["alt"]).startswith(alt)]
        return [decode(str(attrs["src"])) for attrs in found]


def decode(uri: str) -> Image.Image:
    assert uri.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def sheet_rows(plan: Plan) -> list[int]:
    """Return the ids of the records on the sheet, in order."""
    ids = []
    for name, count in shares(plan, SHEET_ROWS).items():
        positions = choose(plan)[name][:count]
        ids += [int(plan.splits[name].record_ids(p, p + 1)[0]) for p in positions]
    return ids


def cell(sheet: Image.Image, layout: SheetLayout, row: int, column: str) -> Pixels:
    left, top = layout.cell(row, column)
    return np.asarray(sheet.crop((left, top, left + layout.side, top + layout.side)))


def enlarged(pixels: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.fixture(scope="module")
def built(
    sources: Folders, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Renderer, Plan]:
    """64 px, lossless, four splits, several row groups and shards."""
    out = tmp_path_factory.mktemp("build") / "out"
    choices = {"size": 64, "foreground_size": 24, "placements": 9, "shard_records": 60}
    renderer, plan = make_build(out, sources, image_format="png", **choices)
    write_preview(out)
    return out, renderer, plan


@pytest.fixture(scope="module")
def page(built: tuple[Path, Renderer, Plan]) -> Page:
    return Page((built[0] / "assets/preview.html").read_text(encoding="utf-8"))


def test_the_sheet_shows_the_exact_pixels_of_its_records(
    built: tuple[Path, Renderer, Plan],
) -> None:
    out, renderer, plan = built
    ids = sheet_rows(plan)
    layout = SheetLayout(64, WITH_DEPTH, len(ids))
    with Image.open(out / "assets/samples.png") as sheet:
        assert sheet.size == (layout.width, layout.height)
        for row, record_id in enumerate(ids):
            record = renderer.compose(record_id)
            shown = cell(sheet, layout, row, "fg_bg")
            np.testing.assert_array_equal(shown, enlarged(record.fg_bg, 4))
            mask = cell(sheet, layout, row, "mask")
            np.testing.assert_array_equal(mask, enlarged(record.mask, 4)[..., None].repeat(3, 2))
            background = read_background(out, plan, record_id)
            shown = cell(sheet, layout, row, "background")
            np.testing.assert_array_equal(shown, enlarged(background, 4))


def read_background(out: Path, plan: Plan, record_id: int) -> npt.NDArray[Any]:
    table = pq.read_table(out / "backgrounds/train-00000-of-00001.parquet")
    png = table["image"][plan.combination(record_id).background]["bytes"].as_py()
    return np.asarray(Image.open(io.BytesIO(png)))


def test_foregrounds_lie_in_the_middle_of_a_checkerboard(
    built: tuple[Path, Renderer, Plan],
) -> None:
    out, _, plan = built
    layout = SheetLayout(64, WITH_DEPTH, SHEET_ROWS)
    with Image.open(out / "assets/samples.png") as sheet:
        shown = cell(sheet, layout, 0, "foreground")
    assert (shown[:8, :8] == 255).all()
    assert shown[0, 8].tolist() == shown[8, 0].tolist() == [222] * 3
    assert shown[8, 8].tolist() == [255] * 3
    index = plan.combination(sheet_rows(plan)[0]).foreground
    table = pq.read_table(out / "foregrounds/train-00000-of-00001.parquet")
    foreground = Image.open(io.BytesIO(table["image"][index]["bytes"].as_py()))
    pixels = np.asarray(foreground)
    middle = (layout.side - 4 * foreground.height) // 2, (layout.side - 4 * foreground.width) // 2
    y, x = foreground.height // 2, foreground.width // 2
    assert pixels[y, x, 3] == 255
    at = shown[middle[0] + 4 * y, middle[1] + 4 * x]
    assert at.tolist() == pixels[y, x, :3].tolist()


def test_depth_is_coloured_near_bright_and_unknown_hatched(
    built: tuple[Path, Renderer, Plan],
) -> None:
    layout = SheetLayout(64, WITH_DEPTH, SHEET_ROWS)
    with Image.open(built[0] / "assets/samples.png") as sheet:
        left, top, width, height = layout.bar
        bar = np.asarray(sheet.crop((left, top, left + width, top + height)))
        depth = cell(sheet, layout, 0, "depth")
    assert (bar[:, 0] == LUT[NEAREST]).all()
    assert (bar[:, -1] == LUT[FARTHEST]).all()
    assert (depth[-1] == LUT[NEAREST]).all()  # 1 m
    assert (depth[0, -1] == LUT[FARTHEST]).all()  # 8 m
    corner = {
        tuple(c) for c in depth[: layout.side // 4, : layout.side // 4].reshape(-1, 3).tolist()
    }
    rest = {tuple(c) for c in depth[layout.side // 4 :].reshape(-1, 3).tolist()}
    assert corner == UNKNOWN
    assert not rest & UNKNOWN


def test_colours_are_distinct_and_ever_lighter_towards_near() -> None:
    known = LUT[FARTHEST : NEAREST + 1]
    assert len(np.unique(known, axis=0)) == len(known)
    linear = np.where(known <= 10, known / 3294.6, ((known / 255 + 0.055) / 1.055) ** 2.4)
    lightness = linear @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()
    assert not {tuple(c) for c in known.tolist()} & UNKNOWN


def test_the_choice_is_varied_and_covers_every_split(
    built: tuple[Path, Renderer, Plan],
) -> None:
    plan = built[2]
    chosen = choose(plan)
    assert list(chosen) == list(plan.splits)
    assert sum(map(len, chosen.values())) == PAGE_RECORDS
    assert all(len(set(positions)) == len(positions) for positions in chosen.values())
    combinations = [plan.combination(record_id) for record_id in sheet_rows(plan)]
    assert len(combinations) == SHEET_ROWS
    assert len({c.foreground for c in combinations}) == 4
    assert len({c.background for c in combinations}) >= 4
    assert {c.flipped for c in combinations} == {False, True}


def test_equal_builds_give_equal_bytes_from_parquet_and_arrow(
    sources: Folders, tmp_path: Path
) -> None:
    written = []
    for name, file_format in (("a", "parquet"), ("b", "parquet"), ("c", "arrow")):
        make_build(
            tmp_path / name,
            sources,
            file_format=file_format,  # type: ignore[arg-type]
            size=32,
            foreground_size=16,
            placements=4,
            shard_records=90,
        )
        paths = write_preview(tmp_path / name)
        written.append([path.read_bytes() for path in paths])
        write_preview(tmp_path / name)
        assert [path.read_bytes() for path in paths] == written[0]
        assert sorted(p.name for p in (tmp_path / name / "assets").iterdir()) == [
            "preview.html",
            "samples.png",
            "statistics.json",
        ]
    assert (tmp_path / "c/fgbg_dataset-train-00000-of-00002.arrow").is_file()
    assert written[0] == written[1] == written[2]


def test_a_set_without_depth(sources: Folders, tmp_path: Path) -> None:
    make_build(tmp_path, sources, size=32, foreground_size=16, placements=1, depth=None)
    write_preview(tmp_path)
    page = Page((tmp_path / "assets/preview.html").read_text(encoding="utf-8"))
    assert "no depth" in page.text
    assert page.pictures("Composite")
    assert not page.pictures("Depth")
    with Image.open(tmp_path / "assets/samples.png") as sheet:
        layout = SheetLayout(32, WITH_DEPTH[:4], SHEET_ROWS)
        assert sheet.size == (layout.width, layout.height)
        assert cell(sheet, layout, SHEET_ROWS - 1, "mask").any()


def test_a_set_of_one_record(sources: Folders, tmp_path: Path) -> None:
    folders = (tmp_path / "fg", tmp_path / "bg")
    for folder, file in zip(folders, ("blob0.png", "scene0.jpg"), strict=True):
        folder.mkdir()
        shutil.copy(sources[folder.name == "bg"] / file, folder)
    out = tmp_path / "out"
    choices = {"size": 16, "foreground_size": 2, "placements": 1, "flip": False}
    renderer, _ = make_build(out, folders, image_format="png", **choices)
    write_preview(out)
    page = Page((out / "assets/preview.html").read_text(encoding="utf-8"))
    assert "1 record\n" in page.text
    assert "1 foreground, 1 background" in page.text
    assert len(page.cards()) == 1
    record = renderer.compose(0)
    np.testing.assert_array_equal(np.asarray(page.pictures("Composite")[0]), record.fg_bg)
    with Image.open(out / "assets/samples.png") as sheet:
        shown = cell(sheet, SheetLayout(16, WITH_DEPTH, 1), 0, "fg_bg")
    np.testing.assert_array_equal(shown, enlarged(record.fg_bg, 16))


def test_large_records_are_reduced_without_inventing_values(
    sources: Folders, tmp_path: Path
) -> None:
    choices = {"size": 520, "foreground_size": 200, "placements": 1, "depth_format": "jpeg8"}
    renderer, plan = make_build(tmp_path, sources, **choices)
    write_preview(tmp_path)
    page = Page((tmp_path / "assets/preview.html").read_text(encoding="utf-8"))
    assert "shown at 1/3" in page.text
    record = renderer.compose(sheet_rows(plan)[0])
    mask = np.asarray(page.pictures("Mask")[0].convert("L"))
    assert mask.shape == (174, 174)
    np.testing.assert_array_equal(mask[:-1, :-1], record.mask[1::3, 1::3][:173, :173])
    assert page.pictures("Composite")[0].size == page.pictures("Depth")[0].size == (174, 174)


def test_noisy_pictures_take_rows_and_long_names_are_cut(sources: Folders, tmp_path: Path) -> None:
    backgrounds = tmp_path / "bg"
    backgrounds.mkdir()
    for seed in range(2):
        noise = np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8)
        Image.fromarray(noise).save(backgrounds / f"{'long name ' * 20}{seed}.png")
    make_build(tmp_path / "out", (sources[0], backgrounds), placements=1, holdout=0)
    paths = write_preview(tmp_path / "out")
    assert all(path.stat().st_size < 4_000_000 for path in paths)
    with Image.open(paths[0]) as sheet:
        layout = SheetLayout(224, WITH_DEPTH, 5)
        assert sheet.size == (layout.width, layout.height)
        caption = layout.cell(0, "fg_bg")[1] + layout.side + 6
        band = np.asarray(sheet.crop((0, caption, sheet.width, caption + 20)))
    inked = np.flatnonzero((band < 255).any(axis=(0, 2)))
    assert inked[0] >= layout.margin
    assert layout.width / 2 < inked[-1] <= layout.width - layout.margin


def test_relative_depth_is_said_to_have_no_unit(sources: Folders, tmp_path: Path) -> None:
    make_build(
        tmp_path, sources, size=32, foreground_size=16, placements=1, depth=RELATIVE, holdout=0
    )
    write_preview(tmp_path)
    html = (tmp_path / "assets/preview.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "Relative inverse depth, without unit" in page.text
    assert "depth by any-depth" in page.text
    assert "/home/ann" not in html
    assert "near 80" in page.text
    assert "10 far" in page.text
    depth = np.asarray(page.pictures("Depth,")[0].convert("RGB"))
    assert (depth[0, -1] == LUT[NEAREST]).all()  # inverse depth: the larger value is nearer
    assert (depth[-1, -1] == LUT[FARTHEST]).all()


def test_names_are_escaped_everywhere(sources: Folders, tmp_path: Path) -> None:
    folders = (tmp_path / "fg", tmp_path / "bg")
    names = ("<img src=x onerror=alert(1)>&\"'", "{{ 7*7 }}<%2Fscript><script>alert(2)")
    for folder, name, source in zip(folders, names, sources, strict=True):
        folder.mkdir()
        file = min(source.glob("[bs]*"))
        shutil.copy(file, folder / f"{name}{file.suffix}")
    make_build(tmp_path / "out", folders, size=32, foreground_size=16, placements=1)
    write_preview(tmp_path / "out")
    page = Page((tmp_path / "out/assets/preview.html").read_text(encoding="utf-8"))
    assert all(str(a["src"]).startswith("data:") for tag, a in page.tags if tag == "img")
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    keys = {tuple(str(card["data-key"]).split("\n")[:2]) for card in page.cards()}
    assert keys == {names}
    assert f"{names[0]} on {names[1]}" in page.text


def test_the_page_needs_nothing_from_outside(
    built: tuple[Path, Renderer, Plan], page: Page
) -> None:
    html = (built[0] / "assets/preview.html").read_text(encoding="utf-8")
    assert len(html) < 4_000_000
    for _, attrs in page.tags:
        assert "style" not in attrs
        assert not any(name.startswith("on") for name in attrs)
        for name in ("src", "href"):
            assert str(attrs.get(name, "data:")).startswith("data:")
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "content" in a)
    for tag in ("style", "script"):
        content = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'; img-src data:;")


def test_the_page_says_what_the_records_say(built: tuple[Path, Renderer, Plan], page: Page) -> None:
    _, renderer, plan = built
    assert "demo depth model" in page.text
    assert f"{plan.n_records:,} records" in page.text
    assert {card["data-split"] for card in page.cards()} == set(plan.splits)
    ids = [int(str(card["data-key"]).split("\n")[2]) for card in page.cards()]
    assert len(ids) == PAGE_RECORDS
    record: Record = renderer.compose(ids[0])
    np.testing.assert_array_equal(np.asarray(page.pictures("Composite")[0]), record.fg_bg)
    np.testing.assert_array_equal(np.asarray(page.pictures("Mask")[0].convert("L")), record.mask)
    x, y, width, height = record.bbox
    assert f"x {x}, y {y}, {width} x {height} px" in page.text
    assert f"{100 * record.coverage:.1f} %" in page.text
    box = next(attrs for tag, attrs in page.tags if tag == "rect")
    assert (box["x"], box["width"]) == (str(x), str(width))


def test_a_page_picture_of_depth_holds_the_codes_of_the_scale(page: Page) -> None:
    image = page.pictures("Depth,")[0]
    assert image.mode == "P"
    depth = np.asarray(image.convert("RGB"))
    bottom, right = depth[-1], depth[:, -1]
    assert (bottom == LUT[NEAREST]).all()
    known = {tuple(c): code for code, c in enumerate(LUT.tolist()) if FARTHEST <= code <= NEAREST}
    codes = [known[tuple(c)] for c in right.tolist()]
    assert codes == sorted(codes)
    middle = len(codes) // 2
    metres = 8 * (1 / 8) ** ((codes[middle] - FARTHEST) / (NEAREST - FARTHEST))
    assert metres == pytest.approx((8 - 7 * middle / 63), rel=0.05)


def test_scale_ranges_and_ticks() -> None:
    slope = np.geomspace(0.5, 10, 400, dtype=np.float32).reshape(20, 20)
    slope[0, 0] = np.nan
    scale = DepthScale.around([slope], METRIC)
    assert scale.near == pytest.approx(0.515, abs=0.01)
    assert scale.far == pytest.approx(9.7, abs=0.1)
    assert scale.ticks() == [1.0, 2.0, 5.0]
    assert [scale.share(scale.near), scale.share(scale.far)] == [0, 1]
    assert scale.text(1.23456) == "1.23 m"
    codes = scale.codes(slope)
    assert codes[0, 0] in (0, 255)
    assert codes[0, 1] == NEAREST
    assert codes[-1, -1] == FARTHEST
    inverse = DepthScale.around([slope * 10], RELATIVE)
    assert inverse.near > inverse.far
    assert inverse.ticks() == [10.0 * n for n in range(1, 10)]


@pytest.mark.parametrize("depth", [np.full((4, 4), 2.5, np.float32), np.full((4, 4), np.nan)])
def test_flat_and_wholly_unknown_depth_have_a_scale(depth: npt.NDArray[np.float32]) -> None:
    scale = DepthScale.around([depth.astype(np.float32)], METRIC)
    assert 0 < scale.near < scale.far
    assert scale.codes(depth).shape == (4, 4)


def test_rows_come_in_the_order_asked_for(built: tuple[Path, Renderer, Plan]) -> None:
    out, _, plan = built
    split = plan.splits["train"]
    path = out / f"data/{split.shard_name(0)}.parquet"
    rows = read_rows(path, [5, 2], ["record_id", "bbox"])
    assert [row["record_id"] for row in rows] == split.record_ids(0, 6)[[5, 2]].tolist()
    assert set(rows[0]) == {"record_id", "bbox"}
    with pytest.raises(NotABuildError, match="fewer rows"):
        read_rows(path, [1000], ["record_id"])


def test_only_the_row_groups_asked_for_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"record_id": list(range(40)), "other": ["text"] * 40})
    pq.write_table(table, path, row_group_size=10, compression="snappy")
    middle = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = middle.dictionary_page_offset or middle.data_page_offset
    content[start : start + middle.total_compressed_size] = bytes(middle.total_compressed_size)
    path.write_bytes(content)
    assert read_rows(path, [33, 4], ["record_id"]) == [{"record_id": 33}, {"record_id": 4}]
    with pytest.raises(NotABuildError, match="cannot be read"):
        read_rows(path, [14], ["record_id"])


def _delete(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("harm", [_delete, _cut])
@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_a_harmed_build_is_told_in_one_sentence(
    sources: Folders, tmp_path: Path, harm: Callable[[Path], None], file_format: Any
) -> None:
    choices = {"size": 16, "foreground_size": 8, "placements": 1, "holdout": 0}
    make_build(tmp_path, sources, file_format=file_format, **choices)
    files = {"parquet": "data/train-00000-of-00001.parquet", "arrow": "fgbg_dataset-train.arrow"}
    harm(tmp_path / files[file_format])
    with pytest.raises(NotABuildError, match=r"train.* (cannot be read|has fewer rows)"):
        write_preview(tmp_path)


def test_a_description_or_sources_of_another_kind_are_named(
    sources: Folders, tmp_path: Path
) -> None:
    make_build(tmp_path, sources, size=16, foreground_size=8, placements=1, holdout=0)
    for name in ("assets/statistics.json", "backgrounds/train-00000-of-00001.parquet"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"\xe9{}")
        with pytest.raises(NotABuildError, match=f"{name} cannot be read"):
            write_preview(tmp_path)
        (tmp_path / name).write_bytes(content)


def test_a_picture_that_no_build_writes_is_told(sources: Folders, tmp_path: Path) -> None:
    """One that can be opened: a colour picture where a mask should be."""
    make_build(tmp_path, sources, size=16, foreground_size=8, placements=1, holdout=0)
    path = tmp_path / "data/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    stream = io.BytesIO()
    Image.new("CMYK", (16, 16)).save(stream, "JPEG")
    field, at = table.schema.field("mask"), table.schema.get_field_index("mask")
    values = pa.array([{"bytes": stream.getvalue(), "path": None}] * len(table), field.type)
    pq.write_table(table.set_column(at, field, values), path, compression="none")
    with pytest.raises(NotABuildError, match=r"has a record that cannot be drawn .*fgbg ver"):
        write_preview(tmp_path)


def test_what_killed_writers_left_is_swept(sources: Folders, tmp_path: Path) -> None:
    make_build(tmp_path, sources, size=16, foreground_size=8, placements=1, holdout=0)
    for name in ("fiftyone.yml", "assets/statistics.json", "assets/samples.png"):
        left = tmp_path / name
        left = left.with_name(f".{left.name}.{'0' * 16}.tmp")
        left.write_bytes(b"half")
        os.utime(left, (0, 0))
    write_preview(tmp_path)
    assert not [*tmp_path.rglob(".*")]


def test_a_folder_that_is_no_build(tmp_path: Path) -> None:
    with pytest.raises(NotABuildError, match="not a finished build"):
        write_preview(tmp_path)
