"""The runs of a study: which are missing, what they cost, and their training row after row."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rescue_cli.analysis.claims import with_details
from rescue_cli.analysis.study import (
    Snapshot,
    Study,
    cell_runs,
    check_last_snapshot,
    compare_rows,
    parse_snapshot,
    resolve_cells,
    row_folder,
    table_rows,
)
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import Recipe, total_steps
from rescue_cli.rundir import RunDirectory, write_atomically, write_json
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import command_line
from rescue_cli.runs.many import Jobs, find_missing, record_planned
from rescue_cli.runs.progress import Progress
from rescue_cli.runs.single import has_diverged, is_done

FILE = "study.json"


@dataclass(frozen=True)
class StudyRun:
    """A run of a row."""

    row: int
    path: Path
    recipe: Recipe
    start: Path | None  # a checkpoint of another run
    start_step: int | Literal["last"]  # the step of that checkpoint, 0 without one
    done: bool  # or diverged

    @property
    def epochs_before(self) -> float:
        """The epochs that another run has trained for this one."""
        from rescue_cli.build.outline import epoch_length

        if self.start_step == "last":
            return self.recipe.train.epochs
        return self.start_step / epoch_length(self.recipe) if self.start_step else 0.0


def parse_rows(study: Study, only: str | None) -> list[int]:
    """The rows of `--only 1,3`, all by default; raises `UsageError`."""
    every = list(range(1, len(study.cells) + 1))
    if only is None:
        return every
    words = only.split(",")
    if not all(word.isdecimal() and int(word) in every for word in words):
        raise UsageError(f"--only: '{only}' must be numbers of rows from 1 to {every[-1]}.")
    return [int(word) for word in words]


def plan_runs(
    study: Study, overrides: list[str], chosen: list[int], seeds: int | None, folder: Path
) -> list[StudyRun]:
    """Every run of the chosen rows, all checked before any is trained."""
    from rescue_cli.build.check import check_recipe
    from rescue_cli.build.identity import IdentityCache

    planned, look = [], IdentityCache()
    cells = resolve_cells(study, overrides)
    for row, (cell, recipe) in enumerate(cells, 1):
        if recipe is None or row not in chosen:
            continue
        snapshot = parse_snapshot(study, cell)
        if snapshot is not None and snapshot.step == "last":
            check_last_snapshot(study, row, recipe, cells[snapshot.cell - 1][1])
        for name, one in cell_runs(study, recipe, seeds).items():
            check_recipe(one)
            path = folder / row_folder(row) / name
            start = None if snapshot is None else _checkpoint_of(folder, snapshot, name)
            step = 0 if snapshot is None else snapshot.step
            done = is_done(path, one, look) or has_diverged(path, one, look)
            planned.append(StudyRun(row, path, one, start, step, done))
    return planned


def _checkpoint_of(folder: Path, snapshot: Snapshot, name: str) -> Path:
    run = RunDirectory(folder / row_folder(snapshot.cell) / name)
    return run.last if snapshot.step == "last" else run.snapshot(snapshot.step)


def count_costs(
    runs: Sequence[StudyRun],
    columns: Mapping[int, Mapping[str, Any]],
    images_per_second: float | None,
) -> list[dict[str, Any]]:
    """For each row its runs, and what is left of them: steps, images, computation, hours.

    Args:
        columns: The study's columns by row.
        images_per_second: Without it the hours are None.
    """
    from rescue_cli import estimate
    from rescue_cli.build.outline import epoch_length

    rows: dict[int, dict[str, Any]] = {}
    for run in runs:
        row = rows.setdefault(
            run.row, {"row": run.row, "recipe": run.recipe.name, "columns": columns[run.row],
                      "runs": 0, "left": 0, "updates": 0, "images": 0, "petaflop": 0.0,
                      "hours": None}
        )  # fmt: skip
        row["runs"] += 1
        if run.done:
            continue
        per_epoch = epoch_length(run.recipe)
        whole = total_steps(run.recipe.train, per_epoch)
        steps = 0 if run.start_step == "last" else whole - run.start_step
        row["left"] += 1
        row["updates"] += steps
        row["images"] += steps * run.recipe.train.batch_size
        row["petaflop"] += estimate.petaflop(run.recipe, steps, per_epoch)
    for row in rows.values():
        if images_per_second is not None:
            row["hours"] = row["images"] / images_per_second / 3600
    return list(rows.values())


def train_missing(runs: Sequence[StudyRun], jobs: Jobs, budget: float | None) -> None:
    """Trains what has no result, row after row; raises what all of them fail with.

    Args:
        budget: Hours after which no run is started.
    """
    missing = find_missing({run.path: run.recipe for run in runs})
    waiting = [run for run in runs if run.path in missing]
    deadline = float("inf") if budget is None else time.monotonic() + 3600 * budget
    # First the runs that start from scratch, then those that start from a checkpoint of these
    fresh = [run for run in waiting if run.start is None]
    continued = [run for run in waiting if run.start is not None]
    skipped = {run.path: run.epochs_before for run in waiting}
    with Progress(missing, skipped, before=len(runs) - len(missing)) as progress:
        for group in (fresh, continued):
            if group and time.monotonic() < deadline:
                started = {run.path: run.recipe for run in _copy_starts(group)}
                for ended in jobs.train(started, deadline=deadline):
                    progress.print_end(ended, f"{ended.path}: {ended.error or 'done'}")
    if time.monotonic() >= deadline:
        note(f"--budget: {budget} hours are used up; the same command continues")


def _copy_starts(group: Sequence[StudyRun]) -> list[StudyRun]:
    """Copies checkpoints to where the runs resume from; the runs whose checkpoint exists.

    Warns of the others, and raises the first error where no run is left.
    """
    ready: list[StudyRun] = []
    errors: list[RescueError] = []
    for run in group:
        try:
            _copy_start(run)
            ready.append(run)
        except RescueError as error:
            errors.append(error)
    if errors and not ready:
        raise errors[0]
    for each in errors:
        note(f"warning: {each}")
    return ready


def _copy_start(run: StudyRun) -> None:
    last = RunDirectory(run.path).last
    if run.start is None or last.exists():
        return
    source = RunDirectory(run.start.parent.parent)
    at_the_end = run.start_step == "last"
    if not run.start.is_file() or (at_the_end and not source.finished):
        cure = "to its end" if at_the_end else "with train.snapshots naming the step"
        raise RescueError(
            f"{run.start}: the checkpoint that row {run.row} starts from does not exist. "
            f"Run its row first, {cure}."
        )
    content = run.start.read_bytes()
    write_atomically(last, lambda file: file.write(content))


@contextmanager
def record_study(
    study: Study, overrides: list[str], folder: Path, runs: Sequence[StudyRun]
) -> Iterator[None]:
    """Records the runs as planned; in the end writes what was measured, for `rescue report`."""
    try:
        with record_planned(run.path for run in runs):
            yield
    finally:
        if folder.is_dir():
            rows = table_rows(study, overrides, folder)
            pairs = compare_rows(study, rows, folder).pairs
            content = {
                "study": study.name,
                "source": study.source,
                "command": command_line(),
                "rows": rows,
                "pairs": with_details(pairs),
            }
            write_json(folder / FILE, content)
