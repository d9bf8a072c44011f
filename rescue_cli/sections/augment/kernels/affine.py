"""Geometric operations with PIL's own interpolation: Image.transform and Image.rotate.

Images are uint8 (k, 3, h, w); `argument` is (k,) float64 on their device. A pixel's centre is at
+0.5, the four taps of `bicubic` are the cubic with a = -1, values are truncated, taps outside the
image repeat its border, and a pixel whose source point is outside the image is `fill`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from rescue_cli.sections.augment.kernels.colour import to_levels

Kernel = Literal["bilinear", "bicubic"]

# PIL computes in double precision and truncates. In single precision a sum that should be an
# integer may be just below it; this offset exceeds such errors and is too small to be seen.
TRUNCATION = 2.0**-13
BORDER = 2  # taps of `bicubic` on each side of a point


def shear_x(images: Tensor, factor: Tensor, kernel: Kernel, fill: Tensor) -> Tensor:
    """Row y moved by factor * (y + 0.5) pixels."""
    return _shift_lines(images, _pixel_centres(images, 2) * factor[:, None], 3, kernel, fill)


def shear_y(images: Tensor, factor: Tensor, kernel: Kernel, fill: Tensor) -> Tensor:
    """Column x moved by factor * (x + 0.5) pixels."""
    return _shift_lines(images, _pixel_centres(images, 3) * factor[:, None], 2, kernel, fill)


def translate_x(images: Tensor, share: Tensor, kernel: Kernel, fill: Tensor) -> Tensor:
    """All pixels moved by a share of the width."""
    return move_x(images, share * images.shape[3], kernel, fill)


def translate_y(images: Tensor, share: Tensor, kernel: Kernel, fill: Tensor) -> Tensor:
    """All pixels moved by a share of the height."""
    return move_y(images, share * images.shape[2], kernel, fill)


def move_x(images: Tensor, pixels: Tensor, kernel: Kernel, fill: Tensor) -> Tensor:
    """All pixels moved left by `pixels`."""
    return _shift_lines(images, pixels[:, None].expand(-1, images.shape[2]), 3, kernel, fill)


def move_y(images: Tensor, pixels: Tensor, kernel: Kernel, fill: Tensor) -> Tensor:
    """All pixels moved up by `pixels`."""
    return _shift_lines(images, pixels[:, None].expand(-1, images.shape[3]), 2, kernel, fill)


def rotate(images: Tensor, degrees: Tensor, kernel: Kernel, fill: Tensor) -> Tensor:
    """Rotated counter-clockwise about the centre."""
    height, width = images.shape[-2:]
    x, y = _rotated_points(images, degrees)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    column, column_weights = _interpolation_taps(x.sub_(0.5), kernel, width)
    row, row_weights = _interpolation_taps(y.sub_(0.5), kernel, height)
    # With a repeated border, all taps of a pixel are at fixed offsets from one index
    padded = _repeat_border(images).flatten(2)
    reach = width + 2 * BORDER
    positions = row.add_(BORDER).mul_(reach).add_(column).add_(BORDER).flatten(1)[:, None]
    positions = positions.expand(-1, images.shape[1], -1)
    span = padded.shape[2] - (len(row_weights) - 1) * (reach + 1)
    gathered = padded.new_empty(positions.shape)  # written over and over: new memory costs more
    level, line = torch.empty((2, *positions.shape), device=images.device).unbind()
    values = torch.zeros_like(line)
    for down, row_weight in enumerate(row_weights):
        line.zero_()
        for right, weight in enumerate(column_weights):
            torch.gather(padded.narrow(2, down * reach + right, span), 2, positions, out=gathered)
            line.addcmul_(level.copy_(gathered), weight.flatten(1)[:, None])
        values.addcmul_(line, row_weight.flatten(1)[:, None])
    levels = to_levels(values.add_(TRUNCATION)).view(images.shape)
    return _fill_outside(levels, inside.unsqueeze(1), fill)


def _rotated_points(images: Tensor, degrees: Tensor) -> tuple[Tensor, Tensor]:
    """The source point (x, y), each (k, h, w), of every pixel: PIL's matrix in PIL's order."""
    height, width = images.shape[-2:]
    angle = -(degrees % 360.0) * (math.pi / 180)
    cos, sin = (f(angle).round(decimals=15)[:, None, None] for f in (torch.cos, torch.sin))
    left = cos * (-width / 2) + sin * (-height / 2) + width / 2
    top = -sin * (-width / 2) + cos * (-height / 2) + height / 2
    xs, ys = _pixel_centres(images, 3)[None, None, :], _pixel_centres(images, 2)[None, :, None]
    return cos * xs + sin * ys + left, -sin * xs + cos * ys + top


def _shift_lines(images: Tensor, shift: Tensor, dim: int, kernel: Kernel, fill: Tensor) -> Tensor:
    """Shifts every line along `dim` by its own `shift` (k, lines), in pixels.

    All pixels of a line share their weights, so each line is gathered once with a few extra pixels,
    and its taps are slices of that.
    """
    size = images.shape[dim]
    shift = shift[:, None].unsqueeze(dim)
    first, weights = _interpolation_taps(shift, kernel)
    across = [1, 1, 1, 1]
    across[dim] = -1
    positions = torch.arange(size + len(weights) - 1, device=images.device).view(across) + first
    wider = (-1, images.shape[1], -1, -1)
    line = images.gather(dim, positions.clamp(0, size - 1).expand(wider)).float()
    values = line.narrow(dim, 0, size) * weights[0]
    for tap, weight in enumerate(weights[1:], 1):
        values.addcmul_(line.narrow(dim, tap, size), weight)
    nearest = torch.arange(size, device=images.device).view(across) + (shift + 0.5).floor().long()
    inside = (nearest >= 0) & (nearest < size)
    return _fill_outside(to_levels(values.add_(TRUNCATION)), inside, fill)


def _interpolation_taps(
    position: Tensor, kernel: Kernel, size: int | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The index (int64) of the first tap at a position, 0 being the first pixel's centre; weights.

    With `size` the pixel at or before the position is clamped to -1 .. size - 1.
    """
    base = position.floor()
    if size is not None:
        base.clamp_(-1, size - 1)
    d = (position - base).float()
    if kernel == "bilinear":
        return base.long(), (1 - d, d)
    square, cube = d * d, d * d * d
    weights = (2 * square - d - cube, 1 - 2 * square + cube, d + square - cube, cube - square)
    return base.long().sub_(1), weights


def _repeat_border(images: Tensor) -> Tensor:
    """The images with two repeated pixels on each side."""
    for dim in (2, 3):
        size = images.shape[dim]
        positions = torch.arange(-BORDER, size + BORDER, device=images.device).clamp_(0, size - 1)
        images = images.index_select(dim, positions)
    return images


def _fill_outside(images: Tensor, inside: Tensor, fill: Tensor) -> Tensor:
    """The images where `inside` (k, 1, h, w), else the colour `fill` (3,).

    Selects by bit masks: a twentieth of the time of torch.where, which is not vectorised for bytes.
    """
    colour = fill[:, None, None]
    return (images ^ colour).bitwise_and_(inside.to(torch.uint8).neg_()).bitwise_xor_(colour)


def _pixel_centres(images: Tensor, dim: int) -> Tensor:
    """The centres of the pixels along `dim`."""
    return torch.arange(images.shape[dim], dtype=torch.float64, device=images.device) + 0.5
