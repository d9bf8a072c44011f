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
from rescue_cli.errors import DataError, UsageError
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
    """Print the most probable classes of images.

    A file that cannot be decoded has an error in their place, and the exit code is 3.
    """
    changes = [word for word in words if _is_change(word)]
    images = [Path(word) for word in words if word not in changes]
    if not all(words):
        raise UsageError("predict: the path of an image is empty. Give a file or a folder.")
    if as_json and as_csv:
        raise UsageError("--json and --csv: two formats of one output. Give only one.")
    if not images:
        raise UsageError("predict: no images. Give image files or folders of images.")
    predictions = api.predict(
        weights, images, top=top, model=model, overrides=changes, device=device, progress=True,
        keep_broken=True,
    )  # fmt: skip
    if as_json:
        common.print_json(predictions)
    elif as_csv:
        _print_csv(predictions)
    else:
        _print_table(predictions)
    broken = [f"{each['image']}: {each['error']}" for each in predictions if "error" in each]
    if len(broken) == 1:
        raise DataError(f"{broken[0]}. Repair or remove it.")
    if broken:
        raise DataError(
            f"{len(broken):,} of {len(predictions):,} images cannot be decoded; the first is "
            f"{broken[0]}. Repair or remove them."
        )


def _print_table(predictions: "Sequence[Prediction]") -> None:
    """A line for each class of an image, or for its error."""
    from rescue_cli.sections.data.listing import printable

    rows = []
    for image in predictions:
        lines = [(one["class"], f"{100 * one['probability']:.1f}") for one in image["classes"]]
        for rank, cells in enumerate(lines or [(image["error"], "-")]):
            rows.append(["" if rank else printable(image["image"]), *cells])
    headings = ("image", "class", "probability %")
    common.console().print(common.table(headings, rows, words=("image", "class")))


def _print_csv(predictions: "Sequence[Prediction]") -> None:
    """image, class, probability, the same of the next most probable classes, and the error of a
    file that cannot be decoded.
    """
    most = max(len(each["classes"]) for each in predictions) or 1
    more = [f"{name}_{rank}" for rank in range(2, most + 1) for name in ("class", "probability")]
    columns = ["image", "class", "probability", *more, "error"]
    writer = csv.DictWriter(sys.stdout, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for each in predictions:
        pairs = [(best["class"], f"{best['probability']:.6f}") for best in each["classes"]]
        values = [value for pair in pairs for value in pair]
        row = dict(zip(columns[1:], values, strict=False))
        writer.writerow({"image": each["image"], **row, "error": each.get("error", "")})


def _is_change(word: str) -> bool:
    """Whether it is an override, and not the name of a file."""
    section = word.removeprefix("~").partition("=")[0].partition(".")[0]
    return ("=" in word or word.startswith("~")) and section in SECTIONS and not Path(word).exists()
