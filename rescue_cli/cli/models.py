"""`rescue models`: the architectures of ResNet strikes back, the paper's figures beside ours."""

import json as json_module
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from rescue_cli.cli import common
from rescue_cli.cli.common import Json
from rescue_cli.cli.expand import model_names
from rescue_cli.cli.help import then
from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe import architectures

app = common.verb()
WIDTH = 80
HEADINGS = ("model", "A1-A2", "A3", "M", "here", "G", "here", "A1 %", "A2 %", "A3 %", "")
LEGEND = (
    "A1-A2, A3: training>test px. M: parameters, millions; G: multiply-adds, 10^9, at A1's test "
    "size; both the paper's (Tables 3 and 4), then as counted here. "
    "%: the paper's top-1 on ImageNet."
)


@app.command(
    epilog=then(
        "rescue models regnety_040", "rescue train --recipe a3 --model regnety_040 data.root=DIR"
    )
)
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="One architecture, with all figures.", autocompletion=model_names
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List the architectures of the paper's tables; train takes each as --model NAME."""
    found = architectures.table()
    row = architectures.row_of(name) if name is not None else None
    if name is not None and row is None:
        known = [entry["name"] for entry in found["architectures"]]
        raise UsageError(f"models: '{name}' is not in the table. {did_you_mean(name, known)}")
    if json:
        print(json_module.dumps(row or found))
    elif row is not None:
        _one(row, found["notes"])
    else:
        _all(found)


def _all(found: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for place, heading in enumerate(HEADINGS):
        numeric = 3 <= place < len(HEADINGS) - 1
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    for row in found["architectures"]:
        ours, top1 = row["ours"], row["top1"]
        table.add_row(
            row["name"],
            *(_sizes(row["sizes"][column]) for column in architectures.COLUMNS),
            f"{row['parameters_m']:.1f}",
            f"{ours['parameters'] / 1e6:.2f}",
            f"{row['flops_g']:.1f}",
            f"{ours['multiply_adds'] / 1e9:.2f}",
            *(f"{top1[key]:.1f}" for key in ("a1", "a2", "a3")),
            "".join(row["notes"]),
        )
    common.console().print(table)
    for line in (LEGEND, *(f"{letter}: {text}." for letter, text in found["notes"].items())):
        print(textwrap.fill(line, WIDTH))


def _one(row: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    ours, top1, costs = row["ours"], row["top1"], row["cost"]
    with_norms = ours["multiply_adds"] + 5 * ours["normalised"]
    published = "not given" if top1["original"] is None else f"{top1['original']:.1f} %"
    print(f"{row['paper']}, in timm {row['name']}")
    _table(
        ("", "paper", "here"),
        ("parameters, M", f"{row['parameters_m']:.1f}", f"{ours['parameters'] / 1e6:.3f}"),
        ("multiply-adds, G", f"{row['flops_g']:.1f}", f"{ours['multiply_adds'] / 1e9:.3f}"),
        ("with 5 a normalised element", "", f"{with_norms / 1e9:.3f}"),
        ("inference, images/s", f"{row['images_per_second']:.1f}", "not run"),
        ("inference, peak MB", str(row["memory_mb"]), "not run"),
    )
    _table(
        ("procedure", "px", "hours", "GPUs", "GB a GPU", "top-1 %"),
        *(
            (
                key.upper(),
                _sizes(row["sizes"]["a3" if key == "a3" else "a1-a2"]),
                str(cost["hours"]),
                str(cost["gpus"]),
                f"{cost['memory_gb']:.1f}",
                f"{top1[key]:.1f}",
            )
            for key, cost in costs.items()
        ),
    )
    print(
        f"A1 on ReaL {row['real']:.1f} %, on V2 {row['v2']:.1f} %; its own publication {published}"
    )
    for letter in row["notes"]:
        print(textwrap.fill(f"{letter}: {notes[letter]}.", WIDTH))


def _table(headings: tuple[str, ...], *rows: tuple[str, ...]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    common.console().print(table)


def _sizes(pair: list[int]) -> str:
    """`160>224`, or one number where training and test size are the same."""
    train, test = pair
    return str(train) if train == test else f"{train}>{test}"
