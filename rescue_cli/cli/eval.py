"""`rescue eval`: weights of a run or a file on test sets, at several sizes and crops."""

from pathlib import Path
from typing import Annotated

import typer

from rescue_cli.api import evaluate_weights
from rescue_cli.cli import common
from rescue_cli.cli.command import ComputingVerb, example_and_next
from rescue_cli.cli.common import (
    Architecture,
    Device,
    Json,
    Overrides,
    Procs,
    RecipeName,
    With,
    Workers,
)
from rescue_cli.rundir import RunDirectory, read_result
from rescue_cli.runs.console import note

app = common.verb()


@app.command(
    "eval",
    cls=ComputingVerb,
    epilog=example_and_next(
        "rescue eval runs/quickstart/0", "rescue predict runs/quickstart/0 IMAGE"
    ),
)
def evaluate(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|timm:NAME", help="A run, a weights file, or timm weights."
        ),
    ],
    overrides: Overrides = None,
    recipe: RecipeName = None,
    _code: With = None,
    model: Architecture = None,
    sets: Annotated[str | None, typer.Option(help="Test sets: val,real,v2.")] = None,
    sizes: Annotated[str | None, typer.Option(help="Image sizes in pixels: 224,288.")] = None,
    crops: Annotated[str | None, typer.Option(help="Crop ratios: 0.875,0.95.")] = None,
    tta: Annotated[str | None, typer.Option(help="Test-time augmentations: flip,none.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: RUN/evals/N.")] = None,
    as_json: Json = False,
    device: Device = None,
    procs: Procs = None,
    workers: Workers = None,
) -> None:
    """Evaluate weights on test sets, at several sizes and crops; print one table."""
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
    common.print_result(result, as_json=as_json)
    note(str(run.path))
