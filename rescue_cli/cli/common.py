"""What the verbs share: options, finding the recipe and the device, and printing."""

import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from rescue_cli import recipe as recipes
from rescue_cli.cli.command import App, Group
from rescue_cli.cli.completion import complete_override
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, architectures
from rescue_cli.recipe.own import give
from rescue_cli.runs.console import note
from rescue_cli.terminal import Words, least_width

if TYPE_CHECKING:
    from rescue_cli.analysis.sides import Side

DEFAULT = "quickstart"
NO_RECIPE = f"no --recipe given: using {DEFAULT}"


def verb(**options: Any) -> typer.Typer:
    """The app of one verb, without options for shell completion: those are `rescue`'s."""
    return App(**{"add_completion": False, "rich_markup_mode": None, "cls": Group, **options})


def recipe_names(incomplete: str) -> list[str]:
    """For shell completion."""
    return [name for name in recipes.names() if name.startswith(incomplete)]


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE",
        help="Changes to the recipe.",
        autocompletion=complete_override,
    ),
]


def _recipe_option(default: str) -> Any:
    return typer.Option(
        "-r",
        "--recipe",
        help=f"Name or path of a recipe.{default}",
        autocompletion=recipe_names,
    )


# NamedRecipe: of a verb that has a default of its own, or none
NamedRecipe = Annotated[str | None, _recipe_option("")]
RecipeName = Annotated[str | None, _recipe_option(f" [{DEFAULT}]")]
Architecture = Annotated[
    str | None,
    typer.Option("--model", help="timm name of the model, for weights that do not name it."),
]


def model_names(incomplete: str) -> list[str]:
    """The paper's architectures, for shell completion."""
    rows = architectures.table()["architectures"]
    return [row["name"] for row in rows if row["name"].startswith(incomplete)]


Model = Annotated[
    str | None,
    typer.Option(help="Train this network; see `rescue models`.", autocompletion=model_names),
]
Epochs = Annotated[
    float | None,
    typer.Option(help="Train this many epochs; warm-up and milestones scale."),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if available.")]
Procs = Annotated[int | None, typer.Option(help="Number of processes (torchrun).", min=1)]
Workers = Annotated[int | None, typer.Option(help="Data loader workers per process.", min=0)]
Subset = Annotated[str | None, typer.Option(help="Use N or TRAIN:TEST images, balanced by class.")]
Smoke = Annotated[bool, typer.Option("--smoke", help="Train 2 steps on a few images.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved recipe and plan; train nothing.")
]
LrFrom = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Use the learning rate that an LR range test found."),
]


def _give(files: list[Path] | None) -> list[Path] | None:
    """Lets the command run the files, before it reads a recipe."""
    give(files or [])
    return files


With = Annotated[
    list[Path] | None,
    typer.Option("--with", metavar="FILE", callback=_give, help="Python file of your own to run."),
]


def _track(names: list[str] | None) -> list[str] | None:
    """Lets the processes of the command know, as RESCUE_TRACK does."""
    if names:
        from rescue_cli.runs.tracking import VARIABLE, check_trackers

        os.environ[VARIABLE] = ",".join(check_trackers(names))
    return names


Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME,...",
        callback=_track,
        help="Also log to csv, mlflow, tensorboard, trackio or wandb.",
    ),
]


class Where(StrEnum):
    """Where a command trains."""

    local = "local"
    slurm = "slurm"


On = Annotated[Where, typer.Option(help="Run on this machine, or through SLURM.")]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option("--slurm", metavar="KEY=VALUE", help="Option of sbatch: partition=gpu."),
]


def check_place(on: Where, slurm: Sequence[str] | None) -> None:
    """Raises `UsageError` for options of SLURM without it, and for a job that would submit jobs."""
    from rescue_cli.runs.group import refuse_in_group

    if slurm and on is not Where.slurm:
        raise UsageError("--slurm: options of sbatch, and this command runs here. Add --on slurm.")
    refuse_in_group({"--on": on is Where.slurm})


