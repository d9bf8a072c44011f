"""Simulated range tests whose answer is known.

`python -m tests.analysis.simulated_range_tests` prints the table.

A family is a shape of the test loss over the rate. Every curve is drawn anew: where it turns, how
fast it falls, its noise. A test is two or three such curves, as the command has them: one of each
seed, and one of half the steps, which falls less far, is noisier and turns elsewhere.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rescue_cli.analysis import lr_range
from rescue_cli.analysis.curves import suggest_rates
from rescue_cli.analysis.lr_range import Curves, RangeTestResult

Array = NDArray[np.float64]
Shape = Literal["linear", "exponential"]
CLASSES = 10
GUESS = math.log(CLASSES)  # the loss of a network that knows nothing
WAY = 1.6  # how far a training comes down from there
NOISE = (0.01, 0.03, 0.1)  # of the way: the standard deviation of a point
POINTS = (10, 20, 40)
SHAPES: tuple[Shape, ...] = ("linear", "exponential")
WRONG = 3.0  # times too high or too low


@dataclass(frozen=True)
class Setting:
    """A cell of the simulation."""

    points: int
    noise: float
    shape: Shape


@dataclass(frozen=True)
class Draw:
    """What one curve is drawn with; `over` is the rate over that of the turn."""

    over: Array
    fallen: Array  # of the way: 0 at first, near 1 at the turn
    rng: np.random.Generator

    @property
    def falling(self) -> Array:
        return GUESS - WAY * self.fallen

    @property
    def past(self) -> Array:
        """How many times past the turn, less one; 0 before it."""
        return np.maximum(0.0, self.over - 1)


def sharp(draw: Draw) -> Array:
    """All is lost within a third of the rate."""
    return draw.falling + WAY * np.minimum(1.0, 3 * draw.past)


def gentle(draw: Draw) -> Array:
    """Half is lost at three times the rate."""
    return draw.falling + WAY * np.minimum(1.0, 0.5 * (draw.past / 2) ** 1.5)


def blow_up(draw: Draw) -> Array:
    """It grows tenfold with every tenth of the rate, and the run ends soon after."""
    loss = draw.falling + 0.2 * WAY * (10 ** np.minimum(9, 10 * draw.past) - 1)
    dead = np.flatnonzero(loss > 100 * GUESS)
    loss[dead[1:]] = np.nan
    return loss


def not_a_number(draw: Draw) -> Array:
    """It falls to the rate at which it ends."""
    return np.array(np.where(draw.over > 1, np.nan, draw.falling))


def plateau(draw: Draw) -> Array:
    """It has fallen at a third of the rate, stays, and is then lost."""
    fallen: Array = 1 - np.exp(-4 * (3 * draw.over) ** 1.5)
    return GUESS - WAY * fallen + WAY * np.minimum(1.0, 1.5 * draw.past)


def double_descent(draw: Draw) -> Array:
    """A hump of up to half the way in the middle of its fall."""
    height, place = draw.rng.uniform(0.2, 0.5), draw.rng.uniform(0.4, 0.6)
    hump = height * WAY * np.exp(-(((draw.over - place) / 0.12) ** 2))
    return draw.falling + hump + WAY * np.minimum(1.0, 1.5 * draw.past)


def spike(draw: Draw) -> Array:
    """A turn, and one point anywhere that is far too high."""
    return _with_spike(WAY * np.minimum(1.0, draw.past) + draw.falling, draw.rng)


def falling(draw: Draw) -> Array:
    """It falls to the end: the turn lies beyond."""
    return np.array(GUESS - WAY * (1 - np.exp(-3 * draw.over / draw.over[-1])))


def falling_with_spike(draw: Draw) -> Array:
    return _with_spike(falling(draw), draw.rng)


def flat_at_the_end(draw: Draw) -> Array:
    """It has fallen at a fifth of the ramp, and stays."""
    return np.array(GUESS - WAY * (1 - np.exp(-15 * draw.over / draw.over[-1])))


def pure_noise(draw: Draw) -> Array:
    """About a level below that of guessing; as a network that knew all before."""
    return np.full(len(draw.over), GUESS - draw.rng.uniform(0, WAY))


def never_learning(draw: Draw) -> Array:
    """At the level of guessing, and in half of the runs not finite in the end."""
    loss = np.full(len(draw.over), GUESS)
    if draw.rng.random() < 0.5:
        loss[draw.rng.integers(1, len(loss)) :] = np.nan
    return loss


def begins_beyond(draw: Draw) -> Array:
    """It explodes at the first rates, comes back to guessing, and may end."""
    loss = GUESS * (
        1 + 10 ** draw.rng.uniform(0, 4) * np.exp(-draw.rng.uniform(0.3, 2) * _index(draw))
    )
    if draw.rng.random() < 0.5:
        loss[draw.rng.integers(1, len(loss)) :] = np.nan
    return loss


def begins_past_the_turn(draw: Draw) -> Array:
    """Some was learned before the first point, and goes from there on."""
    left = draw.rng.uniform(0.1, 0.6) * np.exp(-draw.rng.uniform(0.2, 2) * _index(draw))
    return GUESS - WAY * left


def _index(draw: Draw) -> Array:
    return np.arange(len(draw.over), dtype=np.float64)


def _with_spike(loss: Array, rng: np.random.Generator) -> Array:
    loss[rng.integers(len(loss))] += rng.uniform(0.5, 5) * WAY
    return loss


Family = Callable[[Draw], Array]
TURNING: tuple[Family, ...] = (
    sharp, gentle, blow_up, not_a_number, plateau, double_descent, spike,
)  # fmt: skip
WITHOUT: tuple[Family, ...] = (
    falling, falling_with_spike, flat_at_the_end, pure_noise, never_learning, begins_beyond,
    begins_past_the_turn,
)  # fmt: skip


def curves(
    family: Family, setting: Setting, turn: float, rng: np.random.Generator, *, half: bool = False
) -> Curves:
    """One run; its turn is near `turn`, a rate on a ramp up to 1."""
    share = np.arange(1, setting.points + 1) / setting.points
    rates = share if setting.shape == "linear" else 10 ** (3 * (share - 1))
    mine = turn * math.exp(rng.normal(0, 0.15 if half else 0.1))
    over = rates / mine
    speed = rng.uniform(2, 4) * (0.7 if half else 1.0)
    # What was learned goes with the rates so far: their sum is a square where the ramp is linear
    fallen = 1 - np.exp(-speed * (over**2 if setting.shape == "linear" else over))
    loss = family(Draw(over, fallen, rng))
    spread = setting.noise * (1.3 if half else 1.0) * np.clip(over, 0.5, 2.0)
    known = np.clip((GUESS - loss) / WAY, 0, 1)  # NaN stays
    binomial = np.sqrt(0.16 / 1000)  # 1,000 test images
    accuracy = 0.1 + 0.8 * known
    accuracy = 100 * (accuracy + np.hypot(0.4 * spread, binomial) * rng.standard_normal(len(share)))
    loss = loss + WAY * spread * rng.standard_normal(len(share))
    dead = np.flatnonzero(np.isnan(loss))
    end = dead[0] + 1 if len(dead) else len(loss)  # a run that has ended has no points after
    losses = loss[:end].tolist()
    accuracies = np.clip(accuracy, 0, 100)[:end].tolist()
    return Curves(0, 100, rates[:end].tolist(), losses, losses, accuracies, CLASSES)


def turn_of(family: Family, setting: Setting, rng: np.random.Generator) -> float:
    """A true rate on the ramp, with points on either side of it: a gentle rise takes more room."""
    if setting.shape == "linear" and family is gentle:
        return float(rng.uniform(0.2, 0.35))
    if setting.shape == "linear":
        return float(rng.uniform(0.3, 0.75))
    return float(10 ** rng.uniform(-1.6, -0.6))


def answer(
    family: Family, setting: Setting, seeds: int, rng: np.random.Generator
) -> tuple[float, RangeTestResult, Curves]:
    """The true rate, what the command would say, and the first run."""
    turn = turn_of(family, setting, rng)
    full = [curves(family, setting, turn, rng) for _ in range(seeds)]
    half = curves(family, setting, turn, rng, half=True)
    readings = [lr_range.estimate_max_lr(one) for one in full]
    return turn, lr_range.combine_estimates(readings, lr_range.estimate_max_lr(half), 1.0), full[0]


# --- the rules of others, on the first run's losses ---


def valley(one: Curves) -> float | None:
    return suggest_rates(one.rates, one.train_losses)["valley"]


def lightning(one: Curves) -> float | None:
    """Lightning's `suggestion`: the steepest fall, without the first 10 points and the last.

    Of a tenth of the points here, as 10 of its 100. Gradients by the number of the point.
    """
    finite = [x for x in one.train_losses if math.isfinite(x)]
    skipped = max(1, len(one.rates) // 10)
    losses = np.array(finite[skipped:-1])
    if len(losses) < 2:
        return None
    return one.rates[skipped + int(np.gradient(losses).argmin())]


@dataclass
class Tally:
    """Counts over draws of one family."""

    draws: int = 0
    answered: int = 0
    trusted: int = 0
    wrong: int = 0
    trusted_wrong: int = 0

    def add(self, true: float | None, given: float | None, trusted: bool) -> None:
        off = given is not None and (true is None or not true / WRONG <= given <= true * WRONG)
        self.draws += 1
        self.answered += given is not None
        self.wrong += off
        self.trusted += trusted
        self.trusted_wrong += trusted and off


@dataclass
class Row:
    """A family's counts: ours, fastai's and Lightning's; and how far ours are from the truth."""

    ours: Tally
    valley: Tally
    lightning: Tally
    ratios: list[float]


