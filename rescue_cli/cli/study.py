"""`rescue study`: a paper's table, what it found beside what was measured here."""

import json as json_module
from typing import Annotated, Any

import typer
from rich.table import Table

from rescue_cli.cli import common
from rescue_cli.cli.common import Json
from rescue_cli.report import studies

app = common.verb()


def study_names(incomplete: str) -> list[str]:
    """For shell completion."""
    return [name for name in studies.names() if name.startswith(incomplete)]


@app.command(epilog="Example: rescue study rsb-procedures")
def study(
    name: Annotated[
        str | None, typer.Argument(help="All names without.", autocompletion=study_names)
    ] = None,
    json: Json = False,
) -> None:
    """Print a published comparison, with what was measured of it."""
    if name is None:
        for each in studies.names():
            print(each)
        return
    found = studies.load(name)
    rows = studies.rows(found)
    if json:
        print(json_module.dumps({"study": name, "paper": found.paper, "rows": rows}))
        return
    common.console().print(_table(rows))
    said = f"{found.paper['title']}, {found.paper['table']}. Top-1 in percent; measured on val."
    common.console().print(said)


def _table(rows: list[dict[str, Any]]) -> Table:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["paper"]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in rows[0]["columns"]:
        table.add_column(heading)
    for metric in metrics:
        table.add_column(f"paper {metric}", justify="right")
    table.add_column("measured", justify="right")
    for row in rows:
        figures = [row["paper"].get(metric) for metric in metrics]
        table.add_row(
            *(_shown(value) for value in row["columns"].values()),
            *("-" if figure is None else f"{figure:.2f}" for figure in figures),
            common.measured(row["measured"]),
        )
    return table


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)
