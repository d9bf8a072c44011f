"""A study's part of the page: its table, and its rows as a picture, paper beside measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rescue_cli.analysis.stats import Sample
from rescue_cli.analysis.study import format_value
from rescue_cli.errors import DataError
from rescue_cli.formatting import shown_seconds
from rescue_cli.metrics.names import METRICS
from rescue_cli.report.markup import image, listed, table, text
from rescue_cli.report.pictures import new_figure
from rescue_cli.report.table import ResultLine
from rescue_cli.rundir import check_keys, read_json
from rescue_cli.rundir.planned import lost_in, of_planned
from rescue_cli.rundir.validation import (
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

FILE = "study.json"  # what `rescue study` leaves in its folder
STUDY = {
    "study": TEXT, "source": TEXT, "command": TEXT, "rows": OBJECTS,
    "pairs": Rule("a list of objects", lambda v: v == [] or OBJECTS.holds(v)),
}  # fmt: skip
FIGURES = Rule(
    "percentages by name", lambda v: MAPPING.holds(v) and all(map(NUMBER.holds, v.values()))
)
REASONS = Rule("texts by name", lambda v: MAPPING.holds(v) and all(map(TEXT.holds, v.values())))
ROW = {
    "row": COUNT, "recipe": TEXT.or_null(), "paper": FIGURES, "measured": MAPPING.or_null(),
    "seconds_train": POSITIVE.or_null(), "runs": MAPPING,
    "columns": Rule("an object, and not an empty one", lambda v: MAPPING.holds(v) and bool(v)),
}  # fmt: skip
TEXTS = Rule("a list of texts", lambda v: LIST.holds(v) and all(map(TEXT.holds, v)))
RUNS = {"n": STEP, "diverged": REASONS, "failed": REASONS, "not_run": LIST}
MEASURED = {
    "mean": PERCENT, "std": POSITIVE.or_null(), "n": COUNT, "p": PERCENT.or_null(),
}  # fmt: skip


def is_study(path: Path) -> bool:
    """Whether `rescue study` has worked in this folder."""
    return (path / FILE).is_file()


def study_lines(path: Path) -> list[ResultLine]:
    """The rows that were measured, for the table of all results."""
    found = []
    for row in _kept(path)["rows"]:
        if (measured := row["measured"]) is not None:
            paper = next((Sample(value, None, 1) for value in row["paper"].values()), None)
            ours = Sample(measured["mean"], measured["std"], measured["n"])
            name = f"{path}, row {row['row']}"
            lost = lost_in(row["runs"]) if row["runs"]["n"] else {}  # else it is one on record
            found.append(
                ResultLine(name, row["recipe"], "-", paper, ours, row["seconds_train"], lost)
            )
    return found


def _kept(path: Path) -> dict[str, Any]:
    """What `rescue study` left; raises `DataError` for an older version's, or what was changed."""
    file = path / FILE
    found = read_json(file)
    name = found["study"] if TEXT.holds(found.get("study")) else "NAME"
    cure = f"Write it anew, an older version wrote it: rescue study {name} --out {path}"
    check_keys(file, found, STUDY, cure)
    for place, row in enumerate(found["rows"]):
        at = f"rows[{place}]."
        check_keys(file, row, ROW, cure, at)
        check_keys(file, row["runs"], RUNS, cure, f"{at}runs.")
        if row["measured"] is not None:
            check_keys(file, row["measured"], MEASURED, cure, f"{at}measured.")
        if row["columns"].keys() != found["rows"][0]["columns"].keys():
            raise DataError(f"{file}: {at}columns: not those of the first row. {cure}")
    for place, pair in enumerate(found["pairs"]):
        check_keys(file, pair, {"claim": TEXT, "details": TEXTS}, cure, f"pairs[{place}].")
    return found


def study_section(path: Path) -> str:
    """The study's heading, source, table, picture, and the command that goes on with it."""
    found = _kept(path)
    measured = [row for row in found["rows"] if row["measured"] is not None]
    parts = [
        f"<h2>{text(path)}: study {text(found['study'])}</h2>",
        f"<p>Source: {text(found['source'])}. {len(measured)} of {len(found['rows'])} rows are "
        "measured.</p>",
        _table(found["rows"]),
    ]
    if measured:
        parts.append(image(_picture(measured)))
    if any(row["paper"] for row in found["rows"]):
        parts.append(
            "<p class=dim>p: how probable so large a difference from the paper is by chance, "
            "each row for itself; a side without a std is taken to scatter like the other. A large "
            "p does not show that they agree.</p>"
        )
    if found["pairs"]:
        parts.append(listed((pair["claim"], pair["details"]) for pair in found["pairs"]))
    return "\n".join([*parts, f"<p>To go on with it:</p><pre>{text(found['command'])}</pre>"])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0]["columns"])
    published = any(row["paper"] for row in rows)
    lines = []
    for row in rows:
        ours = row["measured"]
        chance = None if ours is None else ours["p"]
        lines.append(
            [
                str(row["row"]), *(format_value(row["columns"][name]) for name in columns),
                *([_paper(row)] if published else []),
                "-" if ours is None else f"{ours['mean']:.2f}",
                "-" if ours is None else _spread(ours), _runs(row),
                *(["-" if chance is None else f"{chance:.2g}"] if published else []),
                "-" if row["seconds_train"] is None else shown_seconds(row["seconds_train"]),
            ]
        )  # fmt: skip
    paper, p = (["paper %"], ["p"]) if published else ([], [])
    headings = ["row", *columns, *paper, "measured %", "std", "runs", *p, "train s"]
    return table(headings, lines)


def _picture(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The measured rows from above, with one standard deviation, beside the paper's figures."""
    figure = new_figure(7, 1.2 + 0.32 * len(rows))
    axes = figure.subplots()
    places = [-row["row"] for row in rows]
    axes.errorbar(
        [row["measured"]["mean"] for row in rows],
        places,
        xerr=[row["measured"]["std"] or 0.0 for row in rows],
        fmt="o",
        label="measured ± std",
    )
    published = [row for row in rows if row["paper"]]
    axes.scatter(
        [next(iter(row["paper"].values())) for row in published],
        [-row["row"] for row in published],
        marker="D",
        facecolors="none",
        edgecolors="tab:red",
        label="paper" if published else None,
    )
    axes.set_yticks(places, [_named(row) for row in rows], fontsize=8)
    axes.set_ylim(min(places) - 0.7, max(places) + 0.7)
    first = next((metric for row in rows for metric in row["paper"] if metric in METRICS), "top1")
    axes.set_xlabel(METRICS[first])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['row']}: {format_value(next(iter(row['columns'].values())))}"


def _paper(row: Mapping[str, Any]) -> str:
    return " / ".join(f"{value:.2f}" for value in row["paper"].values()) or "-"


def _runs(row: Mapping[str, Any]) -> str:
    """How many runs the row's figure is of, and how the others ended."""
    lost = [one.how for one in lost_in(row["runs"]).values()]
    n = 0 if row["measured"] is None else row["measured"]["n"]
    return of_planned(n, lost) if n or lost else "-"


def _spread(measured: Mapping[str, Any]) -> str:
    return "-" if measured["std"] is None else f"{measured['std']:.2f}"
