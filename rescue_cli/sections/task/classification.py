"""One label per image: what is gathered of each image, and top-1 and top-5 accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.batch import Batch, EvalBatch, View
from rescue_cli.metrics.names import TOP, is_uneven
from rescue_cli.rng import Indices
from rescue_cli.sections.tta import Weights, tta_logits

CONFIDENCE = 3  # the column of the highest probability


@dataclass(frozen=True)
class Classification:
    """The loss of a batch, and what evaluation gathers of each image."""

    criterion: Callable[[Tensor, Batch], Tensor]  # of logits and the micro-batch they are of
    confidence_column: ClassVar[int | None] = CONFIDENCE

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a micro-batch, a scalar."""
        return self.criterion(model(batch.images), batch)

    def rows(
        self,
        model: nn.Module,
        batch: EvalBatch,
        view: View,
        normalise: Callable[[Tensor], Tensor],
        weights: Sequence[Weights],
    ) -> list[Tensor]:
        """A table of `prediction_rows` for each test-time augmentation."""
        images = normalise(batch.views[view])
        return [
            prediction_rows(batch.indices, batch.targets, each)
            for each in tta_logits(model, images, weights)
        ]

    def measure(
        self, rows: NDArray[np.float64], count: int, labels: Indices | None
    ) -> "ClassificationResult":
        """The result of a set of `count` images; by `labels` (n, most) in place of the set's own
        it is that of the images which have one.
        """
        assert len(rows) == count, "one row per image"
        result = ClassificationResult(
            labels=rows[:, 1].astype(np.int64),
            losses=rows[:, 2],
            probabilities=rows[:, CONFIDENCE],
            gaps=rows[:, CONFIDENCE + 1],
            top=rows[:, CONFIDENCE + 2 :].astype(np.int64),
        )
        return result if labels is None else result.relabel(labels)


def prediction_rows(indices: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
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


@dataclass(frozen=True)
class ClassificationResult:
    """What the network predicts for each image of a set, in the set's order.

    `labels` is (count,), or (count, most) padded with -1 where each of several labels is right;
    such a set has no losses.
    """

    labels: NDArray[np.int64]
    losses: NDArray[np.float64] | None
    probabilities: NDArray[np.float64]
    gaps: NDArray[np.float64]  # the largest logit less the mean of the others
    top: NDArray[np.int64]  # (count, 5), the most probable class first

    @property
    def count(self) -> int:
        return len(self.labels)

    @property
    def loss(self) -> float | None:
        return None if self.losses is None else float(self.losses.mean())

    @property
    def metrics(self) -> dict[str, float]:
        """Percent of images with a right class first, and among the first five."""
        return {"top1": self.accuracy(1), "top5": self.accuracy(5)}

    def arrays(self, classes: Sequence[str]) -> dict[str, Any]:
        """What is kept in `predictions/SET.npz`."""
        confusion = self.confusion(len(classes))
        losses = {} if self.losses is None else {"losses": self.losses}
        return {
            "labels": self.labels,
            "top": self.top,
            "probabilities": self.probabilities,
            "gaps": self.gaps,
            **losses,
            "confusion": confusion,
            "per_class": recalls(confusion),
            "classes": np.array(classes),
        }

    @property
    def balanced_accuracy(self) -> float | None:
        """The mean recall of the classes that the set has, percent; None with several labels per
        image.
        """
        if self.labels.ndim > 1:
            return None
        counts = np.bincount(self.labels)
        hits = np.bincount(self.labels, self.top[:, 0] == self.labels)
        return float(100 * (hits[counts > 0] / counts[counts > 0]).mean())

    def by_class(self, classes: Sequence[str]) -> dict[str, Any]:
        """Balanced accuracy, and each class's images and recall, None where it has no image."""
        if self.labels.ndim > 1:
            return {"balanced_accuracy": None}
        confusion = self.confusion(len(classes))
        rows = zip(classes, confusion.sum(1).tolist(), recalls(confusion).tolist(), strict=True)
        return {
            "balanced_accuracy": self.balanced_accuracy,
            "per_class": [
                {"class": name, "images": images, "recall": recall if images else None}
                for name, images, recall in rows
            ],
        }

    def accuracy(self, k: int) -> float:
        """Percent of images that have one of their labels among the k most probable classes."""
        return float(100 * self._hits(k).any(1).sum() / self.count)  # 834 of 1,000 are 83.4

    def confusion(self, classes: int) -> NDArray[np.int64]:
        """(label, predicted) counts; of several labels the predicted one, else the first."""
        first = self.labels.reshape(self.count, -1)[:, 0]
        labels = np.where(self._hits(1).any(1), self.top[:, 0], first)
        pairs = labels * classes + self.top[:, 0]
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def relabel(self, labels: NDArray[np.int64]) -> "ClassificationResult":
        """The images that `labels` (n, most) has a label for, scored by these."""
        kept = (labels >= 0).any(1)
        return ClassificationResult(
            labels[kept], None, self.probabilities[kept], self.gaps[kept], self.top[kept]
        )

    def __str__(self) -> str:
        loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
        balanced = self.balanced_accuracy
        uneven = balanced is not None and is_uneven(np.bincount(self.labels).tolist())
        beside = f"  balanced {balanced:.2f} %" if uneven else ""
        return f"top-1 {self.accuracy(1):.2f} %{beside}{loss}"

    def _hits(self, k: int) -> NDArray[np.bool_]:
        """(count, k): whether each of the k most probable classes is a label of the image."""
        labels = self.labels.reshape(self.count, 1, -1)
        hits: NDArray[np.bool_] = (self.top[:, :k, None] == labels).any(2)
        return hits


def recalls(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Percent of each label's images that are predicted right; nan where it has none."""
    counts = confusion.sum(1)
    return np.where(counts > 0, 100 * np.diag(confusion) / np.maximum(counts, 1), np.nan)


def classification(criterion: Callable[[Tensor, Batch], Tensor], _classes: int) -> Classification:
    """Images with one label each."""
    return Classification(criterion)
