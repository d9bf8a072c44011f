"""The sentences of a comparison: what may be claimed of a pair, and the details below it."""

from collections.abc import Iterable, Mapping
from typing import Any

from rescue_cli.formatting import format_seconds
from rescue_cli.recipe.changes import format_recipe_value


def is_claimed(pair: Mapping[str, Any], level: float) -> bool:
    """Whether one recipe may be called better than the other, without an assumption."""
    return pair["about"] == "recipes" and bool(pair["p"] < level)


def claim_sentence(pair: Mapping[str, Any], level: float, *, on: str | None) -> str:
    """What may be claimed of a pair; `on` names the test set where it is not the main one."""
    write = {
        "recipes": _recipes,
        "assumed": _with_assumption,
        "networks": _networks,
        "evaluations": _evaluations,
        "nothing": _without_test,
    }
    sentence = write[pair["about"]](pair, level)
    return " ".join([f"On {on}: {sentence}" if on else sentence, *_caveats(pair)])


def _recipes(pair: Mapping[str, Any], level: float) -> str:
    if is_claimed(pair, level):
        better, worse = _better_and_worse(pair)
        return f"{better} is better than {worse} by {_size(pair)}."
    return f"No significant difference between {_leads(pair)}. {_power(pair)}"


def _with_assumption(pair: Mapping[str, Any], level: float) -> str:
    """For a side without a spread of its own: a single run, or a published mean."""
    alone, like, runs = (pair["assumes"][key] for key in ("alone", "like", "runs"))
    why = f"the {runs} runs of {alone} have no std"
    if runs is None:
        why = f"the number of runs of {alone} is not known, and counted as one"
    elif runs == 1:
        why = f"there is one run of {alone}"
    assumption = f"assuming that runs of {alone} vary as much as those of {like}: {why}."
    if pair["p"] < level:
        better, worse = _better_and_worse(pair)
        return f"{better} is above {worse} by {_size(pair)}, {assumption}"
    return f"No significant difference between {_leads(pair)}, {assumption} {_power(pair)}"


def _networks(pair: Mapping[str, Any], level: float) -> str:
    """For two single runs on the same images."""
    if pair["p"] >= level:
        return f"No significant difference between the networks {_leads(pair)}."
    better, worse = _better_and_worse(pair)
    return (
        f"On these images the network {better} is better than {worse} by {_size(pair)}. One run "
        "each says nothing about the recipes: with a standard deviation between seeds of "
        f"{pair['seed_noise']:.2f} points or more, two runs of one recipe differ by as much in "
        "5 % of cases or more."
    )


def _evaluations(pair: Mapping[str, Any], level: float) -> str:
    """For one network, evaluated in two ways on the same images."""
    if pair["p"] >= level:
        return f"No significant difference between {_leads(pair, ', of one network')}."
    better, worse = _better_and_worse(pair)
    return (
        f"On these images {better} is better than {worse} by {_size(pair)}: one network, evaluated "
        "in two ways."
    )


def _without_test(pair: Mapping[str, Any], _level: float) -> str:
    (a, b), (first, second) = _names(pair), pair["n"]
    differ = f"{a} and {b} differ by {abs(pair['difference']):.2f} points"
    if not all(pair["counted"]):
        return f"{differ}; without the numbers of their runs no test is possible."
    runs = "one run each" if first == second == 1 else f"{first} and {second} runs"
    return f"{differ}; {runs}: without a spread no test is possible."


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
        why = "The t-test's p may be wrong, and no permutation test can settle it"
        if pair["permutation_decides"]:
            why = (
                "p is the larger of the t-test's and the permutation test's, and the interval is "
                "what neither rejects"
            )
        caveats.append(f"Skewed: {' and '.join(pair['skewed'])}. {why}; see the medians.")
    return caveats


def _size(pair: Mapping[str, Any]) -> str:
    """`0.26 points (p = 0.034, 95 % interval 0.10 to 0.42)`, of the better less the worse; of one
    of several looks a wider interval than 95 %.
    """
    size, p = f"{abs(pair['difference']):.2f} points", f"p = {pair['p']:.2g}"
    if pair["low"] is None:
        return f"{size} ({p})"
    sign = 1 if pair["difference"] > 0 else -1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    # Without the minus of -0.00
    low, high = (round(bound, 2) + 0.0 for bound in (low, high))
    return f"{size} ({p}, {pair['confidence']:.3g} % interval {low:.2f} to {high:.2f})"


def _power(pair: Mapping[str, Any]) -> str:
    """What these runs can detect."""
    if pair["detectable"] > 100:
        return "These runs detect no difference of accuracies in 4 of 5 cases."
    return (
        f"Smallest difference that these runs detect in 4 of 5 cases: {pair['detectable']:.2f} "
        "points."
    )


def _names(pair: Mapping[str, Any]) -> tuple[str, str]:
    """Both names, with the length of training and the row where these differ."""
    notes: tuple[list[str], list[str]] = ([], [])
    if pair["rows"][0] != pair["rows"][1]:
        for side, row, chosen in zip(notes, pair["rows"], pair["rows_chosen"], strict=True):
            side += [row] if row and not chosen else []
    if None not in pair["epochs"]:
        lengths = [_length(epochs) for epochs in pair["epochs"]]
        if lengths[0] != lengths[1]:
            for side, length in zip(notes, lengths, strict=True):
                side.append(length)
    a, b = (
        f"{name} ({', '.join(of_side)})".replace(") (", ", ") if of_side else name
        for name, of_side in zip((pair["a"], pair["b"]), notes, strict=True)
    )
    return a, b


