"""Cyclical schedules with opposed momentum (Smith), and the ramp of the LR range test."""

import math
from itertools import pairwise
from typing import Literal

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Epochs, Fraction, NotNegative, Positive
from rescue_cli.sections.schedule.base import Rates, Schedule, ScheduleContext

MomentumRange = tuple[Fraction, Fraction] | None  # momentum at the lowest rate and at the highest
MIN_FACTOR = 1e-3  # of the base rate: the minimum in Smith's solver


def one_cycle(
    context: ScheduleContext,
    *,
    stepsize_epochs: Epochs,
    base_factor: Fraction,
    momentum: MomentumRange,
    tail_momentum: Literal["paper", "hold"],
) -> Schedule:
    """1cycle as in Smith's Caffe solver: from base up to `lr`, down towards 0, then a low tail.

    With base = base_factor lr: linear from base to `lr` in `stepsize_epochs`, linear towards 0 in
    as many, but never below base / 1000, which is kept to the end. `momentum` [a, b] goes a, b, a
    over the cycle. Caffe's formula (A.2) then starts a second cycle of half the height, so momentum
    dips again in the tail (`tail_momentum: paper`); `hold` keeps it at a.
    """
    stepsize = _stepsize_in_steps(stepsize_epochs, context)
    base = base_factor * context.lr

    def rates(step: int) -> Rates:
        x = step / stepsize
        rising = base + (context.lr - base) * x
        lr = rising if x < 1 else max(context.lr * (2 - x), MIN_FACTOR * base)
        height = 0.0 if x > 2 and tail_momentum == "hold" else _triangle(x, halving=True)
        return Rates(lr, _opposed_momentum(momentum, height))

    return rates


def cyclical(
    context: ScheduleContext,
    *,
    stepsize_epochs: Epochs,
    base_factor: Fraction,
    momentum: MomentumRange,
    mode: Literal["triangular", "triangular2"],
) -> Schedule:
    """Cyclical learning rates (Smith 2015): from base_factor lr to `lr` and back, repeatedly.

    Each way takes `stepsize_epochs`. `triangular2` halves the height with every cycle. `momentum`
    [a, b] goes a, b, a in the opposite direction. As torch's `CyclicLR`.
    """
    stepsize = _stepsize_in_steps(stepsize_epochs, context)
    base = base_factor * context.lr

    def rates(step: int) -> Rates:
        height = _triangle(step / stepsize, halving=mode == "triangular2")
        return Rates(base + (context.lr - base) * height, _opposed_momentum(momentum, height))

    return rates


def torch_one_cycle(
    context: ScheduleContext,
    *,
    pct_start: Fraction,
    anneal: Literal["cos", "linear"],
    div_factor: Positive,
    final_div_factor: Positive,
    three_phase: bool,
    momentum: MomentumRange,
) -> Schedule:
    """torch's `OneCycleLR` over all steps, fastai's form: from lr / div_factor to `lr` to near 0.

    Two phases, of which the first takes `pct_start` of the steps, or three: up, down to the start
    in as many steps, and down to the end. The end is lr / (div_factor final_div_factor).
    `momentum` [a, b] goes a, b, a. Raises `UsageError` where a phase would have no step.
    """
    start = context.lr / div_factor
    end = start / final_div_factor
    up, last = pct_start * context.steps - 1, context.steps - 1.0
    if three_phase:
        ends, lrs, heights = [up, 2 * up, last], [start, context.lr, start, end], [0, 1, 0, 0]
    else:
        ends, lrs, heights = [up, last], [start, context.lr, end], [0, 1, 0]
    if any(b <= a for a, b in pairwise([0.0, *ends])):
        raise UsageError(
            f"schedule (torch-one-cycle).pct_start: {pct_start} of {context.steps} steps leaves a "
            "phase without a step. Use another value, or more epochs."
        )
    ease = _half_cosine if anneal == "cos" else _linear

    def rates(step: int) -> Rates:
        phase = next((p for p, last in enumerate(ends) if step <= last), len(ends) - 1)
        first = ends[phase - 1] if phase else 0.0
        share = min(1.0, (step - first) / (ends[phase] - first))
        height = ease(heights[phase], heights[phase + 1], share)
        return Rates(ease(lrs[phase], lrs[phase + 1], share), _opposed_momentum(momentum, height))

    return rates


def ramp(
    context: ScheduleContext,
    *,
    start_lr: NotNegative,
    end_lr: Positive,
    shape: Literal["linear", "exponential"],
    momentum: MomentumRange,
) -> Schedule:
    """The LR range test: from `start_lr` at the first step to `end_lr` after the last.

    `momentum` [a, b] changes linearly from a to b. Raises `UsageError` for an exponential ramp
    from 0.
    """
    if not start_lr < end_lr or (shape == "exponential" and start_lr == 0):
        raise UsageError(
            f"schedule (ramp): from {start_lr} to {end_lr}, {shape}. Give a start_lr below end_lr, "
            "and above 0 where the ramp is exponential."
        )

    def rates(step: int) -> Rates:
        share = min(1.0, step / context.steps)
        if shape == "linear":
            return Rates(_linear(start_lr, end_lr, share), _opposed_momentum(momentum, share))
        return Rates(start_lr * (end_lr / start_lr) ** share, _opposed_momentum(momentum, share))

    return rates


def _stepsize_in_steps(epochs: float, context: ScheduleContext) -> float:
    """The step size in steps; raises `UsageError` where it is 0."""
    if epochs * context.steps_per_epoch <= 0:
        raise UsageError("schedule.stepsize_epochs: must be above 0. Give half a cycle in epochs.")
    return epochs * context.steps_per_epoch


def _triangle(x: float, *, halving: bool) -> float:
    """A triangle wave: 0 at x = 0, 1 at 1, 0 at 2 and so on; `halving` its height each cycle."""
    cycle = math.floor(x / 2)
    return math.ldexp(1 - abs(x - 2 * cycle - 1), -cycle if halving else 0)


def _opposed_momentum(momentum: tuple[float, float] | None, height: float) -> float | None:
    """The momentum where the rate is at `height`, from 0 (lowest) to 1 (highest)."""
    return None if momentum is None else _linear(*momentum, height)


def _linear(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
