"""`rescue lr-range-test`: runs of a rising rate, what they say, and a recipe that follows it."""

import json as json_module
import math
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from rescue_cli import range_test
from rescue_cli import recipe as recipes
from rescue_cli.cli import common
from rescue_cli.cli.common import Architecture, Device, Json, Overrides, Procs, RecipeName, Workers
from rescue_cli.cli.progress import duration
from rescue_cli.cli.runs import train_here
from rescue_cli.cli.screen import then
from rescue_cli.errors import UsageError
from rescue_cli.range_test import Answer, Curves, Ramp, Reading
from rescue_cli.recipe import Recipe, total_steps

app = common.verb()
SHOWN = 12  # rows of the table
IMAGES = 1000  # of the test set at a point: a point is compared with others on the same images


@app.command(
    epilog=then(
        "rescue lr-range-test --recipe 1cycle-3layer data.root=DIR",
        "the same with --out FOLDER --apply my.yaml (it trains nothing again)",
    )
)
def lr_range_test(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Of a transfer: the weights it begins with.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="And its data set, or folder.")] = None,
    model: Architecture = None,
    start: Annotated[
        float | None, typer.Option(help="First rate; by default a hundredth of the recipe's.")
    ] = None,
    end: Annotated[
        float | None, typer.Option(help="Last rate; by default ten times the recipe's.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of a run.", min=10)] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Or its epochs; the recipe's by default.")
    ] = None,
    ramp: Annotated[str, typer.Option(help="linear or exponential.")] = "linear",
    momentum: Annotated[
        str | None, typer.Option(help="A:B, from the lowest rate to the highest.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many runs, each of its own seed.", min=1)] = 1,
    points: Annotated[int, typer.Option(help="Evaluations of a run.", min=10)] = 40,
    images: Annotated[
        int, typer.Option(help="Test images of an evaluation, at most; balanced.", min=1)
    ] = IMAGES,
    apply: Annotated[
        Path | None, typer.Option(help="Write the recipe with a 1cycle to the rate found.")
    ] = None,
    apply_untrusted: Annotated[
        bool, typer.Option("--apply-untrusted", help="Even if not trusted; the file says so.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder; runs/lr-range-test/RECIPE/N by default.")
    ] = None,
    json: Json = False,
    device: Device = None,
    procs: Procs = None,
    workers: Workers = None,
) -> None:
    """Find the largest stable learning rate from a run in which it rises (Smith)."""
    from rescue_cli import build

    where = common.device(device)
    resolved = _resolved(recipe, from_, to, model, overrides or [])
    build.check(resolved)
    resolved.demand_classification("lr-range-test")
    notes = [f"warning: {warning}" for warning in common.check_precision(resolved, where)]
    if apply is not None and apply.exists():
        raise UsageError(f"--apply: {apply} exists. Give the name of a new file.")
    if apply_untrusted and apply is None:
        raise UsageError("--apply-untrusted: goes with --apply FILE. Give both.")
    length, per_epoch = _length(resolved, steps, epochs)
    low, high = _ends(resolved, start, end)
    rise = range_test.momentum_of(momentum)
    test = Ramp(low, high, shape=_shape(ramp), momentum=rise, epochs=length, points=points)
    build.check(test.of(resolved, 0, per_epoch))
    data = build.listed(resolved)
    measured, count = _fewer_images(resolved, data, images)
    planned = _planned(measured, test, seeds, per_epoch)
    folder = _folder(resolved, out)
    for line in [str(folder), *notes, *common.allocator_notes(), _cost(planned, count)]:
        common.note(line)
    curves = _curves(planned, len(data.classes), folder, where, procs, workers)
    found = _Found(resolved, test, curves[:-1], curves[-1])
    _write(folder, found)
    print(json_module.dumps(found.summary)) if json else _print(found)
    common.note(str(folder))
    if apply is not None:
        _apply(apply, found, untrusted=apply_untrusted)


