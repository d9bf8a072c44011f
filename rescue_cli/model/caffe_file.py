"""What published Caffe files of known architectures have otherwise than timm's."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

CAFFE_KEYS = ("norm_momentum", "first_norm", "pooling")


class ZeroStatistics(nn.Module):
    """A batch norm on running statistics of 0 that never move: x times 1 / sqrt(eps), the affine.

    That is Caffe's layer with `use_global_stats: true` in training, whose statistics nothing ever
    writes (BVLC/caffe 09c8f459, src/caffe/layers/batch_norm_layer.cpp).
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm = norm
        assert norm.running_var is not None
        with torch.no_grad():
            norm.running_var.zero_()
        self.train(False)

    def train(self, mode: bool = True) -> "ZeroStatistics":  # noqa: ARG002
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


def caffe_file(
    model: nn.Module,
    *,
    norm_momentum: float | None,
    first_norm: Literal["zeros"] | None,
    pooling: Literal["caffe"] | None,
) -> nn.Module:
    """The model with its batch norms' `norm_momentum` and what else is not None.

    `first_norm: zeros` puts the first batch norm on statistics of 0, see `ZeroStatistics`;
    `pooling: caffe` takes the padding from max pooling and rounds its sizes up.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if norm_momentum is not None:
        for norm in norms.values():
            norm.momentum = norm_momentum
    if first_norm == "zeros" and norms:
        name = next(iter(norms))
        model.set_submodule(name, ZeroStatistics(norms[name]))
    if pooling == "caffe":
        for pool in model.modules():
            if isinstance(pool, nn.MaxPool2d):
                pool.padding, pool.ceil_mode = 0, True
    return model
