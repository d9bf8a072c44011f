"""`rescue eval`: a run's or a file's weights on test sets, sizes and crops."""

from pathlib import Path
from typing import Annotated

import typer

from rescue_cli.api import evaluate_weights
from rescue_cli.cli import common
from rescue_cli.cli.common import Architecture, Device, Json, Overrides, Procs, RecipeName, Workers
from rescue_cli.cli.help import then
from rescue_cli.rundir import RunDirectory, read_result
from rescue_cli.runs.console import note

app = common.verb()


@app.command(
    "eval",
    epilog=then("rescue eval runs/quickstart/0", "rescue predict runs/quickstart/0 IMAGE"),
)
def evaluate(
    weights: Annotated[
        str,
        typer.Argument(metavar="RUN|FILE|timm:NAME", help="Run, weights file, or timm's weights."),
    ],
    overrides: Overrides = None,
    recipe: RecipeName = None,
    model: Architecture = None,
    sets: Annotated[str | None, typer.Option(help="Test sets: val,real,v2")] = None,
    sizes: Annotated[str | None, typer.Option(help="Sizes in pixels: 224,288")] = None,
    crops: Annotated[str | None, typer.Option(help="Crop ratios: 0.875,0.95")] = None,
    tta: Annotated[str | None, typer.Option(help="Test-time augmentations: flip,none")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; RUN/evals/N by default.")] = None,
    json: Json = False,
    device: Device = None,
    procs: Procs = None,
    workers: Workers = None,
) -> None:
    """Evaluate weights as training does: every image once, one table."""
    for line in common.allocator_notes():
        note(line)
    run = evaluate_weights(
        weights,
        [*common.with_lists(sets, sizes, crops, tta), *(overrides or [])],
        recipe=recipe,
        model=model,
        out=out,
        device=device,
        procs=procs,
        workers=workers,
    )
    result = read_result(RunDirectory(run.path), summarised=True)
    common.print_result(result, as_json=json)
    note(str(run.path))