def _ends(recipe: Recipe, start: float | None, end: float | None) -> tuple[float, float]:
    """From a hundredth of the recipe's rate to ten times of it, where nothing else is asked."""
    lr = float(recipe.optim[0].options["lr"])
    return lr / 100 if start is None else start, lr * 10 if end is None else end


def _resolved(
    recipe: str | None, from_: str | None, to: str | None, model: str | None, given: list[str]
) -> Recipe:
    """The recipe, or what `rescue transfer` would train with these options."""
    if from_ is None and to is None:
        if model is not None:
            raise UsageError("--model: goes with --from and --to. Else set model.name.")
        return recipes.load(common.named_or_default(recipe), given)
    if from_ is None or to is None:
        raise UsageError("--from and --to: a transfer has both. Give the other one too.")
    from rescue_cli.parts.transfer import DEFAULT, start

    base = recipes.load(recipe or DEFAULT)
    begun = start(base, from_, to, given, model=model)
    common.note(f"--from {from_} sets: {' '.join(begun.overrides)}")
    return base.with_overrides(*begun.overrides, *given)


@dataclass(frozen=True)
class _Run:
    """One run of a test."""

    recipe: Recipe
    ramp: Ramp
    steps: int


def _planned(recipe: Recipe, test: Ramp, seeds: int, per_epoch: int) -> dict[str, _Run]:
    """The runs by the names of their folders, the one of half the steps last; all checked."""
    from rescue_cli import build

    half = replace(test, epochs=test.epochs / 2)
    # Of half the steps with a seed of its own: only an independent run can agree
    ramps = {**{f"seed-{seed}": (test, seed) for seed in range(seeds)}, "half": (half, seeds)}
    found = {}
    for name, (ramp, seed) in ramps.items():
        one = ramp.of(recipe, seed, per_epoch)
        build.check(one)
        found[name] = _Run(one, ramp, total_steps(one.train, per_epoch))
    return found


def _fewer_images(recipe: Recipe, data: Any, most: int) -> tuple[Recipe, str]:
    """The recipe that is evaluated on `most` images of its test set, if it has more, and in words
    how many that is."""
    name = (recipe.eval.sets or [next(iter(data.tests))])[0]
    there = len(data.tests[name]) if name in data.tests else len(next(iter(data.tests.values())))
    if there <= most:
        return recipe, f"{there:,}"
    cut = recipe.with_overrides(f"data.subset=[{len(data.train)}, {most}]")
    return cut, f"{most:,} of {there:,}"


def _cost(planned: dict[str, _Run], images: str) -> str:
    """What the test will take, in words."""
    runs = list(planned.values())
    full, half = runs[:-1], runs[-1]
    times = f"{len(full)} x " if len(full) > 1 else ""
    evaluations = sum(min(run.ramp.points, run.steps) for run in runs)
    return (
        f"{len(runs)} runs, {times}{full[0].steps} + {half.steps} steps, "
        f"{evaluations} evaluations of {images} test images"
    )


