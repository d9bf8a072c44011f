"""Batch norm with Caffe's running statistics."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class CaffeBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose running statistics are weighted means of batches alone.

    Caffe divides its running sums by the sum of their weights, so that the 0 and the 1 which torch
    begins with never count (BVLC/caffe 09c8f459, src/caffe/layers/batch_norm_layer.cpp). `momentum`
    is 1 - `moving_average_fraction`: update t moves them by momentum / (1 - (1 - momentum)^t).
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
