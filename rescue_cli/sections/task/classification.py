"""One label an image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.batch import Batch

TOP = 5


@dataclass(frozen=True)
class Classification:
    """The loss of a batch, and what evaluation keeps of each image."""

    criterion: Callable[[Tensor, Batch], Tensor]  # of logits and the micro-batch they are of

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a micro-batch, a scalar."""
        return self.criterion(model(batch.images), batch)

    @staticmethod
    def rows(indices: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """(n, 5 + min(5, classes)): index, label, cross-entropy, probability, gap, top classes.

        The gap is the largest logit less the mean of the others (Bag of Tricks, figure 4b).
        """
        logits = logits.double()
        others = max(logits.shape[1] - 1, 1)
        largest = logits.amax(1)
        gaps = largest - (logits.sum(1) - largest) / others
        losses = functional.cross_entropy(logits, labels, reduction="none")
        probabilities, top = logits.softmax(1).topk(min(TOP, logits.shape[1]), dim=1)
        columns = [indices, labels, losses, probabilities[:, 0], gaps]
        return torch.cat([torch.stack([c.double() for c in columns], 1), top.double()], 1)


def classification(criterion: Callable[[Tensor, Batch], Tensor], _classes: int) -> Classification:
    """Images with one label each."""
    return Classification(criterion)
