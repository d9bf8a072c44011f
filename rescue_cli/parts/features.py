"""A frozen network: each image's features computed once, and a head that is trained on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from rescue_cli.data import Dataset, Features, Split
from rescue_cli.errors import UsageError
from rescue_cli.parts.ingredients import Autocast
from rescue_cli.parts.inputs import Machine, normalise, test_feed
from rescue_cli.recipe import Recipe


class Head(nn.Module):
    """Features (n, d, 1, 1) -> logits (n, classes), by a copy of a network's last linear layer."""

    def __init__(self, last: nn.Linear, scale: float) -> None:
        super().__init__()
        self.head = nn.Linear(
            last.in_features, last.out_features, bias=last.bias is not None, dtype=last.weight.dtype
        )
        self.head.load_state_dict(last.state_dict())
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features.flatten(1)) * self.scale
        return logits


@dataclass(frozen=True)
class Trainee:
    """What is trained, on what, made of which images; `whole(trained)` is the network to keep."""

    network: nn.Module
    data: Dataset
    images: Dataset
    whole: Callable[[nn.Module], nn.Module]


def trainee_of(
    recipe: Recipe, network: nn.Module, data: Dataset, machine: Machine, autocast: Autocast
) -> Trainee:
    """The network itself, or where `model.frozen` is set its head, on features in place of images.

    Features are those of the test view, without augmentation. Raises `UsageError` where the last
    linear layer is not the last thing that the network computes.
    """
    if not recipe.model.options.get("frozen"):
        return Trainee(network, data, data, lambda trained: trained)
    last = _last_linear(recipe, network)
    head = Head(last, float(getattr(network, "logit_scale", 1.0))).to(machine.device)
    reader = _Reader(recipe, network, last, head, machine, autocast)
    features = replace(
        data,
        train=reader.of(data.train),
        tests={name: reader.of(split) for name, split in data.tests.items()},
    )

    def whole(trained: nn.Module) -> nn.Module:
        assert isinstance(trained, Head)
        last.load_state_dict(trained.head.state_dict())
        return network

    return Trainee(head, features, data, whole)


def _last_linear(recipe: Recipe, network: nn.Module) -> nn.Linear:
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(
            f"model ({recipe.model.name}).frozen: it has no linear layer to train. Drop frozen."
        )
    return layers[-1]


class _Reader:
    """Sees a split's images once and keeps what comes to the network's last layer."""

    def __init__(
        self,
        recipe: Recipe,
        network: nn.Module,
        last: nn.Linear,
        head: Head,
        machine: Machine,
        autocast: Autocast,
    ) -> None:
        self.recipe, self.network, self.last, self.head = recipe, network.eval(), last, head
        self.machine, self.autocast = machine, autocast
        self.normalise = normalise(recipe, machine.device)
        self.checked = False

    @torch.no_grad()
    def of(self, split: Split) -> Features:
        """(images, d, 1, 1) floats with the images' labels."""
        if len(split) == 0:
            return Features(np.zeros((0, self.last.in_features, 1, 1), np.float32), split.labels)
        feed = test_feed(self.recipe, split, self.machine)
        found: list[Tensor] = []
        hook = self.last.register_forward_pre_hook(lambda _layer, given: found.append(given[0]))
        batches = feed.batches(0, 1, None)
        try:
            for shown in batches:
                (images,) = shown.views.values()
                with self.autocast():
                    logits = self.network(self.normalise(images))
                self._check(found[-1], logits)
        finally:
            batches.close()
            hook.remove()
        rows = torch.cat([part.float().cpu() for part in found])
        return Features(rows[:, :, None, None].numpy(), split.labels)

    def _check(self, features: Tensor, logits: Tensor) -> None:
        """That the head alone says of the first batch what the network says."""
        if self.checked:
            return
        with self.autocast():
            alone = self.head(features)
        if alone.shape != logits.shape or not torch.allclose(alone, logits, rtol=1e-3, atol=1e-3):
            raise UsageError(
                f"model ({self.recipe.model.name}).frozen: its last linear layer is not the last "
                "thing it computes, so its head cannot be trained alone. Remove model.frozen."
            )
        self.checked = True
