"""A frozen network: the features of each image are computed once, and a head is trained on them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rescue_cli.build.feeds import Machine, build_normalise, build_test_feed
from rescue_cli.build.networks import Autocast, autocast, build_network
from rescue_cli.errors import UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.rng import Indices
from rescue_cli.sections.data import Dataset, Features, Split
from rescue_cli.sections.data.corrupt import OF_FEATURES, TEST_IMAGE
from rescue_cli.sections.heads import find_heads
from rescue_cli.sections.optim.logistic import Fit, LogisticRegression


class Head(nn.Module):
    """Features (n, d, 1, 1) -> logits (n, classes), by copies of a network's classifiers.

    Of several, as a distilled DeiT has, each has its share of the features, one after another, and
    the logits are their mean.
    """

    def __init__(self, layers: Mapping[str, nn.Module], scale: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(layer) for layer in layers.values())
        self.widths = [_inputs(layer) for layer in self.heads]
        self.scale = scale

    def get_classifier(self) -> list[nn.Module]:
        """Its layers, by the method that timm's networks have; see `find_heads`."""
        return list(self.heads)

    @torch.no_grad()
    def assign(self, weights: Tensor, biases: Tensor) -> None:
        """Sets the logits to weights (classes, d) times the features plus biases (classes,)."""
        for layer, part in zip(self.heads, torch.split(weights, self.widths, 1), strict=True):
            assert isinstance(layer.weight, Tensor)
            layer.weight.copy_((part * (len(self.heads) / self.scale)).view(layer.weight.shape))
            if isinstance(layer.bias, Tensor):
                layer.bias.copy_(biases / self.scale)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("weight", "bias"):  # a checkpoint of a version that had one head
            if (old := f"{prefix}head.{name}") in state:
                state[f"{prefix}heads.0.{name}"] = state.pop(old)
        super()._load_from_state_dict(state, prefix, *rest)

    def forward(self, features: Tensor) -> Tensor:
        shares = torch.split(features.flatten(1), self.widths, 1)
        logits = [_logits(*pair) for pair in zip(self.heads, shares, strict=True)]
        return torch.stack(logits).mean(0) * self.scale


