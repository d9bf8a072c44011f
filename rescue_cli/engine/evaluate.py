"""One evaluation for training and for `rescue eval`: every image once, in any world."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rescue_cli import distributed
from rescue_cli.batch import Measurement, Shown, View
from rescue_cli.rng import Indices
from rescue_cli.sections.augment.pipeline import Normalise
from rescue_cli.sections.tta import Tta, Weights, least_confident, tta_logits

Table = NDArray[np.float64]  # a row for each image, as the task has it
CONFIDENCE = 3  # the column of the highest probability


class EvalFeed(Protocol):
    """A test set, or the images `among` it with these indices, in batches whose make-up does not
    depend on how many processes share them.
    """

    views: Sequence[View]

    def __len__(self) -> int: ...
    def batches(
        self, rank: int, world_size: int, among: Indices | None, /
    ) -> Generator[Shown, None, None]: ...
    def rounds(self, world_size: int, among: Indices | None = None, /) -> int: ...


class Measured(Protocol):
    """What a network was found to do on a set; what a recipe claims is the first of its metrics."""

    @property
    def metrics(self) -> Mapping[str, float]: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def count(self) -> int: ...
    def by_class(self, classes: Sequence[str]) -> Mapping[str, Any]:
        """What a result says beside the metrics, of the classes."""
        ...

    def arrays(self, classes: Sequence[str]) -> dict[str, Any]: ...


class Evaluates(Protocol):
    """The evaluation of a model on several sets."""

    @property
    def normalise(self) -> Normalise: ...
    def sets(
        self, model: nn.Module, tests: Mapping[str, "EvalSet"], between: Callable[[], None], /
    ) -> Mapping[str, Mapping[Measurement, Measured]]: ...


class EvalSet(NamedTuple):
    """A set's images, and the labels to score by: (n, most) filled up with -1, or their own."""

    feed: Any  # an EvalFeed for images, SceneTests for scenes
    answers: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Predictions:
    """What the network said of each image of a set, in the set's order.

    `labels` is (count,), or (count, most) filled up with -1 where each of several labels is right;
    such a set has no losses.
    """

    labels: NDArray[np.int64]
    losses: NDArray[np.float64] | None
    probabilities: NDArray[np.float64]
    gaps: NDArray[np.float64]  # the largest logit less the mean of the others
    top: NDArray[np.int64]  # (count, 5), the most probable class first

    @property
    def count(self) -> int:
        return len(self.labels)

    @property
    def loss(self) -> float | None:
        return None if self.losses is None else float(self.losses.mean())

    @property
    def metrics(self) -> dict[str, float]:
        """Percent of images whose class is the first said, and one of the first five."""
        return {"top1": self.accuracy(1), "top5": self.accuracy(5)}

    def arrays(self, classes: Sequence[str]) -> dict[str, Any]:
        """What is kept in `predictions/SET.npz`."""
        confusion = self.confusion(len(classes))
        losses = {} if self.losses is None else {"losses": self.losses}
        return {
            "labels": self.labels,
            "top": self.top,
            "probabilities": self.probabilities,
            "gaps": self.gaps,
            **losses,
            "confusion": confusion,
            "per_class": recalls(confusion),
            "classes": np.array(classes),
        }

    @property
    def balanced_accuracy(self) -> float | None:
        """The mean recall of the classes that the set has, percent; None of several labels each."""
        if self.labels.ndim > 1:
            return None
        there = np.bincount(self.labels)
        hits = np.bincount(self.labels, self.top[:, 0] == self.labels)
        return float(100 * (hits[there > 0] / there[there > 0]).mean())

    def by_class(self, classes: Sequence[str]) -> dict[str, Any]:
        """Balanced accuracy, and each class's images and recall, None where it has no image."""
        if self.labels.ndim > 1:
            return {"balanced_accuracy": None}
        confusion = self.confusion(len(classes))
        rows = zip(classes, confusion.sum(1).tolist(), recalls(confusion).tolist(), strict=True)
        return {
            "balanced_accuracy": self.balanced_accuracy,
            "per_class": [
                {"class": name, "images": images, "recall": recall if images else None}
                for name, images, recall in rows
            ],
        }

    def accuracy(self, k: int) -> float:
        """Percent of images that have one of their labels among the k most probable classes."""
        return float(100 * self._hits(k).any(1).mean())

    def confusion(self, classes: int) -> NDArray[np.int64]:
        """(label, predicted) counts; of several labels the predicted one, else the first."""
        first = self.labels.reshape(self.count, -1)[:, 0]
        labels = np.where(self._hits(1).any(1), self.top[:, 0], first)
        pairs = labels * classes + self.top[:, 0]
        return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def by(self, answers: NDArray[np.int64]) -> "Predictions":
        """The images that `answers` (n, most) has a label for, scored by these."""
        kept = (answers >= 0).any(1)
        return Predictions(
            answers[kept], None, self.probabilities[kept], self.gaps[kept], self.top[kept]
        )

    def __str__(self) -> str:
        loss = "" if self.loss is None else f"  loss {self.loss:.4f}"
        balanced = self.balanced_accuracy
        beside = "" if balanced is None or self._even else f"  balanced {balanced:.2f} %"
        return f"top-1 {self.accuracy(1):.2f} %{beside}{loss}"

    @property
    def _even(self) -> bool:
        """Whether the classes that the set has have as many images each."""
        there = np.bincount(self.labels)
        return len(set(there[there > 0].tolist())) <= 1

    def _hits(self, k: int) -> NDArray[np.bool_]:
        """(count, k): whether each of the k most probable classes is a label of the image."""
        labels = self.labels.reshape(self.count, 1, -1)
        hits: NDArray[np.bool_] = (self.top[:, :k, None] == labels).any(2)
        return hits


