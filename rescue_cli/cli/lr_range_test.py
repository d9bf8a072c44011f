"""`rescue lr-range-test`: runs of a rising rate, what they say, and a recipe that follows it."""

import json as json_module
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis import range_curves
from rescue_cli.analysis.lr_range import Ramp
from rescue_cli.analysis.range_curves import Curves
from rescue_cli.cli import common
from rescue_cli.cli.common import Architecture, Device, Json, Overrides, Procs, RecipeName, Workers
from rescue_cli.cli.help import then
from rescue_cli.cli.lr_range_found import Found, show, write
from rescue_cli.cli.lr_range_found import apply as write_recipe
from rescue_cli.cli.progress import duration
from rescue_cli.cli.runs import train_here
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, total_steps

app = common.verb()
IMAGES = 1000  # of the test set at a point: a point is compared with others on the same images
SCENES = 100  # the same where an image carries boxes or a mask


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
    from rescue_cli.build.check import check_recipe

    where = common.device(device)
    resolved = _resolved(recipe, from_, to, model, overrides or [])
    check_recipe(resolved)
    notes = [f"warning: {warning}" for warning in common.check_precision(resolved, where)]
    _check_apply(apply, untrusted=apply_untrusted)
    length, per_epoch = _length(resolved, steps, epochs)
    ends = _ends(resolved, start, end)
    test = Ramp(*ends, _shape(ramp), momentum_of(momentum), length, points)
    plan = _planned(resolved, test, seeds, per_epoch)
    folder = _folder(resolved, out)
    common.note("\n".join([str(folder), *notes, *common.allocator_notes(), plan.cost]))
    curves = _curves(plan, folder, where, procs, workers)
    found = Found(resolved, test, curves[:-1], curves[-1])
    write(folder, found)
    print(json_module.dumps(found.summary)) if json else show(found)
    common.note(str(folder))
    if apply is not None:
        write_recipe(apply, found, untrusted=apply_untrusted)


def _check_apply(path: Path | None, *, untrusted: bool) -> None:
    """Raises `UsageError` where the recipe cannot be written."""
    if path is not None and path.exists():
        raise UsageError(f"--apply: {path} exists. Give the name of a new file.")
    if untrusted and path is None:
        raise UsageError("--apply-untrusted: goes with --apply FILE. Give both.")


def _ends(recipe: Recipe, start: float | None, end: float | None) -> tuple[float, float]:
    """From a hundredth of the recipe's rate to ten times of it, where nothing else is asked."""
    lr = recipe.optim[0].lr
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
    from rescue_cli.build.transfer import DEFAULT, plan_transfer

    base = recipes.load(recipe or DEFAULT)
    begun = plan_transfer(base, from_, to, given, model=model)
    common.note(f"--from {from_} sets: {' '.join(begun.overrides)}")
    return base.with_overrides(*begun.overrides, *given)


@dataclass(frozen=True)
class _Run:
    """One run of a test."""

    recipe: Recipe
    ramp: Ramp
    steps: int


@dataclass(frozen=True)
class _Plan:
    """The runs by the names of their folders, the one of half the steps last."""

    runs: dict[str, _Run]
    classes: int
    images: str  # of an evaluation, in words

    @property
    def cost(self) -> str:
        """What the test will take, in words."""
        *full, half = self.runs.values()
        times = f"{len(full)} x " if len(full) > 1 else ""
        evaluations = sum(min(run.ramp.points, run.steps) for run in self.runs.values())
        return (
            f"{len(self.runs)} runs, {times}{full[0].steps} + {half.steps} steps, "
            f"{evaluations} evaluations of {self.images} test images"
        )


def _planned(recipe: Recipe, test: Ramp, seeds: int, per_epoch: int) -> _Plan:
    """All runs, checked, on a test set that is not too large."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.feeds import list_dataset

    check_recipe(test.of(recipe, 0, per_epoch))
    data = list_dataset(recipe)
    measured, images = _fewer_images(recipe, data, SCENES if recipe.of_scenes else IMAGES)
    half = replace(test, epochs=test.epochs / 2)
    # Of half the steps with a seed of its own: only an independent run can agree
    ramps = {**{f"seed-{seed}": (test, seed) for seed in range(seeds)}, "half": (half, seeds)}
    found = {}
    for name, (ramp, seed) in ramps.items():
        one = ramp.of(measured, seed, per_epoch)
        check_recipe(one)
        found[name] = _Run(one, ramp, total_steps(one.train, per_epoch))
    return _Plan(found, len(data.classes), images)


def _fewer_images(recipe: Recipe, data: Any, most: int) -> tuple[Recipe, str]:
    """The recipe, evaluated on `most` images of its test set if it has more, and how many in words.

    A `data.subset` that is given stays.
    """
    main = next(iter(data.tests))
    name = (recipe.eval.sets or [main])[0]
    there = len(data.tests.get(name, data.tests[main]))  # other labels are of the main set's images
    if there <= most or recipe.data.subset:
        return recipe, f"{there:,}"
    cut = recipe.with_overrides(f"data.subset=[{len(data.train)}, {most}]")
    return cut, f"{most:,} of {there:,}"


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
        raise UsageError("--steps and --epochs say the same thing. Give one of them.")
    if epochs is not None and not 0 < epochs <= 1_000_000:
        raise UsageError(f"--epochs: {epochs} must be above 0 and at most 1000000.")
    per_epoch = epoch_length(recipe)
    if steps is not None:
        return steps / per_epoch, per_epoch
    return recipe.train.epochs if epochs is None else epochs, per_epoch


def _folder(recipe: Recipe, out: Path | None) -> Path:
    from rescue_cli.runs import next_free

    if out is None:
        return next_free(Path("runs", "lr-range-test", recipe.name))
    return common.folder(out)


def _curves(
    plan: _Plan, folder: Path, device: str, procs: int | None, workers: int | None
) -> list[Curves]:
    """Each run's curves; one that diverges ends there."""
    planned = plan.runs
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
            range_curves.read(
                folder / name, run.ramp.rate, run.steps, seed, plan.classes, diverged=diverged
            )
        )
    return found


def momentum_of(text: str | None) -> tuple[float, float] | None:
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
