"""Stochastic gradient descent in torch's form, and with the learning rate in the velocity."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rescue_cli.recipe.schema import Fraction, NotNegative, Positive
from rescue_cli.sections.optim.grad_scaling import ScalerAwareOptimizer, groups_with_gradients
from rescue_cli.sections.optim.uncompiled import SGD


def sgd(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive,
    momentum: Fraction,
    nesterov: bool,
    weight_decay: NotNegative,
) -> Optimizer:
    """torch's SGD: v = momentum v + (g + wd w); w -= lr (g + wd w + momentum v with Nesterov).

    Fused, so that the gradient scaler can skip a step without a host sync.
    """
    optimizer = SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
    )
    # Without this, a first step that the scaler skips would leave uninitialised velocities
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def sgd_velocity(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive,
    momentum: Fraction,
    nesterov: bool,
    weight_decay: NotNegative,
) -> Optimizer:
    """SGD whose velocity includes the learning rate of each step (Myrtle).

    d = lr (g + wd w); v = momentum v - d; w += momentum v - d with Nesterov, else v. Equal to
    torch's form only while the learning rate is constant.
    """
    return SgdVelocity(
        groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )


class SgdVelocity(ScalerAwareOptimizer):
    """See `sgd_velocity`."""

    def update(self, found_inf: Tensor | None) -> None:
        for group, parameters, gradients in groups_with_gradients(self):
            velocities = [self._velocity(p) for p in parameters]
            _update(parameters, gradients, velocities, group, found_inf)

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity: Tensor = state["velocity"]
        return velocity


def _update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    velocities: list[Tensor],
    group: dict[str, Any],
    found_inf: Tensor | None,
) -> None:
    changes = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
    torch._foreach_mul_(changes, group["lr"])
    before = velocities if found_inf is None else torch._foreach_mul(velocities, 1.0)  # copies
    torch._foreach_mul_(velocities, group["momentum"])
    torch._foreach_sub_(velocities, changes)
    ahead = velocities
    if group["nesterov"]:
        ahead = list(torch._foreach_mul(velocities, group["momentum"]))
        torch._foreach_sub_(ahead, changes)
    if found_inf is not None:  # a skipped step keeps velocities and weights, without a host sync
        skip = found_inf.bool()
        ahead = [torch.where(skip, 0.0, a) for a in ahead]
        kept = [torch.where(skip, b, v) for b, v in zip(before, velocities, strict=True)]
        torch._foreach_copy_(velocities, kept)
    torch._foreach_add_(parameters, ahead)
