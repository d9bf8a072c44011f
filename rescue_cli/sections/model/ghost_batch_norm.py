"""Batch norm over small groups of a batch (ghost batch norm)."""

from collections.abc import Callable
from typing import Any

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
        shape = (group_count(len(images), self.size), self.num_features)
        means, variances = self.running_mean.new_zeros(2, *shape)
        # A chunk of a batch stays in a processor's cache; elsewhere each call has its price
        normalise = self._by_chunks if images.device.type == "cpu" else self._by_reshape
        outputs = normalise(images, means, variances)
        self.num_batches_tracked += 1
        self.running_mean.lerp_(means.mean(0), self.momentum)
        self.running_var.lerp_(variances.mean(0), self.momentum)
        return outputs

    # Both write each group's mean and unbiased variance into a row of `means` and `variances`
    # (groups, features): with momentum 1 a running statistic is the group's own

    def _by_chunks(self, images: Tensor, means: Tensor, variances: Tensor) -> Tensor:
        """Normalises group by group."""
        outputs = [
            functional.batch_norm(
                group, mean, variance, self.weight, self.bias, True, 1.0, self.eps
            )
            for group, mean, variance in zip(
                torch.split(images, self.size), means, variances, strict=True
            )
        ]
        return torch.cat(outputs)

    def _by_reshape(self, images: Tensor, means: Tensor, variances: Tensor) -> Tensor:
        """Normalises all groups in one call, in which each has channels of its own."""
        weight, bias = (p.repeat(len(means)) for p in (self.weight, self.bias))
        normed = functional.batch_norm(
            _channels_of_groups(images, len(means)),
            means.view(-1), variances.view(-1), weight, bias, True, 1.0, self.eps,
        )  # fmt: skip
        outputs: Tensor = _ImagesOfGroups.apply(normed, len(means))
        return outputs


def _channels_of_groups(images: Tensor, groups: int) -> Tensor:
    """(groups * size, channels, h, w) as (size, groups * channels, h, w), by one copy."""
    rows, channels, back = _in_memory_order(images)
    apart = torch.unflatten(rows, 0, (groups, -1)).movedim(0, channels)
    return back(apart.flatten(channels, channels + 1))


class _ImagesOfGroups(torch.autograd.Function):
    """Undoes `_channels_of_groups`, by one copy.

    A function of its own so that its result is no view: of a view that an activation changes in
    place, autograd makes three more copies.
    """

    @staticmethod
    def forward(ctx: Any, grouped: Tensor, groups: int) -> Tensor:
        ctx.groups = groups
        rows, channels, _ = _in_memory_order(grouped)
        n, of_groups, height, width = grouped.shape
        last = torch.channels_last if channels == 3 else torch.contiguous_format
        shape = (n * groups, of_groups // groups, height, width)
        images = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=last)
        target, _, _ = _in_memory_order(images)
        apart = torch.unflatten(rows, channels, (groups, -1)).movedim(channels, 0)
        torch.unflatten(target, 0, (groups, -1)).copy_(apart)
        return images

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _channels_of_groups(gradient, ctx.groups), None


def _in_memory_order(batch: Tensor) -> tuple[Tensor, int, Callable[[Tensor], Tensor]]:
    """The batch with its dimensions in the order of its memory, where its channels are then, and
    how to undo that.
    """
    if batch.ndim == 4 and batch.is_contiguous(memory_format=torch.channels_last):
        return batch.permute(0, 2, 3, 1), 3, lambda rows: rows.permute(0, 3, 1, 2)
    return batch, 1, lambda rows: rows


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
    rows, _, back = _in_memory_order(batch)
    return back(torch.unflatten(rows, 0, (-1, groups)).transpose(0, 1).flatten(0, 1))


def undo_interleave(batch: Tensor, groups: int) -> Tensor:
    """Undoes `interleave_groups`."""
    return interleave_groups(batch, len(batch) // groups)
