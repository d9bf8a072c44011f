"""The picture of an LR range test."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rescue_cli.analysis.curves import smooth
from rescue_cli.analysis.lr_range import Curves, RunEstimate, shared_overfitting
from rescue_cli.analysis.lr_range_runs import SUGGESTIONS, RangeTest
from rescue_cli.metrics.names import METRICS
from rescue_cli.report.pictures import new_figure, save_figure

WIDE = 10  # ratio of the largest loss to the median, from which the axis is logarithmic
MARKS = {"valley": "v", "steepest": "s", "minimum": "o"}


def draw_range_test(path: Path, test: RangeTest) -> None:
    """Writes a picture of losses, their difference and accuracy over the learning rate."""
    full, half, answer = test.full, test.half, test.answer
    tested = not full[0].detects
    figure = new_figure(10, 7 if tested else 4)
    names = [
        ("training loss", "train_losses"),
        *([("test loss", "test_losses"), ("test loss less training loss", "errors")] * tested),
        (METRICS[full[0].metric], "accuracies"),
    ]
    grid = figure.subplots(*((2, 2) if tested else (1, 2))).flat
    panels = [(axes, title, key) for axes, (title, key) in zip(grid, names, strict=True)]
    of = {key: axes for axes, _, key in panels}
    for axes, title, key in panels:
        for index, curves in enumerate([*full, half]):
            values = getattr(curves, key)
            colour = "0.6" if curves is half else f"C{index}"
            name = "half the steps" if curves is half else f"seed {curves.seed}"
            axes.plot(curves.rates, values, color=colour, alpha=0.3, linewidth=1)
            axes.plot(curves.rates, smooth(values), color=colour, label=f"{name}, smoothed")
        if answer.max_lr is not None:
            style, label = ("--", "") if answer.trusted else (":", ", not trusted")
            label = f"largest stable rate{label}"
            axes.axvline(answer.max_lr, color="k", linestyle=style, linewidth=1, label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("learning rate")
        if test.ramp.shape == "exponential":
            axes.set_xscale("log")
        axes.grid(alpha=0.3)
    _mark(of["train_losses"], full[0], test.estimates[0])
    signs = f"signs of overfitting{', all seeds' if len(full) > 1 else ''}"
    for low, high in shared_overfitting(test.estimates):
        of["errors"].axvspan(low, high, color="tab:red", alpha=0.1, label=signs)
    for axes, _, key in panels[:-1]:
        scale_loss_axis(axes, [v for curves in [*full, half] for v in getattr(curves, key)])
    named: dict[str, Any] = {}
    for axes, _, _ in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncol=4, fontsize=8)
    save_figure(figure, path)


def scale_loss_axis(axes: Any, values: Sequence[float]) -> None:
    """Makes the axis logarithmic where a loss that blows up would flatten the rest."""
    finite = [abs(value) for value in values if math.isfinite(value) and value]
    if not finite or max(finite) < WIDE * min(2.0, median(finite)):
        return
    if min(values, default=0.0) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=max(1e-3, median(finite)))


def _mark(axes: Any, curves: Curves, estimate: RunEstimate) -> None:
    """Marks fastai's suggestions on the training loss."""
    smoothed = smooth(curves.train_losses)
    for name, rate in estimate.suggestions.items():
        if rate is None:
            continue
        nearest = min(range(len(curves.rates)), key=lambda i: abs(curves.rates[i] - rate))
        label = f"fastai's {SUGGESTIONS[name]}, seed {curves.seed}"
        axes.plot(rate, smoothed[nearest], MARKS[name], color="k", markersize=5, label=label)
