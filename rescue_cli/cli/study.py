"""`rescue study`: a paper's table as one command: what is missing is run, then both are printed."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli.analysis.study import (
    Study,
    check_columns,
    check_rows,
    compare_rows,
    describe_changes,
    implied_overrides,
    load_study,
    resolve_cells,
    study_files,
    table_rows,
)
from rescue_cli.analysis.study_runs import (
    count_costs,
    parse_rows,
    plan_runs,
    record_study,
    train_missing,
)
from rescue_cli.build.expand import subset_override
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb, example_and_next
from rescue_cli.cli.common import (
    Device,
    Epochs,
    Json,
    Model,
    On,
    SlurmOptions,
    Smoke,
    Subset,
    Track,
    Where,
    With,
    Workers,
)
from rescue_cli.cli.study_table import print_costs, print_study
from rescue_cli.errors import UsageError
from rescue_cli.rundir.planned import missing_from_json
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import check_folder
from rescue_cli.runs.environment import note_precision, select_device
from rescue_cli.runs.many import Jobs, local_jobs, require_results, slurm_jobs

app = common.verb()


Plan = Annotated[bool, typer.Option("--plan", "--dry-run", help="Print the cost; run nothing.")]


def study_names(incomplete: str) -> list[str]:
    """For shell completion."""
    return [name for name in study_files() if name.startswith(incomplete)]


@app.command(
    cls=ComputingVerb,
    epilog=example_and_next(
        "rescue study smith-momentum data.root=DIR --only 1",
        "rescue report runs/study/smith-momentum",
    ),
)
def study(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Run one study; without a name, list all.",
            autocompletion=study_names,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Changes to the recipe of every row."),
    ] = None,
    _code: With = None,
    _track: Track = None,
    only: Annotated[str | None, typer.Option(help="Numbers of the rows to run: 1,3.")] = None,
    model: Model = None,
    epochs: Epochs = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs per row; default: as the study says.", min=1)
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Parallel runs; default: 1, of SLURM all.", min=1)
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Start no run after this many hours.")
    ] = None,
    plan: Plan = False,
    images_per_second: Annotated[
        float | None, typer.Option(help="With --plan: print the hours at this speed.", min=0.001)
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table so far; run nothing.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/study/NAME.")] = None,
    subset: Subset = None,
    smoke: Smoke = False,
    on: On = Where.local,
    slurm: SlurmOptions = None,
    as_json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Run the missing runs of a study; print paper and measured side by side."""
    if name is None:
        _list_studies(as_json=as_json)
        return
    common.check_place(on, slurm)
    if on is Where.slurm and budget is not None:
        raise UsageError("--budget: SLURM starts the runs. Limit them by --slurm time=MINUTES.")
    loaded = load_study(name)
    loaded = replace(
        loaded,
        model=loaded.model if model is None else model,
        epochs=loaded.epochs if epochs is None else epochs,
        smoke=smoke or loaded.smoke,
    )
    given = overrides or []
    if subset is not None:
        given = [*given, subset_override(subset, given)]
    part = "-smoke" if smoke else "" if subset is None else "-subset"
    folder = check_folder(out or Path("runs", "study", f"{loaded.name}{part}"))
    chosen = parse_rows(loaded, only)
    if name.endswith(".yaml"):  # a shipped one is checked by its tests
        check_columns(loaded)
        check_rows(loaded, given)
    if table:
        for line in describe_changes(loaded, given, folder):
            note(f"warning: {line}")
    else:
        _note_expanded(loaded, given, chosen)
    if plan:
        columns = {row["row"]: row["columns"] for row in table_rows(loaded, given, None)}
        planned = plan_runs(loaded, given, chosen, seeds, folder)
        costs = count_costs(planned, columns, images_per_second)
        script = None
        if on is Where.slurm:
            queue = slurm_jobs(slurm or [], jobs, device, workers, folder)
            queue.check_tasks(run.recipe for run in planned)
            script = queue.script(sum(not run.done and run.start is None for run in planned))
        print_costs(costs, as_json=as_json, script=script)
        return
    if not table:
        where = select_device(device, elsewhere=on is Where.slurm)
        note(str(folder))
        runs = plan_runs(loaded, given, chosen, seeds, folder)
        with record_study(loaded, given, folder, runs):
            if on is Where.slurm:
                work: Jobs = slurm_jobs(slurm or [], jobs, device, workers, folder)
            else:
                work = local_jobs(where, 1 if jobs is None else jobs, workers, folder / ".cache")
                note_precision((run.recipe.train.precision for run in runs if not run.done), where)
            train_missing(runs, work, budget)
    rows = [row for row in table_rows(loaded, given, folder) if row["row"] in chosen]
    print_study(loaded, rows, compare_rows(loaded, rows, folder), as_json=as_json)
    if not table:
        ends = [run.how for row in rows for run in missing_from_json(row["runs"]).values()]
        require_results(sum(row["runs"]["n"] for row in rows), ends)


def _list_studies(*, as_json: bool) -> None:
    """Each shipped study with its rows and its source."""
    studies = [load_study(name) for name in study_files()]
    if as_json:
        common.print_json(
            [{"study": s.name, "rows": len(s.cells), "source": s.source} for s in studies]
        )
        return
    rows = [[study.name, str(len(study.cells)), study.source] for study in studies]
    common.console().print(
        common.table(("study", "rows", "source"), rows, words=("study", "source"))
    )


def _note_expanded(study: Study, overrides: list[str], chosen: list[int]) -> None:
    """Notes what the study's network and length set in each row, and its deprecated keys."""
    for row, (cell, recipe) in enumerate(resolve_cells(study, overrides), 1):
        expanded = implied_overrides(study, cell, overrides) if row in chosen else []
        for line in recipe.notes if recipe is not None and row in chosen else ():
            note(f"row {row} ({cell.recipe}): {line}")
        if expanded:
            note(f"row {row} ({cell.recipe}) sets: {' '.join(expanded)}")
