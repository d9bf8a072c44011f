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
from rescue_cli.scene import ASPECT, Mask, Objects, Scene

AT_ONCE = 2**26  # logits of so many pixels and classes: 256 MB in float32


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
        # Its longer side may stand for no more than ASPECT of the shorter one
        factor = min(size / min(height, width), ASPECT * size / max(height, width))
        if factor != 1:
            to = (max(1, round(height * factor)), max(1, round(width * factor)))
            seen = functional.interpolate(
                seen, to, mode="bilinear", antialias=factor < 1, align_corners=False
            )
        said: Mask = highest(model(seen)["out"], (height, width)).cpu().numpy().astype(np.uint8)
        return said

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


def highest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class with the highest of logits (1, classes, h, w) at each pixel of an image of `size`.

    As many classes at a time as have room: 10,000 x 10,000 pixels of 150 are 60 GB.
    """
    found = torch.zeros(size, dtype=torch.int64, device=logits.device)
    best = torch.full_like(found, -torch.inf, dtype=logits.dtype)
    step = max(1, AT_ONCE // (size[0] * size[1]))
    for first in range(0, logits.shape[1], step):
        some = logits[:, first : first + step]
        if some.shape[-2:] != size:
            some = functional.interpolate(some, size, mode="bilinear", align_corners=False)
        values, places = some[0].max(0)
        found = torch.where(values > best, places + first, found)
        best = torch.maximum(best, values)
    return found


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
