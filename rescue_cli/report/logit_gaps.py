"""The gap of a network's largest logit to the mean of the others (Bag of Tricks, figure 4)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.analysis.sides import load_predictions
from rescue_cli.errors import DataError
from rescue_cli.recipe import recipe_in
from rescue_cli.report.pictures import new_figure


def optimal_gap(smoothing: float, classes: int) -> float:
    """The gap at the optimum of a label-smoothed loss: log((K - 1)(1 - eps) / eps) (equation 5)."""
    return math.log((classes - 1) * (1 - smoothing) / smoothing)


def plot_logit_gaps(runs: Sequence[Path]) -> Any:
    """Histograms of the gap over each run's test images, and its optimum where labels are smoothed.

    None where no run has stored gaps.
    """
    stored = [(path, gaps_of_run) for path in runs if (gaps_of_run := _gaps(path)) is not None]
    if not stored:
        return None
    figure = new_figure(8, 3.2)
    axes = figure.subplots()
    low, high = (f([f(gaps) for _, (gaps, _) in stored]) for f in (min, max))
    for index, (path, (gaps, optimum)) in enumerate(stored):
        colour = f"C{index % 10}"
        axes.hist(
            gaps, bins=np.linspace(low, high, 60), density=True, histtype="step", color=colour,
            label=str(path),
        )  # fmt: skip
        if optimum is not None:
            axes.axvline(optimum, color=colour, linestyle="--", linewidth=1,
                         label=f"its optimum, {optimum:.2f}")  # fmt: skip
    axes.set_xlabel("largest logit less the mean of the others")
    axes.set_ylabel("test images, density")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _gaps(run: Path) -> tuple[Any, float | None] | None:
    """Each test image's gap, and the optimum with smoothed labels; None without stored gaps."""
    try:
        arrays = load_predictions(run)
    except DataError:
        return None
    if "gaps" not in arrays:
        return None
    loss = recipe_in(run).loss
    smoothing = float(loss.options.get("label_smoothing", 0.0))
    if loss.name != "cross-entropy" or smoothing == 0:
        return arrays["gaps"], None
    classes = len(arrays["classes"])
    if loss.options.get("smoothing_over", "all") == "all":
        smoothing *= (classes - 1) / classes  # the label keeps its share of the spread probability
    return arrays["gaps"], optimal_gap(smoothing, classes)