def recalls(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Percent of each label's images that were called so; nan where it has none."""
    there = confusion.sum(1)
    return np.where(there > 0, 100 * np.diag(confusion) / np.maximum(there, 1), np.nan)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model on one feed, by each test-time augmentation in turn."""

    rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    ttas: Mapping[str, Tta]
    normalise: Normalise
    autocast: Callable[[], AbstractContextManager[None]]
    device: torch.device

    @torch.inference_mode()
    def __call__(
        self, model: nn.Module, feed: EvalFeed, between: Callable[[], None]
    ) -> dict[Measurement, Predictions]:
        """Predictions by view and test-time augmentation, the first of them first.

        `between` is called by all processes after each batch.
        """
        ttas = {Measurement(*view, n): tta for view in feed.views for n, tta in self.ttas.items()}
        with evaluating(model):
            wanted = {measurement: tta.first for measurement, tta in ttas.items()}
            tables = self._tables(model, feed, wanted, between)
            for measurement, table in tables.items():
                tta = ttas[measurement]
                among = least_confident(table[:, CONFIDENCE], tta.share)
                if 0 < len(among) < len(table):
                    again = {measurement: tta.weights}
                    table[among] = self._tables(model, feed, again, between, among)[measurement]
        return {measurement: _said(table) for measurement, table in tables.items()}

    def sets(
        self, model: nn.Module, tests: Mapping[str, EvalSet], between: Callable[[], None]
    ) -> dict[str, dict[Measurement, Predictions]]:
        """As for one feed, for each set; a feed that several sets share is passed over once."""
        feeds = {id(test.feed): test.feed for test in tests.values()}
        said = {key: self(model, feed, between) for key, feed in feeds.items()}
        return {
            name: {
                measurement: found if answers is None else found.by(answers)
                for measurement, found in said[id(feed)].items()
            }
            for name, (feed, answers) in tests.items()
        }

    def _tables(
        self,
        model: nn.Module,
        feed: EvalFeed,
        wanted: Mapping[Measurement, Weights],
        between: Callable[[], None],
        among: Indices | None = None,
    ) -> dict[Measurement, Table]:
        """The rows of the set's images, or of those `among` them, in order, on every process."""
        found: dict[Measurement, list[Tensor]] = {measurement: [] for measurement in wanted}
        batches = feed.batches(distributed.rank(), distributed.world_size(), among)
        try:
            for _ in range(feed.rounds(distributed.world_size(), among)):
                shown = next(batches, None)
                if shown is not None:
                    self._add(found, model, shown, wanted)
                between()
        finally:
            batches.close()
        expected = np.arange(len(feed)) if among is None else among
        return {measurement: self._gather(rows, expected) for measurement, rows in found.items()}

    def _add(
        self,
        found: dict[Measurement, list[Tensor]],
        model: nn.Module,
        shown: Shown,
        wanted: Mapping[Measurement, Weights],
    ) -> None:
        for view in dict.fromkeys(measurement.view for measurement in wanted):
            mine = [measurement for measurement in wanted if measurement.view == view]
            images = self.normalise(shown.views[view])
            with self.autocast():
                said = tta_logits(model, images, [wanted[measurement] for measurement in mine])
            for measurement, weighted in zip(mine, said, strict=True):
                found[measurement].append(self.rows(shown.indices, shown.labels, weighted))

    def _gather(self, parts: list[Tensor], expected: Indices) -> Table:
        width = 5 if not parts else parts[0].shape[1]
        (width_everywhere,) = distributed.max_over_ranks([float(width)], self.device)
        empty = torch.zeros((0, int(width_everywhere)), dtype=torch.float64, device=self.device)
        rows = distributed.gather_rows(torch.cat([empty, *parts]), self.device).cpu().numpy()
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        assert np.array_equal(rows[:, 0], expected), "every image exactly once"
        return rows


def _said(table: Table) -> Predictions:
    return Predictions(
        labels=table[:, 1].astype(np.int64),
        losses=table[:, 2],
        probabilities=table[:, CONFIDENCE],
        gaps=table[:, CONFIDENCE + 1],
        top=table[:, CONFIDENCE + 2 :].astype(np.int64),
    )
