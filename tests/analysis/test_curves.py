"""What is read from curves: made ones whose answer is known, and noise of every kind."""

import json
import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescue_cli.analysis.curves import (
    Turn,
    diagnose_fit,
    find_turn,
    overfitting_rates,
    smooth,
    suggest_rates,
)
from rescue_cli.recipe import recipes_folder

RATES = np.linspace(0.025, 1.0, 40)


def falls_then_rises(turn: float, spread: float, seed: int) -> list[float]:
    """A test loss that falls from 2.3 to 0.8, is flat, and rises from `turn` on; with noise."""
    rng = np.random.default_rng(seed)
    loss = 0.8 + 1.5 * np.exp(-RATES / 0.06) + 4.0 * np.maximum(0, RATES - turn) ** 1.5
    return list(loss + spread * rng.standard_normal(len(RATES)))


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("turn", [0.3, 0.5, 0.8])
def test_the_turn_is_found_within_a_fifth(turn: float, spread: float) -> None:
    found = [find_turn(list(RATES), falls_then_rises(turn, spread, seed)) for seed in range(10)]
    rates = [one.rate for one in found if one.rate is not None]
    assert len(rates) >= 9
    # The loss is flat before it, so that the last rate near the lowest may be earlier
    assert all(turn - 0.25 <= rate <= turn + 0.15 for rate in rates)


def test_a_rise_in_accuracy_that_ends_is_a_turn_too() -> None:
    accuracy = 90 - 60 * np.exp(-RATES / 0.1) - 100 * np.maximum(0, RATES - 0.6) ** 1.5
    found = find_turn(list(RATES), list(-accuracy), "accuracy")
    assert found.rate == pytest.approx(0.6, abs=0.1)
    assert found.evidence.startswith("accuracy: turns at 0.")


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_that_only_falls_has_no_turn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    loss = 2.3 * np.exp(-RATES) + 0.02 * rng.standard_normal(40)
    assert find_turn(list(RATES), list(loss)) == Turn(
        None, "falling", None, "test loss: still falling, no turn up to 1"
    )


def test_noise_about_a_level_seldom_has_a_turn() -> None:
    turns = 0
    for seed in range(100):
        loss = 2.3 + 0.1 * np.random.default_rng(seed).standard_normal(40)
        turns += find_turn(list(RATES), list(loss)).rate is not None
    assert turns <= 10  # and two independent runs must agree


def test_a_single_spike_is_not_a_turn() -> None:
    loss = 2.3 * np.exp(-RATES)
    loss[20] = 30.0
    assert find_turn(list(RATES), list(loss)).rate is None


def test_a_loss_that_becomes_nan_turned_just_before() -> None:
    loss = [*(2.3 * np.exp(-RATES[:30])), math.nan, 1.0]
    found = find_turn(list(RATES), loss)
    assert (found.rate, found.verdict, found.bounded_above) == (RATES[29], "turn", RATES[30])
    assert found.evidence == (
        f"test loss: turns at {RATES[29]:.3g}, no better than at the start from {RATES[30]:.3g} on"
    )


@pytest.mark.parametrize(
    ("losses", "bound"),
    [
        ([math.nan], 1.0),  # all but the last are curves of real runs, at rates far too high
        ([427533184880.64, math.nan], 1.0),
        ([2.2, 4.6, 10408.0, math.nan], 1.0),
        ([4.9, 30.0, 35.0, math.nan], 1.0),
        ([762.204, 1231.493, math.nan], 1.0),
        ([2.3, 2.2, 2.1, math.inf], 4.0),
    ],
)
def test_a_run_that_diverges_before_learning_gives_an_upper_bound_only(
    losses: list[float], bound: float
) -> None:
    found = find_turn([1.0, 2.0, 3.0, 4.0], losses, ceiling=math.log(10))
    assert (found.rate, found.verdict, found.bounded_above) == (None, "died", bound)
    where = "only 3 points before" if bound == 4 else "the first point"
    assert found.evidence == f"test loss: from {bound:g} on, {where}, no better than at the start"


def test_a_recovery_from_a_blow_up_to_chance_level_is_not_learning() -> None:
    loss = 2.31 + 1e4 * np.exp(-np.arange(40) / 3)
    found = find_turn(list(RATES), list(loss), ceiling=math.log(10))
    assert found.rate is None
    assert found.verdict in ("died", "nothing learned")


