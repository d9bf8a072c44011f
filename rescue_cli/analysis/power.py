"""What t-tests of so many runs could have seen, and how many runs a difference asks for."""

import math

POWER = 0.8
SURE = 0.8  # that the standard deviation planned with is not below the true one
FAR = 5.0  # standard errors
NORMAL = 1.959964  # standard errors of a 95 % interval of known spread
MOST = 1_000_000  # runs


def t_quantile(freedom: float, level: float) -> float:
    """The bound of a two-sided t-test at that level, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - level / 2))


def two_sided(t: float, freedom: float) -> float:
    """The p of a t-test, given its statistic."""
    from scipy.special import stdtr

    return float(2 * stdtr(freedom, -abs(t)))


def detectable(error: float, freedom: float, level: float) -> float:
    """The true difference that the test sees in 80 % of cases, by the noncentral t."""
    from scipy.optimize import brentq

    high = 4.0
    while _power(high, freedom, level) < POWER:
        high *= 2
    return error * float(brentq(lambda d: _power(d, freedom, level) - POWER, 0.0, high))


def upper_bound(std: float, freedom: float) -> float:
    """The standard deviation that the true one is below with 80 % confidence (Browne 1995).

    Runs planned with a pilot's own standard deviation fall short in half of the cases.
    """
    from scipy.stats import chi2

    return std * math.sqrt(freedom / float(chi2.ppf(1 - SURE, freedom)))


def needed(want: float, std: float, level: float, *, paired: bool) -> int | None:
    """Runs of each for 80 % power at a difference of `want`; None where that is past a million.

    `std`: of single runs, of differences where they are `paired`.
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
    """How often a two-sided t-test sees a difference of so many standard errors."""
    from scipy.stats import nct

    bound = t_quantile(freedom, level)
    above = float(nct.sf(bound, freedom, noncentrality))
    if noncentrality > FAR:  # the other tail is next to nothing, and scipy's series for it fails
        return above
    return above + float(nct.cdf(-bound, freedom, noncentrality))
