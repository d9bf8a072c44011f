"""Decaying schedules: constant, cosine, exponential, step, inv, poly, piecewise linear."""

import math
from itertools import pairwise
from typing import Literal

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Epochs, Fraction, NotNegative, Positive
from rescue_cli.sections.schedule.base import Rates, Schedule, ScheduleContext


def constant(context: ScheduleContext) -> Schedule:
    """The recipe's learning rate throughout."""
    return lambda _: Rates(context.lr)


def cosine(
    context: ScheduleContext,
    *,
    warmup_epochs: Epochs,
    warmup_lr: NotNegative,
    min_lr: NotNegative,
    per: Literal["epoch", "step"],
    warmup_prefix: bool = False,
) -> Schedule:
    """Half a cosine from `lr` to `min_lr` over all epochs, with a linear warm-up from `warmup_lr`.

    As timm's `CosineLRScheduler`: the cosine counts from epoch 0, so the peak is never quite
    reached; with `warmup_prefix` it starts after the warm-up and takes the remaining epochs (Bag
    of Tricks, 5.1). `per: epoch` keeps the rate constant within an epoch (timm's default).
    """
    begun = warmup_epochs if warmup_prefix else 0.0

    def rates(step: int) -> Rates:
        epoch = step / context.steps_per_epoch
        t = math.floor(epoch) if per == "epoch" else epoch
        if t < warmup_epochs:
            return Rates(warmup_lr + t * (context.lr - warmup_lr) / warmup_epochs)
        if t >= context.epochs:
            return Rates(min_lr)
        angle = math.pi * (t - begun) / (context.epochs - begun)
        return Rates(min_lr + (context.lr - min_lr) * (1 + math.cos(angle)) / 2)

    return rates


def exponential(
    context: ScheduleContext,
    *,
    end_factor: Positive,
    warmup_epochs: Epochs,
    warmup_factor: Fraction,
    per: Literal["epoch", "step"],
) -> Schedule:
    """lr end_factor^(t / epochs), with a warm-up factor from `warmup_factor` to 1 (FAMS, pycls).

    `per: epoch` keeps the rate constant within an epoch.
    """

    def rates(step: int) -> Rates:
        epoch = step / context.steps_per_epoch
        t = math.floor(epoch) if per == "epoch" else epoch
        rising = min(1.0, t / warmup_epochs) if warmup_epochs else 1.0
        warmth = warmup_factor * (1 - rising) + rising
        return Rates(context.lr * end_factor ** (t / context.epochs) * warmth)

    return rates


def step(
    context: ScheduleContext,
    *,
    milestones: list[Epochs],
    factor: Positive | list[Positive],
    warmup_epochs: Epochs | None = None,
) -> Schedule:
    """Multiplies the learning rate by `factor` at each milestone (in epochs).

    A list of factors has one per milestone. In the first `warmup_epochs` the rate rises linearly
    from 0, step by step (Goyal et al. 2017; Bag of Tricks, 3.1).
    """
    factors = factor if isinstance(factor, list) else [factor] * len(milestones)
    if len(factors) != len(milestones):
        raise UsageError(
            f"schedule (step): {len(milestones)} milestones and {len(factors)} factors. "
            "Give one factor for each milestone, or one for all."
        )

    def rates(step: int) -> Rates:
        epoch = step / context.steps_per_epoch
        passed = (f for f, m in zip(factors, milestones, strict=True) if epoch >= m)
        warmth = min(1.0, epoch / warmup_epochs) if warmup_epochs else 1.0
        return Rates(context.lr * math.prod(passed) * warmth)

    return rates


def inv(context: ScheduleContext, *, gamma: Positive, power: Positive) -> Schedule:
    """lr (1 + gamma t)^-power after t steps (Caffe's `inv`, which its LeNet uses)."""
    return lambda step: Rates(context.lr * (1 + gamma * step) ** -power)


def poly(context: ScheduleContext, *, power: Positive) -> Schedule:
    """lr (1 - t / steps)^power after t steps (DeepLab; Chen et al. 2016)."""
    return lambda step: Rates(context.lr * max(0.0, 1 - step / context.steps) ** power)


def piecewise(
    context: ScheduleContext, *, epochs: list[Epochs], factors: list[NotNegative]
) -> Schedule:
    """Linear between knots: at `epochs[i]` the rate is `lr * factors[i]`."""
    if len(epochs) != len(factors) or len(epochs) < 2:
        raise UsageError(
            f"schedule (piecewise): {len(epochs)} epochs and {len(factors)} factors. "
            "Give one factor for each knot, and at least two knots."
        )
    if any(a >= b for a, b in pairwise(epochs)):
        raise UsageError(f"schedule (piecewise).epochs: {epochs} must increase.")

    def rates(step: int) -> Rates:
        epoch = step / context.steps_per_epoch
        if epoch <= epochs[0]:
            return Rates(context.lr * factors[0])
        for (a, b), (low, high) in zip(pairwise(epochs), pairwise(factors), strict=True):
            if epoch <= b:
                return Rates(context.lr * (low + (high - low) * (epoch - a) / (b - a)))
        return Rates(context.lr * factors[-1])

    return rates
