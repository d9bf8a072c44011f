"""What the verbs share: finding the recipe, the device, and printing a result."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from rescue_cli import recipe as recipes
from rescue_cli.analysis.measurements import WORDS, measurements, of_images, with_interval
from rescue_cli.cli.help import App, Group
from rescue_cli.errors import UsageError
from rescue_cli.runs.console import note

if TYPE_CHECKING:
    from rescue_cli.analysis.sides import Operand

DEFAULT = "quickstart"
NO_RECIPE = f"no --recipe given: {DEFAULT}"


def verb(**options: Any) -> typer.Typer:
    """The app of one verb; `rescue` adds completion and the rest."""
    return App(
        add_completion=False,
        rich_markup_mode=None,
        cls=Group,
        context_settings={"help_option_names": ["-h", "--help"]},
        **options,
    )


def recipe_names(incomplete: str) -> list[str]:
    """For shell completion."""
    return [name for name in recipes.names() if name.startswith(incomplete)]


def override_keys(incomplete: str) -> list[str]:
    """Section names, for shell completion of overrides."""
    return [f"{s}." for s in recipes.SECTIONS if s.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Changes to the recipe.",
        autocompletion=override_keys,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="Name or path of a recipe.", autocompletion=recipe_names),
]
Architecture = Annotated[
    str | None,
    typer.Option("--model", help="timm's name of the network, where the weights say none."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu or cuda; by default cuda where there is one.")
]
Procs = Annotated[int | None, typer.Option(help="Processes in all, through torchrun.", min=1)]
Workers = Annotated[int | None, typer.Option(help="Loader workers a process.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON.")]


def folder(path: Path) -> Path:
    """The path, where results are to stand; raises `UsageError` for a file."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out: {path} is a file. Give a folder.")
    return path


def allocator_notes() -> list[str]:
    """Whether this process runs with settings for malloc that nobody typed."""
    from rescue_cli.runs import allocator

    return [allocator.SAID] if allocator.in_force() else []


def console() -> Console:
    return Console(highlight=False, markup=False)


def named_or_default(name: str | None) -> str:
    if name is None:
        note(NO_RECIPE)
    return name or DEFAULT


def print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
    """A run's result on stdout: a table, or one JSON object."""
    if as_json:
        print(json.dumps({**result, **with_interval(result)}))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    headings, rows = measurements(result, narrow=True)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in WORDS else "right")
    for row in rows:
        table.add_row(*row)
    out = console()
    out.print(table)
    for line in of_images(result):
        out.print(line)
    out.print(_summary(result), highlight=False, soft_wrap=True)


def _summary(result: Mapping[str, Any]) -> str:
    """Size and cost of the run, and what every row's protocol shares."""
    protocol = result["protocol"]
    seed = "" if result["seed"] is None else f", seed {result['seed']}"
    lines = [
        f"{result['recipe']}{seed}: {result['parameters']:,} parameters, "
        f"{protocol['precision']}, weights {protocol['weights']}",
        _preprocessing(protocol),
    ]
    if result["steps"]:
        lines.append(
            f"{result['epochs']:g} epochs, {result['steps']:,} steps"
            + ("" if (peak := result["peak_memory_mb"]) is None else f", peak {peak:,.0f} MB")
        )
    return "\n".join([*lines, *_clocks(result)])


def _clocks(result: Mapping[str, Any]) -> list[str]:
    """The run's seconds with what each of them includes; what is outside is in none of them."""
    rate = f"{result['images_per_second']:.0f} images/s"
    trained = bool(result["steps"])
    parts = {
        "seconds_prepare": "to prepare: data, network and its whitening, first augmented batch"
        if trained
        else "to prepare: data, network, weights",
        "seconds_train": f"to train ({rate}): steps, augmentation, compilation",
        "seconds_eval": "to evaluate: every evaluation of the run, with its TTA"
        if trained
        else f"to evaluate ({rate}): decoding, network, TTA",
    }
    shown = {key: said for key, said in parts.items() if trained or key != "seconds_train"}
    return [f"{result[key]:.1f} s {said}" for key, said in shown.items()]


def _preprocessing(protocol: Mapping[str, Any]) -> str:
    """`decoder pil, bicubic, mean 0.5 0.5 0.5, std ...; size, mean by metadata; crop by timm`."""
    numbers = {key: " ".join(f"{v:g}" for v in protocol[key]) for key in ("mean", "std")}
    origins: dict[str, list[str]] = {}
    for key, origin in protocol["preprocessing"].items():
        origins.setdefault(origin, []).append(key)
    words = [f"{', '.join(keys)} by {origin}" for origin, keys in origins.items()]
    told = "" if set(origins) == {"recipe"} else "; " + "; ".join(words)
    return (
        f"decoder {protocol['decoder']}, {protocol['interpolation']}, "
        f"{_of_files(protocol)}mean {numbers['mean']}, std {numbers['std']}{told}"
    ).replace("by given", "as given")


def _of_files(protocol: Mapping[str, Any]) -> str:
    """How files became pixels, where that was not as usual."""
    words = {"exif": "EXIF orientation", "background": "background", "range": "range"}
    told = [f"{said} {protocol[key]}" for key, said in words.items() if protocol.get(key)]
    return "".join(f"{each}, " for each in told)


def measured(figure: Mapping[str, Any] | None) -> str:
    """Mean top-1, standard deviation and number of runs, as tables show them."""
    if figure is None:
        return "not run"
    spread = "" if figure["std"] is None else f" ± {figure['std']:.2f}"
    return f"{figure['mean']:.2f}{spread} ({figure['n']})"


def with_lists(
    sets: str | None, sizes: str | None, crops: str | None, tta: str | None
) -> Sequence[str]:
    """The overrides that `eval`'s list options stand for."""
    found = []
    for key, value in (("sets", sets), ("sizes", sizes), ("crops", crops), ("tta", tta)):
        if value is not None:
            found.append(f"eval.{key}=[{value}]")
    return found


def print_comparison(sides: Sequence["Operand"], pairs: Sequence[Mapping[str, Any]]) -> None:
    """Each side's mean, then what may be claimed of each pair, and by which test."""
    from rescue_cli.analysis.claims import details
    from rescue_cli.analysis.compare import told

    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "mean %", "std", "runs", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    known = told(sides)
    for side in known:
        std, low, high = side["std"], side["low"], side["high"]
        mark = "*" if side["over"] == "images" else ""
        table.add_row(
            side["name"], f"{side['mean']:.2f}", "-" if std is None else f"{std:.2f}",
            side["runs"], "-" if low is None else f"{low:.2f} to {high:.2f}{mark}",
        )  # fmt: skip
    out.print(table)
    if any(side["over"] == "seeds" and side["n"] > 1 for side in known):
        out.print("95 % interval: of the mean, over new seeds on these test images")
    if any(side["over"] == "images" for side in known):
        out.print("* of this one network, over new test images")
    for pair in pairs:
        out.print(pair["claim"])
        for line in details(pair):
            out.print(f"  {line}")
