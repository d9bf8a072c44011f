"""Smith's networks for small images in "A disciplined approach", and BVLC's LeNet.

Source: the Caffe files of lnsmith54/hyperParam1. The ResNet of super-convergence differs, see
`super_convergence`.

Pixels must be on the scale 0 to 255, because the learning rates of Smith's tables hold only there;
the networks subtract the training set's mean image.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.errors import UsageError
from rescue_cli.recipe.schema import Fraction, PositiveInt
from rescue_cli.sections.model.caffe import CaffeBatchNorm2d
from rescue_cli.sections.model.init import DataDependentInit, init_weights

SIZE = 32  # px, of the images whose mean is subtracted


class MeanImage(DataDependentInit, nn.Module):
    """Subtracts the training set's mean image, (channels, 32, 32), set by `init_from`; 0 before."""

    images = None  # all

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(channels, SIZE, SIZE))

    def forward(self, images: Tensor) -> Tensor:
        return images - self.mean

    @torch.no_grad()
    def init_from(self, batches: Iterable[Tensor]) -> None:
        """Computes the mean of images in batches (n, channels, 32, 32)."""
        total, count = torch.zeros_like(self.mean, dtype=torch.float64), 0
        for images in batches:
            total += images.double().sum(0)
            count += len(images)
        self.mean.copy_(total / count)


class LocalResponseNorm(nn.Module):
    """Caffe's LRN WITHIN_CHANNEL: x (1 + 5e-5 m)^-0.75, m the mean square of a 3x3 window.

    The window includes the zero padding. The output has the input's shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = functional.avg_pool2d(exact.square(), 3, stride=1, padding=1)
        y: Tensor = x * (1 + 5e-5 * squares).pow(-0.75).to(x.dtype)
        return y


class ThreeLayerNet(nn.Module):
    """Images (n, channels, 32, 32) -> logits (n, classes)."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.mean_image = MeanImage(channels)
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 64, 5, padding=2)
        self.norm1, self.norm2 = LocalResponseNorm(), LocalResponseNorm()
        self.head = nn.Linear(64 * 4 * 4, classes)
        for layer, std in ((self.conv1, 1e-4), (self.conv2, 0.01), (self.conv3, 0.01)):
            _init_gaussian(layer, std)
        _init_gaussian(self.head, 0.01)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(self.mean_image(images))
        x = self.norm1(functional.max_pool2d(x, 3, 2, ceil_mode=True).relu())
        x = functional.avg_pool2d(self.conv2(x).relu(), 3, 2, ceil_mode=True)
        x = self.conv3(self.norm2(x)).relu()
        logits: Tensor = self.head(functional.avg_pool2d(x, 3, 2, ceil_mode=True).flatten(1))
        return logits


def two_convolutions(
    inputs: int, outputs: int, norm_momentum: float, *, halving: bool
) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU, 3x3 convolution, batch norm; `halving`: stride 2 first."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2 if halving else 1, padding=1),
        CaffeBatchNorm2d(outputs, momentum=norm_momentum),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        CaffeBatchNorm2d(outputs, momentum=norm_momentum),
    )


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut; no activation after the sum.

    A `halving` block's first convolution has stride 2, and its shortcut is a 2x2 convolution of
    stride 2 with batch norm.
    """

    def __init__(self, inputs: int, outputs: int, norm_momentum: float, *, halving: bool) -> None:
        super().__init__()
        self.body = two_convolutions(inputs, outputs, norm_momentum, halving=halving)
        self.shortcut: nn.Module = nn.Identity()
        if halving:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 2, stride=2),
                CaffeBatchNorm2d(outputs, momentum=norm_momentum),
            )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.shortcut(x)
        return y


class Classifier(nn.Module):
    """Layers with `features` output channels, global average pooling, and a linear head."""

    def __init__(self, layers: list[nn.Module], features: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 3x3 convolution, dropout; concatenated to the input."""

    def __init__(self, inputs: int, growth: int, dropout: float, norm_momentum: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            CaffeBatchNorm2d(inputs, momentum=norm_momentum),
            nn.ReLU(),
            nn.Conv2d(inputs, growth, 3, padding=1, bias=False),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def smith_3layer(classes: int, channels: int) -> nn.Module:
    """Three 5x5 convolutions with local response norm: Caffe's cifar10_full, 89,578 parameters.

    Gaussian weights with std 1e-4, 0.01, 0.01 and 0.01. The multipliers of Caffe's solver are in
    the recipe: the head's weight decay is 250 times the others'.
    """
    return ThreeLayerNet(classes, channels)


def smith_resnet56(
    classes: int, channels: int, *, depth: PositiveInt, norm_momentum: Fraction
) -> nn.Module:
    """Smith's CIFAR ResNet of `depth` 6 n + 8: n blocks of 16 channels, n + 1 of 32 and of 64.

    The first block of 32 and of 64 halves the image. 56 has 860,874 parameters, and is the paper's.
    Raises `UsageError` for another depth.
    """
    if depth < 14 or (depth - 8) % 6:
        raise UsageError(
            f"model (smith-resnet56).depth: {depth} is not 6 n + 8. Use 20, 56 or 110."
        )
    n = (depth - 8) // 6
    return _resnet(classes, channels, {16: n, 32: n + 1, 64: n + 1}, norm_momentum)


def smith_wide32(classes: int, channels: int, *, norm_momentum: Fraction) -> nn.Module:
    """Smith's wide ResNet: five blocks each of 16, 64 and 256 channels; 5.90 M parameters."""
    return _resnet(classes, channels, {16: 5, 64: 5, 256: 5}, norm_momentum)


def smith_densenet40(
    classes: int, channels: int, *, dropout: Fraction, norm_momentum: Fraction
) -> nn.Module:
    """DenseNet with growth 12: three times 12 layers, 1x1 transitions that keep the channels.

    1.02 M parameters. Convolutions are initialised by msra, the last layer by xavier.
    """
    features, layers = 16, [MeanImage(channels), nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    for block in range(3):
        for _ in range(12):
            layers.append(DenseLayer(features, 12, dropout, norm_momentum))
            features += 12
        layers += [CaffeBatchNorm2d(features, momentum=norm_momentum), nn.ReLU()]
        if block < 2:
            layers += [
                nn.Conv2d(features, features, 1, bias=False),
                nn.Dropout(dropout),
                nn.AvgPool2d(2),
            ]
    net = Classifier(layers, features, classes)
    init_weights(net.features, "msra")
    init_weights(net.head, "xavier")
    return net


def lenet(classes: int, channels: int) -> nn.Module:
    """BVLC's LeNet for images of 28 px: 431,080 parameters for MNIST."""
    return nn.Sequential(
        nn.Conv2d(channels, 20, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * 4 * 4, 500),
        nn.ReLU(),
        nn.Linear(500, classes),
    )


def _resnet(classes: int, channels: int, stages: dict[int, int], norm_momentum: float) -> nn.Module:
    """A ResNet with `stages[width]` blocks of each width."""
    features = next(iter(stages))
    layers: list[nn.Module] = [
        MeanImage(channels),
        nn.Conv2d(channels, features, 3, padding=1),
        CaffeBatchNorm2d(features, momentum=norm_momentum),
        nn.ReLU(),
    ]
    for width, count in stages.items():
        for _ in range(count):
            layers.append(Block(features, width, norm_momentum, halving=width != features))
            features = width
    return Classifier(layers, features, classes)


def _init_gaussian(layer: nn.Conv2d | nn.Linear, std: float) -> None:
    assert layer.bias is not None
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
