"""Statistics of samples of runs: intervals, t-tests, power, permutation tests; by scipy."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
LEVEL = 0.05  # of a single test
PERCENT = (0.0, 100.0)  # the range of accuracies
# Runs; for fewer, Welch's degrees of freedom are too many, and the smaller n - 1 is used
FEWEST_WELCH = 3
NOISE = 1e-9  # relative: a smaller spread is rounding, and counts as 0
Floats = Sequence[float] | NDArray[np.float64]
POWER = 0.8
SURE = 0.8  # confidence that the true standard deviation is not above the one planned with
FAR = 5.0  # standard errors
NORMAL_95 = 1.959964  # standard errors: half of a 95 % interval for a known standard deviation
MOST = 1_000_000  # runs
EXACT = 20_000  # arrangements up to which a permutation test enumerates all
DRAWS = 20_000  # normal samples that a skewness is compared with
FEWEST_SKEWED = 5  # values that may be called skewed
SKEWED = 0.99  # quantile of the skewness of normal samples, beyond which one is reported
EDGE = 1e-9
BLOCK = 2**20  # numbers of a permutation test or a simulation that are in memory at a time
KEPT = 2**22  # indices of a permutation test's orders, up to which they are kept for the next one


@dataclass(frozen=True)
class Sample:
    """Runs that differ only by chance, or a paper's summary of such runs."""

    mean: float
    std: float | None  # of single runs, n - 1 in the denominator; None for one run
    n: int


class Spread(NamedTuple):
    """A standard deviation, and its degrees of freedom."""

    std: float
    freedom: float


@dataclass(frozen=True)
class Difference:
    """The mean of b less that of a, with its uncertainty by Student's t."""

    mean: float
    n: tuple[int, int]
    paired: bool
    error: float | None = None  # the standard error; None where no spread is known
    freedom: float | None = None
    std: float | None = None  # of single runs, pooled; of the differences where they are paired
    planned: Spread | None = None  # to plan as many runs of each with
    borrowed: bool = False  # one side is a single run, assumed to scatter like the other

    @property
    def p(self) -> float | None:
        """Two-sided p of no difference; None where no spread is known."""
        if self.error is None or self.freedom is None:
            return None
        return two_sided_p(self.mean / self.error, self.freedom)

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """The confidence interval of the mean, at 1 - `level`."""
        if self.error is None or self.freedom is None:
            return None
        half = t_quantile(self.freedom, level) * self.error
        return self.mean - half, self.mean + half

    def detectable(self, level: float = LEVEL) -> float | None:
        """The true difference that a test of these runs at `level` detects in 4 of 5 cases."""
        if self.error is None or self.freedom is None:
            return None
        return detectable_difference(self.error, self.freedom, level)

    def runs_needed(self, want: float, level: float = LEVEL) -> int | None:
        """Runs of each to detect a difference of `want` in 4 of 5 cases.

        Planned with the upper bound of the standard deviation; None where no spread is known, or
        for over a million runs.
        """
        bound = self.std_bound
        return None if bound is None else runs_needed(want, bound, level, paired=self.paired)

    @property
    def std_bound(self) -> float | None:
        """The upper 80 % confidence bound of the planned std; None without a spread."""
        return std_upper_bound(*self.planned) if self.planned and self.planned.std else None

    @property
    def effect(self) -> float | None:
        """The difference in standard deviations: Cohen's d, or d_z where runs are paired."""
        return self.mean / self.std if self.std else None


