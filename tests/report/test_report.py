"""`rescue report`: a page that needs nothing beside itself, and the table as data."""

import csv
import io
import json
import re
import shutil
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescue_cli import recipe as recipes
from rescue_cli.analysis.accuracy import accuracy_interval
from rescue_cli.analysis.stats import Sample
from rescue_cli.report import page
from rescue_cli.report.answer import strip_charts
from rescue_cli.report.html import render
from rescue_cli.report.table import ResultLine, interval_notes
from rescue_cli.rundir import RunDirectory
from tests.conftest import Rescue
from tests.helpers.processes import start
from tests.helpers.synthetic_runs import made_run, made_sweep

TINY = (
    "model.width=4", "data.subset=[256,200]", "train.batch_size=32",
    "train.device_batch_size=32", "train.epochs=2",
)  # fmt: skip
VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


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


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained, and with a sweep whose seeds differ by 2 points."""
    folder = tmp_path_factory.mktemp("finished")
    start(["train", "--out", "run", *TINY], folder / "run-told", folder=folder).ends(0)
    made_sweep(folder / "sweep", {0: 40.0, 1: 41.0, 2: 42.0}, overrides=TINY)
    return folder


@pytest.fixture
def made(finished: Path, tmp_path: Path) -> tuple[str, str]:
    """A run and a sweep, of the test's own."""
    for name in ("run", "sweep"):
        shutil.copytree(finished / name, tmp_path / name)
    return "run", "sweep"


def test_the_page_is_valid_small_and_fetches_nothing(
    rescue: Rescue, made: tuple[str, str], tmp_path: Path
) -> None:
    ended = rescue("report", *made)
    assert (ended.code, ended.out, ended.err) == (0, "report.html\n", "")
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 3_000_000
    nesting = Nesting()
    nesting.feed(text)
    assert nesting.open == []
    assert len(nesting.fetched) >= 4
    assert all(source.startswith("data:image/") for source in nesting.fetched)
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    assert re.findall(r"<h2>([^<]*)</h2>", text) == [
        "Comparison", "By epoch", "run", "sweep: 3 seeds",
    ]  # fmt: skip
    for message in (
        "To repeat this run:",
        "rescue train --out run",
        "Changes to the shipped recipe",
    ):
        assert message in text
    assert "model.width" in text
    assert "The recipe is the same as that of run." in text
    assert json.loads(rescue("compare", *made, "--json").out)["claim"] in unescape(text)


def heading(text: str) -> str:
    """The page's first heading, without its tags."""
    found = re.search(r"<h1>(.*?)</h1>", text)
    assert found is not None
    return unescape(re.sub("<[^>]*>", "", found[1]))


def test_the_page_opens_with_the_answer(
    rescue: Rescue, made: tuple[str, str], tmp_path: Path
) -> None:
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert rescue("report", "run").code == 0
    opening = heading((tmp_path / "report.html").read_text())
    low, high = accuracy_interval(result)
    assert opening.startswith(
        "resnet9 on fashion-mini, recipe quickstart: "
        f"{result['top1']:.2f} % top-1 on 200 test images (95 %: {low:.1f} to {high:.1f}); "
        'always answering "'
    )
    assert opening.endswith(" gives 10.0.")
    ended = rescue("report", "sweep")
    assert (ended.code, ended.out) == (0, "report.html\n")
    assert ended.err == (
        "report.html: replaces the file that was there; --out FILE writes another\n"
    )
    assert heading((tmp_path / "report.html").read_text()).startswith(
        "resnet9 on fashion-mini, recipe quickstart: 41.00 % top-1 on 200 test images, the mean of "
        "3 seeds (95 %: 38.5 to 43.5)"
    )
    assert rescue("report", *made).code == 0
    claim = json.loads(rescue("compare", *made, "--json").out)["claim"]
    text = (tmp_path / "report.html").read_text()
    assert claim.startswith(heading(text))
    assert text.index("<h1>") < text.index('class="chart"') < text.index("<table")


