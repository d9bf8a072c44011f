"""Scenes as pictures, with their boxes or masks drawn on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rescue_cli.sections.annotations import IGNORED, Mask, Objects, Scene, SceneBatch

SIDE = 256  # pixels of a picture, which is padded to a square
OPAQUE = 0.55
COLOURS = 10  # as many, then again from the first


def samples(batch: SceneBatch, undo: Callable[[Tensor], Tensor], count: int) -> Any:
    """The first scenes of a micro-batch as the network sees them: (n, 3, SIDE, SIDE) uint8."""
    found = []
    for image, target in zip(batch.images[:count], batch.targets[:count], strict=True):
        pixels = undo(image[None])[0].cpu()
        if isinstance(target, Mapping):
            boxes, labels = target["boxes"].cpu().numpy(), target["labels"].cpu().numpy()
            found.append(drawn(pixels, Objects(boxes, labels, np.zeros(len(labels), bool))))
        else:
            found.append(drawn(pixels, target.cpu().numpy().astype(np.uint8)))
    return np.stack(found)


def side_by_side(said: Sequence[tuple[Scene, Objects | Mask]]) -> tuple[Any, list[str]]:
    """Pictures of what is there and of what was said, in turn, with their titles."""
    pictures, titles = [], []
    for place, (scene, target) in enumerate(said):
        pixels = scene.image.cpu()
        pictures += [drawn(pixels, scene.target), drawn(pixels, target)]
        titles += [f"{place}: labels", f"{place}: predicted"]
    return np.stack(pictures), titles


def drawn(image: Tensor, target: Objects | Mask) -> Any:
    """uint8 (3, SIDE, SIDE), a colour for each class."""
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    colours = _colours()
    if isinstance(target, Objects):
        if len(target.boxes):
            boxes = torch.from_numpy(target.boxes)
            of_each = [colours[int(label) % COLOURS] for label in target.labels]
            image = draw_bounding_boxes(image, boxes, colors=of_each, width=3)
    else:
        mask = torch.from_numpy(target)
        present = [int(label) for label in np.unique(target) if label != IGNORED]
        if present:
            layers = torch.stack([mask == label for label in present])
            of_each = [colours[label % COLOURS] for label in present]
            image = draw_segmentation_masks(image, layers, alpha=OPAQUE, colors=of_each)
    return _squared(image)


def _squared(image: Tensor) -> Any:
    """The picture with its longer side at SIDE pixels, padded with white."""
    height, width = image.shape[-2:]
    factor = SIDE / max(height, width)
    to = (max(1, round(height * factor)), max(1, round(width * factor)))
    small = functional.interpolate(
        image[None].float(), to, mode="bilinear", antialias=True, align_corners=False
    )[0]
    padded = functional.pad(small, (0, SIDE - to[1], 0, SIDE - to[0]), value=255)
    return padded.round().clamp(0, 255).to(torch.uint8).numpy()


def _colours() -> list[tuple[int, int, int]]:
    """The ten of matplotlib's table `tab10`."""
    from matplotlib import colormaps

    table = colormaps["tab10"].colors  # type: ignore[attr-defined]
    return [tuple(round(255 * part) for part in colour) for colour in table]
