"""Every pair of a comparison: how large the difference is, how sure, and what may be claimed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb
from pathlib import Path
from statistics import median
from typing import Any

from rescue_cli.analysis import claims
from rescue_cli.analysis.accuracy import accuracy_interval
from rescue_cli.analysis.bootstrap import bootstrap_difference, task_of
from rescue_cli.analysis.consistency import run_changes
from rescue_cli.analysis.records import NOT_PROCEDURE
from rescue_cli.analysis.sides import Side, at_equal_budget, correct_predictions, load_predictions
from rescue_cli.analysis.stats import (
    LEVEL,
    NORMAL_95,
    PERCENT,
    Difference,
    fisher_exact_test,
    holm_correction,
    interquartile_mean,
    is_skewed,
    mcnemar_test,
    paired_t_test,
    pearson_r,
    probability_of_superiority,
    sample,
    sign_flip_test,
    t_interval,
    two_sample_permutation_test,
    welch_test,
)
from rescue_cli.rundir import RunDirectory, read_result
from rescue_cli.rundir.planned import of_planned

# What a seed draws, by the sections and keys that decide how it is drawn
DRAWN = ("data", "sampling", "augment", "mix", "selection", "model",
         "train.batch_size", "train.device_batch_size")  # fmt: skip
FEWEST = 8  # seeds in common, from which pairs that share their draws are tested as pairs
FEWEST_CORRELATED = 3  # seeds in common, from which their correlation is told
CHANCE = NORMAL_95 * 2**0.5  # stds between two runs of one recipe that 5 % of pairs go beyond


@dataclass(frozen=True)
class Pairing:
    """The seeds that are tested as pairs, none for Welch's test; and why."""

    seeds: tuple[int, ...]
    why: str


def choose_pairing(a: Side, b: Side) -> Pairing:
    """The test for two sides by what their recipes share and how many seeds both were planned with.

    Runs that differ in their evaluation alone are the same networks, and pairs from two on.
    """
    common = sorted(a.values.keys() & b.values.keys())
    planned = (a.values.keys() | a.lost.keys()) & (b.values.keys() | b.lost.keys())
    if len(common) < 2 or not (a.paths and b.paths):
        return Pairing((), "")
    changed = _changed(next(iter(a.paths.values())), next(iter(b.paths.values())))
    if all(_is_in(key, ("eval",)) for key in changed):
        alike = (
            "the same networks, evaluated in two ways" if changed else "one recipe, trained twice"
        )
        return Pairing(tuple(common), alike)
    other = sorted(key for key in changed if _is_in(key, DRAWN))
    if other:
        return Pairing((), f"equal seeds draw differently: {other[0]} differs")
    shared = "equal seeds share initial weights, order and augmentation"
    if len(planned) < FEWEST:
        return Pairing((), f"{shared}, but {len(planned)} are fewer than {FEWEST}")
    return Pairing(tuple(common), shared)


def _changed(a: Path, b: Path) -> Mapping[str, Any]:
    """The keys in which what was trained or measured differs."""
    return {key: values for key, values in run_changes(a, b).items() if key not in NOT_PROCEDURE}


