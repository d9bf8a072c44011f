"""Progressive resizing: smaller images in a run's first epochs."""

from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.nn import functional

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Epochs, PositiveInt
from rescue_cli.sections.augment.operations import ImageIds, Operation


def progressive_resize(*, sizes: list[PositiveInt], until: list[Epochs]) -> Operation:
    """Images of `sizes[i]` pixels in the epochs before `until[i]`, then full size (Howard 2018).

    Square images, resized bilinearly with antialiasing. An epoch has one size: the first whose
    `until` is after the epoch's start. For networks that accept any image size.
    """
    if len(sizes) != len(until) or any(a >= b for a, b in pairwise(until)):
        raise UsageError(
            f"augment (progressive-resize): sizes {sizes} until {until}. "
            "Give each size the epoch in which it ends, in increasing order."
        )

    def plan(ids: ImageIds) -> tuple[Any, ...]:
        return (size_at_epoch(ids.epoch, sizes, until),)

    def apply(images: Tensor, size: int | None) -> Tensor:
        if size is None:
            return images
        return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)

    return Operation(0, "normalised", apply, plan_by_image=plan)


def size_at_epoch(epoch: int, sizes: list[int], until: list[float]) -> int | None:
    """The size of the images in an epoch, in pixels; None: not resized."""
    return next((size for size, end in zip(sizes, until, strict=True) if epoch < end), None)
