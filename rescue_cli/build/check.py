"""A recipe held against its ingredients, before a device or a data set is touched."""

import math

import torch

from rescue_cli.build.balance import check_balance
from rescue_cli.build.check_task import check_task
from rescue_cli.build.ingredients import (
    data_keys,
    filled,
    network_of,
    operations_of,
    proxy_recipe,
    train_size,
)
from rescue_cli.build.optimizers import own_schedule, schedule_of
from rescue_cli.errors import RescueError, UsageError
from rescue_cli.recipe import Item, Recipe, schema
from rescue_cli.sections.averaging import AVERAGES
from rescue_cli.sections.data import DATASETS, FACTS, channels_of
from rescue_cli.sections.loss import LOSSES
from rescue_cli.sections.mix import MIXES
from rescue_cli.sections.model import MODELS, GhostBatchNorm2d, group_count, timm_model
from rescue_cli.sections.model import common as model_keys
from rescue_cli.sections.optim import OPTIMIZERS, assign_parameters, layer_depths
from rescue_cli.sections.optim import common as optim_keys
from rescue_cli.sections.sampling import SAMPLERS
from rescue_cli.sections.schedule import ScheduleContext
from rescue_cli.sections.selection import SELECTIONS
from rescue_cli.sections.task import TASKS
from rescue_cli.sections.teacher import TEACHERS
from rescue_cli.sections.tta import TTAS

PACKAGED = "fashion-mini"
MANY = 10**6  # steps of an epoch, for keys that are looked at before the images are counted


def check(recipe: Recipe) -> None:
    """Every name, key, type and range of the recipe, and its parameter groups on the meta device.

    Raises `UsageError` before a device or a data set is touched.
    """
    check_ingredients(recipe)
    try:
        with torch.device("meta"):
            model = network_of(recipe, FACTS[recipe.data.name].classes or 10)
    except RescueError:
        raise
    except Exception as error:  # what an architecture raises has no common base
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UsageError(
            f"model ({recipe.model.name}): cannot be built ({reason}). "
            "Change its keys, or take another."
        ) from None
    assign_parameters(model, [item.options for item in recipe.optim])
    if any(item.options.get("layer_decay") is not None for item in recipe.optim):
        layer_depths(model, recipe.model.name)
    for module in model.modules():
        if isinstance(module, GhostBatchNorm2d):
            group_count(recipe.train.device_batch_size, module.size)
    if recipe.selection.name == "proxy":
        if recipe.train.micro_batches > 1:
            raise UsageError(
                f"selection (proxy): a step of {recipe.train.micro_batches} micro-batches. "
                "The proxy sees a step whole: set "
                f"train.device_batch_size={recipe.train.batch_size}."
            )
        check(proxy_recipe(recipe, recipe.selection.options["model"]))


def check_ingredients(recipe: Recipe) -> None:
    """As `check`, without building the model."""
    filled("task", recipe.task, TASKS)
    schema.lookup("data.name", recipe.data.name, DATASETS)
    _check_data(recipe)
    filled("sampling", recipe.sampling, SAMPLERS)
    check_task(recipe, FACTS[recipe.data.name].task)
    for place, operation in enumerate(operations_of(recipe)):
        if operation.stage == "file" and place:
            raise UsageError(f"augment: {recipe.augment[place].name} must come first in the list.")
    filled("mix", recipe.mix, MIXES)
    filled("selection", recipe.selection, SELECTIONS)
    filled("teacher", recipe.teacher, TEACHERS)
    _check_model(recipe.model)
    _check_frozen(recipe)
    filled("loss", recipe.loss, LOSSES)
    check_balance(recipe)
    for item in recipe.optim:
        filled("optim", item, OPTIMIZERS, optim_keys)
        _check_scaling(item, recipe.train.batch_size)
        schedule_of(
            own_schedule(item) or recipe.schedule, ScheduleContext(1.0, MANY, recipe.train.epochs)
        )
    filled("averaging", recipe.averaging, AVERAGES)
    for name in recipe.eval.ttas:
        schema.lookup("eval.tta", name, TTAS)


def _check_scaling(item: Item, batch_size: int) -> None:
    """Holds the learning rate against the rule that the recipe states for it."""
    rule, lr = item.options.get("lr_per_256"), item.options["lr"]
    if rule is None or math.isclose(wanted := rule * batch_size / 256, lr, rel_tol=1e-6):
        return
    raise UsageError(
        f"optim ({item.name}).lr: {lr:g} is not {rule:g} for 256 images times {batch_size} / 256. "
        f"Set optim.lr={wanted:g}, or drop the rule with ~optim.lr_per_256."
    )


def _check_data(recipe: Recipe) -> None:
    """The section's keys, and as many means and deviations as the images have channels."""
    keys = data_keys(recipe)
    if recipe.data.name == PACKAGED and (keys.root or keys.train_root or keys.test_root):
        raise UsageError(
            f"data.root: {PACKAGED} lies in this package and reads no folder. Drop the folder "
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
            f"data.range: {list(keys.range)} must rise: the value of black, then that of white."
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
    if recipe.model.options.get("frozen") and (recipe.augment or views > 1 or not plain):
        raise UsageError(
            f"model ({recipe.model.name}).frozen: features are computed once, of one view. Use "
            "augment=[], one size and one crop, eval.tta=none, and no teacher."
        )


def _check_model(item: Item) -> None:
    schema.check(
        f"model ({item.name})", item.options, MODELS.get(item.name, timm_model), model_keys
    )
