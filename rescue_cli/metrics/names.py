"""What runs measure: its names, and what a measurement is called."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

# What tasks measure, in percent, by what tables call it; of each task the first is its score
METRICS = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "ap50": "AP50 %",
    "ap50_07": "AP50 VOC07 %",
    "map": "mAP COCO %",
    "miou": "mIoU %",
    "pixels": "pixels %",
    "ignored": "ignored %",  # of the pixels, which count in neither
}


def score(entry: Mapping[str, Any]) -> float:
    """What a run is judged by, in percent: the first of METRICS that a result or a line has."""
    return float(next(entry[metric] for metric in METRICS if metric in entry))


def measurement_name(entry: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """`val`, or `val 224px@0.95 flip`: the set, and what tells it from the others."""
    parts = [str(entry["set"])]
    if len({(e["size"], e["crop"]) for e in among}) > 1:
        parts.append(f"{entry['size']}px@{entry['crop']:g}")
    if len({_tta(e) for e in among}) > 1:
        parts.append(_tta(entry))
    return " ".join(parts)


def measurement_stem(entry: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """As `label`, of the entry's own set, for the name of a file: `val-288px@1-flip`."""
    return measurement_name(entry, [e for e in among if e["set"] == entry["set"]]).replace(" ", "-")


def _tta(entry: Mapping[str, Any]) -> str:
    return str(entry["protocol"]["tta"] if "protocol" in entry else entry.get("tta"))


def finite_or_none(value: float | None) -> float | None:
    """As JSON can have it: None for what is not a number or has no end."""
    return value if value is not None and math.isfinite(value) else None


def format_metrics(metrics: Mapping[str, float]) -> str:
    """`top-1 34.30 %`, several after one another."""
    return "  ".join(f"{METRICS[m].removesuffix(' %')} {v:.2f} %" for m, v in metrics.items())


def metric_names(entry: Mapping[str, Any]) -> list[str]:
    """The metrics that a result or a line of metrics has."""
    return [metric for metric in METRICS if metric in entry]
