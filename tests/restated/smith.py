"""Cifar/architectures/cifar3.prototxt and 1cycsolver.prototxt of lnsmith54/hyperParam1 at 70e64e7,
the solver's policy and momentum after the report's appendix A.2, the update after Caffe's Nesterov.
"""

import torch
from torch import Tensor
from torch.nn import functional

from tests.restated import MicroBatch, Restated, Weights
from tests.restated.plain import cross_entropies, differentiated, one_hot

CLASSES = 10
LOWEST, HIGHEST, STEPSIZE = 0.0005, 0.005, 11 * (50_000 // 128)
MOMENTUM = (0.95, 0.85)
DECAY = 3e-3
MULTIPLIERS = {  # of the rate and of the decay
    "conv1.bias": (2, 1),
    "conv2.bias": (2, 1),
    "head.weight": (1, 250),
    "head.bias": (2, 0),
}


class ThreeLayers(Restated):
    """One cycle of the rate, and a momentum that goes against it and dips again."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.history = {name: torch.zeros_like(w) for name, w in weights.items()}

    def step(self, number: int, micro_batches: list[MicroBatch]) -> None:
        images = torch.cat([part.images for part in micro_batches])
        targets = one_hot(torch.cat([part.labels for part in micro_batches]), CLASSES)

        def loss(weights: Weights) -> Tensor:
            return cross_entropies(logits(weights, images), targets, 0.0).mean()

        trained = [name for name in self.weights if name != "mean_image.mean"]
        gradients = differentiated(self.weights, trained, loss)
        momentum = self.momentum(number)
        for name, gradient in gradients.items():
            faster, decayed = MULTIPLIERS.get(name, (1, 1))
            pull = gradient + DECAY * decayed * self.weights[name]
            before = self.history[name]
            after = momentum * before + faster * self.rate(number) * pull
            self.history[name] = after
            self.weights[name] = self.weights[name] - ((1 + momentum) * after - momentum * before)

    @staticmethod
    def rate(number: int) -> float:
        if number < STEPSIZE:
            return LOWEST + (HIGHEST - LOWEST) * number / STEPSIZE
        return max(HIGHEST * (2 * STEPSIZE - number) / STEPSIZE, LOWEST / 1000)

    @staticmethod
    def momentum(number: int) -> float:
        cycle = number // (2 * STEPSIZE)
        off = abs(number - (2 * cycle + 1) * STEPSIZE) / STEPSIZE
        share = min(1.0, max(0.0, (1 - off) / 2.0**cycle))
        return MOMENTUM[0] + (MOMENTUM[1] - MOMENTUM[0]) * share


def logits(weights: Weights, images: Tensor) -> Tensor:
    def convolved(x: Tensor, name: str) -> Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=2)

    x = images - weights["mean_image.mean"]
    x = local_norm(highest(convolved(x, "conv1")).clamp(min=0))
    x = local_norm(averaged(convolved(x, "conv2").clamp(min=0)))
    x = averaged(convolved(x, "conv3").clamp(min=0))
    return x.flatten(1) @ weights["head.weight"].T + weights["head.bias"]


def windows(x: Tensor, stride: int) -> Tensor:
    """3x3 windows: (n, channels, rows, columns, 3, 3)."""
    return x.unfold(2, 3, stride).unfold(3, 3, stride)


def highest(x: Tensor) -> Tensor:
    """The maximum of windows of stride 2; the last reach beyond the image (Caffe rounds up)."""
    return windows(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 2).amax((4, 5))


def averaged(x: Tensor) -> Tensor:
    """The mean over what such a window has of the image."""
    inside = functional.pad(torch.ones_like(x), (0, 1, 0, 1))
    return windows(functional.pad(x, (0, 1, 0, 1)), 2).sum((4, 5)) / windows(inside, 2).sum((4, 5))


def local_norm(x: Tensor) -> Tensor:
    """LRN within channels: local_size 3, alpha 5e-5, beta 0.75."""
    squares = windows(functional.pad(x * x, (1, 1, 1, 1)), 1).sum((4, 5)) / 9
    return x / (1 + 5e-5 * squares) ** 0.75
