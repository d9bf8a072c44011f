"""Augmentations of an image together with its boxes or its mask, one image at a time."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Fraction, Positive, PositiveInt
from rescue_cli.rng import Floats
from rescue_cli.sections.annotations import ASPECT, IGNORED, Mask, Sample, mirror
from rescue_cli.sections.augment.operations import Operation


def flip(*, p: Fraction) -> Operation:
    """Mirrors an image and its boxes or mask left to right with probability `p`."""

    def apply(sample: Sample, draws: Floats) -> Sample:
        return mirror(sample) if draws[0] < p else sample

    return Operation(1, "sample", apply)


def scale_crop(
    *, short_side: PositiveInt, scale: tuple[Positive, Positive], size: PositiveInt
) -> Operation:
    """A square of `size` pixels out of the image scaled at random, with its mask.

    The shorter side is scaled to a whole number between `scale` times `short_side`; what the square
    reaches beyond the image is black and ignored (GluonCV's transform for segmentation).
    """
    low, high = (round(short_side * factor) for factor in scale)
    if low > high:
        raise UsageError(f"augment (scale-crop).scale: {list(scale)} must not decrease.")

    def apply(sample: Sample, draws: Floats) -> Sample:
        image, mask = sample
        side_draw, top_draw, left_draw = (float(draw) for draw in draws)
        to = scaled_size(mask, low + int(side_draw * (high - low + 1)))
        top = int(top_draw * (max(to[0] - size, 0) + 1))
        left = int(left_draw * (max(to[1] - size, 0) + 1))
        rows, columns = slice(top, top + size), slice(left, left + size)
        image, mask = scale_and_cut(image, mask, to, rows, columns)
        below, beside = size - mask.shape[0], size - mask.shape[1]
        image = functional.pad(image, (0, beside, 0, below))
        mask = np.pad(mask, ((0, below), (0, beside)), constant_values=IGNORED)
        return Sample(image, mask)

    return Operation(3, "sample", apply, one_size=True)


def scaled_size(mask: Mask, short: int) -> tuple[int, int]:
    """Height and width of the mask with its shorter side at `short` pixels."""
    height, width = mask.shape
    if height < width:
        return short, max(1, round(width * short / height))
    return max(1, round(height * short / width)), short


def scale_and_cut(
    image: Tensor, mask: Mask, to: tuple[int, int], rows: slice, columns: slice
) -> tuple[Tensor, Mask]:
    """Some rows and columns of both scaled to size `to`: bilinear with antialiasing, and nearest.

    Of a very long image the rest is not computed: see `ASPECT`.
    """
    if to == mask.shape:
        return image[:, rows, columns], mask[rows, columns].copy()
    below, beside = (
        ((np.arange(new)[part] + 0.5) * old / new).astype(np.int64)
        for new, old, part in zip(to, mask.shape, (rows, columns), strict=True)
    )
    cut = mask[below[:, None], beside]
    if max(to) <= ASPECT * min(to):
        return resize(image, to)[:, rows, columns], cut
    down, along = (old / new for new, old in zip(to, mask.shape, strict=True))
    ends = (columns.start + cut.shape[1]) * along, (rows.start + cut.shape[0]) * down
    part = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (cut.shape[1], cut.shape[0]),
        Image.Resampling.BILINEAR,
        box=(columns.start * along, rows.start * down, *ends),
    )
    return torch.from_numpy(np.array(part)).permute(2, 0, 1), cut


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, height, width), bilinear with antialiasing as PIL resizes."""
    floats: Tensor = functional.interpolate(
        image[None].float(), size, mode="bilinear", antialias=True, align_corners=False
    )
    return floats[0].round().clamp(0, 255).to(torch.uint8)
