"""Hyperparameter search (Smith 2018, section 5): batch size and rate, momentum, weight decay.

Every decision is a function of runs' curves, so that a resumed search reuses the finished runs and
makes the same decisions. How a recipe is run is up to the caller (`Run`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rescue_cli.analysis import lr_range
from rescue_cli.analysis.claims import is_claimed
from rescue_cli.analysis.compare import compare_pairs, describe_sides
from rescue_cli.analysis.curves import diagnose_fit
from rescue_cli.analysis.lr_range import Curves, Ramp
from rescue_cli.analysis.sides import Side, load_side
from rescue_cli.analysis.stats import LEVEL as TEST_LEVEL
from rescue_cli.analysis.stats import t_quantile
from rescue_cli.analysis.sweep import PREFIX
from rescue_cli.formatting import format_count
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import optim_path, without_lr_rule
from rescue_cli.rundir import RunDirectory

FEWEST_STEPS = 50  # steps per epoch that a batch size should leave
FACTORS = (1.0, 0.5, 0.25, 0.125)  # of the largest stable rate
MOMENTA = (0.99, 0.97, 0.95, 0.9)
USUAL_MOMENTUM = 0.9
LOWEST_MOMENTUM = 0.85  # of the momentum cycle, at the highest rate
EXPONENTS = (-3.0, -4.0, -5.0)  # of weight decay; also 0
DECADES = (-2.0, 3.0)  # of the range test, around the recipe's rate
POINTS = 40  # of the range test
SEEDS = 3  # short runs of each recipe that is compared
LEVEL = 0.1  # one-sided: how often a setting without effect replaces the current one


@dataclass(frozen=True)
class Outcome:
    """A finished short run: held-out loss and accuracy at every evaluation."""

    name: str
    losses: Sequence[float]
    accuracies: Sequence[float]
    diverged: bool

    @property
    def loss(self) -> float:
        return math.inf if self.diverged or not self.losses else self.losses[-1]

    @property
    def diagnosis(self) -> str:
        return "divergence" if self.diverged else diagnose_fit(self.losses)

    def __str__(self) -> str:
        if self.loss == math.inf:
            return "diverged"
        return f"loss {self.loss:.4f}, top-1 {self.accuracies[-1]:.2f} %, {self.diagnosis}"


@dataclass(frozen=True)
class Decision:
    """One step of the search: the settings tried, their results, the choice and the reason."""

    step: str
    tried: list[tuple[str, str]]  # setting, result
    chosen: str
    why: str
    outcomes: list[Outcome] = field(default_factory=list)
    ranges: list[Curves] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """A recipe and its short runs, one for each comparison seed."""

    recipe: Recipe
    outcomes: list[Outcome]

    @property
    def loss(self) -> float:
        """The mean; infinite where a run diverged."""
        return fmean(outcome.loss for outcome in self.outcomes)

    @property
    def noise(self) -> float:
        """The standard deviation between seeds, relative to the mean."""
        return stdev(outcome.loss for outcome in self.outcomes) / self.loss

    def __str__(self) -> str:
        diverged = sum(outcome.loss == math.inf for outcome in self.outcomes)
        if diverged:
            return f"{diverged} of {len(self.outcomes)} runs diverged"
        return f"loss {self.loss:.4f}, the mean of {len(self.outcomes)} runs"


Run = Callable[[str, Recipe], Outcome]
RangeRun = Callable[[str, Recipe, Ramp], Curves]
Tried = tuple[str, Recipe, Outcome]  # a setting, the recipe with it, its first run
KEPT = "as it is"
KEEP = "Keep the recipe unchanged."


def largest_batch_size(images: int, fits: Callable[[int], bool]) -> tuple[int, str]:
    """The largest power of two that fits into memory and leaves 50 steps per epoch, and why."""
    most = max(1, images // FEWEST_STEPS)
    size: int = 2 ** int(math.log2(most))
    why = f"{images} images give {FEWEST_STEPS} steps per epoch for batches of up to {most}"
    while size > 1 and not fits(size):
        size //= 2
        why = (
            "the largest power of two that fits into memory; "
            f"{FEWEST_STEPS} steps per epoch would allow {most}"
        )
    return size, why


class Search:
    """The current recipe; another replaces it only where it is better beyond noise.

    A setting is tried once, with the recipe's own seed. The lowest loss of those tried is
    optimistic (it was selected), so its recipe is run again with other seeds, the same for all
    recipes, and only these runs decide.
    """

    def __init__(self, base: Recipe, run: Run) -> None:
        self.run = run
        self.known: list[Candidate] = []
        self.current = self._measure("base", base)

    @property
    def recipe(self) -> Recipe:
        return self.current.recipe

    @property
    def base(self) -> Decision:
        """The base recipe's loss, and the standard deviation between its seeds."""
        first = self.known[0]
        tried = [(outcome.name, str(outcome)) for outcome in first.outcomes]
        noise = ""
        if first.loss < math.inf:
            noise = f"; standard deviation between seeds {100 * first.noise:.1f} %"
        return Decision("recipe", tried, KEPT, f"{first}{noise}", first.outcomes)

    def rate(self, batch: int, why: str, epochs: float, range_run: RangeRun) -> Decision:
        """Batch size and learning rate: a range test over five decades, then cycles up to its rate.

        The two are chosen together: the best of one depends on the other. Momentum, where there is
        one, is 0.9 meanwhile, as in the paper's range tests.
        """
        step = "batch size, learning rate"
        recipe = _with_momentum(with_batch_size(self.recipe, batch), USUAL_MOMENTUM)
        lr = recipe.optim[0].lr
        low, high = (lr * 10**decade for decade in DECADES)
        ramp = Ramp(low, high, "exponential", None, epochs, POINTS)
        curves = range_run("range", recipe, ramp)
        highest = lr_range.estimate_max_lr(curves).max_lr
        label = f"batch {batch}, ramp {low:.2g} to {high:.2g}"
        if highest is None:
            result = "no largest stable rate found"
            why = f"{result}, so no rate to try"
            return Decision(step, [(label, result)], KEPT, why, [], [curves])
        settings: list[Tried] = []
        for factor in FACTORS:
            rate = _two_digits(highest * factor)
            made = lr_range.with_one_cycle(recipe, rate, None)
            settings.append(self._try(f"lr-{rate:g}", f"batch {batch}, 1cycle to {rate:g}", made))
        decided = self._decide(step, settings)
        result = f"stable up to {highest:.3g}; {why}"
        return Decision(
            step, [(label, result), *decided.tried], decided.chosen, decided.why, decided.outcomes,
            [curves],
        )  # fmt: skip

    def momentum(self) -> Decision:
        """Constant momenta, then, where the schedule supports it, a cycle from the best down."""
        if not any("momentum" in item.options for item in self.recipe.optim):
            return Decision("momentum", [], KEPT, "the optimizer has no momentum")
        cycles = "momentum" in self.recipe.schedule.options
        settings = []
        for value in MOMENTA:
            made = _with_momentum(self.recipe, value)
            made = made.with_overrides("schedule.momentum=null") if cycles else made
            if made != self.recipe:
                settings.append(self._try(f"momentum-{value:g}", f"{value:g}", made))
        best = float(_lowest(settings)[0])
        if cycles and best > LOWEST_MOMENTUM:
            made = _with_momentum(self.recipe, best)
            made = made.with_overrides(f"schedule.momentum=[{best}, {LOWEST_MOMENTUM}]")
            name, label = (f"{best:g}{to}{LOWEST_MOMENTUM:g}" for to in ("-", " to "))
            settings.append(self._try(f"momentum-{name}", label, made))
        return self._decide("momentum", settings)

    def weight_decay(self) -> Decision:
        """A grid of powers of ten, then midpoints between the best and its neighbours."""
        settings: list[Tried] = []

        def try_decay(exponent: float) -> float:
            value = 0.0 if exponent == -math.inf else _one_digit(10**exponent)
            made = _with_weight_decay(self.recipe, value)
            if made == self.recipe:
                return self.current.loss
            settings.append(self._try(f"decay-{value:g}", f"{value:g}", made))
            return settings[-1][2].loss

        losses = {exponent: try_decay(exponent) for exponent in (*EXPONENTS, -math.inf)}
        best = min(losses, key=lambda e: losses[e])
        if best != -math.inf:
            for neighbour in (best + 0.5, best - 0.5):
                try_decay(neighbour)
        return self._decide("weight decay", settings)

    def _try(self, name: str, label: str, recipe: Recipe) -> Tried:
        return label, recipe, self.run(name, recipe)

    def _measure(self, name: str, recipe: Recipe) -> Candidate:
        """Runs with the comparison seeds, which were not used to select a setting."""
        first = recipe.train.seed + 1
        outcomes = [
            self.run(f"{name}-seed-{seed}", recipe.with_seed(seed))
            for seed in range(first, first + SEEDS)
        ]
        self.known.append(Candidate(recipe, outcomes))
        return self.known[-1]

    def _decide(self, step: str, settings: Sequence[Tried]) -> Decision:
        """Replaces the current recipe by the best setting if that is better beyond noise."""
        label, recipe, first = _lowest(settings)
        tried = [(name, str(outcome)) for name, _, outcome in settings]
        outcomes = [outcome for _, _, outcome in settings]
        if not first.loss < self.current.loss:
            why = f"none is better than the current recipe ({self.current})"
            return Decision(step, tried, KEPT, why, outcomes)
        before, challenger = self.current, self._measure(first.name, recipe)
        tried += [(f"{label}, again", str(outcome)) for outcome in challenger.outcomes]
        better, why = self._beyond_noise(before, challenger)
        if not better:
            return Decision(
                step, tried, KEPT, f"{label} was best by its first run; again, {why}", outcomes
            )
        self.current = challenger
        return Decision(step, tried, label, why, outcomes)

    def _beyond_noise(self, before: Candidate, challenger: Candidate) -> tuple[bool, str]:
        """Whether a one-sided t-test finds it better, by the noise of all recipes so far."""
        if math.inf in (before.loss, challenger.loss):
            return challenger.loss < before.loss, f"{challenger}, against {before}"
        candidates = [candidate for candidate in self.known if candidate.loss < math.inf]
        noise = math.sqrt(fmean(candidate.noise**2 for candidate in candidates))
        freedom = len(candidates) * (SEEDS - 1)
        gain = 1 - challenger.loss / before.loss
        bound = t_quantile(freedom, 2 * LEVEL) * noise * math.sqrt(2 / SEEDS)
        way = "lower" if gain > 0 else "higher"
        return gain > bound, (
            f"loss {challenger.loss:.4f} against {before.loss:.4f} ({SEEDS} runs each), "
            f"{100 * abs(gain):.1f} % {way}; beyond noise from {100 * bound:.1f} %"
        )


