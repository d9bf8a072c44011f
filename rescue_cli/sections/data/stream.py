"""Training micro-batches from files: workers decode and cut, the device does the rest."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rescue_cli.batch import Batch, SideStream, to_device
from rescue_cli.errors import DataError
from rescue_cli.recipe.sections import Decoder, Interpolation
from rescue_cli.rng import Floats, Indices, uniform
from rescue_cli.sections.annotations import Sample, Target, collate
from rescue_cli.sections.data.corrupt import all_corrupt_error, read_or_replace, record_corrupt
from rescue_cli.sections.data.decode import (
    DEFAULT_READING,
    Box,
    Needed,
    bounding_box,
    centre_crop,
    crop_resize,
    height_and_width,
)
from rescue_cli.sections.data.jpeg_region import region_decoder
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.samples import as_tensor, read_sample
from rescue_cli.sections.data.shared_memory import Slots
from rescue_cli.sections.data.splits import Files
from rescue_cli.sections.data.workers import (
    AHEAD,
    ANNOTATED_CHUNK,
    CHUNK,
    end_workers,
    next_of,
    start_workers,
)

SAMPLES_PER_IMAGE = 3  # times as many samples as images in a chunk, at most
Position = tuple[int, int]  # micro-batch, position in it


class LoaderOperation(Protocol):
    """An augmentation that runs in a loader worker."""

    @property
    def columns(self) -> int: ...
    @property
    def apply(self) -> Callable[..., Any]: ...


@dataclass(frozen=True)
class Cropping:
    """Cuts views of one size: the box that `crop` draws, or the centre where it is None."""

    crop: LoaderOperation | None
    size: int
    interpolation: Interpolation
    draws: ClassVar[str] = "crop"  # the name of their random numbers
    chunk: ClassVar[int] = CHUNK  # images that a worker reads at a time

    @property
    def columns(self) -> int:
        return self.crop.columns if self.crop else 0

    def needed(self, draws: Sequence[Floats]) -> Needed | None:
        """The part of an image that the views of these draws are cut from; None: all of it."""
        crop = self.crop
        if crop is None:
            return None
        return lambda *size: bounding_box([Box(*crop.apply(*size, row)) for row in draws])

    def __call__(self, image: Any, target: Target, draws: Floats) -> Sample:
        if self.crop is None:
            return Sample(centre_crop(image, self.size, 1.0, self.interpolation), target)
        box = Box(*self.crop.apply(*height_and_width(image), draws))
        return Sample(crop_resize(image, box, self.size, self.size, self.interpolation), target)


@dataclass(frozen=True)
class WholeImages:
    """Takes each image in its own size, and augments it together with its boxes or mask."""

    operations: Sequence[LoaderOperation]
    size: ClassVar[None] = None
    draws: ClassVar[str] = "augment"
    chunk: ClassVar[int] = ANNOTATED_CHUNK

    @property
    def columns(self) -> int:
        return sum(operation.columns for operation in self.operations)

    def needed(self, draws: Sequence[Floats]) -> None:
        """All of an image."""

    def __call__(self, image: Any, target: Target, draws: Floats) -> Sample:
        sample = Sample(as_tensor(image), target)
        ends = np.cumsum([operation.columns for operation in self.operations])
        for operation, part in zip(self.operations, np.split(draws, ends), strict=False):
            sample = operation.apply(sample, part)
        return sample


class Chunk(NamedTuple):
    """Some images of a step, each with the positions that it is for.

    `slot`: where samples of one size are handed over; chosen when the chunk is handed out.
    """

    step: int
    images: list[tuple[int, list[Position]]]
    slot: int = 0


class Loaded(NamedTuple):
    """The samples of a chunk and their positions, and the files that could not be decoded.

    `images` is empty where the samples have one size: then they lie in the slot. No positions at
    all: an image and all that were drawn in its place are corrupt. `fault`: an error that ends the
    run, as text; a worker's exceptions would come with tracebacks.
    """

    slot: int
    images: list[Tensor]
    targets: list[Target]
    positions: list[Position]
    broken: list[tuple[str, str]]  # file, reason
    replaced: int
    fault: str | None = None


class TrainSamples(Dataset[Loaded]):
    """Loads chunks; runs inside loader workers and knows nothing of torch's randomness.

    `slots`: memory for samples of one size, which the feed makes before its workers are forked.
    """

    slots: Slots

    def __init__(
        self,
        files: Files,
        cut: Cropping | WholeImages,
        micro_batch_size: int,
        seed: int,
        decoder: Decoder,
        reading: Reading = DEFAULT_READING,
    ) -> None:
        self.files = files
        self.cut = cut
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.decoder = decoder
        self.reading = reading
        self.drawn: dict[tuple[int, int], Floats] = {}  # of the latest step, by (step, micro-batch)

    def __getitem__(self, chunk: Any) -> Loaded:
        loaded = Loaded(chunk.slot, [], [], [], [], 0)
        replaced = 0
        for index, positions in chunk.images:
            draws = [self._draws(chunk.step, number)[place] for number, place in positions]
            try:
                used, image, target = self.read(index, loaded.broken, self.cut.needed(draws))
            except DataError as error:
                return Loaded(chunk.slot, [], [], [], loaded.broken, 0, str(error))
            if image is None:
                return Loaded(chunk.slot, [], [], [], loaded.broken, 0)
            replaced += len(positions) if used != index else 0
            for position, row in zip(positions, draws, strict=True):
                sample = self.cut(image, target, row)
                if self.cut.size is None:
                    loaded.images.append(sample.image)
                else:
                    view = sample.image.permute(1, 2, 0).numpy()
                    self.slots.pixels[chunk.slot, len(loaded.positions)] = view
                loaded.targets.append(sample.target)
                loaded.positions.append(position)
        return loaded._replace(replaced=replaced)

    def read(
        self, index: int, broken: list[tuple[str, str]], needed: Needed | None = None
    ) -> tuple[int, Any, Any]:
        """Index, image and target; of another image drawn for it where it cannot be decoded, and
        without an image where all that were drawn are corrupt. Adds the corrupt files to `broken`.
        """

        def read(place: int) -> tuple[Any, Target]:
            return read_sample(self.files, place, self.decoder, self.reading, needed)

        place = self.files.names.place
        used, sample = read_or_replace(index, len(self.files), self.seed, read, place, broken)
        return used, *(sample or (None, None))

    def _draws(self, step: int, micro_batch: int) -> Floats:
        """The draws of a micro-batch, made once for all chunks that hold some of its images."""
        block = self.drawn.get((step, micro_batch))
        if block is None:
            self.drawn = {key: kept for key, kept in self.drawn.items() if key[0] == step}
            shape = (self.micro_batch_size, self.cut.columns)
            block = uniform(self.seed, self.cut.draws, step, micro_batch, shape)
            self.drawn[step, micro_batch] = block
        return block


class FileFeed:
    """Training micro-batches from files, `workers` ahead of the step that trains on them."""

    def __init__(
        self,
        samples: TrainSamples,
        sampler: Callable[[int, int], Indices],
        micro_batches: Sequence[int],
        *,
        steps: int,
        max_corrupt: int,
        workers: int,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        self.samples = samples
        self.sampler = sampler
        self.local = micro_batches
        self.steps = steps
        self.max_corrupt = max_corrupt
        self.workers = workers
        self.device = device
        self.side = SideStream(device)
        self.log = log
        self.waited = 0.0
        self.replaced = 0
        self.corrupt: list[str] = []
        self._loaded: Iterator[Any] = iter(())

    def start(self, step: int) -> None:
        """Starts the workers from `step` on, a whole step ahead of the one that trains."""
        self.close()
        if self.samples.decoder == "fast":
            region_decoder()  # once, before the workers are forked
        ahead = max(AHEAD, math.ceil(len(self.chunks(step)) / max(self.workers, 1)))
        # At most so many chunks are under way, and one more is being read here
        count = ahead * self.workers + 1
        cut = self.samples.cut
        if cut.size is not None:
            self.samples.slots = Slots(count, SAMPLES_PER_IMAGE * cut.chunk, cut.size)
        chunks = itertools.chain.from_iterable(self.chunks(s) for s in range(step, self.steps))
        numbered = (chunk._replace(slot=n % count) for n, chunk in enumerate(chunks))
        self._loaded = start_workers(self.samples, numbered, self.workers, ahead=ahead)

    def close(self) -> None:
        """Ends the workers."""
        end_workers(self._loaded)
        self._loaded = iter(())

    def chunks(self, step: int) -> list[Chunk]:
        """This process's share of a step; an image for several positions is read once."""
        positions: dict[int, list[Position]] = {}
        for micro_batch in self.local:
            for position, index in enumerate(self.sampler(step, micro_batch).tolist()):
                positions.setdefault(index, []).append((micro_batch, position))
        return make_chunks(step, positions, self.samples.cut.chunk)

    def micro_batches(self, step: int) -> Iterator[Batch]:
        size = self.samples.micro_batch_size
        first = {micro_batch: i * size for i, micro_batch in enumerate(self.local)}
        side, count = self.samples.cut.size, len(self.local) * size
        collected: _Views | _Samples = (
            _Samples(count, self.device)
            if side is None
            else _Views(count, side, self.device, self.samples.slots)
        )
        for _ in self.chunks(step):
            loaded = self._next()
            rows = [first[micro_batch] + position for micro_batch, position in loaded.positions]
            collected.add(rows, loaded)
        parts = (slice(start, start + size) for start in first.values())
        copies = self.side.ahead(partial(collected.batch, part) for part in parts)
        for micro_batch, (images, targets) in zip(first, copies, strict=True):
            yield Batch(images, targets, step, micro_batch, self.sampler(step, micro_batch))

    def _next(self) -> Loaded:
        """The next chunk, waited for; raises `DataError` where too many files are corrupt."""
        started = time.perf_counter()
        loaded: Loaded = next_of(self._loaded)
        self.waited += time.perf_counter() - started
        if loaded.fault is not None:
            raise DataError(loaded.fault)
        self.replaced += loaded.replaced
        record_corrupt(self.corrupt, loaded.broken, self.max_corrupt, self.log)
        if not loaded.positions:
            raise all_corrupt_error(loaded.broken)
        return loaded