def run_as_job(slurm: Sequence[str] | None, folder: Path) -> NoReturn:
    """Executes this whole command as one job of SLURM with this --out; exits with its exit code."""
    from rescue_cli.runs import slurm as jobs

    words = _without_options(sys.argv[1:], ("--on", "--slurm", "--out"))
    raise typer.Exit(
        jobs.run_verb([*words, "--out", str(folder)], jobs.parse_settings(slurm or []), folder)
    )


def script_of_job(slurm: Sequence[str] | None, folder: Path) -> str:
    """What `run_as_job` gives to sbatch."""
    from rescue_cli.runs import slurm as jobs

    return jobs.submission_script(1, jobs.parse_settings(slurm or []), folder / jobs.FOLDER)


def _without_options(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """The words of a command line without these options, each of which has a value."""
    kept, rest = [], iter(words)
    for word in rest:
        if word in options:
            next(rest, None)
        elif word.partition("=")[0] not in options:
            kept.append(word)
    return kept


ImagesPerSecond = Annotated[float | None, typer.Option(help="Training speed of all GPUs together.")]
HoursPerEpoch = Annotated[
    float | None, typer.Option(help="Hours per epoch, in place of the speed.")
]
Price = Annotated[float | None, typer.Option(help="Price of one GPU for one hour.")]
GpuMemory = Annotated[float | None, typer.Option(help="Memory of one GPU in GB (2^30 bytes).")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True)
class Changes:
    """The user's changes to a recipe: overrides, and options that stand for some."""

    overrides: Sequence[str]
    model: str | None = None
    epochs: float | None = None
    subset: str | None = None
    smoke: bool = False
    lr_from: Path | None = None


@dataclass(frozen=True)
class Changed:
    """A recipe with all changes, and `whole`, without --subset, --smoke and --lr-from.

    `overrides`: the user's, and what --model and --epochs stand for. `notes` are to be printed.
    """

    recipe: Recipe
    whole: Recipe
    overrides: list[str]
    notes: list[str]


def change(base: Recipe, changes: Changes, device: str = "cpu") -> Changed:
    """The recipe with the changes; what the user sets stays. Raises `UsageError`."""
    from rescue_cli.build.expand import cut_short, expand_options
    from rescue_cli.build.outline import warn_of_length

    longer, notes = expand_options(base, changes.overrides, changes.model, changes.epochs)
    given = [*changes.overrides, *longer]
    whole = base.with_overrides(*given)
    cut, more = cut_short(
        whole, given, subset=changes.subset, smoke=changes.smoke, cuda=device == "cuda"
    )
    notes += more
    notes += [f"warning: {w}" for w in warn_of_length(whole, changes.overrides)]
    if changes.lr_from is not None:
        from rescue_cli.analysis.lr_range_runs import rate_from

        rate, more = rate_from(changes.lr_from, whole.with_overrides(*cut), given)
        cut, notes = [*cut, *rate], [*notes, *more]
    return Changed(base.with_overrides(*given, *cut), whole, given, notes)


def planned_device(recipe: Recipe, asked: str | None, device: str) -> tuple[str, list[str]]:
    """What --dry-run plans for, where the user has not `asked`: a GPU, where the recipe needs one;
    and a note on that.
    """
    if asked is not None or (device, recipe.train.precision) != ("cpu", "float16"):
        return device, []
    return "cuda", ["planned for a GPU, which float16 needs; this machine has none"]


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's; a path that does not fit in a line breaks between names."""
        if not options.get("soft_wrap"):
            objects = tuple(Words(each) if isinstance(each, str) else each for each in objects)
        super().print(*objects, **options)


def console() -> Console:
    return _Console(highlight=False, markup=False)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    words: Collection[str] = (),
    gap: int = 2,
) -> Table:
    """A table of results that fits the width of the terminal.

    Columns whose heading is in `words` are left-aligned and wrap, paths between names; the others
    hold numbers: right-aligned and kept whole. Where names would not fit whole, the headings of
    numbers break between words. `gap` is the number of spaces between two columns.
    """
    rows = list(rows)
    are_words = [heading in words for heading in headings]
    columns = zip(headings, *rows, strict=True)
    needed = sum(
        max(map(least_width if wraps else len, cells)) + gap
        for wraps, cells in zip(are_words, columns, strict=True)
    )
    breaks = needed - gap > console().width
    result = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for heading, wraps in zip(headings, are_words, strict=True):
        if wraps:
            result.add_column(heading, overflow="fold")
        else:
            shown = re.sub(r" (?![%(])", "\n", heading) if breaks else heading
            result.add_column(shown, justify="right", no_wrap=True)
    for row in rows:
        cells = zip(row, are_words, strict=True)
        result.add_row(*(Words(cell) if wraps else cell for cell, wraps in cells))
    return result


