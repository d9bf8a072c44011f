"""One training step, every ingredient a visible line."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rescue_cli import distributed
from rescue_cli.batch import Batch
from rescue_cli.engine.batch_norm import RunningStatistics
from rescue_cli.engine.optimizers import Optimizers
from rescue_cli.sections.averaging import Average
from rescue_cli.sections.selection import Selection


class Feed(Protocol):
    """This process's micro-batches of each step."""

    waited: float  # seconds
    replaced: int  # images that could not be decoded and gave way to another
    corrupt: list[str]  # their files

    def start(self, step: int, /) -> None: ...
    def micro_batches(self, step: int) -> Iterator[Batch]: ...
    def close(self) -> None: ...


class Task(Protocol):
    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...


@dataclass
class Step:
    """Runs update number `step`; nothing in it waits for the device."""

    feed: Feed
    augment: Callable[[Batch], Batch]
    mix: Callable[[Batch], Batch]
    select: Selection
    task: Task
    model: nn.Module  # wrapped for several processes, compiled where asked for
    optimizers: Optimizers
    statistics: RunningStatistics
    average: Average
    autocast: Callable[[], AbstractContextManager[None]]
    device: torch.device
    seed: int
    local_micro_batches: int
    loss_factor: float  # of a mean over images: how many are summed where the recipe sums its loss

    def __post_init__(self) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)

    def __call__(self, step: int) -> None:
        self.optimizers.set_rates(step)
        for number, batch in enumerate(self.feed.micro_batches(step)):
            seed_device(self.device, self.seed, step, batch.micro_batch)
            batch = self.select(self.mix(self.augment(batch)))
            with self.gradients_meet(number), self.statistics.micro_batch():
                with self.autocast():
                    loss = self.task.loss(self.model, batch)
                scaled = loss * (self.loss_factor / self.local_micro_batches)
                self.optimizers.scaler.scale(scaled).backward()  # type: ignore[no-untyped-call]
            self.loss_sum += loss.detach() / self.local_micro_batches
        self.statistics.settle()
        self.optimizers.step()
        self.average.update(step)

    def gradients_meet(self, number: int) -> AbstractContextManager[None]:
        """Processes exchange gradients on the last of their micro-batches only."""
        if number == self.local_micro_batches - 1:
            return nullcontext()
        return distributed.without_exchange(self.model)


def seed_device(device: torch.device, seed: int, step: int, micro_batch: int) -> None:
    """The device's generator (dropout, drop path) as a function of (seed, step, micro-batch).

    Of that device alone: `torch.manual_seed` visits every backend, and where CUDA has not started
    it also formats a stack trace, which takes a hundred times as long.
    """
    number = ((seed * 1_000_003 + step) * 4_099 + micro_batch) % 2**63
    if device.type == "cuda":
        torch.cuda.manual_seed(number)  # the current device's, which is this process's
    else:
        torch.default_generator.manual_seed(number)
