"""A section of the recipe as its ingredient, the options checked and filled in."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn

from rescue_cli.recipe import Item, Recipe, from_tree, schema
from rescue_cli.sections.augment import AUGMENTATIONS_OF
from rescue_cli.sections.data import FACTS, Dataset, Keys, channels_of
from rescue_cli.sections.loss import LOSSES, Loss, LossContext
from rescue_cli.sections.model import MODELS, init_weights, timm_model
from rescue_cli.sections.model import common as model_keys

Autocast = Callable[[], AbstractContextManager[None]]


def filled(
    section: str, item: Item, ingredients: dict[str, Any], *others: Callable[..., Any]
) -> Callable[..., Any]:
    """The ingredient with the recipe's options filled in; what is missing are runtime objects."""
    function = schema.lookup(f"{section}.name", item.name, ingredients)
    options = schema.check(f"{section} ({item.name})", item.options, function, *others)
    mine = schema.pick(options, function)
    return lambda *runtime: function(*runtime, **mine)


def data_keys(recipe: Recipe) -> Keys:
    return Keys(**schema.check(f"data ({recipe.data.name})", recipe.data.options, Keys))


def train_size(recipe: Recipe) -> int:
    """Height and width of a training image in pixels."""
    return data_keys(recipe).train_size or FACTS[recipe.data.name].size or 224


def loss_of(recipe: Recipe, share: float = 1.0, data: Dataset | None = None) -> Loss:
    """The loss over that share of a step's images; without `data` classes have no weights."""
    make = filled("loss", recipe.loss, LOSSES)
    loss: Loss = make(
        round(recipe.train.batch_size * share), None if data is None else training_of(data)
    )
    return loss


def training_of(data: Dataset) -> LossContext:
    """What losses go by: the classes, and how many training images each has."""
    if data.train.annotated:
        return LossContext(data.classes, None)
    counts = np.bincount(data.train.labels, minlength=len(data.classes))
    return LossContext(data.classes, counts.astype(np.int64))


def network_of(recipe: Recipe, classes: int) -> nn.Module:
    item, channels = recipe.model, channels_of(recipe.data.name, data_keys(recipe))
    function = MODELS.get(item.name, timm_model)
    options = schema.check(f"model ({item.name})", item.options, function, model_keys)
    mine = schema.pick(options, function)
    if item.name in MODELS:
        network = MODELS[item.name](classes, channels, **mine)
    else:
        network = timm_model(item.name, classes, channels, **mine)
    if filler := options.get("init"):
        init_weights(network, filler)
    return network


def proxy_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with keys of its `model` changed, and nothing selected: what the proxy follows."""
    model = {**recipe.tree["model"], **changes}
    return from_tree({**recipe.tree, "model": model, "selection": {"name": "none"}})


def dtype_of(recipe: Recipe) -> torch.dtype:
    """Of weights and images, which mixed precision keeps in float32."""
    return torch.float64 if recipe.train.precision == "float64" else torch.float32


def operations_of(recipe: Recipe) -> list[Any]:
    """The recipe's augmentations, in order."""
    known = AUGMENTATIONS_OF[recipe.task.name]
    return [filled("augment", item, known)() for item in recipe.augment]
