"""Layers that are set from the training images before training begins."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor


class Looking(ABC):
    """A layer that looks at `images` training images first, or at all of them where that is None.

    What it sees are batches (n, channels, h, w), normalised and not augmented.
    """

    images: int | None

    @abstractmethod
    def look(self, batches: Iterable[Tensor]) -> None:
        """Sets the layer's constants."""
