"""What an augmentation is; batched ones on the device, each image with its own draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rescue_cli.batch import squares
from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Fraction, NotNegativeInt, PositiveInt
from rescue_cli.rng import Floats, Indices, random_bits
from rescue_cli.sections.augment.kernels import devices

Plan = Callable[[Floats], tuple[Any, ...]]
Stage = Literal["file", "sample", "pixels", "levels", "normalised"]


class ImageIds(NamedTuple):
    """The images of a micro-batch: their indices (n,) in the training set, its epoch, the seed."""

    indices: Indices
    epoch: int
    seed: int


def identity_plan(draws: Floats) -> tuple[Any, ...]:
    """The default plan: the draws themselves."""
    return (draws,)


@dataclass(frozen=True)
class Operation:
    """An augmentation; `stage` says what it acts on, and where.

    In a loader worker, one image at a time:
    - `file`: `apply(height, width, draws (columns,))` -> the box (top, left, height, width) that is
      cut out of the image before it is resized;
    - `sample`: `apply(sample, draws (columns,))` -> sample, an image with its boxes or its mask;
      `one_size` where the result has one size, whatever comes in.

    On the device, a micro-batch at a time: `apply(images (n, c, h, w), *planned)` -> images. They
    are uint8 on `pixels`, floats of 0 to 255 on `levels`, and floats of mean 0, which `apply` may
    write to, once `normalised`. `planned` is computed on the host: by `plan` from the micro-batch's
    draws (n, columns), by default the draws themselves; or by `plan_by_image` from the images'
    indices, for draws of an image that do not change from epoch to epoch. Its arrays are copied to
    the device (those of all operations at once), the rest stays as it is: so the host may know
    which image gets what, and no step waits for the device. `from_device`: `apply` draws from the
    device's generator as well, which is seeded for each micro-batch, so only one at a time.
    """

    columns: int
    stage: Stage
    apply: Callable[..., Any]
    plan: Plan = identity_plan
    plan_by_image: Callable[[ImageIds], tuple[Any, ...]] | None = None
    one_size: bool = False
    from_device: bool = False


def pad_crop(
    *, pad: NotNegativeInt, mode: Literal["reflect", "zeros"], offsets: PositiveInt | None = None
) -> Operation:
    """A window of the image's own size out of the image padded on all sides, as one gather.

    Its top and its left are drawn from the first `offsets` of the 2 pad + 1 possible ones, by
    default from all. Raises `UsageError` where `offsets` is larger.
    """
    possible = 2 * pad + 1
    if offsets is not None and offsets > possible:
        raise UsageError(
            f"augment (pad-crop).offsets: {offsets}, and a pad of {pad} has {possible}. "
            "Give at most that many, or remove the key to use all."
        )
    used = possible if offsets is None else offsets

    def apply(images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if pad >= min(height, width):
            side = min(height, width)
            raise UsageError(
                f"augment (pad-crop).pad: {pad} must be below the image's side, {side}."
            )
        corners = (draws * used).long()
        padded = (
            _pad_reflecting(images, pad)
            if mode == "reflect"
            else functional.pad(images, (pad,) * 4)
        )
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view, of any top and left
        each = torch.arange(len(images), device=images.device)
        return windows[each, :, corners[:, 0], corners[:, 1]]

    return Operation(2, "pixels", apply)


def _pad_reflecting(images: Tensor, pad: int) -> Tensor:
    """Pads on all sides by reflection, as `functional.pad`, which does not take uint8."""
    for dim in (2, 3):
        before = images.narrow(dim, 1, pad).flip(dim)
        after = images.narrow(dim, images.shape[dim] - 1 - pad, pad).flip(dim)
        images = torch.cat([before, images, after], dim)
    return images


def flip(*, p: Fraction) -> Operation:
    """Mirrors an image left to right with probability `p`."""

    def apply(images: Tensor, draws: Tensor) -> Tensor:
        return _mirror(images, draws[:, 0] < p)

    return Operation(1, "pixels", apply)


def alternating_flip() -> Operation:
    """Mirrors a random half of the images in the first epoch, in the next the others, and so on.

    So every image is mirrored exactly every other epoch (airbench, Jordan 2024).
    """

    def plan(ids: ImageIds) -> tuple[Any, ...]:
        flipped = random_bits(ids.seed, "alternating-flip", ids.indices)
        return (flipped ^ bool(ids.epoch % 2),)

    return Operation(0, "pixels", _mirror, plan_by_image=plan)


def _mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """The images (n, c, h, w), the chosen ones (n,) mirrored left to right."""
    if not devices.on_cpu(images):
        return torch.where(chosen[:, None, None, None], images.flip(-1), images)
    # By bit masks: torch.where is not vectorised for bytes and takes five times as long
    mask = chosen[:, None, None, None].to(torch.uint8).neg_()
    return images.flip(-1).bitwise_xor_(images).bitwise_and_(mask).bitwise_xor_(images)


def cutout(*, size: PositiveInt) -> Operation:
    """A size x size square inside each image set to the mean (DeVries and Taylor 2017)."""

    def apply(images: Tensor, draws: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if size > min(height, width):
            side = min(height, width)
            raise UsageError(
                f"augment (cutout).size: {size} must be at most the image's side, {side}."
            )
        which, rows, columns = squares(draws, size, height, width)
        images[which, :, rows, columns] = 0
        return images

    return Operation(2, "normalised", apply)
