"""The recipes' steps written out again, after their authors' code, in plain torch and timm alone.

Nothing in here imports the package that it restates. A restatement takes initial weights by name,
then for each step the images that the network sees; it has the authors' constants in the authors'
form, so that a figure that a recipe derived wrongly shows as a difference of weights.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

Weights = dict[str, Tensor]  # parameters and buffers by their full names
Box = tuple[int, int, int, int]  # top, bottom, left, right


class MicroBatch(NamedTuple):
    """What one device sees of a step: n augmented images, and how they were mixed."""

    plain: Tensor  # (n, channels, h, w), before mixing
    images: Tensor  # after mixing
    labels: Tensor  # (n,), before mixing
    share: float | None  # of the image itself, where it was mixed with image n - 1 - i
    box: Box | None  # which the partner covers; without one the two are blended
    generator: Tensor  # torch's state before the forward pass


class Restated(ABC):
    """A training, step by step."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    @property
    def reported(self) -> Weights:
        """What is evaluated: the weights, or their average."""
        return self.weights

    @abstractmethod
    def step(self, number: int, micro_batches: list[MicroBatch]) -> None: ...