def sample(values: Floats) -> Sample:
    """The mean, standard deviation and number of at least one value; a spread of rounding is 0."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Sample(mean, None, n)
    return Sample(mean, _spread(values, mean, abs(mean)), n)


def _spread(values: Floats, mean: float, size: float) -> float:
    """The standard deviation of at least two values; 0 where it is only rounding of `size`.

    Accuracies are multiples of one test image, so that equal values and equal differences are
    common, and a test would mistake the last bits of a float for a tiny spread.
    """
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return std if std > NOISE * max(1.0, size) else 0.0


def wilson_interval(right: float, count: int) -> tuple[float, float]:
    """95 % interval of an accuracy in percent, over new test images (Wilson 1927).

    `right`: how many of `count` images were classified correctly.
    """
    whole = np.array([round(right)], dtype=np.float64)
    return mean_of_proportions_interval(whole, np.array([count], dtype=np.float64))


def mean_of_proportions_interval(
    right: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[float, float]:
    """95 % interval, in percent, of the mean over classes of `right / counts`, over new images.

    Combines each class's Wilson interval as variances would be (MOVER: Zou, Huang and Zhang 2009);
    for a single class it is Wilson's own.
    """
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    shares, whole = right / counts, 1 + z**2 / counts
    centres = (shares + z**2 / (2 * counts)) / whole
    halves = z * np.sqrt(shares * (1 - shares) / counts + (z / (2 * counts)) ** 2) / whole
    below, above = shares - (centres - halves), centres + halves - shares
    low, high = (
        shares.mean() + sign * np.sqrt((distances**2).sum()) / len(shares)
        for sign, distances in ((-1, below), (1, above))
    )
    return max(0.0, 100 * float(low)), min(100.0, 100 * float(high))


def t_interval(
    of: Sample, within: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float] | None:
    """95 % interval of the mean by Student's t; None for fewer than two runs, and for equal ones,
    which tell nothing of the spread.

    Clipped to `within`, the range of the values: `PERCENT` for accuracies.
    """
    if not of.std or of.n < 2:
        return None
    half = t_quantile(of.n - 1, LEVEL) * of.std / math.sqrt(of.n)
    return max(within[0], of.mean - half), min(within[1], of.mean + half)


def welch_test(a: Sample, b: Sample) -> Difference:
    """b less a for independent runs, by Welch's t-test.

    A sample of one run borrows the other's std, and `borrowed` is set. No error where neither has a
    std, or both are 0.
    """
    error, freedom = _error(a, b)
    test = Difference(b.mean - a.mean, (a.n, b.n), paired=False)
    if not error or freedom is None:
        return test
    alone = (a.std is None) != (b.std is None)
    return replace(
        test, error=error, freedom=freedom, std=_pooled_std(a, b), planned=_mean_spread(a, b),
        borrowed=alone,
    )  # fmt: skip


def paired_t_test(a: Floats, b: Floats) -> Difference:
    """b less a for runs in pairs, by the paired t-test; no error without a spread."""
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    n = len(differences)
    size = max(float(np.abs(a).max()), float(np.abs(b).max()))
    mean = math.fsum(differences) / n
    std = _spread(differences, mean, size) if n > 1 else 0.0
    test = Difference(mean, (n, n), paired=True)
    if std == 0:
        return test
    spread = Spread(std, n - 1)
    return replace(test, error=std / math.sqrt(n), freedom=n - 1, std=std, planned=spread)


def holm_correction(p_values: Floats) -> list[float]:
    """p-values corrected for multiple tests (Holm)."""
    order = np.argsort(p_values)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        corrected[index] = largest
    return corrected


def paired_proportions_interval(
    only_a: int, only_b: int, both: int, count: int, level: float
) -> tuple[float, float]:
    """Interval in percent of b's accuracy less a's on the same `count` images, over new images.

    `only_a`, `only_b`, `both`: the images that are right in a alone, in b alone, in both. Wilson's
    intervals combined with the correlation of the two (Newcombe 1998, method 10).
    """
    from scipy.stats import binomtest

    neither = count - only_a - only_b - both
    right = [both + only_a, both + only_b]
    (low_a, high_a), (low_b, high_b) = (
        binomtest(each, count).proportion_ci(1 - level, method="wilson") for each in right
    )
    a, b = (each / count for each in right)
    product = math.prod(right) * math.prod(count - each for each in right)
    covariance = float(both * neither - only_a * only_b)
    if covariance > 0:
        covariance = max(covariance - count / 2, 0.0)
    phi = covariance / math.sqrt(product) if product else 0.0

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(x**2 - 2 * phi * x * y + y**2, 0.0))

    low, high = distance(b - low_b, high_a - a), distance(high_b - b, a - low_a)
    return 100 * (b - a - low), 100 * (b - a + high)


def mcnemar_test(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> tuple[int, int, float]:
    """McNemar's exact test on the same images: only a correct, only b correct, two-sided p."""
    from scipy.stats import binomtest

    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    if only_a + only_b == 0:
        return 0, 0, 1.0
    return only_a, only_b, float(binomtest(only_a, only_a + only_b).pvalue)