def print_json(result: object) -> None:
    """One JSON object or list, on one line of stdout."""
    print(json.dumps(result))


def named_or_default(name: str | None) -> str:
    if name is None:
        note(NO_RECIPE)
    return name or DEFAULT


def print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
    """A run's result on stdout: a table, or one JSON object."""
    from rescue_cli.analysis.accuracy import add_intervals
    from rescue_cli.report.table import (
        TEXT_COLUMNS,
        class_tables,
        interval_notes,
        measurement_table,
    )

    if as_json:
        print_json({**result, **add_intervals(result)})
        return
    out = console()
    headings, rows = measurement_table(result, narrow=True)
    out.print(table(headings, rows, words=TEXT_COLUMNS))
    for line in interval_notes(result):
        out.print(line)
    if (tables := class_tables(result)) is not None:
        out.print(f"by class: {tables}", soft_wrap=True)
    for line in result.get("notes", []):
        if line.startswith("warning: "):
            out.print(line)
    out.print(_summary(result), highlight=False, soft_wrap=True)


def _summary(result: Mapping[str, Any]) -> str:
    """Size and cost of the run, and what the evaluation protocols of all rows share."""
    protocol = result["protocol"]
    seed = "" if result["seed"] is None else f", seed {result['seed']}"
    lines = [
        f"{result['recipe']}{seed}: {result['parameters']:,} parameters, "
        f"{protocol['precision']}, weights {protocol['weights']}",
        _preprocessing(protocol),
    ]
    if result["steps"]:
        lines.append(
            f"{result['epochs']:g} epoch{'' if result['epochs'] == 1 else 's'}, "
            f"{result['steps']:,} steps" + _format_memory(result)
        )
    if result.get("code"):
        lines.append(f"code of your own: {result['code']}")
    return "\n".join([*lines, *_times(result)])


def _format_memory(result: Mapping[str, Any]) -> str:
    """`, peak 1,234 MB`, on a GPU with what torch's allocator reserved."""
    if (peak := result["peak_memory_mb"]) is None:
        return ""
    reserved = result.get("peak_reserved_mb")
    return f", peak {peak:,.0f} MB" + ("" if reserved is None else f" ({reserved:,.0f} reserved)")


def _times(result: Mapping[str, Any]) -> list[str]:
    """One line per measured time of the run: seconds, and what they include."""
    rate = f"{result['images_per_second']:.0f} images/s"
    if "fit" in result:
        contents = {
            "seconds_prepare": "to prepare: data, network, features of all images",
            "seconds_train": "to fit the head",
            "seconds_eval": "to evaluate it on the features",
        }
    elif result["steps"]:
        contents = {
            "seconds_prepare": "to prepare: data, network, first augmented batch",
            "seconds_warmup": "to warm up: steps that were undone; compilation, choice of kernels",
            "seconds_train": f"to train ({rate}): steps, augmentation",
            "seconds_eval": "to evaluate: every evaluation of the run, with its TTA",
        }
    else:
        contents = {
            "seconds_prepare": "to prepare: data, network, weights",
            "seconds_eval": f"to evaluate ({rate}): decoding, network, TTA",
        }
    return [f"{result[key]:.1f} s {text}" for key, text in contents.items() if key in result]


