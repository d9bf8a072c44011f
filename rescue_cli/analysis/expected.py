"""Whether a result agrees with the published accuracy, by the test that `compare` makes."""

import math
from typing import Any

from rescue_cli.analysis.stats import LEVEL, NORMAL_95, PERCENT, Sample, welch_test
from rescue_cli.analysis.sweep import published_sample
from rescue_cli.recipe import Recipe

UNKNOWN = 0.5  # points: the tolerance where no spread is known


def check_expected(recipe: Recipe, ours: Sample, drawn: int | None = None) -> dict[str, Any] | None:
    """Published accuracy, result, and whether it is inside; None without a published accuracy.

    Inside: Welch's test of our runs against the published ones has p >= 0.05. Both are on the same
    test images, unless ours are a subset of `drawn` images; then the spread of that subset is
    added. Where neither side has a standard deviation over a known number of runs: within half a
    point.
    """
    expect = recipe.tree.get("expect")
    if not expect:
        return None
    published = published_sample(expect)
    test = welch_test(published, ours)
    band = test.interval(LEVEL)
    width = UNKNOWN if band is None else (band[1] - band[0]) / 2
    if drawn is not None:
        p = published.mean / 100
        width = math.hypot(width, 100 * NORMAL_95 * math.sqrt(p * (1 - p) / drawn))
    inside = abs(test.mean) <= width
    low, high = max(PERCENT[0], published.mean - width), min(PERCENT[1], published.mean + width)
    runs = "one run" if ours.n == 1 else f"mean of {ours.n} runs"
    by = f"within {UNKNOWN:g} points, as no spread is known" if band is None else "95 % interval"
    return {
        "recipe": recipe.name,
        "expected": published.mean,
        "width": width,
        "top1": ours.mean,
        "n": ours.n,
        "inside": inside,
        "said": f"top-1 {ours.mean:.2f} % ({runs}) is {'inside' if inside else 'outside'} the "
        f"expected range of {recipe.name}, {low:.2f} to {high:.2f} % ({by})",
    }


def subset_size(recipe: Recipe, count: int) -> int | None:
    """The number of test images, for a run with `data.subset`; None for one with all images."""
    return None if recipe.data.subset is None else count