def fisher_exact_test(diverged: Sequence[int], finished: Sequence[int]) -> float:
    """Two-sided p of equal divergence rates (Fisher's exact test)."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([diverged, finished]).pvalue)


def correlation_interval(a: Floats, b: Floats) -> tuple[float, float, float]:
    """Pearson's r with its 95 % interval (Fisher), for at least four pairs."""
    from scipy.stats import pearsonr

    test = pearsonr(np.asarray(a), np.asarray(b))
    interval = test.confidence_interval(CONFIDENCE)
    return float(test.statistic), float(interval.low), float(interval.high)


def expected_maximum(of: Sample, n: int) -> float | None:
    """The expected best of n normal runs: mean + std times the expected n-th order statistic.

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
class BestSeedBias:
    """How far the best seed by one set is above the mean, on that set and on another."""

    inflation: tuple[
        float, float, float
    ]  # on the choosing set; with the range of 95 % of such sweeps
    remains: tuple[float, float, float]  # on the other set


def best_seed_bias(by: Floats, other: Floats, draws: int = 10_000) -> BestSeedBias:
    """What choosing the best seed by one set is worth on that set and on another.

    The ranges are what chance gives in simulated sweeps, not confidence intervals: as many normal
    runs, with the observed correlation and the observed stds, whose uncertainty is included.
    """
    first, second = np.asarray(by, dtype=np.float64), np.asarray(other, dtype=np.float64)
    covariance = np.cov(first, second)
    rng, n = np.random.default_rng(0), len(first)
    drawn = rng.multivariate_normal((0, 0), covariance, (draws, n))
    drawn *= np.sqrt((n - 1) / rng.chisquare(n - 1, (draws, 1, 1)))  # the uncertainty of the stds
    drawn -= drawn.mean(1, keepdims=True)
    best = drawn[:, :, 0].argmax(1)
    inflated, remaining = drawn[np.arange(draws), best].T
    now = int(first.argmax())
    return BestSeedBias(
        (float(first[now] - first.mean()), *percentile_interval(inflated)),
        (float(second[now] - second.mean()), *percentile_interval(remaining)),
    )


def percentile_interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of draws, by their quantiles."""
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
    if min(a.n, b.n) < FEWEST_WELCH:
        return math.sqrt(total), min(a.n, b.n) - 1
    freedom = total**2 / sum(p**2 / (s.n - 1) for p, s in zip(parts, (a, b), strict=True))
    return math.sqrt(total), freedom


def _pooled_std(a: Sample, b: Sample) -> float:
    """The pooled standard deviation."""
    known = [s for s in (a, b) if s.std is not None and s.n > 1]
    weights = sum(s.n - 1 for s in known)
    return math.sqrt(sum((s.n - 1) * (s.std or 0.0) ** 2 for s in known) / weights)


def _mean_spread(a: Sample, b: Sample) -> Spread:
    """The root mean square of both stds, which decides the error of as many runs of each, with
    Satterthwaite's degrees of freedom; of one side alone, its own.
    """
    known = [s for s in (a, b) if s.std is not None and s.n > 1]
    variances = [(s.std or 0.0) ** 2 for s in known]
    total = sum(variances)
    freedom = total**2 / sum(v**2 / (s.n - 1) for v, s in zip(variances, known, strict=True))
    return Spread(math.sqrt(total / len(known)), freedom)


def t_quantile(freedom: float, level: float) -> float:
    """The critical value of a two-sided t-test at that level, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - level / 2))


def two_sided_p(t: float, freedom: float) -> float:
    """The p of a t-test, given its statistic."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def detectable_difference(error: float, freedom: float, level: float) -> float:
    """The true difference that the test detects in 80 % of cases, by the noncentral t."""
    from scipy.optimize import brentq

    high = 4.0
    while _power(high, freedom, level) < POWER:
        high *= 2
    return error * float(brentq(lambda d: _power(d, freedom, level) - POWER, 0.0, high))


