"""Batch norm over small groups of a batch (ghost batch norm)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from rescue_cli.errors import UsageError


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that, in training, normalises each group of `size` consecutive images separately.

    A batch of at most `size` images is one group. Running statistics are updated with the mean over
    the groups, each with its unbiased variance; evaluation is plain batch norm. Raises `UsageError`
    for a batch that is not a multiple of `size`.
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
    """The number of groups of `size` in a batch; raises `UsageError` where it does not divide."""
    if images % size and images > size:
        raise UsageError(
            f"model.ghost: a micro-batch of {images} does not divide into groups of {size}. "
            f"Set train.device_batch_size to a multiple of {size}, or model.ghost to a divisor."
        )
    return max(1, images // size)


def interleave_groups(batch: Tensor, groups: int) -> Tensor:
    """Reorders a batch (n, ...) so that group g holds images g, g + groups, ..."""
    return torch.cat([batch[group::groups] for group in range(groups)])


def undo_interleave(batch: Tensor, groups: int) -> Tensor:
    """Undoes `interleave_groups`."""
    return interleave_groups(batch, len(batch) // groups)
