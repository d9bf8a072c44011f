"""`rescue study`: a paper's table as one command: what is missing is run, then both are printed."""

import json as json_module
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli.analysis import study as studies
from rescue_cli.analysis.study import Study
from rescue_cli.analysis.study_runs import (
    count_costs,
    parse_rows,
    plan_runs,
    record_study,
    train_missing,
)
from rescue_cli.cli import common
from rescue_cli.cli.common import Device, Json, Workers
from rescue_cli.cli.expand import Epochs, Model
from rescue_cli.cli.help import then
from rescue_cli.cli.study_table import print_costs, print_study
from rescue_cli.rundir.planned import lost_in
from rescue_cli.runs.console import note
from rescue_cli.runs.devices import note_precision, select_device
from rescue_cli.runs.many import local_jobs, require_results

app = common.verb()


def study_names(incomplete: str) -> list[str]:
    """For shell completion."""
    return [name for name in studies.names() if name.startswith(incomplete)]


@app.command(
    epilog=then(
        "rescue study smith-momentum data.root=DIR --only 1",
        "rescue report runs/study/smith-momentum",
    )
)
def study(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="All names without.", autocompletion=study_names),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Changes to every row."),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Rows by number: 1,3.")] = None,
    model: Model = None,
    epochs: Epochs = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs of a row; the study's own points by default.", min=1)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each its share of threads.")] = 1,
    budget: Annotated[
        float | None, typer.Option(help="Hours, after which no run is begun.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the cost, run nothing.")] = False,
    images_per_second: Annotated[
        float | None, typer.Option(help="With --plan: hours at this speed.", min=0.001)
    ] = None,
    table: Annotated[bool, typer.Option("--table", help="Print the table, run nothing.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/study/NAME by default.")] = None,
    json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Run what is missing of a study; print paper and measured side by side."""
    if name is None:
        listed = list(studies.names())
        print(json_module.dumps(listed) if json else "\n".join(listed))
        return
    found = studies.load(name)
    if model is not None or epochs is not None:
        found = replace(found, model=model or found.model, epochs=epochs or found.epochs)
    given = overrides or []
    folder = common.folder(out or Path("runs", "study", found.name))
    chosen = parse_rows(found, only)
    if not table:
        _note_expanded(found, given, chosen)
    if plan:
        columns = {row["row"]: row["columns"] for row in studies.rows(found, given, None)}
        planned = plan_runs(found, given, chosen, seeds, folder)
        print_costs(count_costs(planned, columns, images_per_second), as_json=json)
        return
    if not table:
        where = select_device(device)
        note(str(folder))
        runs = plan_runs(found, given, chosen, seeds, folder)
        with record_study(found, given, folder, runs):
            work = local_jobs(where, jobs, workers, folder / ".cache")
            note_precision((run.recipe.train.precision for run in runs if not run.done), where)
            for line in common.allocator_notes():
                note(line)
            train_missing(runs, work, budget)
    rows = [row for row in studies.rows(found, given, folder) if row["row"] in chosen]
    print_study(found, rows, studies.compared(found, rows, folder), as_json=json)
    if not table:
        ends = [lost.how for row in rows for lost in lost_in(row["runs"]).values()]
        require_results(sum(row["runs"]["n"] for row in rows), ends)


def _note_expanded(study: Study, overrides: list[str], chosen: list[int]) -> None:
    """Notes what the study's network and length set in each row."""
    for row, (cell, _) in enumerate(studies.cells(study, overrides), 1):
        expanded = studies.expanded(study, cell, overrides) if row in chosen else []
        if expanded:
            note(f"row {row} ({cell.recipe}) sets: {' '.join(expanded)}")
