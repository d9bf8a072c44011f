"""A study as it is printed: paper and measured side by side, or what is left to run."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.table import Table

from rescue_cli.analysis import interim
from rescue_cli.analysis import study as studies
from rescue_cli.analysis.compare import told
from rescue_cli.analysis.study import Compared, Study
from rescue_cli.cli import common
from rescue_cli.formatting import shown_seconds, significant
from rescue_cli.rundir import METRICS
from rescue_cli.rundir.planned import counted_lost, lost_in, of_planned
from rescue_cli.runs.console import note

Rows = Sequence[Mapping[str, Any]]


def print_study(study: Study, rows: Rows, compared: Compared, *, as_json: bool) -> None:
    """The rows, and of a study that compares them the claim of each pair, which is a look."""
    for line in interim.note(compared.sides):
        note(f"warning: {line}")
    if as_json:
        found = {"study": study.name, "paper": study.paper, "rows": rows}
        print(json.dumps({**found, "sides": told(compared.sides), "pairs": compared.pairs}))
        return
    out = common.console()
    out.print(_table(rows))
    out.print(_legend(study, metrics=any(row["paper"] for row in rows)))
    for line in _lost(rows):
        out.print(line)
    if compared.pairs:
        common.print_comparison(compared.sides, compared.pairs)


def _table(rows: Rows) -> Table:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["paper"]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("row", justify="right")
    for heading in rows[0]["columns"]:
        table.add_column(heading, overflow="fold")
    for metric in metrics:
        table.add_column(f"paper {METRICS.get(metric, metric.replace('seed0', 'seed 0') + ' %')}",
                         justify="right")  # fmt: skip
    for heading in ("measured %", "p" if metrics else "train s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        figures = [row["paper"].get(metric) for metric in metrics]
        measured = row["measured"] or {}
        table.add_row(
            str(row["row"]),
            *(studies.shown(value) for value in row["columns"].values()),
            *("-" if figure is None else f"{figure:.2f}" for figure in figures),
            _measured(row),
            _chance(measured) if metrics else _seconds(row),
        )
    return table


def _measured(row: Mapping[str, Any]) -> str:
    """Of runs all of which were lost, how."""
    lost = [one.how for one in lost_in(row["runs"]).values()]
    if row["measured"] is None and lost:
        return counted_lost(lost)
    return common.measured(row["measured"])


def _lost(rows: Rows) -> list[str]:
    """A line for each row that has planned runs without a result."""
    told = [(row, [one.how for one in lost_in(row["runs"]).values()]) for row in rows]
    return [
        f"row {row['row']}: runs with a result: {of_planned(row['runs']['n'], lost)}"
        for row, lost in told
        if lost
    ]


def _chance(measured: Mapping[str, Any]) -> str:
    return "-" if measured.get("p") is None else f"{measured['p']:.2g}"


def _seconds(row: Mapping[str, Any]) -> str:
    return "-" if row["seconds_train"] is None else shown_seconds(row["seconds_train"])


def _legend(study: Study, *, metrics: bool) -> str:
    source = "" if study.paper is None else f"{study.source}. "
    measured = "measured: mean ± standard deviation (runs), last epoch."
    if not metrics:
        return f"{source}{measured} train s: seconds of training, mean of the runs."
    return (
        f"{source}{measured} p: how probable so large a difference from the paper is by chance "
        "(Welch's t-test, each row for itself; a side without a std is taken to scatter like the "
        "other). A large p does not show that they agree."
    )


def print_costs(rows: Collection[Mapping[str, Any]], *, as_json: bool) -> None:
    """What is left of each row and in all, see `study_runs.count_costs`."""
    if as_json:
        print(json.dumps(list(rows)))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("row", justify="right")
    table.add_column(", ".join(next(iter(rows), {"columns": ()})["columns"]), overflow="fold")
    for heading in ("runs", "left", "steps", "images", "PFLOP", "hours"):
        table.add_column(heading, justify="right", no_wrap=True)
    keys = ("runs", "left", "updates", "images", "petaflop", "hours")
    timed = all(row["hours"] is not None for row in rows)
    sums = {key: sum(row[key] for row in rows) for key in (keys if timed else keys[:-1])}
    total = {"row": "", "columns": {"": "in all"}, "hours": None, **sums}
    for row in [*rows, total]:
        table.add_row(
            str(row["row"]), ", ".join(map(studies.shown, row["columns"].values())),
            str(row["runs"]), str(row["left"]), f"{row['updates']:,}", f"{row['images']:,}",
            significant(row["petaflop"]),
            "-" if row["hours"] is None else f"{row['hours']:,.1f}",
        )  # fmt: skip
    common.console().print(table)
