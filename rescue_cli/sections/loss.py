"""The section `loss`: what a step minimises.

Every loss is a mean over the images of a micro-batch; `reduction: sum` is that mean times the
number of images in a step, so that a recipe whose paper sums its loss keeps the paper's learning
rate.

`class_weights` weight images by class, as in torch's CrossEntropyLoss: for labels the loss is the
weighted mean (the sum of weighted losses over the sum of weights); for class probabilities (mixed
images) or with `reduction: sum` it is the sum of weighted losses over the number of images.
"""

import inspect
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rescue_cli.batch import Batch
from rescue_cli.errors import UsageError, did_you_mean
from rescue_cli.recipe.own import Own, require
from rescue_cli.recipe.schema import Fraction, NotNegative, Positive
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import IGNORED

ClassWeights = Literal["balanced"] | list[Positive] | dict[str, Positive]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Loss:
    """`mean(logits, targets)` over a micro-batch, and the factor for its gradient.

    `each`: the losses of single images, (n,); None for detection and segmentation. `weights`: of
    the classes, (classes,), where the mean is weighted, so that micro-batches do not count equally.
    """

    mean: Callable[[Any, Any], Tensor]
    each: Callable[[Tensor, Tensor], Tensor] | None
    factor: float
    weights: Doubles | None = None


@dataclass(frozen=True)
class LossContext:
    """What a loss depends on: class names, and `counts` of images per class (classes,), if any."""

    classes: tuple[str, ...]
    counts: Indices | None


def resolve_class_weights(
    given: ClassWeights | None, context: LossContext | None
) -> Doubles | None:
    """A weight for each class, (classes,); None where none are given, or without training.

    A list has one per class, in order; a mapping by name gives 1 to the others. `balanced` is
    n / (k n_c) for n images of k classes, n_c of them of the class (scikit-learn's class_weight); a
    class without images has weight 0. Raises `UsageError`.
    """
    if given is None or context is None:
        return None
    classes = context.classes
    if given == "balanced":
        return balanced_weights(context)
    if isinstance(given, Mapping):
        # Class names are in the composed form (NFC), whichever editor wrote the recipe
        by_name = {unicodedata.normalize("NFC", name).strip(): each for name, each in given.items()}
        for name in by_name:
            if name not in classes:
                hint = did_you_mean(name, classes)[:300]
                raise UsageError(f"loss.class_weights: '{name}' is not one of the classes. {hint}")
        return np.array([by_name.get(name, 1.0) for name in classes])
    check_weight_count(given, len(classes))
    return np.array(given, dtype=np.float64)


def check_weight_count(given: list[float], classes: int) -> None:
    """Raises `UsageError` unless there is a weight for each class."""
    if len(given) != classes:
        raise UsageError(
            f"loss.class_weights: {len(given)} weights for {classes} classes. Give one per class, "
            "in order, or a mapping by name, or balanced."
        )


def balanced_weights(context: LossContext) -> Doubles:
    """n / (k n_c): all classes have the same total weight in the training set; `UsageError`."""
    if context.counts is None:
        raise UsageError(
            "loss.class_weights: balanced needs one label per image, but here each pixel has "
            "one. Give a list, or a mapping by class name."
        )
    counts = context.counts.astype(np.float64)
    whole = counts.sum() / np.count_nonzero(counts)
    weights: Doubles = np.divide(whole, counts, out=np.zeros_like(counts), where=counts > 0)
    return weights


class _DeviceWeights:
    """The classes' weights, cached by device and dtype."""

    def __init__(self, values: Doubles) -> None:
        self.values = values
        self.known: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, logits: Tensor) -> Tensor:
        """(classes,) on the logits' device, in single precision at least."""
        where = logits.device, torch.promote_types(logits.dtype, torch.float32)
        if where not in self.known:
            self.known[where] = torch.from_numpy(self.values).to(*where)
        return self.known[where]


