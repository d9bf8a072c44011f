"""What a study would cost, before it is begun."""

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from rescue_cli.cli import common
from rescue_cli.recipe import Recipe


def print_plan(runs: Sequence[tuple[int, Recipe, bool]], *, as_json: bool) -> None:
    """Of runs (row, recipe, whether it is done) what is left, in updates and computation."""
    from rescue_cli import build, estimate
    from rescue_cli.recipe import total_steps

    rows: dict[int, dict[str, Any]] = {}
    for number, recipe, done in runs:
        row = rows.setdefault(
            number, {"row": number, "recipe": recipe.name, "runs": 0, "left": 0,
                      "updates": 0, "petaflop": 0.0}
        )  # fmt: skip
        row["runs"] += 1
        if done:
            continue
        per_epoch = build.epoch_length(recipe)
        steps = total_steps(recipe.train, per_epoch)
        row["left"] += 1
        row["updates"] += steps
        row["petaflop"] += 2 * estimate.training(recipe, steps, per_epoch) / 1e15
    if as_json:
        print(json.dumps(list(rows.values())))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("row", "recipe", "runs", "left", "updates", "PFLOP"):
        table.add_column(heading, justify="left" if heading == "recipe" else "right")
    for row in [*rows.values(), _total(rows.values())]:
        table.add_row(
            str(row["row"]), row["recipe"], str(row["runs"]), str(row["left"]),
            f"{row['updates']:,}", f"{row['petaflop']:.3g}",
        )  # fmt: skip
    common.console().print(table)


def _total(rows: Any) -> dict[str, Any]:
    sums = {key: sum(row[key] for row in rows) for key in ("runs", "left", "updates", "petaflop")}
    return {"row": "", "recipe": "in all", **sums}
