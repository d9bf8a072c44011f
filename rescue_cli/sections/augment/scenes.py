"""Augmentations of an image together with its boxes or its mask, one image at a time."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Fraction, Positive, PositiveInt
from rescue_cli.rng import Floats
from rescue_cli.sections.annotations import ASPECT, IGNORED, Mask, Objects, Scene, SceneOperation


def flip(*, p: Fraction) -> SceneOperation:
    """The scene mirrored left to right with probability `p`."""

    def apply(scene: Scene, draws: Floats) -> Scene:
        if draws[0] >= p:
            return scene
        image, target = scene
        if isinstance(target, Objects):
            left, top, right, bottom = target.boxes.T
            width = np.float32(image.shape[-1])
            mirrored = np.stack([width - right, top, width - left, bottom], axis=1)
            return Scene(image.flip(-1), target._replace(boxes=mirrored))
        return Scene(image.flip(-1), target[:, ::-1].copy())

    return SceneOperation(1, apply)


def scale_crop(
    *, short_side: PositiveInt, scale: tuple[Positive, Positive], size: PositiveInt
) -> SceneOperation:
    """A square of `size` pixels out of the scene scaled at random, with its mask.

    The shorter side comes to a whole number between `scale` times `short_side`; what the square
    reaches beyond the scene is black and ignored (GluonCV's transform for segmentation).
    """
    low, high = (round(short_side * factor) for factor in scale)
    if low > high:
        raise UsageError(f"augment (scale-crop).scale: {list(scale)} must not fall.")

    def apply(scene: Scene, draws: Floats) -> Scene:
        image, target = scene
        if isinstance(target, Objects):
            raise UsageError("augment: scale-crop cuts masks, not boxes. Remove it.")
        side_draw, top_draw, left_draw = (float(draw) for draw in draws)
        to = scaled_size(target, low + int(side_draw * (high - low + 1)))
        top = int(top_draw * (max(to[0] - size, 0) + 1))
        left = int(left_draw * (max(to[1] - size, 0) + 1))
        image, mask = scaled(image, target, to, slice(top, top + size), slice(left, left + size))
        below, beside = size - mask.shape[0], size - mask.shape[1]
        image = functional.pad(image, (0, beside, 0, below))
        mask = np.pad(mask, ((0, below), (0, beside)), constant_values=IGNORED)
        return Scene(image, mask)

    return SceneOperation(3, apply, one_size=True)


def scaled_size(mask: Mask, short: int) -> tuple[int, int]:
    """Height and width where the shorter side is brought to so many pixels."""
    height, width = mask.shape
    if height < width:
        return short, max(1, round(width * short / height))
    return max(1, round(height * short / width)), short


def scaled(
    image: Tensor, mask: Mask, to: tuple[int, int], rows: slice, columns: slice
) -> tuple[Tensor, Mask]:
    """Some rows and columns of both brought to size `to`: bilinear with antialiasing, and nearest.

    Of a scene that is very long the rest is not made: see `ASPECT`.
    """
    if to == mask.shape:
        return image[:, rows, columns], mask[rows, columns].copy()
    below, beside = (
        ((np.arange(new)[part] + 0.5) * old / new).astype(np.int64)
        for new, old, part in zip(to, mask.shape, (rows, columns), strict=True)
    )
    cut = mask[below[:, None], beside]
    if max(to) <= ASPECT * min(to):
        return resized(image, to)[:, rows, columns], cut
    down, along = (old / new for new, old in zip(to, mask.shape, strict=True))
    ends = (columns.start + cut.shape[1]) * along, (rows.start + cut.shape[0]) * down
    part = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(
        (cut.shape[1], cut.shape[0]),
        Image.Resampling.BILINEAR,
        box=(columns.start * along, rows.start * down, *ends),
    )
    return torch.from_numpy(np.array(part)).permute(2, 0, 1), cut


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, height, width), bilinear with antialiasing as PIL resizes."""
    floats: Tensor = functional.interpolate(
        image[None].float(), size, mode="bilinear", antialias=True, align_corners=False
    )
    return floats[0].round().clamp(0, 255).to(torch.uint8)


SCENE_AUGMENTATIONS = {"flip": flip, "scale-crop": scale_crop}
