"""A recipe's network, the precision it computes in, and the teacher that it may learn from."""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from rescue_cli.build.weights import find_weights, known_classes
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import Recipe, from_tree
from rescue_cli.recipe.changes import is_timm
from rescue_cli.sections.data import Dataset, channels_of, normalisation, relabel
from rescue_cli.sections.data.listing import normalise_name
from rescue_cli.sections.model import Backbone, init_weights, load_weights
from rescue_cli.sections.model.weights import read_metadata as weights_metadata
from rescue_cli.sections.teacher import Renormalised

Autocast = Callable[[], AbstractContextManager[None]]
MIXED = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of weights and images; mixed precision keeps both in float32."""
    return torch.float64 if precision == "float64" else torch.float32


def autocast(precision: str, device: torch.device) -> Autocast:
    """Mixed precision in float16 and bfloat16; in float32 and float64 nothing is cast."""
    dtype = MIXED.get(precision)
    return lambda: torch.autocast(
        device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
    )


def create_network(recipe: Recipe, classes: int) -> nn.Module:
    """The recipe's network with random weights, on torch's default device."""
    network: nn.Module = recipe.model(classes, channels_of(recipe.data.name, recipe.data))
    if recipe.model.init is not None:
        init_weights(network, recipe.model.init)
    return network


def proxy_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with keys of its `model` changed, and nothing selected: what the proxy follows."""
    model = {**recipe.tree["model"], **changes}
    return from_tree({**recipe.tree, "model": model, "selection": {"name": "none"}})