def _inputs(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else int(layer.in_channels)  # type: ignore[arg-type]


def _logits(layer: nn.Module, features: Tensor) -> Tensor:
    """Of features (n, d), by a linear layer or a 1x1 convolution."""
    if isinstance(layer, nn.Conv2d):
        features = features[:, :, None, None]
    logits: Tensor = layer(features)
    return logits.flatten(1)


@dataclass(frozen=True)
class Trainee:
    """What is trained, on what, made of which images; `whole(trained)` is the network to keep."""

    network: nn.Module
    data: Dataset
    images: Dataset
    whole: Callable[[nn.Module], nn.Module]


def build_trainee(
    recipe: Recipe,
    data: Dataset,
    machine: Machine,
    note: Callable[[str], None] = lambda _: None,
    count: Callable[[int], None] = lambda _: None,
) -> Trainee:
    """The network itself, or where `model.frozen` is set its head, on features in place of images.

    Features are those of the test view, without augmentation. `note` receives a line on how the
    weights were read, `count` the number of images of each batch whose features are computed.
    Raises `UsageError` where the classifier is not the last thing that the network computes.
    """
    network = build_network(recipe, len(data.classes), machine.device, note=note)
    if not recipe.model.frozen:
        return Trainee(network, data, data, lambda trained: trained)
    layers = find_heads(network)
    if not layers:
        raise UsageError(
            f"model ({recipe.model.name}).frozen: it has no classifier to train. "
            "Remove model.frozen."
        )
    head = Head(layers, float(getattr(network, "logit_scale", 1.0))).to(machine.device)
    reader = _Reader(recipe, network, list(layers.values()), head, machine, count)
    features = replace(
        data,
        train=reader.of(data.train, OF_FEATURES),
        tests={name: reader.of(split) for name, split in data.tests.items()},
    )

    def whole(trained: nn.Module) -> nn.Module:
        assert isinstance(trained, Head)
        for layer, learned in zip(layers.values(), trained.heads, strict=True):
            layer.load_state_dict(learned.state_dict())
        return network

    return Trainee(head, features, data, whole)


def fit_head(recipe: Recipe, trainee: Trainee) -> Fit:
    """Fits the head to the training features, as the recipe's optimizer `lbfgs` says."""
    head, features = trainee.network, trainee.data.train
    assert isinstance(head, Head)
    assert isinstance(features, Features)
    regression: LogisticRegression = recipe.optim[0]()
    fitted = regression.fit(
        features.pixels[:, :, 0, 0].astype(np.float64),
        features.labels,
        len(trainee.data.classes),
        seed=recipe.train.seed,
        intercept=all(layer.bias is not None for layer in head.heads),
    )
    head.assign(torch.from_numpy(fitted.weights), torch.from_numpy(fitted.biases))
    return fitted


def describe_fit(fitted: Fit, labels: Indices) -> tuple[str, dict[str, Any]]:
    """How the weight decay was chosen: as a line of the log, and as `fit` of `result.json`."""
    line = (
        f"classifier fitted to the features of {len(labels):,} images, "
        f"weight decay {fitted.decay:.2g}"
    )
    if fitted.log_probabilities is None:
        return line, {"weight_decay": fitted.decay}
    right = int((fitted.log_probabilities.argmax(1) == labels).sum())
    found = {
        "top1": 100 * right / len(labels),
        "loss": fitted.losses[fitted.decay],
        "count": len(labels),
    }
    end = {min(fitted.losses): "the smallest of", max(fitted.losses): "the largest of"}
    line += (
        f", {end.get(fitted.decay, 'the best of')} {len(fitted.losses)}"
        f"{' and the best' * (fitted.decay in end)} in cross-validation: "
        f"{right} of {len(labels)} right "
        f"({found['top1']:.2f} %), loss {found['loss']:.4f}"
    )
    return line, {"weight_decay": fitted.decay, "cross_validation": found}


class _Reader:
    """Passes a split's images through once and keeps the inputs of the network's classifiers."""

    def __init__(
        self,
        recipe: Recipe,
        network: nn.Module,
        layers: list[nn.Module],
        head: Head,
        machine: Machine,
        count: Callable[[int], None],
    ) -> None:
        self.recipe, self.network, self.layers, self.head = recipe, network.eval(), layers, head
        self.count = count
        self.machine = machine
        self.autocast: Autocast = autocast(recipe.train.precision, machine.device)
        self.normalise = build_normalise(recipe, machine.device)
        self.checked = False

    @torch.no_grad()
    def of(self, split: Split, corrupt: str = TEST_IMAGE) -> Features:
        """(images, d, 1, 1) floats with the images' labels; for `corrupt` see `EvalSamples`."""
        if len(split) == 0:
            return Features(np.zeros((0, sum(self.head.widths), 1, 1), np.float32), split.labels)
        feed = build_test_feed(self.recipe, split, self.machine, corrupt)
        features: list[Tensor] = []
        inputs: dict[nn.Module, Tensor] = {}
        hooks = [
            layer.register_forward_pre_hook(lambda own, given: inputs.update({own: given[0]}))
            for layer in self.layers
        ]
        batches = feed.batches(0, 1, None)
        try:
            for shown in batches:
                (images,) = shown.views.values()
                with self.autocast():
                    logits = self.network(self.normalise(images))
                features.append(self._features(inputs))
                self._check(features[-1], logits)
                self.count(len(logits))
        finally:
            batches.close()
            for hook in hooks:
                hook.remove()
        rows = torch.cat([part.float().cpu() for part in features])
        return Features(rows[:, :, None, None].numpy(), split.labels)

    def _features(self, inputs: dict[nn.Module, Tensor]) -> Tensor:
        """(n, d): the inputs of the classifiers side by side, where each takes one vector."""
        shares = [inputs[layer].flatten(1) for layer in self.layers if layer in inputs]
        if [share.shape[1] for share in shares] != self.head.widths:
            raise self._not_last()
        return torch.cat(shares, 1)

    def _not_last(self) -> UsageError:
        return UsageError(
            f"model ({self.recipe.model.name}).frozen: its classifier is not the last thing it "
            "computes, so its head cannot be trained alone. Remove model.frozen."
        )

    def _check(self, features: Tensor, logits: Tensor) -> None:
        """Raises `UsageError` unless the head alone gives the network's logits, on one batch."""
        if self.checked:
            return
        with self.autocast():
            alone = self.head(features)
        if alone.shape != logits.shape or not torch.allclose(alone, logits, rtol=1e-3, atol=1e-3):
            raise self._not_last()
        self.checked = True
