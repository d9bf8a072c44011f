"""Two detectors, or two segmentations, on the same scenes: how sure is their difference?"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rescue_cli import precision
from rescue_cli.statistics import band

Arrays = Mapping[str, NDArray[Any]]  # as `predictions/SET.npz` has them
DRAWS = 2000


def kind_of(arrays: Arrays) -> Literal["detection", "segmentation"] | None:
    """What was measured, by what is stored; None where images have labels."""
    if "detections" in arrays:
        return "detection"
    return "segmentation" if "counts" in arrays else None


def bootstrap(a: Arrays, b: Arrays) -> dict[str, Any]:
    """The interval of b's score less a's over scenes drawn anew, the same for both (Efron 1979).

    `p` is twice the share of draws on the other side of no difference. Empty where the scenes are
    not the same.
    """
    first, second = _Scored(a), _Scored(b)
    if first.count != second.count or not np.array_equal(first.there, second.there):
        return {}
    rng = np.random.default_rng(0)
    draws = rng.multinomial(first.count, np.full(first.count, 1 / first.count), size=DRAWS)
    found = np.array([second.score(times) - first.score(times) for times in draws])
    low, high = band(found)
    beyond = min((found <= 0).mean(), (found >= 0).mean())
    return {
        "low": low,
        "high": high,
        "p": float(min(1.0, max(2 * beyond, 2 / DRAWS))),
        "how": f"bootstrap over {first.count} scenes, {DRAWS} draws",
    }


class _Scored:
    """A run's scenes, so that its score over any choice of them is quickly had."""

    def __init__(self, arrays: Arrays) -> None:
        self.detects = kind_of(arrays) == "detection"
        if self.detects:
            self.count, self.there = int(arrays["count"]), arrays["truths"]
            classes = len(arrays["classes"])
            self.judged = precision.judged(arrays["detections"], self.there, self.count, classes)
        else:
            self.counts = arrays["counts"]
            self.count, self.there = len(self.counts), self.counts[:, 2]

    def score(self, times: NDArray[np.int64]) -> float:
        """Percent, each scene counted so many times."""
        if self.detects:
            return precision.mean(precision.average_precisions(self.judged, times))
        summed = np.tensordot(times, self.counts, axes=1)
        return precision.mean(precision.overlap_of_classes(summed))
