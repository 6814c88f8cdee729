"""The page over a whole set, in Debian's Chromium: pictures, overlays, filters, cloud, keys, walls.

WebGL is drawn by SwiftShader, so that no GPU is needed.
"""

from __future__ import annotations

import csv
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import fgbg_dataset
from builder.cli import main
from builder.errors import FgbgError, NotABuildError, OutputError
from builder.release.browse import PALETTE, serving
from fgbg_dataset import FgbgDataset
from tests.browser.chromium import MARKS, chromium, watched
from tests.e2e.running import COMMAND
from tests.limits import HANG_S
from tests.pictures import blob, measured_floors
from tests.previews import make_build

SWIFTSHADER = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
HOSTILE = "<img src=x onerror=alert(1)> a name"
SIZE, RECORDS = 96, 40

pytestmark = MARKS

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of scenes on measured floors, with siblings and a name that would run a script."""
    root = tmp_path_factory.mktemp("browse")
    for i, name in enumerate(("round/a", f"round/{HOSTILE}", "<b>tall/c", "<b>tall/d")):
        path = root / "fg" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blob(i, 50 if i < 2 else 30, 50 if i < 2 else 80).save(path)
    measured_floors(root / "bg", 3)
    choices = {"size": SIZE, "records": RECORDS, "shard_records": 15, "holdout": 0.3}
    builder = FgbgDataset(
        *(root / "fg", root / "bg"),
        **choices,
        layout="scenes",
        siblings=True,
        truncation=0.3,
        depth_model="measured",
    )
    builder.download_and_prepare(root / "out", file_format="parquet", num_proc=1)
    return root / "out"


@pytest.fixture(scope="module")
def rows(out: Path) -> list[dict]:
    """Every row of the set, in the order of the page, read without any code of ours."""
    splits = json.loads((out / "assets" / "statistics.json").read_text())["splits"]
    files = [out / shard["file"] for split in splits.values() for shard in split["shards"]]
    names = [name for name in splits for shard in splits[name]["shards"] for _ in [shard]]
    return [
        {**row, "split": name}
        for name, file in zip(names, files, strict=True)
        for row in pq.read_table(file).to_pylist()
    ]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flags") / "flags.csv"


@pytest.fixture(scope="module")
def url(out: Path, flags: Path) -> Iterator[str]:
    with serving(out, flags=flags) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with chromium(*SWIFTSHADER) as browser:
        yield browser


@pytest.fixture
def page(browser: sync_api.Browser, url: str) -> Iterator[sync_api.Page]:
    """The opened page; whatever it complained about or asked elsewhere fails the test."""
    page, complaints, requests = watched(browser)
    visit(page, url)
    yield page
    page.close()
    # SwiftShader says that reading its pixels is slow.
    assert [each for each in complaints if "GPU stall due to ReadPixels" not in each] == []
    assert [each for each in requests if not each.startswith((url, "data:"))] == []


def visit(page: sync_api.Page, address: str) -> None:
    page.goto("about:blank")
    page.goto(address)
    page.locator(".facet").nth(3).wait_for(state="attached")
    until(page, "tiles.size > 0 && [...tiles.values()][0].textContent")
    settle(page)


def until(page: sync_api.Page, expression: str) -> None:
    """Wait until a JavaScript expression is true.

    Playwright's own `wait_for_function` calls `eval` in the page, which its policy forbids.
    """
    deadline = time.monotonic() + HANG_S
    while not page.evaluate(f"Boolean({expression})"):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


def settle(page: sync_api.Page) -> None:
    """Wait until no record is asked for and all pictures are there."""
    until(
        page,
        "wanted.size === 0 && frame === 0 && layout.width === grid.clientWidth"
        " && [...document.images].every((image) => image.hidden || image.complete)",
    )


def get(url: str, path: str) -> bytes:
    with urllib.request.urlopen(url + path) as answer:
        return bytes(answer.read())


def decoded(cell: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


def screenshot(page: sync_api.Page, selector: str) -> np.ndarray:
    data = page.locator(selector).screenshot()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def open_first(page: sync_api.Page) -> None:
    page.locator("#grid").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    until(page, "depths && labels")
    settle(page)


# Pictures and overlays


def test_pictures_decode_and_have_a_text(page: sync_api.Page, rows: list[dict]) -> None:
    settle(page)
    found = page.evaluate(
        "[...document.querySelectorAll('.tile img')].map((i) => [i.naturalWidth, i.alt])"
    )
    assert len(found) >= 8
    assert {width for width, _ in found} == {SIZE}
    assert {alt for _, alt in found} <= {
        f"{row['foreground_id']} on {row['background_id']}" for row in rows
    }
    page.get_by_label("What the grid shows").select_option("depth")
    settle(page)
    widths = page.evaluate(
        "[...document.querySelectorAll('.tile img')].map((i) => [i.naturalWidth, i.src])"
    )
    assert all(width == SIZE and "/colour/" in src for width, src in widths)


PIXELS = """async (path) => {
  const image = new Image();
  image.src = path;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = image.naturalWidth;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def test_tints_lie_where_the_columns_say(page: sync_api.Page, rows: list[dict]) -> None:
    number = max(range(len(rows)), key=lambda n: len(rows[n]["objects"]["id"]))
    row = rows[number]

    def pixels(path: str) -> np.ndarray:
        return np.array(page.evaluate(PIXELS, path), np.uint8).reshape(SIZE, SIZE, 4)

    tint = pixels(f"mask/{number}")
    assert np.array_equal(tint[..., 3] > 0, np.asarray(decoded(row["mask"])) > 0)
    tint, instances = pixels(f"instances/{number}"), decoded(row["instances"])
    assert np.array_equal(tint[..., 3] > 0, instances > 0)
    for k in row["objects"]["id"]:
        of_k = tint[instances == k][:, :3].astype(int)
        assert np.abs(of_k - PALETTE[k - 1]).max(initial=0) <= 2  # alpha takes the last bit
    assert (
        np.abs(pixels(f"picture/{number}")[..., :3].astype(int) - decoded(row["fg_bg"])).max() < 4
    )


def test_boxes_feet_and_horizon_are_drawn_where_the_columns_say(
    page: sync_api.Page, out: Path, rows: list[dict]
) -> None:
    number = next(
        n
        for n, row in enumerate(rows)
        if len(row["objects"]["id"]) == 1 and row["objects"]["stance"] == ["ground"]
    )
    row, url = rows[number], page.url.split("#")[0]
    objects = row["objects"]
    visit(page, f"{url}#over=boxes,amodal,feet,horizon&row={number}")
    until(page, "depths && labels")
    drawn = page.evaluate(
        """["box", "amodal"].map((kind) => [...document.querySelectorAll(`#picture rect.${kind}`)]
          .map((r) => ["x", "y", "width", "height"].map((n) => Number(r.getAttribute(n)))))"""
    )
    assert drawn == [objects["bbox"], objects["bbox_amodal"]]

    def shot(overlays: str) -> np.ndarray:
        page.evaluate(f"state.over = new Set({json.dumps(overlays.split())}); dressLarge()")
        settle(page)
        return screenshot(page, "#picture")

    plain = shot("")
    scale = plain.shape[0] / SIZE
    x, y, width, height = objects["bbox"][0]
    changed = np.abs(shot("boxes") - plain).max(axis=2) > 30
    ys, xs = np.nonzero(changed)
    edges = [v / scale for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]
    assert edges == pytest.approx([x, y, x + width, y + height], abs=1.5 / scale + 0.2)
    changed = np.abs(shot("feet") - plain).max(axis=2) > 30
    ys, xs = np.nonzero(changed)
    foot = (objects["foot_x"][0] + 0.5, objects["foot_y"][0] + 0.5)
    inside = [v for v, most in zip(foot, (SIZE, SIZE), strict=True) if 2 < v < most - 2]
    middle = ((xs.min() + xs.max() + 1) / 2 / scale, (ys.min() + ys.max() + 1) / 2 / scale)
    if len(inside) == 2:  # the dot is whole
        assert middle == pytest.approx(foot, abs=0.5)
    backgrounds = pq.read_table(out / "backgrounds" / "train-00000-of-00001.parquet").to_pylist()
    (ground,) = [b for b in backgrounds if b["id"] == row["background_id"]]
    changed = np.abs(shot("horizon") - plain).max(axis=2) > 30
    column = np.flatnonzero(changed[:, changed.shape[1] // 2])
    assert (column.min() + column.max() + 1) / 2 / scale == pytest.approx(
        ground["horizon_px"], abs=0.6
    )
    green = shot("ground") - plain
    region = decoded(ground["ground"]) > 0
    if row.get("background_flipped"):
        region = region[:, ::-1]
    at = ((np.arange(SIZE) + 0.5) * scale).astype(int)
    tinted = np.abs(green).max(axis=2)[np.ix_(at, at)] > 12
    assert np.mean(tinted == region) > 0.95  # where the picture is of that very green, it is not


def test_a_mirrored_background_has_its_ground_mirrored(page: sync_api.Page) -> None:
    settle(page)
    mirrored = """(flipped) => {
      const row = structuredClone(rows.values().next().value);
      const figure = document.createElement("div");
      row.values.background_flipped = flipped;
      row.horizon.roll_deg = 5;
      state.over = new Set(["ground", "horizon"]);
      dress(figure, row.number, row, "picture");
      const line = figure.querySelector("line");
      return [figure.querySelector("[data-part=ground]").classList.contains("mirrored"),
        Number(line.getAttribute("y1")), Number(line.getAttribute("y2"))];
    }"""
    plain, flipped = (page.evaluate(mirrored, each) for each in (False, True))
    assert [plain[0], flipped[0]] == [False, True]
    assert plain[1:] == flipped[:0:-1]


def test_a_page_that_is_there_at_once_has_its_pictures(browser: sync_api.Browser, url: str) -> None:
    page = watched(browser)[0]
    page.add_init_script("performance.now = () => 5")
    visit(page, url)
    assert page.locator(".tile img").count() >= 8
    page.close()


# Filters


def facet_counts(page: sync_api.Page, name: str) -> list[int]:
    return list(page.evaluate(f"answer.counts[{json.dumps(name)}]"))


def test_histograms_and_filters_give_the_counts_that_numpy_gives(
    page: sync_api.Page, rows: list[dict]
) -> None:
    amodal = [
        np.array([[max(box[2:]) for box in row["objects"]["bbox_amodal"]]]).ravel() for row in rows
    ]
    categories = [np.array(row["objects"]["category"]) for row in rows]
    edges = page.evaluate("columns.numbers.size.edges")
    assert facet_counts(page, "size") == np.histogram(np.concatenate(amodal), edges)[0].tolist()
    coverage = np.float32([row["coverage"] for row in rows]) * np.float32(100)
    edges_of = page.evaluate("columns.numbers.coverage.edges")
    assert sum(facet_counts(page, "coverage")) == RECORDS
    assert facet_counts(page, "coverage") == np.histogram(coverage, edges_of)[0].tolist()
    numbers = [len(row["objects"]["id"]) for row in rows]
    by_number = np.bincount(numbers)[min(numbers) :].tolist()
    assert facet_counts(page, "objects")[: len(by_number)] == by_number

    # One object has to have all that is asked of objects.
    low = edges[len(edges) // 2]
    slider = page.get_by_label("size from")
    slider.focus()
    for _ in range(len(edges) // 2):
        page.keyboard.press("ArrowRight")
    until(page, f"state.ranges.size?.[0] === {low} && answer.records < {RECORDS}")
    category = page.locator('[data-facet="category"] button').filter(has_text="round")
    category.click()
    until(page, "state.choices.category?.has('round')")
    names = page.evaluate("columns.choices.category.names")
    wanted = names.index("round")
    fits = [(s >= low) & (c == wanted) for s, c in zip(amodal, categories, strict=True)]
    due = [n for n, each in enumerate(fits) if each.any()]
    until(page, f"total === {len(due)}")
    assert 0 < len(due) < RECORDS
    assert page.evaluate("order && [...order]") == due
    assert page.locator("#count").inner_text() == f"{len(due)} of {RECORDS}"
    kept = np.concatenate([s[each] for s, each in zip(amodal, fits, strict=True)])
    assert facet_counts(page, "size") == np.histogram(kept, edges)[0].tolist()
    splits = [rows[n]["split"] for n in due]
    assert facet_counts(page, "split") == [
        splits.count(name) for name in page.evaluate("columns.choices.split.names")
    ]
    page.get_by_role("button", name="Clear all").click()
    until(page, f"total === {RECORDS}")


def test_dragging_over_bars_filters(page: sync_api.Page, rows: list[dict]) -> None:
    box = page.locator('[data-facet="coverage"] svg').bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.02 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    until(page, "state.ranges.coverage && answer.records === total && order")
    settle(page)
    low, high = page.evaluate("state.ranges.coverage")
    coverage = np.float32([row["coverage"] for row in rows]) * np.float32(100)
    due = np.flatnonzero((coverage >= low) & (coverage < high)).tolist()
    until(page, f"total === {len(due)}")
    assert page.evaluate("[...order]") == due


def test_finding_by_id_by_source_and_by_layout(page: sync_api.Page, rows: list[dict]) -> None:
    page.keyboard.press("/")
    page.keyboard.type("ONERROR=")
    due = [
        n
        for n, row in enumerate(rows)
        if any("onerror" in name for name in row["objects"]["foreground_id"])
    ]
    until(page, f"order && total === {len(due)}")
    assert page.evaluate("[...order]") == due
    page.get_by_label("Find by id", exact=True).fill(str(rows[7]["record_id"]))
    until(page, "order && [...order].includes(7)")
    page.get_by_label("Find by id", exact=True).fill("nothing like this")
    until(page, "total === 0")
    page.get_by_label("Find by id", exact=True).fill("")
    until(page, f"total === {RECORDS}")
    open_first(page)
    expected = [n for n, row in enumerate(rows) if row["layout_id"] == rows[0]["layout_id"]]
    until(page, f"document.querySelectorAll('.siblings li').length === {len(expected)}")
    page.get_by_role("button", name="show them in the grid").click()
    until(page, f"total === {len(expected)}")
    assert page.evaluate("[...order]") == expected
    page.keyboard.press("Enter")
    page.get_by_role("button", name="all with this background").click()
    background = rows[0]["background_id"]
    due = [n for n, row in enumerate(rows) if row["background_id"] == background]
    until(page, f"total === {len(due)}")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="all with this foreground").first.click()
    first = rows[0]["objects"]["foreground_id"][0]
    due = [n for n, row in enumerate(rows) if first in row["objects"]["foreground_id"]]
    until(page, f"order && order.join() === '{','.join(map(str, due))}'")


def test_an_address_is_a_view(page: sync_api.Page, rows: list[dict]) -> None:
    page.locator('[data-facet="split"] .names button').first.click()
    until(page, "order")
    page.get_by_role("button", name="Instances").first.click()
    page.locator("#grid").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    until(page, "depths")
    address, title = page.url, page.locator("#large-title").inner_text()
    assert "over=instances" in address
    assert "row=" in address
    visit(page, address)
    until(page, "order && large.open")
    assert page.evaluate("[...order]") == [n for n, r in enumerate(rows) if r["split"] == "train"]
    sync_api.expect(page.locator("#large-title")).to_have_text(title)
    page.keyboard.press("Escape")
    until(page, "!location.hash.includes('row=')")
    page.go_back()
    until(page, "large.open")


# Depth


def test_depth_is_read_under_the_pointer(page: sync_api.Page, rows: list[dict]) -> None:
    open_first(page)
    depth = decoded(rows[0]["depth"])
    box = page.locator("#depth").bounding_box()
    assert box is not None
    for x, y in ((2, 2), (50, 90), (90, 40)):
        page.mouse.move(
            box["x"] + (x + 0.5) / SIZE * box["width"], box["y"] + (y + 0.5) / SIZE * box["height"]
        )
        said = page.locator("#at").inner_text()
        assert said.startswith(f"x {x}, y {y} · ")
        if depth[y, x]:
            metres = float(said.split("depth ")[1].split(" m")[0])
            assert metres == pytest.approx(depth[y, x] / 1000, rel=1e-3)
        else:
            assert "depth unknown" in said
    assert depth[2, 2] == 0  # so that both are seen


def test_the_cloud_draws_and_lies_where_numpy_puts_it(
    page: sync_api.Page, out: Path, rows: list[dict]
) -> None:
    open_first(page)
    page.get_by_role("button", name="3D").click()
    until(page, "cloud && cloud.number === 0")
    depth = decoded(rows[0]["depth"]).astype(np.float32)
    fov = json.loads((out / "recipe.json").read_text())["recipe"].get("fov_deg", 60.0)
    focal = SIZE / 2 / np.tan(np.radians(fov) / 2)
    z = depth / 1000
    v, u = np.indices(depth.shape) + 0.5
    due = np.stack([(u - SIZE / 2) / focal * z, (v - SIZE / 2) / focal * z, z], axis=-1)
    got = np.array(page.evaluate("[...cloud.unprojected()]"), np.float32).reshape(SIZE, SIZE, 3)
    assert np.allclose(got, due, rtol=2e-6, atol=1e-6)

    turned = screenshot(page, "#cloud")
    drawn = np.abs(turned - turned[-3, 3]).max(axis=2) > 8
    assert drawn.mean() > 0.3
    # From where the camera was, the cloud is the picture.
    page.evaluate("Object.assign(cloud, {yaw: 0, pitch: 0, away: 1, tint: false}); cloud.draw()")
    seen = screenshot(page, "#cloud")
    at = ((np.arange(SIZE) + 0.5) * seen.shape[0] / SIZE).astype(int)
    away = np.abs(seen[np.ix_(at, at)] - decoded(rows[0]["fg_bg"])).max(axis=2)
    assert np.mean(away[depth > 0] < 12) > 0.9
    # Tinted, the objects and nothing else have their colours.
    page.evaluate("cloud.tint = true; cloud.draw()")
    tinted = np.abs(screenshot(page, "#cloud") - seen)[np.ix_(at, at)].max(axis=2) > 8
    assert np.mean(tinted == (decoded(rows[0]["instances"]) > 0)) > 0.93


def test_the_cloud_is_turned_by_hand_and_by_keys(page: sync_api.Page) -> None:
    open_first(page)
    page.keyboard.press("d")
    until(page, "cloud && cloud.number === 0")
    before = page.evaluate("[cloud.yaw, cloud.pitch, cloud.away]")
    page.locator("#cloud").focus()
    for key in ("ArrowRight", "ArrowUp", "+"):
        page.keyboard.press(key)
    after = page.evaluate("[cloud.yaw, cloud.pitch, cloud.away]")
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert after[2] < before[2]
    assert page.evaluate("state.row") == 0  # the arrows turned the cloud alone
    page.keyboard.press("0")
    assert page.evaluate("[cloud.yaw, cloud.pitch, cloud.away]") == before
    box = page.locator("#cloud").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 120, steps=3)
    page.mouse.up()
    assert page.evaluate("cloud.yaw") == pytest.approx(before[0] + 80 * 0.006)
    page.mouse.wheel(0, -300)
    until(page, f"cloud.away < {before[2]}")
    page.locator("#large").focus()
    page.keyboard.press("ArrowRight")
    until(page, "cloud.number === 1")


def test_without_webgl_depth_is_flat(browser: sync_api.Browser, url: str) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.add_init_script(
        "const kept = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        " return kind === 'webgl2' ? null : kept.call(this, kind, ...rest); };"
    )
    visit(page, url)
    open_first(page)
    page.get_by_role("button", name="3D").click()
    assert page.locator("#no-cloud").is_visible()
    assert page.locator("#depth-image").is_visible()
    assert page.locator("#depth-image").evaluate("(image) => image.naturalWidth") == SIZE
    page.close()


# Keys, flags, look


def test_keys_move_open_and_switch(page: sync_api.Page, rows: list[dict]) -> None:
    page.locator("#grid").focus()
    across = page.evaluate("layout.across")
    for key, due in (
        *(("ArrowRight", 1), ("ArrowDown", 1 + across), ("ArrowLeft", across), ("ArrowUp", 0)),
        *(("End", RECORDS - 1), ("Home", 0)),
    ):
        page.keyboard.press(key)
        assert page.evaluate("current") == due, key
        assert page.locator("#grid").get_attribute("aria-activedescendant") == f"tile-{due}"
    page.keyboard.press("m")
    settle(page)
    assert page.locator(".tile [data-part=mask]").count() > 4
    page.keyboard.press("m")
    assert page.locator(".tile [data-part=mask]").count() == 0
    page.keyboard.press("Enter")
    until(page, "depths")
    page.keyboard.press("ArrowRight")
    until(page, "state.row === 1 && depths")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    until(page, f"state.row === {RECORDS - 1}")
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    until(page, f"current === {RECORDS - 1}")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()


def test_flags_go_to_the_file_and_come_back(
    browser: sync_api.Browser, tmp_path: Path, out: Path, rows: list[dict]
) -> None:
    page, flags = browser.new_page(viewport={"width": 1400, "height": 900}), tmp_path / "flags.csv"
    other = "5,train,of another set," + "0" * 64
    flags.write_text(f"record_id,split,note,fingerprint\n{other}\n")
    with serving(out, flags=flags) as url:
        visit(page, url)
        page.locator("#grid").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("f")
        page.locator(".tile .flagged").wait_for()
        page.keyboard.press("Enter")
        note = page.get_by_label("Note of the flag")
        note.fill('odd, "foot"')
        note.press("Tab")
        until(page, "Object.values(set.flags.ids)[0] !== ''")
        fingerprint = json.loads((out / "recipe.json").read_text())["fingerprint"]
        with flags.open(newline="") as file:
            held = list(csv.reader(file))
        mine = [str(rows[1]["record_id"]), rows[1]["split"], 'odd, "foot"', fingerprint]
        assert held[1:] == [other.split(","), mine]
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Flagged (1)").click()
        until(page, "total === 1 && order[0] === 1")
        page.goto("about:blank")
    with serving(out, flags=flags) as url:  # another time
        visit(page, f"{url}#flagged=1")
        until(page, "total === 1 && order[0] === 1")
        page.locator("#grid").focus()
        page.keyboard.press("f")
        until(page, "Object.keys(set.flags.ids).length === 0")
        assert flags.read_text().splitlines()[1:] == [other]
        page.close()
    flags.write_text("a,b\n1,2\n")
    with pytest.raises(OutputError, match="not a file of flags"), serving(out, flags=flags):
        pass


@pytest.mark.parametrize("width", [400, 1200, 3840])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(page: sync_api.Page, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    settle(page)
    sticks = "(e) => e.scrollWidth - e.clientWidth"
    for selector in ("html", "header", "#grid"):
        assert page.locator(selector).evaluate(sticks) <= 0, selector
    tiles = page.evaluate(
        "[...document.querySelectorAll('.tile')].map((t) => t.getBoundingClientRect().right)"
    )
    assert max(tiles) <= width
    open_first(page)
    for selector in ("#large", ".view", ".bar-top", ".stages"):
        assert page.locator(selector).first.evaluate(sticks) <= 0, selector
    for selector in ("#picture", "#depth"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["width"] == pytest.approx(box["height"], abs=1)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == {
        "light": "rgb(245, 246, 248)", "dark": "rgb(16, 18, 22)"
    }[scheme]  # fmt: skip


def test_hostile_names_stay_text(page: sync_api.Page) -> None:
    page.get_by_label("Find by id", exact=True).fill("<img")
    until(page, "order && total > 0")
    settle(page)
    assert HOSTILE in page.locator('[data-facet="foreground"]').inner_text()
    assert "<b>tall" in page.locator('[data-facet="category"]').inner_text()
    open_first(page)
    assert HOSTILE in page.locator("#facts").inner_text()
    assert page.locator("#facts b, [onerror], .caption img, #large-title img").count() == 0


# The wall


def raw(url: str, path: str, method: str = "GET", body: str = "", **headers: str) -> tuple:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=HANG_S)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body.encode())
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


def test_without_the_token_or_under_another_name_nothing_is_said(url: str, out: Path) -> None:
    parts = urlsplit(url)
    assert parts.hostname == "127.0.0.1"
    token, port = parts.path.strip("/"), parts.port
    assert len(token) >= 30
    wrong = ("/", "/about", "/x/about", f"/{token[:-1]}/about", f"/{token}", "/../about", "//about")
    for path in wrong:
        status, _, body = raw(url, path)
        assert (status, body) == (403, b"Forbidden"), path
    own = f"/{token}/about"
    assert raw(url, own)[0] == 200
    assert raw(url, own, Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil", ""):
        assert raw(url, own, Host=host)[0] == 403, host
    status, headers, _ = raw(url, f"/{token}/")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert raw(url, f"/{token}/../../etc/passwd")[0] == 404
    assert raw(url, f"/{token}/picture/999999999999999999")[0] == 404
    assert raw(url, f"/{token}/rows?at=-1")[0] == 404
    assert raw(url, f"/{token}/find?size=a,b")[0] == 404
    with serving(out) as other:
        assert urlsplit(other).path != parts.path


def test_a_flag_is_set_by_the_page_alone(url: str, flags: Path) -> None:
    path, body = urlsplit(url).path + "flag", json.dumps({"number": 0, "note": ""})
    fine = {"Content_Type": "application/json"}
    assert raw(url, path, "POST", body, Content_Type="text/plain")[0] == 400
    assert raw(url, path, "POST", body, **fine, Origin="https://evil.example")[0] == 400
    assert raw(url, "/x/flag", "POST", body, **fine)[0] == 403
    for wrong in ("{}", "[]", "x", '{"number": "0", "note": ""}', '{"number": 99999, "note": ""}'):
        assert raw(url, path, "POST", wrong, **fine)[0] == 404, wrong
    assert not flags.exists()


# Other sets


def test_a_record_is_made_again_by_its_lines(url: str, rows: list[dict]) -> None:
    (row,) = json.loads(get(url, "rows?at=5"))
    made: dict = {}
    exec(row["remake"], made)
    record = made["record"]
    assert record.record_id == rows[5]["record_id"]
    assert np.array_equal(record.mask > 0, np.asarray(decoded(rows[5]["mask"])) > 0)
    assert np.array_equal(record.scene.instances, decoded(rows[5]["instances"]))
    assert np.array_equal(record.depth > 0, decoded(rows[5]["depth"]) > 0)


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_pairs_of_any_format_and_without_depth(
    browser: sync_api.Browser, sources: tuple[Path, Path], tmp_path: Path, file_format: str
) -> None:
    depth = {} if file_format == "arrow" else {"depth": None}
    choices = {"size": 64, "foreground_size": 32, "placements": 2, "holdout": 0.3}
    make_build(tmp_path / "out", sources, file_format=file_format, **depth, **choices)
    with serving(tmp_path / "out", flags=tmp_path / "flags.csv") as url:
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        visit(page, f"{url}#over=mask,boxes")
        assert page.evaluate("total") == 80
        assert "distance" not in page.evaluate("Object.keys(columns.numbers)")
        page.locator("#grid").focus()
        page.keyboard.press("Enter")
        until(page, "labels")
        settle(page)
        assert page.locator("#depth").is_visible() == (file_format == "arrow")
        assert page.locator("#picture img").evaluate_all("(all) => all.map((i) => i.naturalWidth)")
        page.close()
        assert complaints == []


def test_a_grid_of_400000_scrolls_to_its_end_with_few_tiles(page: sync_api.Page, url: str) -> None:
    """The server's set is small, so what it says of its length is changed on the way."""
    about = json.loads(get(url, "about"))
    (row,) = json.loads(get(url, "rows?at=0"))
    picture = get(url, "picture/0")

    def several(route: sync_api.Route) -> None:
        numbers = route.request.url.split("at=")[1].split("%2C")[0].split(",")
        route.fulfill(json=[{**row, "number": int(n)} for n in numbers])

    page.route("**/about", lambda route: route.fulfill(json={**about, "records": 400_000}))
    page.route("**/rows?*", several)
    page.route("**/picture/*", lambda route: route.fulfill(body=picture, content_type="image/jpeg"))
    page.set_viewport_size({"width": 400, "height": 800})
    visit(page, url)
    assert page.evaluate("layout.content > LONGEST")
    page.keyboard.press("End")
    until(page, "tiles.has(399999)")
    settle(page)
    box = page.locator("#tile-399999").bounding_box()
    assert box is not None
    assert box["y"] + box["height"] <= 800
    assert page.locator(".tile").count() < 60
    page.mouse.move(200, 500)
    before = page.evaluate("offset")
    page.mouse.wheel(0, -300)
    until(page, f"Math.abs(offset - {before} + 300) < 2")  # px by px all the same
    page.evaluate("grid.scrollTop = (grid.scrollHeight - grid.clientHeight) / 2")
    until(page, "[...tiles.keys()].some((n) => Math.abs(n - 200000) < 4000)")
    settle(page)
    assert page.locator(".tile").count() < 60
    page.evaluate("grid.scrollTop = 0")
    until(page, "tiles.has(0)")
    page.unroute_all()


def test_a_damaged_file_is_named(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    first = min((tmp_path / "out" / "data").iterdir())
    first.write_bytes(first.read_bytes()[:-100])
    with serving(tmp_path / "out", flags=tmp_path / "flags.csv") as url:
        status, _, body = raw(url, urlsplit(url).path + "columns")
        assert status == 404
        assert first.name in json.loads(body)["error"]
    first.unlink()
    with pytest.raises(NotABuildError, match="is missing"), serving(tmp_path / "out"):
        pass


def test_a_picture_of_another_size_or_kind_is_not_handed_on(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "out")
    first = min((tmp_path / "out" / "data").glob("train-*"))
    table = pq.read_table(first)
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE + 1, SIZE)).save(buffer, "JPEG")
    cells = table.column("fg_bg").to_pylist()
    for row, data in enumerate((b"<svg onload='alert(1)'/>", buffer.getvalue())):
        cells[row] = {"bytes": data, "path": None}
    at = table.schema.get_field_index("fg_bg")
    changed = pa.array(cells, table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), changed), first, compression="NONE")
    with serving(tmp_path / "out", flags=tmp_path / "flags.csv") as url:
        for number in (0, 1):
            status, headers, body = raw(url, f"{urlsplit(url).path}picture/{number}")
            assert status == 404
            assert headers["Content-Type"] == "application/json"
            assert b"svg" not in body
        assert raw(url, f"{urlsplit(url).path}picture/2")[0] == 200


# The command


def test_the_command_serves_until_it_is_interrupted(out: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "browse", str(out), "--no-open"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert json.loads(get(url, "about"))["records"] == RECORDS
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 0
    assert list(tmp_path.iterdir()) == []  # no flag, no file


def test_what_cannot_be_browsed_is_refused_in_one_sentence(out: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["browse", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not a finished build" in result.output
    with serving(out, flags=tmp_path / "flags.csv") as url:
        port = urlsplit(url).port
        with pytest.raises(FgbgError, match=f"port {port} cannot be used"):
            fgbg_dataset.browse(out, port=port, open_browser=False)
