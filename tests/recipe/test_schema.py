"""An ingredient's signature is the schema of its YAML keys."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le

from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe import schema as registry
from rescue_cli.recipe.schema import (
    Fraction,
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
)
from rescue_cli.sections.schedule import SCHEDULES, cosine


def ingredient(
    _steps: int,
    *,
    lr: Positive,
    layers: PositiveInt = 1,
    nesterov: bool = False,
    mode: Literal["reflect", "zeros"] = "zeros",
    scale: tuple[Fraction, Fraction] = (0.0, 1.0),
    milestones: list[NotNegative] = [],  # noqa: B006
    clip: Positive | None = None,
    root: str | None = None,
    sets: dict[str, NotNegativeInt] = {},  # noqa: B006
    sides: list[Annotated[list[int], "pairs"]] = [],  # noqa: B006
    limit: Annotated[float, Le(2)] = 0.0,
) -> None:
    """Keys of every kind that recipes use."""


def refusal(where: str, options: dict[str, Any], *functions: Callable[..., Any]) -> str:
    with pytest.raises(UsageError) as refused:
        registry.check(where, options, *functions)
    return str(refused.value)


COSINE = {"warmup_epochs": 5, "warmup_lr": 1e-4, "min_lr": 1e-6, "per": "epoch"}


def test_a_misspelt_key_is_named_with_the_nearest_known_one() -> None:
    options = {**COSINE, "wamup_epochs": 5}
    assert refusal("schedule (cosine)", options, cosine) == (
        "schedule (cosine): unknown key 'wamup_epochs'. Did you mean 'warmup_epochs'?"
    )


def test_a_key_like_no_other_is_answered_with_all_of_them() -> None:
    assert refusal("schedule (cosine)", {**COSINE, "zzz": 5}, cosine) == (
        "schedule (cosine): unknown key 'zzz'. Known: min_lr, per, warmup_epochs, warmup_lr, "
        "warmup_prefix."
    )


def test_an_unknown_ingredient_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError) as refused:
        registry.lookup("schedule.name", "cosin", SCHEDULES)
    assert str(refused.value) == "schedule.name: 'cosin' is not known. Did you mean 'cosine'?"


def test_of_equally_near_names_the_first_is_suggested() -> None:
    names = [f"tf_efficientnet_lite{number}" for number in range(5)]
    assert did_you_mean("tf_efficientnet_lite", names) == "Did you mean 'tf_efficientnet_lite0'?"


def test_a_known_word_is_suggested_whatever_its_case_and_named_once() -> None:
    assert did_you_mean("LR", ["lr", "weight_decay"]) == "Did you mean 'lr'?"
    assert did_you_mean("x", ["sgd", "lamb", "sgd"]) == "Known: lamb, sgd."


def test_a_missing_key_comes_with_its_rule_and_cure() -> None:
    assert refusal("optim (x)", {}, ingredient) == (
        "optim (x): missing key 'lr' (a number above 0). Add lr: to the section."
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", "0.1", "x.lr: '0.1' is not a number above 0."),
        ("lr", 0, "x.lr: 0 must be above 0."),
        ("lr", -0.5, "x.lr: -0.5 must be above 0."),
        ("lr", True, "x.lr: true is not a number above 0."),
        ("lr", None, "x.lr: null is not a number above 0."),
        ("lr", [0.1], "x.lr: [0.1] is not a number above 0."),
        ("lr", math.nan, "x.lr: nan is not finite. Give a finite number."),
        ("lr", math.inf, "x.lr: inf is not finite. Give a finite number."),
        ("lr", 10**400, "x.lr: an integer of 1329 bits is not finite. Give a finite number."),
        ("limit", 3, "x.limit: 3 must be at most 2."),
        ("layers", 2.0, "x.layers: 2.0 is not an integer at least 1."),
        ("layers", 0, "x.layers: 0 must be at least 1."),
        ("layers", True, "x.layers: true is not an integer at least 1."),
        (
            "layers",
            10**1000,
            "x.layers: an integer of 3322 bits does not fit into 64 bits. Give a smaller one.",
        ),
        ("nesterov", 1, "x.nesterov: 1 is not true or false."),
        ("nesterov", "yes", "x.nesterov: 'yes' is not true or false."),
        ("mode", "reflekt", "x.mode: 'reflekt' is not one of reflect, zeros."),
        (
            "scale",
            [0.1],
            "x.scale: [0.1] is not a list of 2 items (a number between 0 and 1 each).",
        ),
        ("scale", [0.1, 2], "x.scale[1]: 2 must be between 0 and 1."),
        ("scale", "ab", "x.scale: 'ab' is not a list of 2 items (a number between 0 and 1 each)."),
        ("milestones", 3, "x.milestones: 3 is not a list (a number at least 0 each)."),
        ("milestones", [3, -1], "x.milestones[1]: -1 must be at least 0."),
        ("milestones", [3, None], "x.milestones[1]: null is not a number at least 0."),
        ("clip", 0, "x.clip: 0 must be above 0."),
        ("clip", "none", "x.clip: 'none' is not a number above 0 or null."),
        ("root", 5, "x.root: 5 is not a string or null."),
        ("sets", {"v2": -1}, "x.sets.v2: -1 must be at least 0."),
        ("sets", [], "x.sets: [] is not a mapping."),
        ("sides", [[1], [1.5]], "x.sides[1][0]: 1.5 is not an integer."),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(key: str, value: Any, message: str) -> None:
    assert refusal("x", {"lr": 0.1, key: value}, ingredient) == message


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal("x", {"lr": "9" * 10_000}, ingredient)) < 200


@pytest.mark.parametrize(
    ("key", "given", "received"),
    [
        ("lr", 1, 1.0),
        ("clip", None, None),
        ("clip", 2, 2.0),
        ("scale", [0, 1], (0.0, 1.0)),
        ("milestones", [30, 60.5], [30.0, 60.5]),
        ("sets", {"v2": 3}, {"v2": 3}),
        ("sides", [[1, 2], []], [[1, 2], []]),
        ("mode", "reflect", "reflect"),
        ("nesterov", True, True),
        ("limit", -7, -7.0),
    ],
)
def test_a_fitting_value_arrives_as_its_annotation_says(
    key: str, given: Any, received: Any
) -> None:
    found = registry.check("x", {"lr": 0.1, key: given}, ingredient)[key]
    assert found == received
    assert type(found) is type(received)


def test_any_value_fits_an_open_mapping() -> None:
    def function(*, schedule: dict[str, Any]) -> None: ...

    own = {"name": "step", "milestones": [1, 2]}
    assert registry.check("optim", {"schedule": own}, function) == {"schedule": own}


def test_positional_parameters_are_not_keys() -> None:
    assert refusal("x", {"lr": 0.1, "_steps": 3}, ingredient).startswith("x: unknown key '_steps'.")


def test_several_functions_share_the_keys_of_a_section() -> None:
    def common(*, first_step: NotNegativeInt = 0) -> None: ...

    options = {"lr": 0.1, "first_step": 1}
    assert registry.check("x", options, ingredient, common) == options


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (Gt(0), "above 0"),
        (Ge(1), "at least 1"),
        (Interval(ge=0, le=1), "between 0 and 1"),
        (Interval(gt=0, le=1_000_000), "above 0 and at most 1000000"),
        (Le(2.5), "at most 2.5"),
    ],
)
def test_bounds_read_as_words(bound: Any, words: str) -> None:
    assert registry.describe(Annotated[float, bound]) == f"a number {words}"
