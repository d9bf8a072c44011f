"""What a search comes to: `compare`'s verdict on base and tuned, and the page that shows why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli.analysis.claims import details, is_claimed
from rescue_cli.analysis.compare import pairs_of, told
from rescue_cli.analysis.curves import smooth
from rescue_cli.analysis.range_curves import Curves
from rescue_cli.analysis.sides import Operand, operand
from rescue_cli.analysis.stats import LEVEL
from rescue_cli.analysis.sweep import PREFIX
from rescue_cli.analysis.tuning import Decision, Outcome
from rescue_cli.formatting import counted
from rescue_cli.report.lr_range import scale
from rescue_cli.report.markup import head, image, listed, table, text
from rescue_cli.report.pictures import figure_of
from rescue_cli.rundir import RunDirectory

KEEP = "Keep the recipe as it is."


@dataclass(frozen=True)
class Verdict:
    """Whether the tuned recipe is claimed to be better than the base, in whose words."""

    better: bool
    said: list[str]
    sides: Sequence[Operand] = ()
    pairs: Sequence[Mapping[str, Any]] = ()

    def written(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "better": self.better,
            "said": self.said,
            "sides": told(self.sides),
            **(self.pairs[0] if self.pairs else {}),
        }


UNCHANGED = Verdict(False, [f"No setting is better beyond the noise. {KEEP}"])


def verdict(base: Path, tuned: Path, seeds: Sequence[int]) -> Verdict:
    """What `compare` says of the two sweeps, whose runs have all ended."""
    lost = {path: [seed for seed in seeds if not _has_result(path, seed)] for path in (base, tuned)}
    said = [
        f"{path}: {len(gone)} of {counted(len(seeds), 'run')} diverged"
        for path, gone in lost.items()
        if gone
    ]
    if len(lost[tuned]) == len(seeds):
        return Verdict(False, [*said, KEEP])
    if len(lost[base]) == len(seeds):
        return _against_nothing(operand(str(tuned)), said, lost_too=bool(lost[tuned]))
    found = judged(operand(str(base)), operand(str(tuned)), lost=len(lost[tuned]))
    return Verdict(found.better, [*said, *found.said], found.sides, found.pairs)


def judged(base: Operand, tuned: Operand, *, lost: int = 0) -> Verdict:
    """As `compare` has it; a tuned recipe of which runs are `lost` is not better, whatever it has.

    `compare` sees the runs that survived.
    """
    sides = [base, tuned]
    pairs = pairs_of(sides)
    better = not lost and is_claimed(pairs[0], LEVEL) and pairs[0]["difference"] > 0
    return Verdict(better, [] if better else [KEEP], sides, pairs)


def _against_nothing(tuned: Operand, said: Sequence[str], *, lost_too: bool) -> Verdict:
    """Where every base run diverged `compare` has one side alone.

    Were both as likely to diverge, all of one and none of the other would do so in one case of
    4^n at most, which is 1.6 % for three runs.
    """
    last = [KEEP] if lost_too else ["The recipe as it is does not train; the tuned one does."]
    return Verdict(not lost_too, [*said, *last], [tuned])


def _has_result(sweep: Path, seed: int) -> bool:
    return RunDirectory(sweep / f"{PREFIX}{seed}").result.is_file()


def title_of(recipe: str, found: Verdict | None) -> str:
    """What a search came to, in a line."""
    if found is None:
        return f"{recipe}: an unfinished search"
    return f"{recipe}: tuned, and better" if found.better else f"{recipe}: nothing better found"


def page(title: str, held: int, decisions: Sequence[Decision], found: Verdict | None) -> str:
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
            for side in told(found.sides)
        ]
        parts.insert(0, listed((pair["claim"], details(pair)) for pair in found.pairs))
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
