"""Pictures of sweeps: histograms, one set against another, and the range by epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rescue_cli.analysis.sweep import Sweep, metric_label, scores_by_epoch, summarize_sweep
from rescue_cli.formatting import format_count
from rescue_cli.report.pictures import FEW_POINTS, end_at_100, new_figure, save_figure

FEW = 10  # seeds, below which each is a point in place of a histogram


def draw_sweep(sweep: Sweep) -> list[Path]:
    """Writes the pictures that the sweep has enough runs for, and returns their paths."""
    figures = sweep_figures(sweep)
    for name, figure in figures.items():
        save_figure(figure, sweep.path / name)
    return [sweep.path / name for name in figures]


def sweep_figures(sweep: Sweep) -> dict[str, Any]:
    """The pictures that the sweep has enough runs for, by file name."""
    figures = {}
    if len(sweep.results) > 1:
        figures["histogram.png"] = _histograms(sweep)
    if len(scores_by_epoch(sweep)) > 1:
        figures["band.png"] = plot_bands([sweep])
    if len(sweep.measurements) > 1 and len(sweep.results) > 1:
        figures["cloud.png"] = plot_cloud(sweep)
    return figures


def _histograms(sweep: Sweep) -> Any:
    """The distribution over seeds of each measurement, with the mean and seed 0."""
    names = sweep.measurements
    figure = new_figure(4.5 * len(names), 3.2)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = sweep.values(name)
        if len(values) < FEW:
            axes.plot(list(values.values()), [0.5] * len(values), "o", alpha=0.7, label="one seed")
            axes.set_ylim(0, 1)
            axes.set_yticks([])
        else:
            axes.hist(list(values.values()), bins="auto", color="tab:blue", alpha=0.7)
            axes.yaxis.get_major_locator().set_params(integer=True)
            axes.set_ylabel("seeds")
        axes.axvline(mean(values.values()), color="k", label="mean")
        if 0 in values:
            axes.axvline(values[0], color="tab:red", linestyle="--", label="seed 0")
        axes.set_title(f"{name}: {format_count(len(values), 'seed')}", fontsize=10)
        axes.set_xlabel(metric_label(sweep))
        axes.legend(fontsize=8)
    return figure


def plot_cloud(sweep: Sweep) -> Any:
    """The second measurement against the first, one point per seed."""
    first, second = sweep.measurements[:2]
    a, b = sweep.values(first), sweep.values(second)
    figure = new_figure(4.5, 4.2)
    axes = figure.subplots()
    axes.scatter(list(a.values()), list(b.values()), s=14)
    best = max(a, key=lambda seed: a[seed])
    axes.scatter([a[best]], [b[best]], s=60, facecolors="none", edgecolors="tab:red")
    axes.annotate(
        f"best on {first}", (a[best], b[best]), xytext=(-8, 0), textcoords="offset points",
        ha="right", va="center", fontsize=8,
    )  # fmt: skip
    axes.axvline(mean(a.values()), color="0.7", linewidth=1)
    axes.axhline(mean(b.values()), color="0.7", linewidth=1)
    correlation = summarize_sweep(sweep)["correlation"].get(f"{first} {second}")
    if correlation is not None:
        axes.set_title(
            f"r = {correlation[0]:.2f} ({correlation[1]:.2f} to {correlation[2]:.2f})", fontsize=10
        )
    axes.set_xlabel(f"{first}: {metric_label(sweep)}")
    axes.set_ylabel(f"{second}: {metric_label(sweep)}")
    end_at_100(axes, also_x=True)
    axes.grid(alpha=0.3)
    return figure


def plot_bands(sweeps: Sequence[Sweep]) -> Any:
    """Mean, minimum and maximum over seeds by epoch, of several sweeps on the same axes.

    A sweep alone has its standard deviation as well. None where no sweep was evaluated twice.
    """
    curves = {sweep.path: scores_by_epoch(sweep) for sweep in sweeps if sweep.results}
    shown = [sweep for sweep in sweeps if len(curves.get(sweep.path, ())) > 1]
    if not shown:
        return None
    shown = [sweep for sweep in shown if metric_label(sweep) == metric_label(shown[0])]
    figure = new_figure(4.8, 3.2)
    axes = figure.subplots()
    for number, sweep in enumerate(shown):
        _plot_band(axes, sweep, curves[sweep.path], f"C{number % 10}", alone=len(shown) == 1)
    epochs = [epoch for sweep in shown for epoch in curves[sweep.path]]
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=all(float(e).is_integer() for e in epochs))
    axes.set_ylabel(metric_label(shown[0]))
    end_at_100(axes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _plot_band(
    axes: Any, sweep: Sweep, curves: Mapping[float, Sequence[float]], colour: str, *, alone: bool
) -> None:
    epochs, values = list(curves), list(curves.values())
    means = [mean(each) for each in values]
    name = f"{sweep.path}: mean of {format_count(len(sweep.results), 'seed')}"
    mark = "o" if len(epochs) < FEW_POINTS else None
    axes.plot(epochs, means, color=colour, label="mean" if alone else name, marker=mark,
              markersize=4)  # fmt: skip
    if len(sweep.results) > 1:
        axes.fill_between(
            epochs, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15,
            linewidth=0, label="min to max" if alone else None,
        )  # fmt: skip
    if alone:
        if len(sweep.results) > 1:
            spreads = [stdev(each) for each in values]
            low = [m - s for m, s in zip(means, spreads, strict=True)]
            high = [m + s for m, s in zip(means, spreads, strict=True)]
            axes.fill_between(epochs, low, high, color=colour, alpha=0.3, linewidth=0,
                              label="one standard deviation")  # fmt: skip
        axes.set_title(
            f"{sweep.measurements[0]}: {format_count(len(sweep.results), 'seed')}", fontsize=10
        )
