"""Average precision and intersection over union, by hand and against other implementations."""

import numpy as np
import pytest
import torch

from rescue_cli.analysis import bootstrap
from rescue_cli.metrics import average_precision
from rescue_cli.metrics.average_precision import (
    HIT,
    IGNORED,
    MISS,
    average_precisions,
    judge_detections,
)
from rescue_cli.sections.task.detection import coco

A, B, FAR = [0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]


def rows(*found: tuple[int, int, float, list[int]]) -> np.ndarray:
    """(image, label, score or difficult, box) as rows of 7."""
    return np.array([[*row[:3], *row[3]] for row in found], dtype=float).reshape(-1, 7)


def test_a_duplicate_misses_and_a_difficult_object_is_ignored() -> None:
    truths = rows((0, 1, 0, A), (0, 1, 1, B), (1, 1, 0, A))
    detections = rows(
        (0, 1, 0.9, A),  # a hit
        (0, 1, 0.8, A),  # its duplicate
        (0, 1, 0.7, B),  # a difficult one
        (1, 1, 0.6, FAR),  # nothing there
        (1, 1, 0.5, A),  # a hit
        (1, 2, 0.95, A),  # of a class that nothing has
    )
    found = judge_detections(detections, truths, 2, 2)
    assert found.verdict.tolist() == [HIT, MISS, IGNORED, MISS, HIT, MISS]
    assert found.wanted.tolist() == [[1, 0], [1, 0]]
    # precision 1 at recall 1/2, 1/2, 1/3, then 2/4 at recall 1: envelope 1 and 1/2
    area = average_precisions(found)
    assert area[0] == pytest.approx(100 * (0.5 * 1 + 0.5 * 0.5))
    assert np.isnan(area[1])
    # recalls 0 to 0.5 have 1, 0.6 to 1 have 1/2
    assert average_precisions(found, eleven=True)[0] == pytest.approx(100 * (6 + 5 * 0.5) / 11)


def test_a_detection_is_matched_to_the_object_it_overlaps_most() -> None:
    near = [2, 0, 12, 10]
    truths = rows((0, 1, 0, A), (0, 1, 0, near))
    # the second overlaps `near` most as well, which is taken: VOC calls it a miss
    detections = rows((0, 1, 0.9, near), (0, 1, 0.8, [1, 0, 12, 10]))
    assert judge_detections(detections, truths, 1, 1).verdict.tolist() == [HIT, MISS]


def test_an_overlap_of_one_half_suffices() -> None:
    half = [0, 0, 10, 5]
    assert judge_detections(rows((0, 1, 0.9, half)), rows((0, 1, 0, A)), 1, 1).verdict.tolist() == [
        HIT
    ]


