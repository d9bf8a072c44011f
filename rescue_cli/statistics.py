"""What samples of runs say: intervals, tests, and how large a difference could have been seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """Runs that differ in nothing but chance, or a paper's word of them."""

    mean: float
    std: float | None  # of single runs, n - 1 in the denominator; None for one run
    n: int


def sample(values: Sequence[float]) -> Sample:
    """Of at least one value."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Sample(mean, None, n)
    return Sample(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1)), n)


def interval(of: Sample) -> tuple[float, float] | None:
    """95 % of the mean by Student's t; None for fewer than two runs."""
    if of.std is None or of.n < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, of.n - 1)) * of.std / math.sqrt(of.n)
    return of.mean - half, of.mean + half


def welch(a: Sample, b: Sample) -> float | None:
    """Two-sided p that a and b have one mean, by Welch's t-test.

    A sample of one run borrows the other's std. None where neither has one, or no run differs.
    """
    stds = [s.std for s in (a, b) if s.std is not None]
    if not stds or not any(stds):
        return None
    if a.std is not None and b.std is not None and min(a.n, b.n) > 1:
        from scipy.stats import ttest_ind_from_stats

        test = ttest_ind_from_stats(a.mean, a.std, a.n, b.mean, b.std, b.n, equal_var=False)
        return float(test.pvalue)
    known, single = (a, b) if a.std is not None else (b, a)
    assert known.std is not None
    if known.n < 2:
        return None
    from scipy.stats import t

    error = known.std * math.sqrt(1 / known.n + 1 / single.n)
    return float(2 * t.sf(abs(a.mean - b.mean) / error, known.n - 1))