class _Found:
    """The runs of a test, each read alone, and the answer of all."""

    def __init__(self, recipe: Recipe, ramp: Ramp, full: list[Curves], half: Curves) -> None:
        self.recipe, self.ramp, self.full, self.half = recipe, ramp, full, half
        self.readings: list[Reading] = [range_test.reading(curves) for curves in full]
        self.answer: Answer = range_test.answer(self.readings, range_test.reading(half), ramp.end)

    @property
    def summary(self) -> dict[str, Any]:
        """The stable keys of `--json`, and the evidence."""
        rates = [r.max_lr for r in self.readings if r.max_lr is not None]
        return {
            "recipe": self.recipe.name,
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


def _shape(text: str) -> Literal["linear", "exponential"]:
    if text == "linear":
        return "linear"
    if text == "exponential":
        return "exponential"
    raise UsageError(f"--ramp: '{text}' is not known. Use linear or exponential.")


def _length(recipe: Recipe, steps: int | None, epochs: float | None) -> tuple[float, int]:
    """A run's length in epochs, and the updates of an epoch."""
    from rescue_cli import build

    if steps is not None and epochs is not None:
        raise UsageError("--steps and --epochs say the same thing. Give one of them.")
    if epochs is not None and not 0 < epochs <= 1_000_000:
        raise UsageError(f"--epochs: {epochs} must be above 0 and at most 1000000.")
    per_epoch = build.epoch_length(recipe)
    if steps is not None:
        return steps / per_epoch, per_epoch
    return recipe.train.epochs if epochs is None else epochs, per_epoch


def _folder(recipe: Recipe, out: Path | None) -> Path:
    from rescue_cli.launch import next_free

    if out is None:
        return next_free(Path("runs", "lr-range-test", recipe.name))
    return common.folder(out)


def _curves(
    planned: dict[str, _Run],
    classes: int,
    folder: Path,
    device: str,
    procs: int | None,
    workers: int | None,
) -> list[Curves]:
    """Each run's curves; one that diverges ends there."""
    found = []
    left = sum(run.steps for run in planned.values())
    for number, (name, run) in enumerate(planned.items(), 1):
        common.note(f"run {number} of {len(planned)}: {name}")
        begun = time.monotonic()
        diverged = train_here(folder / name, run.recipe, device, procs, workers)
        left -= run.steps
        if left and not diverged:
            spent = time.monotonic() - begun
            common.note(
                f"{name} took {duration(spent)}; at most {duration(spent * left / run.steps)} left"
            )
        seed = run.recipe.train.seed
        found.append(
            range_test.read(
                folder / name, run.ramp, run.steps, seed, diverged=diverged, classes=classes
            )
        )
    return found


def _write(folder: Path, found: _Found) -> None:
    from rescue_cli.report.ranges import draw
    from rescue_cli.results import RunDirectory, read_json, write_json

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


def _apply(path: Path, found: _Found, *, untrusted: bool) -> None:
    """Writes the recipe, and what the rate rests on as its comment; raises `UsageError`."""
    from rescue_cli.results import write_text

    said, cure = found.answer, found.answer.cure(found.ramp)
    reasons = "; ".join(said.reasons)
    if said.max_lr is None:
        raise UsageError(f"--apply: no rate was found ({reasons}). {cure}")
    if not said.trusted and not untrusted:
        raise UsageError(
            f"--apply: {said.max_lr:.3g} is not to be trusted ({reasons}). {cure} "
            "Or write it all the same with --apply-untrusted."
        )
    recipe = range_test.applied(found.recipe, said.max_lr, found.ramp.momentum)
    word = "trusted" if said.trusted else "NOT TRUSTED, applied all the same"
    comment = f"# A 1cycle up to {said.max_lr:.3g}, by rescue lr-range-test. {word}: {reasons}.\n"
    write_text(path, comment + recipe.to_yaml())
    common.note(f"{path}: a 1cycle up to {said.max_lr:.3g}")


def _print(found: _Found) -> None:
    curves = found.full[0]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("learning rate", "training loss", "test loss", "test - training", "top-1 %"):
        table.add_column(heading, justify="right")
    every = max(1, -(-len(curves.rates) // SHOWN))
    for i in range(every - 1, len(curves.rates), every):
        values = (curves.train_losses[i], curves.test_losses[i], curves.errors[i])
        table.add_row(
            f"{curves.rates[i]:.3g}",
            *("-" if math.isnan(value) else f"{value:.3f}" for value in values),
            "-" if math.isnan(curves.accuracies[i]) else f"{curves.accuracies[i]:.2f}",
        )
    out = common.console()
    out.print(table)
    for line in _sentences(found):
        out.print(line)


def _sentences(found: _Found) -> list[str]:
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
