"""`rescue lr-range-test`: runs of a rising rate, what they say, and a recipe that follows it."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis.lr_range import Ramp
from rescue_cli.analysis.lr_range_runs import RangeTest, plan_runs, train_runs
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb, example_and_next
from rescue_cli.cli.common import (
    Architecture,
    Device,
    DryRun,
    Json,
    Overrides,
    Procs,
    RecipeName,
    SlurmOptions,
    Smoke,
    Subset,
    Track,
    Where,
    With,
    Workers,
)
from rescue_cli.errors import UsageError
from rescue_cli.metrics.names import METRICS
from rescue_cli.recipe import Recipe
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import check_folder, create_next, next_folder
from rescue_cli.runs.environment import (
    check_precision,
    select_device,
    visible_devices,
)
from rescue_cli.runs.group import current_group
from rescue_cli.runs.single import describe_idle_gpus

app = common.verb()
ROWS = 12  # of the printed table
SMOKE_STEPS = 10  # of a run of --smoke


@app.command(
    cls=ComputingVerb,
    epilog=example_and_next(
        "rescue lr-range-test --recipe 1cycle-3layer data.root=DIR",
        "the same with --out FOLDER --apply my.yaml (nothing is trained again)",
    ),
)
def lr_range_test(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    _code: With = None,
    _track: Track = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Starting weights: a run, a file, or timm:NAME.")
    ] = None,
    to: Annotated[str | None, typer.Option(help="With --from: the data set or folder.")] = None,
    model: Architecture = None,
    start: Annotated[
        float | None, typer.Option(help="Lowest learning rate; default: the recipe's / 100.")
    ] = None,
    end: Annotated[
        float | None, typer.Option(help="Highest learning rate; default: the recipe's x 10.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps per run.", min=10)] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Epochs per run, in place of --steps.")
    ] = None,
    ramp: Annotated[str, typer.Option(help="linear or exponential.")] = "linear",
    momentum: Annotated[
        str | None, typer.Option(help="Momentum A:B, at the lowest and highest learning rate.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of runs, each with its own seed.", min=1)] = 1,
    points: Annotated[int, typer.Option(help="Evaluations per run.", min=10)] = 40,
    apply: Annotated[
        Path | None, typer.Option(help="Write a recipe with a 1cycle up to the rate found.")
    ] = None,
    apply_untrusted: Annotated[
        bool, typer.Option("--apply-untrusted", help="Write it even if the rate is not trusted.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: runs/lr-range-test/RECIPE/N.")
    ] = None,
    subset: Subset = None,
    smoke: Smoke = False,
    dry_run: DryRun = False,
    on: Annotated[
        Where, typer.Option(help="Run on this machine, or all of it as one job of SLURM.")
    ] = Where.local,
    slurm: SlurmOptions = None,
    as_json: Json = False,
    device: Device = None,
    procs: Procs = None,
    workers: Workers = None,
) -> None:
    """Find the largest stable learning rate by raising it during a run (Smith)."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.expand import cut_short
    from rescue_cli.report.lr_range import draw_range_test

    common.check_place(on, slurm)
    where = select_device(device, elsewhere=dry_run or on is Where.slurm)
    given = overrides or []
    whole = _resolve(recipe, from_, to, model, given)
    cut, notes = cut_short(whole, given, subset=subset, smoke=smoke, cuda=where == "cuda")
    resolved = whole.with_overrides(*cut)
    check_recipe(resolved)
    if smoke and steps is None and epochs is None:
        steps, points = SMOKE_STEPS, min(points, SMOKE_STEPS)
    if not resolved.data.holdout:
        notes.append(
            "the rate is chosen by the loss on the test images; data.holdout=N holds out N "
            "training images in their place"
        )
    if on is Where.local:
        notes += (f"warning: {text}" for text in check_precision(resolved.train.precision, where))
    _check_apply(apply, untrusted=apply_untrusted)
    length, per_epoch = _length(resolved, steps, epochs)
    lr = resolved.optim[0].lr
    first, last = lr / 100 if start is None else start, lr * 10 if end is None else end
    test_ramp = Ramp(first, last, _shape(ramp), parse_momentum(momentum), length, points)
    plan = plan_runs(resolved, test_ramp, seeds, per_epoch)
    parent = Path("runs", "lr-range-test", resolved.name)
    if dry_run:
        note("\n".join([*resolved.notes, *notes]))
        each = {"rates": f"{first:g} to {last:g}, {ramp}", "plan": plan.cost, "device": where}
        script = None
        if on is Where.slurm:
            script = common.script_of_job(slurm, out or next_folder(parent))
        common.print_plan(resolved, each, as_json=as_json, script=script)
        return
    folder = create_next(parent) if out is None else check_folder(out)
    if on is Where.slurm:
        common.run_as_job(slurm, folder)
    if procs is None and current_group() is None:
        idle = describe_idle_gpus(resolved.train, 1, visible_devices(where), "--procs")
        notes += filter(None, [idle])
    note("\n".join([str(folder), *resolved.notes, *notes, plan.cost]))
    curves = list(train_runs(plan, folder, where, procs, workers))
    test = RangeTest(resolved, test_ramp, curves)
    test.write(folder)
    draw_range_test(folder / "lr-range.png", test)
    common.print_json(test.summary) if as_json else _print(test)
    note(str(folder))
    if apply is not None:
        test.write_recipe(apply, untrusted=apply_untrusted)
        note(f"{apply}: a 1cycle up to {test.answer.max_lr:.3g}")


