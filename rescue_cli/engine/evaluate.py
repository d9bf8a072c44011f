"""One evaluation for training and for `rescue eval`: every image once, on any number of processes.

What is gathered of each image, and what is measured on a set, is the task's business.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rescue_cli import distributed
from rescue_cli.batch import EvalBatch, Measurement, View
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import Annotation, Sample
from rescue_cli.sections.augment.pipeline import Normalise
from rescue_cli.sections.tta import Tta, Weights, least_confident

Table = NDArray[np.float64]  # one row per image, or per object; the image's index comes first


class EvalFeed(Protocol):
    """A test set, or the images `among` it with these indices, in batches that do not depend on
    the number of processes that share them.
    """

    views: Sequence[View]

    def __len__(self) -> int: ...
    def batches(
        self, rank: int, world_size: int, among: Indices | None = None, /
    ) -> Generator[EvalBatch, None, None]: ...
    def rounds(self, world_size: int, among: Indices | None = None, /) -> int: ...
    def annotated_samples(self, count: int, /) -> list[Sample]: ...


class EvalResult(Protocol):
    """What is measured on a set; a recipe's published accuracy is the first of the metrics."""

    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def count(self) -> int: ...
    def by_class(self, classes: Sequence[str]) -> Mapping[str, Any]:
        """What a result has beside the metrics, by class."""
        ...

    def arrays(self, classes: Sequence[str]) -> dict[str, Any]: ...


class EvalTask(Protocol):
    """What is collected for each image of a batch, and the result of the rows of a whole set.

    `confidence_column`: the rows' column by which images are shown once more; None where none are.
    """

    confidence_column: ClassVar[int | None]

    def rows(
        self,
        model: nn.Module,
        batch: EvalBatch,
        view: View,
        normalise: Callable[[Any], Any],
        weights: Sequence[Weights],
        /,
    ) -> list[Tensor]: ...
    def measure(self, rows: Table, count: int, labels: Indices | None, /) -> EvalResult: ...
    def predict(self, model: nn.Module, image: Tensor, size: int, /) -> Annotation: ...


class EvalSet(NamedTuple):
    """A set's images, and the labels to score by, (n, most) padded with -1; None: their own."""

    feed: EvalFeed
    labels: NDArray[np.int64] | None = None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on test sets, at each view and with each test-time augmentation, or with
    the one that a network which is still in training is measured with.
    """

    task: EvalTask
    ttas: Mapping[str, Tta]
    while_training: str
    normalise: Normalise
    autocast: Callable[[], AbstractContextManager[None]]
    device: torch.device

    @torch.inference_mode()
    def __call__(
        self,
        model: nn.Module,
        tests: Mapping[str, EvalSet],
        after_batch: Callable[[], None],
        *,
        in_training: bool = False,
    ) -> dict[str, dict[Measurement, EvalResult]]:
        """The results of each set, by view and test-time augmentation, the recipe's first ones
        first.

        A feed that several sets share is read once. `after_batch` is called by all processes
        equally often.
        """
        feeds = {id(test.feed): test.feed for test in tests.values()}
        names = [self.while_training] if in_training else list(self.ttas)
        with evaluation_mode(model):
            tables = {
                key: self._tables(model, feed, names, after_batch) for key, feed in feeds.items()
            }
        return {
            name: {
                measurement: self.task.measure(rows, len(feed), labels)
                for measurement, rows in tables[id(feed)].items()
            }
            for name, (feed, labels) in tests.items()
        }

    @torch.inference_mode()
    def predict_examples(
        self, model: nn.Module, feed: EvalFeed, count: int
    ) -> list[tuple[Sample, Annotation]]:
        """The first annotated images of a set and the model's predictions for them."""
        size = feed.views[0].size
        with evaluation_mode(model), self.autocast():
            return [
                (sample, self.task.predict(model, self.normalise([sample.image])[0], size))
                for sample in feed.annotated_samples(count)
            ]

    def _tables(
        self,
        model: nn.Module,
        feed: EvalFeed,
        names: Sequence[str],
        after_batch: Callable[[], None],
    ) -> dict[Measurement, Table]:
        """The rows of the whole set by each measurement, the same on every process."""
        first = {
            Measurement(*view, name): self.ttas[name].first for view in feed.views for name in names
        }
        tables = self._gather_rows(model, feed, first, after_batch)
        # Some augmentations are for the least confident images only, which are known by now
        for measurement, table in tables.items():
            tta = self.ttas[measurement.tta]
            if tta.share == 1:
                continue
            assert self.task.confidence_column is not None
            among = least_confident(table[:, self.task.confidence_column], tta.share)
            if 0 < len(among) < len(table):
                again = {measurement: tta.weights}
                table[among] = self._gather_rows(model, feed, again, after_batch, among)[
                    measurement
                ]
        return tables

    def _gather_rows(
        self,
        model: nn.Module,
        feed: EvalFeed,
        weights: Mapping[Measurement, Weights],
        after_batch: Callable[[], None],
        among: Indices | None = None,
    ) -> dict[Measurement, Table]:
        """The rows of the set's images, or of those `among` them, in order, on every process."""
        world_size = distributed.world_size()
        indices: list[Tensor] = []
        rows: dict[Measurement, list[Tensor]] = {measurement: [] for measurement in weights}
        batches = feed.batches(distributed.rank(), world_size, among)
        try:
            # A process may have one batch fewer than another, and still meets it after each
            for _ in range(feed.rounds(world_size, among)):
                batch = next(batches, None)
                if batch is not None:
                    indices.append(batch.indices.double()[:, None])
                    for measurement, part in self._rows(model, batch, weights).items():
                        rows[measurement].append(part)
                after_batch()
        finally:
            batches.close()
        expected = np.arange(len(feed)) if among is None else among
        counted = self._gather(indices)[:, 0]
        assert np.array_equal(counted, expected), "every image exactly once"
        return {measurement: self._gather(parts) for measurement, parts in rows.items()}

    def _rows(
        self, model: nn.Module, batch: EvalBatch, weights: Mapping[Measurement, Weights]
    ) -> dict[Measurement, Tensor]:
        """The rows of a batch; the measurements of a view share the images they show the model."""
        rows: dict[Measurement, Tensor] = {}
        for view in dict.fromkeys(measurement.view for measurement in weights):
            of_view = {m: each for m, each in weights.items() if m.view == view}
            with self.autocast():
                parts = self.task.rows(model, batch, view, self.normalise, list(of_view.values()))
            rows.update(zip(of_view, parts, strict=True))
        return rows

    def _gather(self, parts: Sequence[Tensor]) -> Table:
        """The rows of all processes in the order of the images, on every process."""
        width = parts[0].shape[1] if parts else 1
        (width_everywhere,) = distributed.max_over_ranks([float(width)], self.device)
        if parts:
            rows = torch.cat(list(parts)).to(self.device)
        else:  # a process without a batch
            rows = torch.zeros((0, int(width_everywhere)), dtype=torch.float64, device=self.device)
        table: Table = distributed.gather_rows(rows).cpu().numpy()
        return table[np.argsort(table[:, 0], kind="stable")]
