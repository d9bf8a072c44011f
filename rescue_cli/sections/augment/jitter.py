"""Colour jitter as in torchvision, brightness and contrast of normalised images, PCA lighting."""

from functools import partial
from itertools import permutations
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from torch import Tensor

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Fraction, NotNegative
from rescue_cli.rng import Floats
from rescue_cli.sections.augment import named_operations
from rescue_cli.sections.augment.named_operations import LayerDraws, box_muller
from rescue_cli.sections.augment.operations import Operation

JITTERED = ("BrightnessFactor", "ContrastFactor", "ColorFactor")

# PCA of ImageNet's RGB values in [0, 1] (Krizhevsky et al. 2012), as in fb.resnet.torch and pycls
VALUES = np.array([0.2175, 0.0188, 0.0045])
VECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)


def colour_jitter(
    *,
    brightness: NotNegative,
    contrast: NotNegative,
    saturation: NotNegative,
    hue: Annotated[float, Interval(ge=0, le=0.5)] = 0.0,
    hue_factor: Fraction = 0.0,
) -> Operation:
    """Changes brightness, contrast, saturation and, where given, hue, in random order per image.

    Factors are uniform in [max(0, 1 - x), 1 + x], as in torchvision's ColorJitter on PIL images.
    `hue` shifts the hue by a uniform share of the colour circle in [-hue, hue], as there;
    `hue_factor` multiplies it (Bag of Tricks, 2.1). Raises `UsageError` where both are given.
    """
    if hue and hue_factor:
        raise UsageError(
            "augment (colour-jitter): hue and hue_factor are mutually exclusive. Give one."
        )
    blends = zip(JITTERED, (brightness, contrast, saturation), strict=True)
    ranges = [(name, max(0.0, 1 - x), 1 + x) for name, x in blends]
    if hue:
        ranges.append(("HueShift", -hue, hue))
    if hue_factor:
        ranges.append(("HueFactor", 1 - hue_factor, 1 + hue_factor))
    names, count = [name for name, _, _ in ranges], len(ranges)
    low, high = np.array([bounds for _, *bounds in ranges]).T
    orders = np.array(list(permutations(range(count))))

    def plan(draws: Floats) -> tuple[Any, ...]:
        factors = low + (high - low) * draws[:, :count]
        order = orders[named_operations.to_indices(draws[:, count], len(orders))]
        every = np.arange(len(draws))
        layers = [
            LayerDraws(
                np.where(high[which] > low[which], which, -1),
                factors[every, which],
                np.ones(len(draws)),
                np.ones(len(draws), dtype=np.bool_),
            )
            for which in order.T
        ]
        return *named_operations.group_by_operation(names, layers), np.zeros(3, dtype=np.uint8)

    apply = partial(named_operations.apply_groups, "colour-jitter")
    return Operation(count + 1, "pixels", apply, plan)


def brightness_contrast(*, brightness: NotNegative, contrast: NotNegative) -> Operation:
    """Adds a number in [-brightness, brightness] and multiplies by one in [1 - contrast,
    1 + contrast], both uniform and constant over a normalised image (hiverge 2025).

    In units of the data set's standard deviation, neither rounded nor clipped.
    """
    amounts = np.array([brightness, contrast])

    def plan(draws: Floats) -> tuple[Any, ...]:
        shift, stretch = (amounts * (2 * draws.astype(np.float64) - 1)).T
        return shift, 1 + stretch

    def apply(images: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
        each = (slice(None), None, None, None)
        return images.add_(shift.to(images.dtype)[each]).mul_(factor.to(images.dtype)[each])

    return Operation(2, "normalised", apply, plan)


def pca_lighting(*, std: NotNegative) -> Operation:
    """Adds a random colour to all of an image's pixels, normal along each principal axis (AlexNet).

    Acts on float levels 0 to 255 before normalisation, neither rounded nor clipped. Raises
    `UsageError` for images without three channels.
    """

    def plan(draws: Floats) -> tuple[Any, ...]:
        alphas = std * box_muller(draws[:, :3], draws[:, 3:])
        return ((255 * (alphas * VALUES) @ VECTORS.T),)

    def apply(images: Tensor, shift: Tensor) -> Tensor:
        if images.shape[1] != 3:
            raise UsageError(
                f"augment (pca-lighting): needs images with 3 channels; these have "
                f"{images.shape[1]}. Remove pca-lighting."
            )
        return images + shift.to(images.dtype)[:, :, None, None]

    return Operation(6, "levels", apply, plan)
