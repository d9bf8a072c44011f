"""What t-tests of so many runs could have seen, and how many runs a difference asks for."""

import math

POWER = 0.8
FAR = 5.0  # standard errors
MOST = 1_000_000  # runs


def t_quantile(freedom: float, level: float) -> float:
    """The bound of a two-sided t-test at that level, in standard errors."""
    from scipy.stats import t

    return float(t.ppf(1 - level / 2, freedom))


def detectable(error: float, freedom: float, level: float) -> float:
    """The true difference that the test sees in 80 % of cases, by the noncentral t."""
    from scipy.optimize import brentq

    high = 4.0
    while _power(high, freedom, level) < POWER:
        high *= 2
    return error * float(brentq(lambda d: _power(d, freedom, level) - POWER, 0.0, high))


def needed(mean: float, spread: float, level: float, *, paired: bool) -> int | None:
    """Runs of each for 80 % power at the difference found; None where that is past a million."""
    if mean == 0:
        return None

    def power(n: int) -> float:
        error = spread * math.sqrt((1 if paired else 2) / n)
        return _power(abs(mean) / error, n - 1 if paired else 2 * n - 2, level)

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
