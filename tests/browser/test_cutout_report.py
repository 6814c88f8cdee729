"""The report on cut-outs in Debian's Chromium, opened as a file as its readers do."""

from __future__ import annotations

import pytest

from builder.cutout import cutout
from docs import cutouts as hard
from tests.browser.chromium import MARKS, chromium, watched

pytestmark = MARKS

pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of two cut-outs and two refusals, one with a name that would run a script."""
    folder = tmp_path_factory.mktemp("report")
    photos = folder / "photos"
    photos.mkdir()
    hard.holes().image.save(photos / "mug.jpg", quality=93)
    hard.cut_off().image.save(photos / "walker.jpg", quality=93)
    hard.two().image.save(photos / "<img src=x onerror=alert(1)> long name.jpg", "JPEG")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    cutout(photos, folder / "out", skip_bad=True)
    return (folder / "out" / "report.html").as_uri()


@pytest.mark.parametrize("width", [400, 1400])
def test_the_report_shows_what_was_made_and_what_was_refused(url: str, width: int) -> None:
    with chromium("--disable-gpu") as browser:
        page, complaints, requests = watched(browser, width)
        page.goto(url)
        articles = page.locator("article")
        texts = articles.all_inner_texts()
        page.evaluate("for (const image of document.images) image.loading = 'eager'")
        page.wait_for_function("[...document.images].every((image) => image.naturalWidth > 0)")
        images = page.evaluate("[...document.images].map((i) => [i.naturalWidth, i.alt])")
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) == 0
    assert complaints == []
    assert [request for request in requests if not request.startswith("data:")] == [url]
    assert len(texts) == 4
    assert all("Refused:" in text for text in texts[:2])
    assert "mug.png" in texts[2]
    assert "cut off at" in texts[3]
    assert [natural for natural, _ in images] == [220, 660, 660]
    assert all(alt for _, alt in images)