def std_upper_bound(std: float, freedom: float) -> float:
    """The upper 80 % confidence bound of the true standard deviation (Browne 1995).

    Planned with a pilot's own standard deviation, runs are too few in half of the cases.
    """
    from scipy.stats import chi2

    return std * math.sqrt(freedom / float(chi2.ppf(1 - SURE, freedom)))


def runs_needed(want: float, std: float, level: float, *, paired: bool) -> int | None:
    """Runs of each for 80 % power at a difference of `want`; None for more than a million.

    `std`: of single runs, or of the differences where they are `paired`.
    """

    def power(n: int) -> float:
        error = std * math.sqrt((1 if paired else 2) / n)
        return _power(want / error, n - 1 if paired else 2 * n - 2, level)

    low, high = 2, 2
    while power(high) < POWER:
        low, high = high, 2 * high
        if high > MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle + 1, high)
    return high


def _power(noncentrality: float, freedom: float, level: float) -> float:
    """The power of a two-sided t-test at a difference of so many standard errors."""
    from scipy.stats import nct

    bound = t_quantile(freedom, level)
    above = float(nct.sf(bound, freedom, noncentrality))
    if noncentrality > FAR:  # the other tail is negligible, and scipy's series for it fails
        return above
    return above + float(nct.cdf(-bound, freedom, noncentrality))


def interquartile_mean(values: Floats) -> float:
    """The mean without the lowest and the highest quarter (Agarwal et al. 2021, "rliable")."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(values, dtype=np.float64), 0.25))


def is_skewed(values: Floats) -> bool:
    """Whether the sample is more skewed than 99 % of normal samples of its size.

    The error rates of a t-test and its interval are then not as stated; the usual cause is a few
    seeds that nearly diverge. False for equal values, and for fewer than 5: an accuracy is a count
    of images, and two equal ones of three are as skewed as three values can be.
    """
    runs = np.asarray(values, dtype=np.float64)
    if len(runs) < FEWEST_SKEWED or np.ptp(runs) == 0:
        return False
    return bool(abs(_skewness(runs[None])[0]) > _skewness_bound(len(runs)))


@cache
def _skewness_bound(n: int) -> float:
    """The 99 % quantile of the absolute skewness of n normal values, by a fixed simulation."""
    rng, draws = np.random.default_rng(0), max(1000, DRAWS // max(1, n // 50))
    drawn = [_skewness(rng.standard_normal((rows, n))) for rows in _blocks(draws, n)]
    return float(np.quantile(np.abs(np.concatenate(drawn)), SKEWED))


def _blocks(rows: int, columns: int) -> list[int]:
    """So many rows, in blocks of a bounded size."""
    most = max(1, BLOCK // columns)
    return [min(most, rows - at) for at in range(0, rows, most)]


def _skewness(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = samples - samples.mean(1, keepdims=True)
    skewness: NDArray[np.float64] = (centred**3).mean(1) / (centred**2).mean(1) ** 1.5
    return skewness


def probability_of_superiority(a: Floats, b: Floats) -> tuple[float, float, float]:
    """The probability that a run of b beats one of a, ties counting half, and its 95 % interval.

    Mann and Whitney's U over all pairs. The interval is Newcombe's method 5 (2006) with Student's
    t, which stays within 0 and 1 and does not shrink to a point where samples do not overlap.
    """
    from scipy.optimize import brentq

    first, second = np.sort(np.asarray(a, dtype=np.float64)), np.asarray(b, dtype=np.float64)
    m, n = len(first), len(second)
    below, up_to = (int(np.searchsorted(first, second, side).sum()) for side in ("left", "right"))
    theta = (below + up_to) / 2 / (m * n)
    weight = (m + n) / 2 - 1
    bound = t_quantile(m + n - 2, 0.05)

    def beyond(x: float) -> float:
        """Squared distance of x from theta less its bound by x's standard error."""
        variance = x * (1 - x) * (1 + weight * ((1 - x) / (2 - x) + x / (1 + x))) / (m * n)
        return (x - theta) ** 2 - bound**2 * variance

    inside = min(max(theta, EDGE), 1 - EDGE)  # at 0 and 1 `beyond` has a root that bounds nothing
    low = float(brentq(beyond, 0.0, inside)) if theta > 0 else 0.0
    high = float(brentq(beyond, inside, 1.0)) if theta < 1 else 1.0
    return theta, low, high