def build_network(
    recipe: Recipe,
    classes: int,
    device: torch.device,
    *,
    whole: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """The recipe's network on the device, in its dtype and memory format, its weights loaded.

    `note` receives a line on how they were read. `whole` demands that the weights fit to the last
    tensor; else a head of another size is new, and a detector's weights, or an FCN's, are those of
    its backbone.
    """
    torch.manual_seed(recipe.train.seed)
    network = create_network(recipe, classes)
    if line := _load(recipe, network, whole=whole):
        note(line)
    network = network.to(device=device, dtype=dtype_of(recipe.train.precision))
    if recipe.train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    return network


def _load(recipe: Recipe, network: nn.Module, *, whole: bool) -> str | None:
    """Loads the recipe's weights, if it names any; returns a note on how they were read, or None.

    For `whole` see `build_network`.
    """
    if not (weights := recipe.model.weights):
        return None
    backbone = next((m for m in network.modules() if isinstance(m, Backbone)), None)
    if backbone is not None and not whole:
        return backbone.load(weights, recipe.model.arguments["backbone"])
    new_head = recipe.model.new_head and not whole
    return load_weights(network, weights, recipe.model.name, head=whole, new_head=new_head)


def check_weights(recipe: Recipe, network: nn.Module) -> None:
    """Raises `UsageError` where a weights file does not fit the network, on the meta device.

    A file that is missing or cannot be read is reported when it is loaded.
    """
    if _weights_file(recipe) is None:
        return
    with contextlib.suppress(DataError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied to the meta device
        _load(recipe, network, whole=False)


def accepts_size(recipe: Recipe, size: int) -> bool:
    """Whether the network takes images of that size, as one with position embeddings may not."""
    with torch.device("meta"):
        network = create_network(recipe, 2).eval()
        try:
            network(torch.empty(1, channels_of(recipe.data.name, recipe.data), size, size))
        except Exception:  # what an architecture raises has no common base
            return False
    return True


def has_layer_order(recipe: Recipe) -> bool:
    """Whether `optim.layer_decay` can tell the network's layers apart."""
    with torch.device("meta"):
        return hasattr(create_network(recipe, 2), "group_matcher")


def weights_classes(recipe: Recipe) -> tuple[str, ...]:
    """The class names stored with the recipe's weights; empty without any."""
    weights = _weights_file(recipe)
    return () if weights is None else _class_names(weights_metadata(weights))


def match_labels(recipe: Recipe, data: Dataset) -> tuple[Dataset, str | None]:
    """The data with labels as the recipe's weights number the classes, and a note on it.

    The user's own classes may have other names in the same order. Raises `UsageError` where
    there are more or fewer, `DataError` where names that both have are at other positions.
    """
    if (weights := _weights_file(recipe)) is None:
        return data, None
    metadata = weights_metadata(weights)
    if (difference := _compare_classes(weights, metadata, data.classes)) is None:
        return data, None
    known = _class_names(metadata)
    if len(known) != len(data.classes):
        raise UsageError(f"data.name: {difference} To train it on these: rescue transfer.")
    if sorted(known) == sorted(data.classes):
        return relabel(data, known), f"{difference} Classes are matched by name."
    elsewhere = (c != k and c in known for c, k in zip(data.classes, known, strict=True))
    if moved := [*itertools.compress(data.classes, elsewhere)]:
        raise DataError(
            f"data.name: {difference} Matching by position would be wrong: {moved[0]!r} is at "
            "another position. Give the classes the names in the weights."
        )
    return data, f"warning: {difference} Classes are matched by position."


def warn_of_old_head(recipe: Recipe, classes: tuple[str, ...]) -> str | None:
    """A warning where training begins with a head that was trained on other classes."""
    weights = _weights_file(recipe)
    if weights is None or recipe.model.new_head or recipe.is_annotated:
        return None
    metadata = weights_metadata(weights)
    difference = _compare_classes(weights, metadata, classes)
    if difference is None or len(_class_names(metadata)) != len(classes):
        return None
    return (
        f"warning: {difference} The head keeps its weights; model.new_head=true starts a new one."
    )


def _weights_file(recipe: Recipe) -> str | None:
    """The run or file of the recipe's weights; None where they are timm's, or there are none."""
    weights = recipe.model.weights
    return None if weights is None or is_timm(weights) else weights


def _class_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The classes that the weights name, in the composed normal form; none where they name none."""
    return tuple(normalise_name(name) for name in known_classes(metadata) or ())


def _compare_classes(
    weights: str, metadata: Mapping[str, str], classes: tuple[str, ...]
) -> str | None:
    """How the weights' classes differ from these; None where they are the same or not named."""
    known = _class_names(metadata) or classes
    if known == classes:
        return None
    old, new = next((a, b) for a, b in itertools.zip_longest(known, classes) if a != b)
    return (
        f"{weights} has {len(known)} classes and the data has {len(classes)}; the first that "
        f"differs is {old!r} in place of {new!r}."
    )


def build_teacher(
    recipe: Recipe,
    weights: str,
    classes: tuple[str, ...],
    device: torch.device,
    note: Callable[[str], None] = lambda _: None,
) -> nn.Module:
    """The network of these weights on the device, for images as the recipe normalises them.

    `note` receives a line on how they were read. Raises `DataError`, and `UsageError` unless it
    knows the recipe's classes in the same order.
    """
    train = recipe.train
    channels_last = str(train.channels_last).lower()
    numbers = [f"train.precision={train.precision}", f"train.channels_last={channels_last}"]
    source = find_weights(weights, numbers)
    if difference := _compare_classes(weights, source.metadata, classes):
        raise UsageError(
            f"teacher.weights: {difference} Give a teacher that was trained on these classes."
        )
    network = build_network(source.recipe, len(classes), device, whole=True, note=note)
    (mean, std), (its_mean, its_std) = (
        (torch.tensor(v, device=device) for v in normalisation(r.data.name, r.data))
        for r in (recipe, source.recipe)
    )
    factor, shift = std / its_std, (mean - its_mean) / its_std
    if bool((factor == 1).all()) and bool((shift == 0).all()):
        return network
    dtype = dtype_of(train.precision)
    return Renormalised(network, *(v.to(dtype)[:, None, None] for v in (factor, shift)))
