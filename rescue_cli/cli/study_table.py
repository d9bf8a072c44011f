"""A study as it is printed: paper and measured side by side, or what is left to run."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.table import Table

from rescue_cli.analysis import interim
from rescue_cli.analysis.compare import describe_sides
from rescue_cli.analysis.study import (
    ComparedRows,
    Study,
    format_value,
    image_lines,
    name_rows,
)
from rescue_cli.cli import common
from rescue_cli.formatting import flop_count, format_seconds
from rescue_cli.metrics.names import METRICS
from rescue_cli.rundir.planned import count_missing, format_planned, missing_from_json
from rescue_cli.runs.console import note

Rows = Sequence[Mapping[str, Any]]


def print_study(study: Study, rows: Rows, compared: ComparedRows, *, as_json: bool) -> None:
    """Prints the rows and the claim of each compared pair, which counts as a look at the data."""
    for line in interim.record_comparison(compared.sides):
        note(f"warning: {line}")
    if as_json:
        sides = describe_sides(compared.sides)
        table = {"study": study.name, "paper": study.paper, "rows": rows}
        common.print_json({**table, "sides": sides, "pairs": compared.pairs})
        return
    out = common.console()
    out.print(_table(rows))
    out.print(_legend(study, rows))
    for line in (*_origin_lines(rows), *_missing_lines(rows)):
        out.print(line)
    if compared.pairs:
        common.print_comparison(compared.sides, compared.pairs)


def _table(rows: Rows) -> Table:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["paper"]))
    names = [METRICS.get(metric, f"{metric.replace('seed0', 'seed 0')} %") for metric in metrics]
    words = list(rows[0]["columns"])
    timed = not metrics and any(row["seconds_train"] is not None for row in rows)
    last = ["p"] if metrics else ["time (s)"] * timed
    headings = ["row", *words, *(f"paper {name}" for name in names), "measured %", *last]
    cells = []
    for row in rows:
        figures = [row["paper"].get(metric) for metric in metrics]
        measured = row["measured"] or {}
        cells.append(
            [
                str(row["row"]),
                *(format_value(value) for value in row["columns"].values()),
                *("-" if figure is None else f"{figure:.2f}" for figure in figures),
                _format_result(row),
                *([_chance(measured)] if metrics else [_seconds(row)] * timed),
            ]
        )
    return common.table(headings, cells, words=words)


def _format_result(row: Mapping[str, Any]) -> str:
    """The mean of the runs; how they ended where none has a result."""
    missing = [one.how for one in missing_from_json(row["runs"]).values()]
    if row["measured"] is None and missing:
        return count_missing(missing)
    return common.format_measured(row["measured"])


def _origin_lines(rows: Rows) -> list[str]:
    """What the rows were tested on; which were not run here, and which on a part of the images."""
    lines = image_lines(rows)
    measured = [row for row in rows if row["measured"] is not None]
    for words, key in (("on record", "recorded"), ("on a part of the images", "partial")):
        if chosen := [row for row in measured if row[key]]:
            lines.append(f"{name_rows(chosen)}: {words}")
    return lines


def _missing_lines(rows: Rows) -> list[str]:
    """A line for each row that has planned runs without a result."""
    counted = [(row, [one.how for one in missing_from_json(row["runs"]).values()]) for row in rows]
    return [
        f"row {row['row']}: runs with a result: {format_planned(row['runs']['n'], missing)}"
        for row, missing in counted
        if missing
    ]


def _chance(measured: Mapping[str, Any]) -> str:
    return "-" if measured.get("p") is None else f"{measured['p']:.2g}"


def _seconds(row: Mapping[str, Any]) -> str:
    return "-" if row["seconds_train"] is None else format_seconds(row["seconds_train"])


def _legend(study: Study, rows: Rows) -> str:
    source = "" if study.paper is None else f"{study.source}. "
    measured = f"{source}measured: mean ± standard deviation (runs), last epoch."
    if any(row["paper"] for row in rows):
        return (
            f"{measured} p: the probability of a difference from the paper at least this "
            "large if the two are equal (Welch's t-test, each row by itself; a side without a "
            "std is assumed to vary as much as the other). A large p does not show that they agree."
        )
    if any(row["seconds_train"] is not None for row in rows):
        return f"{measured} time (s): training time, mean of the runs."
    return measured


def print_costs(
    rows: Collection[Mapping[str, Any]], *, as_json: bool, script: str | None = None
) -> None:
    """What is left of each row and in total, see `study_runs.count_costs`; last the `script` that
    would be submitted.
    """
    if as_json:
        listed = list(rows)
        common.print_json(listed if script is None else {"rows": listed, "script": script})
        return
    keys = ("runs", "left", "updates", "images", "petaflop", "hours")
    timed = all(row["hours"] is not None for row in rows)
    sums = {key: sum(row[key] for row in rows) for key in (keys if timed else keys[:-1])}
    total = {"row": "", "columns": {"": "total"}, "hours": None, **sums}
    name = ", ".join(next(iter(rows), {"columns": ()})["columns"])
    headings = ("row", name, "runs", "left", "steps", "images", "FLOP", "hours")
    cells = [
        [
            str(row["row"]),
            ", ".join(map(format_value, row["columns"].values())),
            str(row["runs"]),
            str(row["left"]),
            f"{row['updates']:,}",
            f"{row['images']:,}",
            flop_count(row["petaflop"]),
            "-" if row["hours"] is None else f"{row['hours']:,.1f}",
        ]
        for row in [*rows, total]
    ]
    common.console().print(common.table(headings, cells, words=[name]))
    if script is not None:
        print(f"\n{script}")
