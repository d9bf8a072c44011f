"""Objects in boxes: torchvision's losses, PASCAL VOC's and COCO's average precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rescue_cli.batch import Batch
from rescue_cli.metrics import average_precision
from rescue_cli.metrics.average_precision import Rows
from rescue_cli.metrics.names import format_metrics
from rescue_cli.sections.annotations import Objects, Scene

SURE = 0.5  # less certain detections are not shown
DETECTION, TRUTH = 0.0, 1.0  # a row's kind


@dataclass(frozen=True)
class Detection:
    """The loss of a batch, and what evaluation keeps of each image."""

    criterion: Callable[[Any, Batch], Tensor]  # of the detector's losses
    classes: int

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a micro-batch, a scalar; boxes are lists: detectors wait for the device."""
        return self.criterion(model(batch.images, batch.targets), batch)

    def said(self, model: nn.Module, image: Tensor, size: int) -> Objects:
        """The objects that it is sure of in a normalised image."""
        found = self._found(model, image, size)
        sure = found["scores"] >= SURE
        boxes, labels = (found[key][sure].cpu().numpy() for key in ("boxes", "labels"))
        return Objects(boxes, labels, np.zeros(len(labels), dtype=np.bool_))

    @staticmethod
    def _found(model: nn.Module, image: Tensor, size: int) -> dict[str, Tensor]:
        """torchvision's `boxes`, `labels`, `scores`, the image's shorter side brought to `size`."""
        transform: Any = model.transform
        trained_at, transform.min_size = transform.min_size, (size,)
        try:
            (found,) = model([image])
        finally:
            transform.min_size = trained_at
        return dict(found)

    def rows(self, model: nn.Module, index: int, scene: Scene, image: Tensor, size: int) -> Tensor:
        """(k, 8): image, kind, label, score or difficult, box; what it says, then what is there."""
        said = self._found(model, image, size)
        target = scene.target
        assert isinstance(target, Objects)
        found = [said["labels"][:, None], said["scores"][:, None], said["boxes"]]
        there = [target.labels[:, None], target.difficult[:, None], target.boxes]
        parts = (
            (DETECTION, torch.cat([part.double().cpu() for part in found], 1)),
            (TRUTH, torch.from_numpy(np.concatenate(there, 1).astype(np.float64))),
        )
        return torch.cat(
            [
                torch.cat([torch.tensor([[float(index), kind]]).expand(len(rows), 2), rows], 1)
                for kind, rows in parts
            ]
        )

    def measured(self, rows: Rows, count: int) -> "Detected":
        """What the rows of a whole set come to."""
        told = rows[rows[:, 1] == DETECTION][:, [0, 2, 3, 4, 5, 6, 7]]
        there = rows[rows[:, 1] == TRUTH][:, [0, 2, 3, 4, 5, 6, 7]]
        return Detected(told, there, count, self.classes)


@dataclass(frozen=True)
class Detected:
    """What a detector said of a set: detections (n, 7) with image, label, score, box; truths (m, 7)
    with image, label, difficult, box.
    """

    detections: Rows
    truths: Rows
    count: int
    classes: int
    loss: float | None = None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Percent: VOC's mean average precision at an overlap of 0.5, by area and by 11 points, and
        COCO's mean over overlaps from 0.5 to 0.95.
        """
        return {
            "ap50": average_precision.mean_over_classes(
                average_precision.average_precisions(self._judged)
            ),
            "ap50_07": average_precision.mean_over_classes(
                average_precision.average_precisions(self._judged, eleven=True)
            ),
            "map": coco(self.detections, self.truths, self.count),
        }

    def by_class(self, _classes: Sequence[str]) -> dict[str, Any]:
        """Nothing: a mean over classes is the metric itself."""
        return {}

    def arrays(self, classes: Sequence[str]) -> dict[str, Any]:
        """What is kept in `predictions/SET.npz`."""
        return {
            "detections": self.detections,
            "truths": self.truths,
            "count": np.array(self.count),
            "per_class": average_precision.average_precisions(self._judged),
            "count_per_class": np.bincount(
                self.truths[:, 1].astype(int), minlength=self.classes + 1
            )[1:],
            "classes": np.array(classes),
        }

    @cached_property
    def _judged(self) -> average_precision.JudgedDetections:
        return average_precision.judge_detections(
            self.detections, self.truths, self.count, self.classes
        )

    def __str__(self) -> str:
        return format_metrics(self.metrics)


def coco(detections: Rows, truths: Rows, count: int) -> float:
    """COCO's mean average precision in percent; a difficult object is passed over as a crowd is."""
    from torchmetrics.detection import MeanAveragePrecision

    # Every process has all rows already: torchmetrics would gather them again, and wait for all
    measure = MeanAveragePrecision(backend="faster_coco_eval", sync_on_compute=False)
    by_image = (_by_image(rows, count) for rows in (detections, truths))
    for told, there in zip(*by_image, strict=True):
        measure.update(
            [{"boxes": _boxes(told), "labels": _whole(told[:, 1]), "scores": _floats(told[:, 2])}],
            [
                {
                    "boxes": _boxes(there),
                    "labels": _whole(there[:, 1]),
                    "iscrowd": _whole(there[:, 2]),
                }
            ],
        )
    return max(0.0, 100 * float(measure.compute()["map"]))


def _by_image(rows: Rows, count: int) -> list[Rows]:
    """The rows of each image, which come in the order of the images."""
    return np.split(rows, np.searchsorted(rows[:, 0], np.arange(1, count)))


def _boxes(rows: Rows) -> Tensor:
    return torch.from_numpy(rows[:, 3:].astype(np.float32))


def _whole(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


def _floats(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def detection(criterion: Callable[[Any, Batch], Tensor], classes: int) -> Detection:
    """Images with objects in boxes."""
    return Detection(criterion, classes)
