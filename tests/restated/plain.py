"""Layers, losses and updates as formulas on named tensors."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.restated import Weights

Seen = dict[str, list[tuple[Tensor, Tensor]]]  # a norm's batch means and unbiased variances


def batch_norm(x: Tensor, layer: str, eps: float, seen: Seen) -> Tensor:
    """(x - mean) / sqrt(variance + eps) by channel; the statistics are added to `seen`."""
    count = x.numel() // x.shape[1]
    mean = x.mean((0, 2, 3))
    apart = x - mean[:, None, None]
    variance = (apart * apart).mean((0, 2, 3))
    seen.setdefault(layer, []).append((mean.detach(), variance.detach() * count / (count - 1)))
    return apart / torch.sqrt(variance + eps)[:, None, None]


def move_statistics(weights: Weights, seen: Seen, new: float) -> None:
    """Running statistics take the share `new` of the mean of what was seen."""
    for layer, found in seen.items():
        means, variances = zip(*found, strict=True)
        for name, values in (("running_mean", means), ("running_var", variances)):
            full = f"{layer}.{name}"
            weights[full] = (1 - new) * weights[full] + new * torch.stack(values).mean(0)


def max_pool(x: Tensor) -> Tensor:
    """The maximum of each 2x2 window; an odd last row or column is left out."""
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    windows = x[:, :, : 2 * rows, : 2 * columns].reshape(*x.shape[:2], rows, 2, columns, 2)
    return windows.amax((3, 5))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def celu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0) / alpha))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return torch.eye(classes, dtype=torch.float64)[labels]


def cross_entropies(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """One for each image: (1 - smoothing) that of the targets, the rest of the even spread."""
    logs = logits - logits.logsumexp(1, keepdim=True)
    return -(1 - smoothing) * (targets * logs).sum(1) - smoothing * logs.mean(1)


def differentiated(
    weights: Weights, names: Iterable[str], loss: Callable[[Weights], Tensor]
) -> Weights:
    """The loss's gradients by the named weights."""
    leaves = {name: weights[name].detach().requires_grad_() for name in names}
    found = torch.autograd.grad(loss({**weights, **leaves}), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


class Nesterov:
    """v = momentum v + g + decay w; w -= rate (g + decay w + momentum v), as torch and MXNet."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.velocities: Weights = {}

    def move(
        self, weights: Weights, gradients: Mapping[str, Tensor], rate: float, decay: float
    ) -> None:
        for name, gradient in gradients.items():
            pull = gradient + decay * weights[name]
            velocity = self.momentum * self.velocities.get(name, 0.0) + pull
            self.velocities[name] = velocity
            weights[name] = weights[name] - rate * (pull + self.momentum * velocity)


def line(at: float, knots: list[tuple[float, float]]) -> float:
    """Straight lines through the knots, held beyond the ends."""
    (start, value), *rest = knots
    if at <= start:
        return value
    for place, goal in rest:
        if at < place:
            return value + (goal - value) * (at - start) / (place - start)
        start, value = place, goal
    return value


def patches(images: Tensor, size: int) -> Tensor:
    """All size x size patches inside the images, one a row, flat by channel, row, column."""
    windows = images.unfold(2, size, 1).unfold(3, size, 1)
    return windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)


def whitening(covariance: Tensor, eps: float) -> Tensor:
    """Rows: the covariance's eigenvectors over sqrt(eigenvalue + eps), the largest first.

    By singular values, which are the eigenvalues of such a matrix. A row's sign is free.
    """
    vectors, values, _ = torch.linalg.svd(covariance)
    rows: Tensor = (vectors / torch.sqrt(values + eps)).T
    return rows


def floats(weights: Mapping[str, Any]) -> Weights:
    """Copies of what is no counter."""
    return {k: v.detach().clone() for k, v in weights.items() if v.is_floating_point()}
