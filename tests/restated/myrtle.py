"""The last net and training of davidcpage/cifar10-fast, bag_of_tricks.ipynb at f79e8b8 (cells 10,
70, 72, 78 and 85).
"""

import torch
from torch import Tensor
from torch.nn import functional

from tests.restated import MicroBatch, Restated, Weights
from tests.restated.plain import (
    Seen,
    batch_norm,
    celu,
    cross_entropies,
    differentiated,
    line,
    max_pool,
    move_statistics,
    one_hot,
    patches,
    whitening,
)

CLASSES = 10
GROUPS = 16  # of a batch of 512, by each of which batch norm normalises: images i, i + 16, ...
ROUND = ("features.0.1.weight", "features.0.2")
PREPARED = "features.0.0.weight"


class Myrtle(Restated):
    """SGD with the rate in its velocity, read a step ahead; biases 64 times as fast; an average."""

    PER_EPOCH = 50_000 // 512

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.average = dict(weights)
        self.velocities: Weights = {}

    @property
    def reported(self) -> Weights:
        return self.average

    def step(self, number: int, micro_batches: list[MicroBatch]) -> None:
        (batch,) = micro_batches
        seen: Seen = {}

        def loss(weights: Weights) -> Tensor:
            found = logits(weights, batch.images, seen)
            return cross_entropies(found, one_hot(batch.labels, CLASSES), 0.2).sum()

        trained = [
            name
            for name, tensor in self.weights.items()
            if name != PREPARED and (tensor.ndim > 1 or name.endswith(".bias"))
        ]
        gradients = differentiated(self.weights, trained, loss)
        move_statistics(self.weights, seen, 0.1)

        epoch = (number + 1) / self.PER_EPOCH
        height = line(epoch, [(0, 0.0), (10 / 5, 1.0), (10 - 2, 0.1)])
        for name, gradient in gradients.items():
            faster = 64 if name.endswith("bias") else 1
            rate, decay = height * faster / 512, 5e-4 * 512 / faster
            change = -rate * (gradient + decay * self.weights[name])
            velocity = 0.9 * self.velocities.get(name, 0.0) + change
            self.velocities[name] = velocity
            self.weights[name] = self.weights[name] + change + 0.9 * velocity
        if number % 5 == 0:
            kept = 0.99**5
            for name, now in self.weights.items():
                self.average[name] = kept * self.average[name] + (1 - kept) * now


def logits(weights: Weights, x: Tensor, seen: Seen) -> Tensor:
    """Whitening and a 1x1 convolution, then convolutions; residuals after the first and third."""

    def rest(x: Tensor, norm: str, pooled: bool) -> Tensor:
        """Pool, batch norm of each group, CELU."""
        x = max_pool(x) if pooled else x
        found = torch.empty_like(x)
        for g in range(GROUPS):
            found[g::GROUPS] = batch_norm(x[g::GROUPS], norm, 1e-5, seen)
        return celu(found + weights[f"{norm}.bias"][:, None, None], 0.3)

    def block(x: Tensor, name: str, pooled: bool = False) -> Tensor:
        norm = f"{name}.{2 if pooled else 1}"
        return rest(functional.conv2d(x, weights[f"{name}.0.weight"], padding=1), norm, pooled)

    def residual(x: Tensor, name: str) -> Tensor:
        return x + block(block(x, f"{name}.blocks.0"), f"{name}.blocks.1")

    x = functional.conv2d(x, weights[PREPARED], padding=1)
    x = rest(functional.conv2d(x, weights["features.0.1.weight"]), "features.0.2", False)
    x = residual(block(x, "features.1", pooled=True), "features.2")
    x = block(x, "features.3", pooled=True)
    x = residual(block(x, "features.4", pooled=True), "features.5")
    return x.amax((2, 3)) @ weights["head.weight"].T / 16


def whitened(images: Tensor) -> Tensor:
    """Filters (27, 3, 3, 3) from normalised images; signs are free."""
    rows = patches(images, 3)
    return whitening(rows.T @ rows / (len(rows) - 1), 1e-2).view(-1, 3, 3, 3)
