"""Several optimizers that step as one, with learning rates set from schedules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from rescue_cli.sections.schedule import Rates, Schedule

FAR = 10**9  # a step beyond the end of any schedule
SCALARS = ("step", "renormalised")  # in the state of a parameter; all else has its shape


@dataclass(frozen=True)
class RatedGroup:
    """A parameter group whose learning rate is `ratio` times what `schedule` says."""

    optimizer: Optimizer
    index: int
    schedule: Schedule
    ratio: float

    @property
    def group(self) -> dict[str, Any]:
        """Looked up each time: loading a state replaces the optimizer's groups."""
        group: dict[str, Any] = self.optimizer.param_groups[self.index]
        return group


class Optimizers:
    """The recipe's optimizers: one for each name, over all parameters together.

    With `keep_gradients` each parameter keeps its gradient's memory, which is set to 0 after a
    step; else it is freed.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        rated: Sequence[RatedGroup],
        max_grad_norm: float | None,
        scaler: torch.amp.GradScaler,
        *,
        keep_gradients: bool = False,
    ) -> None:
        self.optimizers = list(optimizers)
        self.rated = list(rated)
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler
        self.parameters: list[Tensor] = [
            p for o in self.optimizers for g in o.param_groups for p in g["params"]
        ]
        self._begun = [{p for p, state in o.state.items() if state} for o in self.optimizers]
        self.skipped = torch.zeros((), device=self.parameters[0].device)
        self.keep_gradients = keep_gradients
        if keep_gradients:
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)

    def set_rates(self, step: int) -> Rates:
        """Gives every group its learning rate and momentum; returns the reference group's."""
        for rated in self.rated:
            rates = rated.schedule(step)
            rated.group["lr"] = rates.lr * rated.ratio
            if rates.momentum is None:
                continue
            if "momentum" in rated.group:
                rated.group["momentum"] = rates.momentum
            elif "betas" in rated.group:  # the first of Adam's and LAMB's
                rated.group["betas"] = (rates.momentum, *rated.group["betas"][1:])
        return self.rated[0].schedule(step)

    def step(self) -> None:
        """Unscales, clips over all parameters, updates, and drops the gradients."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        if self.scaler.is_enabled():
            self.skipped += self._share_infinities()
        if self.max_grad_norm is not None:
            clip_grad_norm_(self.parameters, self.max_grad_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=not self.keep_gradients)

    def _share_infinities(self) -> Tensor:
        """1 where any gradient of this step is infinite, else 0; stays on the device.

        The scaler would skip only the optimizer whose own gradients are infinite. A step updates
        all weights or none, so the flag of one is copied to all.
        """
        flags = [f for o in self.optimizers for f in self.scaler._found_inf_per_device(o).values()]
        worst = torch.stack(flags).amax()
        torch._foreach_copy_(flags, [worst] * len(flags))
        return worst

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` where the state is not of these parameters, and what torch raises."""
        # Options that no schedule changes are the recipe's and not the checkpoint's: a study may
        # continue from a checkpoint with other options
        kept = [self._unscheduled_options(rated) for rated in self.rated]
        saved_states = zip(self.optimizers, state["optimizers"], self._begun, strict=True)
        for optimizer, saved, begun in saved_states:
            _load(optimizer, saved, begun)
        for rated, options in zip(self.rated, kept, strict=True):
            rated.group.update(options)
        self.scaler.load_state_dict(state["scaler"])
        self.skipped.copy_(state["skipped"])

    @staticmethod
    def _unscheduled_options(rated: RatedGroup) -> dict[str, Any]:
        """A group's options without its rate, and without a momentum that its schedule sets."""
        sets_momentum = any(rated.schedule(step).momentum is not None for step in (0, FAR))
        scheduled = {"params", "lr", *(("momentum", "betas") if sets_momentum else ())}
        return {key: value for key, value in rated.group.items() if key not in scheduled}


def _load(optimizer: Optimizer, saved: dict[str, Any], begun: set[Tensor]) -> None:
    """Loads a state; raises `ValueError` where a parameter's is not of its shape, or one of those
    that had a state before the first step, `begun`, has none.

    torch's fused kernels look at neither shape nor strides, and would write to memory that is not
    theirs. The state of the user's own optimizers can be anything.
    """
    optimizer.load_state_dict(saved)
    if not type(optimizer).__module__.startswith("rescue_cli."):
        return
    parameters = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if not all(isinstance(state, dict) for state in optimizer.state.values()):
        raise ValueError("the state of an optimizer's parameter is not a mapping")
    states = {parameter: state for parameter, state in optimizer.state.items() if state}
    names = next((state.keys() for state in states.values()), None)
    if not begun <= states.keys() <= parameters or any(s.keys() != names for s in states.values()):
        raise ValueError("the states of an optimizer's parameters are not alike")
    for parameter, state in states.items():
        for name, value in state.items():
            shape = () if name in SCALARS else tuple(parameter.shape)
            if not isinstance(value, Tensor) or value.shape != shape:
                raise ValueError(f"an optimizer's {name} is not a tensor of the shape {shape}")
            if shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter).copy_(value)
