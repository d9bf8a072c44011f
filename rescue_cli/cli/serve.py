"""`rescue serve`: a page to try a network in a browser, and a JSON endpoint."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from rescue_cli.cli import common
from rescue_cli.cli.command import example_and_next
from rescue_cli.cli.common import Architecture, Device, With
from rescue_cli.errors import UsageError
from rescue_cli.rundir import RunDirectory
from rescue_cli.runs.console import note

app = common.verb()
PORT = 8000


@app.command(
    epilog=example_and_next(
        "rescue serve runs/quickstart/0",
        "curl -F file=@coat.png http://127.0.0.1:8000/predict",
    )
)
def serve(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|timm:NAME", help="A run, a weights file, or timm weights."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = PORT,
    top: Annotated[int, typer.Option(help="Number of classes to return.", min=1)] = 3,
    max_mb: Annotated[float, typer.Option(help="Largest image file in megabytes.", min=0.001)] = 20,
    model: Architecture = None,
    _code: With = None,
    device: Device = None,
) -> None:
    """Classify images from a browser or over HTTP, one at a time, until Ctrl-C."""
    from rescue_cli.inference import load_classifier
    from rescue_cli.report.page import describe_run
    from rescue_cli.runs.environment import select_device
    from rescue_cli.serving import make_server

    classifier = load_classifier(weights, select_device(device), model=model)
    for line in classifier.notes:
        note(line)
    run = RunDirectory(Path(weights).expanduser())
    result = describe_run(run.path) if run.finished else ""
    limit = round(max_mb * 1e6)
    try:
        server = make_server(
            classifier, host, port, top=top, max_bytes=limit, name=weights, result=result
        )
    except OSError as error:
        raise UsageError(
            f"--host, --port: {host}:{port}: {error.strerror}. Give others; --port 0 takes a free "
            "one."
        ) from None
    with server, contextlib.suppress(KeyboardInterrupt):
        address, bound = server.server_address[:2]
        note(
            f"open http://{address!s}:{bound}/ in a browser, or POST an image to /predict; "
            "Ctrl-C ends it"
        )
        server.serve_forever()
