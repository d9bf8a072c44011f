"""`rescue predict`: what a network says of images."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rescue_cli.cli import common
from rescue_cli.cli.common import Architecture, Device, Json
from rescue_cli.cli.screen import then

app = common.verb()


@app.command(
    epilog=then(
        "rescue predict runs/quickstart/0 coat.png",
        "rescue eval runs/quickstart/0",
    )
)
def predict(
    weights: Annotated[
        str,
        typer.Argument(metavar="RUN|FILE|timm:NAME", help="Run, weights file, or timm's weights."),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")
    ],
    top: Annotated[int, typer.Option(help="Classes to show.", min=1)] = 3,
    model: Architecture = None,
    json: Json = False,
    device: Device = None,
) -> None:
    """Print the most probable classes of images."""
    from rescue_cli.data.names import shown
    from rescue_cli.prediction import predict_images

    where = common.device(device)
    found = predict_images(weights, images, top, where, model=model, note=common.note)
    if json:
        print(json_module.dumps(found))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability %", justify="right")
    for entry in found:
        for place, guess in enumerate(entry["classes"]):
            name = "" if place else shown(entry["image"])
            table.add_row(name, guess["class"], f"{100 * guess['probability']:.1f}")
    common.console().print(table)
