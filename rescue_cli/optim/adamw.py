"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from rescue_cli.registry import Fraction, NotNegative, Positive


def adamw(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive,
    weight_decay: NotNegative,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
) -> Optimizer:
    """torch's AdamW: w -= lr wd w, then lr times Adam's direction.

    Fused, so that a step which the gradient scaler skips needs no word from the device.
    """
    return torch.optim.AdamW(
        groups, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=True
    )