# A small residual network's losses over rates from 0.005 to 4, noisier with every rate
FALLS = [2.30, 2.30, 2.28, 2.20, 2.03, 1.84, 1.67, 1.48, 1.28, 1.18, 1.02, 0.89, 0.78, 0.71, 0.84]
STAYS = [0.76, 0.85, 0.69, 1.65, 0.68, 0.78, 0.71, 0.67, 1.04, 1.22, 1.09, 0.86, 1.24, 0.63, 0.74]
NOISY = [1.69, 0.85, 0.96, 0.92, 0.97, 1.64, 0.78]


def test_a_noisy_curve_that_ends_where_it_began_has_turned() -> None:
    loss = [*FALLS, *STAYS, *NOISY, 3.10, 2.61, 3.50]
    rates = list(np.geomspace(0.005, 4, len(loss)))
    found = find_turn(rates, loss)
    assert (found.rate, found.verdict, found.bounded_above) == (rates[28], "turn", rates[37])


def test_a_rise_within_the_noise_is_not_called_flat() -> None:
    loss = [*FALLS, *STAYS, *NOISY, 1.10, 2.61, 0.90]
    found = find_turn(list(np.geomspace(0.005, 4, len(loss))), loss)
    assert (found.rate, found.evidence) == (None, "test loss: noise hides any turn up to 4")


def test_two_points_before_a_turn_are_too_few() -> None:
    loss = [2.0, 1.0, 1.5, 2.0, 2.1, 2.2, 2.2, 2.2, 2.1, 2.2]
    assert find_turn(list(RATES), loss).rate is None


curves = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60)


@given(curves)
@settings(max_examples=300, deadline=None)
def test_every_curve_gets_a_verdict(values: list[float]) -> None:
    rates = list(np.linspace(0.01, 1, len(values))) if values else []
    if values:
        found: Any = find_turn(rates, values)
        assert found.rate is None or found.rate in rates
        assert found.evidence
    assert diagnose_fit(values) in ("underfitting", "overfitting", "divergence", "plateau")
    assert set(suggest_rates(rates, values)) == {"valley", "steepest", "minimum"}
    assert len(smooth(values)) == len(values)
    overfitting_rates(rates, values, values[::-1])


TIME = np.linspace(0, 1, 50)
EXPLODING = 0.6 + 1.7 * np.exp(-TIME / 0.1) + 40 * np.maximum(0, TIME - 0.9)


