"""--dry-run, --smoke, --subset and --lr-from of the verbs that train."""

import json
from pathlib import Path
from typing import Any

import pytest

from rescue_cli import recipe as recipes
from rescue_cli.analysis.lr_range_runs import rate_from
from rescue_cli.errors import DataError, UsageError
from tests.conftest import Rescue

SUBSET = ("--subset", "160:40")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("seed-sweep", "--seeds", "3"), "runs: 3"),
        (
            ("lr-range-test", "--seeds", "2"),
            "plan: 3 runs: 2 x 6 steps, and half as many (3) to confirm; ",
        ),
        (("tune",), "held out, twice: 20"),
    ],
)
def test_a_dry_run_prints_the_recipe_on_the_subset_and_writes_nothing(
    words: tuple[str, ...], line: str, rescue: Rescue, tmp_path: Path
) -> None:
    ended = rescue(*words, "--dry-run", *SUBSET)
    assert ended.code == 0, ended.err
    assert "subset: [160, 40]" in ended.out
    assert line in ended.out
    assert not any(tmp_path.iterdir())


def test_a_study_smokes_every_row_and_holds_to_its_own_rule_for_the_rate(
    rescue: Rescue, tmp_path: Path
) -> None:
    study = tmp_path / "mine.yaml"
    study.write_text(
        "name: mine\ncolumns: {rate: optim.lr}\nset: [model.width=4]\ncells:\n"
        "  - {recipe: quickstart}\n"
        "  - {recipe: quickstart, set: [optim.lr_per_256=0.8]}\n"
    )
    ended = rescue("study", study, "--smoke")
    assert ended.code == 0, ended.err
    runs = sorted(tmp_path.glob("runs/study/mine-smoke/0*/seed-0"))
    assert len(runs) == 2
    for run in runs:
        recipe = recipes.recipe_in(run)
        assert (recipe.train.steps_per_epoch, recipe.train.epochs) == (2, 1)
        assert recipe.data.subset == (16, 16)


def range_test(folder: Path, **changes: Any) -> Path:
    """What a range test of quickstart leaves behind."""
    (folder / "seed-0").mkdir(parents=True)
    (folder / "seed-0/recipe.yaml").write_text(recipes.load("quickstart").to_yaml())
    answer = {
        "max_lr": 0.12345, "trusted": True, "reasons": ["3 runs agree"], "seeds": [{"seed": 0}],
        **changes,
    }  # fmt: skip
    (folder / "lr-range.json").write_text(json.dumps(answer))
    return folder


def test_the_rate_of_a_range_test_is_used_and_said(rescue: Rescue, tmp_path: Path) -> None:
    folder = range_test(tmp_path / "range")
    ended = rescue("train", "--smoke", "--lr-from", folder, "--out", "run")
    assert ended.code == 0, ended.err
    assert "--lr-from sets: optim.lr=0.123 (3 runs agree)" in ended.err
    assert "warning: the range test had train.batch_size=128, and this run has 8" in ended.err
    assert recipes.recipe_in(tmp_path / "run").optim[0].lr == 0.123


@pytest.mark.parametrize(
    ("changes", "given", "error", "message"),
    [
        (
            {"trusted": False},
            [],
            UsageError,
            "no learning rate that its runs support .3 runs agree",
        ),
        ({"max_lr": None}, [], UsageError, "Set optim.lr yourself"),
        ({}, ["optim.lr=0.1"], UsageError, "--lr-from and optim.lr set the same thing"),
        ({"max_lr": "high"}, [], DataError, "max_lr: 'high' is not a non-negative number"),
    ],
)
def test_a_rate_that_cannot_be_used_is_refused(
    changes: dict[str, Any], given: list[str], error: type, message: str, tmp_path: Path
) -> None:
    folder = range_test(tmp_path / "range", **changes)
    with pytest.raises(error, match=message):
        rate_from(folder, recipes.load("quickstart"), given)


def test_a_folder_without_a_range_test_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no lr-range\.json"):
        rate_from(tmp_path, recipes.load("quickstart"), [])


def test_what_the_user_sets_stays_in_a_smoked_run_of_every_verb(
    rescue: Rescue, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(
        "name: own\ncolumns: {width: model.width}\ncells:\n  - {recipe: quickstart}\n"
    )
    longer = ("--epochs", "1.5", "--smoke")
    for words in (
        ("train", *longer, "--out", "run"),
        ("seed-sweep", "--seeds", "1", *longer, "--out", "sweep"),
        ("study", "own.yaml", *longer, "--out", "study"),
    ):
        assert rescue(*words).code == 0
    transfer = ("transfer", "--from", "run", "--to", "fashion-mini", "--recipe", "quickstart")
    ended = rescue(*transfer, "~augment.flip", *longer, "--out", "there")
    assert ended.code == 0, ended.err
    runs = [file.parent for file in tmp_path.rglob("result.json")]
    assert len(runs) == 4
    assert {recipes.recipe_in(run).train.epochs for run in runs} == {1.5}


def test_a_study_of_no_epochs_is_refused(rescue: Rescue) -> None:
    ended = rescue("study", "procedures", "--epochs", "0", "--plan")
    assert (ended.code, "--epochs: 0.0 must be above 0" in ended.err) == (2, True), ended.err
