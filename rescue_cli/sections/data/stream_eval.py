"""Test sets on disk: each image is decoded once, and every view is cut from it."""

import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rescue_cli.batch import EvalBatch, SideStream, View, joined, to_device
from rescue_cli.errors import DataError
from rescue_cli.recipe.sections import Decoder, Interpolation
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import Sample, Target
from rescue_cli.sections.data.corrupt import TEST_IMAGE, corrupt_images_error
from rescue_cli.sections.data.decode import (
    DEFAULT_READING,
    UNREADABLE,
    Resize,
    centre_crop,
    describe_error,
)
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.samples import as_tensor, read_file, read_sample
from rescue_cli.sections.data.splits import THREADS, Files, count_rounds
from rescue_cli.sections.data.workers import (
    ANNOTATED_CHUNK,
    CHUNK,
    end_workers,
    next_of,
    start_workers,
)

SEARCH_SECONDS = 10.0  # for other images that cannot be decoded, once one is found


class EvalPart(NamedTuple):
    """Part of an evaluation batch; or the error about the file that could not be decoded.

    `images`: with labels, a tensor (n, 3, size, size) for each view; with boxes or masks one list
    of whole images, which all views share.
    """

    indices: list[int]
    targets: list[Target]
    images: list[Any]
    fault: str | None = None  # the images cannot be used
    broken: Sequence[tuple[str, str]] = ()  # (file, reason) of images that cannot be decoded


class EvalSamples(Dataset[EvalPart]):
    """Decodes each test image once and cuts every view of it; runs inside loader workers.

    `corrupt`: why no other image is drawn in the place of a corrupt one.
    """

    def __init__(
        self,
        files: Files,
        views: Sequence[View],
        interpolation: Interpolation,
        decoder: Decoder,
        resize: Resize = "shorter",
        reading: Reading = DEFAULT_READING,
        corrupt: str = TEST_IMAGE,
    ) -> None:
        self.files = files
        self.annotated = files.annotated
        self.views = views
        self.interpolation = interpolation
        self.decoder = decoder
        self.resize = resize
        self.reading = reading
        self.corrupt = corrupt

    def __getitem__(self, indices: Any) -> EvalPart:
        targets: list[Target] = []
        cuts: list[list[Tensor]] = []
        broken: list[tuple[str, str]] = []
        for index in indices:
            try:
                image, target = read_sample(self.files, index, self.decoder, self.reading)
            except DataError as error:
                return EvalPart([], [], [], str(error))
            except UNREADABLE as error:
                broken.append((self.files.names.place(index), describe_error(error)))
                continue
            targets.append(target)
            cuts.append(self._cut(image))
        if broken:
            return EvalPart([], [], [], broken=broken)
        columns = [list(column) for column in zip(*cuts, strict=True)]
        if self.annotated:
            return EvalPart(indices, targets, columns)
        return EvalPart(indices, targets, [torch.stack(column) for column in columns])

    def _cut(self, image: Any) -> list[Tensor]:
        """The views of a decoded image; an annotated one is whole for all of them."""
        if self.annotated:
            return [as_tensor(image)]
        return [
            centre_crop(image, view.size, view.crop, self.interpolation, self.resize)
            for view in self.views
        ]


def refuse_broken(split: Files, reading: Reading) -> None:
    """Raises `DataError` that names the test images that cannot be decoded, before the work whose
    result they would prevent; of a large set, those that are found in a moment.
    """
    end = time.monotonic() + SEARCH_SECONDS

    def fault(index: int) -> tuple[str, str] | None:
        if time.monotonic() < end:
            try:
                read_file(split, index, "pil", reading)
            except UNREADABLE as error:
                return split.names.place(index), describe_error(error)
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        broken = list(filter(None, pool.map(fault, range(len(split)))))
    if broken:
        raise corrupt_images_error(broken, TEST_IMAGE, whole=time.monotonic() < end)


class FileEvalFeed:
    """A test set on disk, in order, in batches dealt to the processes in turn."""

    def __init__(
        self, samples: EvalSamples, batch_size: int, workers: int, device: torch.device
    ) -> None:
        self.samples = samples
        self.views = samples.views
        self.batch_size = batch_size
        self.workers = workers
        self.device = device
        self.side = SideStream(device)

    def __len__(self) -> int:
        return len(self.samples.files)

    def rounds(self, world_size: int, among: Indices | None = None) -> int:
        """The number of batches of the process that has the most."""
        count = len(self) if among is None else len(among)
        return count_rounds(count, self.batch_size, world_size)

    def batches(
        self, rank: int, world_size: int, among: Indices | None = None
    ) -> Generator[EvalBatch, None, None]:
        """This process's batches of the set, or of the images `among` it with these indices."""
        order = range(len(self)) if among is None else among.tolist()
        starts = range(0, len(order), self.batch_size)[rank::world_size]
        batches = [list(order[start : start + self.batch_size]) for start in starts]
        size = ANNOTATED_CHUNK if self.samples.annotated else CHUNK
        parts = [[b[i : i + size] for i in range(0, len(b), size)] for b in batches]
        loaded = start_workers(self.samples, itertools.chain.from_iterable(parts), self.workers)
        try:
            left = iter(parts)
            for of_batch in left:
                taken = [_check(next_of(loaded)) for _ in of_batch]
                if any(part.broken for part in taken):
                    more = (next_of(loaded) for other in left for _ in other)
                    raise self._broken_error(taken, more)
                yield self.side(partial(self._join, taken))
        finally:
            end_workers(loaded)

    def _broken_error(self, parts: Iterable[EvalPart], more: Iterator[EvalPart]) -> DataError:
        """Names the images that cannot be decoded in `parts`, and those in `more` that are found in
        a moment: signals and other processes wait meanwhile.
        """
        broken = [each for part in parts for each in part.broken]
        end = time.monotonic() + SEARCH_SECONDS
        while time.monotonic() < end:
            if (part := next(more, None)) is None:
                return corrupt_images_error(broken, self.samples.corrupt)
            broken += part.broken
        return corrupt_images_error(broken, self.samples.corrupt, whole=False)

    def annotated_samples(self, count: int) -> list[Sample]:
        """The first images with their boxes or masks, read in this process; none of labels."""
        if not self.samples.annotated:
            return []
        part = _check(self.samples[list(range(min(count, len(self))))])
        if part.broken:
            raise self._broken_error([part], iter(()))
        batch = self._join([part])
        return [
            Sample(*pair) for pair in zip(batch.views[self.views[0]], batch.targets, strict=True)
        ]

    def _join(self, parts: list[EvalPart]) -> EvalBatch:
        indices = torch.tensor([index for part in parts for index in part.indices])
        targets = [target for part in parts for target in part.targets]
        if self.samples.annotated:
            whole = [to_device(image, self.device) for part in parts for image in part.images[0]]
            return EvalBatch(indices, targets, dict.fromkeys(self.views, whole))
        columns = [
            joined([part.images[v] for part in parts], self.device) for v in range(len(self.views))
        ]
        return EvalBatch(
            to_device(indices, self.device),
            to_device(torch.tensor(targets), self.device),
            {v: to_device(c, self.device) for v, c in zip(self.views, columns, strict=True)},
        )


def _check(part: EvalPart) -> EvalPart:
    if part.fault is not None:
        raise DataError(part.fault)
    return part