def made(seed: int, images: int = 30, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Truths without difficult ones, and detections of them that are off, doubled or invented."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for image in range(images):
        for cell in rng.permutation(9)[: rng.integers(1, 5)]:  # far from each other
            left, top = 40 * np.array([cell % 3, cell // 3]) + rng.uniform(2, 12, 2)
            box = np.array([left, top, left + rng.uniform(8, 20), top + rng.uniform(8, 20)])
            label = int(rng.integers(1, classes + 1))
            truths.append([image, label, 0, *box])
            for _ in range(rng.integers(0, 3)):
                detections.append([image, label, rng.uniform(), *(box + rng.normal(0, 2, 4))])
        for _ in range(rng.integers(0, 2)):
            label, score = int(rng.integers(1, classes + 1)), rng.uniform(0, 0.6)
            detections.append([image, label, score, 200, 200, 220, 220])
    return np.array(detections), np.array(truths)


@pytest.mark.parametrize("seed", range(3))
def test_eleven_points_are_torchmetrics_with_eleven_recalls(seed: int) -> None:
    from torchmetrics.detection import MeanAveragePrecision

    detections, truths = made(seed)
    found = average_precision.mean_over_classes(
        average_precisions(judge_detections(detections, truths, 30, 3), eleven=True)
    )
    measure = MeanAveragePrecision(
        backend="faster_coco_eval",
        iou_thresholds=[0.5],
        rec_thresholds=[
            float(level) - 1e-9 for level in average_precision.ELEVEN
        ],  # 0.3 is 3/10 too
    )
    for image in range(30):
        message, there = (r[r[:, 0] == image] for r in (detections, truths))
        measure.update(
            [{
                "boxes": torch.from_numpy(message[:, 3:]).float(),
                "labels": torch.from_numpy(message[:, 1]).long(),
                "scores": torch.from_numpy(message[:, 2]).float(),
            }],
            [{
                "boxes": torch.from_numpy(there[:, 3:]).float(),
                "labels": torch.from_numpy(there[:, 1]).long(),
            }],
        )  # fmt: skip
    # No objects that overlap: COCO takes the best that is free, VOC the best of all
    assert found == pytest.approx(100 * float(measure.compute()["map"]), abs=1e-3)


def test_perfect_detections_have_an_average_precision_of_100() -> None:
    _, truths = made(0)
    detections = truths.copy()
    detections[:, 2] = 0.9
    found = judge_detections(detections, truths, 30, 3)
    assert average_precisions(found).tolist() == pytest.approx([100, 100, 100])
    assert average_precisions(found, eleven=True).tolist() == pytest.approx([100, 100, 100])
    assert coco(detections, truths, 30) == pytest.approx(100)


def test_a_weight_of_two_equals_a_duplicated_image() -> None:
    detections, truths = made(1, images=4)
    times = np.array([2, 0, 1, 3])
    counted = average_precisions(judge_detections(detections, truths, 4, 3), times)
    copies = [image for image, count in enumerate(times) for _ in range(count)]
    again = [
        np.concatenate([np.c_[np.full(sum(r[:, 0] == old), new), r[r[:, 0] == old][:, 1:]]
                        for new, old in enumerate(copies)])
        for r in (detections, truths)
    ]  # fmt: skip
    copied = average_precisions(judge_detections(again[0], again[1], len(copies), 3))
    np.testing.assert_allclose(counted, copied, atol=1.0)


def test_intersection_over_union_is_that_of_the_confusion_matrix() -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, 4, (40, 50)).astype(np.uint8)
    message = np.where(rng.uniform(size=mask.shape) < 0.6, mask, rng.integers(0, 4, mask.shape))
    mask[:3] = 255
    message = message.astype(np.uint8)
    confusion = np.zeros((5, 5))
    for true, guess in zip(mask.ravel(), message.ravel(), strict=True):
        if true != 255:
            confusion[true, guess] += 1
    counts = average_precision.pixel_counts(message, mask, 5)
    diagonal = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - diagonal
    found = average_precision.class_iou(counts)
    np.testing.assert_allclose(found[:4], 100 * diagonal[:4] / union[:4], rtol=1e-12)
    assert np.isnan(found[4]), "a class that is nowhere is no class of the mean"
    expected = 100 * diagonal.sum() / confusion.sum()
    assert average_precision.pixel_accuracy(counts) == pytest.approx(expected)


def test_a_bootstrap_finds_the_better_of_two_and_no_difference_of_equals() -> None:
    rng = np.random.default_rng(0)
    labelled = rng.integers(50, 100, (60, 3)).astype(float)
    better, worse = (
        np.stack([labelled * share, labelled, labelled], axis=1) for share in (0.9, 0.7)
    )
    worse[:, 0] *= rng.uniform(0.95, 1.05, (60, 3))
    classes = np.array(["a", "b", "c"])
    found = bootstrap.bootstrap_difference(
        {"counts": worse, "classes": classes}, {"counts": better, "classes": classes}
    )
    assert found["low"] > 10
    assert found["p"] < 0.002  # no draw of 4,000 is on the other side
    wider = bootstrap.bootstrap_difference(
        {"counts": worse, "classes": classes}, {"counts": better, "classes": classes}, 0.05 / 6
    )
    assert wider["low"] < found["low"] < found["high"] < wider["high"]
    same = bootstrap.bootstrap_difference(
        {"counts": worse, "classes": classes}, {"counts": worse, "classes": classes}
    )
    assert (same["low"], same["high"], same["p"]) == (0.0, 0.0, 1.0)
