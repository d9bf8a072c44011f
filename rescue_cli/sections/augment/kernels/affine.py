"""Geometric operations with PIL's own interpolation: Image.transform and Image.rotate.

Images are uint8 (k, 3, h, w); arguments are (k,) float64 on their device. A pixel's centre is at
+0.5, the four taps of `bicubic` are the cubic with a = -1, values are truncated, taps outside the
image repeat its border, and a pixel whose source point is outside the image is `fill`.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from rescue_cli.sections.augment.kernels import devices
from rescue_cli.sections.augment.kernels.colour import to_levels

Kernel = Literal["bilinear", "bicubic"]

# PIL computes in double precision and truncates. In single precision a sum that should be an
# integer may be just below it; this offset exceeds such errors and is too small to be seen.
TRUNCATION = 2.0**-13
BORDER = 2  # taps of `bicubic` on each side of a point


def slide_x(images: Tensor, slope: Tensor, offset: Tensor, kernel: Kernel, fill: Tensor) -> Tensor:
    """Row y moved left by slope * (y + 0.5) + offset pixels: sheared and translated along x."""
    shift = _pixel_centres(images, 2) * slope[:, None] + offset[:, None]
    return _shift_lines(images, shift, 3, kernel, fill)


def slide_y(images: Tensor, slope: Tensor, offset: Tensor, kernel: Kernel, fill: Tensor) -> Tensor:
    """Column x moved up by slope * (x + 0.5) + offset pixels: sheared and translated along y."""
    shift = _pixel_centres(images, 3) * slope[:, None] + offset[:, None]
    return _shift_lines(images, shift, 2, kernel, fill)


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
    positions = row.mul_(reach).add_(column).add_(BORDER * (reach + 1)).flatten(1)[:, None]
    positions = positions.expand(-1, images.shape[1], -1)
    values = (_sum_of_taps if devices.on_cpu(images) else _sum_of_packed_taps)(
        padded,
        positions,
        reach,
        *([w.flatten(1)[:, None] for w in ws] for ws in (row_weights, column_weights)),
    )
    levels = to_levels(values.add_(TRUNCATION)).view(images.shape)
    return _fill_outside(levels, inside.unsqueeze(1), fill)


def _sum_of_taps(
    padded: Tensor, positions: Tensor, reach: int, rows: list[Tensor], columns: list[Tensor]
) -> Tensor:
    """The weighted sum of the taps at `positions` (k, 3, pixels) of `padded` images (k, 3, all):
    as many columns and rows as there are weights (k, 1, pixels), `reach` from row to row.
    """
    span = padded.shape[2] - (len(rows) - 1) * (reach + 1)
    gathered = padded.new_empty(positions.shape)  # written over and over: new memory costs more
    level, line = torch.empty((2, *positions.shape), device=padded.device).unbind()
    values = torch.zeros_like(line)
    for down, row_weight in enumerate(rows):
        line.zero_()
        for right, weight in enumerate(columns):
            torch.gather(padded.narrow(2, down * reach + right, span), 2, positions, out=gathered)
            line.addcmul_(level.copy_(gathered), weight)
        values.addcmul_(line, row_weight)
    return values


def _sum_of_packed_taps(
    padded: Tensor, positions: Tensor, reach: int, rows: list[Tensor], columns: list[Tensor]
) -> Tensor:
    """`_sum_of_taps` where an operation converts types as it reads: the taps of a row, 2 or 4
    bytes, are gathered as one integer.
    """
    across = padded.shape[2] - len(columns) + 1
    shifted = [padded.narrow(2, right, across) for right in range(len(columns))]
    packed = torch.stack(shifted, 3).view(torch.int32 if len(columns) == 4 else torch.int16)
    span = across - (len(rows) - 1) * reach
    values = padded.new_empty(0)
    for down, row_weight in enumerate(rows):
        gathered = packed[..., 0].narrow(2, down * reach, span).gather(2, positions)
        taps = gathered.unsqueeze(3).view(torch.uint8).unbind(3)
        line = taps[0] * columns[0]
        for tap, weight in zip(taps[1:], columns[1:], strict=True):
            line.addcmul_(tap, weight)
        values = values.addcmul_(line, row_weight) if down else line * row_weight
    return values


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
    line = images.gather(dim, positions.clamp_(0, size - 1).expand(wider))
    if devices.on_cpu(images):
        line = line.float()
    values = line.narrow(dim, 0, size) * weights[0]
    for tap, weight in enumerate(weights[1:], 1):
        values.addcmul_(line.narrow(dim, tap, size), weight)
    pixels = torch.arange(size, dtype=torch.float64, device=images.device).view(across)
    moved = (shift + 0.5).floor()  # of the nearest source pixel
    inside = (pixels >= -moved) & (pixels < size - moved)
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
    """The images where `inside` (k, 1, h, w), else the colour `fill` (3,)."""
    colour = fill[:, None, None]
    if not devices.on_cpu(images):
        return torch.where(inside, images, colour)
    # By bit masks: a twentieth of the time of torch.where, which is not vectorised for bytes
    return (images ^ colour).bitwise_and_(inside.to(torch.uint8).neg_()).bitwise_xor_(colour)


def _pixel_centres(images: Tensor, dim: int) -> Tensor:
    """The centres of the pixels along `dim`."""
    return torch.arange(images.shape[dim], dtype=torch.float64, device=images.device) + 0.5
