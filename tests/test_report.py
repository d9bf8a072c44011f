"""`rescue report`: a page that needs nothing beside itself, and the table as data."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import Rescue

TINY = (
    "model.width=4", "data.subset=[256,200]", "train.batch_size=32",
    "train.device_batch_size=32", "train.epochs=2",
)  # fmt: skip
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Nesting(HTMLParser):
    """Fails on a tag that closes what is not open; collects what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [v or "" for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def made(rescue: Rescue) -> tuple[str, str]:
    """A run and a sweep."""
    assert rescue("train", "--out", "run", *TINY).code == 0
    assert rescue("seed-sweep", "--out", "sweep", "--seeds", "3", *TINY).code == 0
    return "run", "sweep"


def test_the_page_is_whole_small_and_fetches_nothing(
    rescue: Rescue, made: tuple[str, str], tmp_path: Path
) -> None:
    ended = rescue("report", *made)
    assert (ended.code, ended.out) == (0, "report.html\n")
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 3_000_000
    page = Nesting()
    page.feed(text)
    assert page.open == []
    assert len(page.fetched) >= 4
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    assert re.findall(r"<h2>([^<]*)</h2>", text) == ["sweep: 3 seeds", "run"]
    for said in ("To repeat it:", "rescue train --out run", "What differs from the shipped"):
        assert said in text
    assert "model.width" in text


def test_the_table_is_data_too(rescue: Rescue, made: tuple[str, str], tmp_path: Path) -> None:
    rows = json.loads(rescue("report", *made, "--json").out)
    assert [row["path"] for row in rows] == list(made)
    assert [row["runs"] for row in rows] == ["1", "3"]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert rows[0]["measured"] == f"{result['top1']:.2f}"
    assert rows[0]["paper"] == "-"
    table = list(csv.DictReader(io.StringIO(rescue("report", *made, "--csv").out)))
    assert [row["measured"] for row in table] == [row["measured"] for row in rows]
    lines = rescue("report", *made, "--markdown").out.splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {9}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nowhere",), 3, "nowhere: holds no result."),
        (("run", "--csv", "--json"), 2, "--csv, --markdown and --json exclude each other."),
    ],
)
def test_what_cannot_be_reported_is_refused(
    rescue: Rescue, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    ended = rescue("report", *words)
    assert ended.code == code
    assert said in ended.err
