"""A class for each pixel: cross-entropy with an auxiliary head, intersection over union."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli import precision, results
from rescue_cli.batch import Batch
from rescue_cli.precision import Rows
from rescue_cli.scene import Mask, Objects, Scene


@dataclass(frozen=True)
class Segmentation:
    """The loss of a batch, and what evaluation keeps of each image."""

    criterion: Callable[[Any, Batch], Tensor]  # of logits by head
    classes: int

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over a slice's pixels, a scalar."""
        return self.criterion(model(batch.images), batch)

    def said(self, model: nn.Module, image: Tensor, size: int) -> Mask:
        """The class of each pixel of a normalised image, which is seen with a shorter side of
        `size`, and what is said of it brought back to its own.
        """
        seen = image[None]
        height, width = image.shape[-2:]
        if size != min(height, width):
            factor = size / min(height, width)
            to = (max(1, round(height * factor)), max(1, round(width * factor)))
            seen = functional.interpolate(
                seen, to, mode="bilinear", antialias=factor < 1, align_corners=False
            )
        logits: Tensor = model(seen)["out"]
        if logits.shape[-2:] != (height, width):
            logits = functional.interpolate(
                logits, (height, width), mode="bilinear", align_corners=False
            )
        return logits.argmax(1)[0].cpu().numpy().astype(np.uint8)

    def rows(self, model: nn.Module, index: int, scene: Scene, image: Tensor, size: int) -> Tensor:
        """(1, 1 + 3 classes): image, then pixels rightly classed, classed so, labelled so."""
        assert not isinstance(scene.target, Objects)
        said = self.said(model, image, size)
        counts = precision.intersections(said, scene.target, self.classes)
        return torch.from_numpy(np.concatenate([[float(index)], counts.ravel()])[None])

    def measured(self, rows: Rows, count: int) -> "Segmented":
        """What the rows of a whole set come to."""
        assert len(rows) == count
        return Segmented(rows[:, 1:].reshape(count, 3, self.classes))


@dataclass(frozen=True)
class Segmented:
    """What was said of a set's pixels: (images, 3, classes), see `precision.intersections`."""

    counts: Rows
    loss: float | None = None

    @property
    def count(self) -> int:
        return len(self.counts)

    @property
    def metrics(self) -> dict[str, float]:
        """Percent: mean intersection over union of the classes, and pixels rightly classed."""
        counts = self.counts.sum(0)
        return {
            "miou": precision.mean(precision.overlap_of_classes(counts)),
            "pixels": precision.pixel_accuracy(counts),
        }

    def by_class(self, _classes: Sequence[str]) -> dict[str, Any]:
        """Nothing: a mean over classes is the metric itself."""
        return {}

    def arrays(self, classes: Sequence[str]) -> dict[str, Any]:
        """What is kept in `predictions/SET.npz`."""
        return {
            "counts": self.counts,
            "per_class": precision.overlap_of_classes(self.counts.sum(0)),
            "count_per_class": (self.counts[:, 2] > 0).sum(0),
            "classes": np.array(classes),
        }

    def __str__(self) -> str:
        return results.said(self.metrics)


def segmentation(criterion: Callable[[Any, Batch], Tensor], classes: int) -> Segmentation:
    """Images with a class for each pixel."""
    return Segmentation(criterion, classes)
