"""`rescue tune`: Smith's steps on a recipe by short runs, then the verdict of full ones."""

import json as json_module
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rescue_cli import recipe as recipes
from rescue_cli.cli import common
from rescue_cli.cli.common import Device, Json, Overrides, RecipeName, Workers
from rescue_cli.cli.help import then
from rescue_cli.cli.search import Search
from rescue_cli.errors import RescueError
from rescue_cli.report.tuned import title_of

app = common.verb()


@app.command(
    epilog=then(
        "rescue tune --recipe quickstart --budget 0.5",
        "rescue train --recipe runs/tune/quickstart/tuned.yaml",
    )
)
def tune(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    budget: Annotated[float, typer.Option(help="Hours that this call may take.", min=0.001)] = 1.0,
    seeds: Annotated[
        int, typer.Option(help="Full runs each of the recipe and the tuned one.", min=3)
    ] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/tune/RECIPE by default.")] = None,
    json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Tune batch, rate, momentum and decay (Smith); tuned.yaml where that is better."""
    from rescue_cli.build.check import check_recipe

    begun = time.monotonic()
    where = common.device(device)
    base = recipes.load(common.named_or_default(recipe), overrides or [])
    check_recipe(base)
    base.demand_classification("tune")
    notes = [f"warning: {warning}" for warning in common.check_precision(base, where)]
    folder = common.folder(out or Path("runs", "tune", base.name))
    for line in [str(folder), *notes, *common.allocator_notes()]:
        common.note(line)
    search = Search(base, folder, where, workers, seeds, begun + budget * 3600)
    search.go()
    search.write()
    if json:
        print(json_module.dumps(search.summary))
    else:
        _print(search)
    common.note(str(folder))
    if search.verdict is None:
        raise RescueError(
            "--budget: the time is over and the search is unfinished: there is no tuned.yaml. "
            f"{search.missing}The same command with a larger --budget goes on."
        )


def _print(search: Search) -> None:
    out = common.console()
    out.print(title_of(search.base.name, search.verdict))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("step", "chosen", "why"):
        table.add_column(heading, overflow="fold")
    for decision in search.decisions:
        table.add_row(decision.step, decision.chosen, decision.why)
    out.print(table)
    found = search.verdict
    if found is not None and found.pairs:
        common.print_comparison(found.sides, found.pairs)
    for line in found.said if found else []:
        out.print(line)
    if found is not None and found.better:
        out.print(f"The tuned recipe: {search.folder}/tuned.yaml")
    out.print(f"What was seen: {search.folder}/tune.html")