def sign_flip_test(differences: Floats) -> float:
    """Two-sided p by flipping signs: all ways, or 20,000 drawn with a fixed seed."""
    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=np.float64)
    test = permutation_test(
        (values,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf if len(values) < math.log2(EXACT) else EXACT,
        batch=max(1, BLOCK // len(values)),  # which changes the memory alone
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def two_sample_permutation_test(a: Floats, b: Floats) -> float:
    """Two-sided p by exchanging runs between samples: all ways, or 20,000 drawn.

    What scipy.stats.permutation_test computes; its orders are kept for samples of equal sizes.
    """
    return exchange_test(a, b)(0.0)


def exchange_test(a: Floats, b: Floats) -> Callable[[float], float]:
    """`two_sample_permutation_test` of a true difference, b less a, that is assumed.

    Whatever it is, the runs are exchanged once: each mean moves with the share of b's runs in it.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    m, n = len(first), len(second)
    both, parts, shares = np.concatenate([first, second]), [], []
    drawn = math.comb(m + n, m) > EXACT
    for orders in _drawn_orders(m + n) if drawn else [_all_orders(m, n)]:
        shuffled, of_b = both[orders], orders >= m
        parts.append(shuffled[:, m:].mean(1) - shuffled[:, :m].mean(1))
        shares.append(of_b[:, m:].mean(1) - of_b[:, :m].mean(1))
    difference, share = np.concatenate(parts), np.concatenate(shares)
    whole = second.mean() - first.mean()

    def p(assumed: float) -> float:
        under_null, observed = difference - assumed * share, whole - assumed
        rounding = 100 * np.finfo(np.float64).eps * max(abs(whole), abs(assumed))
        tails = (
            np.count_nonzero(under_null <= observed + rounding) + drawn,
            np.count_nonzero(under_null >= observed - rounding) + drawn,
        )
        return float(min(1.0, 2 * min(tails) / (len(under_null) + drawn)))

    return p


def permutation_interval(
    test: Callable[[float], float], inside: tuple[float, float], level: float
) -> tuple[float, float]:
    """The differences that neither a permutation test nor another interval rejects.

    Args:
        test: The permutation test's p, given the difference that is assumed to be the true one.
        inside: The other interval, from whose ends the search goes outwards.
        level: Of the test.
    """
    middle, width = sum(inside) / 2, inside[1] - inside[0]
    ends = []
    for kept in inside:
        step = math.copysign(width, kept - middle)
        out = kept
        while test(out) >= level:
            kept, out = out, out + step
            step *= 2
        while abs(out - kept) > width / 200:
            between = (kept + out) / 2
            kept, out = (between, out) if test(between) >= level else (kept, between)
        ends.append(kept)
    return ends[0], ends[1]


@lru_cache(maxsize=4)
def _all_orders(m: int, n: int) -> NDArray[np.int32]:
    """(ways, m + n): indices of runs, of which the first m form one sample.

    Each sample is in the order of a set, as in scipy, since a sum's rounding depends on its order.
    """
    total = m + n
    chosen = map(set, combinations(range(total), m))
    orders = [[*way, *({*range(total)} - way)] for way in chosen]
    return np.array(orders, dtype=np.int32)


def _drawn_orders(total: int) -> Iterable[NDArray[np.int32]]:
    """20,000 random orders of so many runs with a fixed seed, in blocks of (orders, total)."""
    return _kept_orders(total) if EXACT * total <= KEPT else _draw_orders(total)


@lru_cache(maxsize=4)
def _kept_orders(total: int) -> list[NDArray[np.int32]]:
    return list(_draw_orders(total))


def _draw_orders(total: int) -> Iterator[NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    for rows in _blocks(EXACT, total):
        yield np.array([rng.permutation(total) for _ in range(rows)], dtype=np.int32)
