"""`rescue predict`: what a network says of images."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from rescue_cli import api
from rescue_cli.cli import common
from rescue_cli.cli.common import Architecture, Device, Json
from rescue_cli.cli.help import then
from rescue_cli.errors import UsageError
from rescue_cli.recipe import SECTIONS

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
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|SECTION.KEY=VALUE",
            help="Image files, or folders of them. Changes: data.exif=ignored.",
        ),
    ],
    top: Annotated[int, typer.Option(help="Classes to show.", min=1)] = 3,
    model: Architecture = None,
    json: Json = False,
    device: Device = None,
) -> None:
    """Print the most probable classes of images."""
    from rescue_cli.sections.data.names import shown

    changes = [word for word in words if _is_change(word)]
    images = [Path(word) for word in words if word not in changes]
    if not all(words):
        raise UsageError("predict: one of the images is an empty word. Name a file or a folder.")
    if not images:
        raise UsageError("predict: no image. Give the files or folders that are to be classified.")
    found = api.predict(
        weights, images, top=top, model=model, overrides=changes, device=device, progress=True
    )
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


def _is_change(word: str) -> bool:
    """Whether it is an override, and no file of that name."""
    section = word.removeprefix("~").partition("=")[0].partition(".")[0]
    return ("=" in word or word.startswith("~")) and section in SECTIONS and not Path(word).exists()