def _preprocessing(protocol: Mapping[str, Any]) -> str:
    """`decoder pil, bicubic, mean 0.5 0.5 0.5, std ...; size, mean by metadata; crop by timm`."""
    numbers = {key: " ".join(f"{v:g}" for v in protocol[key]) for key in ("mean", "std")}
    keys_by_origin: dict[str, list[str]] = {}
    for key, origin in protocol["preprocessing"].items():
        keys_by_origin.setdefault(origin, []).append(key)
    origins = "".join(f"; {', '.join(keys)} by {origin}" for origin, keys in keys_by_origin.items())
    if set(keys_by_origin) == {"recipe"}:
        origins = ""
    return (
        f"decoder {protocol['decoder']}, {protocol['interpolation']}, {_file_reading(protocol)}"
        f"mean {numbers['mean']}, std {numbers['std']}{origins}"
    ).replace("by given", "as given")


def _file_reading(protocol: Mapping[str, Any]) -> str:
    """How image files were read, where that differs from the default."""
    names = {"exif": "EXIF orientation", "background": "background", "range": "range"}
    return "".join(f"{name} {protocol[key]}, " for key, name in names.items() if protocol.get(key))


def format_measured(figure: Mapping[str, Any] | None) -> str:
    """Mean top-1, standard deviation and number of runs, as tables show them."""
    if figure is None:
        return "not run"
    spread = "" if figure["std"] is None else f" ± {figure['std']:.2f}"
    return f"{figure['mean']:.2f}{spread} ({figure['n']})"


def with_lists(**options: str | None) -> list[str]:
    """The overrides that the list options of `eval`, by their keys, stand for."""
    return [f"eval.{key}=[{value}]" for key, value in options.items() if value is not None]


def print_comparison(sides: Sequence["Side"], pairs: Sequence[Mapping[str, Any]]) -> None:
    """Each side's mean, then what may be claimed of each pair, and by which test."""
    from rescue_cli.analysis.claims import detail_lines
    from rescue_cli.analysis.compare import describe_sides

    summaries = describe_sides(sides)
    rows = [
        [
            side["name"] + (f" ({side['row']})" if side["row"] and "#" not in side["name"] else ""),
            f"{side['mean']:.2f}",
            "-" if side["std"] is None else f"{side['std']:.2f}",
            side["runs"],
            "-" if side["low"] is None else f"{side['low']:.2f} to {side['high']:.2f}"
            + ("*" if side["over"] == "images" else ""),
        ]
        for side in summaries
    ]  # fmt: skip
    out = console()
    out.print(table(["", "mean %", "std", "runs", "95 % interval"], rows, words=[""]))
    if any(side["over"] == "seeds" for side in summaries):
        out.print("95 % interval: of the mean, over new seeds on these test images")
    if any(side["over"] == "images" for side in summaries):
        out.print("* of this one network, over new test images")
    for pair in pairs:
        out.print(pair["claim"])
        for line in detail_lines(pair):
            out.print(f"  {line}")


def print_plan(
    recipe: Recipe, more: Mapping[str, Any], *, as_json: bool, script: str | None = None
) -> None:
    """What --dry-run prints: the resolved recipe, its steps and learning rates, and `more`; last
    the `script` that would be submitted.
    """
    from rescue_cli.build.outline import outline_run

    plan = {**outline_run(recipe), **more}
    if as_json:
        submitted = {} if script is None else {"script": script}
        print_json({"recipe": recipe.tree, **plan, **submitted})
        return
    print(recipe.to_yaml(), end="")
    for key, value in plan.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        shown = "unknown" if value is None else shown
        name = "micro-batches" if key == "slices" else key.replace("_", " ")  # a stable key
        print(f"{name}: {shown}")
    if script is not None:
        print(f"\n{script}")