def simulated(
    family: Family, settings: list[Setting], draws: int, seeds: int, seed: int = 0
) -> Row:
    """`draws` tests in each of the settings."""
    rng = np.random.default_rng([seed, (*TURNING, *WITHOUT).index(family)])
    row = Row(Tally(), Tally(), Tally(), [])
    for setting, _ in product(settings, range(draws)):
        true, found, first = answer(family, setting, seeds, rng)
        truth = true if family in TURNING else None
        row.ours.add(truth, found.max_lr, found.trusted)
        for tally, rule in ((row.valley, valley), (row.lightning, lightning)):
            given = rule(first)
            tally.add(truth, given, given is not None)
        if truth is not None and found.max_lr is not None:
            row.ratios.append(found.max_lr / truth)
    return row


def every_setting() -> list[Setting]:
    return [Setting(*cell) for cell in product(POINTS, NOISE, SHAPES)]


def table(draws: int, seeds: int, settings: list[Setting]) -> Iterator[str]:
    """Percent of all tests; the median ratio to the truth and its middle 80 %."""
    yield (
        f"{'family':22} answered trusted wrong-and-trusted  ratio (10 % to 90 %)    "
        "valley wrong  Lightning wrong"
    )
    for family in (*TURNING, *WITHOUT):
        row = simulated(family, settings, draws, seeds)
        n = row.ours.draws
        bad = row.ours.trusted_wrong / n
        error = math.sqrt(max(bad, 1 / n) / n)
        spread = np.percentile(row.ratios, [50, 10, 90]) if row.ratios else [math.nan] * 3
        yield (
            f"{family.__name__:22} {100 * row.ours.answered / n:8.1f}"
            f" {100 * row.ours.trusted / n:7.1f} {100 * bad:9.2f} ± {100 * error:.2f}    "
            f"  {spread[0]:.2f} ({spread[1]:.2f} to {spread[2]:.2f})   "
            f"{100 * row.valley.wrong / n:10.1f} {100 * row.lightning.wrong / n:12.1f}"
        )


def main(draws: int) -> None:
    for seeds in (1, 3):
        print(f"\n{seeds} full run(s) and one of half the steps; all settings, {draws} draws each")
        print("\n".join(table(draws, seeds, every_setting())))
        clear = [s for s in every_setting() if s.points >= 20 and s.noise < 0.1]
        print("\nthe clear ones: 20 points or more, noise of 1 and 3 %")
        print("\n".join(table(draws, seeds, clear)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
