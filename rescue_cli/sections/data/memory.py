"""Batches of a split in memory: gathered on the device, without a loader."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rescue_cli.batch import Batch, EvalBatch, View, to_device
from rescue_cli.recipe.sections import Interpolation
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import Sample
from rescue_cli.sections.data.corrupt import record_corrupt
from rescue_cli.sections.data.splits import Images, count_rounds


class MemoryFeed:
    """Training micro-batches of a split that lies on the device as uint8."""

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
        self.waited = 0.0
        self.replaced = 0
        self.corrupt: list[str] = []

    def start(self, _step: int) -> None:
        """Reports the images that were corrupt when the set was read."""
        record_corrupt(self.corrupt, self.to_report, self.max_corrupt, self.log)
        self.replaced = len(self.corrupt)

    def close(self) -> None:
        """Nothing is left running."""

    def micro_batches(self, step: int) -> Iterator[Batch]:
        for micro_batch in self.local:
            indices = self.sampler(step, micro_batch)
            rows = to_device(indices, self.device)
            yield Batch(self.images[rows], self.labels[rows], step, micro_batch, indices)


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
