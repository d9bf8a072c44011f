"""A part of the rates of tests/analysis/error_rates.py, with bounds of four Monte Carlo errors."""

import subprocess
import sys

import pytest

from tests.analysis import error_rates
from tests.analysis.error_rates import Rate

FAR = 4.0  # Monte Carlo errors


def holds(rate: Rate) -> bool:
    """No more errors than nominal; of intervals no less coverage."""
    if rate.nominal > 0.5:
        return rate.seen >= rate.nominal - FAR * rate.error
    return rate.seen <= rate.nominal + FAR * rate.error


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_error_rates_and_coverage_are_nominal(n: int) -> None:
    for rate in (
        error_rates.mean_covered(error_rates.normal, n, 1000),
        error_rates.difference_covered(n, 1000),
        error_rates.welch(n, 1000),
        error_rates.welch(n, 1000, ratio=4),
        error_rates.welch(n, 1000, shared=0.5),
        error_rates.pairs(n, 1000),
        error_rates.beats(n, 300, 0.0),
        error_rates.beats(n, 300, 3.0),
        error_rates.inside_expected(n, 1000),
        error_rates.one_run(n, 200),
    ):
        assert holds(rate), rate


@pytest.mark.parametrize(
    "draw",
    [error_rates.normal, error_rates.counted, error_rates.minority, error_rates.lognormal],
)
def test_compare_keeps_its_level_for_skewed_runs(draw: error_rates.Draw) -> None:
    for n in (3, 5):
        assert holds(error_rates.claimed(draw, n, 200)), n
        assert holds(error_rates.claimed(draw, n, 200, more=3)), n


@pytest.mark.parametrize("n", [3, 4, 5])
def test_compare_claims_a_large_difference_where_accuracies_repeat(n: int) -> None:
    """Of three accuracies two are often equal, which is no skewness."""
    assert holds(error_rates.found(error_rates.counted, n, 300))


def test_claims_and_intervals_of_four_sweeps_are_simultaneous() -> None:
    for rate in (*error_rates.family(5, 150), error_rates.joint_intervals(5, 150)):
        assert holds(rate), rate


def test_planned_looks_keep_the_level_and_a_look_after_each_seed_does_not() -> None:
    assert holds(error_rates.sequentially(20, 200))
    assert not holds(error_rates.looked_after_every_seed(20, 1000))


def test_comparisons_of_single_networks_keep_their_level() -> None:
    for rate in (
        error_rates.wilson(0.9, 153, 500),
        error_rates.mcnemar(1000, 300),
        error_rates.seed_noise(2000),
        error_rates.scene_bootstrap(10, 200, 500),
        error_rates.scene_bootstrap(20, 200, 500),
        error_rates.best_of(5, 300),
    ):
        assert holds(rate), rate


def test_runs_planned_by_the_upper_bound_suffice_in_4_of_5_pilots() -> None:
    by_bound, by_std = error_rates.planned_runs(5, 100)
    assert holds(by_bound)
    assert by_std.seen < 0.65


@pytest.mark.long
def test_every_rate_of_the_tables_is_no_worse_than_nominal() -> None:
    """But for what is said to be: an assumption that fails, and skewed means without a claim."""
    known = ("scatters 4 times", "diverging tenth", "log-normal", "called skewed", "every seed",
             "own std")  # fmt: skip
    for what, _, found in error_rates.by_runs(2000):
        if not any(word in what for word in known):
            assert all(holds(rate) for rate in found if rate is not None), what
    for what, _, rate in error_rates.others(2000):
        if not any(word in what for word in known):
            assert holds(rate), what


def test_the_tables_have_a_usage_line() -> None:
    call = [sys.executable, "-m", "tests.analysis.error_rates", "--help"]
    ended = subprocess.run(call, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("usage: python -m tests.analysis.error_rates [-h] [trials]")
