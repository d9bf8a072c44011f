"""Optimizers, their parameter groups and the schedules of their rates."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from rescue_cli.build.ingredients import filled
from rescue_cli.engine.optimizers import Optimizers, RatedGroup
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Item, Recipe, schema, total_steps
from rescue_cli.sections.optim import OPTIMIZERS, assign_parameters, layer_depths
from rescue_cli.sections.optim import common as optim_keys
from rescue_cli.sections.schedule import SCHEDULES, Schedule, ScheduleContext, freeze_after
from rescue_cli.sections.schedule import common as schedule_keys


def schedule_of(item: Item, span: ScheduleContext) -> Schedule:
    """The item's rates, read from its first step and until its last epoch; checks its keys."""
    rates: Schedule = filled("schedule", item, SCHEDULES, schedule_keys)(span)
    first, until = item.options.get("first_step", 0), item.options.get("until")
    shifted: Schedule = (lambda step: rates(step + first)) if first else rates
    return shifted if until is None else freeze_after(shifted, until, span.steps_per_epoch)


def own_schedule(item: Item) -> Item | None:
    """The schedule that an optimizer item carries itself."""
    own = item.options.get("schedule")
    if own is None:
        return None
    if not isinstance(own, dict) or not isinstance(own.get("name"), str):
        raise UsageError(f"optim ({item.name}).schedule: must be a mapping with a name.")
    return Item(own["name"], {k: v for k, v in own.items() if k != "name"})


def rates_of(recipe: Recipe, per_epoch: int) -> list[tuple[Schedule, float]]:
    """Each optimizer item's schedule and its ratio to it.

    The schedule's `lr` is the first item's; other items keep their ratio to that, unless they
    carry a schedule of their own.
    """
    lrs = [float(item.options["lr"]) for item in recipe.optim]
    found = []
    for item, lr in zip(recipe.optim, lrs, strict=True):
        own = own_schedule(item)
        span = ScheduleContext(lr if own else lrs[0], per_epoch, recipe.train.epochs)
        found.append((schedule_of(own or recipe.schedule, span), 1.0 if own else lr / lrs[0]))
    return found


def optimizers(
    recipe: Recipe, network: nn.Module, per_epoch: int, scaler: torch.amp.GradScaler
) -> Optimizers:
    """One optimizer for each name, a parameter group for each item and decay, rates for each.

    Each group says as `updates` how many the run has, for what an optimizer changes over it.
    """
    updates = total_steps(recipe.train, per_epoch)
    parameters = dict(network.named_parameters())
    groups: dict[str, list[dict[str, Any]]] = {}
    makers: dict[str, Any] = {}
    rates: dict[str, list[tuple[Schedule, float]]] = {}
    found = assign_parameters(network, [item.options for item in recipe.optim])
    for item, claim, rate in zip(recipe.optim, found, rates_of(recipe, per_epoch), strict=True):
        function = OPTIMIZERS[item.name]
        options = schema.check(f"optim ({item.name})", item.options, function, optim_keys)
        mine = schema.pick(options, function)
        makers.setdefault(item.name, partial(function, **mine))
        for names, decay in ((claim.decayed, mine["weight_decay"]), (claim.undecayed, 0.0)):
            for factor, layer in _layers(recipe, network, item, names):
                tensors = [parameters[n] for n in layer]
                group = {**mine, "params": tensors, "weight_decay": decay, "updates": updates}
                groups.setdefault(item.name, []).append(group)
                rates.setdefault(item.name, []).append((rate[0], rate[1] * factor))
    optimizers = {name: make(groups[name]) for name, make in makers.items() if name in groups}
    rated = [
        RatedGroup(optimizers[name], index, schedule, ratio)
        for name in optimizers
        for index, (schedule, ratio) in enumerate(rates[name])
    ]
    return Optimizers(list(optimizers.values()), rated, recipe.train.clip_grad_norm, scaler)


def _layers(
    recipe: Recipe, network: nn.Module, item: Item, names: Sequence[str]
) -> list[tuple[float, list[str]]]:
    """The parameters by the factor of their learning rate; all at 1 without `layer_decay`."""
    decay = item.options.get("layer_decay")
    if decay is None:
        return [(1.0, list(names))] if names else []
    depth = layer_depths(network, recipe.model.name)
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(depth[name], []).append(name)
    return [(float(decay) ** above, found[above]) for above in sorted(found)]
