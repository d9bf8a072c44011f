"""The section `loss`: what a step minimises.

Every loss is a mean over the images of a micro-batch; `reduction: sum` is that mean times the
number of images in a step, so that a recipe whose paper sums its loss keeps the paper's learning
rate.

`class_weights` makes images count by their class, as in torch's CrossEntropyLoss: where images
have labels the mean is by weight, the weighted losses' sum over the weights' sum; where they have
shares of classes (mixed images), or with `reduction: sum`, the weighted losses' sum over the number
of images.
"""

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
from rescue_cli.recipe.schema import Fraction, NotNegative, Positive
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import IGNORED

ClassWeights = Literal["balanced"] | list[Positive] | dict[str, Positive]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Loss:
    """`mean(logits, targets)` over a micro-batch, and what its gradient is multiplied with.

    `each`: the losses of the micro-batch's images, (n,); a scene has none of its own. `weights`: of
    the classes, where the mean is by weight, so that micro-batches do not count equally.
    """

    mean: Callable[[Any, Any], Tensor]
    each: Callable[[Tensor, Tensor], Tensor] | None
    factor: float
    weights: Doubles | None = None


@dataclass(frozen=True)
class Training:
    """What a loss may need to know of the training set; `counts`: each class's images, if any."""

    classes: tuple[str, ...]
    counts: Indices | None


def weights_of(given: ClassWeights | None, training: Training | None) -> Doubles | None:
    """A weight for each class, (classes,); None where none are asked for, or nothing is trained.

    A list has one for each class, in order; in a mapping by name those that are not named weigh 1.
    `balanced` is n / (k n_c) for n images of k classes, n_c of them of the class (as scikit-learn's
    class_weight); a class without images weighs nothing. Raises `UsageError`.
    """
    if given is None or training is None:
        return None
    classes = training.classes
    if given == "balanced":
        return balanced_weights(training)
    if isinstance(given, Mapping):
        # Classes are in the composed form (NFC), whatever wrote the recipe
        by_name = {unicodedata.normalize("NFC", name).strip(): each for name, each in given.items()}
        for name in by_name:
            if name not in classes:
                hint = did_you_mean(name, classes)[:300]
                raise UsageError(f"loss.class_weights: '{name}' is not one of the classes. {hint}")
        return np.array([by_name.get(name, 1.0) for name in classes])
    check_length(given, len(classes))
    return np.array(given, dtype=np.float64)


def check_length(given: list[float], classes: int) -> None:
    """Raises `UsageError` unless there is a weight for each class."""
    if len(given) != classes:
        raise UsageError(
            f"loss.class_weights: {len(given)} weights for {classes} classes. Give one for each in "
            "the classes' order, or a mapping by name, or balanced."
        )


def balanced_weights(training: Training) -> Doubles:
    """n / (k n_c), so that each class weighs as much as any other in the whole training set."""
    if training.counts is None:
        raise UsageError(
            "loss.class_weights: balanced counts images by their label, and here each pixel has "
            "one. Give a list, or a mapping by class name."
        )
    counts = training.counts.astype(np.float64)
    whole = counts.sum() / np.count_nonzero(counts)
    weights: Doubles = np.divide(whole, counts, out=np.zeros_like(counts), where=counts > 0)
    return weights