@pytest.mark.usefixtures("made")
def test_evaluations_of_a_run_are_on_its_page(rescue: Rescue, tmp_path: Path) -> None:
    assert rescue("eval", "run", "--tta", "none,flip").code == 0
    rows = json.loads(rescue("report", "run", "--json").out)
    evaluated = [("run/evals/0", "test none"), ("run/evals/0", "test flip")]
    assert [(row["path"], row["set"]) for row in rows] == [("run", "test"), *evaluated]
    assert [row["seconds_train"] is None for row in rows] == [False, True, True]
    rows = json.loads(rescue("report", "run", "run/evals/0", "--json").out)
    assert len(rows) == 3, "none is listed twice"
    assert rescue("report", "run").code == 0
    text = (tmp_path / "report.html").read_text()
    assert text.count(">last step</td>") == 1
    assert text.count(">evals/<wbr>0</td>") == 2


@pytest.mark.usefixtures("made")
def test_a_page_of_one_run_has_its_path_below_the_answer_and_in_no_heading(
    rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "run" / "command.txt").write_text("rescue seed-sweep --seeds 3 --out here\n")
    for path, heads in (("run", ["Measurements"]), ("sweep", ["By epoch", "3 seeds"])):
        assert rescue("report", path).code == 0
        text = (tmp_path / "report.html").read_text()
        assert re.findall(r"<h2>([^<]*)</h2>", text) == heads
        assert f'</h1>\n<p class="dim">{path}</p>' in text
        if path == "run":
            assert "<pre>rescue train --recipe run/recipe.yaml --out OUT</pre>" in text
            assert (
                "<p>It was started by:</p>\n<pre>rescue seed-sweep --seeds 3 --out here</pre>"
                in text
            )
            cells = re.findall('data-label="([^"]*)"', text)
            assert cells[0] == "set"
            assert {"95 %", "images"} <= set(cells), (
                "which a phone shows beside the cells of a card"
            )


@pytest.mark.usefixtures("made")
def test_logits_are_drawn_only_where_asked(rescue: Rescue, tmp_path: Path) -> None:
    for options, drawn in (((), False), (("--logits",), True)):
        assert rescue("report", "run", *options).code == 0
        assert ("<h2>Logits</h2>" in (tmp_path / "report.html").read_text()) == drawn


def test_results_share_an_axis_on_which_positions_are_in_proportion() -> None:
    lines = [
        ResultLine("a", "r", "test", None, Sample(90, 1, 3), 1.0, interval=(88, 92),
                   seeds={0: 89, 1: 90, 2: 91}),
        ResultLine("b", "r", "test", Sample(96, None, 1), Sample(94, None, 1), 1.0),
        ResultLine("c", "r", "test", None, Sample(50, None, 1), 1.0, metric="miou"),
    ]  # fmt: skip
    chart, other = strip_charts(lines)
    a, b = chart["rows"]
    at = {88: a["interval"][0], 90: a["x"], 92: a["interval"][1], 89: a["first"], 94: b["x"],
          96: b["paper"], **{float(text): x for x, text in chart["ticks"]}}  # fmt: skip
    assert at[88] == 8, "what is lowest and what is highest leave a margin"
    assert at[96] == 92
    for value, x in at.items():
        assert x == pytest.approx(8 + 84 * (value - 88) / 8, abs=0.01)
    assert a["seeds"] == [at[90], pytest.approx(39.5)], "seed 0 is drawn by itself"
    assert len(chart["ticks"]) >= 2
    assert other["rows"][0]["x"] == 50


@pytest.mark.usefixtures("made")
def test_warnings_of_results_are_on_the_page_and_below_the_table(
    rescue: Rescue, tmp_path: Path
) -> None:
    file = tmp_path / "run" / "result.json"
    result = json.loads(file.read_text())
    result["notes"] = ["skipped files: 1", "warning: test: 1 of 200 test images are copies."]
    file.write_text(json.dumps(result))
    evaluation = tmp_path / "run" / "evals" / "0"
    shutil.copytree(tmp_path / "run", evaluation, ignore=shutil.ignore_patterns("evals"))
    result["notes"], result["sets"][0]["protocol"]["trained_on"] = [], 150
    (evaluation / "result.json").write_text(json.dumps(result))
    warnings = [
        "run: test: 1 of 200 test images are copies.",
        "run/evals/0: test: 150 of these 200 images were trained on, by their names and sizes; "
        "accuracy on them says nothing about new ones",
    ]
    assert rescue("report", "run").code == 0
    text = unescape((tmp_path / "report.html").read_text()).replace("<wbr>", "")
    for line in warnings:
        assert text.index("<h1>") < text.index(line) < text.index("<h2>")
    assert "skipped files" not in text
    table = rescue("report", "run", "--markdown").out
    assert table.split("\n\n", 1)[1] == "\n".join(f"warning: {line}\n" for line in warnings)
    for option in ("--csv", "--json"):
        ended = rescue("report", "run", option)
        assert ended.err.splitlines() == [f"warning: {line}" for line in warnings]


