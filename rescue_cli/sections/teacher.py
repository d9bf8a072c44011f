"""The section `teacher`: knowledge distillation from a trained network.

The teacher sees the student's mixed and augmented images, in evaluation mode and without gradients,
once per micro-batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.batch import Batch
from rescue_cli.recipe.schema import NotNegative, Positive

Criterion = Callable[[Tensor, Batch], Tensor]  # (logits, micro-batch) -> loss
Teach = Callable[[Criterion], Criterion]


def none(_load: Callable[[str], nn.Module]) -> Teach:
    """No teacher: the recipe's loss alone."""
    return lambda criterion: criterion


def network(
    load: Callable[[str], nn.Module],
    *,
    weights: str,
    temperature: Positive,
    hard: NotNegative,
    soft: NotNegative,
) -> Teach:
    """hard * loss + soft * T^2 CE(softmax(r / T), softmax(z / T)), r the teacher's logits.

    `weights`: a run, a file, or `timm:NAME`. Bag of Tricks (5.3) has T = 20 and both factors 1, its
    authors' published code 0.5 each; Hinton, Vinyals and Dean 2015. Class weights belong to the
    loss: they apply to the first term alone.
    """
    teacher = load(weights).eval().requires_grad_(False)

    def teach(criterion: Criterion) -> Criterion:
        def loss(logits: Tensor, batch: Batch) -> Tensor:
            with torch.no_grad():
                answers = teacher(batch.images)
            taught = distillation(logits, answers, temperature)
            return hard * criterion(logits, batch) + soft * taught

        return loss

    return teach


def distillation(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """T^2 times the cross-entropy of softened logits: `logits` of the student, `answers` of the
    teacher, both (n, classes); the mean over images.

    Computed in single precision at least.
    """
    full = torch.promote_types(logits.dtype, torch.float32)
    wanted = (answers.to(full) / temperature).softmax(1)
    return temperature**2 * functional.cross_entropy(logits.to(full) / temperature, wanted)


class Renormalised(nn.Module):
    """A network that was trained with another normalisation than its input has."""

    def __init__(self, network: nn.Module, factor: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.network = network
        self.factor: Tensor
        self.shift: Tensor
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Any:
        return self.network(images * self.factor + self.shift)


TEACHERS = {"none": none, "network": network}
