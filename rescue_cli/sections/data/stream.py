"""Training micro-batches of a split on disk: workers decode and crop, the device does the rest."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rescue_cli.batch import Batch, to_device
from rescue_cli.errors import DataError
from rescue_cli.recipe.sections import Decoder, Interpolation
from rescue_cli.rng import Floats, Indices, uniform
from rescue_cli.sections.data.corrupt import all_corrupt, readable
from rescue_cli.sections.data.decode import (
    DEFAULT_READING,
    Box,
    centre_crop,
    crop_resize,
    read_image,
    size_of,
)
from rescue_cli.sections.data.feed import FileFeed
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.shared_memory import Slots
from rescue_cli.sections.data.splits import Files
from rescue_cli.sections.data.workers import AHEAD, CHUNK

VIEWS = 3 * CHUNK  # at most as many views in a chunk
Place = tuple[int, int]  # micro-batch, position


class Chunk(NamedTuple):
    """Some images of a step, each with the places that want a view of it.

    Which slot takes the views is said when the chunk is handed out.
    """

    step: int
    images: list[tuple[int, list[Place]]]
    slot: int = 0


class Views(NamedTuple):
    """A decoded chunk: the slot that holds its views, where they belong, what went wrong.

    No views at all: an image and all that were drawn in its place are corrupt. `fault`: what is
    wrong for good; a worker's exceptions would come with tracebacks.
    """

    slot: int
    labels: list[int]
    places: list[Place]
    broken: list[tuple[str, str]]  # file, reason
    replaced: int
    fault: str | None = None


@dataclass(frozen=True)
class Cropping:
    """How a training view is cut: `box` from `columns` draws, or the centre where it is None."""

    box: Callable[[int, int, Floats], tuple[int, int, int, int]] | None
    columns: int
    size: int
    interpolation: Interpolation
    decoder: Decoder
    reading: Reading = DEFAULT_READING


class TrainViews(Dataset[Views]):
    """Decodes chunks; runs inside loader workers and knows nothing of torch's randomness.

    `slots` is where the views go; the feed makes it before its workers are forked.
    """

    slots: Slots

    def __init__(self, files: Files, cropping: Cropping, micro_batch_size: int, seed: int) -> None:
        self.files = files
        self.cropping = cropping
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.draws: dict[tuple[int, int], Floats] = {}  # of the latest step, by (step, micro-batch)

    def __getitem__(self, chunk: Any) -> Views:
        labels: list[int] = []
        places: list[Place] = []
        broken: list[tuple[str, str]] = []
        replaced = 0
        slot = self.slots.pixels[chunk.slot]
        for index, wanted in chunk.images:
            try:
                found, decoded = self._readable(index, broken)
            except DataError as error:
                return Views(chunk.slot, [], [], broken, 0, str(error))
            if decoded is None:
                return Views(chunk.slot, [], [], broken, 0)
            replaced += len(wanted) if found != index else 0
            for micro_batch, position in wanted:
                draws = self._draws(chunk.step, micro_batch)[position]
                slot[len(places)] = self._view(decoded, draws).permute(1, 2, 0).numpy()
                labels.append(int(self.files.labels[found]))
                places.append((micro_batch, position))
        return Views(chunk.slot, labels, places, broken, replaced)

    def _draws(self, step: int, micro_batch: int) -> Floats:
        """The crops of a micro-batch, drawn once for all chunks that hold some of its images."""
        block = self.draws.get((step, micro_batch))
        if block is None:
            self.draws = {key: kept for key, kept in self.draws.items() if key[0] == step}
            shape = (self.micro_batch_size, self.cropping.columns)
            block = uniform(self.seed, "crop", step, micro_batch, shape)
            self.draws[step, micro_batch] = block
        return block

    def _readable(self, index: int, broken: list[tuple[str, str]]) -> tuple[int, Any]:
        """The image, or where it cannot be decoded another one drawn for it; None: all corrupt."""
        path = self.files.names.path

        def read(place: int) -> Any:
            return read_image(path(place), self.cropping.decoder, self.cropping.reading)

        return readable(index, len(self.files), self.seed, read, path, broken)

    def _view(self, image: Any, draws: Floats) -> Tensor:
        crop = self.cropping
        if crop.box is None:
            return centre_crop(image, crop.size, 1.0, crop.interpolation)
        box = Box(*crop.box(*size_of(image), draws))
        return crop_resize(image, box, crop.size, crop.size, crop.interpolation)


class StreamFeed(FileFeed):
    """Training micro-batches from files, `workers` ahead of the step that wants them."""

    def __init__(
        self,
        views: TrainViews,
        sampler: Callable[[int, int], Indices],
        micro_batches: Sequence[int],
        **run: Any,
    ) -> None:
        super().__init__(sampler, micro_batches, **run)
        self.views = views

    def start(self, step: int) -> None:
        """Sets the workers to work from `step` on, a whole step ahead of the one that trains."""
        self.close()
        ahead = max(AHEAD, math.ceil(len(self.chunks(step)) / max(self.workers, 1)))
        # As many chunks are under way at most, and one more is being read here
        count = ahead * self.workers + 1
        self.views.slots = Slots(count, VIEWS, self.views.cropping.size)
        chunks = itertools.chain.from_iterable(self.chunks(s) for s in range(step, self.steps))
        numbered = (chunk._replace(slot=n % count) for n, chunk in enumerate(chunks))
        self.begin(self.views, numbered, ahead)

    def chunks(self, step: int) -> list[Chunk]:
        """This process's share of a step, an image that several places want only once."""
        wanted: dict[int, list[Place]] = {}
        for micro_batch in self.mine:
            for position, index in enumerate(self.sampler(step, micro_batch).tolist()):
                wanted.setdefault(index, []).append((micro_batch, position))
        return dealt(step, wanted)

    def micro_batches(self, step: int) -> Iterator[Batch]:
        size, rows = self.views.cropping.size, self.views.micro_batch_size
        count, pinned = len(self.mine) * rows, self.device.type == "cuda"
        images = torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=pinned)
        labels = torch.empty(count, dtype=torch.int64, pin_memory=pinned)
        first = {micro_batch: i * rows for i, micro_batch in enumerate(self.mine)}
        # numpy copies rows whole where torch copies byte by byte, at a twentieth of the speed
        pixels, numbers = images.numpy(), labels.numpy()
        for _ in self.chunks(step):
            views = self._next()
            places = [first[micro_batch] + position for micro_batch, position in views.places]
            pixels[places] = self.views.slots.pixels[views.slot, : len(places)]
            numbers[places] = views.labels
        for micro_batch, start in first.items():
            mine = slice(start, start + rows)
            planes = to_device(images[mine], self.device).permute(0, 3, 1, 2)
            targets = to_device(labels[mine], self.device)
            yield Batch(planes, targets, step, micro_batch, self.sampler(step, micro_batch))

    def _next(self) -> Views:
        views: Views = self.next()
        if views.fault is not None:
            raise DataError(views.fault)
        self.count(views.broken, views.replaced)
        if not views.places:
            raise all_corrupt(views.broken)
        return views


def dealt(step: int, wanted: Mapping[int, list[Place]]) -> list[Chunk]:
    """Chunks of at most CHUNK images and VIEWS views; an image that more places want is split."""
    chunks: list[Chunk] = []
    images, views = CHUNK, VIEWS  # in the chunk at hand, which is full before there is one
    for index, places in wanted.items():
        for start in range(0, len(places), VIEWS):
            some = places[start : start + VIEWS]
            if images == CHUNK or views + len(some) > VIEWS:
                chunks.append(Chunk(step, []))
                images, views = 0, 0
            chunks[-1].images.append((index, some))
            images, views = images + 1, views + len(some)
    return chunks
