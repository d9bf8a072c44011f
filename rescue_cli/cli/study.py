"""`rescue study`: a paper's table as one command: what is missing is run, then both are printed."""

import json as json_module
import shlex
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rescue_cli.analysis import study as studies
from rescue_cli.analysis.claims import details
from rescue_cli.analysis.study import Snapshot, Study
from rescue_cli.cli import common
from rescue_cli.cli.common import Device, Json, Workers
from rescue_cli.cli.expand import Epochs, Model
from rescue_cli.cli.help import then
from rescue_cli.cli.progress import progress
from rescue_cli.cli.runs import (
    demand_results,
    diverged,
    is_done,
    note_machine,
    places,
    planning,
    train_all,
)
from rescue_cli.cli.study_plan import print_plan
from rescue_cli.cli.study_table import print_study
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.report import study_page
from rescue_cli.rundir import write_json
from rescue_cli.rundir.planned import lost_in

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
    chosen = _chosen(found, only)
    if not table:
        _note_expanded(found, given, chosen)
    if plan:
        planned = _missing(found, given, chosen, seeds, folder)
        _print_plan(found, given, planned, images_per_second, as_json=json)
        return
    if not table:
        where = common.device(device)
        common.note(str(folder))
        missing = _missing(found, given, chosen, seeds, folder)
        try:
            with planning(run.path for run in missing):
                _run(missing, folder, where, jobs, workers, budget)
        finally:
            _keep(found, given, folder)
    rows = [row for row in studies.rows(found, given, folder) if row["row"] in chosen]
    print_study(found, rows, studies.compared(found, rows, folder), as_json=json)
    if not table:
        _demand_results(rows)


def _print_plan(
    study: Study, overrides: list[str], runs: list["_Run"], speed: float | None, *, as_json: bool
) -> None:
    columns = {row["row"]: row["columns"] for row in studies.rows(study, overrides, None)}
    told = [(run.row, run.recipe, run.done, run.before) for run in runs]
    print_plan(told, columns, speed, as_json=as_json)


def _demand_results(rows: list[dict[str, Any]]) -> None:
    lost = [each.how for row in rows for each in lost_in(row["runs"]).values()]
    demand_results(sum(row["runs"]["n"] for row in rows), lost)


@dataclass(frozen=True)
class _Run:
    """A run of a row."""

    row: int
    path: Path
    recipe: Recipe
    begins: Path | None  # a state of another run
    before: int | Literal["last"]  # the steps that it has behind it there
    done: bool  # or diverged


def _note_expanded(study: Study, overrides: list[str], chosen: list[int]) -> None:
    """Says what the study's network and length set in each row."""
    for row, (cell, _) in enumerate(studies.cells(study, overrides), 1):
        found = studies.expanded(study, cell, overrides) if row in chosen else []
        if found:
            common.note(f"row {row} ({cell.recipe}) sets: {' '.join(found)}")


def _chosen(study: Study, only: str | None) -> list[int]:
    """The rows asked for; raises `UsageError`."""
    every = list(range(1, len(study.cells) + 1))
    if only is None:
        return every
    words = only.split(",")
    if not all(word.isdecimal() and int(word) in every for word in words):
        raise UsageError(f"--only: '{only}' must be numbers of rows from 1 to {every[-1]}.")
    return [int(word) for word in words]