def with_batch_size(recipe: Recipe, size: int) -> Recipe:
    """The recipe with batches of `size` images, each one micro-batch."""
    sizes = [f"train.batch_size={size}", f"train.device_batch_size={size}"]
    return recipe.with_overrides(*sizes, *without_lr_rule(recipe))


def _with_momentum(recipe: Recipe, value: float) -> Recipe:
    """Sets the momentum of every optimizer that has one."""
    return recipe.with_overrides(
        *(
            f"{optim_path(recipe, index)}.momentum={value}"
            for index, item in enumerate(recipe.optim)
            if "momentum" in item.options
        )
    )


def _with_weight_decay(recipe: Recipe, value: float) -> Recipe:
    """Sets the first weight decay to `value`; the others keep their ratio to it."""
    decays = [item.weight_decay for item in recipe.optim]
    reference = next((decay for decay in decays if decay), None)
    changes = []
    for index, decay in enumerate(decays):
        scaled = value if reference is None else value * decay / reference
        changes.append(f"{optim_path(recipe, index)}.weight_decay={scaled:g}")
    return recipe.with_overrides(*changes)


def _lowest(settings: Sequence[Tried]) -> Tried:
    return min(settings, key=lambda tried: tried[2].loss)


def _one_digit(value: float) -> float:
    return float(f"{value:.0e}")


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def decision_to_json(decision: Decision) -> Mapping[str, Any]:
    """A decision for JSON."""
    return {
        "step": decision.step,
        "tried": [list(pair) for pair in decision.tried],
        "chosen": decision.chosen,
        "why": decision.why,
    }


