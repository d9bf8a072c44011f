"""Networks of the user's own."""

from collections.abc import Callable
from typing import Any

from torch import nn

from rescue_cli.recipe.own import Own


def own_model(own: Own) -> Callable[..., nn.Module]:
    """A network: a subclass of nn.Module, or a function that returns one.

    `classes` and `channels`, where it takes them, are those of the data.
    """

    def build(classes: int, channels: int, **options: Any) -> nn.Module:
        network = own.call(options, classes=classes, channels=channels)
        if not isinstance(network, nn.Module):
            raise own.error(f"returns a {type(network).__name__}, and must return an nn.Module.")
        return network

    is_network = isinstance(own.target, type) and issubclass(own.target, nn.Module)
    if not is_network and "classes" not in own.parameters:
        raise own.error("is no network: it must be an nn.Module, or a function that takes classes.")
    return own.with_keys(build, "classes", "channels")
