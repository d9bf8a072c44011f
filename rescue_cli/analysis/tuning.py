"""Smith's section 5 as decisions: batch size and learning rate, momentum, weight decay.

Every decision is a function of runs' curves, so that a search that was stopped and begun again
takes the runs that are there and comes to the same end. What runs are is in the hands of `Run`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from rescue_cli.analysis import curves as clues
from rescue_cli.analysis import lr_range
from rescue_cli.analysis.lr_range import Ramp
from rescue_cli.analysis.power import t_quantile
from rescue_cli.analysis.range_curves import Curves
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import optim_path, without_lr_rule

FEWEST_STEPS = 50  # updates of an epoch that a batch should leave
FACTORS = (1.0, 0.5, 0.25, 0.125)  # of the largest stable rate
MOMENTA = (0.99, 0.97, 0.95, 0.9)
USUAL_MOMENTUM = 0.9
LOWEST_MOMENTUM = 0.85  # of the cycle, at the highest rate
EXPONENTS = (-3.0, -4.0, -5.0)  # of weight decay; and none
DECADES = (-2.0, 3.0)  # of the range test, about the recipe's own rate
POINTS = 40  # of the range test
SEEDS = 3  # short runs of each recipe that is compared with another
LEVEL = 0.1  # one-sided: how often a setting that changes nothing takes the default's place


@dataclass(frozen=True)
class Outcome:
    """A finished run: its held-out loss and accuracy at every evaluation."""

    name: str
    losses: Sequence[float]
    accuracies: Sequence[float]
    diverged: bool

    @property
    def loss(self) -> float:
        return math.inf if self.diverged or not self.losses else self.losses[-1]

    @property
    def clue(self) -> str:
        return "divergence" if self.diverged else clues.clue(self.losses)

    def __str__(self) -> str:
        if self.loss == math.inf:
            return "diverged"
        return f"loss {self.loss:.4f}, top-1 {self.accuracies[-1]:.2f} %, {self.clue}"


@dataclass(frozen=True)
class Decision:
    """One step of the search: what was tried, what was seen, what was chosen and why."""

    step: str
    tried: list[tuple[str, str]]  # a setting and what became of it
    chosen: str
    why: str
    outcomes: list[Outcome] = field(default_factory=list)
    ranges: list[Curves] = field(default_factory=list)


@dataclass(frozen=True)
class Measured:
    """A recipe and its short runs, one for each seed that compares recipes."""

    recipe: Recipe
    outcomes: list[Outcome]

    @property
    def loss(self) -> float:
        """The mean; infinite where a run diverged."""
        return fmean(outcome.loss for outcome in self.outcomes)

    @property
    def noise(self) -> float:
        """The standard deviation between seeds, as a part of the mean."""
        return stdev(outcome.loss for outcome in self.outcomes) / self.loss

    def __str__(self) -> str:
        lost = sum(outcome.loss == math.inf for outcome in self.outcomes)
        if lost:
            return f"{lost} of {len(self.outcomes)} runs diverged"
        return f"loss {self.loss:.4f}, the mean of {len(self.outcomes)} runs"


Run = Callable[[str, Recipe], Outcome]
RangeRun = Callable[[str, Recipe, Ramp], Curves]
Tried = tuple[str, Recipe, Outcome]  # a setting, the recipe with it, its first run
KEPT = "as it is"


def batch_size(images: int, fits: Callable[[int], bool]) -> tuple[int, str]:
    """The largest power of two that fits into memory and leaves 50 steps an epoch, and why."""
    most = max(1, images // FEWEST_STEPS)
    size: int = 2 ** int(math.log2(most))
    why = f"{images} images leave {FEWEST_STEPS} steps an epoch up to {most}"
    while size > 1 and not fits(size):
        size //= 2
        why = f"the largest power of two that fits into memory; {FEWEST_STEPS} steps allow {most}"
    return size, why


class Search:
    """The recipe that stands; another takes its place only where it is better beyond the noise.

    A setting is tried once, with the recipe's own seed. The lowest of those tried is lower than it
    deserves, so that it is run again with other seeds, the same for all, and these alone decide.
    """

    def __init__(self, base: Recipe, run: Run) -> None:
        self.run = run
        self.known: list[Measured] = []
        self.standing = self._measure("base", base)

    @property
    def recipe(self) -> Recipe:
        return self.standing.recipe

    @property
    def base(self) -> Decision:
        """What the recipe is worth before anything is changed, and by how much seeds differ."""
        first = self.known[0]
        tried = [(outcome.name, str(outcome)) for outcome in first.outcomes]
        noise = "" if first.loss == math.inf else f"; seeds differ by {100 * first.noise:.1f} %"
        return Decision("recipe", tried, KEPT, f"{first}{noise}", first.outcomes)

    def rate(self, batch: int, why: str, epochs: float, range_run: RangeRun) -> Decision:
        """A batch size, a range test with it over five decades, cycles to what it found and below.

        Batch size and rate go together: neither is worth anything with the other one's old value.
        Momentum, where there is one, is 0.9 meanwhile, as in the paper's range tests.
        """
        step = "batch size, learning rate"
        recipe = _with_momentum(with_batch(self.recipe, batch), USUAL_MOMENTUM)
        lr = recipe.optim[0].lr
        low, high = (lr * 10**decade for decade in DECADES)
        ramp = Ramp(low, high, "exponential", None, epochs, POINTS)
        curves = range_run("range", recipe, ramp)
        highest = lr_range.reading(curves).max_lr
        label = f"batch {batch}, ramp {low:.2g} to {high:.2g}"
        if highest is None:
            seen = "no largest stable rate found"
            return Decision(step, [(label, seen)], KEPT, f"{seen}, so none to try", [], [curves])
        found: list[Tried] = []
        for factor in FACTORS:
            rate = _two_digits(highest * factor)
            made = lr_range.applied(recipe, rate, None)
            found.append(self._try(f"lr-{rate:g}", f"batch {batch}, 1cycle to {rate:g}", made))
        decided = self._decide(step, found)
        seen = f"stable up to {highest:.3g}; {why}"
        return Decision(
            step, [(label, seen), *decided.tried], decided.chosen, decided.why, decided.outcomes,
            [curves],
        )  # fmt: skip

    def momentum(self) -> Decision:
        """Constant momenta, then, where the schedule can, a cycle from the best of them down."""
        if not any("momentum" in item.options for item in self.recipe.optim):
            return Decision("momentum", [], KEPT, "the optimizer has none to set")
        cycles = "momentum" in self.recipe.schedule.options
        found = []
        for value in MOMENTA:
            made = _with_momentum(self.recipe, value)
            made = made.with_overrides("schedule.momentum=null") if cycles else made
            if made != self.recipe:
                found.append(self._try(f"momentum-{value:g}", f"{value:g}", made))
        best = float(_lowest(found)[0])
        if cycles and best > LOWEST_MOMENTUM:
            made = _with_momentum(self.recipe, best)
            made = made.with_overrides(f"schedule.momentum=[{best}, {LOWEST_MOMENTUM}]")
            name, label = (f"{best:g}{to}{LOWEST_MOMENTUM:g}" for to in ("-", " to "))
            found.append(self._try(f"momentum-{name}", label, made))
        return self._decide("momentum", found)

    def weight_decay(self) -> Decision:
        """A grid of exponents, then midpoints between the best and its neighbours; one digit."""
        found: list[Tried] = []

        def tried(exponent: float) -> float:
            value = 0.0 if exponent == -math.inf else _one_digit(10**exponent)
            made = _decayed(self.recipe, value)
            if made == self.recipe:
                return self.standing.loss
            found.append(self._try(f"decay-{value:g}", f"{value:g}", made))
            return found[-1][2].loss

        losses = {exponent: tried(exponent) for exponent in (*EXPONENTS, -math.inf)}
        best = min(losses, key=lambda e: losses[e])
        if best != -math.inf:
            for neighbour in (best + 0.5, best - 0.5):
                tried(neighbour)
        return self._decide("weight decay", found)

    def _try(self, name: str, label: str, recipe: Recipe) -> Tried:
        return label, recipe, self.run(name, recipe)

    def _measure(self, name: str, recipe: Recipe) -> Measured:
        """Runs of the seeds that compare recipes; none of them has chosen one before."""
        first = recipe.train.seed + 1
        outcomes = [
            self.run(f"{name}-seed-{seed}", recipe.with_overrides(f"train.seed={seed}"))
            for seed in range(first, first + SEEDS)
        ]
        self.known.append(Measured(recipe, outcomes))
        return self.known[-1]

    def _decide(self, step: str, found: Sequence[Tried]) -> Decision:
        """The lowest setting stands from here on if it is better beyond the noise."""
        label, recipe, first = _lowest(found)
        tried = [(name, str(outcome)) for name, _, outcome in found]
        outcomes = [outcome for _, _, outcome in found]
        if not first.loss < self.standing.loss:
            return Decision(step, tried, KEPT, f"none is below its {self.standing}", outcomes)
        before, challenger = self.standing, self._measure(first.name, recipe)
        tried += [(f"{label}, again", str(outcome)) for outcome in challenger.outcomes]
        better, why = self._beyond_noise(before, challenger)
        if not better:
            return Decision(step, tried, KEPT, f"the best was {label}: {why}", outcomes)
        self.standing = challenger
        return Decision(step, tried, label, why, outcomes)

    def _beyond_noise(self, before: Measured, challenger: Measured) -> tuple[bool, str]:
        """Whether a t-test finds it better, by the noise of all that was measured until now."""
        if math.inf in (before.loss, challenger.loss):
            return challenger.loss < before.loss, f"{challenger}, against {before}"
        known = [one for one in self.known if one.loss < math.inf]
        noise = math.sqrt(fmean(one.noise**2 for one in known))
        freedom = len(known) * (SEEDS - 1)
        gain = 1 - challenger.loss / before.loss
        bound = t_quantile(freedom, 2 * LEVEL) * noise * math.sqrt(2 / SEEDS)
        way = "lower" if gain > 0 else "higher"
        return gain > bound, (
            f"loss {challenger.loss:.4f} against {before.loss:.4f} ({SEEDS} runs each), "
            f"{100 * abs(gain):.1f} % {way}; noise gives {100 * bound:.1f} %"
        )


def with_batch(recipe: Recipe, size: int) -> Recipe:
    """The recipe with batches of one micro-batch."""
    sizes = [f"train.batch_size={size}", f"train.device_batch_size={size}"]
    return recipe.with_overrides(*sizes, *without_lr_rule(recipe))


def _with_momentum(recipe: Recipe, value: float) -> Recipe:
    """The momentum of every optimizer that has one."""
    return recipe.with_overrides(
        *(
            f"{optim_path(recipe, place)}.momentum={value}"
            for place, item in enumerate(recipe.optim)
            if "momentum" in item.options
        )
    )


def _decayed(recipe: Recipe, value: float) -> Recipe:
    """The decay of the first item that has one becomes `value`; the others keep their ratio."""
    decays = [item.weight_decay for item in recipe.optim]
    reference = next((decay for decay in decays if decay), None)
    changes = []
    for place, decay in enumerate(decays):
        mine = value if reference is None else value * decay / reference
        changes.append(f"{optim_path(recipe, place)}.weight_decay={mine:g}")
    return recipe.with_overrides(*changes)


def _lowest(found: Sequence[Tried]) -> Tried:
    return min(found, key=lambda one: one[2].loss)


def _one_digit(value: float) -> float:
    return float(f"{value:.0e}")


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def written(decision: Decision) -> Mapping[str, Any]:
    """A decision as JSON takes it."""
    return {
        "step": decision.step,
        "tried": [list(pair) for pair in decision.tried],
        "chosen": decision.chosen,
        "why": decision.why,
    }


def planned_runs(recipe: Recipe) -> int:
    """How many short runs a search takes at most."""
    has_momentum = any("momentum" in item.options for item in recipe.optim)
    tried = [len(FACTORS), len(EXPONENTS) + 3, *([len(MOMENTA) + 1] if has_momentum else [])]
    return SEEDS + sum(count + SEEDS for count in tried)
