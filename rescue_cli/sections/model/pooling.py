"""Pools whole feature maps."""

from torch import Tensor, nn
from torch.nn import functional


class GlobalMaxPool2d(nn.Module):
    """(n, channels, h, w) -> (n, channels, 1, 1): each channel's maximum.

    As `nn.AdaptiveMaxPool2d(1)`, whose backward pass has neither a deterministic kernel on CUDA nor
    one for channels-last tensors.
    """

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = functional.max_pool2d(x, (x.shape[-2], x.shape[-1]))
        return pooled
