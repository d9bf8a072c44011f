"""The section `averaging`: which weights are evaluated and reported."""

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rescue_cli.registry import Fraction, PositiveInt


class Average(Protocol):
    """Follows a model's weights; `model` is what is evaluated."""

    model: nn.Module

    def update(self, step: int) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class NoAverage:
    """The weights themselves."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def update(self, step: int) -> None:
        """Nothing to follow."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Ema:
    """average = decay * average + (1 - decay) * weights, every so many steps; buffers likewise."""

    def __init__(self, model: nn.Module, decay: float, every: int) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.every = every
        pairs = list(zip(_tensors(self.model), _tensors(model), strict=True))
        self.averages = [a for a, _ in pairs if a.is_floating_point()]
        self.sources = [s for a, s in pairs if a.is_floating_point()]
        self.counters = [(a, s) for a, s in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        if (step + 1) % self.every:
            return
        torch._foreach_lerp_(self.averages, self.sources, 1 - self.decay)
        for average, source in self.counters:
            average.copy_(source)

    def state_dict(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*(p.data for p in model.parameters()), *model.buffers()]


def none(model: nn.Module) -> Average:
    """No averaging."""
    return NoAverage(model)


def ema(model: nn.Module, *, decay: Fraction, every: PositiveInt) -> Average:
    """An exponential moving average that starts from the initial weights."""
    return Ema(model, decay, every)


AVERAGES = {"none": none, "ema": ema}
