"""The LR range test: what its runs are, and what their curves say in the paper's terms.

A run of the recipe whose rate rises from start to end, with everything else as it is (Smith 2018,
section 3.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, median_low
from typing import Any, Literal

from rescue_cli.analysis import curves as clues
from rescue_cli.analysis.curves import Verdict
from rescue_cli.analysis.range_curves import Curves
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import optim_path, without_lr_rule

FACTOR = 2.0  # between rates that agree
WIDER = 1000.0  # times below a rate that was too high already: where the next test should begin
LEARNED = 0.1  # of the way from a guess to all images
STOP_ABOVE = 4.0  # times the first loss: what a run is stopped at, as fastai's finder is
# What --apply writes: 45 % of the run up and 45 % down, as in most of the paper's
ONE_CYCLE = {
    "name": "one-cycle",
    "base_factor": 0.1,
    "tail_momentum": "paper",
}


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end` over `epochs`; `momentum` moves against it; `points` evaluations."""

    start: float
    end: float
    shape: Literal["linear", "exponential"]
    momentum: tuple[float, float] | None
    epochs: float
    points: int

    def of(self, recipe: Recipe, seed: int, per_epoch: int) -> Recipe:
        """The recipe with this ramp in place of its schedules; an epoch has `per_epoch` updates."""
        between = self.epochs * per_epoch / self.points  # updates
        momentum = "null" if self.momentum is None else list(self.momentum)
        own = [
            f"~{optim_path(recipe, place)}.schedule"
            for place, item in enumerate(recipe.optim)
            if item.schedule is not None
        ]
        return recipe.with_overrides(
            f"schedule={{name: ramp, start_lr: {self.start}, end_lr: {self.end}, "
            f"shape: {self.shape}, momentum: {momentum}}}",
            *own,
            f"train.epochs={self.epochs}",
            f"train.seed={seed}",
            f"train.stop_above={STOP_ABOVE}",
            f"train.log_every={max(1, int(between / 2))}",
            f"eval.every={self.epochs / self.points}",
            *(f"eval.sets=[{name}]" for name in (recipe.eval.sets or [])[:1]),
            f"eval.sizes=[{recipe.eval.sizes[0]}]",
            f"eval.crops=[{recipe.eval.crops[0]}]",
            "eval.tta=[none]",
        )

    def rate(self, share: float) -> float:
        """The rate after that share of the run."""
        if self.shape == "linear":
            return self.start + (self.end - self.start) * share
        return float(self.start * (self.end / self.start) ** share)


@dataclass(frozen=True)
class Reading:
    """What one run's curves say; `max_lr` is None unless the verdict is `turn`."""

    max_lr: float | None
    verdict: Verdict
    bounded_above: float | None  # from this rate on nothing that was learned is left
    spacing: float  # the rate of the point after the turn, in times of the turn's
    evidence: list[str]
    overfitting: list[tuple[float, float]]
    suggestions: dict[str, float | None]


def reading(curves: Curves) -> Reading:
    """The largest stable rate: where the loss turns up or the score falls, whichever first."""
    name, losses = curves.losses
    guess, _ = curves.guess
    turns = [clues.turn(curves.rates, losses, name, guess)]
    if curves.has_score:
        falling = [-value for value in curves.accuracies]
        turns.append(clues.turn(curves.rates, falling, curves.score))
    bounds = [turn.bounded_above for turn in turns]
    bound = min((rate for rate in bounds if rate is not None), default=None)
    found = [turn.rate for turn in turns if turn.rate is not None]
    max_lr = min(found) if found and (bound is None or min(found) < bound) else None
    silent = [] if curves.has_score else [f"{curves.score}: stays near 0, and says nothing"]
    return Reading(
        max_lr=max_lr,
        verdict="turn" if max_lr is not None else _verdict(curves, *(t.verdict for t in turns)),
        bounded_above=bound,
        spacing=1.0 if max_lr is None else _spacing(curves.rates, max_lr),
        evidence=[*(turn.evidence for turn in turns), *silent],
        overfitting=clues.overfitting_rates(curves.rates, curves.test_losses, curves.errors),
        suggestions=clues.suggestions(curves.rates, curves.train_losses),
    )


def _verdict(curves: Curves, *said: Verdict) -> Verdict:
    """Of a loss and a score without a turn: an end first, then who saw the network learn."""
    order: tuple[Verdict, ...] = (
        "died", "too few points", "falling", "noisy", "flat", "nothing learned",
    )  # fmt: skip
    verdict: Verdict = next((verdict for verdict in order if verdict in said), "too few points")
    return "noisy" if verdict == "nothing learned" and _has_learned(curves) else verdict


def _has_learned(curves: Curves) -> bool:
    """Whether half of the points are far better than a guess, though none stands out."""
    known = [value for value in curves.accuracies if math.isfinite(value)]
    _, guess = curves.guess
    if guess is None or not known:
        return False
    return median(known) > guess + LEARNED * (100 - guess)


def _spacing(rates: Sequence[float], rate: float) -> float:
    place = list(rates).index(rate)
    return rates[place + 1] / rate if place + 1 < len(rates) and rate > 0 else 1.0


