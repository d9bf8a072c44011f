"""`tune.html`: each decision of a search, and the comparison of the base and the tuned recipe."""

from collections.abc import Sequence
from typing import Any

from rescue_cli.analysis.claims import with_details
from rescue_cli.analysis.compare import describe_sides
from rescue_cli.analysis.curves import smooth
from rescue_cli.analysis.lr_range import Curves
from rescue_cli.analysis.tuning import Decision, Outcome, Verdict
from rescue_cli.report.html import render
from rescue_cli.report.lr_range import scale_loss_axis
from rescue_cli.report.pictures import PANEL, new_figure


def tuning_title(recipe: str, verdict: Verdict | None) -> str:
    """The outcome of a search, in a line."""
    if verdict is None:
        return f"{recipe}: an unfinished search"
    return f"{recipe}: tuned, and better" if verdict.better else f"{recipe}: nothing better found"


def render_tuning_page(
    title: str, held_out: int, decisions: Sequence[Decision], verdict: Verdict | None
) -> str:
    """A page that fetches nothing; `held_out`: the training images that a loss is measured on."""
    sides = [] if verdict is None or not verdict.pairs else describe_sides(verdict.sides)
    pairs = [] if verdict is None else verdict.pairs
    return render(
        "tuning.html",
        title=title,
        verdict=verdict,
        headings=["", "mean %", "std", "runs"],
        rows=[
            [side["name"], f"{side['mean']:.2f}",
             "-" if side["std"] is None else f"{side['std']:.2f}", str(side["n"])]
            for side in sides
        ],
        pairs=with_details(pairs),
        held_out=held_out,
        decisions=[_section(decision) for decision in decisions],
    )  # fmt: skip


def _section(decision: Decision) -> dict[str, Any]:
    return {
        "heading": f"{decision.step.capitalize()}: {decision.chosen}",
        "why": f"{decision.why[:1].upper()}{decision.why[1:]}.",
        "tried": decision.tried,
        "figures": {**_plot_ranges(decision.ranges), **_plot_outcomes(decision.outcomes)},
    }


def _plot_outcomes(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Held-out loss and accuracy over the run, a line for each run."""
    figures = {}
    for title in ("held-out loss", "held-out top-1 %") if outcomes else ():
        figures[title], axes = _panel(title, "% of the run")
        for outcome in outcomes:
            values = outcome.losses if title == "held-out loss" else outcome.accuracies
            share = [100 * (i + 1) / len(values) for i in range(len(values))]
            axes.plot(share, values, marker=".", label=outcome.name)
        axes.legend(fontsize=7)
    return figures


def _plot_ranges(ranges: Sequence[Curves]) -> dict[str, Any]:
    """Training and held-out loss over the learning rate, a picture for each run."""
    figures = {}
    for curves in ranges:
        of = f" (seed {curves.seed})" if len(ranges) > 1 else ""
        title = f"loss over the learning rate{of}"
        figures[title], axes = _panel(title, "learning rate")
        for name, values in (("training", curves.train_losses), ("held-out", curves.test_losses)):
            axes.plot(curves.rates, smooth(values), label=f"{name}, smoothed")
        axes.set_xscale("log")
        scale_loss_axis(axes, [*curves.train_losses, *curves.test_losses])
        axes.legend(fontsize=7)
    return figures


def _panel(title: str, below: str) -> tuple[Any, Any]:
    """A picture of its own, and its axes."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(below)
    axes.grid(alpha=0.3)
    return figure, axes
