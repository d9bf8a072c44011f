"""A faster CELU for CPUs; `rescue bench step` measures the gain."""

from typing import Any

import torch
from torch import Tensor, nn

AT_A_TIME = 1 << 19  # elements: intermediate results stay in a core's cache


class Celu(nn.CELU):
    """max(x, 0) + min(alpha (exp(x / alpha) - 1), 0), in place (Barron 2017).

    torch's CPU kernel computes expm1 element by element. Here exp(x) - 1 is computed in single
    precision: an error of at most 3e-8, far below half precision's. Other devices use torch's CELU.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__(alpha, inplace=True)

    def forward(self, values: Tensor) -> Tensor:
        small = values.dtype in (torch.bfloat16, torch.float32)
        if values.device.type != "cpu" or not small or torch.compiler.is_compiling():
            return super().forward(values)
        if (flat := _in_memory_order(values)) is None:
            return super().forward(values)
        result: Tensor = _Celu.apply(values, flat, self.alpha)
        return result


def _in_memory_order(values: Tensor) -> Tensor | None:
    """The elements in memory order, (n,); None where they are not dense."""
    if values.is_contiguous():
        return values.detach().view(-1)
    if values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last):
        return values.detach().permute(0, 2, 3, 1).view(-1)
    return None


class _Celu(torch.autograd.Function):
    """Overwrites its input; the gradient is computed from the result alone, as in torch."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, flat: Tensor, alpha: float) -> Tensor:
        for part in torch.split(flat, AT_A_TIME):
            below = part.clamp(max=0).float().mul_(1 / alpha).exp_().sub_(1).mul_(alpha)
            torch.maximum(part, below.to(part.dtype), out=part)
        ctx.mark_dirty(values)
        ctx.save_for_backward(values)
        ctx.alpha = alpha
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        alpha = ctx.alpha
        slope = torch.ops.aten.elu_backward(gradient, alpha, 1.0, 1 / alpha, True, result)
        return slope, None, None
