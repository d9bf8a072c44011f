"""What samples of runs say: intervals, tests, what could have been seen; by scipy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescue_cli.power import detectable, needed, t_quantile

CONFIDENCE = 0.95
LEVEL = 0.05  # of a test that stands alone
PERCENT = (0.0, 100.0)  # where accuracies can be
EXACT = 20_000  # arrangements up to which a permutation test goes through all of them
NOISE = 1e-9  # of the values: a spread below it is that of rounding, and none
Floats = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """Runs that differ in nothing but chance, or a paper's word of them."""

    mean: float
    std: float | None  # of single runs, n - 1 in the denominator; None for one run
    n: int


@dataclass(frozen=True)
class Difference:
    """How far the mean of b is above that of a, and how sure that is."""

    mean: float
    low: float | None  # of the 95 % interval
    high: float | None
    p: float | None  # two-sided, by Student's t
    permutation: float | None  # the same by permutation, where it could fall below 0.01
    effect: float | None  # the difference in standard deviations
    n: tuple[int, int]
    paired: bool
    detectable: float | None  # what these n would see in 4 of 5 cases
    needed: int | None  # runs of each to see the difference found, in as many cases


def sample(values: Floats) -> Sample:
    """Of at least one value; a spread of rounding errors alone is 0."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Sample(mean, None, n)
    return Sample(mean, _spread(values, mean, abs(mean)), n)


def _spread(values: Floats, mean: float, size: float) -> float:
    """The standard deviation of at least two values; 0 where it is rounding, for values of `size`.

    Accuracies are multiples of one test image, so that equal values and equal differences are
    common, and a test would take the last bits of a float for a tiny spread.
    """
    found = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return found if found > NOISE * max(1.0, size) else 0.0


def interval(
    of: Sample, within: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t; None for fewer than two runs.

    Cut off where no value can be: `within` is `PERCENT` for accuracies.
    """
    if of.std is None or of.n < 2:
        return None
    half = t_quantile(of.n - 1, LEVEL) * of.std / math.sqrt(of.n)
    return max(within[0], of.mean - half), min(within[1], of.mean + half)


def welch(a: Sample, b: Sample) -> float | None:
    """Two-sided p that a and b have one mean, by Welch's t-test.

    A sample of one run borrows the other's std. None where neither has one, or no run differs.
    """
    error, freedom = _error(a, b)
    if error is None or freedom is None or error == 0:
        return None
    from scipy.stats import t

    return float(2 * t.sf(abs(a.mean - b.mean) / error, freedom))


def difference(a: Sample, b: Sample, level: float = LEVEL) -> Difference:
    """b less a for independent runs, by Welch's t-test.

    `level` is that of the test whose power is told; the interval is the 95 % one of this pair.
    """
    error, freedom = _error(a, b)
    mean = b.mean - a.mean
    if error is None or freedom is None or error == 0:
        return Difference(mean, None, None, None, None, None, (a.n, b.n), False, None, None)
    half = t_quantile(freedom, LEVEL) * error
    spread = _pooled(a, b)
    return Difference(
        mean,
        mean - half,
        mean + half,
        welch(a, b),
        None,
        mean / spread if spread else None,
        (a.n, b.n),
        paired=False,
        detectable=detectable(error, freedom, level),
        needed=needed(mean, spread, level, paired=False) if spread else None,
    )


def paired_difference(a: Floats, b: Floats, level: float = LEVEL) -> Difference:
    """As `difference`, run by run for runs of equal seeds, by the paired t-test."""
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    size = max(float(np.abs(a).max()), float(np.abs(b).max()))
    mean = math.fsum(differences) / len(differences)
    std = _spread(differences, mean, size) if len(differences) > 1 else None
    found = Sample(mean, std, len(differences))
    both = (found.n, found.n)
    if found.std is None or found.std == 0:
        return Difference(found.mean, None, None, None, None, None, both, True, None, None)
    from scipy.stats import t

    error = found.std / math.sqrt(found.n)
    half = t_quantile(found.n - 1, LEVEL) * error
    return Difference(
        found.mean,
        found.mean - half,
        found.mean + half,
        float(2 * t.sf(abs(found.mean) / error, found.n - 1)),
        sign_flips(differences) if 2.0 ** (1 - found.n) < 0.01 else None,
        found.mean / found.std,
        both,
        paired=True,
        detectable=detectable(error, found.n - 1, level),
        needed=needed(found.mean, found.std, level, paired=True),
    )


def independent_difference(a: Floats, b: Floats, level: float = LEVEL) -> Difference:
    """As `difference`, for runs whose values are known: also by permutation."""
    found = difference(sample(a), sample(b), level)
    smallest = 2 / math.comb(len(a) + len(b), len(a))
    if smallest >= 0.01:
        return found
    return Difference(**{**found.__dict__, "permutation": exchanges(a, b)})


