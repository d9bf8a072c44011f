"""RandAugment: a few operations out of fifteen, all at one magnitude (Cubuk et al. 2019)."""

from functools import partial
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from rescue_cli.recipe.schema import Fraction, NotNegative, PositiveInt
from rescue_cli.rng import Floats
from rescue_cli.sections.augment.operations import Operation
from rescue_cli.sections.augment.policy import (
    MOST,
    Drawn,
    Fill,
    Interpolation,
    apply_groups,
    choice,
    grouped,
    strengths,
)

_SAME = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "SolarizeAdd",
    "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
_STRONGER = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
PLAIN = (*_SAME, *_STRONGER)
INCREASING = (*_SAME, *(f"{name}Increasing" for name in _STRONGER))
COLUMNS = 6  # of a layer: which, whether, and four of `strengths`


def rand_augment(
    *,
    layers: PositiveInt,
    magnitude: Annotated[float, Interval(ge=0, le=MOST)],
    std: NotNegative,
    p: Fraction,
    increasing: bool,
    interpolation: Interpolation,
    fill: Fill,
) -> Operation:
    """`layers` times: with probability `p` one of timm's fifteen operations, drawn anew each time.

    Its magnitude is normal about `magnitude` with deviation `std`, cut to 0..10; what has a sign
    turns it with probability 1/2. With `increasing` a higher magnitude changes every image more.
    `fill` shows where a geometric operation looks outside.
    """
    names = INCREASING if increasing else PLAIN

    def plan(draws: Floats) -> tuple[Any, ...]:
        blocks = [draws[:, i * COLUMNS : (i + 1) * COLUMNS] for i in range(layers)]
        drawn = [layer(b, len(names), p, magnitude, std, interpolation) for b in blocks]
        return *grouped(names, drawn), np.array(fill, dtype=np.uint8)

    return Operation(layers * COLUMNS, "pixels", partial(apply_groups, "rand-augment"), plan)


def layer(
    draws: Floats,
    operations: int,
    p: float,
    magnitude: float,
    std: float,
    interpolation: Interpolation,
) -> Drawn:
    """What one layer's draws (n, 6) say for each image."""
    which = choice(draws[:, 0], operations)
    which[draws[:, 1] >= p] = -1
    return Drawn(which, *strengths(draws[:, 2:], magnitude, std, interpolation))
