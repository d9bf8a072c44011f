"""The section `mix`: mixup and CutMix within a micro-batch.

Image i of a micro-batch of n is mixed with image n-1-i (`partner: opposite`), as in timm; for odd n
the middle one is mixed with itself. Or it is mixed with image i-1, and the first with the last
(`previous`), as in torchvision. Targets become class probabilities (n, classes). Label smoothing is
done by the loss.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from rescue_cli.batch import Batch, squares, to_device
from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Epochs, Fraction, Positive, PositiveInt
from rescue_cli.rng import uniform

Mix = Callable[[Batch], Batch]
Partner = Literal["opposite", "previous"]
DRAWS = 4  # per micro-batch: mixup or CutMix, lam, and the box's centre (2)


@dataclass(frozen=True)
class MixContext:
    """What mixing depends on."""

    classes: int
    seed: int
    steps_per_epoch: int

    def draws(self, batch: Batch) -> list[float]:
        """The micro-batch's draws in [0, 1)."""
        values: list[float] = uniform(
            self.seed, "mix", batch.step, batch.micro_batch, (DRAWS,)
        ).tolist()
        return values


def none(_: MixContext) -> Mix:
    """No mixing."""
    return lambda batch: batch


def mixup(context: MixContext, *, alpha: Positive, partner: Partner = "opposite") -> Mix:
    """lam x + (1 - lam) x', one lam ~ Beta(alpha, alpha) per micro-batch (Zhang et al. 2018)."""

    def mix(batch: Batch) -> Batch:
        _, share, *_ = context.draws(batch)
        return blend_images(batch, beta_quantile(share, alpha), context.classes, partner)

    return mix


def cutmix(context: MixContext, *, alpha: Positive, partner: Partner = "opposite") -> Mix:
    """Pastes a box of the partner with area 1 - lam, lam ~ Beta(alpha, alpha) (Yun et al. 2019).

    One lam and one box per micro-batch. Where the border clips the box, the targets follow its
    actual area.
    """

    def mix(batch: Batch) -> Batch:
        _, share, row, column = context.draws(batch)
        height, width = batch.images.shape[-2:]
        corners = cutmix_box(
            height, width, beta_quantile(share, alpha), int(row * height), int(column * width)
        )
        return paste_box(batch, corners, context.classes, partner)

    return mix


_MIXUP, _CUTMIX = mixup, cutmix  # the parameters of the next function have the same names


def mixup_or_cutmix(
    context: MixContext,
    *,
    mixup: Positive,
    cutmix: Positive,
    switch: Fraction,
    partner: Partner = "opposite",
) -> Mix:
    """CutMix with probability `switch`, else mixup, per micro-batch; `mixup`, `cutmix`: alphas."""
    blended = _MIXUP(context, alpha=mixup, partner=partner)
    pasted = _CUTMIX(context, alpha=cutmix, partner=partner)

    def mix(batch: Batch) -> Batch:
        which, *_ = context.draws(batch)
        return (pasted if which < switch else blended)(batch)

    return mix


def cutmix_patch(context: MixContext, *, size: PositiveInt, from_epoch: Epochs) -> Mix:
    """Pastes a `size` x `size` square of the partner, at a random position for each image.

    From epoch `from_epoch` on, counted from 0; before that nothing is mixed. As in hlb-CIFAR10 0.7,
    except that there the partner is drawn from the whole epoch. Raises `UsageError`.
    """
    first = math.ceil(round(from_epoch * context.steps_per_epoch, 6))

    def mix(batch: Batch) -> Batch:
        if batch.step < first:
            return batch
        n, _, height, width = batch.images.shape
        if size > min(height, width):
            raise UsageError(
                f"mix (cutmix-patch).size: {size} must be at most the image's side, "
                f"{min(height, width)}."
            )
        draws = uniform(context.seed, "cutmix-patch", batch.step, batch.micro_batch, (n, 2))
        places = to_device(draws, batch.images.device)
        which, rows, columns = squares(places, size, height, width)
        images = batch.images.clone()
        images[which, :, rows, columns] = batch.images[which.flip(0), :, rows, columns]
        shares = _mixed_targets(batch, 1 - size**2 / (height * width), context.classes)
        return replace(batch, images=images, targets=shares)

    return mix


MIXES = {
    "none": none,
    "mixup": mixup,
    "cutmix": cutmix,
    "mixup-or-cutmix": mixup_or_cutmix,
    "cutmix-patch": cutmix_patch,
}


def beta_quantile(draw: float, alpha: float) -> float:
    """A Beta(alpha, alpha) sample from a uniform draw in [0, 1), by inversion."""
    from scipy.special import betaincinv

    return float(betaincinv(alpha, alpha, draw))


def cutmix_box(
    height: int, width: int, lam: float, row: int, column: int, *, odd: int = 0
) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of a box of area 1 - lam around (row, column), clipped.

    Half of an odd side is rounded down on both sides, as in timm up to 1.0.28 and so in the paper's
    runs; with `odd` 1 the lower and right half is rounded up, as in later versions.
    """
    ratio = (1 - lam) ** 0.5
    tall, wide = int(height * ratio), int(width * ratio)
    return (
        max(row - tall // 2, 0),
        min(row + (tall + odd) // 2, height),
        max(column - wide // 2, 0),
        min(column + (wide + odd) // 2, width),
    )


def blend_images(batch: Batch, lam: float, classes: int, partner: Partner = "opposite") -> Batch:
    """The micro-batch with lam x + (1 - lam) x' as images and targets likewise."""
    images = batch.images * lam + partners_of(batch.images, partner) * (1 - lam)
    return replace(batch, images=images, targets=_mixed_targets(batch, lam, classes, partner))


def paste_box(
    batch: Batch,
    corners: tuple[int, int, int, int],
    classes: int,
    partner: Partner = "opposite",
) -> Batch:
    """The micro-batch with a box of each image's partner, and targets by area."""
    top, bottom, left, right = corners
    height, width = batch.images.shape[-2:]
    images = batch.images.clone()
    others = partners_of(batch.images[..., top:bottom, left:right], partner)
    images[..., top:bottom, left:right] = others
    lam = 1 - (bottom - top) * (right - left) / (height * width)
    return replace(batch, images=images, targets=_mixed_targets(batch, lam, classes, partner))


def partners_of(of: Tensor, partner: Partner) -> Tensor:
    """Reorders values of the images (n, ...) such that each image gets its partner's."""
    return of.roll(1, 0) if partner == "previous" else of.flip(0)


def _mixed_targets(batch: Batch, lam: float, classes: int, partner: Partner = "opposite") -> Tensor:
    labels = functional.one_hot(batch.targets, classes).to(_target_dtype(batch.images))
    return labels * lam + partners_of(labels, partner) * (1 - lam)


def _target_dtype(images: Tensor) -> torch.dtype:
    return torch.float64 if images.dtype == torch.float64 else torch.float32
