"""What a search comes to: `compare`'s verdict on base and tuned, and the page that shows why."""

from collections.abc import Sequence
from typing import Any

from rescue_cli.analysis.claims import detail_lines
from rescue_cli.analysis.compare import describe_sides
from rescue_cli.analysis.curves import smooth
from rescue_cli.analysis.lr_range import Curves
from rescue_cli.analysis.tuning import Decision, Outcome, Verdict
from rescue_cli.report.lr_range import scale_loss_axis
from rescue_cli.report.markup import head, image, listed, table, text
from rescue_cli.report.pictures import new_figure


def tuning_title(recipe: str, found: Verdict | None) -> str:
    """What a search came to, in a line."""
    if found is None:
        return f"{recipe}: an unfinished search"
    return f"{recipe}: tuned, and better" if found.better else f"{recipe}: nothing better found"


def render_tuning_page(
    title: str, held: int, decisions: Sequence[Decision], found: Verdict | None
) -> str:
    """HTML that needs nothing beside itself."""
    parts = [head(title), f"<h1>{text(title)}</h1>", _judgement(held, found)]
    parts += [_section(decision) for decision in decisions]
    return "\n".join([*parts, "</html>"]) + "\n"


def _judgement(held: int, found: Verdict | None) -> str:
    """The verdict, which is what the recipe is worth; the losses below it only chose."""
    if found is None:
        return (
            "<p>The budget was over before base and tuned were compared: nothing is known yet.</p>"
        )
    parts = [f"<p>{text(line)}</p>" for line in found.said]
    if found.pairs:
        rows = [
            [side["name"], *(_two(side[key]) for key in ("mean", "std")), str(side["n"])]
            for side in describe_sides(found.sides)
        ]
        parts.insert(0, listed((pair["claim"], detail_lines(pair)) for pair in found.pairs))
        parts.insert(0, table(["", "mean %", "std", "runs"], rows))
        parts.append(
            f"<p class=dim>Judged by runs of full length on {held} training images that were held "
            "out and chose nothing.</p>"
        )
    parts.append(
        f"<p class=dim>The losses below are of short runs on {held} other images, and only chose: "
        "the lowest of them is lower than it will be again.</p>"
    )
    return "\n".join(parts)


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _section(decision: Decision) -> str:
    parts = [f"<h2>{text(decision.step.capitalize())}: {text(decision.chosen)}</h2>"]
    parts.append(f"<p>{text(decision.why[:1].upper() + decision.why[1:])}.</p>")
    if decision.tried:
        parts.append(table(["tried", "seen"], decision.tried))
    if decision.ranges:
        parts.append(image(_ranges(decision.ranges)))
    if decision.outcomes:
        parts.append(image(_outcomes(decision.outcomes)))
    return "\n".join(parts)


def _outcomes(outcomes: Sequence[Outcome]) -> Any:
    """Held-out loss and accuracy over the run, a line for each run."""
    figure = new_figure(10, 3.4)
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
    figure = new_figure(10, 3.4)
    for axes, curves in zip(figure.subplots(1, len(ranges), squeeze=False)[0], ranges, strict=True):
        for name, values in (("training", curves.train_losses), ("held-out", curves.test_losses)):
            axes.plot(curves.rates, smooth(values), label=f"{name}, smoothed")
        if curves.rates[-1] > 100 * max(curves.rates[0], 1e-12):
            axes.set_xscale("log")
        scale_loss_axis(axes, [*curves.train_losses, *curves.test_losses])
        axes.set_title("loss over the learning rate", fontsize=10)
        axes.set_xlabel("learning rate")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    return figure
