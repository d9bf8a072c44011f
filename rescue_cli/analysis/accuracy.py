"""Confidence intervals of a result's accuracies, over new test images."""

from collections.abc import Mapping
from typing import Any


def accuracy_interval(entry: Mapping[str, Any]) -> tuple[float, float]:
    """95 % interval of a top-1 accuracy, in percent, over new test images (Wilson)."""
    from rescue_cli.analysis.stats import wilson_interval

    return wilson_interval(entry["top1"] / 100 * entry["count"], entry["count"])


def balanced_interval(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """95 % interval of a balanced accuracy, in percent, over new test images; None without one."""
    import numpy as np

    from rescue_cli.analysis.stats import mean_of_proportions_interval

    rows = classes_with_images(entry)
    if not rows:
        return None
    counts = np.array([float(row["images"]) for row in rows])
    return mean_of_proportions_interval(
        np.array([row["recall"] for row in rows]) / 100 * counts, counts
    )


def classes_with_images(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of the classes that have images in the set."""
    rows = entry.get("per_class", [])
    return [row for row in rows if row["images"] and row["recall"] is not None]


def add_intervals(result: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON keys with the interval of each accuracy; empty for other metrics."""
    if "top1" not in result:
        return {}
    entries = [{**entry, **_intervals(entry)} for entry in result["sets"]]
    return {**_intervals({**result["sets"][0], **result}), "sets": entries}


def _intervals(entry: Mapping[str, Any]) -> dict[str, Any]:
    balanced = balanced_interval(entry)
    return {
        "interval": accuracy_interval(entry),
        **({} if balanced is None else {"balanced_interval": balanced}),
    }
