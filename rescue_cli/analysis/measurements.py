"""A result's measurements as a table: a row for each set, size, crop and test-time augmentation."""

from collections.abc import Mapping
from typing import Any

from rescue_cli.rundir import METRICS, metrics_of, stem

WORDS = ("set", "TTA")  # columns that hold no numbers
BALANCED = "bal. %"  # of balanced accuracy; TTA's names leave 7 columns of 80


def interval_of(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Of a top-1 accuracy, 95 % over new test images (Wilson)."""
    from rescue_cli.analysis.stats import wilson

    return wilson(entry["top1"] / 100 * entry["count"], entry["count"])


def balanced_interval(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Of a balanced accuracy, 95 % over new test images of the same classes; None without one."""
    import numpy as np

    from rescue_cli.analysis.stats import mean_of_proportions

    rows = _there(entry)
    if not rows:
        return None
    counts = np.array([float(row["images"]) for row in rows])
    return mean_of_proportions(np.array([row["recall"] for row in rows]) / 100 * counts, counts)


def _there(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The classes that the set has images of."""
    rows = entry.get("per_class", [])
    return [row for row in rows if row["images"] and row["recall"] is not None]


def is_uneven(entry: Mapping[str, Any]) -> bool:
    """Whether classes differ in how many images they have, so that top-1 is no mean of them."""
    return len({row["images"] for row in _there(entry)}) > 1


def with_interval(result: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of JSON that give each measured accuracy's interval; none of other metrics."""
    if "top1" not in result:
        return {}
    entries = [{**entry, **_intervals(entry)} for entry in result["sets"]]
    return {**_intervals({**result["sets"][0], **result}), "sets": entries}


def _intervals(entry: Mapping[str, Any]) -> dict[str, Any]:
    balanced = balanced_interval(entry)
    return {
        "interval": interval_of(entry),
        **({} if balanced is None else {"balanced_interval": balanced}),
    }


def of_images(result: Mapping[str, Any]) -> list[str]:
    """What the intervals of a table are, and how much an image is; nothing of other metrics."""
    if "top1" not in result:
        return []
    steps = {entry["set"]: 100 / entry["count"] for entry in result["sets"]}
    each = ", ".join(f"{points:.2g} points" + f" on {name}" * (len(steps) > 1)
                     for name, points in steps.items())  # fmt: skip
    main = result["sets"][0]
    if not is_uneven(main):
        return [f"95 %: of this network, over new images; one image is {each}"]
    return [
        f"95 %: of this network's top-1, over new images; one image is {each}",
        _of_classes(main, stem(main, result["sets"])),
    ]


def _of_classes(entry: Mapping[str, Any], name: str) -> str:
    """What the balanced accuracy of uneven classes is a mean of, and where each of them is."""
    rows, interval = _there(entry), balanced_interval(entry)
    assert interval is not None
    known, images = len(entry["per_class"]), [row["images"] for row in rows]
    of = f"{len(rows)}" if len(rows) == known else f"{len(rows)} of {known}"
    return (
        f"bal.: balanced accuracy, the mean recall of {of} classes of {min(images)} to "
        f"{max(images)} images\n"
        f"95 % of it: {interval[0]:.1f} to {interval[1]:.1f}; each class: predictions/{name}.csv"
    )


def measurements(
    result: Mapping[str, Any], *, narrow: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, in percent where the heading says so.

    Where classes are uneven, balanced accuracy stands beside top-1; in a `narrow` table instead of
    top-5, which would be the column too many.
    """
    entries = result["sets"]
    metrics = metrics_of(entries[0])
    judged, uneven = "top1" in metrics, any(is_uneven(entry) for entry in entries)
    if uneven and narrow:
        metrics.remove("top5")
    numbers = [{METRICS[m]: f"{entry[m]:.2f}" for m in metrics} for entry in entries]
    if uneven:
        numbers = [_beside(first, entry) for first, entry in zip(numbers, entries, strict=True)]
    headings = ["set", "size", "crop", "TTA", *numbers[0],
                *(["95 %"] if judged else []), "loss", "images"]  # fmt: skip
    rows = [
        [
            entry["set"],
            str(entry["size"]),
            f"{entry['crop']:g}",
            entry["protocol"]["tta"],
            *shown.values(),
            *([f"{low:.1f} to {high:.1f}" for low, high in [interval_of(entry)]] if judged else []),
            "-" if entry["loss"] is None else f"{entry['loss']:.4f}",
            str(entry["count"]),
        ]
        for entry, shown in zip(entries, numbers, strict=True)
    ]
    return headings, rows


def _beside(metrics: Mapping[str, str], entry: Mapping[str, Any]) -> dict[str, str]:
    """The metrics with balanced accuracy after the first."""
    value = entry.get("balanced_accuracy")
    (first, top), *others = metrics.items()
    return {first: top, BALANCED: "-" if value is None else f"{value:.2f}", **dict(others)}
