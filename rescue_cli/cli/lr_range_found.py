"""What an LR range test found: as JSON, as a table with its sentences, and as a recipe."""

import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rescue_cli.analysis import lr_range
from rescue_cli.analysis.lr_range import Answer, Ramp, Reading
from rescue_cli.analysis.range_curves import Curves
from rescue_cli.cli import common
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import METRICS

SHOWN = 12  # rows of the table


class Found:
    """The runs of a test, each read alone, and the answer of all."""

    def __init__(self, recipe: Recipe, ramp: Ramp, full: list[Curves], half: Curves) -> None:
        self.recipe, self.ramp, self.full, self.half = recipe, ramp, full, half
        self.readings: list[Reading] = [lr_range.reading(curves) for curves in full]
        self.answer: Answer = lr_range.answer(self.readings, lr_range.reading(half), ramp.end)

    @property
    def summary(self) -> dict[str, Any]:
        """The stable keys of `--json`, and the evidence."""
        rates = [r.max_lr for r in self.readings if r.max_lr is not None]
        return {
            "recipe": self.recipe.name,
            "metric": self.full[0].metric,
            "max_lr": self.answer.max_lr,
            "min_lr": self.answer.min_lr,
            "band": [min(rates), max(rates)] if rates else None,
            "verdict": self.answer.verdict,
            "bounded_above": self.answer.bounded_above,
            "trusted": self.answer.trusted,
            "reasons": self.answer.reasons,
            "suggestions": self.readings[0].suggestions,
            "seeds": [
                {"seed": curves.seed, "max_lr": r.max_lr, "verdict": r.verdict,
                 "bounded_above": r.bounded_above, "evidence": r.evidence,
                 "overfitting": r.overfitting, "suggestions": r.suggestions}
                for curves, r in zip(self.full, self.readings, strict=True)
            ],
        }  # fmt: skip


def write(folder: Path, found: Found) -> None:
    from rescue_cli.report.lr_range import draw
    from rescue_cli.rundir import RunDirectory, read_json, write_json

    runs = [*found.full, found.half]
    environment = read_json(RunDirectory(folder / f"seed-{found.full[0].seed}").environment)
    write_json(
        folder / "lr-range.json",
        {
            **found.summary,
            "command": shlex.join(["rescue", *sys.argv[1:]]),
            "environment": {k: v for k, v in environment.items() if k != "cache"},
            "ramp": asdict(found.ramp),
            "runs": [curves.written() for curves in runs],
        },
    )
    draw(folder / "lr-range.png", found.full, found.half, found.readings, found.answer)


def apply(path: Path, found: Found, *, untrusted: bool) -> None:
    """Writes the recipe, and what the rate rests on as its comment; raises `UsageError`."""
    from rescue_cli.rundir import write_text

    said, cure = found.answer, found.answer.cure(found.ramp)
    reasons = "; ".join(said.reasons)
    if said.max_lr is None:
        raise UsageError(f"--apply: no rate was found ({reasons}). {cure}")
    if not said.trusted and not untrusted:
        raise UsageError(
            f"--apply: {said.max_lr:.3g} is not to be trusted ({reasons}). {cure} "
            "Or write it all the same with --apply-untrusted."
        )
    recipe = lr_range.applied(found.recipe, said.max_lr, found.ramp.momentum)
    word = "trusted" if said.trusted else "NOT TRUSTED, applied all the same"
    comment = f"# A 1cycle up to {said.max_lr:.3g}, by rescue lr-range-test. {word}: {reasons}.\n"
    write_text(path, comment + recipe.to_yaml())
    common.note(f"{path}: a 1cycle up to {said.max_lr:.3g}")


def show(found: Found) -> None:
    curves = found.full[0]
    tested = not curves.detects
    headings = ["learning rate", "training loss", *(["test loss", "test - training"] * tested)]
    rows = []
    every = max(1, -(-len(curves.rates) // SHOWN))
    for i in range(every - 1, len(curves.rates), every):
        values = [curves.train_losses[i], *([curves.test_losses[i], curves.errors[i]] * tested)]
        rows.append(
            [
                f"{curves.rates[i]:.3g}",
                *("-" if math.isnan(value) else f"{value:.3f}" for value in values),
                "-" if math.isnan(curves.accuracies[i]) else f"{curves.accuracies[i]:.2f}",
            ]
        )
    out = common.console()
    out.print(common.table([*headings, METRICS[curves.metric]], rows))
    for line in _sentences(found):
        out.print(line)


def _sentences(found: Found) -> list[str]:
    """The answer in the paper's terms, its evidence, and what fastai's finder would say."""
    given = found.answer
    lines = _rates(given, found.ramp)
    for curves, each in zip(found.full, found.readings, strict=True):
        lines.append(f"seed {curves.seed}: {'; '.join(each.evidence)}")
        for low, high in each.overfitting:
            lines.append(f"seed {curves.seed}: signs of overfitting from {low:.3g} to {high:.3g}")
    word = "trusted" if given.trusted else "not to be trusted"
    lines.append(f"{word}: {'; '.join(given.reasons)}")
    if not given.trusted:
        lines.append(given.cure(found.ramp))
    fastai = found.readings[0].suggestions
    shown = ", ".join(f"{k} {'-' if v is None else f'{v:.3g}'}" for k, v in fastai.items())
    lines.append(f"fastai's suggestions, from the training loss: {shown}")
    return lines


def _rates(given: Answer, ramp: Ramp) -> list[str]:
    """The rates found, or why there is none."""
    if given.max_lr is None or given.min_lr is None:
        upto = f"up to {ramp.end:.3g}"
        words = {
            "falling": f"no turn found {upto}: the largest stable rate lies beyond",
            "flat": f"no turn found {upto}: the loss is flat at the end",
            "noisy": "no rate found: it learned, but noise hides any turn",
            "nothing learned": f"no rate found: nothing was learned from {ramp.start:.3g} on",
            "died": "no rate found: the run died before it had learned enough to judge",
            "too few points": "no rate found: too few points on either side of a turn",
        }
        lines = [words.get(given.verdict, "no rate found")]
        if given.bounded_above is not None:
            lines.append(f"the largest stable rate is below {given.bounded_above:.3g}")
        return lines
    return [
        f"max_lr {given.max_lr:.3g}, the largest stable rate",
        f"min_lr {given.min_lr:.3g}, a tenth (one cycle: {given.max_lr / 20:.3g} to "
        f"{given.max_lr / 10:.3g}; many cycles: {given.max_lr / 4:.3g} to {given.max_lr / 3:.3g})",
    ]
