"""`rescue compare`: is B better than A, and how sure is that?"""

import json as json_module
from itertools import combinations
from typing import Annotated, Any

import typer
from rich.table import Table

from rescue_cli.cli import common
from rescue_cli.cli.common import Json
from rescue_cli.errors import UnexpectedError, UsageError
from rescue_cli.report import operands
from rescue_cli.report.operands import Operand
from rescue_cli.statistics import (
    Difference,
    difference,
    holm,
    independent_difference,
    mcnemar,
    paired_difference,
)

app = common.verb()
LEVEL = 0.05


@app.command(epilog="Example: rescue compare runs/sweep/a runs/sweep/b '79.72±0.10/100'")
def compare(
    words: Annotated[
        list[str], typer.Argument(metavar="A B...", help="Runs, sweeps, recipes, MEAN±STD/N.")
    ],
    to: Annotated[
        float | None, typer.Option(help="An accuracy in percent: when was it reached?")
    ] = None,
    check_expected: Annotated[
        bool, typer.Option("--check-expected", help="Exit 6 unless inside the recipe's band.")
    ] = False,
    json: Json = False,
) -> None:
    """Say whether B is better than A, how sure that is, and what may be claimed."""
    if len(words) < 2:
        raise UsageError("compare: give two or more of runs, sweeps, recipes and MEAN±STD/N.")
    sides = [operands.operand(word) for word in words]
    pairs = [_pair(a, b) for a, b in combinations(sides, 2)]
    if len(pairs) > 1:
        _correct(pairs)
    found = {**pairs[0], "pairs": pairs} if len(pairs) > 1 else pairs[0]
    if to is not None:
        found["reached"] = [_reached(side, to) for side in sides]
    bands = [b for b in (_band(words[0], sides[1]), _band(words[1], sides[0])) if b]
    found["expected"] = bands
    if json:
        print(json_module.dumps(found))
    else:
        _print(sides, pairs, found, to)
    if check_expected and not bands:
        raise UsageError("--check-expected: needs a recipe with a claim on one side, a run on one.")
    if check_expected and not all(band["inside"] for band in bands):
        raise UnexpectedError(bands[0]["said"])


def _pair(a: Operand, b: Operand) -> dict[str, Any]:
    """The stable keys of `--json` for one pair, and what else was looked at."""
    found, how = _difference(a, b)
    pair: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "permutation_p": found.permutation,
        "effect": found.effect,
        "n": list(found.n),
        "detectable": found.detectable,
        "needed": found.needed,
        "how": how,
    }
    if len(a.paths) == len(b.paths) == 1 and found.p is None:
        pair |= _same_images(a, b)
    pair["claim"] = _claim(pair)
    pair["equal"] = {what: _equal(a, b, what) for what in ("epoch", "seconds")}
    return pair


def _difference(a: Operand, b: Operand) -> tuple[Difference, str]:
    """Paired where the seeds match, else Welch's."""
    if len(a.values) > 1 and a.values.keys() == b.values.keys():
        seeds = sorted(a.values)
        found = paired_difference([a.values[s] for s in seeds], [b.values[s] for s in seeds])
        return found, "paired by seed"
    if len(a.values) > 1 and len(b.values) > 1:
        found = independent_difference(list(a.values.values()), list(b.values.values()))
        return found, "Welch's t-test"
    return difference(a.sample, b.sample), "Welch's t-test"


def _same_images(a: Operand, b: Operand) -> dict[str, Any]:
    """McNemar's test of two single runs on the same images."""
    first, second = (operands.right(next(iter(side.paths.values()))) for side in (a, b))
    if len(first) != len(second):
        return {}
    only_a, only_b, p = mcnemar(first, second)
    return {
        "p": p,
        "how": f"McNemar on {len(first)} images: {only_a} right in A alone, {only_b} in B alone",
    }


def _claim(pair: dict[str, Any]) -> str:
    """One sentence: what may be said, or what it would take."""
    size = abs(pair["difference"])
    better, worse = ("b", "a") if pair["difference"] > 0 else ("a", "b")
    if pair["p"] is None:
        return (
            f"Nothing may be claimed: the difference of {size:.2f} stands on "
            f"{pair['n'][0]} against {pair['n'][1]} runs without a spread."
        )
    p = f"p = {pair['p']:.2g}"
    if pair["p"] < LEVEL:
        band = "" if pair["low"] is None else f", 95 % interval {_interval(pair)}"
        runs = " These two runs, not their recipes." if pair["low"] is None else ""
        return (
            f"{pair[better]} is better than {pair[worse]} by {size:.2f} points ({p}{band}).{runs}"
        )
    seen = pair["detectable"]
    could = "" if seen is None else f" These runs could have seen {seen:.2f} points."
    needed = pair["needed"]
    more = "" if needed is None else f" To see {size:.2f}, {needed} runs of each are needed."
    return f"No difference may be claimed: {size:.2f} points, {p}.{could}{more}"


def _interval(pair: dict[str, Any]) -> str:
    sign = 1 if pair["difference"] > 0 else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    return f"{low:.2f} to {high:.2f}"


def _equal(a: Operand, b: Operand, what: str) -> dict[str, Any] | None:
    """The pair as both stood at the same epoch, or after the same seconds."""
    found = operands.at_equal(a, b, what)
    if found is None:
        return None
    end, first, second = found
    result, how = _difference(first, second)
    return {"at": end, "difference": result.mean, "p": result.p, "how": how}


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
        computed.append(2 * estimate.training(recipe, point.step, per_epoch) / 1e15)
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

    if word not in recipes.names() or not other.paths:
        return None
    from rescue_cli.report.expected import verdict

    counts = [operands.count_of(path) for path in other.paths.values()]
    return verdict(recipes.load(word), other.sample.mean, min(counts))


def _correct(pairs: list[dict[str, Any]]) -> None:
    """Holm's correction over all pairs that have a p."""
    judged = [pair for pair in pairs if pair["p"] is not None]
    for pair, p in zip(judged, holm([pair["p"] for pair in judged]), strict=True):
        pair["p_uncorrected"], pair["p"] = pair["p"], p
        pair["claim"] = _claim(pair)


def _print(
    sides: list[Operand], pairs: list[dict[str, Any]], found: dict[str, Any], to: float | None
) -> None:
    out = common.console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "mean %", "std", "runs"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for side in sides:
        std = side.sample.std
        table.add_row(
            side.name, f"{side.sample.mean:.2f}", "-" if std is None else f"{std:.2f}",
            str(side.sample.n),
        )  # fmt: skip
    out.print(table)
    for pair in pairs:
        out.print(pair["claim"])
        corrected = ", corrected over all pairs (Holm)" if "p_uncorrected" in pair else ""
        by_permutation = pair["permutation_p"]
        also = "" if by_permutation is None else f"; by permutation p = {by_permutation:.2g}"
        out.print(f"  {pair['how']}{corrected}{also}")
        for what, equal in pair["equal"].items():
            if equal is not None:
                unit = "epochs" if what == "epoch" else "seconds of training"
                out.print(f"  after {equal['at']:.4g} {unit} of both: {equal['difference']:+.2f}")
    for one in found.get("reached", []):
        out.print(_when(one, to))
    for band in found["expected"]:
        out.print(band["said"])


def _when(one: dict[str, Any], to: float | None) -> str:
    head = f"{one['name']}: {one['reached']} of {one['runs']} runs reach {to:g} %"
    if not one["reached"]:
        return head
    return (
        f"{head}, after {one['epochs']:.3g} epochs, {one['seconds']:.4g} s, "
        f"{one['petaflop']:.3g} PFLOP of training on average"
    )
