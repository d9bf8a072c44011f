"""The section `loss`: what a step minimises.

Every loss is a mean over the images of a slice; `reduction: sum` is that mean times the number
of images in a step, so that a recipe whose paper sums its loss keeps the paper's learning rate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from rescue_cli.registry import Fraction, NotNegative, Within
from rescue_cli.scene import IGNORED


@dataclass(frozen=True)
class Loss:
    """`mean(logits, targets)` over a slice, and what its gradient is multiplied with.

    `each`: the losses of the slice's images, (n,); a scene has none of its own.
    """

    mean: Callable[[Any, Any], Tensor]
    each: Callable[[Tensor, Tensor], Tensor] | None
    factor: float


def cross_entropy(
    batch_size: int,
    *,
    label_smoothing: Fraction,
    reduction: Literal["mean", "sum"],
    smoothing_over: Literal["all", "others"] = "all",
) -> Loss:
    """Softmax cross-entropy; smoothing spreads its share evenly over all classes (Szegedy 2016).

    `smoothing_over: others`: over the classes that are not the label, eps / (K - 1) each and
    1 - eps for the label (Bag of Tricks, equation 4).
    logits (n, classes), targets (n,) labels or (n, classes) probabilities.
    """

    def mean(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        classes = logits.shape[1]
        # the label's own share of what is spread over all K is what (K - 1) others would lack
        whole = classes / (classes - 1) if smoothing_over == "others" else 1.0
        share = whole * label_smoothing
        return functional.cross_entropy(logits, targets, label_smoothing=share, reduction=reduction)

    return Loss(mean, partial(mean, reduction="none"), batch_size if reduction == "sum" else 1)


def binary_cross_entropy(
    _batch_size: int,
    *,
    targets: Literal["present", "soft"] | Annotated[float, Within(0, 1)],
    label_smoothing: Fraction,
) -> Loss:
    """Each class a question of its own, mean over images and classes (ResNet strikes back, 3.1).

    `present`: every class with a share in a mixed image is wholly there, the paper's reading;
    `soft`: shares as they are; a number: there where the share is above it. Smoothing comes after
    that: t -> t (1 - s) + s / classes. (timm's threshold comes after smoothing and undoes it.)
    logits (n, classes), targets (n,) labels or (n, classes) shares.
    """
    threshold = {"present": 0.0, "soft": None}.get(targets, targets)  # type: ignore[arg-type]

    def mean(logits: Tensor, shares: Tensor, reduction: str = "mean") -> Tensor:
        if shares.ndim == 1:
            shares = functional.one_hot(shares, logits.shape[1])
        wanted = shares if threshold is None else shares > threshold
        wanted = wanted.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        wanted = wanted * (1 - label_smoothing) + label_smoothing / logits.shape[1]
        return functional.binary_cross_entropy_with_logits(logits, wanted, reduction=reduction)

    def each(logits: Tensor, shares: Tensor) -> Tensor:
        return mean(logits, shares, "none").mean(1)

    return Loss(mean, each, 1)


def detector(_batch_size: int) -> Loss:
    """The sum of the losses that a detector computes itself: Faster R-CNN's four (Ren 2015)."""
    return Loss(lambda losses, _targets: torch.stack(list(losses.values())).sum(), None, 1)


def pixel_cross_entropy(_batch_size: int, *, auxiliary: NotNegative) -> Loss:
    """Cross-entropy over the pixels that are not ignored, and `auxiliary` times that of `aux`.

    logits by head (n, classes, height, width), masks (n, height, width).
    """

    def mean(logits: Mapping[str, Tensor], masks: Tensor) -> Tensor:
        out, aux = (
            functional.cross_entropy(logits[head], masks, ignore_index=IGNORED)
            for head in ("out", "aux")
        )
        return out + auxiliary * aux

    return Loss(mean, None, 1)


LOSSES = {
    "cross-entropy": cross_entropy,
    "binary-cross-entropy": binary_cross_entropy,
    "detector": detector,
    "pixel-cross-entropy": pixel_cross_entropy,
}
