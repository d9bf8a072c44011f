"""The report in a browser: `make test-browser`; its screenshots are there to be looked at."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Rescue
from tests.report.test_report import TINY

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture
def chromium() -> Iterator[Any]:
    """Debian's chromium, driven by playwright."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright here: see make test-browser"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium here: see make test-browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_the_page_of_a_sweep_and_a_study_opens_without_console_messages(
    rescue: Rescue, chromium: Any, tmp_path: Path
) -> None:
    (tmp_path / "rates.yaml").write_text(
        "name: rates\n"
        "paper: {title: Made up, table: Table 0}\n"
        "columns: {rate: optim.lr, momentum: optim.momentum}\n"
        "cells:\n"
        "  - {recipe: quickstart, set: [optim.lr=0.4], paper: {top1: 60.0}, std: 0.1, n: 5}\n"
        "  - {recipe: quickstart, set: [optim.lr=0.04], paper: {top1: 50.0}}\n"
    )
    assert rescue("seed-sweep", "--out", "sweep", "--seeds", "4", *TINY).code == 0
    assert rescue("study", "rates.yaml", "--seeds", "2", "--out", "rates", *TINY).code == 0
    assert rescue("report", "sweep", "rates").code == 0
    page_file = tmp_path / "report.html"
    assert page_file.stat().st_size < 3_000_000
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        for width, height in (PHONE, DESK):
            page = chromium.new_page(
                color_scheme=scheme, viewport={"width": width, "height": height}
            )
            noted: list[str] = []
            page.on("console", lambda message, noted=noted: noted.append(message.text))
            page.on("pageerror", lambda error, noted=noted: noted.append(str(error)))
            page.on(
                "request", lambda r, noted=noted: noted.append(r.url) if "http" in r.url else None
            )
            page.goto(page_file.as_uri())
            assert noted == []
            assert page.title() == "sweep, rates"
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            hidden = "[...document.querySelectorAll('.cards td')].filter(cell => "
            hidden += f"cell.offsetParent && cell.getBoundingClientRect().right > {width}).length"
            assert page.evaluate(hidden) == 0, "every cell of a table without scrolling"
            broken = "[...document.images].filter(image => !image.naturalWidth).length"
            assert page.evaluate(broken) == 0
            chart = page.locator(".chart").first.bounding_box()
            assert chart["y"] + chart["height"] < height, "the result is the first thing to see"
            texts = page.locator(".chart text").all()
            assert min(text.bounding_box()["height"] for text in texts) >= 11
            page.screenshot(path=SCREENSHOTS / f"report-{scheme}-{width}.png", full_page=True)
            page.close()
