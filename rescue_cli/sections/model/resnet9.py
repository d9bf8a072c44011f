"""Myrtle's ResNet-9 for small images (How to train your ResNet), with the tricks of part 8."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Positive, PositiveInt
from rescue_cli.sections.model.celu import Celu
from rescue_cli.sections.model.ghost_batch_norm import (
    GhostBatchNorm2d,
    group_count,
    interleave_groups,
    undo_interleave,
)
from rescue_cli.sections.model.pooling import GlobalMaxPool2d
from rescue_cli.sections.model.whitening import Whitening

Pool = Literal["after-activation", "before-norm"]


@dataclass(frozen=True)
class LayerOptions:
    """What follows a convolution: norm, activation, and the position of the pool."""

    pool: Pool
    celu: float | None
    ghost: int | None
    frozen_scale: bool

    def after(self, outputs: int, *, pooled: bool) -> list[nn.Module]:
        """Norm, activation and, where `pooled`, a 2x2 max pool."""
        pools = [nn.MaxPool2d(2)] if pooled else []
        rest = [self._norm(outputs), self._activation()]
        return [*pools, *rest] if self.pool == "before-norm" else [*rest, *pools]

    def _norm(self, features: int) -> nn.Module:
        norm = (
            nn.BatchNorm2d(features)
            if self.ghost is None
            else GhostBatchNorm2d(features, self.ghost)
        )
        norm.weight.requires_grad_(not self.frozen_scale)
        return norm

    def _activation(self) -> nn.Module:
        if self.celu is None:
            return nn.ReLU(inplace=True)
        return Celu(self.celu)


class ConvBlock(nn.Sequential):
    """3x3 convolution and what follows it."""

    def __init__(
        self, inputs: int, outputs: int, layers: LayerOptions, *, pooled: bool = False
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            *layers.after(outputs, pooled=pooled),
        )


class WhiteningBlock(nn.Sequential):
    """3x3 whitening, 1x1 convolution and what follows it."""

    def __init__(
        self, channels: int, outputs: int, layers: LayerOptions, *, images: int, eps: float
    ) -> None:
        whitening = Whitening(
            channels,
            3,
            padding=1,
            mirrored=False,
            bias=None,
            images=images,
            eps=eps,
            centred=False,
        )
        super().__init__(
            whitening,
            nn.Conv2d(whitening.out_channels, outputs, 1, bias=False),
            *layers.after(outputs, pooled=False),
        )


class Residual(nn.Module):
    """x + block(block(x)), without an activation after the sum."""

    def __init__(self, width: int, layers: LayerOptions) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ConvBlock(width, width, layers), ConvBlock(width, width, layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.blocks(x)
        return y


class ResNet9(nn.Module):
    """Images (n, channels, h, w) of at least 28 px -> logits (n, classes), scaled."""

    def __init__(
        self, classes: int, stem: nn.Module, width: int, logit_scale: float, layers: LayerOptions
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            stem,
            ConvBlock(width, 2 * width, layers, pooled=True),
            Residual(2 * width, layers),
            ConvBlock(2 * width, 4 * width, layers, pooled=True),
            ConvBlock(4 * width, 8 * width, layers, pooled=True),
            Residual(8 * width, layers),
            GlobalMaxPool2d(),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * width, classes, bias=False)
        self.logit_scale = logit_scale
        self.ghost = layers.ghost

    def forward(self, images: Tensor) -> Tensor:
        if self.ghost is None or not self.training:
            return self._logits(images)
        groups = group_count(len(images), self.ghost)
        return undo_interleave(self._logits(interleave_groups(images, groups)), groups)

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits * self.logit_scale


def resnet9(
    classes: int,
    channels: int,
    *,
    width: PositiveInt,
    logit_scale: Positive,
    pool: Pool = "after-activation",
    celu: Positive | None = None,
    ghost: PositiveInt | None = None,
    frozen_scale: bool = False,
    whitening_images: PositiveInt | None = None,
    whitening_eps: Positive | None = None,
) -> nn.Module:
    """ResNet-9 with `width` channels after the first block (64 in the post), 8 times that last.

    The final pool takes the maximum over the whole map, 4x4 for images of 32 px. The changes of
    How to train your ResNet 8: `pool` before the norm; CELU of alpha `celu` in place of ReLU; batch
    norm over groups of `ghost` images, where group g has images g, g + groups, ...; the norms'
    scales fixed at 1 (`frozen_scale`); a first layer that whitens 3x3 patches. Raises `UsageError`.
    """
    layers = LayerOptions(pool, celu, ghost, frozen_scale)
    if whitening_images is not None and whitening_eps is not None:
        stem: nn.Module = WhiteningBlock(
            channels, width, layers, images=whitening_images, eps=whitening_eps
        )
    elif whitening_images is None and whitening_eps is None:
        stem = ConvBlock(channels, width, layers)
    else:
        lacking = "whitening_eps" if whitening_eps is None else "whitening_images"
        raise UsageError(
            f"model (resnet9): whitening needs two keys, and '{lacking}' is missing. "
            f"Add model.{lacking}, or remove the other."
        )
    return ResNet9(classes, stem, width, logit_scale, layers)