def _length(epochs: float) -> str:
    return "1 epoch" if epochs == 1 else f"{epochs:.4g} epochs"


def _leads(pair: Mapping[str, Any], what: str = "") -> str:
    """Both names, what they are, and which is higher by how much."""
    a, b = _names(pair)
    if round(pair["difference"], 2) == 0:
        return f"{a} and {b}{what}: {_size(pair)}"
    return f"{a} and {b}{what}: {_better_and_worse(pair)[0]} is higher by {_size(pair)}"


def _better_and_worse(pair: Mapping[str, Any]) -> tuple[str, str]:
    """The better and the worse."""
    names = _names(pair)
    return (names[1], names[0]) if pair["difference"] > 0 else names


def detail_lines(pair: Mapping[str, Any]) -> list[str]:
    """The lines below a claim: the test, other views of the same runs, and equal budgets."""
    lines = (_needed(pair), _test(pair), _rows(pair), _subsets(pair), *_views(pair),
             *_at_equal_budgets(pair))  # fmt: skip
    return [line for line in lines if line]


def with_details(pairs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The pairs, each with the lines below its claim as `details`."""
    return [{**pair, "details": detail_lines(pair)} for pair in pairs]


def _needed(pair: Mapping[str, Any]) -> str:
    """How many runs the wanted difference takes, and by which standard deviation."""
    if pair["want"] is None:
        return ""
    points = "1 point" if pair["want"] == 1 else f"{pair['want']:g} points"
    if pair["std_bound"] is None:
        return (
            f"to detect {points}: the number of runs is unknown without a std between seeds; "
            "compare sweeps, or MEAN±STD/N"
        )
    needed = "more than a million" if pair["needed"] is None else f"{pair['needed']:,}"
    of = "the root mean square of both stds"
    if "cohens_dz" in pair:
        of = "the std of the differences of equal seeds"
    elif "assumes" in pair:
        of = f"the std of {pair['assumes']['like']}"
    return (
        f"to detect {points} in 4 of 5 cases: {needed} runs of each, planned with a std of "
        f"{pair['std_bound']:.2f}: the upper 80 % confidence bound of {pair['std_planned']:.2f}, "
        f"{of}"
    )


def _rows(pair: Mapping[str, Any]) -> str:
    """Which rows were compared, where nobody chose them."""
    several = {
        pair[side]: row
        for side, row, chosen in zip("ab", pair["rows"], pair["rows_chosen"], strict=True)
        if row and not chosen
    }
    if not several:
        return ""
    rows = " and ".join(f"{row} of {name}" for name, row in several.items())
    if len(several) == 2 and len({*several.values()}) == 1:
        rows = f"{pair['rows'][0]} of both"
    return f"first rows are compared: {rows}; RUN#ROW takes another, as RUN#flip"


def _subsets(pair: Mapping[str, Any]) -> str:
    """Which sides took a part of the images, as `--smoke` and `--subset` do."""
    parts = [
        f"{pair[side]} (data.subset={format_recipe_value(subset)})"
        for side, subset in zip("ab", pair["subsets"], strict=True)
        if subset is not None
    ]
    return f"on a part of the images: {' and '.join(parts)}" if parts else ""


def _test(pair: Mapping[str, Any]) -> str:
    corrected = "p_uncorrected" in pair
    if not pair["how"]:
        return ""
    test: str = pair["how"]
    if corrected:
        test += ", p corrected for all tests (Holm)"
        if pair["low"] is not None:
            cut = ", cut at 0 to agree with Holm's p: Guilbaud 2008" if pair.get("clipped") else ""
            test += f", simultaneous intervals (Bonferroni{cut})"
    if (p := pair["permutation_p"]) is not None:
        name = "sign-flip test" if "cohens_dz" in pair else "permutation test"
        test += f"; {name}: p = {p:.2g}" + (", uncorrected" * corrected)
    return test


def _views(pair: Mapping[str, Any]) -> list[str]:
    lines = []
    if pair["correlation"] is not None:
        r, low, high = pair["correlation"]
        lines.append(
            f"correlation between equal seeds: {r:.2f} (95 % interval {low:.2f} to {high:.2f})"
        )
    if pair["superiority"] is not None:
        share, low, high = (100 * x for x in pair["superiority"])
        better, worse = pair["b"], pair["a"]
        if share < 50:
            share, low, high = 100 - share, 100 - high, 100 - low
            better, worse = worse, better
        lines.append(
            f"a run of {better} beats one of {worse} in {share:.0f} % of {pair['run_pairs']} pairs "
            f"(95 % interval {low:.0f} to {high:.0f} %, by their order alone)"
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
        budget, clock = _length(equal["at"]), ""
        if what == "seconds":
            budget = f"{format_seconds(equal['at'])} seconds of training"
            clock = ", by a clock that counts other work on the machine too"
        size = f"{abs(equal['difference']):.2f}"
        if size == "0.00":
            lines.append(f"after {budget}, no difference{clock}")
        else:
            leader = pair["b" if equal["difference"] > 0 else "a"]
            lines.append(f"after {budget}, {leader} leads by {size} points{clock}")
    return lines
