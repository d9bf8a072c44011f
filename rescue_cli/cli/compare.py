"""`rescue compare`: is B better than A, and how sure is that?"""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from rescue_cli.analysis import interim
from rescue_cli.analysis import sides as operands
from rescue_cli.analysis.compare import pairs_of, told
from rescue_cli.analysis.sides import Operand
from rescue_cli.cli import common
from rescue_cli.cli.common import Json
from rescue_cli.cli.help import then
from rescue_cli.errors import UnexpectedError, UsageError
from rescue_cli.formatting import shown_seconds, significant
from rescue_cli.runs.console import note

app = common.verb()


@app.command(
    epilog=then(
        "rescue compare runs/sweep/a runs/sweep/b '79.72±0.10/100'",
        "rescue report runs/sweep/a runs/sweep/b",
    )
)
def compare(
    words: Annotated[
        list[str],
        typer.Argument(metavar="A B", help="Runs, sweeps, recipes, or MEAN±STD/N in percent."),
    ],
    to: Annotated[
        float | None, typer.Option(help="An accuracy in percent: when was it reached?")
    ] = None,
    want: Annotated[
        float | None,
        typer.Option(help="A difference in points that matters: how many runs would see it?"),
    ] = None,
    check_expected: Annotated[
        bool, typer.Option("--check-expected", help="Exit 6 unless inside the recipe's band.")
    ] = False,
    json: Json = False,
) -> None:
    """Say whether B is better than A, how sure that is, and what may be claimed."""
    if len(words) == 1 and check_expected:
        words = [*words, *_recipe_of(words[0])]
    if len(words) < 2 and to is None:
        raise UsageError("compare: give two or more of runs, sweeps, recipes and MEAN±STD/N.")
    sides = operands.operands_of(words)
    if (said := operands.unlike(sides)) is not None:
        raise UsageError(f"compare: {said} Evaluate them on the same images: rescue eval.")
    if want is not None and not 0 < want <= 100:
        raise UsageError(f"--want: {want:g} must be above 0 and at most 100 points.")
    pairs = pairs_of(sides, want)
    for line in interim.note(sides):
        note(f"warning: {line}")
    found = {**(pairs[0] if pairs else {}), "sides": told(sides)}
    if len(pairs) > 1:
        found["pairs"] = pairs
    if to is not None:
        found["reached"] = [_reached(side, to) for side in sides]
    judged = [(words[0], sides[1]), (words[1], sides[0])] if pairs else []
    bands = [band for word, side in judged if (band := _band(word, side))]
    found["expected"] = bands
    if json:
        print(json_module.dumps(found))
    else:
        _print(sides, pairs, found, to)
    if check_expected and not bands:
        raise UsageError(
            "--check-expected: needs a recipe with a claim on one side and a run on the other. "
            "Write: rescue compare RECIPE RUN --check-expected."
        )
    if check_expected and not all(band["inside"] for band in bands):
        raise UnexpectedError(bands[0]["said"])


def _recipe_of(word: str) -> list[str]:
    """The shipped recipe that a run was trained by, to be compared with; none of other words."""
    from rescue_cli import recipe as recipes
    from rescue_cli.rundir import RunDirectory

    run = RunDirectory(Path(word))
    name = recipes.recipe_in(run.path).name if run.recipe.is_file() else ""
    return [name] if name in recipes.names() else []


def _reached(side: Operand, top1: float) -> dict[str, Any]:
    """Epochs, seconds and computation to the accuracy: means over the runs that came to it."""
    from rescue_cli import estimate

    firsts = operands.reached(side.curves(), top1)
    found: dict[str, Any] = {"name": side.name, "runs": len(side.paths), "reached": len(firsts)}
    if not firsts:
        return found
    computed = []
    for seed, point in firsts.items():
        recipe, per_epoch = operands.steps_of(side.paths[seed])
        computed.append(estimate.petaflop(recipe, point.step, per_epoch))
    count = len(firsts)
    return {
        **found,
        "epochs": sum(p.epoch for p in firsts.values()) / count,
        "seconds": sum(p.seconds for p in firsts.values()) / count,
        "petaflop": sum(computed) / count,
    }


def _band(word: str, other: Operand) -> dict[str, Any] | None:
    """Whether the other side's mean is inside the band of the recipe that a word names."""
    from rescue_cli import recipe as recipes

    if not operands.is_recipe(word) or not other.paths:
        return None
    from rescue_cli.analysis.expected import drawn_of, verdict

    first = next(iter(other.paths.values()))
    drawn = drawn_of(recipes.recipe_in(first), operands.count_of(first))
    return verdict(recipes.load(word), other.sample, drawn)


def _print(
    sides: list[Operand], pairs: list[dict[str, Any]], found: dict[str, Any], to: float | None
) -> None:
    common.print_comparison(sides, pairs)
    out = common.console()
    for one in found.get("reached", []):
        out.print(_when(one, to))
    for band in found["expected"]:
        out.print(band["said"])


def _when(one: dict[str, Any], to: float | None) -> str:
    head = f"{one['name']}: {one['reached']} of {one['runs']} runs reach {to:g} %"
    if not one["reached"]:
        return head
    return (
        f"{head}, after {one['epochs']:g} epochs, {shown_seconds(one['seconds'])} s, "
        f"{significant(one['petaflop'])} PFLOP of training on average"
    )
