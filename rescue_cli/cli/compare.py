"""`rescue compare`: is B better than A, and how sure is that?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from rescue_cli.analysis import interim
from rescue_cli.analysis.compare import compare_pairs, describe_sides
from rescue_cli.analysis.sides import (
    Side,
    count_test_images,
    first_reaching,
    is_recipe,
    load_comparable,
    recipe_and_epoch_length,
)
from rescue_cli.cli import common
from rescue_cli.cli.command import example_and_next
from rescue_cli.cli.common import Json
from rescue_cli.errors import UnexpectedError, UsageError
from rescue_cli.formatting import flop_count, format_count, format_seconds, significant
from rescue_cli.runs.console import note

app = common.verb()


@app.command(
    epilog=example_and_next(
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
        float | None, typer.Option(help="Print when each side reached this accuracy (%).")
    ] = None,
    want: Annotated[
        float | None,
        typer.Option(help="Print how many runs could detect this difference (points)."),
    ] = None,
    check_expected: Annotated[
        bool, typer.Option("--check-expected", help="Exit with 6 if outside the expected band.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Test whether B is better than A, and print what may be claimed."""
    if len(words) == 1 and check_expected:
        words = [*words, *_recipe_of(words[0])]
    if len(words) < 2 and to is None:
        raise UsageError("compare: give two or more of runs, sweeps, recipes and MEAN±STD/N.")
    sides = load_comparable(words)
    pairs = compare_pairs(sides, want)
    for line in [*interim.record_comparison(sides), *_fractions(sides)]:
        note(f"warning: {line}")
    result = {**(pairs[0] if pairs else {}), "sides": describe_sides(sides)}
    if len(pairs) > 1:
        result["pairs"] = pairs
    if to is not None:
        result["reached"] = [_budget_to_reach(side, to) for side in sides]
    # Either side can be the recipe whose expected band the other is checked against
    checks = [(words[0], sides[1]), (words[1], sides[0])] if pairs else []
    bands = [band for word, side in checks if (band := _band(word, side))]
    result["expected"] = bands
    if as_json:
        common.print_json(result)
    else:
        _print(sides, pairs, result, to)
    if check_expected and not bands:
        raise UsageError(
            "--check-expected: needs a recipe with an expected result and a run. "
            "Use: rescue compare RECIPE RUN --check-expected."
        )
    if check_expected and not all(band["inside"] for band in bands):
        raise UnexpectedError(bands[0]["said"])


def _fractions(sides: list[Side]) -> list[str]:
    """What typed accuracies are taken for that look like fractions."""
    return [
        f"{side.name}: is taken as {side.sample.mean:g} %; accuracies are in percent"
        for side in sides
        if side.images is None and 0 < side.sample.mean < 1
    ]


def _recipe_of(word: str) -> list[str]:
    """The shipped recipe that the run was trained with, as a list; empty without one."""
    from rescue_cli import recipe as recipes
    from rescue_cli.rundir import RunDirectory

    run = RunDirectory(Path(word))
    name = recipes.recipe_in(run.path).name if run.recipe.is_file() else ""
    return [name] if name in recipes.names() else []


def _budget_to_reach(side: Side, top1: float) -> dict[str, Any]:
    """Epochs, seconds and PFLOP to the accuracy: means over the runs that reached it."""
    from rescue_cli import estimate

    if not side.has_curve:
        raise UsageError(f"--to: while training, only the first row of {side.name} is measured.")
    firsts = first_reaching(side.curves, top1)
    result: dict[str, Any] = {"name": side.name, "runs": len(side.paths), "reached": len(firsts)}
    if not firsts:
        return result
    petaflop = []
    for seed, point in firsts.items():
        recipe, per_epoch = recipe_and_epoch_length(side.paths[seed])
        petaflop.append(estimate.petaflop(recipe, point.step, per_epoch))
    count = len(firsts)
    return {
        **result,
        "epochs": sum(p.epoch for p in firsts.values()) / count,
        "seconds": sum(p.seconds for p in firsts.values()) / count,
        "petaflop": sum(petaflop) / count,
    }


def _band(word: str, other: Side) -> dict[str, Any] | None:
    """Whether the other side's mean is inside the band of the recipe `word`; None without one."""
    from rescue_cli import recipe as recipes

    if not is_recipe(word) or not other.paths:
        return None
    from rescue_cli.analysis.expected import check_expected, subset_size

    first = next(iter(other.paths.values()))
    drawn = subset_size(recipes.recipe_in(first), count_test_images(first))
    return check_expected(recipes.load(word), other.sample, drawn)


def _print(
    sides: list[Side], pairs: list[dict[str, Any]], result: dict[str, Any], to: float | None
) -> None:
    common.print_comparison(sides, pairs)
    out = common.console()
    for side in result.get("reached", []):
        out.print(_reach_line(side, to))
    for band in result["expected"]:
        out.print(band["said"])


def _reach_line(side: dict[str, Any], to: float | None) -> str:
    head = (
        f"{side['name']}: {side['reached']} of {format_count(side['runs'], 'run')} reached {to:g} %"
    )
    if not side["reached"]:
        return head
    return (
        f"{head}, on average after {significant(side['epochs'])} epochs, "
        f"{format_seconds(side['seconds'])} s, {flop_count(side['petaflop'])} of training"
    )
