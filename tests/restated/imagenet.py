"""A2 and DeiT's procedure of ResNet strikes back by timm's own parts; the baseline of Bag of Tricks
after GluonCV's train_imagenet.py (dmlc/gluon-cv) and MXNet's `nag`.
"""

import copy
from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.data.mixup import mixup_target
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional

from tests.restated import MicroBatch, Restated, Weights
from tests.restated.plain import (
    Nesterov,
    Seen,
    batch_norm,
    differentiated,
    floats,
    move_statistics,
)

CLASSES = 10


class Timm(Restated):
    """A net, a loss, an optimizer and a scheduler of timm's, on several devices' shares of a batch.

    An epoch is one step here, so that statistics are averaged over devices after each.
    """

    def __init__(
        self,
        weights: Weights,
        drop_path: float,
        smoothing: float,
        criterion: Callable[[Tensor, Tensor], Tensor],
        **optimizer: Any,
    ) -> None:
        super().__init__(weights)
        self.net: nn.Module = timm.create_model(
            "test_resnet", num_classes=CLASSES, drop_path_rate=drop_path
        )
        self.net.load_state_dict(weights, strict=False)
        self.smoothing = smoothing
        self.criterion = criterion
        self.optimizer = create_optimizer_v2(self.net, **optimizer)
        self.weights = floats(self.net.state_dict())

    def schedule(self, first: float, last: float) -> None:
        """From `first`, up in 5 epochs, by a cosine of 300 to `last`."""
        self.scheduler = CosineLRScheduler(
            self.optimizer, t_initial=300, warmup_t=5, warmup_lr_init=first, lr_min=last
        )

    def step(self, number: int, micro_batches: list[MicroBatch]) -> None:
        self.scheduler.step(number)
        self.optimizer.zero_grad()
        before = copy.deepcopy(dict(self.net.named_buffers()))
        after: list[Weights] = []
        for part in micro_batches:
            for name, buffer in self.net.named_buffers():
                buffer.data.copy_(before[name])
            images, targets = self.mixed(part)
            torch.set_rng_state(part.generator)
            loss = self.criterion(self.net(images), targets) / len(micro_batches)
            loss.backward()  # type: ignore[no-untyped-call]
            after.append(floats(dict(self.net.named_buffers())))
        for name, buffer in self.net.named_buffers():
            if name in after[0]:
                buffer.data.copy_(torch.stack([found[name] for found in after]).mean(0))
        self.optimizer.step()
        self.weights = floats(self.net.state_dict())

    def mixed(self, part: MicroBatch) -> tuple[Tensor, Tensor]:
        assert part.share is not None
        images, other, share = part.plain.clone(), part.plain.flip(0), part.share
        if part.box is None:
            images = share * images + (1 - share) * other
        else:
            top, bottom, left, right = part.box
            images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / images[0, 0].numel()
        targets: Tensor = mixup_target(  # type: ignore[no-untyped-call]
            part.labels, CLASSES, share, self.smoothing
        )
        return images, targets


def a2(weights: Weights) -> Timm:
    found = Timm(
        weights,
        0.05,
        0.0,
        BinaryCrossEntropy(smoothing=0.0, target_threshold=0.0),
        opt="lamb",
        lr=5e-3,
        weight_decay=0.02,
    )
    found.schedule(1e-4, 1e-6)
    return found


def deit(weights: Weights) -> Timm:
    found = Timm(
        weights,
        0.1,
        0.1,
        SoftTargetCrossEntropy(),  # type: ignore[no-untyped-call]
        opt="adamw",
        lr=5e-4 * 1024 / 512,
        weight_decay=0.05,
        eps=1e-8,
    )
    found.schedule(1e-6, 1e-5)
    return found


class Baseline(Restated):
    """Plain cross-entropy on each device, gradients summed over the batch and divided by it."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.nag = Nesterov(0.9)

    def step(self, number: int, micro_batches: list[MicroBatch]) -> None:
        seen: Seen = {}
        count = sum(len(part.labels) for part in micro_batches)

        def loss(weights: Weights) -> Tensor:
            found = [resnet(weights, part.images, seen) for part in micro_batches]
            wrong = [
                functional.nll_loss(logits.log_softmax(1), part.labels, reduction="sum")
                for logits, part in zip(found, micro_batches, strict=True)
            ]
            return torch.stack(wrong).sum() / count

        trained = [name for name in self.weights if "running" not in name]
        gradients = differentiated(self.weights, trained, loss)
        move_statistics(self.weights, seen, 1 - 0.9)
        rate = 0.1 * 0.1 ** sum(number >= epoch for epoch in (30, 60, 90))
        self.nag.move(self.weights, gradients, rate, 1e-4)


def resnet(weights: Weights, x: Tensor, seen: Seen) -> Tensor:
    """timm's small test net by its tensors' names, a bottleneck's stride in its first convolution.

    Three 3x3 convolutions, a pool, four stages of one block, shortcuts averaged before their 1x1.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        scaled = batch_norm(x, name, 1e-5, seen) * weights[f"{name}.weight"][:, None, None]
        return scaled + weights[f"{name}.bias"][:, None, None]

    def convolved(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    x = norm(convolved(x, "conv1.0", 2), "conv1.1").relu()
    x = norm(convolved(x, "conv1.3"), "conv1.4").relu()
    x = norm(convolved(x, "conv1.6"), "bn1").relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        block, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        y, last = x, 3 if f"{block}.conv3.weight" in weights else 2
        for n in range(1, last + 1):
            y = convolved(y, f"{block}.conv{n}", stride if n == 1 else 1)
            y = norm(y, f"{block}.bn{n}")
            y = y if n == last else y.relu()
        if f"{block}.downsample.1.weight" in weights:
            x = functional.avg_pool2d(x, stride, ceil_mode=True, count_include_pad=False)
            x = norm(convolved(x, f"{block}.downsample.1"), f"{block}.downsample.2")
        x = (x + y).relu()
    return x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
