"""Smith's section 5 as decisions: batch size, learning rate, momentum, weight decay, one by one.

Every decision is a function of runs' curves, so that a search that was stopped and begun again
takes the runs that are there and comes to the same end. What runs are is in the hands of `Run`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rescue_cli import clues, range_test
from rescue_cli.plans import path_of, without_rule
from rescue_cli.range_test import Curves, Ramp
from rescue_cli.recipe import Recipe

FEWEST_STEPS = 50  # updates of an epoch that a batch should leave
MOMENTA = (0.99, 0.97, 0.95, 0.9)
USUAL_MOMENTUM = 0.9
LOWEST_MOMENTUM = 0.85  # of the cycle, at the highest rate
EXPONENTS = (-3.0, -4.0, -5.0)  # of weight decay; and none
DECADES = (-2.0, 3.0)  # of the first range test, about the recipe's own rate
FINE = 2.0  # the second goes up to so many times what the first found
BETTER = 0.005  # of a loss: less is no reason to go on


@dataclass(frozen=True)
class Outcome:
    """A finished run: its test loss and accuracy at every evaluation, and how its loss went."""

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
    outcomes: list[Outcome]
    ranges: list[Curves]


Run = Callable[[str, Recipe], Outcome]
RangeRun = Callable[[str, Recipe, Ramp], Curves]


def batch_size(images: int, fits: Callable[[int], bool]) -> tuple[int, str]:
    """The largest power of two that fits into memory and leaves 50 steps an epoch, and why."""
    most = max(1, images // FEWEST_STEPS)
    size: int = 2 ** int(math.log2(most))
    why = f"{images} images leave {FEWEST_STEPS} steps an epoch up to {most}"
    while size > 1 and not fits(size):
        size //= 2
        why = f"the largest power of two that fits into memory; {FEWEST_STEPS} steps allow {most}"
    return size, why


def learning_rate(
    recipe: Recipe, epochs: float, range_run: RangeRun, run: Run
) -> tuple[Recipe, Decision]:
    """A range test over five decades, one about what it found, then cycles to that and below.

    Momentum, where there is one, is 0.9 meanwhile, as in the paper's range tests.
    """
    recipe = _with_momentum(recipe, USUAL_MOMENTUM)
    lr = float(recipe.optim[0].options["lr"])
    low, high = (lr * 10**decade for decade in DECADES)
    wide = Ramp(low, high, "exponential", None, epochs, 40)
    coarse = range_run("range-wide", recipe, wide)
    turn = range_test.reading(coarse).max_lr or coarse.rates[-1]
    fine_ramp = Ramp(turn * FINE / 100, turn * FINE, "linear", None, epochs, 40)
    fine = range_run("range-fine", recipe, fine_ramp)
    reading = range_test.reading(fine, "held-out loss")
    highest = reading.max_lr or turn
    tried = [
        (f"ramp {low:.2g} to {high:.2g}", f"turns at {turn:.3g}"),
        (f"ramp to {turn * FINE:.3g}", "; ".join(reading.evidence)),
    ]
    outcomes: list[Outcome] = []
    best, factor = None, 1.0
    while len(outcomes) < 6:
        rate = _two_digits(highest * factor)
        made = range_test.applied(recipe, rate, None)
        outcome = run(f"lr-{rate:g}", made)
        outcomes.append(outcome)
        tried.append((f"1cycle to {rate:g}", str(outcome)))
        if best is not None and not _is_better(outcome, best[2]):
            break
        best = (rate, made, outcome)
        factor /= 2
    assert best is not None
    rate, made, outcome = best
    why = f"of rates from the largest stable one down by halves it ends lowest, {outcome}"
    return made, Decision(
        "learning rate", tried, f"{rate:g}, base {rate / 10:g}", why, outcomes, [coarse, fine]
    )


def momentum(recipe: Recipe, run: Run) -> tuple[Recipe, Decision]:
    """Short runs of constant momenta, then a cycle from the best of them down."""
    if not any("momentum" in item.options for item in recipe.optim):
        kept = Decision("momentum", [], "as it is", "the optimizer has none to set", [], [])
        return recipe, kept
    found: list[tuple[str, Recipe, Outcome]] = []
    for value in MOMENTA:
        made = _cycled(recipe, value, value)
        found.append((f"{value:g}", made, run(f"momentum-{value:g}", made)))
    best = float(_lowest(found)[0])
    if best > LOWEST_MOMENTUM:
        made = _cycled(recipe, best, LOWEST_MOMENTUM)
        name = f"{best:g} to {LOWEST_MOMENTUM:g}"
        found.append((name, made, run(f"momentum-{best:g}-{LOWEST_MOMENTUM:g}", made)))
    chosen, made, outcome = _lowest(found)
    return made, _decision("momentum", found, chosen, f"the lowest loss, {outcome}")


def weight_decay(recipe: Recipe, run: Run) -> tuple[Recipe, Decision]:
    """A grid of exponents, then half ways between the best and its neighbours; one digit."""
    found: list[tuple[str, Recipe, Outcome]] = []

    def tried(exponent: float) -> Outcome:
        value = 0.0 if exponent == -math.inf else _one_digit(10**exponent)
        made = _decayed(recipe, value)
        found.append((f"{value:g}", made, run(f"decay-{value:g}", made)))
        return found[-1][2]

    losses = {exponent: tried(exponent).loss for exponent in (*EXPONENTS, -math.inf)}
    best = min(losses, key=lambda e: losses[e])
    if best != -math.inf:
        for neighbour in (best + 0.5, best - 0.5):
            tried(neighbour)
    chosen, made, outcome = _lowest(found)
    return made, _decision("weight decay", found, chosen, f"the lowest loss, {outcome}")


def with_batch(recipe: Recipe, size: int) -> Recipe:
    """The recipe with batches of one slice."""
    sizes = [f"train.batch_size={size}", f"train.device_batch_size={size}"]
    return recipe.with_overrides(*sizes, *without_rule(recipe))


def shortened(recipe: Recipe, epochs: float) -> Recipe:
    """A run of `epochs` with the cycle in proportion."""
    ratio = epochs / recipe.train.epochs
    keys = [f"train.epochs={epochs:.6g}"]
    if "stepsize_epochs" in recipe.schedule.options:
        stepsize = float(recipe.schedule.options["stepsize_epochs"]) * ratio
        keys.append(f"schedule.stepsize_epochs={stepsize:.6g}")
    return recipe.with_overrides(*keys)


def _with_momentum(recipe: Recipe, value: float) -> Recipe:
    """The momentum of every optimizer that has one."""
    return recipe.with_overrides(
        *(
            f"{path_of(recipe, place)}.momentum={value}"
            for place, item in enumerate(recipe.optim)
            if "momentum" in item.options
        )
    )


def _cycled(recipe: Recipe, first: float, last: float) -> Recipe:
    """Momentum `first` at the lowest rate and `last` at the highest."""
    moved = "null" if first == last else f"[{first}, {last}]"
    return _with_momentum(recipe, first).with_overrides(f"schedule.momentum={moved}")


def _decayed(recipe: Recipe, value: float) -> Recipe:
    """The decay of the first item that has one becomes `value`; the others keep their ratio."""
    decays = [float(item.options.get("weight_decay", 0.0)) for item in recipe.optim]
    reference = next((decay for decay in decays if decay), None)
    changes = []
    for place, decay in enumerate(decays):
        mine = value if reference is None else value * decay / reference
        changes.append(f"{path_of(recipe, place)}.weight_decay={mine:g}")
    return recipe.with_overrides(*changes)


def _lowest(found: Sequence[tuple[str, Recipe, Outcome]]) -> tuple[str, Recipe, Outcome]:
    return min(found, key=lambda one: one[2].loss)


def _is_better(outcome: Outcome, than: Outcome) -> bool:
    return outcome.loss < than.loss * (1 - BETTER) or than.loss == math.inf


def _decision(
    step: str, found: Sequence[tuple[str, Recipe, Outcome]], chosen: str, why: str
) -> Decision:
    tried = [(name, str(outcome)) for name, _, outcome in found]
    return Decision(step, tried, chosen, why, [outcome for _, _, outcome in found], [])


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
    """About how many short runs a search takes after its range tests."""
    has_momentum = any("momentum" in item.options for item in recipe.optim)
    return 3 + (len(MOMENTA) + 1 if has_momentum else 0) + len(EXPONENTS) + 3
