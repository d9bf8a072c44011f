"""`rescue models`: the architectures of ResNet strikes back, with paper and counted figures."""

import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from rescue_cli.cli import common
from rescue_cli.cli.command import WIDTH, example_and_next
from rescue_cli.cli.common import Json, model_names
from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe import architectures

app = common.verb()
HEADINGS = ("model", "A1-A2", "A3", "M", "here", "G", "here", "A1 %", "A2 %", "A3 %", "")
WORDS = ("model", "A1-A2", "A3", "")
LEGEND = (
    "A1-A2, A3: training>test size in pixels. M: million parameters; G: 10^9 multiply-adds at A1's "
    "test size; each from the paper (Tables 3 and 4), then counted here. "
    "%: the paper's top-1 accuracy on ImageNet."
)


@app.command(
    epilog=example_and_next(
        "rescue models regnety_040", "rescue train --recipe a3 --model regnety_040 data.root=DIR"
    )
)
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Print all figures of one architecture; without it, list all.",
            autocompletion=model_names,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the architectures of the paper's tables, for train --model NAME."""
    everything = architectures.table()
    row = architectures.row_of(name) if name is not None else None
    if name is not None and row is None:
        known = [entry["name"] for entry in everything["architectures"]]
        raise UsageError(f"models: '{name}' is not in the table. {did_you_mean(name, known)}")
    if as_json:
        common.print_json(row or everything)
    elif row is not None:
        _print_one(row, everything["notes"])
    else:
        _print_all(everything)


def _print_all(everything: Mapping[str, Any]) -> None:
    rows = [
        [
            row["name"],
            *(_sizes(row["sizes"][column]) for column in architectures.COLUMNS),
            f"{row['parameters_m']:.1f}",
            f"{row['ours']['parameters'] / 1e6:.2f}",
            f"{row['flops_g']:.1f}",
            f"{row['ours']['multiply_adds'] / 1e9:.2f}",
            *(f"{row['top1'][key]:.1f}" for key in ("a1", "a2", "a3")),
            "".join(row["notes"]),
        ]
        for row in everything["architectures"]
    ]
    common.console().print(common.table(HEADINGS, rows, words=WORDS, gap=1))
    for line in (LEGEND, *(f"{letter}: {text}." for letter, text in everything["notes"].items())):
        print(textwrap.fill(line, WIDTH))


def _print_one(row: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    ours, top1, costs = row["ours"], row["top1"], row["cost"]
    with_norms = ours["multiply_adds"] + 5 * ours["normalised"]
    published = "not given" if top1["original"] is None else f"{top1['original']:.1f} %"
    print(f"{row['paper']}, in timm {row['name']}")
    figures = [
        ["parameters, M", f"{row['parameters_m']:.1f}", f"{ours['parameters'] / 1e6:.3f}"],
        ["multiply-adds, G", f"{row['flops_g']:.1f}", f"{ours['multiply_adds'] / 1e9:.3f}"],
        ["with 5 per normalised element", "", f"{with_norms / 1e9:.3f}"],
        ["inference, images/s", f"{row['images_per_second']:.1f}", "not run"],
        ["inference, peak MB", str(row["memory_mb"]), "not run"],
    ]
    procedures = [
        [
            key.upper(),
            _sizes(row["sizes"]["a3" if key == "a3" else "a1-a2"]),
            str(cost["hours"]),
            str(cost["gpus"]),
            f"{cost['memory_gb']:.1f}",
            f"{top1[key]:.1f}",
        ]
        for key, cost in costs.items()
    ]
    headings = ("procedure", "px", "hours", "GPUs", "GB per GPU", "top-1 %")
    out = common.console()
    out.print(common.table(("", "paper", "here"), figures, words=[""]))
    out.print(common.table(headings, procedures, words=["procedure"]))
    print(f"A1 on ReaL {row['real']:.1f} %, on V2 {row['v2']:.1f} %; in its own paper {published}")
    for letter in row["notes"]:
        print(textwrap.fill(f"{letter}: {notes[letter]}.", WIDTH))


def _sizes(pair: list[int]) -> str:
    """`160>224`, or one number where training and test size are the same."""
    train, test = pair
    return str(train) if train == test else f"{train}>{test}"
