"""The networks of airbench (Jordan 2024), hlb-CIFAR10 before it and hiverge after it."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from rescue_cli.recipe.schema import Fraction, NotNegative, Positive, PositiveInt
from rescue_cli.sections.model.pooling import GlobalMaxPool2d
from rescue_cli.sections.model.whitening import Whitening

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}
Norm = Callable[[int], nn.Module]


class Group(nn.Module):
    """Convolution, 2x2 max pool, norm, activation; then convolutions at half the resolution.

    `residual` adds the input of these to their output, before the last activation (airbench96).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        convs: int,
        residual: bool,
        norm: Norm,
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(
            _conv(inputs, outputs), nn.MaxPool2d(2), norm(outputs), activation()
        )
        rest: list[nn.Module] = [_conv(outputs, outputs), norm(outputs)]
        for _ in range(convs - 2):
            rest += [activation(), _conv(outputs, outputs), norm(outputs)]
        self.rest = nn.Sequential(*rest)
        self.activation = activation()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.rest(x)
        z: Tensor = self.activation(y + x if self.residual else y)
        return z


class Airbench(nn.Module):
    """Images (n, channels, h, w) of at least 19 px -> logits (n, classes), scaled."""

    def __init__(
        self, whitening: Whitening, groups: list[Group], head: nn.Linear, logit_scale: float
    ) -> None:
        super().__init__()
        self.whitening = whitening
        self.activation = nn.GELU()
        self.groups = nn.Sequential(*groups)
        self.pool = nn.Sequential(GlobalMaxPool2d(), nn.Flatten())
        self.head = head
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        features = self.groups(self.activation(self.whitening(images)))
        logits: Tensor = self.head(self.pool(features))
        return logits * self.logit_scale


def airbench(
    classes: int,
    channels: int,
    *,
    widths: tuple[PositiveInt, PositiveInt, PositiveInt],
    convs: Literal[2, 3] = 2,
    residual: bool = False,
    activation: Literal["gelu", "silu"] = "gelu",
    dirac: Literal["replaced", "added"] = "replaced",
    norm_momentum: Fraction,
    norm_eps: Positive,
    logit_scale: Positive,
    head_init_std: Positive | None = None,
    whitening_images: PositiveInt,
    whitening_eps: NotNegative,
    whitening_bias: Literal["uniform", "zeros"] | None,
    whitening_centred: bool = False,
) -> nn.Module:
    """Whitened 2x2 patches and their negations, GELU, three groups of `convs` convolutions, a head.

    The norms' scales stay 1; `norm_momentum` is torch's, the weight of the new batch. `dirac`: how
    filters are initialised to the identity, `replaced` in the first filters of each convolution
    (airbench) or `added` (hlb). `head_init_std` rescales the head's weights to that standard
    deviation.
    """
    whitening = Whitening(
        channels,
        2,
        padding=0,
        mirrored=True,
        bias=whitening_bias,
        images=whitening_images,
        eps=whitening_eps,
        centred=whitening_centred,
    )

    def norm(features: int) -> nn.Module:
        layer = nn.BatchNorm2d(features, eps=norm_eps, momentum=norm_momentum)
        layer.weight.requires_grad_(False)
        return layer

    inputs = (whitening.out_channels, *widths[:2])
    groups = [
        Group(i, o, convs, residual, norm, ACTIVATIONS[activation])
        for i, o in zip(inputs, widths, strict=True)
    ]
    for group in groups:
        first, *others = (m.weight for m in group.modules() if isinstance(m, nn.Conv2d))
        (replace_with_dirac if dirac == "replaced" else add_dirac)(first, others)
    head = nn.Linear(widths[2], classes, bias=False)
    if head_init_std is not None:
        with torch.no_grad():
            head.weight.mul_(head_init_std / head.weight.std())
    return Airbench(whitening, groups, head, logit_scale)


@torch.no_grad()
def replace_with_dirac(first: Tensor, others: list[Tensor]) -> None:
    """Sets the first `in` filters of weights (out, in, 3, 3) to the identity (airbench)."""
    for weight in (first, *others):
        nn.init.dirac_(weight[: weight.shape[1]])


@torch.no_grad()
def add_dirac(first: Tensor, others: list[Tensor]) -> None:
    """Sets `others` to the identity and adds it to the random weights of `first` (hlb).

    The sum is rescaled to the random weights' mean and standard deviation.
    """
    std, mean = torch.std_mean(first)
    first.add_(nn.init.dirac_(torch.empty_like(first)))
    first.sub_(first.mean()).mul_(std / first.std()).add_(mean)
    for weight in others:
        nn.init.dirac_(weight)


def _conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
