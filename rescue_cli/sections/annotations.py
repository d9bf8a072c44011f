"""What an image may carry beside its pixels: a label, objects in boxes, or a mask of classes.

The only module below the tasks that distinguishes boxes from masks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rescue_cli.batch import Batch, to_device
from rescue_cli.rng import Floats, Indices

# Times as long as wide: of a longer image only the part that is cut out is resized. Whole, 8000 x 3
# pixels at a shorter side of 256 were 680,000 x 256
ASPECT = 16
IGNORED = 255  # a mask's label for pixels that count for nothing
OPAQUE = 0.55  # of a mask that is drawn on its image
COLOURS = 10  # as many, then again from the first
Mask = NDArray[np.uint8]  # (height, width), classes from 0


class Objects(NamedTuple):
    """The objects of an image: boxes (n, 4) as left, top, right, bottom, in pixels from the upper
    left corner of the image; labels (n,) from 1; `difficult` (n,), which a score passes over.
    """

    boxes: Floats
    labels: Indices
    difficult: NDArray[np.bool_]

    @staticmethod
    def of(rows: Sequence[tuple[tuple[float, ...], int, bool]]) -> "Objects":
        boxes = np.array([row[0] for row in rows], dtype=np.float32).reshape(-1, 4)
        labels = np.array([row[1] for row in rows], dtype=np.int64)
        return Objects(boxes, labels, np.array([row[2] for row in rows], dtype=np.bool_))


Annotation = Objects | Mask
Target = int | Annotation  # an int is the label of the whole image


class Sample(NamedTuple):
    """An image (3, height, width) uint8 and what it carries."""

    image: Tensor
    target: Any  # a Target


def required_size(target: Target) -> tuple[int, int] | None:
    """Height and width that the image must have; None where the target fits any."""
    if isinstance(target, np.ndarray):
        height, width = target.shape
        return height, width
    return None


def mirror(sample: Sample) -> Sample:
    """The image with its boxes or its mask mirrored left to right."""
    image, target = sample
    if isinstance(target, Objects):
        left, top, right, bottom = target.boxes.T
        width = np.float32(image.shape[-1])
        boxes = np.stack([width - right, top, width - left, bottom], axis=1)
        return Sample(image.flip(-1), target._replace(boxes=boxes))
    return Sample(image.flip(-1), target[:, ::-1].copy())


def collate(samples: Sequence[Sample], device: torch.device) -> tuple[Any, Any]:
    """Images and targets of a micro-batch on the device.

    With masks: images (n, 3, height, width), targets (n, height, width) int64. With boxes: lists of
    images of their own sizes and of targets as torchvision's detectors take them, without the
    difficult objects, from which Fast R-CNN does not learn (Girshick 2015).
    """
    if isinstance(samples[0].target, Objects):
        images = [to_device(sample.image, device) for sample in samples]
        return images, [_boxes_to_learn(sample.target, device) for sample in samples]
    masks = np.stack([sample.target for sample in samples])
    stacked = torch.stack([sample.image for sample in samples])
    return to_device(stacked, device), to_device(masks, device).long()


def _boxes_to_learn(target: Objects, device: torch.device) -> dict[str, Tensor]:
    easy = ~target.difficult
    return {
        "boxes": to_device(target.boxes[easy], device),
        "labels": to_device(target.labels[easy], device),
    }


def annotations_of(batch: Batch) -> list[Annotation]:
    """The boxes or the mask of each image of a micro-batch, on the host."""
    if isinstance(batch.targets, Tensor):
        return list(batch.targets.cpu().numpy().astype(np.uint8))
    return [
        Objects(boxes, labels, np.zeros(len(labels), bool))
        for boxes, labels in (
            (target["boxes"].cpu().numpy(), target["labels"].cpu().numpy())
            for target in batch.targets
        )
    ]


def draw(image: Tensor, target: Annotation) -> Tensor:
    """The uint8 image (3, height, width) with its boxes or its mask, one colour per class."""
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    colours = _colours()
    if isinstance(target, Objects):
        if not len(target.boxes):
            return image
        of_each = [colours[int(label) % COLOURS] for label in target.labels]
        boxes = torch.from_numpy(target.boxes)
        boxed: Tensor = draw_bounding_boxes(image, boxes, colors=of_each, width=3)
        return boxed
    present = [int(label) for label in np.unique(target) if label != IGNORED]
    if not present:
        return image
    mask = torch.from_numpy(target)
    layers = torch.stack([mask == label for label in present])
    of_each = [colours[label % COLOURS] for label in present]
    covered: Tensor = draw_segmentation_masks(image, layers, alpha=OPAQUE, colors=of_each)
    return covered


def _colours() -> list[tuple[int, int, int]]:
    """The ten of matplotlib's table `tab10`."""
    from matplotlib import colormaps

    table = colormaps["tab10"].colors  # type: ignore[attr-defined]
    return [tuple(round(255 * part) for part in colour) for colour in table]
