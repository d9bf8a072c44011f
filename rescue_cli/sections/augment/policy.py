"""timm's named operations on a batch, each image with its own: planned on the host by groups.

The names, and what a magnitude of 0 to 10 means to each, are timm's (data/auto_augment.py).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Interval
from numpy.typing import NDArray
from torch import Tensor

from rescue_cli.errors import UsageError
from rescue_cli.rng import Floats
from rescue_cli.sections.augment.kernels import affine, colour, hue, levels

Doubles = NDArray[np.float64]
Interpolation = Literal["bilinear", "bicubic", "random"]
Level = Annotated[int, Interval(ge=0, le=255)]
Fill = tuple[Level, Level, Level]

MOST = 10.0  # magnitude
# images, or pixels where that is more images, that one operation takes at a time on a CPU: what it
# computes with then stays in the cache, and the calls of torch do not outweigh small images
AT_A_TIME, PIXELS_AT_A_TIME = 4, 65_536


class Kind(NamedTuple):
    """`argument(magnitude, sign)` is what `apply` needs, element by element."""

    apply: Callable[..., Tensor]
    argument: Callable[[Doubles, Doubles], Doubles]


def _none(magnitude: Doubles, _sign: Doubles) -> Doubles:
    return np.zeros_like(magnitude)


def _signed(most: float) -> Callable[[Doubles, Doubles], Doubles]:
    return lambda magnitude, sign: sign * (magnitude / MOST * most)


def _bits(magnitude: Doubles) -> Doubles:
    return np.trunc(magnitude / MOST * 4)


def _threshold(magnitude: Doubles) -> Doubles:
    return np.minimum(256, np.trunc(magnitude / MOST * 256))


def _amount(magnitude: Doubles, _sign: Doubles) -> Doubles:
    return np.minimum(128, np.trunc(magnitude / MOST * 110))


def _enhance(magnitude: Doubles, _sign: Doubles) -> Doubles:
    return magnitude / MOST * 1.8 + 0.1


def _enhance_increasing(magnitude: Doubles, sign: Doubles) -> Doubles:
    return np.maximum(0.1, 1.0 + sign * (magnitude / MOST * 0.9))


def _given(argument: Doubles, _sign: Doubles) -> Doubles:
    return argument


KINDS = {
    "AutoContrast": Kind(levels.auto_contrast, _none),
    "Equalize": Kind(levels.equalize, _none),
    "Invert": Kind(levels.invert, _none),
    "Rotate": Kind(affine.rotate, _signed(30.0)),
    "Posterize": Kind(levels.posterize, lambda m, _: _bits(m)),
    "PosterizeAtLeastOne": Kind(levels.posterize, lambda m, _: np.maximum(1, _bits(m))),
    "PosterizeIncreasing": Kind(levels.posterize, lambda m, _: 4 - _bits(m)),
    "PosterizeOriginal": Kind(levels.posterize, lambda m, _: _bits(m) + 4),
    "Solarize": Kind(levels.solarize, lambda m, _: _threshold(m)),
    "SolarizeIncreasing": Kind(levels.solarize, lambda m, _: 256 - _threshold(m)),
    "SolarizeAdd": Kind(levels.solarize_add, _amount),
    "Color": Kind(colour.saturation, _enhance),
    "ColorIncreasing": Kind(colour.saturation, _enhance_increasing),
    "Contrast": Kind(colour.contrast, _enhance),
    "ContrastIncreasing": Kind(colour.contrast, _enhance_increasing),
    "Brightness": Kind(colour.brightness, _enhance),
    "BrightnessIncreasing": Kind(colour.brightness, _enhance_increasing),
    "Sharpness": Kind(colour.sharpness, _enhance),
    "SharpnessIncreasing": Kind(colour.sharpness, _enhance_increasing),
    "ShearX": Kind(affine.shear_x, _signed(0.3)),
    "ShearY": Kind(affine.shear_y, _signed(0.3)),
    "TranslateXRel": Kind(affine.translate_x, _signed(0.45)),
    "TranslateYRel": Kind(affine.translate_y, _signed(0.45)),
    # of colour jitter and TrivialAugment, which have arguments in place of magnitudes
    "ColorFactor": Kind(colour.saturation, _given),
    "ContrastFactor": Kind(colour.contrast, _given),
    "BrightnessFactor": Kind(colour.brightness, _given),
    "SharpnessFactor": Kind(colour.sharpness, _given),
    "HueShift": Kind(hue.shift, _given),
    "HueFactor": Kind(hue.scale, _given),
    "PosterizeGiven": Kind(levels.posterize, _given),
    "SolarizeGiven": Kind(levels.solarize, _given),
    "RotateGiven": Kind(affine.rotate, _given),
    "ShearXGiven": Kind(affine.shear_x, _given),
    "ShearYGiven": Kind(affine.shear_y, _given),
    "TranslateXGiven": Kind(affine.move_x, _given),
    "TranslateYGiven": Kind(affine.move_y, _given),
}
GEOMETRIC = {
    *("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
    *("RotateGiven", "ShearXGiven", "ShearYGiven", "TranslateXGiven", "TranslateYGiven"),
}


class Drawn(NamedTuple):
    """Of one layer, for each image: an index into the names (-1: none), and how it is applied."""

    which: NDArray[np.int64]
    magnitudes: Doubles
    signs: Doubles
    bicubic: NDArray[np.bool_]


class Group(NamedTuple):
    """The images (rows of the batch) that get the operation of this name."""

    name: str
    kernel: affine.Kernel
    rows: list[int]


def choice(draws: Floats, count: int) -> NDArray[np.int64]:
    """Uniform draws as whole numbers below `count`."""
    return (draws.astype(np.float64) * count).astype(np.int64)


def strengths(
    draws: Floats, mean: Doubles | float, std: float, interpolation: Interpolation
) -> tuple[Doubles, Doubles, NDArray[np.bool_]]:
    """Of draws (n, 4) the magnitudes, normal and cut to 0..10; the signs; which are bicubic."""
    magnitudes = np.clip(mean + std * normal(draws[:, 0], draws[:, 1]), 0, MOST)
    signs = np.where(draws[:, 2] < 0.5, -1.0, 1.0)
    bicubic = draws[:, 3] < {"bilinear": 0.0, "bicubic": 1.0, "random": 0.5}[interpolation]
    return magnitudes, signs, bicubic


def normal(first: Floats, second: Floats) -> Doubles:
    """Standard normal numbers from two uniform ones each (Box and Muller 1958)."""
    radius = np.sqrt(-2 * np.log1p(-first.astype(np.float64)))
    numbers: Doubles = radius * np.cos(2 * np.pi * second.astype(np.float64))
    return numbers


def grouped(names: Sequence[str], layers: Sequence[Drawn]) -> tuple[list[Group], Doubles]:
    """The layers' images by operation, and the arguments of all groups one after another."""
    groups: list[Group] = []
    arguments: list[Doubles] = [np.zeros(0)]
    for drawn in layers:
        for which in sorted(set(drawn.which.tolist()) - {-1}):
            name = names[which]
            bilinear = ~drawn.bicubic if name in GEOMETRIC else np.zeros_like(drawn.bicubic)
            kernels: tuple[tuple[affine.Kernel, NDArray[np.bool_]], ...] = (
                ("bilinear", bilinear),
                ("bicubic", ~bilinear),
            )
            for kernel, wanted in kernels:
                rows = np.flatnonzero((drawn.which == which) & wanted)
                if len(rows):
                    groups.append(Group(name, kernel, rows.tolist()))
                    argument = KINDS[name].argument
                    arguments.append(argument(drawn.magnitudes[rows], drawn.signs[rows]))
    return groups, np.concatenate(arguments)


def apply_groups(
    where: str, images: Tensor, groups: Sequence[Group], arguments: Tensor, fill: Tensor
) -> Tensor:
    """The images (n, 3, h, w) uint8 after the groups' operations, in order.

    Raises `UsageError` where the images have no colours.
    """
    if images.shape[1] != 3:
        raise UsageError(
            f"augment ({where}): needs colour images; these have {images.shape[1]} channel. "
            f"Leave {where} out."
        )
    images = images.clone(memory_format=torch.contiguous_format)
    each = images.unbind()
    at_a_time = max(AT_A_TIME, PIXELS_AT_A_TIME // max(images.shape[2:].numel(), 1))
    if images.device.type != "cpu":
        at_a_time = len(each)
    used = 0
    for name, kernel, rows in groups:
        apply = KINDS[name].apply
        if name in GEOMETRIC:
            apply = partial(apply, kernel=kernel, fill=fill)
        for begin in range(0, len(rows), at_a_time):
            mine = [each[row] for row in rows[begin : begin + at_a_time]]
            changed = apply(torch.stack(mine), arguments[used : used + len(mine)])
            torch._foreach_copy_(mine, changed.unbind())
            used += len(mine)
    return images
