"""Compares every pair of sides: the difference, its interval and p, and what may be claimed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from rescue_cli.analysis import claims
from rescue_cli.analysis.accuracy import accuracy_interval
from rescue_cli.analysis.bootstrap import bootstrap_difference, task_of
from rescue_cli.analysis.consistency import Trained, read_trained, run_changes
from rescue_cli.analysis.records import NOT_PROCEDURE
from rescue_cli.analysis.sides import (
    Side,
    at_equal_budget,
    at_measurement,
    correct_predictions,
    load_predictions,
)
from rescue_cli.analysis.stats import (
    FEWEST_WELCH,
    LEVEL,
    NORMAL_95,
    PERCENT,
    Difference,
    correlation_interval,
    exchange_test,
    fisher_exact_test,
    holm_correction,
    interquartile_mean,
    is_skewed,
    mcnemar_test,
    paired_proportions_interval,
    paired_t_test,
    permutation_interval,
    probability_of_superiority,
    sign_flip_test,
    t_interval,
    welch_test,
    wilson_interval,
)
from rescue_cli.errors import UsageError
from rescue_cli.metrics.names import by_measurement
from rescue_cli.recipe import recipe_in
from rescue_cli.rundir import RunDirectory, read_result
from rescue_cli.rundir.planned import format_planned

# The sections and keys that decide what a seed draws
DRAWN = ("data", "sampling", "augment", "mix", "selection", "model",
         "train.batch_size", "train.device_batch_size")  # fmt: skip
# Those that do not decide what a step of training costs, but for the optimizer's name
FREE = ("sampling", "loss", "optim", "schedule", "averaging", "eval", "train.seed", "train.epochs")
FEWEST = 8  # common seeds, from which runs that share their draws are tested as pairs
FEWEST_CORRELATED = 4  # common seeds, from which their correlation has an interval
CHANCE = NORMAL_95 * 2**0.5  # stds: 5 % of pairs of runs of one recipe differ by more


@dataclass(frozen=True)
class Pairing:
    """The seeds that are tested as pairs (none: Welch's test), and the reason."""

    seeds: tuple[int, ...]
    why: str


def choose_pairing(a: Side, b: Side, *, read: Callable[[Path], Trained] = read_trained) -> Pairing:
    """Whether two sides are compared seed by seed: decided by their recipes, not their results.

    Runs of one seed share what the seed draws where the recipes draw it alike: the initial weights,
    the order of the images, their augmentation. Pairing gains where that makes results move
    together, and costs half of the degrees of freedom where it does not: at 3 seeds a paired test
    needs more than twice the difference that Welch's test does, at 8 a tenth more. Runs that differ
    in their evaluation alone are the same networks, and are paired from two seeds on.
    """
    common = sorted(a.values.keys() & b.values.keys())
    planned = (a.values.keys() | a.missing.keys()) & (b.values.keys() | b.missing.keys())
    if len(common) < 2 or not (a.paths and b.paths):
        return Pairing((), "")
    if all(a.networks[seed] == b.networks[seed] for seed in common):
        return Pairing(tuple(common), "the same networks, evaluated in two ways")
    first, second = (next(iter(side.paths.values())) for side in (a, b))
    differing = run_changes(first, second, read=read)
    changed = [key for key in differing if key not in NOT_PROCEDURE]
    if all(_is_in(key, ("eval",)) for key in changed):
        alike = (
            "same recipe and seeds, evaluated in two ways"
            if changed
            else "same recipe and seeds, trained twice"
        )
        return Pairing(tuple(common), alike)
    other = {key: differing[key] for key in changed if _decides_draws(key, differing[key])}
    if other:
        return Pairing(
            (), f"equal seeds do not share their random draws: {_first_difference(other)}"
        )
    shared = "equal seeds share initial weights, order and augmentation"
    if len(planned) < FEWEST:
        return Pairing((), f"{shared}, but {len(planned)} common seeds are fewer than {FEWEST}")
    return Pairing(tuple(common), shared)


def _decides_draws(key: str, values: tuple[Any, Any]) -> bool:
    """Of code of the user's own, what it decides is not known where both have that file."""
    return _is_in(key, DRAWN) or (_is_in(key, ("code",)) and None not in values)


def _first_difference(other: Mapping[str, tuple[Any, Any]]) -> str:
    """`model.width differs`; of ingredients that differ as a whole, their names."""
    for key, (a, b) in sorted(other.items()):
        section, _, rest = key.partition(".")
        if rest == "name":
            return f"{section} differs ({a}, {b})"
    return f"{min(other)} differs"


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


@dataclass(frozen=True)
class _Case:
    """Two sides on one test set."""

    a: Side
    b: Side
    labels: tuple[str | None, str | None]  # of the measurements, None for numbers
    pairing: Pairing
    read: Callable[[Path], Trained]

    @property
    def set(self) -> str | None:
        return next((_set_of(label) for label in self.labels if label is not None), None)


def compare_pairs(
    sides: Sequence[Side], want: float | None = None, level: float = LEVEL
) -> list[dict[str, Any]]:
    """Each pair of two or more sides on each test set that both have, the main sets first.

    Several tests: p is corrected by Holm, and intervals are simultaneous by Bonferroni. `want`: the
    difference in points to plan runs for; `level`: of all tests together. Raises `UsageError`.
    """
    if want is not None and not 0 < want <= 100:
        raise UsageError(f"--want: {want:g} must be above 0 and at most 100 points.")
    read = cache(read_trained)  # each side is in many pairs
    each = [_cases(a, b, read) for a, b in combinations(sides, 2)]
    cases = [cases[0] for cases in each] + [case for cases in each for case in cases[1:]]
    pairs = [_pair(case, level / len(cases), want) for case in cases]
    tested = [pair for pair in pairs if pair["p"] is not None]
    if len(pairs) > 1:
        for pair, p in zip(tested, holm_correction([pair["p"] for pair in tested]), strict=True):
            pair["p_uncorrected"], pair["p"] = pair["p"], p
    for number, (pair, case) in enumerate(zip(pairs, cases, strict=True)):
        _clip_at_zero(pair, level)
        pair["confidence"] = 100 * (1 - level)
        on = case.set if number >= len(each) else None
        pair["claim"] = claims.claim_sentence(pair, level, on=on)
    return pairs


def describe_sides(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Each side by itself: mean, std, its runs and how they ended, median, and 95 % interval.

    The interval of several runs is of their mean, over new seeds on these test images; that of one
    run is of its network's accuracy, over new test images.
    """
    return [
        {
            "name": side.name,
            "row": side.row,
            "mean": side.sample.mean,
            "std": side.stated_std if side.sample.std is None else side.sample.std,
            "n": side.sample.n if side.counts_runs else None,
            "runs": format_planned(side.sample.n, side.missing.values())
            if side.counts_runs
            else "?",
            "lost": dict(side.missing),
            "warnings": side.warnings,
            **median_and_iqm(side.values),
            **_interval(side),
        }
        for side in sides
    ]


def _interval(side: Side) -> dict[str, Any]:
    """A side's 95 % interval, and what it is over."""
    if (interval := t_interval(side.sample, PERCENT)) is not None:
        return {"low": interval[0], "high": interval[1], "over": "seeds"}
    if side.kept is not None:
        low, high = wilson_interval(side.sample.mean / 100 * len(side.kept), len(side.kept))
        return {"low": low, "high": high, "over": "images"}
    if len(side.paths) == 1:
        result = read_result(RunDirectory(next(iter(side.paths.values()))))
        if "top1" in result:
            rows = by_measurement(result["sets"])
            low, high = accuracy_interval(rows[side.row] if side.row else result)
            return {"low": low, "high": high, "over": "images"}
    return {"low": None, "high": None, "over": None}


def _cases(a: Side, b: Side, read: Callable[[Path], Trained]) -> list[_Case]:
    """The main test set of both, then every other set that both were measured on."""
    pairing = choose_pairing(a, b, read=read)
    mains = next(iter(a.sets), None), next(iter(b.sets), None)
    cases = [_Case(a, b, mains, pairing, read)]
    seen = {_set_of(label) for label in mains if label is not None}
    for first, second in product(list(a.sets)[1:], list(b.sets)[1:]):
        new = _set_of(first) == _set_of(second) and _set_of(first) not in seen
        if new and a.images_of[first].may_equal(b.images_of[second]):
            seen.add(_set_of(first))
            sides = at_measurement(a, first), at_measurement(b, second)
            cases.append(_Case(*sides, (first, second), pairing, read))
    return cases


def _set_of(label: str) -> str:
    """The test set of a measurement: `val` of `val 224px@0.95 flip`."""
    return label.split(" ")[0]


def _pair(case: _Case, level: float, want: float | None) -> dict[str, Any]:
    """The stable keys of `--json` for one pair."""
    a, b = case.a, case.b
    test, how = _test(a, b, case.pairing)
    p, bounds = test.p, test.interval(level)
    samples = _samples(case, test)
    skewed = [name for name, values in samples.items() if is_skewed(values)]
    least = _smallest_p(list(samples.values()), paired=test.paired)
    permutation = None
    if least < LEVEL:
        permutation = _permutation_test(list(samples.values()), paired=test.paired)
    decides = bool(skewed) and least < level
    if decides and permutation is not None and p is not None and bounds is not None:
        p = max(p, permutation(0.0))
        bounds = permutation_interval(permutation, bounds, level)
    if bounds is not None:
        bounds = max(bounds[0], -PERCENT[1]), min(bounds[1], PERCENT[1])
    pair: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "set": case.set,
        "difference": test.mean,
        "low": bounds and bounds[0],
        "high": bounds and bounds[1],
        "p": p,
        "permutation_p": permutation and permutation(0.0),
        "cohens_dz" if test.paired else "cohens_d": test.effect,
        "n": list(test.n),
        "runs": [format_planned(side.sample.n, side.missing.values()) for side in (a, b)],
        "lost": [dict(a.missing), dict(b.missing)],
        "detectable": test.detectable(level),
        "want": want,
        "needed": None if want is None else test.runs_needed(want, level),
        "counted": [a.counts_runs, b.counts_runs],
        "std": test.std,
        "std_planned": test.planned and test.planned.std,
        "std_bound": test.std_bound,
        "epochs": [a.epochs, b.epochs],
        "rows": [a.row, b.row],
        "rows_chosen": [a.row_is_chosen, b.row_is_chosen],
        "subsets": [_subset(a), _subset(b)],
        "how": how,
        "about": "nothing" if test.p is None else "assumed" if test.borrowed else "recipes",
        "skewed": skewed,
        "permutation_decides": decides,
        "correlation": _correlation(a, b),
        "superiority": _superiority(a, b),
        "run_pairs": len(a.values) * len(b.values),
        "middles": {
            side.name: median_and_iqm(side.values) for side in (a, b) if len(side.values) > 1
        },
        "diverged": _compare_divergence(a, b),
        "equal": {what: _at_equal(case, what) for what in ("epoch", "seconds")},
    }
    if test.borrowed:
        alone, other = (b, a) if b.sample.std is None else (a, b)
        runs = alone.sample.n if alone.counts_runs else None
        pair["assumes"] = {"alone": alone.name, "like": other.name, "runs": runs}
    if test.p is None and len(a.paths) == len(b.paths) == 1:
        pair |= _test_networks(case, level)
    return pair


def _subset(side: Side) -> Any:
    """`data.subset` of the side's runs, which took a part of the images; else None."""
    first = next(iter(side.paths.values()), None)
    if first is None or not RunDirectory(first).recipe.is_file():
        return None
    return recipe_in(first).tree["data"].get("subset")


def _test(a: Side, b: Side, pairing: Pairing) -> tuple[Difference, str]:
    """The paired t-test; Welch's without pairs, or where they do not spread."""
    if pairing.seeds:
        first, second = ([side.values[seed] for seed in pairing.seeds] for side in (a, b))
        test = paired_t_test(first, second)
        if test.p is not None:
            alone = {*a.values, *b.values} - {*pairing.seeds}
            of = f"the {len(pairing.seeds)} common seeds" if alone else "seeds"
            return test, f"paired t-test over {of} ({pairing.why})"
    why = "the differences of equal seeds have no spread" if pairing.seeds else pairing.why
    test = welch_test(a.sample, b.sample)
    if test.p is None:
        return test, ""
    how = "Welch's t-test" + (f" ({why})" if why else "")
    if min(test.n) < FEWEST_WELCH and not test.borrowed:
        how += ", with 1 degree of freedom, as 2 runs are too few for its approximation"
    return test, how


def _samples(case: _Case, test: Difference) -> dict[str, list[float]]:
    """What the test assumes to be normal: the differences of pairs, else each side's runs."""
    a, b = case.a, case.b
    if test.paired:
        seeds = case.pairing.seeds
        return {"the differences of equal seeds": [b.values[s] - a.values[s] for s in seeds]}
    known = [side for side in (a, b) if len(side.values) > 1]
    return {f"the runs of {side.name}": list(side.values.values()) for side in known}


def _smallest_p(samples: Sequence[Sequence[float]], *, paired: bool) -> float:
    """The smallest p that a permutation test can have; 1 where the runs of a side are not known."""
    if len(samples) < 2 and not paired:
        return 1.0
    arrangements = 2 ** len(samples[0]) if paired else comb(sum(map(len, samples)), len(samples[0]))
    return min(1.0, 2 / arrangements)


def _permutation_test(
    samples: Sequence[Sequence[float]], *, paired: bool
) -> Callable[[float], float]:
    """The p of a permutation test, given the difference that is assumed to be the true one."""
    if paired:
        return lambda assumed: sign_flip_test(np.subtract(samples[0], assumed))
    return exchange_test(*samples)


def _correlation(a: Side, b: Side) -> list[float] | None:
    """Pearson's r between the results of common seeds, and its 95 % interval."""
    common = sorted(a.values.keys() & b.values.keys())
    if len(common) < FEWEST_CORRELATED:
        return None
    first, second = (np.array([side.values[seed] for seed in common]) for side in (a, b))
    if not (first.std() and second.std()):
        return None
    return list(correlation_interval(first, second))


def _superiority(a: Side, b: Side) -> list[float] | None:
    """The probability that a run of b beats one of a, and its 95 % interval."""
    if min(len(a.values), len(b.values)) < 2:
        return None
    return list(probability_of_superiority(list(a.values.values()), list(b.values.values())))


def median_and_iqm(values: Mapping[int, float]) -> dict[str, float | None]:
    """Both None where no single run is known."""
    runs = list(values.values())
    if not runs:
        return {"median": None, "iqm": None}
    return {"median": median(runs), "iqm": interquartile_mean(runs)}


def _compare_divergence(a: Side, b: Side) -> dict[str, Any] | None:
    """How many runs diverged on each side, and the p of Fisher's exact test."""
    runs = [list(side.missing.values()).count("diverged") for side in (a, b)]
    if not any(runs):
        return None
    finished = [len(side.values) for side in (a, b)]
    return {"runs": runs, "p": fisher_exact_test(runs, finished) if all(finished) else None}


def _test_networks(case: _Case, level: float) -> dict[str, Any]:
    """Two single runs on the same images: McNemar's test, or a bootstrap over images.

    This compares two networks, not their recipes, or two evaluations of one network. `seed_noise`:
    the standard deviation between seeds at which two runs of one recipe differ by as much in 5 % of
    cases.
    """
    a, b = case.a, case.b
    paths = [next(iter(side.paths.values())) for side in (a, b)]
    arrays = [load_predictions(*each) for each in zip(paths, case.labels, strict=True)]
    tasks = [task_of(each) for each in arrays]
    if tasks[0] != tasks[1]:
        return {}
    same = [*a.networks.values()] == [*b.networks.values()]
    noise = None if same else abs(b.sample.mean - a.sample.mean) / CHANCE
    networks = {"about": "evaluations" if same else "networks", "seed_noise": noise}
    if tasks[0] is not None:
        test = bootstrap_difference(arrays[0], arrays[1], level)
        return {**networks, **test} if "p" in test else test
    first, second = (
        correct_predictions(each)[slice(None) if side.kept is None else side.kept]
        for each, side in zip(arrays, (a, b), strict=True)
    )
    if len(first) != len(second):
        return {}
    only_a, only_b, p = mcnemar_test(first, second)
    both = int((first & second).sum())
    low, high = paired_proportions_interval(only_a, only_b, both, len(first), level)
    return {
        **networks,
        "p": p,
        "low": low,
        "high": high,
        "images": len(first),
        "how": f"McNemar's test on {len(first)} images: {only_a} correct only in {a.name}, "
        f"{only_b} only in {b.name}; Newcombe's interval",
    }


def _at_equal(case: _Case, what: str) -> dict[str, Any] | None:
    """The pair at the same epoch, or after the same seconds of training where these may differ for
    another reason than the machine's load.
    """
    equal = at_equal_budget(case.a, case.b, what)
    if equal is None or (what == "seconds" and _steps_cost_alike(case)):
        return None
    end, first, second = equal
    test, how = _test(first, second, case.pairing)
    return {"at": end, "difference": test.mean, "p": test.p, "how": how}


def _steps_cost_alike(case: _Case) -> bool:
    first, second = (next(iter(side.paths.values())) for side in (case.a, case.b))
    changed = run_changes(first, second, read=case.read)
    other = [key for key in changed if key not in NOT_PROCEDURE and not _is_in(key, FREE)]
    return not other and not any(_is_in(key, ("optim",)) and ".name" in key for key in changed)


def _clip_at_zero(pair: dict[str, Any], level: float) -> None:
    """Clips the interval of a significant difference at 0.

    Holm's test rejects more than Bonferroni's intervals exclude; clipped, the intervals are
    simultaneous with its claims (Guilbaud 2008).
    """
    if pair["low"] is None or pair["p"] >= level or "images" in pair:
        return  # of McNemar's test p and interval are not of one statistic
    end, sign = ("low", 1) if pair["difference"] > 0 else ("high", -1)
    if sign * pair[end] < 0:
        pair |= {end: 0.0, "clipped": True}
