"""Objects in boxes: torchvision's losses, PASCAL VOC's and COCO's average precision."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rescue_cli.batch import Batch, EvalBatch, View
from rescue_cli.metrics import average_precision
from rescue_cli.metrics.average_precision import Rows
from rescue_cli.metrics.names import format_metrics
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import Objects
from rescue_cli.sections.tta import Weights

SURE = 0.5  # less certain detections are not shown
DETECTION, TRUTH = 0.0, 1.0  # a row's kind


@dataclass(frozen=True)
class Detection:
    """The loss of a batch, and what evaluation gathers of each image."""

    criterion: Callable[[Any, Batch], Tensor]  # of the detector's losses
    classes: int
    confidence_column: ClassVar[int | None] = None

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a micro-batch, a scalar; boxes are lists: detectors wait for the device."""
        return self.criterion(model(batch.images, batch.targets), batch)

    def predict(self, model: nn.Module, image: Tensor, size: int) -> Objects:
        """The objects in a normalised image (3, height, width) that the model is sure of."""
        output = self._forward(model, image, size)
        sure = output["scores"] >= SURE
        boxes, labels = (output[key][sure].cpu().numpy() for key in ("boxes", "labels"))
        return Objects(boxes, labels, np.zeros(len(labels), dtype=np.bool_))

    @staticmethod
    def _forward(model: nn.Module, image: Tensor, size: int) -> dict[str, Tensor]:
        """torchvision's `boxes`, `labels`, `scores`, the image's shorter side brought to `size`."""
        transform: Any = model.transform
        trained_at, transform.min_size = transform.min_size, (size,)
        try:
            (output,) = model([image])
        finally:
            transform.min_size = trained_at
        return dict(output)

    def rows(
        self,
        model: nn.Module,
        batch: EvalBatch,
        view: View,
        normalise: Callable[[Any], Any],
        weights: Sequence[Weights],
    ) -> list[Tensor]:
        """(k, 8): image, kind, label, score or difficult, box; per image first the detections, then
        the annotated objects. Without test-time augmentation; one image at a time, so that none is
        padded for another.
        """
        assert len(weights) == 1
        parts = []
        for index, image, target in zip(
            batch.indices.tolist(), batch.views[view], batch.targets, strict=True
        ):
            output = self._forward(model, normalise([image])[0], view.size)
            detected = [output["labels"][:, None], output["scores"][:, None], output["boxes"]]
            annotated = [target.labels[:, None], target.difficult[:, None], target.boxes]
            for kind, rows in (
                (DETECTION, torch.cat([part.double().cpu() for part in detected], 1)),
                (TRUTH, torch.from_numpy(np.concatenate(annotated, 1).astype(np.float64))),
            ):
                head = torch.tensor([[float(index), kind]], dtype=torch.float64)
                parts.append(torch.cat([head.expand(len(rows), 2), rows], 1))
        return [torch.cat(parts)]

    def measure(self, rows: Rows, count: int, labels: Indices | None) -> "DetectionResult":
        """The result of a set of `count` images."""
        assert labels is None, "only classes of images have other labels"
        detections = rows[rows[:, 1] == DETECTION][:, [0, 2, 3, 4, 5, 6, 7]]
        truths = rows[rows[:, 1] == TRUTH][:, [0, 2, 3, 4, 5, 6, 7]]
        return DetectionResult(detections, truths, count, self.classes)


@dataclass(frozen=True)
class DetectionResult:
    """The detections (n, 7) on a set as image, label, score, box; and the annotated objects (m, 7)
    as image, label, difficult, box.
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
                average_precision.average_precisions(self._verdicts)
            ),
            "ap50_07": average_precision.mean_over_classes(
                average_precision.average_precisions(self._verdicts, eleven=True)
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
            "per_class": average_precision.average_precisions(self._verdicts),
            "count_per_class": np.bincount(
                self.truths[:, 1].astype(int), minlength=self.classes + 1
            )[1:],
            "classes": np.array(classes),
        }

    @cached_property
    def _verdicts(self) -> average_precision.JudgedDetections:
        return average_precision.judge_detections(
            self.detections, self.truths, self.count, self.classes
        )

    def __str__(self) -> str:
        return format_metrics(self.metrics)


def coco(detections: Rows, truths: Rows, count: int) -> float:
    """COCO's mean average precision in percent; a difficult object is passed over as a crowd is."""
    from torchmetrics.detection import MeanAveragePrecision

    # Every process has all rows already; torchmetrics would gather them again
    measure = MeanAveragePrecision(backend="faster_coco_eval", sync_on_compute=False)
    by_image = (_by_image(rows, count) for rows in (detections, truths))
    for detected, annotated in zip(*by_image, strict=True):
        prediction = {
            "boxes": _boxes(detected),
            "labels": _integers(detected[:, 1]),
            "scores": torch.from_numpy(detected[:, 2].astype(np.float32)),
        }
        target = {
            "boxes": _boxes(annotated),
            "labels": _integers(annotated[:, 1]),
            "iscrowd": _integers(annotated[:, 2]),
        }
        measure.update([prediction], [target])
    return max(0.0, 100 * float(measure.compute()["map"]))


def _by_image(rows: Rows, count: int) -> list[Rows]:
    """The rows of each image, which come in the order of the images."""
    return np.split(rows, np.searchsorted(rows[:, 0], np.arange(1, count)))


def _boxes(rows: Rows) -> Tensor:
    return torch.from_numpy(rows[:, 3:].astype(np.float32))


def _integers(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values.astype(np.int64))


def detection(criterion: Callable[[Any, Batch], Tensor], classes: int) -> Detection:
    """Images with objects in boxes."""
    return Detection(criterion, classes)