def _is_in(key: str, sections: tuple[str, ...]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


@dataclass(frozen=True)
class _Case:
    """Two sides as they did on one test set."""

    a: Side
    b: Side
    labels: tuple[str | None, str | None]  # of the measurements, None for numbers
    pairing: Pairing

    @property
    def set(self) -> str | None:
        return next((_set_of(label) for label in self.labels if label is not None), None)


def compare_pairs(
    sides: Sequence[Side], want: float | None = None, level: float = LEVEL
) -> list[dict[str, Any]]:
    """Each pair of two or more sides on each test set that both have, the main sets first.

    Where that makes several tests their p are corrected by Holm, and their intervals hold together
    by Bonferroni. `want`: the difference that the runs asked for are to see; `level`: of all tests.
    """
    each = [_cases(a, b) for a, b in combinations(sides, 2)]
    cases = [cases[0] for cases in each] + [case for cases in each for case in cases[1:]]
    found = [_pair(case, level / len(cases), want) for case in cases]
    judged = [pair for pair in found if pair["p"] is not None]
    if len(found) > 1:
        for pair, p in zip(judged, holm_correction([pair["p"] for pair in judged]), strict=True):
            pair["p_uncorrected"], pair["p"] = pair["p"], p
    for place, (pair, case) in enumerate(zip(found, cases, strict=True)):
        _away_from_zero(pair, level)
        pair["claim"] = claims.claim_sentence(
            pair, level, on=case.set if place >= len(each) else None
        )
    return found


def describe_sides(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """Each side by itself: mean, std, number and fate of its runs, middles, and its 95 % interval.

    The interval of several runs is that of the mean, for new seeds on these test images; of one run
    that of its network's accuracy, for new test images.
    """
    return [
        {
            "name": side.name,
            "mean": side.sample.mean,
            "std": side.sample.std,
            "n": side.sample.n,
            "runs": of_planned(side.sample.n, side.lost.values()),
            "lost": dict(side.lost),
            **middles(side.values),
            **_bounds(side),
        }
        for side in sides
    ]


def _bounds(side: Side) -> dict[str, Any]:
    """Low and high of a side's interval, and what it is over."""
    if (band := t_interval(side.sample, PERCENT)) is not None:
        return {"low": band[0], "high": band[1], "over": "seeds"}
    if len(side.paths) == 1:
        result = read_result(RunDirectory(next(iter(side.paths.values()))))
        if "top1" in result:
            low, high = accuracy_interval(result)
            return {"low": low, "high": high, "over": "images"}
    return {"low": None, "high": None, "over": None}


def _cases(a: Side, b: Side) -> list[_Case]:
    """The main test set of both, then each other that both were measured on."""
    how = choose_pairing(a, b)
    mains = next(iter(a.sets), None), next(iter(b.sets), None)
    found = [_Case(a, b, mains, how)]
    seen = {_set_of(label) for label in mains if label is not None}
    for first, second in product(list(a.sets)[1:], list(b.sets)[1:]):
        new = _set_of(first) == _set_of(second) and _set_of(first) not in seen
        if new and a.images_of[first].can_be(b.images_of[second]):
            seen.add(_set_of(first))
            found.append(_Case(_at(a, first), _at(b, second), (first, second), how))
    return found


def _set_of(label: str) -> str:
    """The test set of a measurement: `val` of `val 224px@0.95 flip`."""
    return label.split(" ")[0]


def _at(side: Side, label: str) -> Side:
    """The side on another of its measurements."""
    values = side.sets[label]
    return replace(
        side, values=values, sample=sample(list(values.values())), images=side.images_of[label]
    )


def _pair(case: _Case, level: float, want: float | None) -> dict[str, Any]:
    """The stable keys of `--json` for one pair, and what else was looked at."""
    a, b = case.a, case.b
    found, how = _difference(a, b, case.pairing)
    low, high = found.interval(level) or (None, None)
    samples = _samples(case, found)
    skewed = [name for name, values in samples.items() if is_skewed(values)]
    permuted = _permuted(list(samples.values()), paired=found.paired, whatever=bool(skewed))
    pair: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "set": case.set,
        "difference": found.mean,
        "low": low,
        "high": high,
        "p": found.p,
        "permutation_p": permuted,
        "cohens_dz" if found.paired else "cohens_d": found.effect,
        "n": list(found.n),
        "runs": [of_planned(side.sample.n, side.lost.values()) for side in (a, b)],
        "lost": [dict(a.lost), dict(b.lost)],
        "detectable": found.detectable(level),
        "want": want,
        "needed": None if want is None else found.needed(want, level),
        "how": how,
        "about": _about(found),
        "skewed": skewed,
        "correlation": _correlation(a, b),
        "superiority": _superiority(a, b),
        "middles": {side.name: middles(side.values) for side in (a, b) if len(side.values) > 1},
        "diverged": _diverged(a, b),
        "equal": {what: _equal(case, what) for what in ("epoch", "seconds")},
    }
    if found.p is not None and skewed and permuted is not None:
        pair["p"] = max(found.p, permuted)
    if found.borrowed:
        alone, other = (b, a) if b.sample.std is None else (a, b)
        pair["assumes"] = {"alone": alone.name, "like": other.name, "runs": alone.sample.n}
    if found.p is None and len(a.paths) == len(b.paths) == 1:
        pair |= _same_images(case)
    return pair


def _difference(a: Side, b: Side, pairs: Pairing) -> tuple[Difference, str]:
    """By the test that the pairing says; Welch's where the differences of pairs have no spread."""
    if pairs.seeds:
        first, second = ([side.values[seed] for seed in pairs.seeds] for side in (a, b))
        found = paired_t_test(first, second)
        if found.p is not None:
            return found, f"paired by seed ({pairs.why})"
    why = "the differences of equal seeds have no spread" if pairs.seeds else pairs.why
    found = welch_test(a.sample, b.sample)
    how = "" if found.p is None else "Welch's t-test" + (f" ({why})" if why else "")
    return found, how


def _about(found: Difference) -> str:
    """What a test would speak of: recipes, or recipes by an assumption, or nothing."""
    if found.p is None:
        return "nothing"
    return "assumed" if found.borrowed else "recipes"


def _samples(case: _Case, found: Difference) -> dict[str, list[float]]:
    """What the test takes for normal: the differences of pairs, else each side's runs."""
    a, b = case.a, case.b
    if found.paired:
        seeds = case.pairing.seeds
        return {"the differences of equal seeds": [b.values[s] - a.values[s] for s in seeds]}
    known = [side for side in (a, b) if len(side.values) > 1]
    return {f"the runs of {side.name}": list(side.values.values()) for side in known}


def _permuted(samples: Sequence[Sequence[float]], *, paired: bool, whatever: bool) -> float | None:
    """The p by permutation, where the runs of both sides are known.

    None where so few runs could not bring it below the level, unless it is wanted `whatever` it is.
    """
    if len(samples) < 2 and not paired:
        return None
    arrangements = 2 ** len(samples[0]) if paired else comb(sum(map(len, samples)), len(samples[0]))
    if 2 / arrangements >= LEVEL and not whatever:
        return None
    return sign_flip_test(samples[0]) if paired else two_sample_permutation_test(*samples)


def _correlation(a: Side, b: Side) -> float | None:
    """Of the results of seeds that both have."""
    common = sorted(a.values.keys() & b.values.keys())
    if len(common) < FEWEST_CORRELATED:
        return None
    return pearson_r([a.values[seed] for seed in common], [b.values[seed] for seed in common])


def _superiority(a: Side, b: Side) -> list[float] | None:
    """How probable it is that a run of b beats one of a, with its 95 % interval."""
    if min(len(a.values), len(b.values)) < 2:
        return None
    return list(probability_of_superiority(list(a.values.values()), list(b.values.values())))


def middles(values: Mapping[int, float]) -> dict[str, float | None]:
    """Median and interquartile mean, None where no single run is known."""
    runs = list(values.values())
    if not runs:
        return {"median": None, "iqm": None}
    return {"median": median(runs), "iqm": interquartile_mean(runs)}


def _diverged(a: Side, b: Side) -> dict[str, Any] | None:
    """How many runs diverged on each side, and Fisher's exact p that it is equally likely."""
    runs = [list(side.lost.values()).count("diverged") for side in (a, b)]
    if not any(runs):
        return None
    finished = [len(side.values) for side in (a, b)]
    return {"runs": runs, "p": fisher_exact_test(runs, finished) if all(finished) else None}


def _same_images(case: _Case) -> dict[str, Any]:
    """Two single runs on the same images: McNemar's test, or a bootstrap over scenes.

    It speaks of two networks. `seed_noise`: the standard deviation between seeds at which two runs
    of one recipe are as far apart in 5 % of cases.
    """
    a, b = case.a, case.b
    paths = [next(iter(side.paths.values())) for side in (a, b)]
    arrays = [load_predictions(*each) for each in zip(paths, case.labels, strict=True)]
    kinds = [task_of(each) for each in arrays]
    if kinds[0] != kinds[1]:
        return {}
    noise = abs(b.sample.mean - a.sample.mean) / CHANCE
    networks = {"about": "networks", "seed_noise": noise}
    if kinds[0] is not None:
        found = bootstrap_difference(arrays[0], arrays[1])
        return {**networks, **found} if "p" in found else found
    first, second = (correct_predictions(each) for each in arrays)
    if len(first) != len(second):
        return {}
    only_a, only_b, p = mcnemar_test(first, second)
    return {
        **networks,
        "p": p,
        "images": len(first),
        "how": f"McNemar on {len(first)} images: {only_a} right in {a.name} alone, "
        f"{only_b} in {b.name} alone",
    }


def _equal(case: _Case, what: str) -> dict[str, Any] | None:
    """The pair as both stood at the same epoch, or after the same seconds."""
    if (found := at_equal_budget(case.a, case.b, what)) is None:
        return None
    end, first, second = found
    result, how = _difference(first, second, case.pairing)
    return {"at": end, "difference": result.mean, "p": result.p, "how": how}


def _away_from_zero(pair: dict[str, Any], level: float) -> None:
    """Cuts the interval of a difference that Holm claims off at 0.

    Holm rejects more than Bonferroni's intervals exclude; cut so, they hold together with its
    claims (Guilbaud 2008).
    """
    if pair["low"] is None or pair["p"] >= level:
        return
    if pair["difference"] > 0:
        pair["low"] = max(pair["low"], 0.0)
    else:
        pair["high"] = min(pair["high"], 0.0)
