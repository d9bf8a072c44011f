"""Simulated searches in worlds whose loss is known.

`python -m tests.analysis.simulated_searches [SEARCHES]` prints how often they are right.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from rescue_cli import recipe as recipes
from rescue_cli.analysis.lr_range import Curves, Ramp
from rescue_cli.analysis.sides import Side
from rescue_cli.analysis.stats import sample
from rescue_cli.analysis.tuning import Outcome, Search, judge
from rescue_cli.recipe import Recipe

BASE = recipes.load("quickstart")
LOWEST = 0.45  # loss of the best recipe of a world
FAR = 2.0  # factors of two between the base's rate and the best, of a world where there is a gain
POINTS = 20.0  # of accuracy, that a loss of 1 costs


@dataclass(frozen=True)
class World:
    """How much of the loss each setting costs: `*_cost` times its squared distance from the best.

    Distances are factors of two of the rate (at momentum 0.9, or one that comes to the same), of
    1 - momentum, and of ten of weight decay. `cycle` is what a 1cycle costs or, below 0, gives.
    """

    rate: float = 0.4
    rate_cost: float = 0.0
    momentum: float = 0.9
    momentum_cost: float = 0.0
    decay: float = 5e-4
    decay_cost: float = 0.0
    cycle: float = 0.0

    def loss(self, recipe: Recipe) -> float:
        optim = recipe.optim[0].options
        momentum = float(optim["momentum"])
        rate = float(optim["lr"]) * 0.1 / (1 - momentum)
        if rate > 12 * self.rate:
            return math.inf
        costs = (
            self.rate_cost * math.log2(rate / self.rate) ** 2,
            self.momentum_cost * math.log2((1 - momentum) / (1 - self.momentum)) ** 2,
            self.decay_cost * math.log10(max(float(optim["weight_decay"]), 1e-6) / self.decay) ** 2,
            self.cycle if recipe.schedule.name == "one-cycle" else 0.0,
        )
        return LOWEST * (1 + sum(costs))

    def ramp(self, _name: str, _recipe: Recipe, ramp: Ramp) -> Curves:
        """Turns at three times the best rate."""
        rates = [ramp.rate((i + 1) / ramp.points) for i in range(ramp.points)]
        turn = 3 * self.rate
        losses = [LOWEST + 1.8 * math.exp(-4 * r / turn) + 3 * max(0, r / turn - 1) for r in rates]
        return Curves(0, 200, rates, losses, losses, [90 - 20 * x for x in losses])


def worlds() -> Iterator[tuple[str, World]]:
    """By name: nothing to gain, the base the best, and 5, 10 and 20 % to be gained."""
    yield "all alike", World()
    yield (
        "base is best, barely",
        World(rate_cost=0.002, momentum_cost=0.002, decay_cost=0.002, cycle=0.002),
    )
    best = World(rate_cost=0.02, momentum_cost=0.02, decay_cost=0.02, cycle=0.02)
    yield "base is best, flat", best
    yield "base is best, steep", replace(best, rate_cost=0.1, momentum_cost=0.1, decay_cost=0.1)
    yield "1cycle 3 % worse", World(cycle=0.03)
    for gain in (0.05, 0.10, 0.20):
        cost = gain / (1 - gain)  # of the best loss, what the base has above it
        rate = World(rate=0.4 / 2**FAR, rate_cost=cost / FAR**2)
        yield f"rate, {gain:.0%}", rate
        yield f"rate too low, {gain:.0%}", replace(rate, rate=0.4 * 2**FAR)
        yield (
            f"momentum, {gain:.0%}",
            World(momentum=0.97, momentum_cost=cost / math.log2(0.1 / 0.03) ** 2),
        )
        yield f"decay, {gain:.0%}", World(decay=5e-6, decay_cost=cost / 4)
        yield f"all three, {gain:.0%}", World(
            0.4 / 2**FAR, cost / 3 / FAR**2, 0.97, cost / 3 / math.log2(0.1 / 0.03) ** 2,
            5e-6, cost / 12,
        )  # fmt: skip


class Ended(NamedTuple):
    """A search: whether it changed the recipe, what that is truly worth, whether it was written."""

    changed: bool
    gain: float  # of the base's loss, how much less; below 0 it is worse
    written: bool


def searched(world: World, noise: float, seeds: int, random: np.random.Generator) -> Ended:
    """One whole search and its judgement."""

    def seen(recipe: Recipe) -> float:
        return world.loss(recipe) * (1 + noise * float(random.standard_normal()))

    def run(name: str, recipe: Recipe) -> Outcome:
        loss = seen(recipe)
        return Outcome(name, [loss], [100 - POINTS * loss], diverged=loss == math.inf)

    def measured(name: str, recipe: Recipe) -> Side:
        values = {seed: 100 - POINTS * seen(recipe) for seed in range(seeds)}
        return Side(name, sample(list(values.values())), values)

    search = Search(BASE, run)
    search.rate(64, "", 1.0, world.ramp)
    search.momentum()
    search.weight_decay()
    if search.recipe == BASE:
        return Ended(changed=False, gain=0.0, written=False)
    gain = 1 - world.loss(search.recipe) / world.loss(BASE)
    better = judge(measured("base", BASE), measured("tuned", search.recipe)).better
    return Ended(changed=True, gain=gain, written=better)


class Rates(NamedTuple):
    """Of many searches in one world, shares of all of them."""

    changed: float  # another recipe than the base was judged
    written: float
    worse: float  # written, and truly worse than the base
    better: float  # written, and truly better
    gained: float  # of the base's loss, the mean of those written


def rates(world: World, noise: float, seeds: int, count: int) -> Rates:
    random = np.random.default_rng(2018)
    ended = [searched(world, noise, seeds, random) for _ in range(count)]
    written = [one.gain for one in ended if one.written]
    return Rates(
        sum(one.changed for one in ended) / count,
        len(written) / count,
        sum(gain < 0 for gain in written) / count,
        sum(gain > 0 for gain in written) / count,
        sum(written) / max(1, len(written)),
    )


def remembering() -> Callable[..., Recipe]:
    """`Recipe.with_overrides`, which makes each recipe once: searches ask for the same ones."""
    made: dict[tuple[str, ...], Recipe] = {}
    make = Recipe.with_overrides

    def with_overrides(recipe: Recipe, *overrides: str) -> Recipe:
        key = (json.dumps(recipe.tree), *overrides)
        if key not in made:
            made[key] = make(recipe, *overrides)
        return made[key]

    return with_overrides


def main() -> None:
    """The whole table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    Recipe.with_overrides = remembering()  # type: ignore[method-assign]
    errors = (100 * math.sqrt(share * (1 - share) / count) for share in (0.01, 0.05, 0.5))
    print(
        f"{count} searches a row. Of all of them in %: another recipe was judged (changed), it was"
    )
    print(
        "written, and is truly worse or better; gain: of the base's loss, by those written, in %."
    )
    print("Standard error of a share of 1, 5, 50 %: " + ", ".join(f"{e:.1f}" for e in errors))
    headings = ("changed", "written", "worse", "better", "gain")
    print(f"{'world':22}{'noise':>6}{'seeds':>6}" + "".join(f"{word:>9}" for word in headings))
    for name, world in worlds():
        for noise, seeds in ((0.02, 3), (0.02, 5), (0.05, 5)):
            found = rates(world, noise, seeds, count)
            shares = "".join(f"{100 * share:9.1f}" for share in found)
            print(f"{name:22}{100 * noise:4.0f} %{seeds:6d}{shares}", flush=True)


if __name__ == "__main__":
    main()