def planned_runs(recipe: Recipe) -> int:
    """The number of short runs that a search takes at most."""
    has_momentum = any("momentum" in item.options for item in recipe.optim)
    tried = [len(FACTORS), len(EXPONENTS) + 3, *([len(MOMENTA) + 1] if has_momentum else [])]
    return SEEDS + sum(count + SEEDS for count in tried)


@dataclass(frozen=True)
class Verdict:
    """Whether the tuned recipe may be called better than the base, and the sentences about it."""

    better: bool
    sentences: list[str]
    sides: Sequence[Side] = ()
    pairs: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "better": self.better,
            "said": self.sentences,
            "sides": describe_sides(self.sides),
            **(self.pairs[0] if self.pairs else {}),
        }


UNCHANGED = Verdict(False, [f"No setting is better beyond noise. {KEEP}"])


def judge_sweeps(base: Path, tuned: Path, seeds: Sequence[int]) -> Verdict:
    """Compares the base and the tuned sweep, whose runs have all ended."""
    missing = {
        path: [seed for seed in seeds if not RunDirectory(path / f"{PREFIX}{seed}").finished]
        for path in (base, tuned)
    }
    sentences = [
        f"{path}: {len(diverged)} of {format_count(len(seeds), 'run')} diverged"
        for path, diverged in missing.items()
        if diverged
    ]
    if len(missing[tuned]) == len(seeds):
        return Verdict(False, [*sentences, KEEP])
    if len(missing[base]) == len(seeds):
        return _without_base(load_side(str(tuned)), sentences, some_missing=bool(missing[tuned]))
    verdict = judge(load_side(str(base)), load_side(str(tuned)), missing=len(missing[tuned]))
    return Verdict(verdict.better, [*sentences, *verdict.sentences], verdict.sides, verdict.pairs)


def judge(base: Side, tuned: Side, *, missing: int = 0) -> Verdict:
    """Compares the finished runs; a tuned recipe with `missing` runs is never better."""
    sides = [base, tuned]
    pairs = compare_pairs(sides)
    better = not missing and is_claimed(pairs[0], TEST_LEVEL) and pairs[0]["difference"] > 0
    return Verdict(better, [] if better else [KEEP], sides, pairs)


def _without_base(tuned: Side, sentences: Sequence[str], *, some_missing: bool) -> Verdict:
    """The verdict where every base run diverged, so that there is nothing to compare with.

    If both were equally likely to diverge, all runs of one and none of the other would do so in
    one case of 4^n at most, which is 1.6 % for three runs.
    """
    only_base = "Every run of the base recipe diverged, and none of the tuned one."
    return Verdict(not some_missing, [*sentences, KEEP if some_missing else only_base], [tuned])