def test_the_claim_about_the_highest_mean_comes_first(rescue: Rescue, tmp_path: Path) -> None:
    for name, mean in {"c": 40.0, "a": 45.0, "b": 45.5}.items():
        made_sweep(tmp_path / name, {seed: mean + seed for seed in range(3)}, overrides=TINY)
    assert rescue("report", "a", "b", "c").code == 0
    text = (tmp_path / "report.html").read_text()
    assert heading(text).startswith("b is better than c by 5.")
    more = unescape(text[text.index("</h1>") : text.index('class="chart"')])
    assert "2 of 3 comparisons show a difference. No significant difference between a and b" in more


def test_a_studys_report_begins_with_its_claim(tmp_path: Path) -> None:
    def row(number: int, mean: float) -> dict[str, Any]:
        return {
            "row": number, "recipe": "r", "paper": {}, "seconds_train": None, "images": [],
            "measured": {"mean": mean, "std": 1.0, "n": 5, "p": None},
            "runs": {"n": 5, "diverged": {}, "failed": {}, "not_run": []},
            "columns": {"width": number},
        }  # fmt: skip

    pair = {"a": "x", "b": "y", "difference": 2.0, "p": 0.001, "about": "recipes", "details": [],
            "claim": "y is better than x by 2.00 points (p = 0.001). Skewed."}  # fmt: skip
    for pairs, wanted in (
        ([pair], ("y is better than x by 2.00 points (p = 0.001).",
                  "s: 2 of 2 rows are measured. Skewed.")),
        ([{"claim": "of an older version", "details": []}], ("s: 2 of 2 rows are measured.", "")),
    ):  # fmt: skip
        study = {"study": "s", "source": "?", "command": "?", "rows": [row(1, 90), row(2, 92)],
                 "pairs": pairs}  # fmt: skip
        (tmp_path / "study.json").write_text(json.dumps(study))
        assert page._answer([tmp_path], [], {"pairs": []}) == wanted


def test_a_title_tells_folders_of_one_name_apart() -> None:
    paths = [Path("runs/old/lite0/seed-0"), Path("runs/new/lite0/seed-0")]
    assert page._title(paths) == "old/lite0/seed-0, new/lite0/seed-0"
    assert page._title([Path("runs/a"), Path("x/b")]) == "a, b"
    assert page._title([Path("runs/a"), Path("runs/a/evals/a")]) == "a, a/evals/a"


def test_results_that_share_some_images_are_not_said_to_be_incomparable() -> None:
    paths = [Path("a"), Path("b")]
    said = {
        common: page._answer(paths, [], {"pairs": [], "in_common": common})[0]
        for common in (True, False)
    }
    assert said[True] == "2 results on different test images, some of them in common."
    assert said[False] == "2 results that cannot be compared with one another."


def test_each_command_that_started_runs_of_a_sweep_is_named(rescue: Rescue, tmp_path: Path) -> None:
    made_sweep(tmp_path / "sweep", {seed: 40.0 + seed for seed in range(5)}, overrides=TINY)
    for seed in range(5):
        call = f"rescue seed-sweep --seeds {3 if seed < 3 else 5} --out sweep\n"
        (tmp_path / "sweep" / f"seed-{seed}" / "command.txt").write_text(call)
    assert rescue("report", "sweep").code == 0
    assert (
        "<p>It was started by:</p>\n<pre>rescue seed-sweep --seeds 3 --out sweep\n"
        "rescue seed-sweep --seeds 5 --out sweep</pre>"
    ) in (tmp_path / "report.html").read_text()


