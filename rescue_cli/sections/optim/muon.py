"""Muon: SGD with momentum whose updates are orthogonalised, matrix by matrix (Jordan 2024)."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Fraction, NotNegative, Positive, PositiveInt
from rescue_cli.sections.optim.grad_scaling import ScalerAwareOptimizer, groups_with_gradients

Coefficients = tuple[float, float, float]
Iterate = Literal["bfloat16", "float16", "float32"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EPS = 1e-7  # added to a direction's norm (airbench94_muon); here also the least norm of weights


def muon(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive,
    momentum: Fraction,
    nesterov: bool,
    weight_decay: NotNegative,
    steps: PositiveInt,
    coefficients: Coefficients,
    iterate: Iterate,
    renormalise_every: PositiveInt | tuple[PositiveInt, PositiveInt] | None,
) -> Optimizer:
    """airbench94_muon's optimizer for filters (out, in, height, width) and matrices (out, in).

    v = momentum v + g; w *= sqrt(out) / |w|, every `renormalise_every` updates; w -= lr times
    `newton_schulz` of g + momentum v with Nesterov, else of v; w *= 1 - lr wd. At learning rate 0
    the weights do not change. With a pair [a, b], update n of the group's `updates` renormalises
    when a + floor((b - a) n / updates) or more updates passed since the last that did (hiverge
    2025). The iteration runs in the dtype `iterate`, or in the parameters' dtype where that is
    float64 or where the CPU would emulate `iterate`. Raises `UsageError` for other shapes.
    """
    groups = list(groups)
    for group in groups:
        for parameter in group["params"]:
            if parameter.ndim not in (2, 4):
                raise UsageError(
                    f"optim (muon).params: a parameter of shape {tuple(parameter.shape)} is not a "
                    "matrix. Use params: filters for muon and another optimizer for the others."
                )
    return Muon(
        groups,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        steps=steps,
        coefficients=coefficients,
        iterate=iterate,
        renormalise_every=renormalise_every,
        fused=True,  # load_state_dict then keeps the step counters' device and dtype
    )


class Muon(ScalerAwareOptimizer):
    """See `muon`."""

    def update(self, found_inf: Tensor | None) -> None:
        for group, parameters, gradients in groups_with_gradients(self):
            directions = self._directions(parameters, gradients, group, found_inf)
            if group["lr"]:
                self._move(parameters, directions, group, found_inf)

    def _directions(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        group: dict[str, Any],
        found_inf: Tensor | None,
    ) -> list[Tensor]:
        """Updates velocities and counters; returns the directions to orthogonalise."""
        states = [self._state_of(p) for p in parameters]
        velocities, counters = [s["velocity"] for s in states], [s["step"] for s in states]
        moved = list(torch._foreach_mul(velocities, group["momentum"]))
        torch._foreach_add_(moved, gradients)
        directions = moved
        if group["nesterov"]:
            directions = list(torch._foreach_add(gradients, moved, alpha=group["momentum"]))
        torch._foreach_add_(counters, 1)
        if found_inf is not None:  # a skipped step does not count
            torch._foreach_sub_(counters, [found_inf] * len(counters))
            moved = _keep_where_skipped(found_inf, moved, velocities)
        torch._foreach_copy_(velocities, moved)
        return directions

    def _move(
        self,
        parameters: list[Tensor],
        directions: list[Tensor],
        group: dict[str, Any],
        found_inf: Tensor | None,
    ) -> None:
        """w = shrink (factor w - lr update), shrink being 1 - lr wd and factor renormalising."""
        shrink = 1 - group["lr"] * group["weight_decay"]
        updates = _orthogonalise(directions, group)
        factors = self._factors(parameters, group, found_inf)
        torch._foreach_mul_(factors, shrink)
        if found_inf is not None:
            updates = _keep_where_skipped(found_inf, updates, [0.0] * len(updates))
            factors = _keep_where_skipped(found_inf, factors, [1.0] * len(factors))
        torch._foreach_mul_(parameters, factors)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * shrink)

    def _factors(
        self, parameters: list[Tensor], group: dict[str, Any], found_inf: Tensor | None
    ) -> list[Tensor]:
        """sqrt(out) / |w| for each parameter that is renormalised now, 1 for the others."""
        if group["renormalise_every"] is None:
            return [p.new_ones(()) for p in parameters]
        factors = list(torch._foreach_norm(parameters))
        torch._foreach_clamp_min_(factors, EPS)
        torch._foreach_reciprocal_(factors)
        torch._foreach_mul_(factors, [p.shape[0] ** 0.5 for p in parameters])
        due = self._due([self.state[p] for p in parameters], group, found_inf)
        return list(torch.where(due, torch.stack(factors), 1.0).unbind())

    @staticmethod
    def _due(
        states: list[dict[str, Tensor]], group: dict[str, Any], found_inf: Tensor | None
    ) -> Tensor:
        """(parameters,): whether this update renormalises; with a pair, records that it did."""
        every, steps = group["renormalise_every"], torch.stack([s["step"] for s in states])
        if isinstance(every, int):
            of_turn: Tensor = steps % every == 0
            return of_turn
        first, last = every
        before = torch.stack([s["renormalised"] for s in states])
        interval = first + (last - first) * steps.long() // group["updates"]
        due: Tensor = steps - before >= interval
        taken = due if found_inf is None else due & ~found_inf.bool()
        now = torch.where(taken, steps, before)
        torch._foreach_copy_([s["renormalised"] for s in states], list(now.unbind()))
        return due

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["velocity"] = torch.zeros_like(parameter)
            state["renormalised"] = torch.zeros_like(state["step"])  # after as many updates
        return state


def newton_schulz(
    matrices: list[Tensor], steps: int, coefficients: Coefficients, dtype: torch.dtype
) -> Tensor:
    """U p(p(..p(S / |S|))) V^T of k matrices U S V^T of one shape: (k, rows, columns).

    p(s) = a s + b s^3 + c s^5 moves singular values towards 1; Jordan's coefficients leave them
    between 0.7 and 1.2. Computed in `dtype`, with the Gram matrix of the smaller side.
    """
    a, b, c = coefficients
    norms = torch._foreach_add(torch._foreach_norm(matrices), EPS)
    x = torch.stack([m.to(dtype) for m in torch._foreach_div(matrices, norms)])
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    orthogonal: Tensor = x.mT if tall else x
    return orthogonal.to(matrices[0].dtype)


def _orthogonalise(directions: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """`newton_schulz` of every direction, batched by shape."""
    indices_of: dict[torch.Size, list[int]] = {}
    for index, direction in enumerate(directions):
        indices_of.setdefault(direction.shape, []).append(index)
    dtype = _iteration_dtype(directions[0], group["iterate"])
    updates = list(directions)
    for shape, indices in indices_of.items():
        matrices = [_as_matrix(directions[index]) for index in indices]
        orthogonal = newton_schulz(matrices, group["steps"], group["coefficients"], dtype)
        for index, matrix in zip(indices, orthogonal.unbind(), strict=True):
            updates[index] = _as_filters(matrix, shape)
    return updates


def _as_matrix(filters: Tensor) -> Tensor:
    """(out, in, height, width) as (out, height x width x in), without a copy in channels-last.

    The iteration does not depend on the order of the columns.
    """
    return filters.movedim(1, -1).flatten(1)


def _as_filters(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_as_matrix`."""
    out, channels, *window = shape
    filters: Tensor = matrix.reshape(out, *window, channels).movedim(-1, 1)
    return filters


def _iteration_dtype(parameter: Tensor, iterate: Iterate) -> torch.dtype:
    """The dtype of the iteration: `iterate`, unless that is emulated or the weights are float64."""
    emulated = parameter.device.type == "cpu" and _is_emulated(iterate)
    return parameter.dtype if emulated or parameter.dtype == torch.float64 else DTYPES[iterate]


def _is_emulated(iterate: Iterate) -> bool:
    """Whether this CPU lacks matrix products in that precision."""
    if iterate == "bfloat16":
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return iterate == "float16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported()


def _keep_where_skipped(skip: Tensor, new: list[Tensor], old: list[Any]) -> list[Tensor]:
    """The old values where `skip` is not 0, else the new ones."""
    skipped = skip.bool()
    return [torch.where(skipped, o, n) for o, n in zip(old, new, strict=True)]
