"""The preview page in Debian's Chromium, opened as a file as its readers do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.release.preview import PAGE_RECORDS, write_preview
from tests.browser.chromium import MARKS, chromium, watched
from tests.previews import make_build

pytestmark = MARKS

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def url(sources: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page over four splits, with a name that would run a script if it were not escaped."""
    folder = tmp_path_factory.mktemp("preview")
    shutil.copytree(sources[0], folder / "fg")
    hostile = folder / "fg" / "<img src=x onerror=alert(1)> a rather long name that has to wrap.png"
    shutil.move(folder / "fg" / "blob3.png", hostile)
    choices = {"size": 96, "foreground_size": 40, "placements": 5, "holdout": 0.4}
    make_build(folder / "out", (folder / "fg", sources[1]), **choices)
    return write_preview(folder / "out")[1].as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with chromium("--disable-gpu") as browser:
        yield browser


@pytest.fixture
def page(browser: sync_api.Browser, url: str) -> Iterator[sync_api.Page]:
    """The opened page; whatever it complained about or asked for fails the test in the end."""
    page, complaints, requests = watched(browser)
    page.goto(url)
    yield page
    page.close()
    assert complaints == []
    assert [request for request in requests if not request.startswith("data:")] == [url]


def visible_cards(page: sync_api.Page) -> int:
    return int(page.locator(".card:visible").count())


def wait_for_focus(page: sync_api.Page, card: int) -> None:
    """Wait until a card has the focus; closing a dialog tells its page a moment later."""
    sync_api.expect(page.locator(".open").nth(card)).to_be_focused()


def test_every_image_decodes_and_has_a_text(page: sync_api.Page) -> None:
    images = page.evaluate(
        "[...document.images].map((image) => [image.naturalWidth, image.complete, image.alt])"
    )
    assert len(images) == 3 * PAGE_RECORDS + 2
    for width, complete, alt in images:
        assert width > 0
        assert complete
        assert alt
    alts = [alt for _, _, alt in images]
    assert len({alt for alt in alts if alt.startswith("Composite: ")}) > 4
    assert any("flipped" in alt for alt in alts)


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(page: sync_api.Page, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(overflow) == 0
    page.locator(".open").first.click()
    box = page.locator("#large").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    inner = "(d => d.scrollWidth - d.clientWidth)(document.querySelector('#large'))"
    assert page.evaluate(inner) == 0
    colours = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colours) == {"light": "rgb(245, 246, 248)", "dark": "rgb(16, 18, 22)"}[
        scheme
    ]  # fmt: skip


def test_filter_by_split_and_by_text(page: sync_api.Page) -> None:
    assert visible_cards(page) == PAGE_RECORDS
    page.get_by_label("unseen_both").check()
    both = visible_cards(page)
    assert 0 < both < PAGE_RECORDS
    assert page.locator('.card:visible[data-split="unseen_both"]').count() == both
    assert page.locator("#count").inner_text() == f"{both} of {PAGE_RECORDS} shown"
    page.get_by_label("all").check()
    page.get_by_label("Find by id").fill("SCENE1")
    some = visible_cards(page)
    assert 0 < some < PAGE_RECORDS
    titles = page.locator(".card:visible .open").all_inner_texts()
    assert all("scene1" in title for title in titles)
    page.get_by_label("Find by id").fill("<img src=x")
    assert 0 < visible_cards(page) < PAGE_RECORDS
    page.get_by_label("Find by id").fill("nothing like this")
    assert visible_cards(page) == 0
    assert page.locator("#none").is_visible()


def test_keyboard_opens_moves_and_closes(page: sync_api.Page) -> None:
    page.get_by_label("Boxes").focus()
    page.keyboard.press("Tab")
    wait_for_focus(page, 0)
    page.keyboard.press("ArrowRight")
    wait_for_focus(page, 1)
    page.keyboard.press("ArrowDown")
    wait_for_focus(page, 4)  # three to a row at this width
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.locator("#large").is_visible()
    title = page.locator("#large-title")
    assert title.inner_text() == page.locator(".open").nth(1).inner_text()
    page.keyboard.press("ArrowRight")
    assert title.inner_text() == page.locator(".open").nth(2).inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    wait_for_focus(page, 2)
    page.keyboard.press("End")
    wait_for_focus(page, PAGE_RECORDS - 1)


def test_the_larger_view_stays_inside_the_filter(page: sync_api.Page) -> None:
    page.get_by_label("unseen_both").check()
    cards = page.locator(".card:visible")
    cards.first.locator(".open").click()
    page.get_by_label("Previous record").click()
    last = cards.nth(visible_cards(page) - 1)
    assert page.locator("#large .where").inner_text() == last.locator(".where").inner_text()
    page.get_by_role("button", name="Close").click()
    assert not page.locator("#large").is_visible()


def test_boxes_are_switched_and_fit_the_mask(page: sync_api.Page) -> None:
    box = page.locator(".card rect").first
    assert not box.is_visible()
    page.get_by_label("Boxes").check()
    assert box.is_visible()
    fits = page.evaluate(
        """() => {
          const card = document.querySelector(".card"), image = card.querySelectorAll("img")[1];
          const canvas = document.createElement("canvas");
          canvas.width = canvas.height = image.naturalWidth;
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          const { data, width } = context.getImageData(0, 0, canvas.width, canvas.height);
          const on = [...Array(data.length / 4).keys()].filter((i) => data[4 * i] > 0);
          const xs = on.map((i) => i % width), ys = on.map((i) => Math.floor(i / width));
          const [x, y] = [Math.min(...xs), Math.min(...ys)];
          const mask = [x, y, Math.max(...xs) - x + 1, Math.max(...ys) - y + 1];
          const rect = card.querySelector("rect");
          return [mask, ["x", "y", "width", "height"].map((n) => Number(rect.getAttribute(n)))];
        }"""
    )
    assert fits[0] == fits[1]


def test_moving_over_depth_reads_metres(page: sync_api.Page) -> None:
    picture = page.locator(".card .depth").first
    box = picture.bounding_box()
    assert box is not None

    def reading(x: float, y: float) -> str:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return str(picture.locator(".reading").inner_text())

    # The made depth runs from 8 m on top to 1 m at the bottom, unknown upper left.
    assert reading(0.1, 0.1) == "unknown"
    assert float(reading(0.5, 0.5).removeprefix("\u2248 ").removesuffix(" m")) == pytest.approx(
        4.5, rel=0.03
    )
    assert reading(0.9, 0.999) == "\u2264 1 m"
    assert reading(0.9, 0.001) == "\u2265 7.95 m"  # the 99th percentile, on the grid of depths
    page.mouse.move(1, 1)
    assert not picture.locator(".reading").is_visible()
    page.locator(".open").first.focus()
    page.keyboard.press("Enter")
    page.locator("#large .depth").hover()
    assert page.locator("#large .reading").inner_text().startswith("\u2248 4.")
