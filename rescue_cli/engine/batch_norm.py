"""Batch-norm statistics that mean the same on any number of processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rescue_cli import distributed


class RunningStatistics:
    """Moves each running mean and variance once a step, by the mean over the step's slices.

    Every slice starts from the step's statistics; what the slices made of them is averaged over
    all slices of all processes. With one slice a step that is what batch norm does by itself.
    """

    def __init__(self, model: nn.Module, slices: int) -> None:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        statistics = [(m.running_mean, m.running_var) for m in norms]
        self.buffers: list[Tensor] = [b for pair in statistics for b in pair if b is not None]
        self.counts: list[Tensor] = [
            m.num_batches_tracked for m in norms if m.num_batches_tracked is not None
        ]
        self.slices = slices
        self.alone = slices == 1 or not self.buffers
        self.sums: list[Tensor] = []

    @contextmanager
    def slice(self) -> Iterator[None]:
        """Around one slice, forward and backward: autograd lets no buffer change in between."""
        if self.alone:
            yield
            return
        start = [b.clone() for b in self.buffers]
        counts = [c.clone() for c in self.counts]
        yield
        with torch.no_grad():
            if self.sums:
                torch._foreach_add_(self.sums, self.buffers)
            else:
                self.sums = [b.clone() for b in self.buffers]
            torch._foreach_copy_(self.buffers, start)
            torch._foreach_copy_(self.counts, counts)

    @torch.no_grad()
    def settle(self) -> None:
        """After the step's last slice: the buffers become the mean over all slices."""
        if self.alone:
            return
        flat = torch.cat([s.reshape(-1) for s in self.sums])
        flat = distributed.sum_over_ranks(flat) / self.slices
        parts = torch.split(flat, [b.numel() for b in self.buffers])
        torch._foreach_copy_(
            self.buffers, [p.view_as(b) for p, b in zip(parts, self.buffers, strict=True)]
        )
        torch._foreach_add_(self.counts, 1)
        self.sums = []
