"""A study's section of the page: its table, and its rows for the table of all results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rescue_cli.analysis.stats import PERCENT as RANGE
from rescue_cli.analysis.stats import Sample, t_interval
from rescue_cli.analysis.study import format_value, image_lines
from rescue_cli.analysis.study_runs import FILE
from rescue_cli.errors import DataError
from rescue_cli.formatting import format_seconds
from rescue_cli.metrics.names import METRICS
from rescue_cli.report.table import ResultLine, without_empty_columns
from rescue_cli.rundir import check_keys, read_json
from rescue_cli.rundir.planned import format_planned, missing_from_json
from rescue_cli.rundir.reading import (
    COUNT,
    LIST,
    MAPPING,
    NUMBER,
    OBJECTS,
    PERCENT,
    POSITIVE,
    STEP,
    TEXT,
    Rule,
)

STUDY = {
    "study": TEXT, "source": TEXT, "command": TEXT, "rows": OBJECTS,
    "pairs": Rule("a list of objects", lambda v: v == [] or OBJECTS.holds(v)),
}  # fmt: skip
PAIR = {"a", "b", "difference", "p", "about", "claim"}
FIGURES = Rule(
    "percentages by name", lambda v: MAPPING.holds(v) and all(map(NUMBER.holds, v.values()))
)
REASONS = Rule("strings by name", lambda v: MAPPING.holds(v) and all(map(TEXT.holds, v.values())))
TEXTS = Rule("a list of strings", lambda v: LIST.holds(v) and all(map(TEXT.holds, v)))
ROW = {
    "row": COUNT, "recipe": TEXT.or_null(), "paper": FIGURES, "measured": MAPPING.or_null(),
    "seconds_train": POSITIVE.or_null(), "runs": MAPPING, "images": TEXTS,
    "columns": Rule("a non-empty object", lambda v: MAPPING.holds(v) and bool(v)),
}  # fmt: skip
RUNS = {"n": STEP, "diverged": REASONS, "failed": REASONS, "not_run": LIST}
MEASURED = {
    "mean": PERCENT, "std": POSITIVE.or_null(), "n": COUNT, "p": PERCENT.or_null(),
}  # fmt: skip


def is_study(path: Path) -> bool:
    """Whether the folder is that of a study."""
    return (path / FILE).is_file()


def study_lines(path: Path) -> list[ResultLine]:
    """The measured rows, for the table of all results."""
    rows = _read_study(path)["rows"]
    lines, headings = [], _telling_columns(rows)
    for row in rows:
        if (measured := row["measured"]) is not None:
            paper = next((Sample(value, None, 1) for value in row["paper"].values()), None)
            ours = Sample(measured["mean"], measured["std"], measured["n"])
            name = f"{path}, row {row['row']}"
            # Without runs in the folder the result is from the records
            missing = missing_from_json(row["runs"]) if row["runs"]["n"] else {}
            metric = next((key for key in row["paper"] if key in METRICS), "top1")
            lines.append(
                ResultLine(
                    name, row["recipe"], "-", paper, ours, row["seconds_train"], missing,
                    metric=metric, interval=t_interval(ours, RANGE), note=_row_label(row, headings),
                )
            )  # fmt: skip
    return lines


def _read_study(path: Path) -> dict[str, Any]:
    """The study's file; raises `DataError` where it is invalid, or of an older version."""
    file = path / FILE
    study = read_json(file)
    name = study["study"] if TEXT.holds(study.get("study")) else "NAME"
    cure = f"An older version may have written it. Write it again: rescue study {name} --out {path}"
    check_keys(file, study, STUDY, cure)
    for index, row in enumerate(study["rows"]):
        at = f"rows[{index}]."
        check_keys(file, row, ROW, cure, at)
        check_keys(file, row["runs"], RUNS, cure, f"{at}runs.")
        if row["measured"] is not None:
            check_keys(file, row["measured"], MEASURED, cure, f"{at}measured.")
        if row["columns"].keys() != study["rows"][0]["columns"].keys():
            raise DataError(f"{file}: {at}columns: differ from those of the first row. {cure}")
    for index, pair in enumerate(study["pairs"]):
        check_keys(file, pair, {"claim": TEXT, "details": TEXTS}, cure, f"pairs[{index}].")
    return study


def study_section(path: Path) -> dict[str, Any]:
    """What `study.html` shows: source, table, and the command that continues the study."""
    study = _read_study(path)
    rows = study["rows"]
    measured = [row for row in rows if row["measured"] is not None]
    headings, cells = _table(rows)
    return {
        "template": "study.html",
        "path": path,
        "study": study["study"],
        "source": study["source"],
        "measured": len(measured),
        "total": len(rows),
        "headings": headings,
        "rows": cells,
        "tested": image_lines(rows),
        "has_paper": any(row["paper"] for row in rows),
        "pairs": study["pairs"],
        "command": study["command"],
    }


def study_pairs(path: Path) -> list[dict[str, Any]]:
    """The comparisons of a study's rows; none of one that an older version has written."""
    return [pair for pair in _read_study(path)["pairs"] if pair.keys() >= PAIR]


def describe_study(path: Path) -> str:
    """How much of a study is measured, and how far from the paper, in a sentence."""
    study = _read_study(path)
    rows = [row for row in study["rows"] if row["measured"] is not None]
    apart = [
        row["measured"]["mean"] - next(iter(row["paper"].values())) for row in rows if row["paper"]
    ]
    text = f"{study['study']}: {len(rows)} of {len(study['rows'])} rows are measured"
    if not apart:
        return f"{text}."
    mean = sum(apart) / len(apart)
    side = "above" if mean > 0 else "below"
    return f"{text}, on average {abs(mean):.2f} points {side} the paper."


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = list(rows[0]["columns"])
    cells = []
    for row in rows:
        ours = row["measured"] or {"mean": None, "std": None, "p": None}
        seconds = row["seconds_train"]
        cells.append(
            [
                str(row["row"]), *(format_value(row["columns"][name]) for name in columns),
                _paper(row), _number(ours["mean"], ".2f"), _number(ours["std"], ".2f"), _runs(row),
                _number(ours["p"], ".2g"), "-" if seconds is None else format_seconds(seconds),
            ]
        )  # fmt: skip
    measures = ["paper %", "measured %", "std", "runs", "p", "training time (s)"]
    return without_empty_columns(["row", *columns, *measures], cells, keep=[*columns, "measured %"])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _telling_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first column, where it tells the rows apart; else all in which rows differ."""
    values = {
        heading: {format_value(row["columns"][heading]) for row in rows}
        for heading in rows[0]["columns"]
    }
    first = next(iter(values))
    varying = [heading for heading, each in values.items() if len(each) > 1]
    return [first] if len(values[first]) == len(rows) or not varying else varying


def _row_label(row: Mapping[str, Any], headings: Sequence[str]) -> str:
    """Its values in these columns."""
    return ", ".join(f"{heading} {format_value(row['columns'][heading])}" for heading in headings)


def _paper(row: Mapping[str, Any]) -> str:
    return " / ".join(f"{value:.2f}" for value in row["paper"].values()) or "-"


def _runs(row: Mapping[str, Any]) -> str:
    """The number of runs of the row's figure, and how the others ended."""
    ends = [run.how for run in missing_from_json(row["runs"]).values()]
    n = 0 if row["measured"] is None else row["measured"]["n"]
    return format_planned(n, ends) if n or ends else "-"