def _check_apply(path: Path | None, *, untrusted: bool) -> None:
    """Raises `UsageError` where the recipe cannot be written."""
    if path is not None and path.exists():
        raise UsageError(f"--apply: {path} exists. Give the name of a new file.")
    if untrusted and path is None:
        raise UsageError("--apply-untrusted: needs --apply FILE. Give both.")


def _resolve(
    recipe: str | None, from_: str | None, to: str | None, model: str | None, given: list[str]
) -> Recipe:
    """The recipe, or what `rescue transfer` would train with these options."""
    if from_ is None and to is None:
        if model is not None:
            raise UsageError("--model: needs --from and --to. Without them, set model.name.")
        return recipes.load(common.named_or_default(recipe), given)
    if from_ is None or to is None:
        raise UsageError("--from and --to: a transfer needs both. Give both.")
    from rescue_cli.build.transfer import DEFAULT, plan_transfer

    base = recipes.load(recipe or DEFAULT)
    transfer = plan_transfer(base, from_, to, given, model=model)
    note(f"--from {from_} sets: {' '.join(transfer.overrides)}")
    return base.with_overrides(*transfer.overrides, *given)


def _shape(text: str) -> Literal["linear", "exponential"]:
    if text == "linear":
        return "linear"
    if text == "exponential":
        return "exponential"
    raise UsageError(f"--ramp: '{text}' is not known. Use linear or exponential.")


def _length(recipe: Recipe, steps: int | None, epochs: float | None) -> tuple[float, int]:
    """A run's length in epochs, and the updates of an epoch."""
    from rescue_cli.build.outline import epoch_length

    if steps is not None and epochs is not None:
        raise UsageError("--steps and --epochs set the same thing. Give only one.")
    if epochs is not None and not 0 < epochs <= 1_000_000:
        raise UsageError(f"--epochs: {epochs} must be above 0 and at most 1000000.")
    per_epoch = epoch_length(recipe)
    if steps is not None:
        return steps / per_epoch, per_epoch
    return recipe.train.epochs if epochs is None else epochs, per_epoch


def parse_momentum(text: str | None) -> tuple[float, float] | None:
    """`0.95:0.85`, at the lowest rate and at the highest; raises `UsageError`."""
    if text is None:
        return None
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError:
        raise UsageError(
            f"--momentum: '{text}' is not A:B. Give momentum at the lowest and the highest rate, "
            "as 0.95:0.85."
        ) from None
    if not (0 <= first < 1 and 0 <= last < 1):
        raise UsageError(f"--momentum: {text} must be at least 0 and below 1, both.")
    return first, last


def _print(test: RangeTest) -> None:
    curves = test.full[0]
    has_test_loss = not curves.detects
    headings = ["learning rate", "training loss"]
    headings += ["test loss", "test - training"] if has_test_loss else []
    rows = []
    every = max(1, -(-len(curves.rates) // ROWS))
    for i in range(every - 1, len(curves.rates), every):
        values = [curves.train_losses[i]]
        values += [curves.test_losses[i], curves.errors[i]] if has_test_loss else []
        rows.append(
            [
                f"{curves.rates[i]:.3g}",
                *("-" if math.isnan(value) else f"{value:.3f}" for value in values),
                "-" if math.isnan(curves.accuracies[i]) else f"{curves.accuracies[i]:.2f}",
            ]
        )
    out = common.console()
    if len(test.full) > 1:
        out.print(f"seed {curves.seed}:")
    out.print(common.table([*headings, METRICS[curves.metric]], rows))
    for line in test.sentences:
        out.print(line)
