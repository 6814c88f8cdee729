"""Debian's Chromium, whose pages are watched: what they complain about, and what they ask for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG_S

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--no-first-run", "--disable-background-networking"]

MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="Chromium is not installed"),
]


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """Give a browser."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*ARGUMENTS, *arguments]
        )
        yield browser
        browser.close()


def watched(browser: Any, width: int = 1400) -> tuple[Any, list[str], list[str]]:
    """Return a new page, what it complains about, and the addresses it asks for."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append("an alert"), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.set_default_timeout(1000 * HANG_S)
    return page, complaints, requests