def test_a_run_says_on_which_of_the_users_images_it_was_trained(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    splits = {"train": {"images": 310, "digest": "d"}}
    record = {"format": 1, "digest": "d", "classes": ["x"], "splits": splits, "weights": {},
              "places": [{}]}  # fmt: skip
    own = recipes.load("pytorch", ["data={name: folder, root: photos}"])
    assert page._training_images(run, own) is None
    run.data.write_text(json.dumps(record))
    assert page._training_images(run, own) == 310
    assert page._training_images(run, recipes.load("quickstart")) is None
    procedure: dict[str, Any] = {
        "command": "x", "started_by": None, "images": 310, "environment": [], "recipe": "pytorch",
        "shipped": False, "changes": [], "yaml": "",
    }  # fmt: skip
    text = render("procedure.html", section={"procedure": procedure, "previous": None})
    assert "It was trained on the 310 images on record in data.json" in text


def test_how_much_an_image_counts_is_said_of_each_set() -> None:
    def notes(*counts: tuple[str, int]) -> str:
        sets = [{"set": name, "count": count} for name, count in counts]
        (line,) = interval_notes({"top1": 90.0, "sets": sets})
        return line

    assert notes(("test", 36)).endswith("; one image is 2.8 points")
    assert notes(("test", 36), ("val", 48)).endswith("2.8 points on test, 2.1 points on val")
    assert notes(("val", 36), ("val", 48)).endswith("over new images")


def test_a_fitted_head_has_no_last_step(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", 40.0, overrides=TINY)
    assert page._itself(run) == "last step"
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "fit": {}}))
    assert page._itself(run) == "fitted head"
    lines = [
        ResultLine(path, "r", "t", None, Sample(9, None, 1), None) for path in ("x", "x/evals/0")
    ]
    (chart,) = strip_charts(lines, alone=True, itself="fitted head")
    assert [row["name"] for row in chart["rows"]] == ["fitted head", "evals/0"]


def test_an_evaluation_is_named_within_its_run() -> None:
    paths = ["x/run", "x/run/evals/0", "x/run/evals/1", "x/other/evals/2"]
    lines = [ResultLine(path, "r", "t", None, Sample(9, None, 1), None) for path in paths]
    (chart,) = strip_charts(lines)
    names = [row["name"] for row in chart["rows"]]
    assert names == ["x/run", "evals/0", "evals/1", "x/other/evals/2"]
    (chart,) = strip_charts(lines[:3], alone=True)
    assert [row["name"] for row in chart["rows"]] == ["last step", "evals/0", "evals/1"]
    (chart,) = strip_charts(lines[:1], alone=True)
    assert [row["name"] for row in chart["rows"]] == ["t"]


def test_a_confusion_matrix_has_counts_where_classes_are_small(tmp_path: Path) -> None:
    def cells(counts: list[list[int]]) -> tuple[str, list[list[str]]]:
        matrix = np.array(counts)
        names = np.array([f"class {n}" for n in range(len(counts))])
        per_class = 100 * np.diag(matrix) / matrix.sum(1)
        np.savez(tmp_path / "a.npz", confusion=matrix, classes=names, per_class=per_class)
        table = page._confusion("test", tmp_path / "a.npz")
        assert table is not None
        return table.get("unit", ""), [
            row if isinstance(row, list) else [cell["text"] for cell in row["cells"]]
            for row in table["rows"]
        ]

    assert cells([[9, 1], [0, 300]]) == ("images", [["9", "1"], ["", "300"]])
    assert cells([[150, 50], [0, 300]]) == ("percent of each class", [["75", "25"], ["", "100"]])
    many = np.diag([50] * 30)
    many[3, 4], many[7, 1] = 9, 11
    assert cells(many.tolist()) == (
        "", [["class 7", "class 1", "11", "61"], ["class 3", "class 4", "9", "59"]]
    )  # fmt: skip


def test_runs_on_other_test_images_are_not_compared(
    rescue: Rescue, made: tuple[str, str], tmp_path: Path
) -> None:
    fewer = [*TINY, "data.subset=[256,100]"]
    assert rescue("seed-sweep", "--out", "other", "--seeds", "1", *fewer).code == 0
    assert rescue("report", made[0], "other").code == 0
    text = (tmp_path / "report.html").read_text()
    assert f"Not compared: {made[0]} was measured on fashion-mini" in text
    assert "other on fashion-mini test (100 images)." in text
    refused = rescue("compare", made[0], "other")
    assert refused.code == 2
    assert "Evaluate them on the same images: rescue eval." in refused.err
    assert re.findall(r"<h2>([^<]*)</h2>", text)[-1] == "other: 1 seed"


def test_a_papers_figure_is_shown_only_for_an_unchanged_recipe() -> None:
    assert page._published_sample(recipes.load("a2")) == Sample(79.72, 0.10, 100)
    assert (
        page._published_sample(recipes.load("a2", ["train.precision=float32", "train.seed=3"]))
        is not None
    )
    assert page._published_sample(recipes.load("a2", ["model.name=resnet18"])) is None
    assert page._published_sample(recipes.load("rescue94")) is None


def test_a_study_is_on_the_page_with_paper_and_measured_apart(
    rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "widths.yaml").write_text(
        "name: widths\n"
        "paper: {title: Made up, table: Table 0}\n"
        "columns: {width: model.width}\n"
        "cells:\n"
        "  - {recipe: quickstart, set: [model.width=4], paper: {top1: 91.0}, std: 0.1, n: 5}\n"
        "  - {recipe: quickstart, set: [model.width=8], paper: {top1: 92.0}}\n"
    )
    small = [override for override in TINY if not override.startswith("model.width")]
    call = ("study", "widths.yaml", "--only", "1", "--seeds", "2", "--out", "widths", *small)
    assert rescue(*call).code == 0
    assert rescue("report", "widths").code == 0
    text = (tmp_path / "report.html").read_text()
    nesting = Nesting()
    nesting.feed(text)
    assert nesting.open == []
    assert "Made up, Table 0. 1 of 2 rows are measured." in text
    assert "rescue study widths.yaml --only 1" in text
    rows = json.loads(rescue("report", "widths", "--json").out)
    results = [json.loads(f.read_text()) for f in (tmp_path / "widths").glob("01/*/result.json")]
    assert [(row["path"], row["paper"], row["n"]) for row in rows] == [("widths, row 1", 91.0, 2)]
    assert rows[0]["measured"] == pytest.approx(sum(r["top1"] for r in results) / 2)


def test_tensorboard_reads_the_written_events(
    rescue: Rescue, made: tuple[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert rescue("report", *made, "--tensorboard", "events").code == 0
    found = EventAccumulator(str(tmp_path / "events" / "run"))
    found.Reload()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    last = found.Scalars("test 28px@1/top1")[-1]
    assert last.step == result["steps"]
    assert last.value == pytest.approx(result["top1"], abs=1e-4)
    assert sorted(f.name for f in (tmp_path / "events" / "sweep").iterdir()) == [
        "seed-0", "seed-1", "seed-2",
    ]  # fmt: skip


def test_the_table_is_available_as_data(
    rescue: Rescue, made: tuple[str, str], tmp_path: Path
) -> None:
    rows = json.loads(rescue("report", *made, "--json").out)
    assert [row["path"] for row in rows] == list(made)
    assert [row["n"] for row in rows] == [1, 3]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert rows[0]["measured"] == result["top1"]
    assert (rows[0]["paper"], rows[0]["std"]) == (None, None)
    assert (rows[1]["measured"], rows[1]["std"]) == pytest.approx((41.0, 1.0))
    table = list(csv.DictReader(io.StringIO(rescue("report", *made, "--csv").out)))
    assert [float(row["measured"]) for row in table] == [row["measured"] for row in rows]
    assert [row["paper"] for row in table] == ["", ""]
    lines = rescue("report", *made, "--markdown").out.splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {9}
    assert lines[0].endswith(" runs | epochs | training time (s) |")
    assert [row["epochs"] for row in rows] == [result["epochs"]] * 2
    assert "paper" not in lines[0], "a column without a figure is not shown"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nowhere",), 3, "nowhere: no such folder."),
        (("run", "--csv", "--json"), 2, "--csv, --markdown and --json are mutually exclusive."),
    ],
)
def test_a_folder_that_cannot_be_reported_is_refused(
    rescue: Rescue, tmp_path: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text("{}")
    ended = rescue("report", *words)
    assert ended.code == code
    assert message in ended.err