def noisy(curve: Any, seed: int = 0) -> list[float]:
    return list(curve + 0.01 * np.random.default_rng(seed).standard_normal(len(curve)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("message", "curve"),
    [
        ("underfitting", 2.3 - 1.2 * TIME),
        ("plateau", 0.6 + 1.7 * np.exp(-TIME / 0.08)),
        ("overfitting", 0.6 + 1.7 * np.exp(-TIME / 0.05) + 0.6 * TIME),
        ("divergence", EXPLODING),
    ],
)
def test_the_four_diagnoses(message: str, curve: Any, seed: int) -> None:
    assert diagnose_fit(noisy(curve, seed)) == message


def test_a_sharp_rise_and_a_loss_that_is_not_finite_are_divergence() -> None:
    curve = noisy(EXPLODING)
    assert diagnose_fit(curve) == "divergence"
    assert diagnose_fit([2.0, 1.0, math.nan]) == "divergence"


def test_overfitting_is_where_test_loss_and_generalisation_error_both_rise() -> None:
    rates = list(RATES)
    bump = 0.6 * np.exp(-(((RATES - 0.3) / 0.08) ** 2))
    test = 0.8 + 1.5 * np.exp(-RATES / 0.06) + bump
    errors = 0.1 + bump
    ((low, high),) = overfitting_rates(rates, list(test), list(errors))
    assert 0.12 < low < 0.22
    assert 0.27 < high < 0.33
    assert overfitting_rates(rates, list(test), [0.1] * 40) == []


def test_a_run_that_blows_up_does_not_overfit() -> None:
    """The loss rises past that of the start, a thousandfold, with no turn before."""
    rates = list(RATES)
    lost = 2.3 + 700 * np.maximum(0, RATES - 0.2) ** 2
    assert overfitting_rates(rates, list(lost), list(lost - 2.2)) == []


# --- fastai's finder ---


def fastai_valley(losses: Sequence[float]) -> int:
    """What `valley` of fastai 2.7.8 gives, from every subsequence that decreases.

    Its window is as long as the longest of them (of equals the first to end), but begins one point
    before: what it gives is a third and a sixth of it further, each rounded down.
    """
    places = range(len(losses))
    falling = [
        chosen
        for count in places
        for chosen in combinations(places, count + 1)
        if all(losses[a] > losses[b] for a, b in pairwise(chosen))
    ]
    length = max(map(len, falling))
    if length == 1:
        return 0  # its window is empty
    end = min(chosen[-1] for chosen in falling if len(chosen) == length)
    return end - length + int(length / 3) + int(length / 3 / 2)


@pytest.mark.parametrize("points", [5, 7, 9, 12])
def test_the_valley_is_at_the_index_of_fastais(points: int) -> None:
    rng = np.random.default_rng(points)
    rates = list(10 ** np.linspace(-4, 0, points))
    straight = np.arange(points, dtype=np.float64)
    drawn = [rng.standard_normal(points) - slope * straight for slope in (-0.5, 0, 0.3, 1)]
    for losses in (*drawn, -straight, straight, np.full(points, 2.0), np.round(drawn[1])):
        found = suggest_rates(rates, list(losses))["valley"]
        assert found == rates[fastai_valley(list(smooth(list(losses))))]


def test_the_valley_of_a_loss_that_only_falls_is_a_point_before_its_middle() -> None:
    # 40 points: -1 + int(40 / 3) + int(40 / 6); and at two points it wraps to the last rate
    assert suggest_rates(list(RATES), list(-RATES))["valley"] == RATES[-1 + 13 + 6]
    falls_once = [2.0, 1.9, 1.9, *np.linspace(2.1, 9.0, 37)]
    assert suggest_rates(list(RATES), falls_once)["valley"] == RATES[-1]


@pytest.mark.parametrize("seed", range(6))
def test_suggestions_for_a_range_test_curve(seed: int) -> None:
    rates = list(10 ** np.linspace(-7, 1, 100))
    decades = np.log10(rates)
    curve = 2.3 - 1.8 / (1 + np.exp(-4 * (decades + 2.5))) + np.exp(4 * (decades - 0.2))
    losses = noisy(curve, seed)
    found = suggest_rates(rates, losses)
    smoothed = smooth(losses)
    lowest = rates[int(smoothed.argmin())]
    assert found["minimum"] == pytest.approx(lowest / 10)
    assert found["steepest"] == pytest.approx(10**-2.5, rel=1.0)
    assert found["valley"] is not None
    assert 1e-4 < found["valley"] < lowest


def test_suggestions_need_positive_rates_and_enough_points() -> None:
    none = {"valley": None, "steepest": None, "minimum": None}
    assert suggest_rates([0.0, 0.1, 0.2, 0.3], [2.0, 1.5, 1.2, 1.1]) == none
    assert suggest_rates([0.1] * 10, [2.0] * 10) == none
    assert suggest_rates(list(RATES), [math.nan] * 40) == none


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [("1cycle-3layer", 0.0105, 0.0151), ("1cycle-resnet56-depth20", 1.0, 1.3)],
)
def test_recorded_curves_get_the_verdict_of_a_human_reader(
    name: str, lowest: float, highest: float
) -> None:
    record = json.loads((recipes_folder() / "records" / "lr-range" / f"{name}.json").read_text())
    found = []
    for run in record["runs"][:-1]:
        accuracies = [math.nan if a is None else -a for a in run["accuracies"]]
        found.append(find_turn(run["rates"], accuracies, "accuracy").rate)
    known = [rate for rate in found if rate is not None]
    assert len(known) >= 2  # one of ResNet-20's is too noisy to be judged
    assert lowest <= min(known) <= max(known) <= highest


def test_a_blow_up_is_not_smoothed_into_earlier_points() -> None:
    # ResNet-20's test losses, seed 1: fine at 1.03, ten thousand times that at the next point
    rates = [0.253, 0.445, 0.648, 0.841, 1.03, 1.24, 1.25]
    loss = [14.18, 7.84, 3.39, 2.11, 1.79, 219142.8, math.nan]
    found = find_turn(rates, loss)
    assert (found.rate, found.bounded_above) == (1.03, 1.24)
    assert overfitting_rates(rates, loss, loss) == []


def test_noise_is_not_estimated_from_a_diverging_part() -> None:
    rng = np.random.default_rng(0)
    calm = 1.8 - 0.5 * RATES[:16] / RATES[15]
    apart = 2.0 + 0.3 * rng.standard_normal(24)
    found = find_turn(list(RATES), [*calm, *apart])
    assert found.rate == pytest.approx(RATES[15], abs=0.05)
