"""`rescue transfer`: fine-tunes weights on another data set, and compares several."""

from pathlib import Path
from typing import Annotated

import typer

from rescue_cli import recipe as recipes
from rescue_cli.analysis.compare import compare_pairs, describe_sides
from rescue_cli.analysis.sides import load_side
from rescue_cli.analysis.sweep import PREFIX, Sweep, parse_seeds, read_sweep
from rescue_cli.build.expand import expand_options
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb, example_and_next
from rescue_cli.cli.common import (
    Architecture,
    Device,
    Epochs,
    Json,
    Overrides,
    RecipeName,
    With,
    Workers,
)
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, read_failure
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import check_folder, is_finished
from rescue_cli.runs.environment import note_precision, select_device
from rescue_cli.runs.many import Jobs, find_missing, local_jobs, record_planned, require_results
from rescue_cli.runs.progress import Progress

app = common.verb()


@app.command(
    cls=ComputingVerb,
    epilog=example_and_next(
        "rescue transfer --from runs/a2/0 --to flowers102 data.root=DIR",
        "rescue predict RUN IMAGE, or rescue report RUN",
    ),
)
def transfer(
    overrides: Overrides = None,
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="Starting weights: a run, a file, timm:NAME or scratch:NAME. Repeat to compare.",
        ),
    ] = None,
    to: Annotated[str | None, typer.Option(help="A data set, or a folder of your own.")] = None,
    recipe: RecipeName = None,
    _code: With = None,
    model: Architecture = None,
    epochs: Epochs = None,
    seeds: Annotated[str, typer.Option(help="Number of seeds, or a list: 0-9 or 3,7,11.")] = "1",
    jobs: Annotated[int | None, typer.Option(help="Parallel runs.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/RECIPE/TO.")] = None,
    as_json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Fine-tune weights on another data set, and compare several starting weights."""
    if not from_ or to is None:
        raise UsageError("transfer: give --from WEIGHTS and --to DATA (a data set or a folder).")
    from rescue_cli.build.transfer import DEFAULT

    base = recipes.load(recipe or DEFAULT)
    name = Path(to).resolve().name if Path(to).is_dir() else to
    folder = check_folder(out or Path("runs", base.name, name))
    starts = _starts(base, from_, to, overrides or [], model, epochs)
    chosen = parse_seeds(seeds)
    runs = {
        folder / label / f"{PREFIX}{seed}": one.with_overrides(f"train.seed={seed}")
        for label, one in starts.items()
        for seed in chosen
    }
    location = str(next(iter(runs)) if len(runs) == 1 else folder)
    note(location)
    where = select_device(device)
    note_precision((one.train.precision for one in runs.values()), where)
    _train(runs, local_jobs(where, jobs, workers, folder / ".cache"))
    sweeps = [read_sweep(folder / label) for label in starts]
    _show(sweeps, to, as_json=as_json)
    note(location)
    ends = [missing.how for sweep in sweeps for missing in sweep.missing.values()]
    require_results(sum(len(sweep.results) for sweep in sweeps), ends)


def _starts(
    base: Recipe,
    words: list[str],
    to: str,
    given: list[str],
    model: str | None,
    epochs: float | None,
) -> dict[str, Recipe]:
    """The recipe of each --from by its label; all are checked before any is trained."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.transfer import check_labels, plan_transfer

    starts = {word: plan_transfer(base, word, to, given, model=model) for word in words}
    check_labels(starts)
    expanded = {}
    for word, each in starts.items():
        note(f"--from {word} sets: {' '.join(each.overrides)}")
        changed = base.with_overrides(*each.overrides, *given)
        longer, notes = expand_options(changed, given, None, epochs)
        for line in [*notes, *changed.notes]:
            note(line)
        expanded[each.label] = changed.with_overrides(*longer)
        check_recipe(expanded[each.label])
    return expanded


def _train(runs: dict[Path, Recipe], jobs: Jobs) -> None:
    """Trains what has no result; raises the first error if no run has one in the end."""
    from rescue_cli.report.pictures import draw_run

    errors: list[RescueError] = []
    missing = find_missing(runs)
    with record_planned(runs), Progress(missing) as progress:
        for ended in jobs.train(missing):
            if ended.error is None:
                draw_run(ended.path)
            else:
                errors.append(ended.error)
            progress.print_end(ended, f"{ended.path}: {ended.error or 'done'}")
    if any(is_finished(path) for path in runs):
        return
    # Runs that diverged before were not trained again
    errors += [failure.error for path in runs if (failure := read_failure(RunDirectory(path)))]
    if errors:
        raise errors[0]


def _show(sweeps: list[Sweep], to: str, *, as_json: bool) -> None:
    """The accuracy of each start, and of several what may be claimed."""
    for sweep in sweeps:
        if sweep.missing:
            note(f"{sweep.path}: {sweep.seeds_text}")
    sides = [load_side(str(sweep.path)) for sweep in sweeps if sweep.results]
    pairs = compare_pairs(sides)
    if not as_json:
        common.print_comparison(sides, pairs)
        return
    common.print_json({"to": to, "sides": describe_sides(sides), "pairs": pairs})
