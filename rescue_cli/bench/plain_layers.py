"""Plain PyTorch modules in place of the layers that we have for speed."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.sections.model import Celu, GhostBatchNorm2d, ResNet9


class PlainGhostNorm(nn.BatchNorm2d):
    """Ghost batch norm by a reshape that gives each group its own channels, as in the post.

    Group g of G is images g, g + G, ... Running statistics are not updated.
    """

    def __init__(self, norm: GhostBatchNorm2d) -> None:
        super().__init__(norm.num_features, eps=norm.eps)
        self.weight, self.bias, self.size = norm.weight, norm.bias, norm.size

    def forward(self, images: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        groups = n // self.size
        grouped = images.reshape(self.size, groups * channels, height, width)
        normed = functional.batch_norm(
            grouped, None, None, self.weight.repeat(groups), self.bias.repeat(groups), True,
            0.0, self.eps,
        )  # fmt: skip
        return normed.reshape(n, channels, height, width)


@torch.no_grad()
def replace_layers(network: nn.Module) -> None:
    """Replaces our own layers by torch's modules, or by the reshape."""
    for parent in list(network.modules()):
        if isinstance(parent, ResNet9):
            parent.ghost = None  # it would sort the images into groups once, at its input
        for name, layer in parent.named_children():
            if isinstance(layer, Celu):
                setattr(parent, name, nn.CELU(layer.alpha, inplace=True))
            elif isinstance(layer, GhostBatchNorm2d):
                setattr(parent, name, PlainGhostNorm(layer))
