"""Parameters and multiply-adds, counted on the meta device."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from rescue_cli.build.feeds import train_size
from rescue_cli.build.networks import build_network, proxy_recipe
from rescue_cli.build.weights import find_weights
from rescue_cli.recipe import Recipe
from rescue_cli.sections.augment.progressive_resize import size_at_epoch
from rescue_cli.sections.data import channels_of, facts_of

CLASSES = 10  # assumed for a user's folder, whose classes are not known yet
META = torch.device("meta")


@dataclass(frozen=True)
class Flops:
    """Per image: multiply-adds of matrix products and convolutions, and normalised elements.

    Papers count 0 to 5 operations per normalised element in addition to the multiply-adds.
    """

    multiply_adds: int
    normalised: int


def network_of(recipe: Recipe) -> nn.Module:
    """The recipe's network on the meta device, so without memory for weights."""
    if recipe.model.weights is not None:
        recipe = recipe.with_overrides("~model.weights")
    with META:
        return build_network(
            recipe, facts_of(recipe.data.name, recipe.data).classes or CLASSES, META
        )


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def flops(network: nn.Module, size: int, channels: int = 3) -> Flops:
    """Counts of a network on the meta device, for an image of size x size pixels."""
    elements: list[int] = []

    def count(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        elements.append(inputs[0].numel())

    norms = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, norms)]
    was_training = network.training
    dtype = next(network.parameters()).dtype
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, channels, size, size, device=META, dtype=dtype))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return Flops(counter.get_total_flops() // 2, sum(elements))


def petaflop(recipe: Recipe, steps: int, per_epoch: int) -> float:
    """10^15 operations of the whole training; a multiply-add counts as two.

    Three forward passes per training image; for a frozen network one in total, without its head.
    Images of growing size count at their size in each epoch; a selection proxy's passes and a
    teacher's forward pass count too. Raises `DataError` if the teacher's weights are missing.
    """
    if recipe.model.frozen:
        size = recipe.eval.sizes[0]
        features = flops(network_of(recipe), size, channels(recipe)).multiply_adds
        return 2 * features * per_epoch * recipe.train.batch_size / 1e15
    sizes: Counter[int] = Counter()
    for first in range(0, steps, per_epoch):
        sizes[_size_in(recipe, first // per_epoch)] += min(per_epoch, steps - first)
    share = 1.0
    passes: list[tuple[nn.Module, float]] = []  # networks, and the passes per image
    if recipe.selection.name == "proxy":
        options = recipe.selection.arguments
        share = options["share"]
        proxy = network_of(proxy_recipe(recipe, options["model"]))
        passes.append((proxy, 1 + 2 / options["every"]))
    if recipe.teacher.name == "network":
        source = find_weights(recipe.teacher.arguments["weights"], ())
        passes.append((network_of(source.recipe), 1.0))
    passes.append((network_of(recipe), 3 * share))
    total = 0.0
    for size, count in sizes.items():
        one = sum(k * flops(net, size, channels(recipe)).multiply_adds for net, k in passes)
        total += one * count * recipe.train.batch_size
    return 2 * total / 1e15


def _size_in(recipe: Recipe, epoch: int) -> int:
    growing = [item for item in recipe.augment if item.name == "progressive-resize"]
    size = size_at_epoch(epoch, **growing[0].arguments) if growing else None
    return size or train_size(recipe)


def channels(recipe: Recipe) -> int:
    return channels_of(recipe.data.name, recipe.data)
