"""What every feed of training micro-batches from files has: its workers, and its counts."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from rescue_cli.rng import Indices
from rescue_cli.sections.data.corrupt import record_corrupt
from rescue_cli.sections.data.workers import AHEAD, end_workers, next_of, start_workers


class FileFeed:
    """Loader workers ahead of the step that wants their images; which are whose says a subclass."""

    def __init__(
        self,
        sampler: Callable[[int, int], Indices],
        micro_batches: Sequence[int],
        *,
        steps: int,
        max_corrupt: int,
        workers: int,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        self.sampler = sampler
        self.mine = micro_batches
        self.steps = steps
        self.max_corrupt = max_corrupt
        self.workers = workers
        self.device = device
        self.log = log
        self.waited = 0.0
        self.replaced = 0
        self.corrupt: list[str] = []
        self.decoded: Iterator[Any] = iter(())

    def close(self) -> None:
        """Ends the workers."""
        end_workers(self.decoded)
        self.decoded = iter(())

    def begin(self, dataset: Dataset[Any], order: Iterator[Any], ahead: int = AHEAD) -> None:
        """Sets the workers to work."""
        self.decoded = start_workers(dataset, order, self.workers, ahead=ahead)

    def next(self) -> Any:
        """What the workers have made of the next item, waited for."""
        started = time.perf_counter()
        found = next_of(self.decoded)
        self.waited += time.perf_counter() - started
        return found

    def count(self, broken: Iterable[tuple[str, str]], replaced: int) -> None:
        """Counts what was corrupt; raises `DataError` where that is too much."""
        self.replaced += replaced
        record_corrupt(self.corrupt, broken, self.max_corrupt, self.log)
