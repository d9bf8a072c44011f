"""Blends of an image with a duller version of itself, exactly as PIL's ImageEnhance.

Images are uint8 (k, 3, h, w); `factor` is (k,) float64 on their device: 0 gives the duller
version, 1 the image, above 1 goes beyond it.
"""

import torch
from torch import Tensor

from rescue_cli.sections.augment.kernels import devices


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    if devices.on_cpu(images):
        return to_levels(images.float().mul_(_column(factor)))
    return to_levels(images * _column(factor))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the rounded mean of the image's grey."""
    whole = _as_floats(images)
    mean = grey(whole).mean((1, 2, 3), keepdim=True, dtype=torch.float64)
    return blend(whole, (mean + 0.5).floor().float(), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's grey: PIL's Color."""
    whole = _as_floats(images)
    return blend(whole, grey(whole), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed by PIL's SMOOTH filter, which leaves the border as it is."""
    if devices.on_cpu(images):
        whole = images.float()
        return blend(whole, _smooth(images, whole.clone()), factor)
    return blend(images, _smooth(images, images.to(torch.int16)), factor)


def grey(images: Tensor) -> Tensor:
    """PIL's grey (k, 1, h, w) of levels: integers, exact in float32."""
    red, green, blue = images.unbind(1)
    weighted = red.mul(19595.0).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768)
    return weighted.mul_(2.0**-16).floor_().unsqueeze(1)


def blend(images: Tensor, dull: Tensor, factor: Tensor) -> Tensor:
    """dull + factor * (images - dull) in single precision, clipped to levels, as PIL's Blend.c.

    Of images as `_as_floats` gives them; `dull` has integers.
    """
    if images.dtype == torch.uint8:
        dull = dull.to(torch.int16)
        return to_levels(((images - dull) * _column(factor)).add_(dull))
    # Two roundings like PIL: lerp and addcmul may use a fused multiply-add
    return to_levels(images.sub(dull).mul_(_column(factor)).add_(dull))


def to_levels(values: Tensor) -> Tensor:
    """Clips floats (in place) to 0..255 and truncates them to uint8, as PIL does."""
    clipped = values.clamp_(0, 255)
    if devices.on_cpu(values):  # through int16, which torch vectorises: 6 times as fast
        clipped = clipped.to(torch.int16)
    return clipped.to(torch.uint8)


def _as_floats(images: Tensor) -> Tensor:
    """The levels as floats, or as they are where each operation converts what it reads."""
    return images.float() if devices.on_cpu(images) else images


def _smooth(images: Tensor, smoothed: Tensor) -> Tensor:
    """The 3 x 3 filter (1 1 1, 1 5 1, 1 1 1) / 13, rounded; a tie cannot occur.

    Written to `smoothed`, a copy of the images that keeps the border.
    """
    height, width = images.shape[-2:]
    if min(height, width) < 3:
        return smoothed
    levels = images.to(torch.int16) if smoothed.is_floating_point() else smoothed
    rows = levels[..., :-2] + levels[..., 1:-1] + levels[..., 2:]
    box = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    box.add_(levels[..., 1:-1, 1:-1], alpha=4)
    if smoothed.is_floating_point():
        smoothed[..., 1:-1, 1:-1] = box.float().mul_(1 / 13).add_(0.5).floor_()
    else:
        smoothed[..., 1:-1, 1:-1] = box.mul_(2).add_(13).floor_divide_(26)
    return smoothed


def _column(factor: Tensor) -> Tensor:
    """(k,) as (k, 1, 1, 1) in single precision."""
    return factor.float()[:, None, None, None]
