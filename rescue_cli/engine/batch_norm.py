"""Running statistics of batch norm that do not depend on the number of processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rescue_cli import distributed


class RunningStatistics:
    """Moves each running mean and variance once a step, by the mean over the step's micro-batches.

    Every micro-batch starts from the statistics at the start of the step, and the results are
    averaged over all micro-batches of all processes. With one micro-batch per step that is what
    batch norm does by itself.
    """

    def __init__(self, model: nn.Module, micro_batches: int) -> None:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        statistics = [(m.running_mean, m.running_var) for m in norms]
        self.buffers: list[Tensor] = [b for pair in statistics for b in pair if b is not None]
        self.counts: list[Tensor] = [
            m.num_batches_tracked for m in norms if m.num_batches_tracked is not None
        ]
        self.micro_batches = micro_batches
        self.alone = micro_batches == 1 or not self.buffers
        self.sums: list[Tensor] = []

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Encloses forward and backward of one micro-batch: autograd allows no buffer to change."""
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
        """After the step's last micro-batch: the buffers become the mean over all micro-batches."""
        if self.alone:
            return
        flat = torch.cat([s.reshape(-1) for s in self.sums])
        flat = distributed.sum_over_ranks(flat) / self.micro_batches
        parts = torch.split(flat, [b.numel() for b in self.buffers])
        torch._foreach_copy_(
            self.buffers, [p.view_as(b) for p, b in zip(parts, self.buffers, strict=True)]
        )
        torch._foreach_add_(self.counts, 1)
        self.sums = []
