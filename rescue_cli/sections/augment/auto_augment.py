"""AutoAugment's policies for ImageNet (Cubuk et al. 2018), as in timm."""

from functools import partial
from typing import Any, Literal

import numpy as np

from rescue_cli.recipe.schema import NotNegative
from rescue_cli.rng import Floats
from rescue_cli.sections.augment import named_operations
from rescue_cli.sections.augment.named_operations import Fill, Interpolation, LayerDraws
from rescue_cli.sections.augment.operations import Operation

# Sub-policies, one per line: two operations, each with its probability and its magnitude.
# `original`: table 9 of the paper; `v0`: EfficientNet's TPU code.
Step = tuple[str, float, int]
SUB_POLICIES: dict[str, tuple[tuple[Step, Step], ...]] = {
    "original": (
        (("PosterizeOriginal", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
        (("PosterizeOriginal", 0.6, 7), ("PosterizeOriginal", 0.6, 6)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
        (("PosterizeOriginal", 0.8, 5), ("Equalize", 1.0, 2)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, 8), ("PosterizeOriginal", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
        (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
        (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
        (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
        (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    ),
    "v0": (
        (("Equalize", 0.8, 1), ("ShearY", 0.8, 4)),
        (("Color", 0.4, 9), ("Equalize", 0.6, 3)),
        (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
        (("Solarize", 0.8, 3), ("Equalize", 0.4, 7)),
        (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
        (("Color", 0.2, 0), ("Equalize", 0.8, 8)),
        (("Equalize", 0.4, 8), ("SolarizeAdd", 0.8, 3)),
        (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
        (("Color", 0.6, 1), ("Equalize", 1.0, 2)),
        (("Invert", 0.4, 9), ("Rotate", 0.6, 0)),
        (("Equalize", 1.0, 9), ("ShearY", 0.6, 3)),
        (("Color", 0.4, 7), ("Equalize", 0.6, 0)),
        (("Posterize", 0.4, 6), ("AutoContrast", 0.4, 7)),
        (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
        (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
        (("Rotate", 1.0, 7), ("TranslateYRel", 0.8, 9)),
        (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
        (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
        (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
        (("Equalize", 0.8, 4), ("Equalize", 0.0, 8)),
        (("Equalize", 1.0, 4), ("AutoContrast", 0.6, 2)),
        (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
        (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
        (("Solarize", 0.6, 8), ("Equalize", 0.6, 1)),
        (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
    ),
}
# pycls keeps at least one bit where v0's `Posterize` would keep none and give a black image
# (facebookresearch/pycls 5719de6, pycls/datasets/augment.py)
SUB_POLICIES["v0-pycls"] = tuple(
    (first, second) if first[0] != "Posterize" else (("PosterizeAtLeastOne", *first[1:]), second)
    for first, second in SUB_POLICIES["v0"]
)
COLUMNS = 5  # draws per operation


def auto_augment(
    *,
    policy: Literal["original", "v0", "v0-pycls"],
    std: NotNegative = 0.0,
    interpolation: Interpolation,
    fill: Fill,
) -> Operation:
    """Applies one of the policy's 25 sub-policies to each image: its two operations, in order.

    Magnitudes are normal around the policy's with deviation `std`, clipped to 0..10; signs are
    random. `fill` (RGB) is the colour outside a moved image.
    """
    table = SUB_POLICIES[policy]
    names = sorted({name for sub_policy in table for name, _, _ in sub_policy})
    colour = np.array(fill, dtype=np.uint8)
    # (25, 2) each: which operation, its probability, its magnitude
    which = np.array([[names.index(name) for name, _, _ in row] for row in table])
    chance = np.array([[p for _, p, _ in row] for row in table])
    magnitude = np.array([[m for _, _, m in row] for row in table], dtype=np.float64)

    def plan(draws: Floats) -> tuple[Any, ...]:
        chosen = named_operations.to_indices(draws[:, 0], len(table))
        layers = []
        for index in range(2):
            columns = draws[:, 1 + index * COLUMNS : 1 + (index + 1) * COLUMNS]
            applied = columns[:, 0] < chance[chosen, index]
            mean = magnitude[chosen, index]
            strengths = named_operations.draw_magnitudes(columns[:, 1:], mean, std, interpolation)
            layers.append(LayerDraws(np.where(applied, which[chosen, index], -1), *strengths))
        return *named_operations.group_by_operation(names, layers), colour

    apply = partial(named_operations.apply_groups, "auto-augment")
    return Operation(1 + 2 * COLUMNS, "pixels", apply, plan)
