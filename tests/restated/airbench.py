"""airbench94 (legacy/airbench94.py) and airbench94_muon.py of KellerJordan/cifar10-airbench at
f1c599c; cifar10_speedrun.py of hiverge/cifar10-speedrun at 5cd49b1; main.py of
tysam-code/hlb-CIFAR10 at 9939652.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tests.restated import MicroBatch, Restated, Weights
from tests.restated.plain import (
    Nesterov,
    Seen,
    batch_norm,
    cross_entropies,
    differentiated,
    gelu,
    line,
    max_pool,
    move_statistics,
    one_hot,
    patches,
    silu,
    whitening,
)

CLASSES = 10
FILTERS = [f"groups.{g}.{part}.0.weight" for g in range(3) for part in ("first", "rest")]
NORMS = [f"groups.{g}.{norm}" for g in range(3) for norm in ("first.2", "rest.1")]
NORM_BIASES = [f"{norm}.bias" for norm in NORMS]
HEAD, WHITENING_BIAS = "head.weight", "whitening.bias"


def logits(
    weights: Weights, x: Tensor, activation: Callable[[Tensor], Tensor], seen: Seen
) -> Tensor:
    """Before their scale: whitening, three times two convolutions, the maximum of what is left."""

    def norm(x: Tensor, name: str) -> Tensor:
        return batch_norm(x, name, 1e-12, seen) + weights[f"{name}.bias"][:, None, None]

    x = gelu(functional.conv2d(x, weights["whitening.weight"], weights.get(WHITENING_BIAS)))
    for g in range(3):
        x = functional.conv2d(x, weights[f"groups.{g}.first.0.weight"], padding=1)
        x = activation(norm(max_pool(x), f"groups.{g}.first.2"))
        x = functional.conv2d(x, weights[f"groups.{g}.rest.0.weight"], padding=1)
        x = activation(norm(x, f"groups.{g}.rest.1"))
    return x.amax((2, 3)) @ weights[HEAD].T


class Airbench94(Restated):
    """SGD, a triangle of a schedule, lookahead with a decay that grows."""

    PER_EPOCH = 50_000 // 1024
    STEPS = math.ceil(PER_EPOCH * 9.9)

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.slow = dict(weights)
        self.sgd = Nesterov(0.85)

    def step(self, number: int, micro_batches: list[MicroBatch]) -> None:
        (batch,) = micro_batches
        seen: Seen = {}

        def loss(weights: Weights) -> Tensor:
            scaled = logits(weights, batch.images, gelu, seen) / 9
            return cross_entropies(scaled, one_hot(batch.labels, CLASSES), 0.2).sum()

        trained = [*FILTERS, HEAD, *NORM_BIASES]
        if number // self.PER_EPOCH < 3:
            trained.append(WHITENING_BIAS)
        gradients = differentiated(self.weights, trained, loss)
        move_statistics(self.weights, seen, 1 - 0.6)

        # per 1,024 examples: the rate of a plain step, and a decay that no rate multiplies
        kilostep = 1024 * (1 + 1 / (1 - 0.85))
        rate, decay = 11.5 / kilostep, 0.0153 * 1024 / kilostep
        height = self.height(number)
        for name, gradient in gradients.items():
            own = rate * 64 if name in NORM_BIASES else rate
            self.sgd.move(self.weights, {name: gradient}, own * height, decay / own)
        self.look_ahead(number + 1)

    def height(self, number: int) -> float:
        rising = int(self.STEPS * 0.23)
        return line(number, [(0, 0.2), (rising, 1.0), (self.STEPS, 0.07)])

    def look_ahead(self, updates: int) -> None:
        if updates % 5 == 0:
            self.meet(0.95**5 * (updates / self.STEPS) ** 3)
        if updates >= self.STEPS:
            self.meet(1.0)

    def meet(self, decay: float) -> None:
        """Both become the average."""
        for name, fast in self.weights.items():
            self.slow[name] = self.weights[name] = decay * self.slow[name] + (1 - decay) * fast


class Hlb(Restated):
    """Rates of batches of 512, a loss that is scaled by 512 / 1024, a patch of another image."""

    PER_EPOCH = 50_000 // 1024
    STEPS = math.ceil(PER_EPOCH * 12.1)

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.slow: Weights | None = None
        self.sgd = Nesterov(0.85)

    def step(self, number: int, micro_batches: list[MicroBatch]) -> None:
        (batch,) = micro_batches
        seen: Seen = {}
        targets = one_hot(batch.labels, CLASSES)
        epoch = number // self.PER_EPOCH
        if epoch >= 12.1 - 6:
            patch = 3**2 / 32**2
            targets = patch * targets.flip(0) + (1 - patch) * targets

        def loss(weights: Weights) -> Tensor:
            found = logits({**weights, HEAD: weights[HEAD] / 9}, batch.images, gelu, seen)
            return cross_entropies(found, targets, 0.2).sum() * 512 / 1024

        gradients = differentiated(self.weights, [*FILTERS, HEAD, *NORM_BIASES], loss)
        move_statistics(self.weights, seen, 0.4)

        # OneCycleLR: its first phase ends a step early, its second on the last step
        ends = [(0.0, 1e-16), (0.23 * self.STEPS - 1, 1.0), (self.STEPS - 1.0, 0.07)]
        height = line(number, ends)
        for name, gradient in gradients.items():
            scale = 64 if "bias" in name else 1
            rate, decay = 1.525 / 512 * scale, 6.687e-4 * 1024 / scale
            self.sgd.move(self.weights, {name: gradient}, rate * height, decay)
        self.look_ahead(epoch, number + 1)

    def look_ahead(self, epoch: int, updates: int) -> None:
        if epoch >= 12 - 10 and updates % 5 == 0:
            if self.slow is None:
                self.slow = dict(self.weights)
            else:
                decay = 0.95**5 * (updates / self.STEPS) ** 3
                for name, fast in self.weights.items():
                    self.slow[name] = decay * self.slow[name] + (1 - decay) * fast
                self.weights = dict(self.slow)
        if updates == self.STEPS and self.slow is not None:  # what is evaluated at the end
            self.weights = dict(self.slow)


class MuonAndSgd(Restated):
    """airbench94_muon's step; hiverge changes constants and adds to it."""

    STEPS = 8 * (50_000 // 2000)
    BIAS_STEPS = 3 * (50_000 // 2000)
    SMOOTHING = 0.2
    NEW_STATISTICS = 1 - 0.6
    RATE, MOMENTUM, SGD_MOMENTUM = 0.24, 0.6, 0.85
    HEAD_RATE, BIAS_RATE = 0.67, 0.053
    DECAY = 2e-6 * 2000
    FILTER_DECAY = 0.0
    COEFFICIENTS = (3.4445, -4.7750, 2.0315)
    activation = staticmethod(gelu)

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.sgd = Nesterov(self.SGD_MOMENTUM)
        self.velocities: Weights = {}

    def step(self, number: int, micro_batches: list[MicroBatch]) -> None:
        (batch,) = micro_batches
        seen: Seen = {}

        def loss(weights: Weights) -> Tensor:
            scaled = logits(weights, batch.images, self.activation, seen) / 256
            return cross_entropies(scaled, one_hot(batch.labels, CLASSES), self.SMOOTHING).sum()

        trained = [*FILTERS, HEAD, *NORM_BIASES, WHITENING_BIAS]
        gradients = differentiated(self.weights, trained, loss)
        move_statistics(self.weights, seen, self.NEW_STATISTICS)
        left = 1 - number / self.STEPS
        due = self.renormalises(number + 1)
        for name in FILTERS:
            self.move_filters(name, gradients.pop(name), left, due)
        bias = gradients.pop(WHITENING_BIAS)
        if number < self.BIAS_STEPS:
            own = 1 - number / self.BIAS_STEPS
            decay = self.DECAY / self.BIAS_RATE
            self.sgd.move(self.weights, {WHITENING_BIAS: bias}, self.BIAS_RATE * own, decay)
        for name, gradient in gradients.items():
            rate = self.HEAD_RATE if name == HEAD else self.BIAS_RATE
            self.sgd.move(self.weights, {name: gradient}, rate * left, self.DECAY / rate)

    def renormalises(self, _updates: int) -> bool:
        return True

    def move_filters(self, name: str, gradient: Tensor, left: float, due: bool) -> None:
        w, rate = self.weights[name], self.RATE * left
        velocity = self.MOMENTUM * self.velocities.get(name, 0.0) + gradient
        self.velocities[name] = velocity
        if due:
            w = w * math.sqrt(len(w)) / torch.sqrt((w * w).sum())
        w = w - rate * self.orthogonal(gradient + self.MOMENTUM * velocity)
        self.weights[name] = w * (1 - rate * self.FILTER_DECAY)

    def orthogonal(self, direction: Tensor) -> Tensor:
        """Three rounds of the polynomial on the singular values, the vectors as they are."""
        left, values, right = torch.linalg.svd(direction.flatten(1), full_matrices=False)
        values = values / (torch.sqrt((values * values).sum()) + 1e-7)
        a, b, c = self.COEFFICIENTS
        for _ in range(3):
            values = a * values + b * values**3 + c * values**5
        matrix: Tensor = left * values @ right
        return matrix.view_as(direction)


class Hiverge(MuonAndSgd):
    """Filters are renormalised ever less often, of `steps` in all; SiLU in the groups.

    All was float16 there, in which what is added to a direction's norm (1e-5, twice) is lost, as
    airbench94_muon's 1e-7 is, which stands for it here.
    """

    BIAS_STEPS = math.ceil(0.19 * (50_000 // 1536))
    SMOOTHING = 0.09
    NEW_STATISTICS = 1 - 0.5566
    RATE, MOMENTUM, SGD_MOMENTUM = 0.205, 0.655, 0.825
    HEAD_RATE, BIAS_RATE = 0.5415, 0.0573
    DECAY = FILTER_DECAY = 1.0418e-6 * 1536
    COEFFICIENTS = (3.4576, -4.7391, 2.0843)
    activation = staticmethod(silu)

    def __init__(self, weights: Weights, steps: int = math.ceil(7.59 * (50_000 // 1536))) -> None:
        super().__init__(weights)
        self.STEPS = steps
        self.renormalised_at = 0

    def renormalises(self, updates: int) -> bool:
        interval = 2 + int(15 * updates / self.STEPS)
        due = updates - self.renormalised_at >= interval
        if due:
            self.renormalised_at = updates
        return due


def whitened(images: Tensor, eps: float, *, centred: bool) -> Tensor:
    """Filters (24, 3, 2, 2) and their negations, from normalised images; signs are free."""
    rows = patches(images, 2)
    covariance = torch.cov(rows.T) if centred else rows.T @ rows / len(rows)
    filters = whitening(covariance, eps)
    return torch.cat([filters, -filters]).view(-1, 3, 2, 2)
