"""The section `loss`: what a step minimises.

Every loss is a mean over the images of a slice; `reduction: sum` is that mean times the global
batch size, so that a recipe whose paper sums its loss keeps the paper's learning rate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

from rescue_cli.registry import Fraction


@dataclass(frozen=True)
class Loss:
    """`mean(logits, targets)` over a slice, and what its gradient is multiplied with."""

    mean: Callable[[Tensor, Tensor], Tensor]
    factor: float


def cross_entropy(
    batch_size: int, *, label_smoothing: Fraction, reduction: Literal["mean", "sum"]
) -> Loss:
    """Softmax cross-entropy; smoothing spreads its share evenly over all classes (Szegedy 2016).

    logits (n, classes), targets (n,) labels or (n, classes) probabilities.
    """

    def mean(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)

    return Loss(mean, batch_size if reduction == "sum" else 1)


LOSSES = {"cross-entropy": cross_entropy}