def sign_flips(differences: Floats) -> float:
    """Two-sided p by flipping signs: every way of them, or 20,000 drawn by a fixed seed."""
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=np.float64)
    found = permutation_test(
        (values,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if 2.0 ** len(values) <= EXACT else EXACT,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def exchanges(a: Floats, b: Floats) -> float:
    """Two-sided p by exchanging runs between the two: every way of it, or 20,000 drawn."""
    from scipy.stats import permutation_test

    found = permutation_test(
        (np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)),
        lambda x, y, axis: np.mean(y, axis=axis) - np.mean(x, axis=axis),
        permutation_type="independent",
        vectorized=True,
        n_resamples=np.inf if math.comb(len(a) + len(b), len(a)) <= EXACT else EXACT,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(p_values: Floats) -> list[float]:
    """Holm's correction: p-values that may be judged together."""
    order = np.argsort(p_values)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[place])))
        corrected[place] = largest
    return corrected


def mcnemar(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> tuple[int, int, float]:
    """On the same images: only a right, only b right, and the exact two-sided p (McNemar)."""
    from scipy.stats import binomtest

    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    if only_a + only_b == 0:
        return 0, 0, 1.0
    return only_a, only_b, float(binomtest(only_a, only_a + only_b).pvalue)


def correlation(a: Floats, b: Floats) -> tuple[float, float, float]:
    """Pearson's r with its 95 % interval (Fisher), for at least four pairs."""
    from scipy.stats import pearsonr

    found = pearsonr(np.asarray(a), np.asarray(b))
    band = found.confidence_interval(CONFIDENCE)
    return float(found.statistic), float(band.low), float(band.high)


def expected_maximum(of: Sample, n: int) -> float | None:
    """The mean of the best of n runs, were runs normal: mean + std times the n-th order statistic.

    None where the std is unknown.
    """
    if of.std is None:
        return None
    from scipy.integrate import quad
    from scipy.stats import norm

    def density(x: float) -> float:
        return float(x * n * norm.pdf(x) * norm.cdf(x) ** (n - 1))

    return of.mean + of.std * float(quad(density, -10, 10, limit=200)[0])


@dataclass(frozen=True)
class Chosen:
    """The best seed by one set: how far above the mean it stands there and on the other."""

    inflation: tuple[float, float, float]  # on the set that chose; with the 95 % of such sweeps
    remains: tuple[float, float, float]  # on the other


def chosen_best(by: Floats, other: Floats, draws: int = 10_000) -> Chosen:
    """What choosing the best seed on one set is worth there and elsewhere.

    The intervals are those of sweeps like this one: as many runs, normal with the stds and the
    correlation found (a parametric bootstrap; runs drawn again would hold the best too often).
    """
    first, second = np.asarray(by, dtype=np.float64), np.asarray(other, dtype=np.float64)
    covariance = np.cov(first, second)
    drawn = np.random.default_rng(0).multivariate_normal((0, 0), covariance, (draws, len(first)))
    drawn -= drawn.mean(1, keepdims=True)
    best = drawn[:, :, 0].argmax(1)
    inflated, remaining = drawn[np.arange(draws), best].T
    now = int(first.argmax())
    return Chosen(
        (float(first[now] - first.mean()), *band(inflated)),
        (float(second[now] - second.mean()), *band(remaining)),
    )


def band(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of what a bootstrap has drawn, by its quantiles."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _error(a: Sample, b: Sample) -> tuple[float | None, float | None]:
    """The standard error of a difference of means, and its degrees of freedom (Welch)."""
    known = [s for s in (a, b) if s.std is not None and s.n > 1]
    if not known:
        return None, None
    if len(known) == 1:
        spread = known[0].std or 0.0
        return spread * math.sqrt(1 / a.n + 1 / b.n), known[0].n - 1
    parts = [(s.std or 0.0) ** 2 / s.n for s in (a, b)]
    total = sum(parts)
    if total == 0:
        return 0.0, None
    freedom = total**2 / sum(p**2 / (s.n - 1) for p, s in zip(parts, (a, b), strict=True))
    return math.sqrt(total), freedom


def _pooled(a: Sample, b: Sample) -> float:
    """The standard deviation that both are taken to share, each weighing by its runs."""
    known = [s for s in (a, b) if s.std is not None and s.n > 1]
    weights = sum(s.n - 1 for s in known)
    return math.sqrt(sum((s.n - 1) * (s.std or 0.0) ** 2 for s in known) / weights)