def _missing(
    study: Study, overrides: list[str], chosen: list[int], seeds: int | None, folder: Path
) -> list[_Run]:
    """Every run of the rows, those with a result marked; checked before any begins."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.identity import IdentityCache

    found, look = [], IdentityCache()
    cells = studies.cells(study, overrides)
    for row, (cell, recipe) in enumerate(cells, 1):
        if recipe is None or row not in chosen:
            continue
        snapshot = studies.snapshot_of(study, cell)
        if snapshot is not None and snapshot.step == "last":
            studies.check_last(study, row, recipe, cells[snapshot.cell - 1][1])
        for name, one in studies.runs(study, recipe, seeds).items():
            check_recipe(one)
            path = folder / studies.row_folder(row) / name
            begins = None if snapshot is None else _begins(folder, snapshot, name)
            ended = is_done(path, one, look) or diverged(path, one, look)
            before = 0 if snapshot is None else snapshot.step
            found.append(_Run(row, path, one, begins, before, ended))
    return found


def _begins(folder: Path, snapshot: Snapshot, name: str) -> Path:
    from rescue_cli.rundir import RunDirectory

    run = RunDirectory(folder / studies.row_folder(snapshot.cell) / name)
    return run.last if snapshot.step == "last" else run.snapshot(snapshot.step)


def _run(
    runs: list[_Run],
    folder: Path,
    device: str,
    jobs: int,
    workers: int | None,
    budget: float | None,
) -> None:
    """Trains what has no result, row after row; raises what all would fail of."""
    from rescue_cli.build.identity import IdentityCache, compare_data

    done = [run.path for run in runs if run.done]
    for line in compare_data({run.path: run.recipe for run in runs}, done, IdentityCache()):
        common.note(line)
    waiting = [run for run in runs if not run.done]
    common.note(f"{len(runs) - len(waiting)} of {len(runs)} runs are there")
    where = places(device, jobs, workers)
    note_machine((run.recipe for run in waiting), device)
    begun = time.monotonic()

    def in_time() -> bool:
        return budget is None or time.monotonic() - begun < 3600 * budget

    def said(ended: Any) -> str:
        return f"{ended.path}: {ended.error or 'done'}"

    behind = {run.path: _epochs_behind(run) for run in waiting}
    with progress({run.path: run.recipe for run in waiting}, said, behind) as hear:
        for group in _in_order(waiting):
            if in_time():
                named = {run.path: run.recipe for run in _taken_up(group)}
                train_all(named, where, folder / ".cache", lambda end: hear(end) and in_time())
    if not in_time():
        common.note(f"--budget: {budget} hours are over; the same command goes on")


def _keep(study: Study, overrides: list[str], folder: Path) -> None:
    """Writes what `rescue report` shows of the folder; whatever was measured so far."""
    if not folder.is_dir():
        return
    rows = studies.rows(study, overrides, folder)
    kept = {
        "study": study.name,
        "source": study.source,
        "command": shlex.join(["rescue", *sys.argv[1:]]),
        "rows": rows,
        "pairs": [
            {**pair, "details": details(pair)}
            for pair in studies.compared(study, rows, folder).pairs
        ],
    }
    write_json(folder / study_page.FILE, kept)


def _in_order(runs: list[_Run]) -> list[list[_Run]]:
    """Those that begin at the beginning, then those that begin where these have been."""
    first = [run for run in runs if run.begins is None]
    rest = [run for run in runs if run.begins is not None]
    return [group for group in (first, rest) if group]


def _epochs_behind(run: _Run) -> float:
    """The epochs that another run has trained for this one."""
    from rescue_cli.build.outline import epoch_length

    if run.before == "last":
        return run.recipe.train.epochs
    return run.before / epoch_length(run.recipe) if run.before else 0.0


def _taken_up(group: list[_Run]) -> list[_Run]:
    """Those that can begin; the others are told, and are an error where no run is left."""
    found: list[_Run] = []
    lost: list[RescueError] = []
    for run in group:
        try:
            _take_up(run)
            found.append(run)
        except RescueError as error:
            lost.append(error)
    if lost and not found:
        raise lost[0]
    for each in lost:
        common.note(f"warning: {each}")
    return found


def _take_up(run: _Run) -> None:
    """Puts another run's state where this one resumes from; raises `RescueError`."""
    from rescue_cli.rundir import RunDirectory, write_whole

    last = RunDirectory(run.path).last
    if run.begins is None or last.exists():
        return
    source = RunDirectory(run.begins.parent.parent)
    at_the_end = run.before == "last"
    if not run.begins.is_file() or (at_the_end and not source.result.is_file()):
        cure = "to its end" if at_the_end else "with train.snapshots naming the step"
        raise RescueError(
            f"{run.begins}: the state that row {run.row} begins with is not there. "
            f"Run its row first, {cure}."
        )
    content = run.begins.read_bytes()
    write_whole(last, lambda file: file.write(content))
