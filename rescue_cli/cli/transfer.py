"""`rescue transfer`: trained weights, another data set, and what they are worth there."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis import sides as operands
from rescue_cli.analysis import sweep as sweeps
from rescue_cli.analysis.compare import pairs_of, told
from rescue_cli.analysis.sweep import Sweep
from rescue_cli.cli import common
from rescue_cli.cli.common import Architecture, Device, Json, Overrides, RecipeName, Workers
from rescue_cli.cli.expand import Epochs, expand
from rescue_cli.cli.help import then
from rescue_cli.cli.runs import demand_results, note_machine, places, train_all, train_missing
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import Recipe

app = common.verb()


@app.command(
    epilog=then(
        "rescue transfer --from runs/a2/0 --to flowers102 data.root=DIR",
        "rescue predict RUN IMAGE, or rescue report RUN",
    )
)
def transfer(
    overrides: Overrides = None,
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from", help="A run, a weights file, timm:NAME, or scratch:ONE; several compare."
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(help="A data set, or a folder of one's own.")] = None,
    recipe: RecipeName = None,
    model: Architecture = None,
    epochs: Epochs = None,
    seeds: Annotated[str, typer.Option(help="3, 0-9 or 3,7,11.")] = "1",
    jobs: Annotated[int | None, typer.Option(help="Runs at a time.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/RECIPE/TO by default.")] = None,
    json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Train weights further on another data set; several, and from scratch, are compared."""
    if not from_ or to is None:
        raise UsageError("transfer: give --from WEIGHTS and --to DATA (a data set or a folder).")
    from rescue_cli.build.transfer import DEFAULT

    base = recipes.load(recipe or DEFAULT)
    name = Path(to).resolve().name if Path(to).is_dir() else to
    folder = common.folder(out or Path("runs", base.name, name))
    starts = _starts(base, from_, to, overrides or [], model, epochs)
    chosen = sweeps.seeds_of(seeds)
    runs = {
        folder / label / f"{sweeps.PREFIX}{seed}": one.with_overrides(f"train.seed={seed}")
        for label, one in starts.items()
        for seed in chosen
    }
    place = str(next(iter(runs)) if len(runs) == 1 else folder)
    common.note(place)
    _run(runs, folder, common.device(device), jobs, workers)
    found = [sweeps.read(folder / label) for label in starts]
    _show(found, to, as_json=json)
    common.note(place)
    ends = [lost.how for sweep in found for lost in sweep.lost.values()]
    demand_results(sum(len(sweep.results) for sweep in found), ends)


def _starts(
    base: Recipe,
    words: list[str],
    to: str,
    given: list[str],
    model: str | None,
    epochs: float | None,
) -> dict[str, Recipe]:
    """The recipe of each start by its name; all are checked before anything is trained."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.transfer import check_labels, plan_transfer

    begun = {word: plan_transfer(base, word, to, given, model=model) for word in words}
    check_labels(begun)
    found = {}
    for word, each in begun.items():
        common.note(f"--from {word} sets: {' '.join(each.overrides)}")
        changed = base.with_overrides(*each.overrides, *given)
        longer, notes = expand(changed, given, None, epochs)
        for line in notes:
            common.note(line)
        found[each.label] = changed.with_overrides(*longer)
        check_recipe(found[each.label])
    return found


def _run(
    runs: dict[Path, Recipe], folder: Path, device: str, jobs: int | None, workers: int | None
) -> None:
    """Trains what has no result; one that fails is told, and all failing is an error."""
    from rescue_cli.report.pictures import draw
    from rescue_cli.rundir import RunDirectory, word_of
    from rescue_cli.runs import is_finished

    note_machine(runs.values(), device)
    where = places(device, jobs, workers)

    errors: list[RescueError] = []

    def said(ended: Any) -> str:
        if ended.error is None:
            draw(ended.path)
        else:
            errors.append(ended.error)
        return f"{ended.path}: {ended.error or 'done'}"

    train_missing(
        runs, lambda missing, hear: train_all(missing, where, folder / ".cache", hear), said
    )
    if any(is_finished(path) for path in runs):
        return
    # one that diverged before is not trained again, and is no end that was told
    errors += [word.error for path in runs if (word := word_of(RunDirectory(path)))]
    if errors:
        raise errors[0]


def _show(found: list[Sweep], to: str, *, as_json: bool) -> None:
    """Each start's accuracy, and of several what may be claimed."""
    for sweep in found:
        if sweep.lost:
            common.note(f"{sweep.path}: {sweep.counted}")
    sides = [operands.operand(str(sweep.path)) for sweep in found if sweep.results]
    pairs = pairs_of(sides)
    if not as_json:
        common.print_comparison(sides, pairs)
        return
    print(json_module.dumps({"to": to, "sides": told(sides), "pairs": pairs}))
