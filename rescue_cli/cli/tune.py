"""`rescue tune`: Smith's steps on a recipe by short runs, then the verdict of full ones."""

import time
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli import recipe as recipes
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb
from rescue_cli.cli.common import Device, Json, Overrides, RecipeName, Workers
from rescue_cli.cli.help import then
from rescue_cli.cli.search import Search
from rescue_cli.errors import RescueError
from rescue_cli.report.tuned import title_of

app = common.verb()


@app.command(
    cls=ComputingVerb,
    epilog=then(
        "rescue tune --recipe quickstart --budget 0.5",
        "rescue train --recipe runs/tune/quickstart/tuned.yaml",
    ),
)
def tune(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    budget: Annotated[
        float, typer.Option(help="Hours that this command may take.", min=0.001)
    ] = 1.0,
    seeds: Annotated[
        int, typer.Option(help="Full runs of each recipe, original and tuned.", min=3)
    ] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder; default: runs/tune/RECIPE.")] = None,
    as_json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Tune batch size, learning rate, momentum and weight decay by short runs (Smith)."""
    from rescue_cli import build

    begun = time.monotonic()
    where = common.device(device)
    base = recipes.load(common.named_or_default(recipe), overrides or [])
    build.check(base)
    base.demand_classification("tune")
    notes = [f"warning: {warning}" for warning in common.check_precision(base, where)]
    folder = common.folder(out or Path("runs", "tune", base.name))
    for line in [str(folder), *notes]:
        common.note(line)
    search = Search(base, folder, where, workers, seeds, begun + budget * 3600)
    search.go()
    search.write()
    if as_json:
        common.print_json(search.summary)
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
    headings = ("step", "chosen", "why")
    rows = [[decision.step, decision.chosen, decision.why] for decision in search.decisions]
    out.print(common.table(headings, rows, words=headings))
    found = search.verdict
    if found is not None and found.pairs:
        common.print_comparison(found.sides, found.pairs)
    for line in found.said if found else []:
        out.print(line)
    if found is not None and found.better:
        out.print(f"The tuned recipe: {search.folder}/tuned.yaml")
    out.print(f"What was seen: {search.folder}/tune.html")
