"""The sentences of a comparison: what may be claimed of a pair, and what stands below it."""

from collections.abc import Mapping
from typing import Any

from rescue_cli.formatting import shown_seconds


def is_claimed(pair: Mapping[str, Any], level: float) -> bool:
    """Whether one recipe may be called better than the other, without an assumption."""
    return pair["about"] == "recipes" and bool(pair["p"] < level)


def claim_sentence(pair: Mapping[str, Any], level: float, *, on: str | None) -> str:
    """What may be said of a pair, by what its test speaks of; `on` names a further test set."""
    about = {"recipes": _recipes, "assumed": _assumed, "networks": _networks, "nothing": _nothing}
    said = about[pair["about"]](pair, level)
    return " ".join([f"On {on}: {said}" if on else said, *_caveats(pair)])


def _recipes(pair: Mapping[str, Any], level: float) -> str:
    size = abs(pair["difference"])
    if is_claimed(pair, level):
        better, worse = _ordered(pair)
        return f"{better} is better than {worse} by {size:.2f} points ({_evidence(pair)})."
    return (
        f"No difference between {pair['a']} and {pair['b']} may be claimed: {size:.2f} points "
        f"({_evidence(pair)}). {_power(pair)}"
    )


def _assumed(pair: Mapping[str, Any], level: float) -> str:
    """Of a side without a spread of its own: a single run, or a published mean."""
    taken, size = pair["assumes"], f"{abs(pair['difference']):.2f} points ({_evidence(pair)})"
    known = "there is one run" if taken["runs"] == 1 else f"the {taken['runs']} runs have no std"
    holds = f"runs of {taken['alone']} scatter like those of {taken['like']}"
    assumed = f"{holds}, which is assumed: of {taken['alone']} {known}."
    if pair["p"] < level:
        better, worse = _ordered(pair)
        return f"{better} is above {worse} by {size} if {assumed}"
    return (
        f"No difference between {pair['a']} and {pair['b']} may be claimed: {size}, even if "
        f"{assumed} {_power(pair)}"
    )


def _networks(pair: Mapping[str, Any], level: float) -> str:
    """Of two single runs on the same images."""
    size = abs(pair["difference"])
    if pair["p"] >= level:
        return (
            f"No difference between these two networks, {pair['a']} and {pair['b']}, may be "
            f"claimed: {size:.2f} points ({_evidence(pair)})."
        )
    better, worse = _ordered(pair)
    return (
        f"On these images the network {better} is better than {worse} by {size:.2f} points "
        f"({_evidence(pair)}). Of their recipes nothing may be claimed from one run each: where "
        f"seeds of one recipe have a standard deviation of {pair['seed_noise']:.2f} points or "
        "more, two of them differ as much by chance."
    )


def _nothing(pair: Mapping[str, Any], _level: float) -> str:
    n = pair["n"]
    runs = "one run each" if n == [1, 1] else f"{n[0]} and {n[1]} runs that have no spread"
    return (
        f"Nothing may be claimed of {pair['a']} and {pair['b']}: "
        f"{abs(pair['difference']):.2f} points, {runs}. Without a spread no test is possible."
    )


def _caveats(pair: Mapping[str, Any]) -> list[str]:
    """What a claim must not be read without."""
    found = []
    lost = [
        f"{runs} of {pair[side]}"
        for side, runs, gone in zip(("a", "b"), pair["runs"], pair["lost"], strict=True)
        if gone
    ]
    if lost:
        found.append(f"This compares the runs that ended: {' and '.join(lost)}.")
    if pair["skewed"] and pair["p"] is not None:
        found.append(
            f"Skewed: {' and '.join(pair['skewed'])}; p is the larger of the t-test's and that by "
            "permutation. See the medians."
        )
    return found


def _evidence(pair: Mapping[str, Any]) -> str:
    """`p = 0.034, 95 % interval 0.10 to 0.42`, of the better less the worse."""
    if pair["low"] is None:
        return f"p = {pair['p']:.2g}"
    sign = 1 if pair["difference"] > 0 else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    return f"p = {pair['p']:.2g}, 95 % interval {low:.2f} to {high:.2f}"


def _power(pair: Mapping[str, Any]) -> str:
    """What these runs could have seen, and what it takes to see what is wanted."""
    seen = f"Smallest detectable difference with these runs: {pair['detectable']:.2f} points."
    if pair["want"] is None:
        return seen
    if pair["needed"] is None:
        return f"{seen} To see {pair['want']:g} points takes over a million runs of each."
    return f"{seen} To see {pair['want']:g} points in 4 of 5 cases: {pair['needed']} runs of each."


def _ordered(pair: Mapping[str, Any]) -> tuple[str, str]:
    """The better and the worse."""
    names = pair["a"], pair["b"]
    return (names[1], names[0]) if pair["difference"] > 0 else names


def detail_lines(pair: Mapping[str, Any]) -> list[str]:
    """What stands below a claim: the test, other views of the same runs, and equal lengths."""
    return [line for line in (_test(pair), *_views(pair), *_equal(pair)) if line]


def _test(pair: Mapping[str, Any]) -> str:
    corrected = "p_uncorrected" in pair
    if not pair["how"]:
        return ""
    how: str = pair["how"] + (", p corrected over all tests (Holm), intervals joint" * corrected)
    if (p := pair["permutation_p"]) is not None:
        how += f"; by permutation p = {p:.2g}" + (", uncorrected" * corrected)
    return how


def _views(pair: Mapping[str, Any]) -> list[str]:
    found = []
    if (r := pair["correlation"]) is not None:
        found.append(f"correlation of equal seeds {r:.2f}")
    if pair["superiority"] is not None:
        chance, low, high = (100 * x for x in pair["superiority"])
        found.append(
            f"a run of {pair['b']} beats one of {pair['a']} with probability {chance:.0f} % "
            f"({low:.0f} to {high:.0f} %)"
        )
    if pair["skewed"]:
        found += [
            f"{name}: median {m['median']:.2f}, interquartile mean {m['iqm']:.2f}"
            for name, m in pair["middles"].items()
        ]
    if (diverged := pair["diverged"]) is not None:
        first, second = (
            f"{k} of {pair[side]}" for k, side in zip(diverged["runs"], "ab", strict=True)
        )
        p = "" if diverged["p"] is None else f" (Fisher's exact test, p = {diverged['p']:.2g})"
        found.append(f"diverged: {first}, {second}{p}")
    return found


def _equal(pair: Mapping[str, Any]) -> list[str]:
    """Who leads at equal epochs and at equal seconds."""
    lines = []
    for what, equal in pair["equal"].items():
        if equal is None:
            continue
        at = (
            f"{equal['at']:g} epoch" + ("" if equal["at"] == 1 else "s")
            if what == "epoch"
            else f"{shown_seconds(equal['at'])} seconds of training"
        )
        leads = pair["b" if equal["difference"] > 0 else "a"]
        lines.append(f"after {at}, {leads} leads by {abs(equal['difference']):.2f} points")
    return lines
