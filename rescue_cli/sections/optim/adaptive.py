"""torch's adaptive optimizers: AdamW, and those with weight decay in the gradient."""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from rescue_cli.recipe.schema import Fraction, NotNegative, Positive
from rescue_cli.sections.optim.uncompiled import Adadelta, Adagrad, Adam, AdamW


def adamw(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive,
    weight_decay: NotNegative,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019): w -= lr wd w, then w -= lr times Adam's direction.

    Fused, so that the gradient scaler can skip a step without a host sync.
    """
    return AdamW(groups, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=True)


def adam(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive,
    weight_decay: NotNegative,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
) -> Optimizer:
    """Adam (Kingma and Ba 2015), with weight decay added to the gradient."""
    return Adam(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def adagrad(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive,
    weight_decay: NotNegative,
    eps: Positive = 1e-10,
) -> Optimizer:
    """AdaGrad (Duchi et al. 2011), with weight decay added to the gradient."""
    return Adagrad(groups, lr=lr, eps=eps, weight_decay=weight_decay)


def adadelta(
    groups: Iterable[dict[str, Any]],
    *,
    lr: Positive,
    weight_decay: NotNegative,
    rho: Fraction = 0.9,
    eps: Positive = 1e-6,
) -> Optimizer:
    """AdaDelta (Zeiler 2012), with weight decay added to the gradient."""
    return Adadelta(groups, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)
