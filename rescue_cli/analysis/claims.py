"""The sentences of a comparison: what may be claimed of a pair, and the details below it."""

from collections.abc import Mapping
from typing import Any

from rescue_cli.formatting import format_seconds


def is_claimed(pair: Mapping[str, Any], level: float) -> bool:
    """Whether one recipe may be called better than the other, without an assumption."""
    return pair["about"] == "recipes" and bool(pair["p"] < level)


def claim_sentence(pair: Mapping[str, Any], level: float, *, on: str | None) -> str:
    """What may be claimed of a pair; `on` names the test set where it is not the main one."""
    write = {
        "recipes": _recipes,
        "assumed": _with_assumption,
        "networks": _networks,
        "nothing": _without_test,
    }
    sentence = write[pair["about"]](pair, level)
    return " ".join([f"On {on}: {sentence}" if on else sentence, *_caveats(pair)])


def _recipes(pair: Mapping[str, Any], level: float) -> str:
    if is_claimed(pair, level):
        better, worse = _better_and_worse(pair)
        return f"{better} is better than {worse} by {_size(pair)}."
    return f"No significant difference between {pair['a']} and {pair['b']}: {_size(pair)}. " + (
        _power(pair)
    )


def _with_assumption(pair: Mapping[str, Any], level: float) -> str:
    """For a side without a spread of its own: a single run, or a published mean."""
    alone, like, runs = (pair["assumes"][key] for key in ("alone", "like", "runs"))
    why = f"there is one run of {alone}" if runs == 1 else f"the {runs} runs of {alone} have no std"
    assumption = f"assuming that runs of {alone} vary as much as those of {like}: {why}."
    if pair["p"] < level:
        better, worse = _better_and_worse(pair)
        return f"{better} is above {worse} by {_size(pair)}, {assumption}"
    return (
        f"No significant difference between {pair['a']} and {pair['b']}: {_size(pair)}, "
        f"{assumption} {_power(pair)}"
    )


def _networks(pair: Mapping[str, Any], level: float) -> str:
    """For two single runs on the same images."""
    if pair["p"] >= level:
        networks = f"the networks {pair['a']} and {pair['b']}"
        return f"No significant difference between {networks}: {_size(pair)}."
    better, worse = _better_and_worse(pair)
    return (
        f"On these images the network {better} is better than {worse} by {_size(pair)}. One run "
        "each says nothing about the recipes: with a standard deviation between seeds of "
        f"{pair['seed_noise']:.2f} points or more, two runs of one recipe differ by as much in "
        "5 % of cases or more."
    )


def _without_test(pair: Mapping[str, Any], _level: float) -> str:
    first, second = pair["n"]
    runs = "one run each" if first == second == 1 else f"{first} and {second} runs"
    return (
        f"{pair['a']} and {pair['b']} differ by {abs(pair['difference']):.2f} points; {runs}: "
        "without a spread no test is possible."
    )


def _caveats(pair: Mapping[str, Any]) -> list[str]:
    """What a claim must not be read without."""
    caveats = []
    incomplete = [
        f"{runs} of {pair[side]}"
        for side, runs, missing in zip(("a", "b"), pair["runs"], pair["lost"], strict=True)
        if missing
    ]
    if incomplete:
        caveats.append(f"Only finished runs are compared: {' and '.join(incomplete)}.")
    if pair["skewed"] and pair["p"] is not None:
        caveats.append(
            f"Skewed: {' and '.join(pair['skewed'])}. p is the larger of the t-test's and the "
            "permutation test's; see the medians."
        )
    return caveats


def _size(pair: Mapping[str, Any]) -> str:
    """`0.26 points (p = 0.034, 95 % interval 0.10 to 0.42)`, of the better less the worse."""
    size, p = f"{abs(pair['difference']):.2f} points", f"p = {pair['p']:.2g}"
    if pair["low"] is None:
        return f"{size} ({p})"
    sign = 1 if pair["difference"] > 0 else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    return f"{size} ({p}, 95 % interval {low:.2f} to {high:.2f})"


def _power(pair: Mapping[str, Any]) -> str:
    """What these runs can detect, and how many runs the wanted difference takes."""
    detectable = f"Smallest detectable difference with these runs: {pair['detectable']:.2f} points."
    if pair["want"] is None:
        return detectable
    needed = "more than a million" if pair["needed"] is None else pair["needed"]
    return f"{detectable} To detect {pair['want']:g} points in 4 of 5 cases: {needed} runs of each."


def _better_and_worse(pair: Mapping[str, Any]) -> tuple[str, str]:
    """The better and the worse."""
    names = pair["a"], pair["b"]
    return (names[1], names[0]) if pair["difference"] > 0 else names


def detail_lines(pair: Mapping[str, Any]) -> list[str]:
    """The lines below a claim: the test, other views of the same runs, and equal budgets."""
    return [line for line in (_test(pair), *_views(pair), *_at_equal_budgets(pair)) if line]


def _test(pair: Mapping[str, Any]) -> str:
    corrected = "p_uncorrected" in pair
    if not pair["how"]:
        return ""
    test: str = pair["how"]
    if corrected:
        test += ", p corrected for all tests (Holm), simultaneous intervals (Bonferroni)"
    if (p := pair["permutation_p"]) is not None:
        test += f"; permutation test: p = {p:.2g}" + (", uncorrected" * corrected)
    return test


def _views(pair: Mapping[str, Any]) -> list[str]:
    lines = []
    if (r := pair["correlation"]) is not None:
        lines.append(f"correlation between equal seeds: {r:.2f}")
    if pair["superiority"] is not None:
        probability, low, high = (100 * x for x in pair["superiority"])
        lines.append(
            f"a run of {pair['b']} beats one of {pair['a']} with probability {probability:.0f} % "
            f"(95 % interval {low:.0f} to {high:.0f} %)"
        )
    if pair["skewed"]:
        lines += [
            f"{name}: median {m['median']:.2f}, interquartile mean {m['iqm']:.2f}"
            for name, m in pair["middles"].items()
        ]
    if (diverged := pair["diverged"]) is not None:
        # Without p, a side is a number whose runs are not known
        counts = ", ".join(
            f"{k} of {pair[side]}"
            for k, side in zip(diverged["runs"], "ab", strict=True)
            if k or diverged["p"] is not None
        )
        p = "" if diverged["p"] is None else f" (Fisher's exact test, p = {diverged['p']:.2g})"
        lines.append(f"diverged: {counts}{p}")
    return lines


def _at_equal_budgets(pair: Mapping[str, Any]) -> list[str]:
    """Which side leads at equal epochs and at equal seconds of training."""
    lines = []
    for what, equal in pair["equal"].items():
        if equal is None:
            continue
        if what == "seconds":
            budget = f"{format_seconds(equal['at'])} seconds of training"
        else:
            budget = "1 epoch" if equal["at"] == 1 else f"{equal['at']:g} epochs"
        size = f"{abs(equal['difference']):.2f}"
        if size == "0.00":
            lines.append(f"after {budget}, no difference")
        else:
            leader = pair["b" if equal["difference"] > 0 else "a"]
            lines.append(f"after {budget}, {leader} leads by {size} points")
    return lines
