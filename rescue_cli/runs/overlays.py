"""Pictures of images with their boxes or masks drawn on them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rescue_cli.batch import Batch
from rescue_cli.sections.annotations import Annotation, Sample, annotations_of, draw

SIDE = 256  # pixels of a picture, which is padded to a square


def draw_batch(batch: Batch, undo: Callable[[Tensor], Tensor], count: int) -> Any:
    """The first images of a micro-batch as the network sees them: (n, 3, SIDE, SIDE) uint8."""
    pairs = list(zip(batch.images, annotations_of(batch), strict=True))[:count]
    return np.stack([_square(draw(undo(image[None])[0].cpu(), target)) for image, target in pairs])


def draw_predictions(predictions: Sequence[tuple[Sample, Annotation]]) -> tuple[Any, list[str]]:
    """Pictures of what is annotated and of what is predicted, in turn, with their titles."""
    pictures, titles = [], []
    for number, (sample, predicted) in enumerate(predictions):
        pixels = sample.image.cpu()
        pictures += [_square(draw(pixels, target)) for target in (sample.target, predicted)]
        titles += [f"{number}: labels", f"{number}: predicted"]
    return np.stack(pictures), titles


def _square(image: Tensor) -> Any:
    """uint8 (3, SIDE, SIDE): the longer side at SIDE pixels, padded with white."""
    height, width = image.shape[-2:]
    factor = SIDE / max(height, width)
    to = (max(1, round(height * factor)), max(1, round(width * factor)))
    small = functional.interpolate(
        image[None].float(), to, mode="bilinear", antialias=True, align_corners=False
    )[0]
    padded = functional.pad(small, (0, SIDE - to[1], 0, SIDE - to[0]), value=255)
    return padded.round().clamp(0, 255).to(torch.uint8).numpy()
