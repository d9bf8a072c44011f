"""A recipe's network on its device, and the teacher that it may learn from."""

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import nn

from rescue_cli.build.ingredients import data_keys, dtype_of, network_of
from rescue_cli.build.weights import find_weights, known_classes
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import is_timms
from rescue_cli.sections.data import Dataset, normalisation, relabel
from rescue_cli.sections.data.listing import normalise_name
from rescue_cli.sections.model import Backbone, load_weights
from rescue_cli.sections.model.weights import read_metadata as weights_metadata
from rescue_cli.sections.teacher import Renormalised


def model(
    recipe: Recipe,
    classes: int,
    device: torch.device,
    *,
    whole: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """The recipe's network on the device, in its dtype and memory format, its weights loaded.

    `note` is told how they were read. `whole` demands that the weights fit to the last tensor; else
    a head of another size is new, and a detector's weights, or an FCN's, are those of its backbone.
    """
    torch.manual_seed(recipe.train.seed)
    network = network_of(recipe, classes)
    if weights := recipe.model.options.get("weights"):
        new = bool(recipe.model.options.get("new_head"))
        backbone = next((m for m in network.modules() if isinstance(m, Backbone)), None)
        if backbone is not None and not whole:
            said = backbone.load(weights, recipe.model.options["backbone"])
        else:
            name, new = recipe.model.name, new and not whole
            said = load_weights(network, weights, name, head=whole, new_head=new)
        if said:
            note(said)
    return placed(recipe, network, device)


def placed(recipe: Recipe, network: nn.Module, device: torch.device) -> nn.Module:
    """The network where and how the recipe's precision and memory format want it."""
    network = network.to(device=device, dtype=dtype_of(recipe))
    if recipe.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network


def weights_classes(recipe: Recipe) -> tuple[str, ...]:
    """The names of the classes that the recipe's weights carry; none where they carry none."""
    weights = _file(recipe)
    return () if weights is None else _known(weights_metadata(weights))


def by_name(recipe: Recipe, data: Dataset) -> tuple[Dataset, str | None]:
    """The data with labels as the recipe's weights number the classes, and what is to be said.

    Classes of one's own may have other names in the same order. Raises `UsageError` where there are
    more or fewer, `DataError` where names that both know stand at other places.
    """
    if (weights := _file(recipe)) is None:
        return data, None
    metadata = weights_metadata(weights)
    if (said := _unlike(weights, metadata, data.classes)) is None:
        return data, None
    known = _known(metadata)
    if len(known) != len(data.classes):
        raise UsageError(f"data.name: {said} To train it on these: rescue transfer.")
    if sorted(known) == sorted(data.classes):
        return relabel(data, known), f"{said} Labels go by the names."
    at_other_places = (c != k and c in known for c, k in zip(data.classes, known, strict=True))
    if moved := [*itertools.compress(data.classes, at_other_places)]:
        raise DataError(
            f"data.name: {said} Labels by the order would be wrong: {moved[0]!r} stands at another "
            "place. Give the classes the names that the weights know."
        )
    return data, f"warning: {said} Accuracies are by the classes' order."


def head_kept(recipe: Recipe, classes: tuple[str, ...]) -> str | None:
    """What is to be said where a training begins with a head that knows other classes."""
    weights = _file(recipe)
    if weights is None or recipe.model.options.get("new_head") or recipe.is_annotated:
        return None
    metadata = weights_metadata(weights)
    said = _unlike(weights, metadata, classes)
    if said is None or len(_known(metadata)) != len(classes):
        return None
    return f"warning: {said} The head begins with what it knows; model.new_head=true begins anew."


def _file(recipe: Recipe) -> str | None:
    """The run or file of the recipe's weights; None where they are timm's, or there are none."""
    weights = recipe.model.options.get("weights")
    return None if weights is None or is_timms(weights) else str(weights)


def _known(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The classes that the weights name, in the composed normal form; none where they name none."""
    return tuple(normalise_name(name) for name in known_classes(metadata) or ())


def _unlike(weights: str, metadata: Mapping[str, str], classes: tuple[str, ...]) -> str | None:
    """In what the classes that the weights know differ from these; None where they do not say."""
    known = _known(metadata) or classes
    if known == classes:
        return None
    theirs, ours = next((a, b) for a, b in itertools.zip_longest(known, classes) if a != b)
    return (
        f"{weights} knows {len(known)} classes and the data has {len(classes)}; the first that "
        f"differs is {theirs!r} in place of {ours!r}."
    )


def teacher(
    recipe: Recipe,
    weights: str,
    classes: tuple[str, ...],
    device: torch.device,
    note: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """The network of these weights on the device, for images as the recipe normalises them.

    `note` is told how they were read. Raises `DataError`, and `UsageError` unless it knows the
    recipe's classes in the same order.
    """
    train = recipe.train
    channels_last = str(train.channels_last).lower()
    numbers = [f"train.precision={train.precision}", f"train.channels_last={channels_last}"]
    source = find_weights(weights, numbers)
    if said := _unlike(weights, source.metadata, classes):
        raise UsageError(
            f"teacher.weights: {said} Give a teacher that was trained on these classes."
        )
    network = model(source.recipe, len(classes), device, whole=True, note=note)
    (mean, std), (its_mean, its_std) = (
        (torch.tensor(v, device=device) for v in normalisation(r.data.name, data_keys(r)))
        for r in (recipe, source.recipe)
    )
    factor, shift = std / its_std, (mean - its_mean) / its_std
    if bool((factor == 1).all()) and bool((shift == 0).all()):
        return network
    return Renormalised(network, *(v.to(dtype_of(recipe))[:, None, None] for v in (factor, shift)))
