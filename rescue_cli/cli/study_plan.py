"""What a study would cost, before it is begun."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from rich.table import Table

from rescue_cli.analysis.study import shown
from rescue_cli.cli import common
from rescue_cli.formatting import significant
from rescue_cli.recipe import Recipe

Rows = Collection[Mapping[str, Any]]


def print_plan(
    runs: Sequence[tuple[int, Recipe, bool, int | Literal["last"]]],
    columns: Mapping[int, Mapping[str, Any]],
    images_per_second: float | None,
    *,
    as_json: bool,
) -> None:
    """Of runs (row, recipe, whether it is done, the steps behind it) what is left: steps, images,
    computation, and hours where a speed is given; a row by what its study's `columns` have of it.
    """
    from rescue_cli import estimate
    from rescue_cli.build.outline import epoch_length
    from rescue_cli.recipe import total_steps

    rows: dict[int, dict[str, Any]] = {}
    for number, recipe, done, before in runs:
        row = rows.setdefault(
            number, {"row": number, "recipe": recipe.name, "columns": columns[number], "runs": 0,
                      "left": 0, "updates": 0, "images": 0, "petaflop": 0.0, "hours": None}
        )  # fmt: skip
        row["runs"] += 1
        if done:
            continue
        per_epoch = epoch_length(recipe)
        whole = total_steps(recipe.train, per_epoch)
        steps = 0 if before == "last" else whole - before
        row["left"] += 1
        row["updates"] += steps
        row["images"] += steps * recipe.train.batch_size
        row["petaflop"] += estimate.petaflop(recipe, steps, per_epoch)
    for row in rows.values():
        if images_per_second is not None:
            row["hours"] = row["images"] / images_per_second / 3600
    if as_json:
        print(json.dumps(list(rows.values())))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = ", ".join(next(iter(columns.values())))
    table.add_column("row", justify="right")
    table.add_column(headings, overflow="fold")
    for heading in ("runs", "left", "steps", "images", "PFLOP", "hours"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in [*rows.values(), _total(rows.values())]:
        table.add_row(
            str(row["row"]), ", ".join(map(shown, row["columns"].values())),
            str(row["runs"]), str(row["left"]), f"{row['updates']:,}", f"{row['images']:,}",
            f"{significant(row['petaflop'])}",
            "-" if row["hours"] is None else f"{row['hours']:,.1f}",
        )  # fmt: skip
    common.console().print(table)


def _total(rows: Rows) -> dict[str, Any]:
    keys = ("runs", "left", "updates", "images", "petaflop", "hours")
    timed = all(row["hours"] is not None for row in rows)
    sums = {key: sum(row[key] for row in rows) for key in (keys if timed else keys[:-1])}
    return {"row": "", "columns": {"": "in all"}, "hours": None, **sums}