class _Views:
    """A step's views of one size and their labels, as blocks from which micro-batches are cut."""

    def __init__(self, count: int, size: int, device: torch.device, slots: Slots) -> None:
        pinned = device.type == "cuda"
        self.images = torch.empty((count, size, size, 3), dtype=torch.uint8, pin_memory=pinned)
        self.labels = torch.empty(count, dtype=torch.int64, pin_memory=pinned)
        # numpy copies rows whole where torch copies byte by byte, at a twentieth of the speed
        self.pixels, self.numbers = self.images.numpy(), self.labels.numpy()
        self.device = device
        self.slots = slots

    def add(self, rows: list[int], loaded: Loaded) -> None:
        self.pixels[rows] = self.slots.pixels[loaded.slot, : len(rows)]
        self.numbers[rows] = loaded.targets

    def batch(self, rows: slice) -> tuple[Tensor, Tensor]:
        images = to_device(self.images[rows], self.device).permute(0, 3, 1, 2)
        return images, to_device(self.labels[rows], self.device)


class _Samples:
    """A step's samples, each image in its own size."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.samples: list[Any] = [None] * count
        self.device = device

    def add(self, rows: list[int], loaded: Loaded) -> None:
        for row, image, target in zip(rows, loaded.images, loaded.targets, strict=True):
            self.samples[row] = Sample(image, target)

    def batch(self, rows: slice) -> tuple[Any, Any]:
        return collate(self.samples[rows], self.device)


def make_chunks(
    step: int, positions: Mapping[int, list[Position]], images_per_chunk: int = CHUNK
) -> list[Chunk]:
    """Chunks of at most so many images, and `SAMPLES_PER_IMAGE` times as many samples, for the
    positions of each image. An image for more positions than that is in several chunks.
    """
    most = SAMPLES_PER_IMAGE * images_per_chunk
    chunks: list[Chunk] = []
    images, samples = images_per_chunk, most  # as of a full chunk, so that the first begins one
    for index, of_image in positions.items():
        for start in range(0, len(of_image), most):
            some = of_image[start : start + most]
            if images == images_per_chunk or samples + len(some) > most:
                chunks.append(Chunk(step, []))
                images, samples = 0, 0
            chunks[-1].images.append((index, some))
            images, samples = images + 1, samples + len(some)
    return chunks
