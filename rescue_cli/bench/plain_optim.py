"""Plain forms of the optimizers: a loop over tensors, nothing fused or batched."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.sections.optim import assign_parameters

LR = 1e-4  # the same batches come again and again, and must not make the loss diverge
Options = Mapping[str, Any]


def plain_optimizers(recipe: Recipe, network: nn.Module) -> list[Optimizer]:
    """One per optimizer of the recipe and weight decay, with a constant learning rate.

    Raises `UsageError` for an optimizer without a plain form.
    """
    parameters = dict(network.named_parameters())
    found = []
    for item, claim in zip(recipe.optim, assign_parameters(network, recipe.optim), strict=True):
        if item.name not in PLAIN:
            raise UsageError(
                f"bench step: --against plain does not support optim ({item.name}). "
                f"Use one of {', '.join(PLAIN)}."
            )
        decay = item.weight_decay
        for names, own in ((claim.decayed, decay), (claim.undecayed, 0.0)):
            if names:
                mine = [parameters[name] for name in names]
                found.append(PLAIN[item.name](mine, item.arguments, own))
    return found


def _sgd(parameters: list[nn.Parameter], options: Options, decay: float) -> Optimizer:
    momentum, nesterov = options["momentum"], options["nesterov"]
    return torch.optim.SGD(
        parameters, lr=LR, momentum=momentum, nesterov=nesterov, weight_decay=decay
    )


def _adamw(parameters: list[nn.Parameter], _options: Options, decay: float) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=LR, weight_decay=decay)


def _lamb(parameters: list[nn.Parameter], options: Options, decay: float) -> Optimizer:
    """timm's."""
    from timm.optim.lamb import Lamb

    lamb: Any = Lamb
    norm = options["max_grad_norm"]
    optimizer: Optimizer = lamb(parameters, lr=LR, weight_decay=decay, max_grad_norm=norm)
    return optimizer


class PlainMuon(Optimizer):
    """Muon over convolution filters (out, in, height, width), one at a time (airbench94_muon).

    v = momentum v + g; w gets norm sqrt(out); w -= lr times the orthogonal part of the direction.
    """

    def __init__(self, parameters: list[nn.Parameter], options: Options, decay: float) -> None:
        super().__init__(parameters, {"lr": LR, "decay": decay})
        self.options = options
        self.count = 0

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        self.count += 1
        options, (group,) = self.options, self.param_groups
        every = options["renormalise_every"]
        every = (
            every if every is None or isinstance(every, int) else every[0]
        )  # at the start of a run
        for p in group["params"]:
            velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
            velocity.mul_(options["momentum"]).add_(p.grad)
            direction = velocity
            if options["nesterov"]:
                direction = p.grad.add(velocity, alpha=options["momentum"])
            if every and self.count % every == 0:
                p.mul_(len(p) ** 0.5 / p.norm())
            update = _orthogonal(direction.reshape(len(p), -1), options)
            p.add_(update.view(p.shape), alpha=-group["lr"])
            p.mul_(1 - group["lr"] * group["decay"])


def _orthogonal(matrix: Tensor, options: Options) -> Tensor:
    """The matrix (out, in) with singular values near 1, by Newton-Schulz iterations."""
    a, b, c = options["coefficients"]
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    x = (wide / (wide.norm() + 1e-7)).to(_iteration_dtype(options["iterate"], matrix))
    for _ in range(options["steps"]):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    found: Tensor = (x if wide is matrix else x.T).to(matrix.dtype)
    return found


def _iteration_dtype(name: str, matrix: Tensor) -> torch.dtype:
    """The recipe's dtype; the matrix's own if the processor would emulate it."""
    native = (
        matrix.device.type == "cuda"
        or {
            "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported(),
            "float32": True,
        }[name]
    )
    dtype: torch.dtype = getattr(torch, name)
    return dtype if native and matrix.dtype != torch.float64 else matrix.dtype


PLAIN: Mapping[str, Callable[[list[nn.Parameter], Options, float], Optimizer]] = {
    "sgd": _sgd,
    "sgd-velocity": _sgd,  # the same operations in another order
    "adamw": _adamw,
    "lamb": _lamb,
    "muon": PlainMuon,
}
