"""Average precision of detections, intersection over union of segmentations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
OVERLAP = 0.5  # least intersection over union of a detection and the object that it hits
MISS, HIT, IGNORED = 0, 1, 2  # verdicts on a detection; IGNORED does not count
ELEVEN = np.linspace(0, 1, 11)


class JudgedDetections(NamedTuple):
    """Detections with their verdicts, and the number of objects by image and class."""

    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    verdict: NDArray[np.int64]
    wanted: NDArray[np.int64]  # (images, classes)


def judge_detections(detections: Rows, truths: Rows, images: int, classes: int) -> JudgedDetections:
    """PASCAL VOC's verdicts: the highest-scoring detection of an object hits, others miss.

    detections (n, 7): image, label from 1, score, box; truths (m, 7): image, label, difficult, box.
    A detection whose best object is difficult is ignored, and such objects do not count.
    """
    order = np.argsort(-detections[:, 2], kind="stable")
    verdict = np.full(len(detections), MISS)
    taken: set[int] = set()
    groups: dict[tuple[int, int], list[int]] = {}
    for index, row in enumerate(truths):
        groups.setdefault((int(row[0]), int(row[1])), []).append(index)
    for index in order:
        image, label = (int(v) for v in detections[index, :2])
        objects = groups.get((image, label), [])
        if not objects:
            continue
        shares = box_iou(detections[index, 3:], truths[objects, 3:])
        best = objects[int(shares.argmax())]
        if shares.max() < OVERLAP:
            continue
        if truths[best, 2]:
            verdict[index] = IGNORED
        elif best not in taken:
            taken.add(best)
            verdict[index] = HIT
    wanted = np.zeros((images, classes), dtype=np.int64)
    easy = truths[truths[:, 2] == 0]
    np.add.at(wanted, (easy[:, 0].astype(int), easy[:, 1].astype(int) - 1), 1)
    by_image = detections[:, 0].astype(np.int64)
    return JudgedDetections(
        by_image, detections[:, 1].astype(np.int64), detections[:, 2], verdict, wanted
    )


def box_iou(box: Rows, others: Rows) -> Rows:
    """Intersection over union of a box (4,) with others (n, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    return np.asarray(shared / ((box[2:] - box[:2]).prod() + _areas(others) - shared))


def _areas(boxes: Rows) -> Rows:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(1))


def average_precisions(
    judged: JudgedDetections, times: NDArray[np.int64] | None = None, *, eleven: bool = False
) -> Rows:
    """Each class's average precision in percent; NaN for a class without objects.

    The area under precision made monotone (VOC 2010 on), or with `eleven` its mean at recalls of 0,
    0.1, ... 1 (VOC 2007). `times` (images,): how often each image counts, for a bootstrap.
    """
    times = np.ones(len(judged.wanted), dtype=np.int64) if times is None else times
    wanted = times @ judged.wanted
    result = np.full(judged.wanted.shape[1], np.nan)
    for label in np.flatnonzero(wanted):
        of_class = (judged.label == label + 1) & (judged.verdict != IGNORED)
        order = np.argsort(-judged.score[of_class], kind="stable")
        weights = times[judged.image[of_class]][order]
        hits = np.cumsum(weights * (judged.verdict[of_class][order] == HIT))
        seen = np.cumsum(weights)
        kept = seen > 0
        recall = hits[kept] / wanted[label]
        precision = hits[kept] / seen[kept]
        result[label] = 100 * _average(recall, precision, eleven=eleven)
    return result


def _average(recall: Rows, precision: Rows, *, eleven: bool) -> float:
    if eleven:
        best = [precision[recall >= level - 1e-9].max(initial=0) for level in ELEVEN]
        return float(np.mean(best))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(recall, prepend=0.0)
    return float((steps * envelope).sum())


def pixel_counts(predicted: NDArray[np.uint8], mask: NDArray[np.uint8], classes: int) -> Rows:
    """(3, classes) pixels of an image: correct, predicted, labelled; 255 is ignored."""
    counted = mask < classes
    guess, true = predicted[counted].astype(np.int64), mask[counted].astype(np.int64)
    rows = [true[guess == true], guess, true]
    return np.stack([np.bincount(r, minlength=classes) for r in rows]).astype(np.float64)


def class_iou(counts: Rows) -> Rows:
    """Each class's intersection over union in percent, from (3, classes) pixel counts.

    NaN for a class that is neither labelled nor predicted.
    """
    shared, predicted, labelled = counts
    union = predicted + labelled - shared
    return np.where(union > 0, 100 * shared / np.maximum(union, 1), np.nan)


def pixel_accuracy(counts: Rows) -> float:
    """Percent of the pixels that are classified correctly."""
    return float(100 * counts[0].sum() / max(counts[2].sum(), 1))


def mean_over_classes(values: Rows | Sequence[float]) -> float:
    """The mean over classes that are not NaN; 0 without any."""
    known = np.asarray(values)[~np.isnan(np.asarray(values))]
    return float(known.mean()) if len(known) else 0.0
