"""Crops of real photographs for the tests of augmentations."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def crops(folder: Path, n: int, size: int = 224) -> list[Image.Image]:
    """The central squares of the first `n` images of a folder of class folders."""
    found = []
    for file in sorted(folder.glob("*/*.JPEG"))[:n]:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        found.append(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return found


def as_batch(images: list[Image.Image]) -> Tensor:
    """uint8 (n, 3, h, w)."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def as_image(pixels: Tensor) -> Image.Image:
    """A picture of (3, h, w)."""
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def differences(found: Tensor, images: list[Image.Image]) -> Tensor:
    """By how many grey levels each value is off, int16."""
    return (found.short() - as_batch(images).short()).abs()
