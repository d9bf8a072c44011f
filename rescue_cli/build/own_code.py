"""Tries the user's own code on a few numbers, so that its mistakes come before a run starts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from rescue_cli.build.feeds import train_size
from rescue_cli.build.losses import build_loss
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import Item, Recipe
from rescue_cli.recipe.own import split_name
from rescue_cli.sections.data import channels_of, facts_of

CLASSES = 10  # where only the files say how many there are


def try_own_code(recipe: Recipe) -> None:
    """Calls the user's losses, augmentations and optimizers once, on the CPU, in float32.

    Networks and schedules are built by the check itself. Raises `UsageError`.
    """
    classes = facts_of(recipe.data.name, recipe.data).classes or CLASSES
    with torch.random.fork_rng(devices=[]):
        if _is_own(recipe.loss):
            _try(recipe.loss, partial(_try_loss, recipe, classes))
        for operation in filter(_is_own, recipe.augment):
            _try(operation, partial(_try_augmentation, recipe, operation))
        for item in filter(_is_own, recipe.optim):
            _try(item, partial(_try_optimizer, item))


def _is_own(item: Item) -> bool:
    return split_name(item.name) is not None


def _try(item: Item, call: Callable[[], object]) -> None:
    try:
        call()
    except RescueError:
        raise
    except Exception as error:  # whatever the code raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        where = f"{item.section} ({item.name})"
        raise UsageError(f"{where}: fails when it is tried: {reason}") from error


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
