"""Whether a result agrees with what its recipe expects, by the test that `compare` makes."""

import math
from typing import Any

from rescue_cli.analysis.power import NORMAL
from rescue_cli.analysis.stats import LEVEL, PERCENT, Sample, difference
from rescue_cli.analysis.sweep import published
from rescue_cli.recipe import Recipe

UNKNOWN = 0.5  # points of difference, where no spread is known to test by


def verdict(recipe: Recipe, ours: Sample, drawn: int | None = None) -> dict[str, Any] | None:
    """Claim, result and whether it is inside; None for a recipe that expects nothing.

    Inside is where Welch's test of our runs against the published ones has p >= 0.05, so that a
    mean of n is held to the width of a mean of n. Claim and result share their test images, unless
    ours are `drawn` of them; then that many images add their spread. Where neither side has a
    standard deviation over a known number of runs, inside is within half a point.
    """
    expect = recipe.tree.get("expect")
    if not expect:
        return None
    claim = published(expect)
    found = difference(claim, ours)
    band = found.interval(LEVEL)
    width = UNKNOWN if band is None else (band[1] - band[0]) / 2
    if drawn is not None:
        p = claim.mean / 100
        width = math.hypot(width, 100 * NORMAL * math.sqrt(p * (1 - p) / drawn))
    inside = abs(found.mean) <= width
    low, high = max(PERCENT[0], claim.mean - width), min(PERCENT[1], claim.mean + width)
    runs = "one run" if ours.n == 1 else f"mean of {ours.n} runs"
    by = f"within {UNKNOWN:g} points, as no spread is known" if band is None else "95 % interval"
    return {
        "recipe": recipe.name,
        "expected": claim.mean,
        "width": width,
        "top1": ours.mean,
        "n": ours.n,
        "inside": inside,
        "said": f"top-1 {ours.mean:.2f} % ({runs}) is {'inside' if inside else 'outside'} what "
        f"{recipe.name} expects, {low:.2f} to {high:.2f} % ({by})",
    }


def drawn_of(recipe: Recipe, count: int) -> int | None:
    """The number of test images of a run that was given a part of them; None of one with all."""
    return None if recipe.data.subset is None else count
