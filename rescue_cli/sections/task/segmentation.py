"""A class for each pixel: cross-entropy with an auxiliary head, intersection over union."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.batch import Batch
from rescue_cli.metrics import average_precision
from rescue_cli.metrics.average_precision import Rows
from rescue_cli.metrics.names import format_metrics
from rescue_cli.sections.annotations import ASPECT, IGNORED, Mask, Objects, Scene

AT_ONCE = 2**26  # logits of so many pixels and classes: 256 MB in float32


@dataclass(frozen=True)
class Segmentation:
    """The loss of a batch, and what evaluation keeps of each image."""

    criterion: Callable[[Any, Batch], Tensor]  # of logits by head
    classes: int

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over a micro-batch's pixels, a scalar."""
        return self.criterion(model(batch.images), batch)

    def said(self, model: nn.Module, image: Tensor, size: int) -> Mask:
        """The class of each pixel of a normalised image, which is seen with a shorter side of
        `size`, and what is said of it brought back to its own.
        """
        return _mask(highest(self._logits(model, image, size), _sides(image)))

    @staticmethod
    def _logits(model: nn.Module, image: Tensor, size: int) -> Tensor:
        """(1, classes, h, w), as the network gives them."""
        seen = image[None]
        height, width = _sides(image)
        # Its longer side may stand for no more than ASPECT of the shorter one
        factor = min(size / min(height, width), ASPECT * size / max(height, width))
        if factor != 1:
            to = (max(1, round(height * factor)), max(1, round(width * factor)))
            seen = functional.interpolate(
                seen, to, mode="bilinear", antialias=factor < 1, align_corners=False
            )
        logits: Tensor = model(seen)["out"]
        return logits

    def rows(self, model: nn.Module, index: int, scene: Scene, image: Tensor, size: int) -> Tensor:
        """(1, 3 + 3 classes): image, cross-entropy summed over pixels, by class those rightly
        classed, classed so, labelled so; at last, how many are ignored.
        """
        assert not isinstance(scene.target, Objects)
        logits = self._logits(model, image, size)
        loss = cross_entropy_sum(logits, torch.from_numpy(scene.target).to(logits.device))
        said = _mask(highest(logits, _sides(image)))
        counts = average_precision.pixel_counts(said, scene.target, self.classes)
        ignored = float((scene.target == IGNORED).sum())
        return torch.from_numpy(
            np.concatenate([[float(index), float(loss)], counts.ravel(), [ignored]])[None]
        )

    def measured(self, rows: Rows, count: int) -> "Segmented":
        """What the rows of a whole set come to."""
        assert len(rows) == count
        counts = rows[:, 2:-1].reshape(count, 3, self.classes)
        labelled = counts[:, 2].sum()
        return Segmented(counts, rows[:, -1], float(rows[:, 1].sum() / max(labelled, 1)))


def _sides(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _mask(classes: Tensor) -> Mask:
    found: Mask = classes.cpu().numpy().astype(np.uint8)
    return found


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
    found = torch.zeros(size, dtype=torch.int64, device=logits.device)
    best = torch.full_like(found, -torch.inf, dtype=logits.dtype)
    for first, some in _brought_to(logits, size):
        values, places = some.max(0)
        found = torch.where(values > best, places + first, found)
        best = torch.maximum(best, values)
    return found


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
class Segmented:
    """What was said of a set's pixels: (images, 3, classes), see `average_precision.intersections`;
    and how many of each image are ignored. The loss is the mean over the other pixels.
    """

    counts: Rows
    ignored: Rows
    loss: float | None

    @property
    def count(self) -> int:
        return len(self.counts)

    @property
    def metrics(self) -> dict[str, float]:
        """Percent: mean intersection over union of the classes, pixels rightly classed, and the
        share of all pixels that neither counts.
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