@dataclass(frozen=True)
class Answer:
    """What all runs say together; `max_lr` is the median over seeds of the full length.

    `reasons`: why it is not trusted, or what agreed.
    """

    max_lr: float | None
    verdict: Verdict
    bounded_above: float | None
    trusted: bool
    reasons: list[str]

    @property
    def min_lr(self) -> float | None:
        """A tenth: the paper's, who takes 3 to 4 less for cycles and 10 to 20 for one."""
        return None if self.max_lr is None else self.max_lr / 10

    def cure(self, ramp: Ramp) -> str:
        """What to try where no rate was found, or none to be trusted."""
        if self.max_lr is not None:
            return "Give more --seeds, --steps or --points, or ends nearer to it."
        if self.verdict == "falling":
            return f"Give a higher --end, such as {10 * ramp.end:.3g}."
        if self.verdict == "flat":
            return f"Give a higher --end, such as {10 * ramp.end:.3g}, or more --steps."
        if self.verdict == "noisy":
            return "Give more --steps, and a lower --start."
        if self.bounded_above is not None:
            low = self.bounded_above / WIDER
            return f"Try --start {low:.3g} --end {self.bounded_above:.3g} --ramp exponential."
        if self.verdict == "too few points":
            return "Give a lower --start and --end, or more --points and --steps."
        low, high = ramp.start / WIDER, ramp.end * WIDER
        return (
            f"The rates may be too high or too low. Try --start {low:.3g} --ramp exponential, "
            f"then --end {high:.3g}."
        )


def answer(readings: Sequence[Reading], half: Reading, end: float) -> Answer:
    """The rate, and whether independent runs agree on it within a factor of two.

    Seeds count from 0, the run of half the steps has the next one. It is evidence only by a turn
    of its own: where the others fail it would fail alike.
    """
    found = [r.max_lr for r in readings if r.max_lr is not None]
    bound = min((r.bounded_above for r in readings if r.bounded_above is not None), default=None)
    below = [rate for rate in found if bound is None or rate < bound]
    reasons = []
    for seed, one in enumerate(readings):
        if one.max_lr is None:
            reasons.append(f"seed {seed}: {_no_rate(one, end)}")
    if not found:
        return Answer(None, readings[0].verdict, bound, False, reasons)
    if max(found) > FACTOR * min(found):
        reasons.append(f"between seeds it moves from {min(found):.3g} to {max(found):.3g}")
    if not below:
        reasons.append(f"a run is lost from {bound:.3g} on, below every rate found")
        return Answer(None, "died", bound, False, reasons)
    # One of the rates seen, and none at which another run was lost
    middle, last = min(median_low(found), max(below)), len(readings)
    if half.max_lr is None:
        words = f"with half the steps, seed {last}: {_no_rate(half, end)}"
        if last == 1:
            words += ", and a single run cannot agree with itself"
        reasons.append(words)
    elif not middle / FACTOR <= half.max_lr <= middle * FACTOR:
        reasons.append(f"with half the steps, seed {last}, it is {half.max_lr:.3g}")
    apart = max(r.spacing for r in readings)
    if apart > FACTOR:
        reasons.append(f"the next point is {apart:.1f} times as high: too far apart to tell")
    trusted = not reasons
    if trusted:
        reasons = [f"{_seeds(last)} and, with half the steps, seed {last} agree within a factor of "
                   f"{FACTOR:g}"]  # fmt: skip
    return Answer(middle, "turn", bound, trusted, reasons)


def _no_rate(one: Reading, end: float) -> str:
    """Why a reading has no rate."""
    bound = one.bounded_above
    words = {
        "died": f"lost from {bound or end:.3g} on, before it had learned enough to judge",
        "noisy": f"noise hides any turn up to {end:.3g}",
        "nothing learned": f"nothing was learned up to {end:.3g}",
        "too few points": "too few points to judge",
        "falling": f"no turn found up to {end:.3g}, still falling",
        "flat": f"no turn found up to {end:.3g}, flat at the end",
        "turn": "the curves contradict each other",
    }[one.verdict]
    late = bound is not None and one.verdict in ("nothing learned", "too few points")
    return f"{words}; lost from {bound:.3g} on" if late else words


def _seeds(count: int) -> str:
    numbers = ", ".join(str(seed) for seed in range(count))
    return f"seed{'s' if count > 1 else ''} {numbers}"


def applied(recipe: Recipe, max_lr: float, momentum: tuple[float, float] | None) -> Recipe:
    """The recipe with a 1cycle up to `max_lr`; every group keeps its ratio to the first."""
    ratio = max_lr / recipe.optim[0].lr
    rates = [
        f"{optim_path(recipe, place)}.lr={item.lr * ratio:.6g}"
        for place, item in enumerate(recipe.optim)
    ]
    cycled: Any = "null" if momentum is None else list(momentum)
    keys = {**ONE_CYCLE, "stepsize_epochs": round(0.45 * recipe.train.epochs, 6)}
    written = ", ".join(f"{key}: {value}" for key, value in keys.items())
    cycle = f"schedule={{{written}, momentum: {cycled}}}"
    return recipe.with_overrides(*rates, cycle, *without_lr_rule(recipe))
