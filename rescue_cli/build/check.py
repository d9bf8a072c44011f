"""Checks a recipe against its ingredients, before a device or a data set is touched."""

import math

import torch

from rescue_cli.build.check_task import check_task
from rescue_cli.build.feeds import train_size
from rescue_cli.build.losses import check_balance
from rescue_cli.build.networks import create_network, proxy_recipe
from rescue_cli.build.optimizers import build_schedule, shared_max_norm
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import SECTIONS, OptimItem, Recipe, schema
from rescue_cli.sections.data import FACTS, PACKAGED, channels_of
from rescue_cli.sections.model import GhostBatchNorm2d, group_count
from rescue_cli.sections.optim import assign_parameters, layer_depths
from rescue_cli.sections.schedule import ScheduleContext
from rescue_cli.sections.tta import TTAS

MANY = 10**6  # steps of an epoch, for keys that are checked before the images are counted


def check_recipe(recipe: Recipe) -> None:
    """Every name, key, type and range of the recipe, and its parameter groups on the meta device.

    Raises `UsageError` before a device or a data set is touched.
    """
    check_ingredients(recipe)
    try:
        with torch.device("meta"):
            model = create_network(recipe, FACTS[recipe.data.name].classes or 10)
    except RescueError:
        raise
    except Exception as error:  # what an architecture raises has no common base
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"model ({recipe.model.name}): cannot be built ({reason}). "
            "Change its keys, or use another."
        ) from None
    assign_parameters(model, recipe.optim)
    if any(item.layer_decay is not None for item in recipe.optim):
        layer_depths(model, recipe.model.name)
    for module in model.modules():
        if isinstance(module, GhostBatchNorm2d):
            group_count(recipe.train.device_batch_size, module.size)
    if recipe.selection.name == "proxy":
        if recipe.train.micro_batches > 1:
            raise UsageError(
                f"selection (proxy): a step of {recipe.train.micro_batches} micro-batches. "
                "The proxy needs a step in one micro-batch: set "
                f"train.device_batch_size={recipe.train.batch_size}."
            )
        check_recipe(proxy_recipe(recipe, recipe.selection.arguments["model"]))


def check_ingredients(recipe: Recipe) -> None:
    """As `check_recipe`, without building the network."""
    recipe.task.check()
    recipe.data.check()
    # Before the other sections: of a recipe for another task their names would be unknown
    check_task(recipe, FACTS[recipe.data.name].task)
    for section in SECTIONS:
        for item in recipe.items(section):
            item.check()
    _check_data(recipe)
    for position, operation in enumerate(item() for item in recipe.augment):
        if operation.stage == "file" and position:
            name = recipe.augment[position].name
            raise UsageError(f"augment: {name} must come first in the list.")
    _check_frozen(recipe)
    check_balance(recipe)
    for item in recipe.optim:
        _check_scaling(item, recipe.train.batch_size)
        schedule = item.own_schedule or recipe.schedule
        build_schedule(schedule, ScheduleContext(1.0, MANY, recipe.train.epochs))
    shared_max_norm(recipe.optim)
    for name in recipe.eval.ttas:
        schema.lookup("eval.tta", name, TTAS)


def _check_scaling(item: OptimItem, batch_size: int) -> None:
    """Holds the learning rate against the rule that the recipe states for it."""
    rule, lr = item.lr_per_256, item.lr
    if rule is None or math.isclose(wanted := rule * batch_size / 256, lr, rel_tol=1e-6):
        return
    raise UsageError(
        f"optim ({item.name}).lr: {lr:g} is not {rule:g} for 256 images times {batch_size} / 256. "
        f"Set optim.lr={wanted:g}, or remove the rule with ~optim.lr_per_256."
    )


def _check_data(recipe: Recipe) -> None:
    """As many means and deviations as the images have channels, and what `resident` can hold."""
    keys = recipe.data
    if recipe.data.name == PACKAGED and (keys.root or keys.train_root or keys.test_root):
        raise UsageError(
            f"data.root: {PACKAGED} is part of this package and reads no folder. Remove the key "
            "(~data.root), or name what reads it: data.name=folder for class folders of your own."
        )
    channels = channels_of(recipe.data.name, keys)
    for key, values in (("mean", keys.mean), ("std", keys.std)):
        if values is not None and len(values) != channels:
            raise UsageError(
                f"data.{key}: {len(values)} values for {channels} channels. Give one for each."
            )
    if keys.std is not None and min(keys.std) <= 0:
        raise UsageError(f"data.std: {keys.std} must be above 0.")
    if keys.range is not None and keys.range[0] >= keys.range[1]:
        raise UsageError(
            f"data.range: {list(keys.range)} must be in increasing order: black, white."
        )
    size = train_size(recipe)
    needed = max(math.floor(s / c) for s in recipe.eval.sizes for c in recipe.eval.crops)
    if keys.resident and FACTS[recipe.data.name].size is None and needed > size:
        raise UsageError(
            f"data.resident: test images are kept at data.train_size, {size} px, and "
            f"eval.sizes and eval.crops need {needed} px. Set data.train_size={needed}, "
            "data.resident=false, or smaller views."
        )
    if keys.resident and FACTS[recipe.data.name].size is None and recipe.eval.resize == "squash":
        raise UsageError(
            "eval.resize: squash needs whole files, and data.resident keeps their centres. "
            "Set data.resident=false."
        )


def _check_frozen(recipe: Recipe) -> None:
    """A frozen network sees each image once and alone."""
    views = len(recipe.eval.sizes) * len(recipe.eval.crops)
    plain = recipe.eval.ttas == ("none",) and recipe.teacher.name == "none"
    if recipe.model.frozen and (recipe.augment or views > 1 or not plain):
        raise UsageError(
            f"model ({recipe.model.name}).frozen: features are computed once, of one view. Use "
            "augment=[], one size and one crop, eval.tta=none, and no teacher."
        )
