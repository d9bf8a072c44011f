"""A result's measurements as a table: a row for each set, size, crop and test-time augmentation."""

from collections.abc import Mapping
from typing import Any

from rescue_cli.results import METRICS, metrics_of

WORDS = ("set", "TTA")  # columns that hold no numbers


def interval_of(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Of a top-1 accuracy, 95 % over new test images (Wilson)."""
    from rescue_cli.statistics import wilson

    return wilson(entry["top1"] / 100 * entry["count"], entry["count"])


def with_interval(result: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of JSON that give each measured accuracy's interval; none of other metrics."""
    if "top1" not in result:
        return {}
    entries = [{**entry, "interval": interval_of(entry)} for entry in result["sets"]]
    return {"interval": interval_of(result), "sets": entries}


def of_images(result: Mapping[str, Any]) -> list[str]:
    """What the intervals of a table are, and how much an image is; nothing of other metrics."""
    if "top1" not in result:
        return []
    steps = {entry["set"]: 100 / entry["count"] for entry in result["sets"]}
    each = ", ".join(f"{points:.2g} points" + f" on {name}" * (len(steps) > 1)
                     for name, points in steps.items())  # fmt: skip
    return [f"95 %: of this network, over new images; one image is {each}"]


def measurements(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, in percent where the heading says so."""
    metrics = metrics_of(result["sets"][0])
    judged = "top1" in metrics
    headings = ["set", "size", "crop", "TTA", *(METRICS[m] for m in metrics),
                *(["95 %"] if judged else []), "loss", "images"]  # fmt: skip
    rows = [
        [
            entry["set"],
            str(entry["size"]),
            f"{entry['crop']:g}",
            entry["protocol"]["tta"],
            *(f"{entry[metric]:.2f}" for metric in metrics),
            *([f"{low:.1f} to {high:.1f}" for low, high in [interval_of(entry)]] if judged else []),
            "-" if entry["loss"] is None else f"{entry['loss']:.4f}",
            str(entry["count"]),
        ]
        for entry in result["sets"]
    ]
    return headings, rows
