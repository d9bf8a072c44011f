"""A class for each pixel: cross-entropy with an auxiliary head, intersection over union."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.batch import Batch, EvalBatch, View
from rescue_cli.metrics import average_precision
from rescue_cli.metrics.average_precision import Rows
from rescue_cli.metrics.names import format_metrics
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import ASPECT, IGNORED, Mask
from rescue_cli.sections.tta import Weights

AT_ONCE = 2**26  # logits of so many pixels and classes: 256 MB in float32


@dataclass(frozen=True)
class Segmentation:
    """The loss of a batch, and what evaluation gathers of each image."""

    criterion: Callable[[Any, Batch], Tensor]  # of logits by head
    classes: int
    confidence_column: ClassVar[int | None] = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over a micro-batch's pixels, a scalar."""
        return self.criterion(model(batch.images), batch)

    def predict(self, model: nn.Module, image: Tensor, size: int) -> Mask:
        """The class of each pixel of a normalised image (3, height, width): the network sees it
        with a shorter side of `size`, and its logits are brought back to the image's own size.
        """
        return _mask(highest(self._logits(model, image, size), _sides(image)))

    @staticmethod
    def _logits(model: nn.Module, image: Tensor, size: int) -> Tensor:
        """(1, classes, h, w), as the network gives them."""
        logits: Tensor = model(resized(image, size))
        return logits

    def rows(
        self,
        model: nn.Module,
        batch: EvalBatch,
        view: View,
        normalise: Callable[[Any], Any],
        weights: Sequence[Weights],
    ) -> list[Tensor]:
        """(n, 3 + 3 classes): image, cross-entropy summed over pixels, pixels by class that are
        classified correctly, predicted so, labelled so; last, how many are ignored. Without
        test-time augmentation; one image at a time, so that none is padded for another.
        """
        assert len(weights) == 1
        rows = []
        for index, image, mask in zip(
            batch.indices.tolist(), batch.views[view], batch.targets, strict=True
        ):
            normalised = normalise([image])[0]
            logits = self._logits(model, normalised, view.size)
            loss = cross_entropy_sum(logits, torch.from_numpy(mask).to(logits.device))
            predicted = _mask(highest(logits, _sides(normalised)))
            counts = average_precision.pixel_counts(predicted, mask, self.classes)
            ignored = float((mask == IGNORED).sum())
            rows.append(np.concatenate([[float(index), float(loss)], counts.ravel(), [ignored]]))
        return [torch.from_numpy(np.stack(rows))]

    def measure(self, rows: Rows, count: int, labels: Indices | None) -> "SegmentationResult":
        """The result of a set of `count` images."""
        assert labels is None, "only classes of images have other labels"
        assert len(rows) == count, "one row per image"
        counts = rows[:, 2:-1].reshape(count, 3, self.classes)
        labelled = counts[:, 2].sum()
        return SegmentationResult(counts, rows[:, -1], float(rows[:, 1].sum() / max(labelled, 1)))


def resized(image: Tensor, size: int) -> Tensor:
    """An image (3, height, width) as the network sees it, (1, 3, h, w): its shorter side is `size`,
    unless the longer one would be more than `ASPECT` times that.
    """
    height, width = _sides(image)
    factor = min(size / min(height, width), ASPECT * size / max(height, width))
    if factor == 1:
        return image[None]
    to = (max(1, round(height * factor)), max(1, round(width * factor)))
    return functional.interpolate(
        image[None], to, mode="bilinear", antialias=factor < 1, align_corners=False
    )


def _sides(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _mask(classes: Tensor) -> Mask:
    mask: Mask = classes.cpu().numpy().astype(np.uint8)
    return mask


def _brought_to(logits: Tensor, size: tuple[int, int]) -> Iterator[tuple[int, Tensor]]:
    """Logits (1, classes, h, w) at each pixel of an image of `size`: the first class, some classes.

    As many classes at a time as have room: 10,000 x 10,000 pixels of 150 are 60 GB.
    """
    step = max(1, AT_ONCE // (size[0] * size[1]))
    for first in range(0, logits.shape[1], step):
        some = logits[:, first : first + step]
        if some.shape[-2:] != size:
            some = functional.interpolate(some, size, mode="bilinear", align_corners=False)
        yield first, some[0]


def highest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class with the highest of logits (1, classes, h, w) at each pixel of an image."""
    classes = torch.zeros(size, dtype=torch.int64, device=logits.device)
    best = torch.full_like(classes, -torch.inf, dtype=logits.dtype)
    for first, some in _brought_to(logits, size):
        values, places = some.max(0)
        classes = torch.where(values > best, places + first, classes)
        best = torch.maximum(best, values)
    return classes


def cross_entropy_sum(logits: Tensor, mask: Tensor) -> float:
    """Cross-entropy of logits (1, classes, h, w) summed over the pixels of `mask` that count."""
    total = torch.full(mask.shape, -torch.inf, device=logits.device)
    own = torch.zeros_like(total)
    for first, some in _brought_to(logits, (mask.shape[0], mask.shape[1])):
        values = some.float()
        total = torch.logaddexp(total, values.logsumexp(0))
        place = mask.long() - first
        known = values.gather(0, place.clamp(0, len(values) - 1)[None])[0]
        own = torch.where((place >= 0) & (place < len(values)), known, own)
    return float((total - own)[mask != IGNORED].sum())


@dataclass(frozen=True)
class SegmentationResult:
    """The pixels of a set, (images, 3, classes) as in `average_precision.pixel_counts`, and how
    many of each image are ignored. The loss is the mean over the other pixels.
    """

    counts: Rows
    ignored: Rows
    loss: float | None

    @property
    def count(self) -> int:
        return len(self.counts)

    @property
    def metrics(self) -> dict[str, float]:
        """Percent: mean intersection over union of the classes, correctly classified pixels, and
        the share of all pixels that neither counts.
        """
        counts = self.counts.sum(0)
        ignored = float(self.ignored.sum())
        return {
            "miou": average_precision.mean_over_classes(average_precision.class_iou(counts)),
            "pixels": average_precision.pixel_accuracy(counts),
            "ignored": 100 * ignored / max(ignored + float(counts[2].sum()), 1.0),
        }

    def by_class(self, _classes: Sequence[str]) -> dict[str, Any]:
        """Nothing: a mean over classes is the metric itself."""
        return {}

    def arrays(self, classes: Sequence[str]) -> dict[str, Any]:
        """What is kept in `predictions/SET.npz`."""
        return {
            "counts": self.counts,
            "ignored": self.ignored,
            "per_class": average_precision.class_iou(self.counts.sum(0)),
            "count_per_class": (self.counts[:, 2] > 0).sum(0),
            "classes": np.array(classes),
        }

    def __str__(self) -> str:
        loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
        return format_metrics(self.metrics) + loss


def segmentation(criterion: Callable[[Any, Batch], Tensor], classes: int) -> Segmentation:
    """Images with a class for each pixel."""
    return Segmentation(criterion, classes)
