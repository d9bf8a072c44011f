"""The page of a search: at each step what was tried, what was seen, and why it chose."""

from collections.abc import Sequence
from typing import Any

from rescue_cli.clues import smooth
from rescue_cli.range_test import Curves
from rescue_cli.report.markup import head, image, table, text
from rescue_cli.report.pictures import figure_of
from rescue_cli.report.ranges import scale
from rescue_cli.tuning import Decision, Outcome


def page(title: str, decisions: Sequence[Decision], final: Outcome | None) -> str:
    """HTML that needs nothing beside itself."""
    parts = [head(title), f"<h1>{text(title)}</h1>"]
    for decision in decisions:
        parts.append(_section(decision))
    if final is not None:
        parts.append(f"<h2>The whole procedure</h2><p>{text(final)}</p>")
        parts.append(image(_outcomes([final])))
    return "\n".join([*parts, "</html>"]) + "\n"


def _section(decision: Decision) -> str:
    parts = [f"<h2>{decision.step.capitalize()}: {text(decision.chosen)}</h2>"]
    parts.append(f"<p>{text(decision.why.capitalize())}.</p>")
    if decision.tried:
        parts.append(table(["tried", "seen"], decision.tried))
    if decision.ranges:
        parts.append(image(_ranges(decision.ranges)))
    if decision.outcomes:
        parts.append(image(_outcomes(decision.outcomes)))
    return "\n".join(parts)


def _outcomes(outcomes: Sequence[Outcome]) -> Any:
    """Test loss and accuracy over the run, a line for each run."""
    figure = figure_of(10, 3.4)
    loss, accuracy = figure.subplots(1, 2)
    for outcome in outcomes:
        share = [100 * (i + 1) / len(outcome.losses) for i in range(len(outcome.losses))]
        loss.plot(share, outcome.losses, marker=".", label=outcome.name)
        accuracy.plot(share, outcome.accuracies, marker=".", label=outcome.name)
    for axes, title in ((loss, "held-out loss"), (accuracy, "held-out top-1 %")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("% of the run")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def _ranges(ranges: Sequence[Curves]) -> Any:
    """Training and held-out loss over the learning rate."""
    figure = figure_of(10, 3.4)
    for axes, curves in zip(figure.subplots(1, len(ranges), squeeze=False)[0], ranges, strict=True):
        for name, values in (("training", curves.train_losses), ("held-out", curves.test_losses)):
            axes.plot(curves.rates, smooth(values), label=f"{name}, smoothed")
        if curves.rates[-1] > 100 * max(curves.rates[0], 1e-12):
            axes.set_xscale("log")
        scale(axes, [*curves.train_losses, *curves.test_losses])
        axes.set_title("loss over the learning rate", fontsize=10)
        axes.set_xlabel("learning rate")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure
