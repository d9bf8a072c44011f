"""timm's named operations on a batch: each image has its own, and the host groups them.

The names, and what a magnitude of 0 to 10 means for each, are timm's (data/auto_augment.py).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Interval
from numpy.typing import NDArray
from torch import Tensor

from rescue_cli.errors import UsageError
from rescue_cli.rng import Floats
from rescue_cli.sections.augment.kernels import affine, colour, devices, hue, levels

Doubles = NDArray[np.float64]
Interpolation = Literal["bilinear", "bicubic", "random"]
Level = Annotated[int, Interval(ge=0, le=255)]
Fill = tuple[Level, Level, Level]

MAX_MAGNITUDE = 10.0
# Images (or pixels, where that is more images) per call on a CPU: intermediate results stay in the
# cache, and torch's overhead per call does not dominate for small images
IMAGES_AT_A_TIME, PIXELS_AT_A_TIME = 4, 65_536


class NamedOperation(NamedTuple):
    """`apply` acts on images; `argument(magnitude, sign)` computes its argument elementwise.

    `slides`: what the argument of `slide_x` or `slide_y` is: the slope, or the offset in pixels or
    as a share of the width or height.
    """

    apply: Callable[..., Tensor]
    argument: Callable[[Doubles, Doubles], Doubles]
    slides: Literal["slope", "pixels", "share"] | None = None

    def values(self, argument: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
        """What `apply` takes beside the images."""
        if self.slides is None:
            return (argument,)
        nothing = torch.zeros_like(argument)
        if self.slides == "slope":
            return argument, nothing
        if self.slides == "share":
            argument = argument * (width if self.apply is affine.slide_x else height)
        return nothing, argument


def _no_argument(magnitude: Doubles, _sign: Doubles) -> Doubles:
    return np.zeros_like(magnitude)


def _signed_up_to(most: float) -> Callable[[Doubles, Doubles], Doubles]:
    return lambda magnitude, sign: sign * (magnitude / MAX_MAGNITUDE * most)


def _posterize_bits(magnitude: Doubles) -> Doubles:
    return np.trunc(magnitude / MAX_MAGNITUDE * 4)


def _solarize_threshold(magnitude: Doubles) -> Doubles:
    return np.minimum(256, np.trunc(magnitude / MAX_MAGNITUDE * 256))


def _solarize_add_amount(magnitude: Doubles, _sign: Doubles) -> Doubles:
    return np.minimum(128, np.trunc(magnitude / MAX_MAGNITUDE * 110))


def _enhance(magnitude: Doubles, _sign: Doubles) -> Doubles:
    return magnitude / MAX_MAGNITUDE * 1.8 + 0.1


def _enhance_increasing(magnitude: Doubles, sign: Doubles) -> Doubles:
    return np.maximum(0.1, 1.0 + sign * (magnitude / MAX_MAGNITUDE * 0.9))


def _identity(argument: Doubles, _sign: Doubles) -> Doubles:
    return argument


NAMED_OPERATIONS = {
    "AutoContrast": NamedOperation(levels.auto_contrast, _no_argument),
    "Equalize": NamedOperation(levels.equalize, _no_argument),
    "Invert": NamedOperation(levels.invert, _no_argument),
    "Rotate": NamedOperation(affine.rotate, _signed_up_to(30.0)),
    "Posterize": NamedOperation(levels.posterize, lambda m, _: _posterize_bits(m)),
    "PosterizeAtLeastOne": NamedOperation(
        levels.posterize, lambda m, _: np.maximum(1, _posterize_bits(m))
    ),
    "PosterizeIncreasing": NamedOperation(levels.posterize, lambda m, _: 4 - _posterize_bits(m)),
    "PosterizeOriginal": NamedOperation(levels.posterize, lambda m, _: _posterize_bits(m) + 4),
    "Solarize": NamedOperation(levels.solarize, lambda m, _: _solarize_threshold(m)),
    "SolarizeIncreasing": NamedOperation(
        levels.solarize, lambda m, _: 256 - _solarize_threshold(m)
    ),
    "SolarizeAdd": NamedOperation(levels.solarize_add, _solarize_add_amount),
    "Color": NamedOperation(colour.saturation, _enhance),
    "ColorIncreasing": NamedOperation(colour.saturation, _enhance_increasing),
    "Contrast": NamedOperation(colour.contrast, _enhance),
    "ContrastIncreasing": NamedOperation(colour.contrast, _enhance_increasing),
    "Brightness": NamedOperation(colour.brightness, _enhance),
    "BrightnessIncreasing": NamedOperation(colour.brightness, _enhance_increasing),
    "Sharpness": NamedOperation(colour.sharpness, _enhance),
    "SharpnessIncreasing": NamedOperation(colour.sharpness, _enhance_increasing),
    "ShearX": NamedOperation(affine.slide_x, _signed_up_to(0.3), "slope"),
    "ShearY": NamedOperation(affine.slide_y, _signed_up_to(0.3), "slope"),
    "TranslateXRel": NamedOperation(affine.slide_x, _signed_up_to(0.45), "share"),
    "TranslateYRel": NamedOperation(affine.slide_y, _signed_up_to(0.45), "share"),
    # Used by colour jitter and TrivialAugment, which give arguments instead of magnitudes
    "ColorFactor": NamedOperation(colour.saturation, _identity),
    "ContrastFactor": NamedOperation(colour.contrast, _identity),
    "BrightnessFactor": NamedOperation(colour.brightness, _identity),
    "SharpnessFactor": NamedOperation(colour.sharpness, _identity),
    "HueShift": NamedOperation(hue.shift_hue, _identity),
    "HueFactor": NamedOperation(hue.scale_hue, _identity),
    "PosterizeGiven": NamedOperation(levels.posterize, _identity),
    "SolarizeGiven": NamedOperation(levels.solarize, _identity),
    "RotateGiven": NamedOperation(affine.rotate, _identity),
    "ShearXGiven": NamedOperation(affine.slide_x, _identity, "slope"),
    "ShearYGiven": NamedOperation(affine.slide_y, _identity, "slope"),
    "TranslateXGiven": NamedOperation(affine.slide_x, _identity, "pixels"),
    "TranslateYGiven": NamedOperation(affine.slide_y, _identity, "pixels"),
}
GEOMETRIC = {
    name for name, each in NAMED_OPERATIONS.items() if each.slides or each.apply is affine.rotate
}


class LayerDraws(NamedTuple):
    """One layer's draws per image: index of the operation (-1: none), magnitude, sign, kernel."""

    which: NDArray[np.int64]
    magnitudes: Doubles
    signs: Doubles
    bicubic: NDArray[np.bool_]


class Group(NamedTuple):
    """The images (rows of the batch) that one operation is applied to."""

    name: str
    kernel: affine.Kernel
    rows: list[int]


def to_indices(draws: Floats, count: int) -> NDArray[np.int64]:
    """Uniform draws in [0, 1) as integers below `count`."""
    return (draws.astype(np.float64) * count).astype(np.int64)


def draw_magnitudes(
    draws: Floats, mean: Doubles | float, std: float, interpolation: Interpolation
) -> tuple[Doubles, Doubles, NDArray[np.bool_]]:
    """Magnitudes (normal, clipped to 0..10), signs and whether bicubic, from draws (n, 4)."""
    magnitudes = np.clip(mean + std * box_muller(draws[:, 0], draws[:, 1]), 0, MAX_MAGNITUDE)
    signs = np.where(draws[:, 2] < 0.5, -1.0, 1.0)
    bicubic = draws[:, 3] < {"bilinear": 0.0, "bicubic": 1.0, "random": 0.5}[interpolation]
    return magnitudes, signs, bicubic


def box_muller(first: Floats, second: Floats) -> Doubles:
    """Standard normal numbers from pairs of uniform ones (Box and Muller 1958)."""
    radius = np.sqrt(-2 * np.log1p(-first.astype(np.float64)))
    numbers: Doubles = radius * np.cos(2 * np.pi * second.astype(np.float64))
    return numbers


