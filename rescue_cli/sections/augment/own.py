"""Augmentations of the user's own."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rescue_cli.recipe.own import Own
from rescue_cli.sections.augment.operations import Operation


def own_augmentation(own: Own) -> Callable[..., Operation]:
    """An augmentation: a function of images, a class whose instances are, or an `Operation`.

    A function gets the images of a micro-batch, (n, channels, height, width) uint8, and returns as
    many. It draws from torch's generator of the images' device (`torch.rand(n, device=
    images.device)`), which is seeded for each micro-batch, so that a resumed run draws the same.
    What takes no images returns an `Operation`.
    """
    takes_images = not inspect.isclass(own.target) and own.takes("images")

    def build(**options: Any) -> Operation:
        change = own.bind(options) if takes_images else own.call(options)
        if isinstance(change, Operation):
            return change
        if not callable(change):
            raise own.error("is no augmentation: its first parameter must be images.")

        def apply(images: Tensor) -> Tensor:
            changed = change(images)
            if not _fits(changed, images):
                raise own.error(
                    f"turns images {tuple(images.shape)} uint8 into {_describe(changed)}. Return "
                    "as many images, with as many channels, as uint8."
                )
            return changed  # type: ignore[no-any-return]

        return Operation(0, "pixels", apply, plan=lambda _: (), from_device=True)

    return own.with_keys(build, *(["images"] if takes_images else []))


def _fits(changed: Any, images: Tensor) -> bool:
    is_tensor = isinstance(changed, Tensor) and changed.ndim == 4 and changed.dtype == torch.uint8
    return is_tensor and changed.shape[:2] == images.shape[:2]


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
