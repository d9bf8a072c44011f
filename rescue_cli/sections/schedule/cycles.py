"""Rates that rise and fall, with the momentum against them (Smith), and the range test's ramp."""

import math
from itertools import pairwise
from typing import Literal

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Epochs, Fraction, NotNegative, Positive
from rescue_cli.sections.schedule.base import Rates, Schedule, ScheduleContext

MomentumRange = tuple[Fraction, Fraction] | None  # momentum at the lowest rate and at the highest
MIN_FACTOR = 1e-3  # of the base rate: what Smith's solver never goes below, and its tail


def one_cycle(
    span: ScheduleContext,
    *,
    stepsize_epochs: Epochs,
    base_factor: Fraction,
    momentum: MomentumRange,
    tail_momentum: Literal["paper", "hold"],
) -> Schedule:
    """1cycle as Smith's Caffe solver runs it: base to `lr`, `lr` to nothing, and a low tail.

    With base = base_factor lr, linear from base to `lr` in `stepsize_epochs`, linear to 0 in as
    many, never below base / 1000, and that from there on. `momentum` [a, b] goes a, b, a over the
    cycle. Caffe's formula (A.2) then begins a second cycle of half the height, so that momentum
    dips in the tail again: `tail_momentum: paper`; `hold` stays at a.
    """
    stepsize = _stepsize_in_steps(stepsize_epochs, span)
    base = base_factor * span.lr

    def rates(step: int) -> Rates:
        x = step / stepsize
        rising = base + (span.lr - base) * x
        lr = rising if x < 1 else max(span.lr * (2 - x), MIN_FACTOR * base)
        height = 0.0 if x > 2 and tail_momentum == "hold" else _triangle(x, halving=True)
        return Rates(lr, _opposed_momentum(momentum, height))

    return rates


def cyclical(
    span: ScheduleContext,
    *,
    stepsize_epochs: Epochs,
    base_factor: Fraction,
    momentum: MomentumRange,
    mode: Literal["triangular", "triangular2"],
) -> Schedule:
    """Cyclical learning rates (Smith 2015): from base_factor lr to `lr` and back, for ever.

    Each way takes `stepsize_epochs`. `triangular2` halves the height with every cycle. `momentum`
    [a, b] goes a, b, a against it. As torch's `CyclicLR`.
    """
    stepsize = _stepsize_in_steps(stepsize_epochs, span)
    base = base_factor * span.lr

    def rates(step: int) -> Rates:
        height = _triangle(step / stepsize, halving=mode == "triangular2")
        return Rates(base + (span.lr - base) * height, _opposed_momentum(momentum, height))

    return rates


def torch_one_cycle(
    span: ScheduleContext,
    *,
    pct_start: Fraction,
    anneal: Literal["cos", "linear"],
    div_factor: Positive,
    final_div_factor: Positive,
    three_phase: bool,
    momentum: MomentumRange,
) -> Schedule:
    """torch's `OneCycleLR` over all updates, fastai's form: `lr` / div_factor, `lr`, near nothing.

    Two phases, the first `pct_start` of the updates, or three: up, down to the start in as many,
    and down to the end. The end is lr / (div_factor final_div_factor). `momentum` [a, b] goes
    a, b, a. Raises `UsageError` where a phase would have no update.
    """
    start = span.lr / div_factor
    end = start / final_div_factor
    up, last = pct_start * span.steps - 1, span.steps - 1.0
    if three_phase:
        ends, lrs, heights = [up, 2 * up, last], [start, span.lr, start, end], [0, 1, 0, 0]
    else:
        ends, lrs, heights = [up, last], [start, span.lr, end], [0, 1, 0]
    if any(b <= a for a, b in pairwise([0.0, *ends])):
        raise UsageError(
            f"schedule (torch-one-cycle).pct_start: {pct_start} of {span.steps} steps leaves a "
            "phase without a step. Give another share, or more epochs."
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
    span: ScheduleContext,
    *,
    start_lr: NotNegative,
    end_lr: Positive,
    shape: Literal["linear", "exponential"],
    momentum: MomentumRange,
) -> Schedule:
    """The LR range test: from `start_lr` at the first update to `end_lr` after the last.

    `momentum` [a, b] moves linearly from a to b meanwhile. Raises `UsageError` for an exponential
    ramp from 0.
    """
    if not start_lr < end_lr or (shape == "exponential" and start_lr == 0):
        raise UsageError(
            f"schedule (ramp): from {start_lr} to {end_lr}, {shape}. Give a start_lr below end_lr, "
            "and above 0 where the ramp is exponential."
        )

    def rates(step: int) -> Rates:
        share = min(1.0, step / span.steps)
        if shape == "linear":
            return Rates(_linear(start_lr, end_lr, share), _opposed_momentum(momentum, share))
        return Rates(start_lr * (end_lr / start_lr) ** share, _opposed_momentum(momentum, share))

    return rates


def _stepsize_in_steps(epochs: float, span: ScheduleContext) -> float:
    """In updates; raises `UsageError` for none."""
    if epochs * span.steps_per_epoch <= 0:
        raise UsageError("schedule.stepsize_epochs: 0 is no cycle. Give half a cycle in epochs.")
    return epochs * span.steps_per_epoch


def _triangle(x: float, *, halving: bool) -> float:
    """0 at x = 0, 1 at 1, 0 at 2 and so on; with every cycle half as high, or not."""
    cycle = math.floor(x / 2)
    return math.ldexp(1 - abs(x - 2 * cycle - 1), -cycle if halving else 0)


def _opposed_momentum(momentum: tuple[float, float] | None, height: float) -> float | None:
    """The momentum where the rate is at `height` between its lowest, 0, and its highest, 1."""
    return None if momentum is None else _linear(*momentum, height)


def _linear(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
