"""A result's measurements as a table: a row for each set, size, crop and test-time augmentation."""

from collections.abc import Mapping
from typing import Any

from rescue_cli.results import METRICS, metrics_of

WORDS = ("set", "TTA")  # columns that hold no numbers


def measurements(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, in percent where the heading says so."""
    metrics = metrics_of(result["sets"][0])
    headings = ["set", "size", "crop", "TTA", *(METRICS[m] for m in metrics), "loss", "images"]
    rows = [
        [
            entry["set"],
            str(entry["size"]),
            f"{entry['crop']:g}",
            entry["protocol"]["tta"],
            *(f"{entry[metric]:.2f}" for metric in metrics),
            "-" if entry["loss"] is None else f"{entry['loss']:.4f}",
            str(entry["count"]),
        ]
        for entry in result["sets"]
    ]
    return headings, rows
