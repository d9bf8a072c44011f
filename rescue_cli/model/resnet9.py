"""Myrtle's ResNet-9 for small images (How to train your ResNet)."""

import torch
from torch import Tensor, nn

from rescue_cli.registry import Positive, PositiveInt


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, and a 2x2 max pool where `pool`."""

    def __init__(self, inputs: int, outputs: int, *, pool: bool = False) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            *([nn.MaxPool2d(2)] if pool else []),
        )


class Residual(nn.Module):
    """x + block(block(x)), nothing after the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(ConvBlock(width, width), ConvBlock(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.blocks(x)
        return y


class ResNet9(nn.Module):
    """Images (n, channels, h, w) of at least 28 px -> logits (n, classes), scaled."""

    def __init__(self, classes: int, channels: int, width: int, logit_scale: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBlock(channels, width),
            ConvBlock(width, 2 * width, pool=True),
            Residual(2 * width),
            ConvBlock(2 * width, 4 * width, pool=True),
            ConvBlock(4 * width, 8 * width, pool=True),
            Residual(8 * width),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(8 * width, classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits * self.logit_scale


def resnet9(
    classes: int, channels: int, *, width: PositiveInt, logit_scale: Positive
) -> torch.nn.Module:
    """ResNet-9 with `width` channels after the first block (64 in the post), 8 times that last.

    The final pool takes the maximum over all that is left, 4x4 for images of 32 px.
    """
    return ResNet9(classes, channels, width, logit_scale)
