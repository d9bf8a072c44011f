"""Whether a written network gives what the run's own evaluation gives."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rescue_cli.export.formats import Probabilities, Runtime
from rescue_cli.export.images import TestSet
from rescue_cli.inference import Classifier
from rescue_cli.metrics.average_precision import (
    class_iou,
    mean_over_classes,
    pixel_accuracy,
    pixel_counts,
)
from rescue_cli.sections.task.segmentation import highest

# The largest difference in probability that the order of float32 sums explains
ALLOWED = 1e-4
# Grey levels that two decoders or resizers may differ by, on average over an image
ALLOWED_LEVELS = 0.5
SAME = 1e-3  # grey levels: what float32 leaves of the same pixels


@dataclass(frozen=True)
class Comparison:
    """The test images of a written network against the run's own evaluation in float32.

    `same`, `difference`: outputs of the same class (of `outputs`: one per image, in segmentation
    one per pixel) and the largest difference in probability, from the pixels of the run's
    evaluation; `prepared_same`, `prepared_difference`: from the images as the file's own
    preprocessing has them, of which `same_pixels` are the same to the last level. `levels`: the
    largest mean difference of an image in grey levels. `score`: percent right, or the mean
    intersection over union, of the file; `own_score`: of the run.
    """

    images: int
    outputs: int
    same: int
    difference: float
    same_pixels: int
    levels: float
    prepared_same: int
    prepared_difference: float
    score: float
    own_score: float
    of_pixels: bool = False

    @property
    def fault(self) -> str | None:
        """What is wrong; None where nothing is."""
        if not self.difference <= ALLOWED:  # nor NaN
            return (
                f"{self.outputs - self.same:,} of {self._all} have another class, and "
                f"probabilities differ by up to {self.difference:.2g} (allowed: {ALLOWED:g})"
            )
        if not self.levels <= ALLOWED_LEVELS:
            return (
                f"its preprocessing gives other pixels in {self.images - self.same_pixels:,} of "
                f"{self.images:,} images, by up to {self.levels:.2g} grey levels on average "
                f"(allowed: {ALLOWED_LEVELS:g})"
            )
        return None

    @property
    def _all(self) -> str:
        return f"{self.outputs:,} {'pixels' if self.of_pixels else 'images'}"

    def sentences(self) -> list[str]:
        """The result in two lines, the second on the file's own preprocessing."""
        same_pixels = f"{self.same_pixels:,} of {self.images:,} images get the same pixels"
        if self.same_pixels < self.images:
            same_pixels += (
                f" (the others differ by up to {self.levels:.2g} grey levels on average), "
                f"{self.prepared_same:,} same class, largest difference in probability "
                f"{self.prepared_difference:.1g}"
            )
        if self.of_pixels:
            compared = f"{self._all} of {self.images:,} images"
            score = f"mIoU {self.score:.2f} %, the run's own {self.own_score:.2f} %"
        else:
            compared, score = f"{self.images:,}", f"top-1 {self.score:.2f} %"
        return [
            f"{self.same:,} of {compared} same class, largest difference in probability "
            f"{self.difference:.1g}",
            f"preprocessed by what the file says: {same_pixels}; {score}",
        ]

    def as_json(self) -> dict[str, Any]:
        """The fields, the scores by the metric's name."""
        fields = asdict(self)
        metric = "miou" if fields.pop("of_pixels") else "top1"
        score, own_score = fields.pop("score"), fields.pop("own_score")
        return {**fields, metric: score, f"own_{metric}": own_score}


def compare(
    classifier: Classifier,
    runtime: Runtime,
    tests: TestSet,
    after_batch: Callable[[], None] = lambda: None,
) -> Comparison:
    """The network's own probabilities of all test images against those of its file."""
    sums, peaks, counts = [], [], []
    for number, (indices, pixels, target) in enumerate(tests.batches()):
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        own = classifier(classifier.normalise(images)).numpy()
        inputs = runtime.from_pixels(pixels)
        given = runtime(inputs)
        if number == 0:  # in a batch of one, and of another number of images
            for part in ([0], [0, *range(len(inputs))]):
                peaks.append((_agree(runtime(inputs[part]), own[part])[1], 0.0, 0.0))
        of_file = runtime.prepare([tests.decode(int(index)) for index in indices])
        levels = np.abs((of_file.astype(np.float64) - inputs) * runtime.levels)
        levels = levels.reshape(len(indices), -1)
        prepared = given.copy()
        if (other := levels.max(1) > SAME).any():
            prepared[other] = runtime(of_file[other])
        (same, difference), (prepared_same, prepared_difference) = (
            _agree(each, own) for each in (given, prepared)
        )
        sums.append((len(indices), own[:, 0].size, same, int((~other).sum()), prepared_same))
        peaks.append((difference, np.where(other, levels.mean(1), 0).max(), prepared_difference))
        counts.append([_counts(each, target) for each in (prepared, own)])
        after_batch()
    of_pixels = tests.recipe.is_annotated
    score, own_score = (_score(each, of_pixels) for each in np.sum(counts, 0))
    count, outputs, same, same_pixels, prepared_same = map(int, np.sum(sums, 0))
    difference, level, prepared_difference = map(float, np.max(peaks, 0))  # NaN stays
    return Comparison(
        images=count,
        outputs=outputs,
        same=same,
        difference=difference,
        same_pixels=same_pixels,
        levels=level,
        prepared_same=prepared_same,
        prepared_difference=prepared_difference,
        score=score,
        own_score=own_score,
        of_pixels=of_pixels,
    )


def _agree(probabilities: Probabilities, own: Probabilities) -> tuple[int, float]:
    """How many outputs have the same class, and the largest difference."""
    same = probabilities.argmax(1) == own.argmax(1)
    return int(same.sum()), float(np.abs(probabilities - own).max())


def _counts(probabilities: Probabilities, target: NDArray[Any]) -> NDArray[np.float64]:
    """As `pixel_counts`, of the labels (n,) of images, or of the mask of one image as the run's
    evaluation predicts it: from what the network gives, at the size of the image itself.
    """
    if probabilities.ndim == 2:
        predicted = probabilities.argmax(1)
    else:  # logits but for one summand per pixel, which changes no class
        logits = torch.from_numpy(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)))
        predicted = highest(logits, target.shape).numpy()
    return pixel_counts(predicted, target, probabilities.shape[1])


def _score(counts: NDArray[np.float64], of_pixels: bool) -> float:
    return mean_over_classes(class_iou(counts)) if of_pixels else pixel_accuracy(counts)
