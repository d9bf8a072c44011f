"""Batched augmentations on the device, each image with its own draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rescue_cli.draws import Floats
from rescue_cli.errors import UsageError
from rescue_cli.registry import Fraction, NotNegativeInt, PositiveInt

Plan = Callable[[Floats], tuple[Any, ...]]


def as_drawn(draws: Floats) -> tuple[Any, ...]:
    """The plan of an operation that needs nothing of the host."""
    return (draws,)


@dataclass(frozen=True)
class Operation:
    """`apply(images (n, c, h, w), *planned)` -> images, where `planned` is what `plan` makes of the
    slice's draws (n, columns) on the host, by default the draws themselves.

    Arrays in it arrive on the device (all operations' in one copy), the rest as it is: so the host
    may know which image gets what, and no step waits for the device. On `pixels` the images are
    uint8, on `levels` floats of 0 to 255, once `normalised` floats of mean 0, which `apply` may
    write to.
    """

    columns: int
    stage: Literal["pixels", "levels", "normalised"]
    apply: Callable[..., Tensor]
    plan: Plan = as_drawn


def pad_crop(*, pad: NotNegativeInt, mode: Literal["reflect", "zeros"]) -> Operation:
    """A window of the image's own size out of the image padded on all sides, as one gather."""

    def apply(images: Tensor, draws: Tensor) -> Tensor:
        n, _, height, width = images.shape
        if pad >= min(height, width):
            side = min(height, width)
            raise UsageError(
                f"augment (pad-crop).pad: {pad} must be below the image's side, {side}."
            )
        shift = (draws * (2 * pad + 1)).long() - pad
        rows = shift[:, 0, None] + torch.arange(height, device=images.device)
        columns = shift[:, 1, None] + torch.arange(width, device=images.device)
        each = torch.arange(n, device=images.device)[:, None, None]
        inside_rows, inside_columns = _reflect(rows, height), _reflect(columns, width)
        cut = images[each, :, inside_rows[:, :, None], inside_columns[:, None, :]]
        if mode == "zeros":
            kept = (rows == inside_rows)[:, :, None] & (columns == inside_columns)[:, None, :]
            cut = cut * kept[..., None]
        return cut.permute(0, 3, 1, 2)

    return Operation(2, "pixels", apply)


def _reflect(places: Tensor, size: int) -> Tensor:
    """Places outside [0, size) mirrored about the border pixels, as `reflect` padding has it."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


def flip(*, p: Fraction) -> Operation:
    """Mirrors an image left to right with probability `p`."""

    def apply(images: Tensor, draws: Tensor) -> Tensor:
        # as a choice of bits: torch.where has no vector loop for bytes and takes five times as long
        chosen = (draws[:, :, None, None] < p).to(torch.uint8).neg_()
        return images.flip(-1).bitwise_xor_(images).bitwise_and_(chosen).bitwise_xor_(images)

    return Operation(1, "pixels", apply)


def cutout(*, size: PositiveInt) -> Operation:
    """A size x size square inside each image set to the mean (DeVries and Taylor 2017)."""

    def apply(images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if size > min(height, width):
            side = min(height, width)
            raise UsageError(
                f"augment (cutout).size: {size} must be at most the image's side, {side}."
            )
        top = (draws[:, 0] * (height - size + 1)).long()[:, None, None, None]
        left = (draws[:, 1] * (width - size + 1)).long()[:, None, None, None]
        rows = torch.arange(height, device=images.device)[:, None]
        columns = torch.arange(width, device=images.device)
        inside = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
        return images.masked_fill(inside, 0)

    return Operation(2, "normalised", apply)
