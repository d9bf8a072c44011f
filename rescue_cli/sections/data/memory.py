"""Batches of a split in memory: gathered on the device, without a loader."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rescue_cli.batch import Batch, EvalBatch, View, to_device
from rescue_cli.recipe.sections import Interpolation
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import Sample
from rescue_cli.sections.data.corrupt import record_corrupt
from rescue_cli.sections.data.splits import Images, count_rounds


class Ahead(NamedTuple):
    """How many steps of an epoch are gathered and augmented at once, and how.

    `plan(batches)`: of micro-batches without images, on the host; `apply(images, plan)`: their
    images (n, c, h, w), augmented.
    """

    plan: Callable[[Sequence[Batch]], Any]
    apply: Callable[[Tensor, Any], Tensor]
    steps: int
    steps_per_epoch: int


class Drawn(NamedTuple):
    """Micro-batches that have no images yet, and how those are augmented."""

    batches: list[Batch]
    plan: Any


class MemoryFeed:
    """Training micro-batches of a split that lies on the device as uint8.

    With `ahead` they are augmented already, many steps at once: on a GPU, starting the kernels of
    a small micro-batch takes longer than the kernels themselves. A thread draws what the steps
    after them need, so that no step waits for it.
    """

    def __init__(
        self,
        images: Images,
        sampler: Callable[[int, int], Indices],
        micro_batches: Sequence[int],
        *,
        max_corrupt: int,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        # Every process has read the whole set; one of them reports what was corrupt
        self.to_report = images.corrupt if 0 in micro_batches else ()
        self.max_corrupt = max_corrupt
        self.log = log
        self.images, self.labels = (to_device(a, device) for a in (images.pixels, images.labels))
        self.sampler = sampler
        self.local = micro_batches
        self.device = device
        self.ahead: Ahead | None = None
        self.prepared: dict[int, list[Batch]] = {}  # steps whose micro-batches are augmented
        self.thread: ThreadPoolExecutor | None = None
        self.next_drawn: tuple[int, Future[Drawn]] | None = None  # first step, batches and plan
        self.waited = 0.0
        self.replaced = 0
        self.corrupt: list[str] = []

    def start(self, _step: int) -> None:
        """Reports the images that were corrupt when the set was read, and forgets what a warm-up
        prepared, whose time is not the training's.
        """
        self.prepared, self.next_drawn = {}, None
        record_corrupt(self.corrupt, self.to_report, self.max_corrupt, self.log)
        self.replaced = len(self.corrupt)

    def close(self) -> None:
        """Ends the thread that draws."""
        if self.thread is not None:
            self.thread.shutdown()
        self.thread = self.next_drawn = None

    def micro_batches(self, step: int) -> Iterator[Batch]:
        if self.ahead is not None:
            if step not in self.prepared:
                self.prepared.clear()  # before its successor takes as much memory
                self.prepared = self._prepare(self._drawn(step, self.ahead), self.ahead)
            yield from self.prepared[step]
            return
        for micro_batch in self.local:
            indices = self.sampler(step, micro_batch)
            rows = to_device(indices, self.device)
            yield Batch(self.images[rows], self.labels[rows], step, micro_batch, indices)

    def _drawn(self, first: int, ahead: Ahead) -> Drawn:
        """The micro-batches of the steps from `first` on, without images, and their plan; has those
        of the next steps drawn meanwhile.
        """
        if self.next_drawn is not None and self.next_drawn[0] == first:
            drawn = self.next_drawn[1].result()
        else:
            drawn = self._draw(first, ahead)
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1, "draws")
        after = drawn.batches[-1].step + 1
        self.next_drawn = after, self.thread.submit(self._draw, after, ahead)
        return drawn

    def _draw(self, first: int, ahead: Ahead) -> Drawn:
        epoch_end = (first // ahead.steps_per_epoch + 1) * ahead.steps_per_epoch
        steps = range(first, min(first + ahead.steps, epoch_end))
        batches = [Batch(None, None, s, m, self.sampler(s, m)) for s in steps for m in self.local]
        return Drawn(batches, ahead.plan(batches))

    def _prepare(self, drawn: Drawn, ahead: Ahead) -> dict[int, list[Batch]]:
        """The drawn micro-batches with their images, augmented, by step."""
        batches = drawn.batches
        rows = to_device(np.concatenate([batch.indices for batch in batches]), self.device)
        sizes = [len(batch.indices) for batch in batches]
        images = torch.split(ahead.apply(self.images[rows], drawn.plan), sizes)
        prepared: dict[int, list[Batch]] = {}
        for batch, pixels, labels in zip(
            batches, images, torch.split(self.labels[rows], sizes), strict=True
        ):
            whole = replace(batch, images=pixels, targets=labels)
            prepared.setdefault(batch.step, []).append(whole)
        return prepared


class MemoryEvalFeed:
    """A test set on the device, in order, in batches dealt to the processes in turn."""

    def __init__(
        self,
        images: Images,
        views: Sequence[View],
        batch_size: int,
        interpolation: Interpolation,
        device: torch.device,
    ) -> None:
        self.images, self.labels = (to_device(a, device) for a in (images.pixels, images.labels))
        self.views = views
        self.batch_size = batch_size
        self.interpolation = interpolation

    def __len__(self) -> int:
        return len(self.labels)

    def rounds(self, world_size: int, among: Indices | None = None) -> int:
        count = len(self) if among is None else len(among)
        return count_rounds(count, self.batch_size, world_size)

    def annotated_samples(self, _count: int) -> list[Sample]:
        """None: what is in memory has labels."""
        return []

    def batches(
        self, rank: int, world_size: int, among: Indices | None = None
    ) -> Generator[EvalBatch, None, None]:
        device = self.labels.device
        order = (
            torch.arange(len(self), device=device) if among is None else to_device(among, device)
        )
        for part in torch.split(order, self.batch_size)[rank::world_size]:
            images = self.images[part]
            views = {view: resize_centre(images, view, self.interpolation) for view in self.views}
            yield EvalBatch(part, self.labels[part], views)


def resize_centre(images: Tensor, view: View, interpolation: Interpolation) -> Tensor:
    """uint8 images (n, c, h, w) resized by torch, antialiased, to floor(size / crop), then cut."""
    if images.is_floating_point():  # features of a frozen network, which saw this view
        return images
    short = math.floor(view.size / view.crop)
    if images.shape[-2:] != (short, short):
        resized = functional.interpolate(
            images.float(), (short, short), mode=interpolation, antialias=True
        )
        images = resized.round_().clamp_(0, 255).to(torch.uint8)
    edge = round((short - view.size) / 2)
    return images[..., edge : edge + view.size, edge : edge + view.size]
