"""Whether a result is inside the band of what its recipe expects."""

import math
from typing import Any

from rescue_cli.recipe import Recipe
from rescue_cli.statistics import PERCENT

WIDTH = 3.0  # standard deviations
UNKNOWN = 0.5  # points, where no standard deviation is published


def verdict(recipe: Recipe, top1: float, count: int) -> dict[str, Any] | None:
    """Claim, result and whether it is inside; None for a recipe that expects nothing.

    Inside is |top1 - claim| <= 3 sqrt(std^2 + p (1 - p) / count), with the spread of single runs
    and that of drawing `count` test images; 0.5 points without a published spread.
    """
    expect = recipe.tree.get("expect")
    if not expect:
        return None
    claim, std = float(expect["top1"]), expect.get("std")
    width = UNKNOWN
    if std is not None:
        p = claim / 100
        width = WIDTH * math.sqrt(float(std) ** 2 + 1e4 * p * (1 - p) / count)
    inside = abs(top1 - claim) <= width
    word = "inside" if inside else "outside"
    low, high = PERCENT
    band = f"{max(low, claim - width):.2f} to {min(high, claim + width):.2f} %"
    return {
        "recipe": recipe.name,
        "expected": claim,
        "width": width,
        "top1": top1,
        "inside": inside,
        "said": f"top-1 {top1:.2f} % is {word} what {recipe.name} expects, {band}",
    }
