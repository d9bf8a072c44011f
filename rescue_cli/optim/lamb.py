"""LAMB: Adam's direction, each tensor's step as long as the tensor (You et al. 2019)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rescue_cli.errors import UsageError
from rescue_cli.registry import Fraction, NotNegative, Positive


def lamb(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive,
    weight_decay: NotNegative,
    max_grad_norm: Positive | None,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-6,
) -> Optimizer:
    """timm's LAMB with its defaults, those of ResNet strikes back.

    u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + wd w; w -= lr |w| / |u| u. Gradients are
    first divided by max(1, norm over all parameters / `max_grad_norm`). Tensors without decay take
    Adam's step as it is. Raises `UsageError` where groups of one optimizer differ in that norm.
    """
    groups = list(groups)
    if len({group.get("max_grad_norm", max_grad_norm) for group in groups}) > 1:
        raise UsageError(
            "optim (lamb).max_grad_norm: the items share one norm over all their parameters. "
            "Give each the same."
        )
    return Lamb(
        groups, lr=lr, weight_decay=weight_decay, max_grad_norm=max_grad_norm, betas=betas, eps=eps
    )


class Lamb(Optimizer):
    """See `lamb`. Understands the gradient scaler, and skips a step without asking the device."""

    _step_supports_amp_scaling = True

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        max_grad_norm: float | None,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
            "betas": betas,
            "eps": eps,
            "fused": True,  # keeps the step counters as they are when a state is loaded
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update from the parameters' gradients, which it may leave divided."""
        assert closure is None
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        divisor = self._divisor(getattr(self, "grad_scale", None))
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group, divisor, found_inf)

    def _divisor(self, scale: Tensor | None) -> Tensor | None:
        """What gradients are divided by: the scaler's factor, times what clipping asks for."""
        limit: float | None = self.param_groups[0]["max_grad_norm"]
        if limit is None:
            return scale
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if scale is not None:
            return (norm / scale / limit).clamp(min=1.0) * scale
        divisor = (norm / limit).clamp(min=1.0)
        if divisor.dtype != torch.float64:
            return divisor
        torch._foreach_div_(gradients, divisor)  # the kernel takes no divisor but float32
        return None

    def _update(
        self,
        parameters: list[Tensor],
        group: dict[str, Any],
        divisor: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        states = [self._state_of(p) for p in parameters]
        adapts = group["weight_decay"] != 0
        # Adam's kernel adds the direction to whatever lies in its target: the decay, or the weights
        targets = (
            list(torch._foreach_mul(parameters, group["weight_decay"])) if adapts else parameters
        )
        steps = [s["step"] for s in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            targets,
            [p.grad for p in parameters],  # type: ignore[misc]
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            steps,
            lr=-1.0 if adapts else group["lr"],  # type: ignore[arg-type]
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=found_inf,
        )
        if found_inf is not None:
            torch._foreach_sub_(steps, [found_inf] * len(steps))
        if adapts:
            ratios = _trust_ratios(parameters, targets) * -group["lr"]
            if found_inf is not None:
                ratios = ratios * (1 - found_inf)
            torch._foreach_addcmul_(parameters, targets, list(ratios.unbind()))

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def _trust_ratios(parameters: list[Tensor], updates: list[Tensor]) -> Tensor:
    """|w| / |u| of each pair, 1 where either is 0: (n,)."""
    weights = torch.stack(torch._foreach_norm(parameters))
    lengths = torch.stack(torch._foreach_norm(updates))
    return torch.where((weights > 0) & (lengths > 0), weights / lengths, 1.0)
