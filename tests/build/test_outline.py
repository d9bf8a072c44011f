"""Schedules that a run is too short for."""

from typing import get_args

import pytest

from rescue_cli import recipe as recipes
from rescue_cli.build.expand import epochs_overrides
from rescue_cli.build.outline import PARTS, warn_of_length
from rescue_cli.recipe import SECTIONS, schema
from rescue_cli.sections.schedule import SCHEDULES
from tests.conftest import Rescue


@pytest.mark.parametrize(
    ("recipe", "overrides", "message"),
    [
        (
            "a2",
            ["train.epochs=2.5"],
            "schedule (cosine): a warm-up of 5 epochs in a run of 2.5: the rate never reaches its "
            "peak. Set schedule.warmup_epochs, or give --epochs 2.5 in place of train.epochs=2.5, "
            "which scales the schedule.",
        ),
        (
            "a2",
            ["schedule.warmup_epochs=300"],
            "schedule (cosine): a warm-up of 300 epochs in a run of 300: the rate never reaches "
            "its peak. Set schedule.warmup_epochs.",
        ),
        (
            "1cycle-3layer",
            ["schedule.stepsize_epochs=110"],
            "schedule (one-cycle): a cycle of 220 epochs in a run of 25: the run ends before it "
            "does. Set schedule.stepsize_epochs.",
        ),
        (
            "quickstart",
            ["schedule.epochs=[0,15,60]"],
            "schedule (piecewise): a last knot at epoch 60 in a run of 6: the rate never gets "
            "there. Set schedule.epochs.",
        ),
        (
            "resnet",
            ["schedule.milestones=[30, 120]"],
            "schedule (step): a last milestone at epoch 120 in a run of 90: it never comes. "
            "Set schedule.milestones.",
        ),
        (
            "quickstart",
            ["schedule.until=7"],
            "schedule (piecewise): parameters frozen at epoch 7 in a run of 6: they never are. "
            "Set schedule.until.",
        ),
        (
            "quickstart",
            ["optim.schedule={name: piecewise, epochs: [0, 9], factors: [1, 0]}"],
            "optim.schedule (piecewise): a last knot at epoch 9 in a run of 6: the rate never "
            "gets there. Set optim.schedule.epochs.",
        ),
    ],
)
def test_a_schedule_that_goes_on_beyond_the_run_is_told(
    recipe: str, overrides: list[str], message: str
) -> None:
    assert warn_of_length(recipes.load(recipe, overrides), overrides) == [message]


def test_each_key_of_a_schedule_that_is_counted_in_epochs_has_its_words() -> None:
    def in_epochs(annotation: object) -> bool:
        return isinstance(annotation, schema.InEpochs) or any(map(in_epochs, get_args(annotation)))

    counted = {
        name
        for function in (*SCHEDULES.values(), SECTIONS["schedule"].keys)
        for name, key in schema.keys(function).items()
        if in_epochs(key.annotation)
    }
    assert counted == set(PARTS)


@pytest.mark.parametrize("name", recipes.names())
def test_no_shipped_recipe_is_too_short_for_its_schedule(name: str) -> None:
    recipe = recipes.load(name)
    assert not warn_of_length(recipe)
    shorter = epochs_overrides(recipe, 1.7, [])
    assert not warn_of_length(recipe.with_overrides(*shorter))


SHORT = ("train.epochs=1", "--recipe", "quickstart")
LACK = "warning: schedule (piecewise): a last knot at epoch 6 in a run of 1: the rate never gets"


def test_whoever_shows_or_trains_a_plan_tells_it(rescue: Rescue) -> None:
    for words in (
        ("recipes", "check", "quickstart", "train.epochs=1"),
        ("plan", *SHORT),
        ("train", "--dry-run", *SHORT),
        ("seed-sweep", "--seeds", "2", "--dry-run", *SHORT),
    ):
        ended = rescue(*words)
        assert ended.code == 0, ended.err
        assert [LACK in line for line in ended.notes].count(True) == 1, words
    for options in (["--smoke"], ["--epochs", "1"], []):
        assert "schedule (" not in rescue("train", "--dry-run", *options).err
