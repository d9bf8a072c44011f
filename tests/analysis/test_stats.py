"""Statistics of runs against scipy's own calls, textbook values, and simulation."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rescue_cli.analysis.claims import detail_lines
from rescue_cli.analysis.compare import compare_pairs, describe_sides
from rescue_cli.analysis.sides import Images, Side, load_side
from rescue_cli.analysis.stats import (
    PERCENT,
    Sample,
    best_seed_bias,
    correlation_interval,
    exchange_test,
    expected_maximum,
    holm_correction,
    interquartile_mean,
    is_skewed,
    mcnemar_test,
    paired_proportions_interval,
    paired_t_test,
    permutation_interval,
    probability_of_superiority,
    runs_needed,
    sample,
    sign_flip_test,
    std_upper_bound,
    t_interval,
    two_sample_permutation_test,
    welch_test,
    wilson_interval,
)
from rescue_cli.analysis.sweep import parse_seeds

RNG = np.random.default_rng(1)
A = [90.1, 90.4, 89.8, 90.2, 90.0]
B = [90.9, 90.6, 90.8, 90.7, 91.1, 90.5]


def test_welchs_test_and_its_interval_are_scipys() -> None:
    found = welch_test(sample(A), sample(B))
    theirs = stats.ttest_ind(B, A, equal_var=False)
    band = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(float(theirs.pvalue))
    assert found.interval() == pytest.approx((float(band.low), float(band.high)))
    assert found.mean == pytest.approx(float(np.mean(B) - np.mean(A)))


def test_the_paired_test_and_its_interval_are_scipys() -> None:
    found = paired_t_test(A, B[:5])
    theirs = stats.ttest_rel(B[:5], A)
    band = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(float(theirs.pvalue))
    assert found.interval() == pytest.approx((float(band.low), float(band.high)))


def test_a_sign_flip_test_of_eight_pairs_is_exact() -> None:
    values = np.array([0.3, 0.1, 0.4, -0.05, 0.2, 0.25, 0.6, 0.15])
    signs = np.array([[1 - 2 * ((k >> i) & 1) for i in range(8)] for k in range(256)])
    means = (signs * values).mean(1)
    expected = float((np.abs(means) >= abs(values.mean()) - 1e-12).mean())
    assert sign_flip_test(values) == pytest.approx(expected)


@pytest.mark.parametrize(("m", "n"), [(2, 3), (5, 5), (5, 15), (10, 10), (3, 100)])
def test_the_permutation_test_is_scipys(m: int, n: int) -> None:
    """Exact up to C(20, 5) ways, else drawn; with ties, whose sums differ by their rounding."""
    for a, b in [(RNG.normal(90, 0.3, m), RNG.normal(90, 0.3, n)) for _ in range(3)]:
        for first, second in ((a, b), (a.round(1), b.round(1))):
            ways = math.comb(m + n, m)
            theirs = stats.permutation_test(
                (first, second),
                lambda x, y, axis: np.mean(y, axis=axis) - np.mean(x, axis=axis),
                vectorized=True,
                n_resamples=ways if ways <= 20_000 else 20_000,
                rng=np.random.default_rng(0),
            )
            assert two_sample_permutation_test(first, second) == theirs.pvalue


def test_a_permutation_test_of_five_against_five_is_exact() -> None:
    from itertools import combinations

    both = np.array(A + B[:5])
    seen = abs(np.mean(B[:5]) - np.mean(A))
    differences = []
    for chosen in combinations(range(10), 5):
        inside = both[list(chosen)]
        rest = np.delete(both, list(chosen))
        differences.append(abs(inside.mean() - rest.mean()))
    expected = float((np.array(differences) >= seen - 1e-12).mean())
    assert two_sample_permutation_test(A, B[:5]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("level", "effect", "n"),
    [
        (0.05, 0.2, 394),
        (0.05, 0.5, 64),
        (0.05, 0.8, 26),
        (0.05, 1.0, 17),
        (0.01, 0.2, 586),
        (0.01, 0.5, 95),
        (0.01, 0.8, 38),
    ],
)
def test_runs_needed_are_cohens_table_for_80_percent_power(
    level: float, effect: float, n: int
) -> None:
    """Two-sided, two independent means of n each (Cohen 1988, table 2.4.1)."""
    assert welch_test(Sample(0.0, 1.0, 20), Sample(effect, 1.0, 20)).effect == pytest.approx(effect)
    found = runs_needed(effect, 1.0, level, paired=False)
    assert found is not None
    assert abs(found - n) <= 1


def test_the_detectable_difference_needs_just_these_runs() -> None:
    found = welch_test(Sample(90.0, 0.15, 35), Sample(90.1, 0.15, 35)).detectable()
    assert found == pytest.approx(0.1, abs=0.003)  # about 35 each, for 0.1 at 0.15
    assert runs_needed(found or 0, 0.15, 0.05, paired=False) in (35, 36)


def test_runs_are_planned_with_the_upper_bound_of_the_std() -> None:
    """Of 10 against 10: 18 degrees of freedom, whose chi-squared is 12.857 at 20 %."""
    found = welch_test(Sample(90.0, 0.15, 10), Sample(90.3, 0.15, 10))
    bound = 0.15 * math.sqrt(18 / 12.857)
    assert std_upper_bound(0.15, 18) == pytest.approx(bound, rel=1e-4)
    assert found.runs_needed(0.1) == runs_needed(0.1, bound, 0.05, paired=False)


def test_runs_of_unequal_spread_are_planned_with_the_root_mean_square() -> None:
    """Of 3 runs with a std of 1 and 30 of 0.1, as many of each vary by 0.71 and not by 0.27."""
    found = welch_test(Sample(80.0, 1.0, 3), Sample(80.5, 0.1, 30))
    assert found.planned is not None
    assert found.planned.std == pytest.approx(math.sqrt((1 + 0.01) / 2))
    assert found.planned.freedom == pytest.approx(1.01**2 / (1 / 2 + 0.0001 / 29))


def test_the_paired_interval_is_newcombes() -> None:
    """His example of 36, 12, 2 and 0 of 50 (1998, method 10): 5.69 to 34.04."""
    found = paired_proportions_interval(2, 12, 36, 50, 0.05)
    assert found == pytest.approx((5.69, 34.04), abs=0.005)
    assert paired_proportions_interval(12, 2, 36, 50, 0.05) == pytest.approx(
        (-34.04, -5.69), abs=5e-3
    )
    assert paired_proportions_interval(0, 0, 50, 50, 0.05) == pytest.approx((-7.13, 7.13), abs=0.01)


@pytest.mark.parametrize(("right", "differ"), [(0.9, 0.03), (0.97, 0.01), (0.6, 0.2)])
def test_the_paired_interval_covers_the_difference(right: float, differ: float) -> None:
    """Two networks on 1,000 images: the second wins two thirds of those that differ."""
    rng, shares = np.random.default_rng(0), [2 * differ / 3, differ / 3, right - differ]
    counts = rng.multinomial(1000, [*shares, 1 - sum(shares)], 2000)
    covered = 0
    for only_b, only_a, both, _ in counts.tolist():
        low, high = paired_proportions_interval(only_a, only_b, both, 1000, 0.05)
        covered += low <= 100 * differ / 3 <= high
    assert 0.935 < covered / 2000 < 0.975


def test_holm_is_the_step_down_procedure() -> None:
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert holm_correction([]) == []


def sides_of(noise: dict[str, list[float]], shifts: dict[str, float]) -> list[Side]:
    return [
        Side(name, sample(values), dict(enumerate(values)))
        for name, shift in shifts.items()
        if (values := [90 + shift + x for x in noise[name]])
    ]


def test_several_pairs_are_corrected_together_and_so_are_their_intervals() -> None:
    """Alone the first pair may be claimed; of three it may not, and its interval is as wide."""
    noise = {"a": [-0.1, 0.0, 0.1], "b": [-0.3, 0.0, 0.3], "c": [0.4, -0.9, 0.5]}
    sides = sides_of(noise, {"a": 0.0, "b": 0.68, "c": 0.2})
    alone, together = compare_pairs(sides[:2])[0], compare_pairs(sides)[0]
    assert alone["p"] == pytest.approx(together["p_uncorrected"])
    assert alone["p"] < 0.05 < together["p"]
    assert alone["low"] > 0
    assert together["low"] < 0
    found = welch_test(sides[0].sample, sides[1].sample)
    assert (together["low"], together["high"]) == found.interval(0.05 / 3)
    assert together["detectable"] > alone["detectable"]
    assert together["claim"].startswith(
        "No significant difference between a and b: b is higher by 0.68"
    )


def test_every_common_test_set_is_tested_and_corrected_for() -> None:
    """V2 is 10,000 images of both; ReaL was not measured on b, nor val at a second size."""
    sets = {"val": A, "v2": [x - 20 for x in A], "real": A}
    sides = []
    for name, shift, known in (("a", 0.0, ("val", "v2", "real")), ("b", 0.6, ("val", "v2"))):
        values = {label: {i: x + shift for i, x in enumerate(sets[label])} for label in known}
        images = {label: Images("imagenet", label, 10_000) for label in known}
        first = list(values["val"].values())
        sides.append(
            Side(
                name, sample(first), values["val"], images=images["val"], sets=values,
                images_of=images,
            )
        )  # fmt: skip
    val, v2 = compare_pairs(sides)
    assert (val["set"], v2["set"]) == ("val", "v2")
    assert val["p"] == v2["p"] == pytest.approx(2 * val["p_uncorrected"])
    assert val["claim"].startswith("b is better than a by 0.60 points")
    assert v2["claim"].startswith("On v2: b is better than a by 0.60 points")


def test_the_runs_needed_are_given_for_a_wanted_difference_whatever_was_found() -> None:
    noise = {"a": [-0.1, 0.0, 0.1], "b": [-0.3, 0.0, 0.3]}
    (pair,) = compare_pairs(sides_of(noise, {"a": 0.0, "b": 0.1}))
    assert pair["needed"] is None
    assert "runs of each" not in pair["claim"] + " ".join(detail_lines(pair))
    for shift, significant in ((0.1, False), (9.0, True)):
        (wanted,) = compare_pairs(sides_of(noise, {"a": 0.0, "b": shift}), 0.2)
        assert (wanted["p"] < 0.05) == significant
        assert detail_lines(wanted)[0] == (
            f"to detect 0.2 points in 4 of 5 cases: {wanted['needed']} runs of each, planned with "
            f"a std of {std_upper_bound(wanted['std'], 2.43902):.2f}: the upper 80 % confidence "
            "bound of 0.22, the root mean square of both stds"
        )
    (unknown,) = compare_pairs([load_side("80"), load_side("81")], 1)
    assert detail_lines(unknown) == [
        "to detect 1 point: the number of runs is unknown without a std between seeds; compare "
        "sweeps, or MEAN±STD/N"
    ]


def test_a_claim_names_the_length_of_training_where_it_differs() -> None:
    short, long = sides_of({"a": A, "b": A}, {"a": 0.0, "b": 9.0})
    (pair,) = compare_pairs([replace(short, epochs=2.0), replace(long, epochs=6.0)])
    assert pair["claim"].startswith("b (6 epochs) is better than a (2 epochs) by 9.00 points")
    (pair,) = compare_pairs([replace(short, epochs=6.0), replace(long, epochs=6.0)])
    assert pair["claim"].startswith("b is better than a by")
    (pair,) = compare_pairs([load_side("a2"), replace(short, epochs=1.0, images=None)])
    assert pair["claim"].startswith("a (1 epoch) is better than a2 (expected, 300 epochs) by")


def test_a_claim_states_its_assumption_about_a_side_without_a_spread() -> None:
    (pair,) = compare_pairs([load_side("90.0±0.1/20"), load_side("91.0")])
    assert pair["p"] < 1e-6
    assert " is better than " not in pair["claim"]
    assert pair["claim"].endswith(
        "assuming that runs of 91.0 vary as much as those of 90.0±0.1/20: there is one run of 91.0."
    )
    assert (pair["about"], pair["assumes"]["runs"]) == ("assumed", 1)
    sides = [load_side("a2"), load_side("a3")]
    (pair,) = compare_pairs(sides)
    assert pair["claim"].endswith("runs of a3 (expected) is not known, and counted as one.")
    shown = describe_sides(sides)[1]
    assert (shown["std"], shown["n"], shown["runs"]) == (0.09, None, "?")


def test_skewed_runs_are_reported_and_tested_by_permutation() -> None:
    steady = [90.0, 90.1, 89.9, 90.2, 89.8, 90.05, 89.95]
    sides = [
        Side(name, sample(values), dict(enumerate(values)))
        for name, values in (("a", steady), ("b", [*steady[:-1], 80.0]))
    ]
    (pair,) = compare_pairs(sides)
    assert pair["skewed"] == ["the runs of b"]
    assert pair["p"] == max(welch_test(*(s.sample for s in sides)).p or 0, pair["permutation_p"])
    assert "Skewed: the runs of b" in pair["claim"]
    assert any(line.startswith("b: median 90.00") for line in detail_lines(pair))
    assert not is_skewed(steady)
    assert not is_skewed([90.0, 91.0])
    assert not is_skewed([90.0] * 5)


def _compared(a: list[float], b: list[float]) -> dict[str, Any]:
    named = {"a": a, "b": b}
    (pair,) = compare_pairs(
        [Side(name, sample(runs), dict(enumerate(runs))) for name, runs in named.items()]
    )
    return pair


def test_two_equal_seeds_of_three_do_not_stand_in_the_way_of_a_claim() -> None:
    pair = _compared([90.7, 90.7, 91.4], [60.1, 61.4, 62.9])
    assert (pair["skewed"], pair["permutation_p"]) == ([], None)
    assert pair["claim"].startswith("a is better than b by ")


@pytest.mark.parametrize("n", [5, 6, 9])
def test_of_skewed_runs_the_interval_says_what_p_says(n: int) -> None:
    """Over differences about those that are just significant, where the two tests disagree."""
    rng, disagreed = np.random.default_rng(n), 0
    for shift in np.linspace(0.2, 3, 30):
        a = [*rng.normal(90, 0.1, n - 1), 88.0]
        pair = _compared(a, list(rng.normal(90, 0.1, n) + shift))
        assert pair["permutation_decides"], "skewed, and enough runs"
        assert (pair["low"] > 0) == (pair["p"] < 0.05), shift
        disagreed += pair["p"] == pair["permutation_p"]
    assert 0 < disagreed < 30, "both tests decide sometimes"


def test_an_interval_by_permutation_holds_what_the_test_does_not_reject() -> None:
    a, b = np.array([89.9, 90.3, 90.0, 90.2, 87.0]), np.array([91.0, 90.6, 91.2, 90.9, 91.1])
    low, high = permutation_interval(
        lambda assumed: two_sample_permutation_test(a, b - assumed), (1.4, 1.5), 0.05
    )
    assert permutation_interval(exchange_test(a, b), (1.4, 1.5), 0.05) == (low, high)
    held = [d for d in np.arange(-2, 6, 0.01) if two_sample_permutation_test(a, b - d) >= 0.05]
    assert (low, high) == pytest.approx((held[0], held[-1]), abs=0.011)


def test_interquartile_mean_and_superiority_are_scipys() -> None:
    b = [*B, 95.0]
    assert interquartile_mean(b) == pytest.approx(float(stats.trim_mean(b, 0.25)))
    won, low, high = probability_of_superiority(A, B)
    assert won == float(stats.mannwhitneyu(B, A).statistic) / (len(A) * len(B)) == 1.0
    assert 0.5 < low < 1.0
    assert high == 1.0
    turned = probability_of_superiority(B, A)
    assert turned == pytest.approx((0.0, 0.0, 1 - low))


def test_a_claim_states_how_many_runs_finished() -> None:
    lost = dict.fromkeys(range(5, 9), "diverged")
    values = dict(enumerate(B))
    del values[5]
    sides = [
        Side("a", sample(A), dict(enumerate(A))),
        Side("b", sample(list(values.values())), values, missing=lost),  # type: ignore[arg-type]
    ]
    (pair,) = compare_pairs(sides)
    assert pair["runs"] == ["5", "5 of 9 (4 diverged)"]
    assert pair["claim"].endswith("Only finished runs are compared: 5 of 9 (4 diverged) of b.")
    fisher = float(stats.fisher_exact([[0, 4], [5, 5]]).pvalue)
    assert pair["diverged"]["p"] == pytest.approx(fisher)


@pytest.mark.parametrize(("right", "count"), [(143, 153), (0, 20), (3, 20), (17, 20), (20, 20)])
def test_an_accuracys_interval_is_wilsons(right: int, count: int) -> None:
    theirs = stats.binomtest(right, count).proportion_ci(method="wilson")
    expected = (100 * theirs.low, 100 * theirs.high)
    assert wilson_interval(right, count) == pytest.approx(expected, abs=1e-9)


def test_mcnemar_is_the_exact_binomial_of_the_disagreements() -> None:
    a = np.array([True] * 80 + [False] * 12 + [True] * 4 + [False] * 4)
    b = np.array([True] * 80 + [True] * 12 + [False] * 4 + [False] * 4)
    only_a, only_b, p = mcnemar_test(a, b)
    assert (only_a, only_b) == (4, 12)
    assert p == pytest.approx(2 * float(stats.binom.cdf(4, 16, 0.5)))
    assert mcnemar_test(a, a) == (0, 0, 1.0)


def test_the_expected_maximum_is_the_normal_order_statistics() -> None:
    for n, deviations in ((1, 0.0), (2, 0.56419), (5, 1.16296), (10, 1.53875), (100, 2.50759)):
        found = expected_maximum(Sample(79.72, 0.10, 100), n)
        assert found == pytest.approx(79.72 + 0.10 * deviations, abs=1e-5)
    assert expected_maximum(Sample(79.72, None, 1), 5) is None


def test_p_by_permutation_is_uniform_without_a_difference() -> None:
    found = [
        two_sample_permutation_test(RNG.normal(90, 0.2, 5), RNG.normal(90, 0.2, 5))
        for _ in range(400)
    ]
    assert float(stats.kstest(found, "uniform").pvalue) > 0.001
    assert np.mean(np.array(found) <= 0.05) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_the_papers_seed_0_stands_13_hundredths_above_its_100_seeds() -> None:
    """A2: val 79.72, std 0.10, n 100; seed 0 has 79.85. One in ten seeds stands so high."""
    paper, seed0 = load_side("79.72±0.10/100"), load_side("79.85")
    found = welch_test(paper.sample, seed0.sample)
    assert found.mean == pytest.approx(0.13)
    assert found.p == pytest.approx(2 * float(stats.t.sf(0.13 / (0.1 * 1.01**0.5), 99)))
    assert found.p is not None
    assert 0.15 < found.p < 0.25


def test_the_best_of_100_seeds_on_one_set_is_average_on_the_other() -> None:
    """A made sweep of the paper's means and stds, val and V2, their correlation next to none."""
    rng = np.random.default_rng(3)
    inflated, remains, inside = [], [], 0
    low, high, low_elsewhere, high_elsewhere = (0.0,) * 4
    for number in range(200):
        val, v2 = rng.normal(79.72, 0.10, 100), rng.normal(67.99, 0.23, 100)
        found = best_seed_bias(v2, val, draws=500)
        if number:  # by the sweep before, which is independent of this one
            inside += low <= found.inflation[0] <= high
            inside += low_elsewhere <= found.remains[0] <= high_elsewhere
        (_, low, high), (_, low_elsewhere, high_elsewhere) = found.inflation, found.remains
        inflated.append(found.inflation[0])
        remains.append(found.remains[0])
    assert np.mean(inflated) == pytest.approx(0.23 * 2.5076, abs=0.03)
    assert abs(np.mean(remains)) < 0.03
    assert 0.91 < inside / 398 < 0.98  # of 95 %


