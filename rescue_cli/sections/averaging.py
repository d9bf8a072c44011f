"""The section `averaging`: weight averages, which are evaluated and reported."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rescue_cli.recipe.schema import Epochs, Fraction, NotNegative, Positive, PositiveInt


@dataclass(frozen=True)
class RunLength:
    """The run's length in steps."""

    steps: int
    steps_per_epoch: int


class Average(Protocol):
    """An average of a model's weights; `model` is the one that is evaluated."""

    model: nn.Module

    def update(self, step: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class NoAverage:
    """No average: the model itself."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def update(self, step: int) -> None:
        """Nothing to update."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Ema:
    """average = decay * average + (1 - decay) * weights, at certain steps; buffers likewise."""

    def __init__(self, model: nn.Module, decay_after: Callable[[int], float | None]) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay_after = decay_after  # number of steps -> decay; None: no update
        pairs = list(
            zip(_parameters_and_buffers(self.model), _parameters_and_buffers(model), strict=True)
        )
        self.averages = [a for a, _ in pairs if a.is_floating_point()]
        self.sources = [s for a, s in pairs if a.is_floating_point()]
        self.counters = [(a, s) for a, s in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        if (decay := self.decay_after(step + 1)) is None:
            return
        torch._foreach_lerp_(self.averages, self.sources, 1 - decay)
        for average, source in self.counters:
            average.copy_(source)

    def state_dict(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)


class Lookahead:
    """An average that is copied back into the model; the model is evaluated."""

    def __init__(
        self,
        model: nn.Module,
        decay_after: Callable[[int], float],
        every: int,
        first: int,
        last: int,
    ) -> None:
        self.model = model
        self.decay_after = decay_after  # number of steps -> decay
        self.every = every
        self.first = first  # after this many steps the average becomes a copy of the weights
        self.last = last
        self.sources = [t for t in _parameters_and_buffers(model) if t.is_floating_point()]
        self.averages = [s.clone() for s in self.sources]

    @torch.no_grad()
    def update(self, step: int) -> None:
        updates = step + 1
        if updates < self.first:
            return
        if updates % self.every == 0:
            decay = self.decay_after(updates) if updates > self.first else 0.0
            torch._foreach_lerp_(self.averages, self.sources, 1 - decay)
        if updates % self.every == 0 or updates == self.last:
            torch._foreach_copy_(self.sources, self.averages)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        torch._foreach_copy_(self.averages, state["averages"])


def _parameters_and_buffers(model: nn.Module) -> list[Tensor]:
    return [*(p.data for p in model.parameters()), *model.buffers()]


def none(model: nn.Module, _length: RunLength) -> Average:
    """No averaging."""
    return NoAverage(model)


def ema(
    model: nn.Module,
    length: RunLength,
    *,
    decay: Fraction,
    every: PositiveInt,
    first: PositiveInt | None = None,
    warmup: tuple[Positive, Positive] | None = None,
    start: Epochs | None = None,
) -> Average:
    """An exponential moving average that starts from the initial weights.

    `decay` is applied every `every` steps, first after step `first` (default: `every`). It is the
    decay per application: raise a paper's decay per step to the power `every`.

    With `warmup` [gamma, power] or `start` the average is a copy of the weights until its first
    update after epoch `start` (torchvision's warm-up; timm's `update_after_step`); at the n-th
    update after that `warmup` uses min(decay, 1 - (1 + n / gamma)^-power) in place of `decay`
    (timm's ModelEmaV3: gamma 1, power 2/3). [9, 1] is TensorFlow's
    min(decay, (1 + t) / (10 + t)) with t = n - 1.
    """
    begin = first or every
    copied = 0  # the last step after which the average is a copy of the weights
    if warmup is not None or start is not None:
        steps = int(round((start or 0.0) * length.steps_per_epoch, 6))
        copied = begin + every * max(0, math.ceil((steps + 1 - begin) / every))

    def decay_after(updates: int) -> float | None:
        if updates < begin or (updates - begin) % every:
            return None
        if updates <= copied:
            return 0.0
        n = (updates - copied) // every
        return decay if warmup is None else min(decay, 1 - (1 + n / warmup[0]) ** -warmup[1])

    return Ema(model, decay_after)


def ema_by_epoch(
    model: nn.Module, length: RunLength, *, decay: Fraction, every: PositiveInt, start: Epochs
) -> Average:
    """An exponential moving average as in torchvision's reference scripts for classification.

    `decay` is applied after the steps 0, `every`, 2 `every`, ... of each epoch. Up to epoch `start`
    and its first step the average is a copy of the weights.
    """
    copied = math.ceil(round(start, 6)) * length.steps_per_epoch

    def decay_after(updates: int) -> float | None:
        step = updates - 1
        if step % length.steps_per_epoch % every:
            return None
        return 0.0 if step <= copied else decay

    return Ema(model, decay_after)


def lookahead(
    model: nn.Module,
    length: RunLength,
    *,
    decay: Fraction,
    every: PositiveInt,
    power: NotNegative,
    start: Epochs = 0.0,
) -> Average:
    """Every `every` steps weights and buffers are set to their average (hlb-CIFAR10, airbench).

    After t of T steps, t a multiple of `every`, average = lerp(average, weights, 1 - d) and
    weights = average, with d = decay^every (t / T)^power; unlike in `ema`, `decay` is per step.
    After step T the weights are set to the average in any case. The average starts as the initial
    weights, or as the weights at the first such t from epoch `start` on.
    """
    first = every * math.ceil(round(start * length.steps_per_epoch, 6) / every)
    return Lookahead(
        model, lambda t: decay**every * (t / length.steps) ** power, every, first, length.steps
    )


AVERAGES = {"none": none, "ema": ema, "ema-by-epoch": ema_by_epoch, "lookahead": lookahead}
