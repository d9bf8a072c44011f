"""Optimizers of the user's own."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer

from rescue_cli.recipe.own import Own


def own_optimizer(own: Own) -> Callable[..., Optimizer]:
    """An optimizer: a subclass of torch's Optimizer, or a function that returns one.

    It takes the parameter groups as `params`, and `lr` and `weight_decay`, which the recipe sets
    in each group: the rate by its schedule, no decay for what `no_decay` names.
    """

    def build(groups: Iterable[dict[str, Any]], **options: Any) -> Optimizer:
        optimizer = own.call(options, params=groups)
        if not isinstance(optimizer, Optimizer):
            raise own.error(f"returns a {type(optimizer).__name__}, and must return an Optimizer.")
        return optimizer

    for name in ("params", "lr", "weight_decay"):
        if name not in own.parameters:
            raise own.error(f"is no optimizer for recipes: it must take {name}.")
    return own.with_keys(build, "params")
