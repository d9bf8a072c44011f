"""Optimizers, their parameter groups and the schedules of their rates."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from rescue_cli.engine.optimizers import Optimizers, RatedGroup
from rescue_cli.errors import UsageError
from rescue_cli.recipe import OptimItem, Recipe, ScheduleItem, total_steps
from rescue_cli.sections.optim import LBFGS, assign_parameters, layer_depths
from rescue_cli.sections.schedule import Schedule, ScheduleContext, freeze_after


def build_schedule(item: ScheduleItem, context: ScheduleContext) -> Schedule:
    """The item's rates, read from its first step and until its last epoch; checks its keys."""
    rates: Schedule = item(context)
    first = item.first_step
    shifted: Schedule = (lambda step: rates(step + first)) if first else rates
    return (
        shifted
        if item.until is None
        else freeze_after(shifted, item.until, context.steps_per_epoch)
    )


def build_schedules(recipe: Recipe, per_epoch: int) -> list[tuple[Schedule, float]]:
    """Each optimizer item's schedule and its ratio to it.

    The schedule's `lr` is the first item's; other items keep their ratio to that, unless they
    have a schedule of their own.
    """
    reference = recipe.optim[0].lr
    schedules = []
    for item in recipe.optim:
        own = item.own_schedule
        context = ScheduleContext(item.lr if own else reference, per_epoch, recipe.train.epochs)
        schedule = build_schedule(own or recipe.schedule, context)
        schedules.append((schedule, 1.0 if own else item.lr / reference))
    return schedules


def shared_max_norm(items: Sequence[OptimItem]) -> float | None:
    """The norm to which the gradients of all parameters are clipped before the optimizers step.

    None where no item has one, or where only LAMB has, which clips its own in a pass it makes
    anyway. Raises `UsageError` where items have different ones: there is one norm to clip.
    """
    by_lamb, others = (
        {item.max_grad_norm for item in items if ("max_grad_norm" in item.arguments) is own}
        for own in (True, False)
    )
    if len(by_lamb if others <= {None} else by_lamb | others) > 1:
        raise UsageError(
            "optim.max_grad_norm: gradients are clipped over all parameters together. "
            "Give each item the same."
        )
    return None if others <= {None} else items[0].max_grad_norm


def build_optimizers(
    recipe: Recipe, network: nn.Module, per_epoch: int, scaler: torch.amp.GradScaler
) -> Optimizers:
    """One optimizer for each name, a parameter group for each item and decay, rates for each.

    Each group says as `updates` how many the run has, for what an optimizer changes over it.
    """
    if LBFGS in [item.name for item in recipe.optim]:
        raise UsageError(
            f"optim.name: {LBFGS} takes no steps: it fits the head of a frozen network "
            "(model.frozen=true) in `rescue train` and `rescue transfer`. Use another optimizer."
        )
    updates = total_steps(recipe.train, per_epoch)
    parameters = dict(network.named_parameters())
    groups: dict[str, list[dict[str, Any]]] = {}
    makers: dict[str, Any] = {}
    rates: dict[str, list[tuple[Schedule, float]]] = {}
    assigned = assign_parameters(network, recipe.optim)
    schedules = build_schedules(recipe, per_epoch)
    for item, own, (schedule, ratio) in zip(recipe.optim, assigned, schedules, strict=True):
        makers.setdefault(item.name, partial(item.function, **item.arguments))
        for names, decay in ((own.decayed, item.weight_decay), (own.undecayed, 0.0)):
            for factor, layer in _split_by_depth(item, names, network, recipe.model.name):
                group = {
                    **item.arguments,
                    "params": [parameters[name] for name in layer],
                    "weight_decay": decay,
                    "updates": updates,
                }
                groups.setdefault(item.name, []).append(group)
                rates.setdefault(item.name, []).append((schedule, ratio * factor))
    optimizers = {name: make(groups[name]) for name, make in makers.items() if name in groups}
    rated = [
        RatedGroup(optimizers[name], index, schedule, ratio)
        for name in optimizers
        for index, (schedule, ratio) in enumerate(rates[name])
    ]
    # A graph's memory is written anew at each replay, so gradients that are summed lie elsewhere
    kept = recipe.train.uses_graphs and recipe.train.micro_batches > 1
    largest_norm = shared_max_norm(recipe.optim)
    return Optimizers(list(optimizers.values()), rated, largest_norm, scaler, keep_gradients=kept)


def _split_by_depth(
    item: OptimItem, names: Sequence[str], network: nn.Module, architecture: str
) -> list[tuple[float, list[str]]]:
    """The parameters by the factor of their learning rate; all at 1 without `layer_decay`."""
    if item.layer_decay is None:
        return [(1.0, list(names))] if names else []
    depth = layer_depths(network, architecture)
    layers: dict[int, list[str]] = {}
    for name in names:
        layers.setdefault(depth[name], []).append(name)
    return [(item.layer_decay**above, layers[above]) for above in sorted(layers)]
