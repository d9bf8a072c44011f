"""The page of a search: at each step what was tried, what was seen, and why it chose."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from rescue_cli.clues import smooth
from rescue_cli.range_test import Curves
from rescue_cli.report.pictures import figure_of
from rescue_cli.tuning import Decision, Outcome

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.2em 1em .2em 0;text-align:left;"
    "border-bottom:1px solid #ddd}img{max-width:100%}"
)


def page(title: str, decisions: Sequence[Decision], final: Outcome | None) -> str:
    """HTML that needs nothing beside itself."""
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"]
    parts.append(f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>")
    for decision in decisions:
        parts.append(_section(decision))
    if final is not None:
        parts.append(f"<h2>The whole procedure</h2><p>{html.escape(str(final))}</p>")
        parts.append(_image(_outcomes([final])))
    return "\n".join(parts) + "\n"


def _section(decision: Decision) -> str:
    parts = [f"<h2>{decision.step.capitalize()}: {html.escape(decision.chosen)}</h2>"]
    parts.append(f"<p>{html.escape(decision.why.capitalize())}.</p>")
    if decision.tried:
        rows = "".join(
            f"<tr><td>{html.escape(what)}</td><td>{html.escape(became)}</td></tr>"
            for what, became in decision.tried
        )
        parts.append(f"<table><tr><th>tried</th><th>seen</th></tr>{rows}</table>")
    if decision.ranges:
        parts.append(_image(_ranges(decision.ranges)))
    if decision.outcomes:
        parts.append(_image(_outcomes(decision.outcomes)))
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
        for name, values in (("training", curves.train_losses), ("held out", curves.test_losses)):
            axes.plot(curves.rates, smooth(values), label=f"{name}, smoothed")
        if curves.rates[-1] > 100 * max(curves.rates[0], 1e-12):
            axes.set_xscale("log")
        axes.set_title("loss over the learning rate", fontsize=10)
        axes.set_xlabel("learning rate")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure


def _image(figure: Any) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return f'<img src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'
