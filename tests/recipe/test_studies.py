"""Studies: every cell is a recipe that can be trained, and the figures are the paper's."""

import json
import re
import statistics
from pathlib import Path

import pytest

from rescue_cli import recipe as recipes
from rescue_cli.analysis import records
from rescue_cli.analysis.study import (
    image_lines,
    load_study,
    resolve_cells,
    study_files,
    table_rows,
)
from rescue_cli.build.check import check_ingredients
from rescue_cli.errors import DataError
from rescue_cli.rundir import read_json
from tests.conftest import Rescue

PAGE = Path(__file__).parents[2] / "recipes" / "README.md"


@pytest.mark.parametrize("name", study_files())
def test_every_cell_of_a_study_is_a_recipe_that_holds(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    resolved = [recipe for _, recipe in resolve_cells(study) if recipe is not None]
    for recipe in resolved:
        check_ingredients(recipe)
    trees = [recipe.to_yaml() for recipe in resolved]
    assert len(trees) == len(set(trees)), "two cells train and measure the same thing"


@pytest.mark.parametrize("name", study_files())
def test_every_column_of_a_study_says_something_of_most_cells(name: str) -> None:
    rows = table_rows(load_study(name))
    for heading in rows[0]["columns"]:
        shown = [row["columns"][heading] for row in rows]
        assert sum(value is not None for value in shown) >= len(shown) / 2, heading
        assert len({str(value) for value in shown}) > 1, f"{heading} is the same everywhere"


def test_a_column_of_a_list_is_of_its_first_item_where_it_names_none() -> None:
    """Of the optimizer that has the reference rate, which in one row is one of two."""
    rows = table_rows(load_study("procedures"))
    shown = [list(row["columns"].values())[1:] for row in rows]
    assert [optimizer for optimizer, _ in shown] == ["sgd", "sgd", "lamb", "sgd-velocity"]
    assert all(rate is not None for _, rate in shown)


def test_what_the_paper_says_of_a2_stands_in_each_of_its_tables_alike() -> None:
    """The baseline of the ablations is one number, 79.85, wherever it is printed."""
    every = {
        name: [c.paper for c, r in resolve_cells(load_study(name)) if r and _is_a2(r.to_yaml())]
        for name in study_files()
    }
    found = {name: papers for name, papers in every.items() if papers}
    assert found == {
        "rsb-a2-against-t2": [{"val": 79.9, "v2": 67.9}],
        "rsb-crop-ratio": [
            {"mean": 79.68, "std": 0.09, "max": 79.85, "min": 79.57, "seed0": 79.85}
        ],
        "rsb-loss-grid": [{"val": 79.85}],
        "rsb-one-change": [{"val": 79.85}],
        "rsb-procedures": [{"val": 79.8, "real": 85.4, "v2": 67.9}],
        "rsb-smoothing": [{"val": 79.85}],
        "rsb-stochastic-depth": [{"val": 79.85}],
    }


def _is_a2(text: str) -> bool:
    return text == recipes.load("a2").to_yaml()


def test_a_measured_figure_is_that_of_runs_with_exactly_the_same_changes() -> None:
    record = json.loads(records.record_path("myrtle-baseline").read_text())
    (run, *_) = record["runs"]
    differs = {k: v for k, v in run["differs"].items() if k not in records.NOT_PROCEDURE}
    found = records.recorded_results("myrtle-baseline", differs)
    assert found[0] == run["result"]
    assert records.recorded_results("myrtle-baseline", {**differs, "optim.lr": [1, 2]}) == []
    elsewhere = {**differs, "train.precision": ["float16", "bfloat16"], "eval.every": [1, 5]}
    assert records.recorded_results("myrtle-baseline", elsewhere)[0] == run["result"]
    assert records.recorded_results("a2", {}) == []


def test_the_study_that_tuned_imagenette_is_on_record() -> None:
    rows = table_rows(load_study("imagenette-tuning"))
    figures = [round(row["measured"]["mean"], 2) for row in rows]
    assert figures == [74.20, 76.24, 78.90, 82.85, 82.30, 81.62, 81.82, 80.80, 81.82]
    best = rows[figures.index(max(figures))]
    assert best["columns"]["rate"] == recipes.load("imagenette-5").optim[0].options["lr"]


def test_a_study_as_it_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rescue_cli.cli import main

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["rescue", "study", "rsb-a2-against-t2", "--table"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "row  procedure  network                 paper val %  paper v2 %  measured %  p",
        "  1  a2         resnet50                      79.90       67.90     not run  -",
        "  2  a2         deit_small_patch16_224        79.60       68.10     not run  -",
        "  3  T2         resnet50                      79.20       67.90     not run  -",
        "  4  T2         deit_small_patch16_224        80.40       69.20     not run  -",
        "ResNet strikes back, Comparing architectures and training procedures. measured:",
        "mean ± standard deviation (runs), last epoch. p: the probability of a difference",
        "from the paper at least this large if the two are equal (Welch's t-test, each",
        "row by itself; a side without a std is assumed to vary as much as the other). A",
        "large p does not show that they agree.",
    ]


def test_a_misspelt_study_is_told_of_its_neighbour(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rescue_cli.cli import main

    monkeypatch.setattr("sys.argv", ["rescue", "study", "rsb-smothing"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Did you mean 'rsb-smoothing'?" in capsys.readouterr().err


def test_studies_are_no_recipes() -> None:
    from rescue_cli import recipe as recipes

    assert not set(study_files()) & set(recipes.names())
    assert all(isinstance(path, Path) for path in study_files().values())


def test_no_record_says_in_which_folders_it_was_made() -> None:
    files = sorted(records.record_path("x").parent.glob("**/*.json"))
    assert len(files) > 20
    for file in files:
        assert not re.search(r'[\s"=:\[]/\w+/', file.read_text()), file


def test_a_record_names_files_without_their_folders(rescue: Rescue, tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    words = ["model.width=4", "train.epochs=0.5", "data.subset=[128, 20]"]
    assert rescue("train", "--recipe", "quickstart", "--out", run, *words).code == 0
    again = tmp_path / "deep" / "again"
    from_run = [f"model.weights={run}", *words]
    assert rescue("train", "--recipe", "quickstart", "--out", again, *from_run).code == 0
    entry = records.make_entry(again, None)
    assert entry["differs"]["model.weights"] == [None, "run"]
    assert "model.weights=run" in entry["command"]
    assert str(tmp_path) not in json.dumps(entry)


def test_a_seed_on_record_counts_once_and_a_sweep_is_not_mixed_with_single_runs() -> None:
    """`quickstart` has a sweep of ten seeds on record, and single runs of seed 0 besides."""
    runs = read_json(records.record_path("quickstart"))["runs"]
    whole = [run for run in runs if not set(run["differs"]) - set(records.NOT_PROCEDURE)]
    assert len(whole) > len({run["seed"] for run in whole}) == 10
    sweep = [run["result"]["top1"] for run in whole if "--seeds 10" in run["command"]]
    found = [result["top1"] for result in records.recorded_results("quickstart", {})]
    assert found == sweep
    assert records.format_record("quickstart") == "90.21 (10)"
    assert f"90.21 ± {statistics.stdev(sweep):.2f} (10, one sweep)" in PAGE.read_text()


def test_the_page_of_recipes_has_every_accuracy_that_the_listing_has() -> None:
    listed = {name: records.format_record(name) or "partly" for name in recipes.names()}
    accuracies = {name: text.split()[0] for name, text in listed.items() if text != "partly"}
    assert len(accuracies) > 5
    rows = PAGE.read_text().splitlines()
    missing = [
        name
        for name, accuracy in accuracies.items()
        if not any(f"`{name}`" in row and f" {accuracy} " in row for row in rows)
    ]
    assert missing == []


def test_a_run_is_put_on_record_once() -> None:
    runs = read_json(records.record_path("quickstart"))["runs"]
    with pytest.raises(DataError, match=r"records: seed \d+ of `rescue .*` is already recorded"):
        records._join(runs, [{**runs[1], "note": "another"}])
    assert len(records._join(runs[:1], runs[1:2])) == 2


def test_the_table_of_a_study_says_on_which_images_each_row_was_tested() -> None:
    rows = table_rows(load_study("rescue94-cheaper"))
    assert image_lines(rows) == ["rows 1 to 7: tested on cifar10 holdout (10,000 images)"]
    some = [{**row, "images": ["a test (9 images)"]} for row in rows if row["row"] in (1, 2, 3, 5)]
    unmeasured = [{**rows[3], "images": []}]
    assert image_lines([*some, *unmeasured]) == ["rows 1 to 3, 5: tested on a test (9 images)"]
    assert image_lines(some[:1]) == ["row 1: tested on a test (9 images)"]
