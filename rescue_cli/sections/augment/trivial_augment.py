"""TrivialAugment: one operation at one level, both drawn uniformly (Müller and Hutter 2021)."""

from functools import partial
from typing import Any

import numpy as np

from rescue_cli.rng import Floats
from rescue_cli.sections.augment import named_operations
from rescue_cli.sections.augment.kernels.affine import Kernel
from rescue_cli.sections.augment.named_operations import Doubles, Fill, LayerDraws
from rescue_cli.sections.augment.operations import Operation

LEVELS = 31
_LEVEL_INDICES = np.arange(LEVELS)


def _levels_up_to(most: float) -> Doubles:
    return np.linspace(0.0, most, LEVELS)


# The wide space of torchvision 0.29: for each operation its levels, and whether the sign is drawn.
# Factors are 1 plus or minus the level; operations without levels have 0 for all.
_NONE = np.zeros(LEVELS)
SPACE: dict[str, tuple[Doubles, bool]] = {
    "Identity": (_NONE, False),
    "ShearXGiven": (_levels_up_to(0.99), True),
    "ShearYGiven": (_levels_up_to(0.99), True),
    "TranslateXGiven": (np.trunc(_levels_up_to(32.0)), True),  # pixels
    "TranslateYGiven": (np.trunc(_levels_up_to(32.0)), True),
    "RotateGiven": (_levels_up_to(135.0), True),  # degrees
    "BrightnessFactor": (_levels_up_to(0.99), True),
    "ColorFactor": (_levels_up_to(0.99), True),
    "ContrastFactor": (_levels_up_to(0.99), True),
    "SharpnessFactor": (_levels_up_to(0.99), True),
    "PosterizeGiven": (8 - np.rint(_LEVEL_INDICES / 5), False),  # bits, 8 to 2
    "SolarizeGiven": (
        np.ceil(255 - 8.5 * _LEVEL_INDICES),
        False,
    ),  # the first level that is inverted
    "AutoContrast": (_NONE, False),
    "Equalize": (_NONE, False),
}


def trivial_augment(*, interpolation: Kernel, fill: Fill) -> Operation:
    """Applies one of 14 operations at one of 31 levels to each image: TrivialAugment Wide.

    Signed levels are negated with probability 1/2. `fill` (RGB) is the colour outside a moved
    image.
    """
    names = list(SPACE)
    arguments = np.array([levels for levels, _ in SPACE.values()])
    signed = np.array([signed for _, signed in SPACE.values()])
    around = np.array([1.0 if name.endswith("Factor") else 0.0 for name in names])
    colour = np.array(fill, dtype=np.uint8)

    def plan(draws: Floats) -> tuple[Any, ...]:
        which = named_operations.to_indices(draws[:, 0], len(names))
        level = arguments[which, named_operations.to_indices(draws[:, 1], LEVELS)]
        sign = np.where(signed[which] & (draws[:, 2] < 0.5), -1.0, 1.0)
        drawn = LayerDraws(
            np.where(which == names.index("Identity"), -1, which),
            around[which] + sign * level,
            sign,
            np.full(len(draws), interpolation == "bicubic"),
        )
        return *named_operations.group_by_operation(names, [drawn]), colour

    return Operation(3, "pixels", partial(named_operations.apply_groups, "trivial-augment"), plan)
