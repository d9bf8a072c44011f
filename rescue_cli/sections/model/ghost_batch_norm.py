"""Batch norm over small groups of a batch (ghost batch norm)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.errors import UsageError


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that, while training, normalises each run of `size` images on its own.

    A batch of at most `size` images is one group. Running statistics move by the mean over the
    groups, each with its unbiased variance; evaluation is plain batch norm. Raises `UsageError`
    where the batch does not divide.
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__(features)
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        if not self.training or group_count(len(images), self.size) == 1:
            return super().forward(images)
        assert isinstance(self.running_mean, Tensor)
        assert isinstance(self.running_var, Tensor)
        assert isinstance(self.num_batches_tracked, Tensor)
        assert self.momentum is not None
        groups = torch.split(images, self.size)
        means, variances = self.running_mean.new_zeros(2, len(groups), self.num_features)
        outputs = [  # with momentum 1 a running statistic is the group's own
            functional.batch_norm(
                group, mean, variance, self.weight, self.bias, True, 1.0, self.eps
            )
            for group, mean, variance in zip(groups, means, variances, strict=True)
        ]
        self.num_batches_tracked += 1
        self.running_mean.lerp_(means.mean(0), self.momentum)
        self.running_var.lerp_(variances.mean(0), self.momentum)
        return torch.cat(outputs)


def group_count(images: int, size: int) -> int:
    """How many groups of `size` a batch makes; raises `UsageError` where it does not divide."""
    if images % size and images > size:
        raise UsageError(
            f"model.ghost: {images} images of a micro-batch do not divide into groups of {size}. "
            f"Set train.device_batch_size to a multiple of {size}, or model.ghost to a divisor."
        )
    return max(1, images // size)


def interleave_groups(batch: Tensor, groups: int) -> Tensor:
    """Every `groups`-th image of (n, ...) side by side: group g is images g, g + groups, ..."""
    return torch.cat([batch[group::groups] for group in range(groups)])


def undo_interleave(batch: Tensor, groups: int) -> Tensor:
    """Undoes `interleave_groups`."""
    return interleave_groups(batch, len(batch) // groups)
