"""Caffe's layers, and settings of published Caffe files that differ from timm's models."""

from collections.abc import Sized
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from rescue_cli.errors import UsageError


class CaffeBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running statistics are weighted means of batches, without initial values.

    Caffe divides its running sums by the sum of their weights, so torch's initial 0 and 1 never
    count (BVLC/caffe 09c8f459, src/caffe/layers/batch_norm_layer.cpp). `momentum` is
    1 - `moving_average_fraction`; update t has the weight momentum / (1 - (1 - momentum)^t).
    """

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        assert isinstance(self.running_mean, Tensor)
        assert isinstance(self.running_var, Tensor)
        assert isinstance(self.num_batches_tracked, Tensor)
        assert self.momentum is not None
        mean, variance = self.running_mean.new_zeros(2, self.num_features)
        y = functional.batch_norm(  # with momentum 1 a running statistic is the batch's own
            images, mean, variance, self.weight, self.bias, True, 1.0, self.eps
        )
        self.num_batches_tracked += 1
        weight = self.momentum / (1 - (1 - self.momentum) ** self.num_batches_tracked.double())
        weight = weight.to(mean.dtype)
        with torch.no_grad():
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(variance, weight)
        return y


class ZeroStatistics(nn.Module):
    """A batch norm with running statistics fixed at 0: x / sqrt(eps), then the affine transform.

    That is Caffe's layer with `use_global_stats: true` in training, whose statistics are never
    written (BVLC/caffe 09c8f459, src/caffe/layers/batch_norm_layer.cpp).
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


def apply_caffe_settings(
    model: nn.Module,
    *,
    norm_momentum: float | None = None,
    first_norm: Literal["zeros"] | None = None,
    pooling: Literal["caffe"] | None = None,
) -> nn.Module:
    """Changes the model's layers as the keys that are not None say, and returns it.

    `norm_momentum`: of all batch norms. `first_norm: zeros` fixes the first batch norm's statistics
    at 0, see `ZeroStatistics`; `pooling: caffe` removes the padding of max pooling and rounds its
    output sizes up. Raises `UsageError` where the model has no such layer.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if norm_momentum is not None:
        _require_layers(norms, "norm_momentum", "batch norm")
        for norm in norms.values():
            norm.momentum = norm_momentum
    if first_norm == "zeros":
        _require_layers(norms, "first_norm", "batch norm")
        name = next(iter(norms))
        model.set_submodule(name, ZeroStatistics(norms[name]))
    if pooling == "caffe":
        pools = [m for m in model.modules() if isinstance(m, nn.MaxPool2d)]
        _require_layers(pools, "pooling", "max pooling")
        for pool in pools:
            pool.padding, pool.ceil_mode = 0, True
    return model


def _require_layers(layers: Sized, key: str, what: str) -> None:
    if not layers:
        raise UsageError(f"model.{key}: the network has no {what}. Remove it with ~model.{key}.")
