"""The names of metrics and of measurements."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

Entry = TypeVar("Entry", bound=Mapping[str, Any])
# Metrics in percent and their headings; the first of a task's metrics is its score
METRICS = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "ap50": "AP50 %",
    "ap50_07": "AP50 VOC07 %",
    "map": "mAP COCO %",
    "miou": "mIoU %",
    "pixels": "pixels %",
    "ignored": "ignored %",  # share of pixels that the other two leave out
}


TOP = 5  # classes that an image may be right in for the second metric; with no more it is 100 %
EVEN = 1.25  # times the images of the smallest class, up to which top-1 stands for all classes


def score(entry: Mapping[str, Any]) -> float:
    """The main metric of a result or a line, in percent: the first of METRICS that it has."""
    return float(next(entry[metric] for metric in METRICS if metric in entry))


def measurement_name(entry: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """`val`, or `val 224px@0.95 flip`: the set, and size, crop and TTA where these vary."""
    parts = [str(entry["set"])]
    if len({(e["size"], e["crop"]) for e in among}) > 1:
        parts.append(f"{entry['size']}px@{entry['crop']:g}")
    if len({_tta(e) for e in among}) > 1:
        parts.append(_tta(entry))
    return " ".join(parts)


def by_measurement(entries: Sequence[Entry]) -> dict[str, Entry]:
    """A result's entries by the names of their measurements."""
    return {measurement_name(entry, entries): entry for entry in entries}


def measurement_stem(entry: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """The measurement's name within its set, for a file: `val-288px@1-flip`."""
    return measurement_name(entry, [e for e in among if e["set"] == entry["set"]]).replace(" ", "-")


def _tta(entry: Mapping[str, Any]) -> str:
    return str(entry["protocol"]["tta"] if "protocol" in entry else entry.get("tta"))


def finite_or_none(value: float | None) -> float | None:
    """The value for JSON: None for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def format_metrics(metrics: Mapping[str, float]) -> str:
    """`top-1 34.30 %  top-5 80.10 %`."""
    return "  ".join(f"{METRICS[m].removesuffix(' %')} {v:.2f} %" for m, v in metrics.items())


def is_uneven(counts: Iterable[int]) -> bool:
    """Whether classes differ enough in their numbers of images to show balanced accuracy.

    Of two classes below that, balanced accuracy and top-1 differ by at most an eighteenth of the
    difference between the classes' recalls. A class without images does not count.
    """
    known = [count for count in counts if count]
    return bool(known) and max(known) > EVEN * min(known)


def shown_metrics(entry: Mapping[str, Any]) -> list[str]:
    """As `metric_names`, without top-5 of so few classes that it says nothing."""
    classes = len(entry.get("per_class") or ()) or None
    few = classes is not None and classes <= TOP
    return [metric for metric in metric_names(entry) if not (few and metric == "top5")]


def metric_names(entry: Mapping[str, Any]) -> list[str]:
    """The metrics that a result or a line of metrics has."""
    return [metric for metric in METRICS if metric in entry]
