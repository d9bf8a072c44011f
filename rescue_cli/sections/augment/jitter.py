"""Colour jitter as in torchvision, brightness and contrast of normalised images, and AlexNet's
noise along the colours' principal axes.
"""

from functools import partial
from itertools import permutations
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from torch import Tensor

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Fraction, NotNegative
from rescue_cli.rng import Floats
from rescue_cli.sections.augment import policy
from rescue_cli.sections.augment.operations import Operation
from rescue_cli.sections.augment.policy import Drawn, normal

JITTERED = ("BrightnessFactor", "ContrastFactor", "ColorFactor")

# Of ImageNet's RGB values in [0, 1] (Krizhevsky et al. 2012), as in fb.resnet.torch and pycls
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
    """Brightness, contrast, saturation and, where given, hue, in an order of each image's own.

    Each by a factor that is uniform in [max(0, 1 - x), 1 + x], as torchvision's ColorJitter of a
    PIL image has it. `hue` is added, uniform in [-hue, hue] of the colour circle, as there;
    `hue_factor` is a factor too (Bag of Tricks, 2.1). Raises `UsageError` where both are given.
    """
    if hue and hue_factor:
        raise UsageError("augment (colour-jitter): hue is shifted or scaled. Give one of the two.")
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
        order = orders[policy.choice(draws[:, count], len(orders))]
        every = np.arange(len(draws))
        layers = [
            Drawn(
                np.where(high[which] > low[which], which, -1),
                factors[every, which],
                np.ones(len(draws)),
                np.ones(len(draws), dtype=np.bool_),
            )
            for which in order.T
        ]
        return *policy.grouped(names, layers), np.zeros(3, dtype=np.uint8)

    apply = partial(policy.apply_groups, "colour-jitter")
    return Operation(count + 1, "pixels", apply, plan)


def brightness_contrast(*, brightness: NotNegative, contrast: NotNegative) -> Operation:
    """A normalised image plus a number that is uniform in [-brightness, brightness], times one in
    [1 - contrast, 1 + contrast]; for all of its values the same (hiverge 2025).

    In units of the data set's deviation, neither rounded nor cut.
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
    """One colour added to all of an image's pixels: normal along each principal axis.

    On levels before normalisation, neither rounded nor cut, as its users add it to values in
    [0, 1]. Raises `UsageError` where the images have no colours.
    """

    def plan(draws: Floats) -> tuple[Any, ...]:
        alphas = std * normal(draws[:, :3], draws[:, 3:])
        return ((255 * (alphas * VALUES) @ VECTORS.T),)

    def apply(images: Tensor, shift: Tensor) -> Tensor:
        if images.shape[1] != 3:
            raise UsageError(
                f"augment (pca-lighting): needs colour images; these have {images.shape[1]} "
                "channel. Leave pca-lighting out."
            )
        return images + shift.to(images.dtype)[:, :, None, None]

    return Operation(6, "levels", apply, plan)
