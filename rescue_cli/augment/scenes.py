"""Augmentations of an image together with its boxes or its mask, one image at a time."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rescue_cli.draws import Floats
from rescue_cli.errors import UsageError
from rescue_cli.registry import Fraction, Positive, PositiveInt
from rescue_cli.scene import IGNORED, Mask, Objects, Scene, SceneOperation


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
        image, mask = scaled(image, target, low + int(side_draw * (high - low + 1)))
        height, width = mask.shape
        below, beside = max(size - height, 0), max(size - width, 0)
        image = functional.pad(image, (0, beside, 0, below))
        mask = np.pad(mask, ((0, below), (0, beside)), constant_values=IGNORED)
        top = int(top_draw * (mask.shape[0] - size + 1))
        left = int(left_draw * (mask.shape[1] - size + 1))
        rows, columns = slice(top, top + size), slice(left, left + size)
        return Scene(image[:, rows, columns], mask[rows, columns].copy())

    return SceneOperation(3, apply, one_size=True)


def scaled(image: Tensor, mask: Mask, short: int) -> tuple[Tensor, Mask]:
    """Both with a shorter side of so many pixels: bilinear with antialiasing, and nearest."""
    height, width = mask.shape
    if short == min(height, width):
        return image, mask
    if height < width:
        to = (short, max(1, round(width * short / height)))
    else:
        to = (max(1, round(height * short / width)), short)
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(to, (height, width), strict=True)
    )
    return resized(image, to), mask[rows[:, None], columns]


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, height, width), bilinear with antialiasing as PIL resizes."""
    floats: Tensor = functional.interpolate(
        image[None].float(), size, mode="bilinear", antialias=True, align_corners=False
    )
    return floats[0].round().clamp(0, 255).to(torch.uint8)


SCENE_AUGMENTATIONS = {"flip": flip, "scale-crop": scale_crop}
