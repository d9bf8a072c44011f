"""Training slices of a split on disk: workers decode and crop, the rest happens on the device."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rescue_cli.batch import Batch, to_device
from rescue_cli.data.corrupt import tally
from rescue_cli.data.decode import (
    UNREADABLE,
    Box,
    Decoder,
    Interpolation,
    centre_crop,
    crop_resize,
    size_of,
)
from rescue_cli.data.splits import Files
from rescue_cli.data.workers import CHUNK, decode, end_workers, next_of, reason_of, start_workers
from rescue_cli.draws import Floats, Indices, uniform, words
from rescue_cli.errors import DataError

REDRAWS = 20


class Chunk(NamedTuple):
    """Some images of a step, each with the places (slice, position) that want a view of it."""

    step: int
    images: list[tuple[int, list[tuple[int, int]]]]


class Views(NamedTuple):
    """A decoded chunk: uint8 views (n, 3, size, size), where they belong, what went wrong.

    No views at all: an image and all that were drawn in its place are corrupt.
    """

    images: Tensor
    labels: Tensor
    places: Tensor  # (n, 2): slice, position
    broken: list[tuple[str, str]]  # file, reason
    replaced: int


@dataclass(frozen=True)
class Cropping:
    """How a training view is cut: `box` from `columns` draws, or the centre where it is None."""

    box: Callable[[int, int, Floats], tuple[int, int, int, int]] | None
    columns: int
    size: int
    interpolation: Interpolation
    decoder: Decoder


class TrainViews(Dataset[Views]):
    """Decodes chunks; runs inside loader workers and knows nothing of torch's randomness."""

    def __init__(self, files: Files, cropping: Cropping, slice_size: int, seed: int) -> None:
        self.files = files
        self.cropping = cropping
        self.slice_size = slice_size
        self.seed = seed

    def __getitem__(self, chunk: Any) -> Views:
        draws: dict[int, Floats] = {}
        images, labels, places = [], [], []
        broken: list[tuple[str, str]] = []
        replaced = 0
        for index, wanted in chunk.images:
            found, decoded = self._readable(index, broken)
            if decoded is None:
                nothing = torch.empty(0)
                return Views(nothing, nothing, nothing, broken, 0)
            replaced += len(wanted) if found != index else 0
            for slice_, position in wanted:
                if slice_ not in draws:
                    shape = (self.slice_size, self.cropping.columns)
                    draws[slice_] = uniform(self.seed, "crop", chunk.step, slice_, shape)
                images.append(self._view(decoded, draws[slice_][position]))
                labels.append(int(self.files.labels[found]))
                places.append((slice_, position))
        return Views(
            torch.stack(images), torch.tensor(labels), torch.tensor(places), broken, replaced
        )

    def _readable(self, index: int, broken: list[tuple[str, str]]) -> tuple[int, Any]:
        """The image, or where it cannot be decoded another one drawn for it; None: all corrupt."""
        for attempt in range(REDRAWS):
            path = self.files.names.path(index)
            try:
                return index, decode(path.read_bytes(), self.cropping.decoder)
            except UNREADABLE as error:
                broken.append((str(path), reason_of(error)))
            (word,) = words(self.seed, "redraw", index, attempt, 1)
            index = int(word % np.uint64(len(self.files)))
        return index, None

    def _view(self, image: Any, draws: Floats) -> Tensor:
        crop = self.cropping
        if crop.box is None:
            return centre_crop(image, crop.size, 1.0, crop.interpolation)
        box = Box(*crop.box(*size_of(image), draws))
        return crop_resize(image, box, crop.size, crop.size, crop.interpolation)


class StreamFeed:
    """Training slices from files, `workers` ahead of the step that wants them."""

    def __init__(
        self,
        views: TrainViews,
        sampler: Callable[[int, int], Indices],
        slices: Sequence[int],
        *,
        steps: int,
        max_corrupt: int,
        workers: int,
        device: torch.device,
        log: Callable[[str], None],
    ) -> None:
        self.views = views
        self.sampler = sampler
        self.mine = slices
        self.steps = steps
        self.max_corrupt = max_corrupt
        self.workers = workers
        self.device = device
        self.log = log
        self.waited = 0.0
        self.replaced = 0
        self.corrupt: list[str] = []
        self.decoded: Iterator[Views] = iter(())

    def start(self, step: int) -> None:
        """Sets the workers to work from `step` on."""
        self.close()
        chunks = itertools.chain.from_iterable(self.chunks(s) for s in range(step, self.steps))
        self.decoded = start_workers(self.views, chunks, self.workers, self.device)

    def close(self) -> None:
        """Ends the workers."""
        end_workers(self.decoded)
        self.decoded = iter(())

    def chunks(self, step: int) -> list[Chunk]:
        """This process's share of a step, an image that several places want only once."""
        wanted: dict[int, list[tuple[int, int]]] = {}
        for slice_ in self.mine:
            for position, index in enumerate(self.sampler(step, slice_).tolist()):
                wanted.setdefault(index, []).append((slice_, position))
        items = list(wanted.items())
        return [Chunk(step, items[i : i + CHUNK]) for i in range(0, len(items), CHUNK)]

    def slices(self, step: int) -> Iterator[Batch]:
        size = self.views.cropping.size
        shape = (len(self.mine), self.views.slice_size)
        images = torch.empty((*shape, 3, size, size), dtype=torch.uint8, device=self.device)
        labels = torch.empty(shape, dtype=torch.int64, device=self.device)
        row = {slice_: i for i, slice_ in enumerate(self.mine)}
        for _ in self.chunks(step):
            views = self._next()
            places = views.places.clone()
            places[:, 0] = torch.tensor([row[int(s)] for s in places[:, 0]])
            where = to_device(places, self.device)
            images[where[:, 0], where[:, 1]] = to_device(views.images, self.device)
            labels[where[:, 0], where[:, 1]] = to_device(views.labels, self.device)
        for i, slice_ in enumerate(self.mine):
            yield Batch(images[i], labels[i], step, slice_)

    def _next(self) -> Views:
        started = time.perf_counter()
        views: Views = next_of(self.decoded)
        self.waited += time.perf_counter() - started
        self.replaced += views.replaced
        tally(self.corrupt, views.broken, self.max_corrupt, self.log)
        if not len(views.images):
            raise DataError(
                f"{views.broken[-REDRAWS][0]}: corrupt, and so are the {REDRAWS - 1} images drawn "
                "in its place. Repair or remove them."
            )
        return views
