"""What samples of runs say without taking them for normal: middles, ranks, permutations."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from rescue_cli.analysis.power import t_quantile

EXACT = 20_000  # arrangements up to which a permutation test goes through all of them
DRAWS = 20_000  # normal samples that a skewness is held against
SKEWED = 0.99  # of normal samples of as many runs are less skewed than one that is warned of
EDGE = 1e-9
Floats = Sequence[float] | NDArray[np.float64]


def interquartile_mean(values: Floats) -> float:
    """The mean without the lowest and the highest quarter (Agarwal et al. 2021, "rliable")."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(values, dtype=np.float64), 0.25))


def is_skewed(values: Floats) -> bool:
    """Whether the sample is more skewed than 99 % of normal samples of its size.

    Then a t-test and its interval promise more than they keep: a few seeds that nearly diverge are
    the usual cause. Never of two values, or of equal ones.
    """
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 3 or np.ptp(found) == 0:
        return False
    return bool(abs(_skewness(found[None])[0]) > _skewness_bound(len(found)))


@cache
def _skewness_bound(n: int) -> float:
    """The 99 % quantile of the absolute skewness of n normal values, by a fixed simulation."""
    drawn = np.random.default_rng(0).standard_normal((max(1000, DRAWS // max(1, n // 50)), n))
    return float(np.quantile(np.abs(_skewness(drawn)), SKEWED))


def _skewness(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    centred = samples - samples.mean(1, keepdims=True)
    found: NDArray[np.float64] = (centred**3).mean(1) / (centred**2).mean(1) ** 1.5
    return found


def superiority(a: Floats, b: Floats) -> tuple[float, float, float]:
    """The probability that a run of b beats one of a, a tie counting half; its 95 % interval.

    Mann and Whitney's U over all pairs; the interval is Newcombe's method 5 (2006), which neither
    shrinks to a point nor leaves 0 to 1 where the samples do not overlap, by Student's t.
    """
    from scipy.optimize import brentq

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    above = second[None, :] - first[:, None]
    theta = float(((above > 0) + 0.5 * (above == 0)).mean())
    m, n = len(first), len(second)
    weight = (m + n) / 2 - 1
    bound = t_quantile(m + n - 2, 0.05)

    def beyond(x: float) -> float:
        """Squared distance of x from theta less what x's standard errors allow."""
        variance = x * (1 - x) * (1 + weight * ((1 - x) / (2 - x) + x / (1 + x))) / (m * n)
        return (x - theta) ** 2 - bound**2 * variance

    inside = min(max(theta, EDGE), 1 - EDGE)  # at 0 and 1 `beyond` has a root that bounds nothing
    low = float(brentq(beyond, 0.0, inside)) if theta > 0 else 0.0
    high = float(brentq(beyond, inside, 1.0)) if theta < 1 else 1.0
    return theta, low, high


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
