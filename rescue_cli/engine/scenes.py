"""Evaluation of detectors and of segmentation: every scene once, one at a time, in any world."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rescue_cli import distributed
from rescue_cli.batch import Measurement, View
from rescue_cli.engine.evaluate import EvalSet, Measured, Table, evaluating
from rescue_cli.sections.annotations import Mask, Objects, Scene, ShownScenes
from rescue_cli.sections.augment.pipeline import Normalise


class SceneTests(Protocol):
    """A test set in batches whose make-up does not depend on how many processes share them."""

    views: Sequence[View]

    def __len__(self) -> int: ...
    def batches(self, rank: int, world_size: int, /) -> Generator[ShownScenes, None, None]: ...
    def rounds(self, world_size: int, /) -> int: ...
    def first(self, count: int, /) -> list[Scene]: ...


class SceneTask(Protocol):
    """What is kept of each scene, and what all of that comes to."""

    def rows(
        self, model: nn.Module, index: int, scene: Scene, image: Tensor, size: int
    ) -> Tensor: ...
    def said(self, model: nn.Module, image: Tensor, size: int) -> Objects | Mask: ...
    def measured(self, rows: Table, count: int) -> Measured: ...


@dataclass(frozen=True)
class SceneEvaluator:
    """Evaluates a model on sets of scenes; one at a time, so that none is padded for another."""

    task: SceneTask
    normalise: Normalise
    autocast: Callable[[], AbstractContextManager[None]]
    device: torch.device

    @torch.inference_mode()
    def sets(
        self, model: nn.Module, tests: Mapping[str, EvalSet], between: Callable[[], None]
    ) -> dict[str, dict[Measurement, Measured]]:
        """What the model does on each set by view; `between` is called after each batch."""
        with evaluating(model):
            return {name: self._measure(model, test.feed, between) for name, test in tests.items()}

    @torch.inference_mode()
    def examples(
        self, model: nn.Module, feed: SceneTests, count: int
    ) -> list[tuple[Scene, Objects | Mask]]:
        """The first scenes of a set with what the model says of them."""
        size = feed.views[0].size
        with evaluating(model), self.autocast():
            return [
                (scene, self.task.said(model, self.normalise(scene.image[None])[0], size))
                for scene in feed.first(count)
            ]

    def _measure(
        self, model: nn.Module, feed: SceneTests, between: Callable[[], None]
    ) -> dict[Measurement, Measured]:
        found: dict[View, list[Tensor]] = {view: [] for view in feed.views}
        batches = feed.batches(distributed.rank(), distributed.world_size())
        try:
            for _ in range(feed.rounds(distributed.world_size())):
                shown = next(batches, None)
                if shown is not None:
                    self._add(found, model, shown)
                between()
        finally:
            batches.close()
        return {
            Measurement(*view, "none"): self.task.measured(self._gather(rows), len(feed))
            for view, rows in found.items()
        }

    def _add(
        self, found: Mapping[View, list[Tensor]], model: nn.Module, shown: ShownScenes
    ) -> None:
        for index, scene in zip(shown.indices, shown.scenes, strict=True):
            image = self.normalise(scene.image[None])[0]
            for view, rows in found.items():
                with self.autocast():
                    rows.append(self.task.rows(model, index, scene, image, view.size))

    def _gather(self, parts: Sequence[Tensor]) -> Table:
        """The rows of all processes in the order of the scenes."""
        width = parts[0].shape[1] if parts else 1
        (most,) = distributed.max_over_ranks([float(width)], self.device)
        empty = torch.zeros((0, int(most)), dtype=torch.float64)
        rows = distributed.gather_rows(torch.cat([empty, *parts]).to(self.device), self.device)
        table: Table = rows.cpu().numpy()
        return table[np.argsort(table[:, 0], kind="stable")]
