"""A recipe's loss, and how a training set with unevenly many images per class is balanced."""

from math import ceil

import numpy as np

from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, steps_per_epoch
from rescue_cli.sections.data import Dataset, facts_of
from rescue_cli.sections.loss import Loss, LossContext, check_weight_count, resolve_class_weights


def build_loss(recipe: Recipe, share: float = 1.0, data: Dataset | None = None) -> Loss:
    """The loss over that share of a step's images; without `data` classes have no weights."""
    images = round(recipe.train.batch_size * share)
    loss: Loss = recipe.loss(images, None if data is None else count_classes(data))
    return loss


def count_classes(data: Dataset) -> LossContext:
    """The classes, and how many training images each has."""
    if data.train.annotated:
        return LossContext(data.classes, None)
    counts = np.bincount(data.train.labels, minlength=len(data.classes))
    return LossContext(data.classes, counts.astype(np.int64))


def check_balance(recipe: Recipe) -> None:
    """Raises `UsageError` where weights are of other classes, mean nothing, or count twice."""
    given = recipe.loss.arguments.get("class_weights")
    if given is None:
        return
    known = facts_of(recipe.data.name, recipe.data).classes
    if isinstance(given, list | tuple) and known is not None:
        check_weight_count(list(given), known)
    if given == "balanced" and recipe.sampling.name == "balanced":
        raise UsageError(
            "loss.class_weights: balanced, and sampling.name is balanced: rare classes would count "
            "twice. Remove one of them (~loss.class_weights, or ~sampling)."
        )
    if recipe.selection.name == "proxy":
        raise UsageError(
            "loss.class_weights: selection (proxy) keeps images by their losses and takes a plain "
            "mean of those. Remove one of them (~loss.class_weights, or ~selection)."
        )


def describe_balance(recipe: Recipe, data: Dataset) -> list[str]:
    """A line for each thing that balances the classes, with its numbers. Raises `UsageError`."""
    training = count_classes(data)
    lines = []
    weights = resolve_class_weights(recipe.loss.arguments.get("class_weights"), training)
    if weights is not None:
        present = np.flatnonzero(weights)
        low, high = (present[extreme(weights[present])] for extreme in (np.argmin, np.argmax))
        lines.append(
            f"class weights: {weights[low]:.4g} ({data.classes[low]}) to {weights[high]:.4g} "
            f"({data.classes[high]})"
        )
    if recipe.sampling.name == "balanced" and training.counts is not None:
        counts = training.counts[training.counts > 0]
        train = recipe.train
        draws = steps_per_epoch(train, len(data.train)) * train.batch_size / len(counts)
        lines.append(
            f"balanced sampling: an epoch draws {draws:,.1f} images of each of {len(counts)} "
            f"classes, which have {counts.min()} to {counts.max()}: those of the smallest are "
            f"drawn up to {ceil(draws / counts.min())} times"
        )
    return lines
