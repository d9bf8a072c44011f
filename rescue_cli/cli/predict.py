"""`rescue predict`: the most probable classes of images."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rescue_cli import api
from rescue_cli.cli import common
from rescue_cli.cli.command import example_and_next
from rescue_cli.cli.common import Architecture, Device, Json, With
from rescue_cli.errors import UsageError
from rescue_cli.recipe import SECTIONS

if TYPE_CHECKING:
    from rescue_cli.inference import Prediction

app = common.verb()


@app.command(
    epilog=example_and_next(
        "rescue predict runs/quickstart/0 coat.png",
        "rescue eval runs/quickstart/0",
    )
)
def predict(
    weights: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|timm:NAME", help="A run, a weights file, or timm weights."
        ),
    ],
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|SECTION.KEY=VALUE",
            help="Images, folders, patterns such as '*.jpg'; changes to the recipe.",
        ),
    ],
    top: Annotated[int, typer.Option(help="Number of classes to print.", min=1)] = 3,
    model: Architecture = None,
    _code: With = None,
    as_json: Json = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a line of CSV for each image.")
    ] = False,
    device: Device = None,
) -> None:
    """Print the most probable classes of images."""
    from rescue_cli.sections.data.listing import printable

    changes = [word for word in words if _is_change(word)]
    images = [Path(word) for word in words if word not in changes]
    if not all(words):
        raise UsageError("predict: the path of an image is empty. Give a file or a folder.")
    if as_json and as_csv:
        raise UsageError("--json and --csv: two formats of one output. Give only one.")
    if not images:
        raise UsageError("predict: no images. Give image files or folders of images.")
    predictions = api.predict(
        weights, images, top=top, model=model, overrides=changes, device=device, progress=True
    )
    if as_json:
        common.print_json(predictions)
        return
    if as_csv:
        _print_csv(predictions)
        return
    rows = [
        [
            "" if rank else printable(image["image"]),
            best["class"],
            f"{100 * best['probability']:.1f}",
        ]
        for image in predictions
        for rank, best in enumerate(image["classes"])
    ]
    headings = ("image", "class", "probability %")
    common.console().print(common.table(headings, rows, words=("image", "class")))


def _print_csv(predictions: "Sequence[Prediction]") -> None:
    """image, class, probability, and the same of the next most probable classes."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    most = len(predictions[0]["classes"])
    more = [f"{name}_{rank}" for rank in range(2, most + 1) for name in ("class", "probability")]
    writer.writerow(["image", "class", "probability", *more])
    for each in predictions:
        pairs = [(best["class"], f"{best['probability']:.6f}") for best in each["classes"]]
        writer.writerow([each["image"], *(value for pair in pairs for value in pair)])


def _is_change(word: str) -> bool:
    """Whether it is an override, and not the name of a file."""
    section = word.removeprefix("~").partition("=")[0].partition(".")[0]
    return ("=" in word or word.startswith("~")) and section in SECTIONS and not Path(word).exists()
