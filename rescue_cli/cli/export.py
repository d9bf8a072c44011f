"""`rescue export`: a trained network in other programs' formats, checked by their runtimes."""

from pathlib import Path
from typing import Annotated

import typer

from rescue_cli import api
from rescue_cli.cli import common
from rescue_cli.cli.command import SingleProcess, example_and_next
from rescue_cli.cli.common import Architecture, Json, Overrides, With, Workers
from rescue_cli.runs.console import note

app = common.verb()


@app.command(
    cls=SingleProcess,
    epilog=example_and_next(
        "rescue export runs/quickstart/0 --to onnx --from-pixels",
        "rescue export runs/quickstart/0 --to onnx --check-only",
    ),
)
def export(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|timm:NAME", help="A run, a weights file, or timm weights."
        ),
    ],
    overrides: Overrides = None,
    to: Annotated[
        list[str] | None,
        typer.Option(help="onnx, torch-export or timm; may be given several times."),
    ] = None,
    from_pixels: Annotated[
        bool, typer.Option("--from-pixels", help="Take uint8 pixels, give probabilities.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; default: RUN/export.")] = None,
    subset: Annotated[
        int | None, typer.Option(help="Compare on N test images; default: all.", min=1)
    ] = None,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Compare the files that are there.")
    ] = False,
    push: Annotated[
        str | None, typer.Option(help="Upload timm's folder to this repository of the hub.")
    ] = None,
    model: Architecture = None,
    _code: With = None,
    as_json: Json = False,
    workers: Workers = None,
) -> None:
    """Write a network in other programs' formats, and compare each file on the test images."""
    exported = api.export_weights(
        weights,
        to or [],
        overrides or [],
        model=model,
        out=out,
        from_pixels=from_pixels,
        subset=subset,
        check_only=check_only,
        push=push,
        workers=workers,
    )
    from rescue_cli.export.run import raise_fault  # imports torch: after what needs none

    if as_json:
        common.print_json([one.as_json() for one in exported])
    else:
        console = common.console()
        for one in exported:
            for line in one.lines():
                console.print(line, soft_wrap=True)
    for one in exported:
        if one.folder is not None and one.fault is None:
            note(str(one.folder))
    raise_fault(exported)
