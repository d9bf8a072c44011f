"""Tries networks and the user's own code on a few numbers, so that mistakes come before a run."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from rescue_cli.build.feeds import train_size
from rescue_cli.build.losses import build_loss
from rescue_cli.build.networks import create_network
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import Item, Recipe
from rescue_cli.recipe.own import describe_error, split_name
from rescue_cli.sections.data import channels_of, facts_of
from rescue_cli.sections.model import MODELS

CLASSES = 10  # where only the files say how many there are


def try_own_code(recipe: Recipe) -> None:
    """Calls the user's losses, augmentations and optimizers once, on the CPU, in float32.

    Schedules are built by the check itself. Raises `UsageError`.
    """
    classes = facts_of(recipe.data.name, recipe.data).classes or CLASSES
    with torch.random.fork_rng(devices=[]):
        if _is_own(recipe.loss):
            _try(recipe.loss, partial(_try_loss, recipe, classes))
        for operation in filter(_is_own, recipe.augment):
            _try(operation, partial(_try_augmentation, recipe, operation))
        for item in filter(_is_own, recipe.optim):
            _try(item, partial(_try_optimizer, item))


def try_network(recipe: Recipe, network: nn.Module, classes: int) -> None:
    """Calls a network of the user's own, or of timm's, on two images of each size that it gets.

    `network` is on the meta device, where shapes are computed alone; what needs the numbers, and so
    fails there, is tried on the CPU. Raises `UsageError` where it fails, or returns no logits.
    """
    if recipe.is_annotated or recipe.model.name in MODELS:
        return
    cure = "Use another size or model."
    where, channels = f"model ({recipe.model.name})", channels_of(recipe.data.name, recipe.data)
    if _is_own(recipe.model):
        cure = f"Make it take this shape (its parameter `channels` is {channels} here)."
    for size in dict.fromkeys([train_size(recipe), *recipe.eval.sizes]):
        shape = (2, channels, size, size)
        try:
            returned = _forward(recipe, network, shape, classes)
        except RescueError:
            raise
        except Exception as error:  # whatever the code raises
            key = "data.train_size" if size == train_size(recipe) else "eval.sizes"
            raise UsageError(
                f"{where}: fails on images of the shape {shape}, by data.name={recipe.data.name} "
                f"and {key}={size}: {describe_error(error)}. {cure}"
            ) from error
        if _is_own(recipe.model) and returned != (2, classes):
            raise UsageError(
                f"{where}: returns {returned or 'no tensor'} for images of the shape {shape}, and "
                f"must return logits of the shape {(2, classes)}: one for each of `classes`."
            )


def _forward(
    recipe: Recipe, network: nn.Module, shape: tuple[int, ...], classes: int
) -> tuple[int, ...] | None:
    """The shape of what the network returns; None for what is no tensor."""

    def call(each: nn.Module, images: torch.Tensor) -> tuple[int, ...] | None:
        with torch.no_grad():
            returned = each.train(_is_own(recipe.model))(images)
        return tuple(returned.shape) if isinstance(returned, torch.Tensor) else None

    try:
        with torch.device("meta"):
            return call(network, torch.empty(shape))
    except Exception:  # of the shape, or of what the meta device lacks
        with torch.random.fork_rng(devices=[]):
            return call(create_network(recipe, classes), torch.randn(shape))


def _is_own(item: Item) -> bool:
    return split_name(item.name) is not None


def _try(item: Item, call: Callable[[], object]) -> None:
    try:
        call()
    except RescueError:
        raise
    except Exception as error:  # whatever the code raises
        where = f"{item.section} ({item.name})"
        raise UsageError(f"{where}: fails when it is tried: {describe_error(error)}") from error


def _try_loss(recipe: Recipe, classes: int) -> None:
    """With labels, and with probabilities where the recipe mixes images."""
    logits = torch.randn(2, classes, requires_grad=True)
    targets = [torch.arange(2) % classes]
    if recipe.mix.name != "none":
        targets.append(torch.full((2, classes), 1 / classes))
    for each in targets:
        build_loss(recipe).mean(logits, each).backward()  # type: ignore[no-untyped-call]


def _try_augmentation(recipe: Recipe, item: Item) -> None:
    operation = item()
    if operation.columns == 0 and operation.stage == "pixels":
        size, channels = train_size(recipe), channels_of(recipe.data.name, recipe.data)
        operation.apply(torch.zeros(2, channels, size, size, dtype=torch.uint8))


def _try_optimizer(item: Item) -> None:
    layer: Any = nn.Linear(1, 1)
    group = {**item.arguments, "params": list(layer.parameters())}
    optimizer = item.function([group], **item.arguments)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
