"""A recipe's network on its device, and the teacher that it may learn from."""

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

import torch
from torch import nn

from rescue_cli.data import normalisation
from rescue_cli.errors import UsageError
from rescue_cli.model import Backbone, load_weights
from rescue_cli.model.weights import TIMM
from rescue_cli.model.weights import metadata as weights_metadata
from rescue_cli.parts.ingredients import data_keys, dtype_of, network_of
from rescue_cli.parts.source import find_weights, known_classes
from rescue_cli.recipe import Recipe
from rescue_cli.teacher import Renormalised


def model(recipe: Recipe, classes: int, device: torch.device, *, whole: bool = False) -> nn.Module:
    """The recipe's network on the device, in its dtype and memory format, its weights loaded.

    `whole` demands that the weights fit to the last tensor; else a head of another size is new, and
    a detector's weights, or an FCN's, are those of its backbone.
    """
    torch.manual_seed(recipe.train.seed)
    network = network_of(recipe, classes)
    if weights := recipe.model.options.get("weights"):
        new = bool(recipe.model.options.get("new_head"))
        backbone = next((m for m in network.modules() if isinstance(m, Backbone)), None)
        if backbone is not None and not whole:
            backbone.load(weights, recipe.model.options["backbone"])
            return placed(recipe, network, device)
        load_weights(network, weights, recipe.model.name, head=whole, new_head=new and not whole)
    return placed(recipe, network, device)


def placed(recipe: Recipe, network: nn.Module, device: torch.device) -> nn.Module:
    """The network where and how the recipe's precision and memory format want it."""
    network = network.to(device=device, dtype=dtype_of(recipe))
    if recipe.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network


def weights_classes(recipe: Recipe) -> tuple[str, ...]:
    """The names of the classes that the recipe's weights carry; none where they carry none."""
    weights = str(recipe.model.options.get("weights"))
    if weights.startswith(TIMM):
        return ()
    return tuple(known_classes(weights_metadata(Path(weights))) or ())


def check_classes(recipe: Recipe, classes: tuple[str, ...]) -> str | None:
    """What is to be said where the recipe's weights know other classes than those of the data.

    Classes of one's own may have other names in the same order. Raises `UsageError` where there are
    more or fewer.
    """
    weights = str(recipe.model.options.get("weights"))
    if weights.startswith(TIMM):
        return None
    metadata = weights_metadata(Path(weights))
    said = _unlike(weights, metadata, classes)
    if said and len(known_classes(metadata) or ()) != len(classes):
        raise UsageError(f"data.name: {said} To train it on these: rescue transfer.")
    return said and f"warning: {said} Accuracies are by the classes' order."


def _unlike(weights: str, metadata: Mapping[str, str], classes: tuple[str, ...]) -> str | None:
    """In what the classes that the weights know differ from these; None where they do not say."""
    known = tuple(known_classes(metadata) or classes)
    if known == classes:
        return None
    theirs, ours = next((a, b) for a, b in zip_longest(known, classes) if a != b)
    return (
        f"{weights} knows {len(known)} classes and the data has {len(classes)}; the first that "
        f"differs is {theirs!r} in place of {ours!r}."
    )


def teacher(
    recipe: Recipe, weights: str, classes: tuple[str, ...], device: torch.device
) -> nn.Module:
    """The network of these weights on the device, for images as the recipe normalises them.

    Raises `DataError`, and `UsageError` unless it knows the recipe's classes in the same order.
    """
    train = recipe.train
    channels_last = str(train.channels_last).lower()
    numbers = [f"train.precision={train.precision}", f"train.channels_last={channels_last}"]
    source = find_weights(weights, numbers)
    if said := _unlike(weights, source.metadata, classes):
        raise UsageError(
            f"teacher.weights: {said} Give a teacher that was trained on these classes."
        )
    network = model(source.recipe, len(classes), device, whole=True)
    (mean, std), (its_mean, its_std) = (
        (torch.tensor(v, device=device) for v in normalisation(r.data.name, data_keys(r)))
        for r in (recipe, source.recipe)
    )
    factor, shift = std / its_std, (mean - its_mean) / its_std
    if bool((factor == 1).all()) and bool((shift == 0).all()):
        return network
    return Renormalised(network, *(v.to(dtype_of(recipe))[:, None, None] for v in (factor, shift)))