def group_by_operation(
    names: Sequence[str], layers: Sequence[LayerDraws]
) -> tuple[list[Group], Doubles]:
    """Groups the layers' images by operation; returns the groups and their arguments, joined."""
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
                    argument = NAMED_OPERATIONS[name].argument
                    arguments.append(argument(drawn.magnitudes[rows], drawn.signs[rows]))
    return groups, np.concatenate(arguments)


def apply_groups(
    augmentation: str, images: Tensor, groups: Sequence[Group], arguments: Tensor, fill: Tensor
) -> Tensor:
    """Applies the groups' operations to images (n, 3, h, w) uint8, in order; returns new images.

    `augmentation` is the name used in errors. Raises `UsageError` for images without 3 channels.
    """
    if images.shape[1] != 3:
        raise UsageError(
            f"augment ({augmentation}): needs images with 3 channels; these have "
            f"{images.shape[1]}. Remove {augmentation}."
        )
    images = images.clone(memory_format=torch.contiguous_format)
    each, (height, width) = images.unbind(), images.shape[2:]
    at_a_time = max(IMAGES_AT_A_TIME, PIXELS_AT_A_TIME // max(height * width, 1))
    calls = _calls(groups, arguments, height, width, fill)
    if not devices.on_cpu(images):
        at_a_time, calls = len(each), _with_slides_together(calls, groups)
    for apply, rows, values in calls:
        for begin in range(0, len(rows), at_a_time):
            some = slice(begin, begin + at_a_time)
            chunk = [each[row] for row in rows[some]]
            changed = apply(torch.stack(chunk), *(value[some] for value in values))
            torch._foreach_copy_(chunk, changed.unbind())
    return images


class _Call(NamedTuple):
    """An operation, the rows of the batch it is applied to, and its arguments (rows,)."""

    apply: Callable[..., Tensor]
    rows: list[int]
    arguments: tuple[Tensor, ...]


def _calls(
    groups: Sequence[Group], arguments: Tensor, height: int, width: int, fill: Tensor
) -> list[_Call]:
    """A call for each group."""
    calls = []
    parts = torch.split(arguments, [len(group.rows) for group in groups])
    for (name, kernel, rows), argument in zip(groups, parts, strict=True):
        operation = NAMED_OPERATIONS[name]
        apply = operation.apply
        if name in GEOMETRIC:
            apply = partial(apply, kernel=kernel, fill=fill)
        calls.append(_Call(apply, rows, operation.values(argument, height, width)))
    return calls


def _with_slides_together(calls: Sequence[_Call], groups: Sequence[Group]) -> list[_Call]:
    """The calls with those along x, and those along y, in one: each call has its price, but on a
    CPU. Only where no image has anything done to it between.
    """
    together: list[_Call] = []
    latest: dict[tuple[Any, affine.Kernel], int] = {}  # the latest call of each kind
    for call, (name, kernel, rows) in zip(calls, groups, strict=True):
        if NAMED_OPERATIONS[name].slides is None:
            together.append(call)
            continue
        kind = NAMED_OPERATIONS[name].apply, kernel
        place = latest.get(kind)
        since = [row for other in together[place:] for row in other.rows]
        if place is not None and set(rows).isdisjoint(since):
            before = together[place]
            pairs = zip(before.arguments, call.arguments, strict=True)
            joint = tuple(torch.cat(pair) for pair in pairs)
            together[place] = _Call(before.apply, [*before.rows, *rows], joint)
        else:
            latest[kind] = len(together)
            together.append(call)
    return together
