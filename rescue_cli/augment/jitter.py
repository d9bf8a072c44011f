"""Colour jitter as in torchvision, brightness and contrast of normalised images, and AlexNet's
noise along the colours' principal axes.
"""

from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
from torch import Tensor

from rescue_cli.augment import policy
from rescue_cli.augment.operations import Operation
from rescue_cli.augment.policy import Drawn, normal
from rescue_cli.draws import Floats
from rescue_cli.errors import UsageError
from rescue_cli.registry import NotNegative

JITTERED = ("BrightnessFactor", "ContrastFactor", "ColorFactor")
ORDERS = np.array(list(permutations(range(3))))

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
    *, brightness: NotNegative, contrast: NotNegative, saturation: NotNegative
) -> Operation:
    """Brightness, contrast and saturation, in a random order for each image.

    Each by a factor that is uniform in [max(0, 1 - x), 1 + x], as torchvision's ColorJitter of a
    PIL image has it.
    """
    amounts = np.array([brightness, contrast, saturation])
    low, high = np.maximum(0, 1 - amounts), 1 + amounts

    def plan(draws: Floats) -> tuple[Any, ...]:
        factors = low + (high - low) * draws[:, :3]
        order = ORDERS[policy.choice(draws[:, 3], len(ORDERS))]
        every = np.arange(len(draws))
        layers = [
            Drawn(
                np.where(amounts[which] > 0, which, -1),
                factors[every, which],
                np.ones(len(draws)),
                np.ones(len(draws), dtype=np.bool_),
            )
            for which in order.T
        ]
        return *policy.grouped(JITTERED, layers), np.zeros(3, dtype=np.uint8)

    return Operation(4, "pixels", partial(policy.apply_groups, "colour-jitter"), plan)


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
