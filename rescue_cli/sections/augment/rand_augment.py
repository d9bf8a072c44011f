"""RandAugment: a few operations out of fifteen, all at one magnitude (Cubuk et al. 2019)."""

from functools import partial
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from rescue_cli.recipe.schema import Fraction, NotNegative, PositiveInt
from rescue_cli.rng import Floats
from rescue_cli.sections.augment.named_operations import (
    MAX_MAGNITUDE,
    Fill,
    Interpolation,
    LayerDraws,
    apply_groups,
    draw_magnitudes,
    group_by_operation,
    to_indices,
)
from rescue_cli.sections.augment.operations import Operation

_SAME = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "SolarizeAdd",
    "ShearX", "ShearY", "TranslateXRel", "TranslateYRel",
)  # fmt: skip
_STRONGER = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
PLAIN = (*_SAME, *_STRONGER)
INCREASING = (*_SAME, *(f"{name}Increasing" for name in _STRONGER))
COLUMNS = 6  # draws per layer: which operation, whether to apply it, and four for its magnitude


def rand_augment(
    *,
    layers: PositiveInt,
    magnitude: Annotated[float, Interval(ge=0, le=MAX_MAGNITUDE)],
    std: NotNegative,
    p: Fraction,
    increasing: bool,
    interpolation: Interpolation,
    fill: Fill,
) -> Operation:
    """Applies, `layers` times, one of timm's fifteen operations with probability `p` to each image.

    Magnitudes are normal around `magnitude` with deviation `std`, clipped to 0..10; signed ones are
    negated with probability 1/2. With `increasing` a higher magnitude always means a stronger
    change. `fill` (RGB) is the colour outside a moved image.
    """
    names = INCREASING if increasing else PLAIN

    def plan(draws: Floats) -> tuple[Any, ...]:
        blocks = [draws[:, i * COLUMNS : (i + 1) * COLUMNS] for i in range(layers)]
        drawn = [draw_layer(b, len(names), p, magnitude, std, interpolation) for b in blocks]
        return *group_by_operation(names, drawn), np.array(fill, dtype=np.uint8)

    return Operation(layers * COLUMNS, "pixels", partial(apply_groups, "rand-augment"), plan)


def draw_layer(
    draws: Floats,
    operations: int,
    p: float,
    magnitude: float,
    std: float,
    interpolation: Interpolation,
) -> LayerDraws:
    """The operation and strength for each image from one layer's draws (n, 6)."""
    which = to_indices(draws[:, 0], operations)
    which[draws[:, 1] >= p] = -1
    return LayerDraws(which, *draw_magnitudes(draws[:, 2:], magnitude, std, interpolation))
