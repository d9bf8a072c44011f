"""How a training set of uneven classes is balanced: what a recipe may ask for, and what it gets."""

from math import ceil

import numpy as np

from rescue_cli.build.ingredients import training_of
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe, steps_per_epoch
from rescue_cli.sections.data import FACTS, Dataset
from rescue_cli.sections.loss import check_weight_count, resolve_class_weights


def check_balance(recipe: Recipe) -> None:
    """Raises `UsageError` where weights are of other classes, mean nothing, or count twice."""
    given = recipe.loss.options.get("class_weights")
    if given is None:
        return
    known = FACTS[recipe.data.name].classes
    if isinstance(given, list | tuple) and known is not None:
        check_weight_count(list(given), known)
    if given == "balanced" and recipe.sampling.name == "balanced":
        raise UsageError(
            "loss.class_weights: balanced, and sampling.name is balanced: rare classes would count "
            "twice. Drop one of them (~loss.class_weights, or ~sampling)."
        )
    if recipe.selection.name == "proxy":
        raise UsageError(
            "loss.class_weights: selection (proxy) keeps images by their losses and takes a plain "
            "mean of those. Drop ~loss.class_weights or ~selection."
        )


def said(recipe: Recipe, data: Dataset) -> list[str]:
    """A line for each thing that balances the classes, with its numbers. Raises `UsageError`."""
    training = training_of(data)
    lines = []
    weights = resolve_class_weights(recipe.loss.options.get("class_weights"), training)
    if weights is not None:
        there = np.flatnonzero(weights)
        low, high = (there[place(weights[there])] for place in (np.argmin, np.argmax))
        lines.append(
            f"class weights: {weights[low]:.4g} ({data.classes[low]}) to {weights[high]:.4g} "
            f"({data.classes[high]})"
        )
    if recipe.sampling.name == "balanced" and training.counts is not None:
        counts = training.counts[training.counts > 0]
        train = recipe.train
        draws = steps_per_epoch(train, len(data.train)) * train.batch_size / len(counts)
        lines.append(
            f"balanced sampling: an epoch draws {draws:,.1f} of each of {len(counts)} classes, "
            f"which have {counts.min()} to {counts.max()} images: those of the smallest come up to "
            f"{ceil(draws / counts.min())} times"
        )
    return lines
