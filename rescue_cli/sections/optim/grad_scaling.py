"""Base class for optimizers that work under torch's gradient scaler without a host sync."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rescue_cli.sections.optim.uncompiled import Uncompiled


def groups_with_gradients(
    optimizer: Optimizer,
) -> Iterator[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
    """Yields each group with gradients: the group, its parameters, their unscaled gradients.

    A scaler that has not unscaled them sets the optimizer's `grad_scale`.
    """
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    for group in optimizer.param_groups:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            continue
        gradients = [p.grad for p in parameters]
        if scale is not None:
            gradients = list(torch._foreach_div(gradients, scale))
        yield group, parameters, gradients


class ScalerAwareOptimizer(Uncompiled, Optimizer):
    """An optimizer that divides by the scale itself and skips steps without a host sync."""

    _step_supports_amp_scaling = True

    def __init__(self, groups: Iterable[dict[str, Any]], **defaults: Any) -> None:
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the parameters' gradients, which may be divided in place."""
        assert closure is None
        self.update(getattr(self, "found_inf", None))

    def update(self, found_inf: Tensor | None) -> None:
        """Updates the parameters; where `found_inf` is not 0, nothing changes."""
        raise NotImplementedError
