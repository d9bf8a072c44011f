"""Test sets on disk: each image decoded once, every view of it cut."""

import itertools
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from rescue_cli.batch import Shown, View, to_device
from rescue_cli.errors import DataError
from rescue_cli.recipe.sections import Decoder, Interpolation
from rescue_cli.rng import Indices
from rescue_cli.sections.data.corrupt import never_replaced
from rescue_cli.sections.data.decode import (
    DEFAULT_READING,
    UNREADABLE,
    Resize,
    centre_crop,
    read_image,
    reason_of,
)
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.splits import Files, rounds_of
from rescue_cli.sections.data.workers import CHUNK, end_workers, next_of, start_workers


class EvalPart(NamedTuple):
    """Part of an evaluation batch, decoded; or the error about the file that could not be."""

    indices: Tensor
    labels: Tensor
    views: list[Tensor]
    fault: str | None


class EvalViews(Dataset[EvalPart]):
    """Decodes each test image once and cuts every view of it."""

    def __init__(
        self,
        files: Files,
        views: Sequence[View],
        interpolation: Interpolation,
        decoder: Decoder,
        resize: Resize = "shorter",
        reading: Reading = DEFAULT_READING,
    ) -> None:
        self.files = files
        self.views = views
        self.interpolation = interpolation
        self.decoder = decoder
        self.resize = resize
        self.reading = reading

    def __getitem__(self, indices: Any) -> EvalPart:
        cut: list[list[Tensor]] = [[] for _ in self.views]
        for index in indices:
            path = self.files.names.path(index)
            try:
                image = read_image(path, self.decoder, self.reading)
            except DataError as error:
                return EvalPart(torch.empty(0), torch.empty(0), [], str(error))
            except UNREADABLE as error:
                fault = str(never_replaced(str(path), reason_of(error)))
                return EvalPart(torch.empty(0), torch.empty(0), [], fault)
            for images, view in zip(cut, self.views, strict=True):
                images.append(self._cut(image, view))
        labels = torch.from_numpy(self.files.labels[np.array(indices)])
        return EvalPart(torch.tensor(indices), labels, [torch.stack(c) for c in cut], None)

    def _cut(self, image: Any, view: View) -> Tensor:
        return centre_crop(image, view.size, view.crop, self.interpolation, self.resize)


class StreamEvalFeed:
    """A test set on disk, in order, in batches dealt to the processes in turn."""

    def __init__(
        self, decoding: EvalViews, batch_size: int, workers: int, device: torch.device
    ) -> None:
        self.decoding = decoding
        self.views = decoding.views
        self.batch_size = batch_size
        self.workers = workers
        self.device = device

    def __len__(self) -> int:
        return len(self.decoding.files)

    def rounds(self, world_size: int, among: Indices | None = None) -> int:
        count = len(self) if among is None else len(among)
        return rounds_of(count, self.batch_size, world_size)

    def batches(
        self, rank: int, world_size: int, among: Indices | None = None
    ) -> Generator[Shown, None, None]:
        order = range(len(self)) if among is None else among.tolist()
        starts = range(0, len(order), self.batch_size)[rank::world_size]
        whole = [list(order[s : s + self.batch_size]) for s in starts]
        parts = [[b[i : i + CHUNK] for i in range(0, len(b), CHUNK)] for b in whole]
        chunks = itertools.chain.from_iterable(parts)
        decoded = start_workers(self.decoding, chunks, self.workers)
        try:
            for batch in parts:
                yield self._shown([self._checked(next_of(decoded)) for _ in batch])
        finally:
            end_workers(decoded)

    def _shown(self, parts: list[EvalPart]) -> Shown:
        columns = [torch.cat([p.views[v] for p in parts]) for v in range(len(self.views))]
        return Shown(
            to_device(torch.cat([p.indices for p in parts]), self.device),
            to_device(torch.cat([p.labels for p in parts]), self.device),
            {v: to_device(c, self.device) for v, c in zip(self.views, columns, strict=True)},
        )

    @staticmethod
    def _checked(part: EvalPart) -> EvalPart:
        if part.fault is not None:
            raise DataError(part.fault)
        return part
