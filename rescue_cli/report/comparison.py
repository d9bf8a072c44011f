"""Every pair of a comparison: how large the difference is, how sure, and what may be claimed."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from rescue_cli.report import operands, scenes
from rescue_cli.report.markup import shown_seconds
from rescue_cli.report.operands import Operand
from rescue_cli.statistics import (
    LEVEL,
    PERCENT,
    Difference,
    difference,
    holm,
    independent_difference,
    interval,
    mcnemar,
    paired_difference,
)


def pairs_of(sides: Sequence[Operand]) -> list[dict[str, Any]]:
    """Each pair of two or more sides, with Holm's correction where there are several.

    What could have been seen and what it would take are of the correction's first and strictest
    step, the level divided by the pairs.
    """
    pairs = list(combinations(sides, 2))
    found = [_pair(a, b, LEVEL / len(pairs)) for a, b in pairs]
    if len(found) > 1:
        _correct(found)
    return found


def told(sides: Sequence[Operand]) -> list[dict[str, Any]]:
    """Each side by itself: mean, std and number of its runs, and the mean's 95 % interval."""
    found = []
    for side in sides:
        low, high = interval(side.sample, PERCENT) or (None, None)
        one = side.sample
        found.append(
            {
                "name": side.name,
                "mean": one.mean,
                "std": one.std,
                "n": one.n,
                "low": low,
                "high": high,
            }
        )
    return found


def _pair(a: Operand, b: Operand, level: float) -> dict[str, Any]:
    """The stable keys of `--json` for one pair, and what else was looked at."""
    found, how = _difference(a, b, level)
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


def _difference(a: Operand, b: Operand, level: float = LEVEL) -> tuple[Difference, str]:
    """Paired where the seeds match, else Welch's."""
    if len(a.values) > 1 and a.values.keys() == b.values.keys():
        seeds = sorted(a.values)
        found = paired_difference([a.values[s] for s in seeds], [b.values[s] for s in seeds], level)
        return found, "paired by seed"
    if len(a.values) > 1 and len(b.values) > 1:
        found = independent_difference(list(a.values.values()), list(b.values.values()), level)
        return found, "Welch's t-test"
    return difference(a.sample, b.sample, level), "Welch's t-test"


def _same_images(a: Operand, b: Operand) -> dict[str, Any]:
    """Two single runs on the same images: McNemar's test, or a bootstrap over scenes."""
    arrays = [operands.predictions(next(iter(side.paths.values()))) for side in (a, b)]
    kinds = [scenes.kind_of(each) for each in arrays]
    if kinds[0] != kinds[1]:
        return {}
    if kinds[0] is not None:
        return scenes.bootstrap(arrays[0], arrays[1])
    first, second = (operands.right(each) for each in arrays)
    if len(first) != len(second):
        return {}
    only_a, only_b, p = mcnemar(first, second)
    return {
        "p": p,
        "how": f"McNemar on {len(first)} images: {only_a} right in {a.name} alone, "
        f"{only_b} in {b.name} alone",
    }


def details(pair: Mapping[str, Any]) -> list[str]:
    """What stands below a pair's claim: its test, and who was ahead at equal epochs and seconds."""
    how = pair["how"] + (", p corrected over all pairs (Holm)" if "p_uncorrected" in pair else "")
    if (p := pair["permutation_p"]) is not None:
        how += f"; by permutation p = {p:.2g}"
        how += ", uncorrected" if "p_uncorrected" in pair else ""
    lines = [how]
    for what, equal in pair["equal"].items():
        if equal is None:
            continue
        at = (
            f"{equal['at']:g} epochs"
            if what == "epoch"
            else f"{shown_seconds(equal['at'])} seconds of training"
        )
        ahead = pair["b" if equal["difference"] > 0 else "a"]
        lines.append(
            f"after {at} of both {ahead} is ahead by {abs(equal['difference']):.2f} points"
        )
    return lines


def _claim(pair: dict[str, Any]) -> str:
    """One sentence: what may be said, or what it would take."""
    size, both = abs(pair["difference"]), f"{pair['a']} and {pair['b']}"
    better, worse = ("b", "a") if pair["difference"] > 0 else ("a", "b")
    if pair["p"] is None:
        return (
            f"Nothing may be claimed of {both}: the difference of {size:.2f} points stands on "
            f"{pair['n'][0]} against {pair['n'][1]} runs without a spread."
        )
    p = f"p = {pair['p']:.2g}"
    if pair["p"] < LEVEL:
        band = "" if pair["low"] is None else f", 95 % interval {_interval(pair)}"
        single = pair["n"] == [1, 1]
        runs = " These two runs, not their recipes." if single else ""
        return (
            f"{pair[better]} is better than {pair[worse]} by {size:.2f} points ({p}{band}).{runs}"
        )
    seen = pair["detectable"]
    could = "" if seen is None else f" These runs could have seen {seen:.2f} points."
    needed = pair["needed"]
    more = "" if needed is None else f" To see {size:.2f} points, {needed} runs of each are needed."
    return f"No difference between {both} may be claimed: {size:.2f} points, {p}.{could}{more}"


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


def _correct(pairs: list[dict[str, Any]]) -> None:
    """Holm's correction over all pairs that have a p."""
    judged = [pair for pair in pairs if pair["p"] is not None]
    for pair, p in zip(judged, holm([pair["p"] for pair in judged]), strict=True):
        pair["p_uncorrected"], pair["p"] = pair["p"], p
        pair["claim"] = _claim(pair)
