"""The uncertainty of a difference between two detectors or segmentation networks."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescue_cli.analysis.stats import LEVEL, t_quantile
from rescue_cli.metrics import average_precision

Arrays = Mapping[str, NDArray[Any]]  # of `predictions/SET.npz`
DRAWS = 4000
FEWEST = 10  # images


def task_of(arrays: Arrays) -> Literal["detection", "segmentation"] | None:
    """The task, by what is stored; None for classification."""
    if "detections" in arrays:
        return "detection"
    return "segmentation" if "counts" in arrays else None


def bootstrap_difference(
    a: Arrays, b: Arrays, level: float = LEVEL, draws: int = DRAWS
) -> dict[str, Any]:
    """b's score less a's with images resampled, the same for both (paired bootstrap, Efron 1979).

    Percentile intervals are too narrow for few images; here the percentiles are expanded to those
    of a t-interval (Hesterberg 2015), and `p` is the level at which the interval reaches 0. Empty
    where the images are not the same.
    """
    first, second = _Scored(a), _Scored(b)
    if first.count != second.count or not np.array_equal(first.there, second.there):
        return {}
    count = first.count
    from scipy.special import ndtr, ndtri, stdtr

    how = f"paired bootstrap over {count} images, {draws} draws"
    if count < FEWEST:
        return {"how": f"{count} images are too few for a bootstrap, which needs {FEWEST}"}
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    differences = np.array([second.score(times) - first.score(times) for times in drawn])
    wide = math.sqrt(count / (count - 1))
    tail = float(ndtr(-wide * t_quantile(count - 1, level)))
    low, high = np.quantile(differences, [tail, 1 - tail])
    beyond = max(min((differences <= 0).mean(), (differences >= 0).mean()), 1 / draws)
    p = 2 * float(stdtr(count - 1, ndtri(beyond) / wide))
    return {"low": float(low), "high": float(high), "p": min(1.0, p), "how": how}


class _Scored:
    """A run's predictions, prepared so that any resample of the images is scored quickly."""

    def __init__(self, arrays: Arrays) -> None:
        self.detects = task_of(arrays) == "detection"
        if self.detects:
            self.count, self.there = int(arrays["count"]), arrays["truths"]
            classes = len(arrays["classes"])
            self.judged = average_precision.judge_detections(
                arrays["detections"], self.there, self.count, classes
            )
        else:
            self.counts = arrays["counts"]
            self.count, self.there = len(self.counts), self.counts[:, 2]

    def score(self, times: NDArray[np.int64]) -> float:
        """The score in percent, with each image counted `times` (images,) times."""
        if self.detects:
            return average_precision.mean_over_classes(
                average_precision.average_precisions(self.judged, times)
            )
        summed = np.tensordot(times, self.counts, axes=1)
        return average_precision.mean_over_classes(average_precision.class_iou(summed))