def test_correlation_has_fishers_interval() -> None:
    a = RNG.normal(0, 1, 30)
    b = 0.6 * a + RNG.normal(0, 0.8, 30)
    r, low, high = correlation_interval(a, b)
    z, half = math.atanh(r), 1.959964 / math.sqrt(27)
    assert (low, high) == pytest.approx((math.tanh(z - half), math.tanh(z + half)), abs=1e-6)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("79.72±0.10/100", Sample(79.72, 0.10, 100)),
        ("79.72+-0.1/5", Sample(79.72, 0.1, 5)),
        ("79.72", Sample(79.72, None, 1)),
        ("80/3", Sample(80.0, None, 3)),
    ],
)
def test_typed_results_are_parsed(text: str, found: Sample) -> None:
    assert load_side(text).sample == found


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("0-3", [0, 1, 2, 3]), ("3,7,9-10", [3, 7, 9, 10])]
)
def test_typed_seeds_are_parsed(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


def test_a_spread_of_rounding_errors_is_0() -> None:
    """Both differences are 0.1 and both samples equal; in floats they are not, by 1e-14."""
    assert np.subtract([90.2, 91.3], [90.1, 91.2]).std() > 0
    found = paired_t_test([90.1, 91.2], [90.2, 91.3])
    assert (found.p, found.runs_needed(0.1)) == (None, None)
    assert sample([90.1] * 3).std == 0
    assert sample([90.1, 90.1, 90.1 + 1e-4]).std == pytest.approx(1e-4 / 3**0.5)


def test_an_interval_of_accuracies_stays_within_0_and_100() -> None:
    """Two seeds at 98.0 and 99.4: 98.7 ± 12.706 · 0.7."""
    band = t_interval(sample([98.0, 99.4]))
    assert band == pytest.approx((98.7 - 8.894, 98.7 + 8.894), abs=1e-3)
    cut = t_interval(sample([98.0, 99.4]), PERCENT)
    assert cut == pytest.approx((98.7 - 8.894, 100.0), abs=1e-3)