class _Weights:
    """The weights of the classes as the device of the logits has them."""

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
    training: Training | None = None,
    *,
    label_smoothing: Fraction,
    reduction: Literal["mean", "sum"],
    smoothing_over: Literal["all", "others"] = "all",
    class_weights: ClassWeights | None = None,
) -> Loss:
    """Softmax cross-entropy; smoothing spreads its share evenly over all classes (Szegedy 2016).

    `smoothing_over: others`: over the classes that are not the label, eps / (K - 1) each and
    1 - eps for the label (Bag of Tricks, equation 4). `class_weights` weigh each class's term, and
    those of the smoothing too, as torch does.
    logits (n, classes), targets (n,) labels or (n, classes) probabilities.
    """
    values = weights_of(class_weights, training)
    weights = None if values is None else _Weights(values)
    summed = reduction == "sum"

    def mean(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        classes = logits.shape[1]
        # the label's own share of what is spread over all K is what (K - 1) others would lack
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
    training: Training | None = None,
    *,
    targets: Literal["present", "soft"] | Fraction,
    label_smoothing: Fraction,
    class_weights: ClassWeights | None = None,
) -> Loss:
    """Each class a question of its own, mean over images and classes (ResNet strikes back, 3.1).

    `present`: every class with a share in a mixed image is wholly there, the paper's reading;
    `soft`: shares as they are; a number: there where the share is above it. Smoothing comes after
    that: t -> t (1 - s) + s / classes. (timm's threshold comes after smoothing and undoes it.)
    `class_weights` weigh all questions of an image by its class, of a mixed one by its shares (Cui
    et al. 2019).
    logits (n, classes), targets (n,) labels or (n, classes) shares.
    """
    threshold = {"present": 0.0, "soft": None}.get(targets, targets)  # type: ignore[arg-type]
    values = weights_of(class_weights, training)

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
    weights = _Weights(values)

    def weighted(logits: Tensor, shares: Tensor) -> Tensor:
        by_class = weights.on(logits)
        labels = shares.ndim == 1
        of_images = by_class[shares] if labels else (shares.to(by_class) * by_class).sum(1)
        losses = each(logits, shares) * of_images
        return losses.sum() / of_images.sum() if labels else losses.mean()

    return Loss(weighted, each, 1, values)


def detector(_batch_size: int, _training: Training | None = None) -> Loss:
    """The sum of the losses that a detector computes itself: Faster R-CNN's four (Ren 2015)."""
    return Loss(lambda losses, _targets: torch.stack(list(losses.values())).sum(), None, 1)


def pixel_cross_entropy(
    _batch_size: int,
    training: Training | None = None,
    *,
    auxiliary: NotNegative,
    class_weights: ClassWeights | None = None,
) -> Loss:
    """Cross-entropy over the pixels that are not ignored, and `auxiliary` times that of `aux`.

    `class_weights` weigh pixels by their class; micro-batches count equally, however many pixels of
    which classes they have. logits by head (n, classes, height, width), masks (n, height, width).
    """

    values = weights_of(class_weights, training)
    weights = None if values is None else _Weights(values)

    def mean(logits: Mapping[str, Tensor], masks: Tensor) -> Tensor:
        weight = None if weights is None else weights.on(logits["out"])
        out, aux = (
            functional.cross_entropy(logits[head], masks, weight, ignore_index=IGNORED)
            for head in ("out", "aux")
        )
        return out + auxiliary * aux

    return Loss(mean, None, 1)


def of_micro_batches(loss: Loss) -> Callable[[Any, Batch], Tensor]:
    """The loss of logits and the micro-batch they are of."""
    return lambda logits, batch: loss.mean(logits, batch.targets)


def by_weight(
    loss: Loss, labels: Indices, sampler: Callable[[int, int], Indices], micro_batches: int
) -> Callable[[Any, Batch], Tensor]:
    """As `of_micro_batches`, such that the mean over a step's micro-batches is the mean of the
    whole step.

    Where the mean is by weight a micro-batch counts by the sum of its images' weights, in all
    processes alike: `labels` of the training images and the `sampler` say which those are. There a
    corrupt image counts by its own class, whichever takes its place.
    """
    if loss.weights is None or micro_batches == 1:
        return of_micro_batches(loss)
    of_images = loss.weights[labels]

    @lru_cache(maxsize=1)
    def counting(step: int) -> Doubles:
        sums = np.array(
            [of_images[sampler(step, micro_batch)].sum() for micro_batch in range(micro_batches)]
        )
        shares: Doubles = sums / sums.mean()
        return shares

    def criterion(logits: Tensor, batch: Batch) -> Tensor:
        mean = loss.mean(logits, batch.targets)
        if batch.targets.ndim > 1:  # mixed, and a mean over images
            return mean
        return mean * float(counting(batch.step)[batch.micro_batch])

    return criterion


LOSSES = {
    "cross-entropy": cross_entropy,
    "binary-cross-entropy": binary_cross_entropy,
    "detector": detector,
    "pixel-cross-entropy": pixel_cross_entropy,
}