def cross_entropy(
    batch_size: int,
    context: LossContext | None = None,
    *,
    label_smoothing: Fraction,
    reduction: Literal["mean", "sum"],
    smoothing_over: Literal["all", "others"] = "all",
    class_weights: ClassWeights | None = None,
) -> Loss:
    """Softmax cross-entropy with label smoothing, spread over all classes (Szegedy et al. 2016).

    `smoothing_over: others` spreads it over the other classes, eps / (K - 1) each and 1 - eps for
    the label (Bag of Tricks, equation 4). `class_weights` weight each class's term, also those of
    the smoothing, as torch does.
    logits (n, classes), targets (n,) labels or (n, classes) probabilities.
    """
    values = resolve_class_weights(class_weights, context)
    weights = None if values is None else _DeviceWeights(values)
    summed = reduction == "sum"

    def mean(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        classes = logits.shape[1]
        # torch smooths over all K classes: K / (K - 1) as much gives the others eps / (K - 1) each
        whole = classes / (classes - 1) if smoothing_over == "others" else 1.0
        return functional.cross_entropy(
            logits,
            targets,
            weight=None if weights is None else weights.on(logits),
            label_smoothing=whole * label_smoothing,
            reduction=reduction,
        )

    def over_images(logits: Tensor, targets: Tensor) -> Tensor:
        return mean(logits, targets, "sum") / len(logits)

    each = partial(mean, reduction="none")
    if weights is not None and summed:
        return Loss(over_images, each, batch_size)
    return Loss(mean, each, batch_size if summed else 1, values)


def binary_cross_entropy(
    _batch_size: int,
    context: LossContext | None = None,
    *,
    targets: Literal["present", "soft"] | Fraction,
    label_smoothing: Fraction,
    class_weights: ClassWeights | None = None,
) -> Loss:
    """Binary cross-entropy per class, mean over images and classes (ResNet strikes back, 3.1).

    Targets of mixed images: `present` sets each class with a positive share to 1, as in the paper;
    `soft` keeps shares; a number sets classes with a share above it to 1. Smoothing follows:
    t -> t (1 - s) + s / classes. (timm applies its threshold after smoothing, which undoes it.)
    `class_weights` weight all terms of an image by its class, or by its shares (Cui et al. 2019).
    logits (n, classes), targets (n,) labels or (n, classes) shares.
    """
    threshold = {"present": 0.0, "soft": None}.get(targets, targets)  # type: ignore[arg-type]
    values = resolve_class_weights(class_weights, context)

    def mean(logits: Tensor, shares: Tensor, reduction: str = "mean") -> Tensor:
        if shares.ndim == 1:
            shares = functional.one_hot(shares, logits.shape[1])
        wanted = shares if threshold is None else shares > threshold
        wanted = wanted.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
        wanted = wanted * (1 - label_smoothing) + label_smoothing / logits.shape[1]
        return functional.binary_cross_entropy_with_logits(logits, wanted, reduction=reduction)

    def each(logits: Tensor, shares: Tensor) -> Tensor:
        return mean(logits, shares, "none").mean(1)

    if values is None:
        return Loss(mean, each, 1)
    weights = _DeviceWeights(values)

    def weighted_mean(logits: Tensor, shares: Tensor) -> Tensor:
        by_class = weights.on(logits)
        labels = shares.ndim == 1
        of_images = by_class[shares] if labels else (shares.to(by_class) * by_class).sum(1)
        losses = each(logits, shares) * of_images
        return losses.sum() / of_images.sum() if labels else losses.mean()

    return Loss(weighted_mean, each, 1, values)


def detector(_batch_size: int, _training: LossContext | None = None) -> Loss:
    """The sum of the losses that a detector returns: four for Faster R-CNN (Ren et al. 2015)."""
    return Loss(lambda losses, _targets: torch.stack(list(losses.values())).sum(), None, 1)


def pixel_cross_entropy(
    _batch_size: int,
    context: LossContext | None = None,
    *,
    auxiliary: NotNegative,
    class_weights: ClassWeights | None = None,
) -> Loss:
    """Cross-entropy over the pixels that are not ignored, plus `auxiliary` times that of `aux`.

    `class_weights` weight pixels by class; micro-batches count equally, whatever pixels they have.
    logits by head (n, classes, height, width), masks (n, height, width).
    """

    values = resolve_class_weights(class_weights, context)
    weights = None if values is None else _DeviceWeights(values)

    def mean(logits: Mapping[str, Tensor], masks: Tensor) -> Tensor:
        weight = None if weights is None else weights.on(logits["out"])
        out, aux = (_mean_over_pixels(logits[head], masks, weight) for head in ("out", "aux"))
        return out + auxiliary * aux

    return Loss(mean, None, 1)


def _mean_over_pixels(logits: Tensor, masks: Tensor, weight: Tensor | None) -> Tensor:
    if torch.are_deterministic_algorithms_enabled():
        # CUDA's loss over maps has no deterministic kernel; that over a list of pixels has one
        logits, masks = logits.movedim(1, -1).flatten(0, -2), masks.flatten()
    return functional.cross_entropy(logits, masks, weight, ignore_index=IGNORED)


def own_loss(own: Own) -> Callable[..., Loss]:
    """A loss of the user's: a function of logits and targets, or a class whose instances are.

    It returns the losses of single images, (n,), of logits (n, classes) and targets, which are
    labels (n,), or probabilities (n, classes) of mixed images.
    """

    def build(_batch_size: int, _context: LossContext | None = None, **options: Any) -> Loss:
        losses = own.bind(options)

        def each(logits: Tensor, targets: Tensor) -> Tensor:
            values: Tensor = losses(logits, targets)
            if getattr(values, "shape", None) != logits.shape[:1]:
                shape = tuple(getattr(values, "shape", ()))
                raise own.error(
                    f"returns losses of the shape {shape} for logits of the shape "
                    f"{tuple(logits.shape)}. Return one loss for each image."
                )
            return values

        return Loss(lambda logits, targets: each(logits, targets).mean(), each, 1)

    if inspect.isclass(own.target):
        return own.with_keys(build)
    require(own, ["logits", "targets"], "loss")
    return own.with_keys(build, "logits", "targets")


def micro_batch_loss(loss: Loss) -> Callable[[Any, Batch], Tensor]:
    """A criterion (logits, micro-batch) -> loss."""
    return lambda logits, batch: loss.mean(logits, batch.targets)


def weighted_micro_batch_loss(
    loss: Loss, labels: Indices, sampler: Callable[[int, int], Indices], micro_batches: int
) -> Callable[[Any, Batch], Tensor]:
    """As `micro_batch_loss`, such that the mean over micro-batches is the mean of the whole step.

    With a weighted mean a micro-batch counts by the sum of its images' weights; every process
    computes these sums from the training images' `labels` and the `sampler`. A replaced corrupt
    image counts with its own class.
    """
    if loss.weights is None or micro_batches == 1:
        return micro_batch_loss(loss)
    of_images = loss.weights[labels]

    @lru_cache(maxsize=1)
    def step_shares(step: int) -> Doubles:
        sums = np.array(
            [of_images[sampler(step, micro_batch)].sum() for micro_batch in range(micro_batches)]
        )
        shares: Doubles = sums / sums.mean()
        return shares

    def criterion(logits: Tensor, batch: Batch) -> Tensor:
        mean = loss.mean(logits, batch.targets)
        if batch.targets.ndim > 1:  # mixed, and a mean over images
            return mean
        return mean * float(step_shares(batch.step)[batch.micro_batch])

    return criterion


LOSSES = {
    "cross-entropy": cross_entropy,
    "binary-cross-entropy": binary_cross_entropy,
    "detector": detector,
    "pixel-cross-entropy": pixel_cross_entropy,
}
