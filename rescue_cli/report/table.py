"""Tables of results: of runs, sweeps and studies, and of one run's measurements."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescue_cli.analysis.accuracy import (
    accuracy_interval,
    balanced_interval,
    classes_with_images,
)
from rescue_cli.formatting import format_loss, format_seconds
from rescue_cli.metrics.names import METRICS, is_uneven, measurement_stem, shown_metrics
from rescue_cli.rundir import RunDirectory
from rescue_cli.rundir.planned import MissingRun, format_planned, missing_to_json

if TYPE_CHECKING:
    from rescue_cli.analysis.stats import Sample

TEXT_COLUMNS = ("set", "TTA")  # columns that hold no numbers
BALANCED = "bal. %"  # balanced accuracy; the other columns leave 7 characters of 80
HEADINGS = ("path", "recipe", "set", "paper %", "measured %", "std", "runs", "epochs",
            "training time (s)")  # fmt: skip
KEYS = (
    "path", "recipe", "set", "paper", "measured", "std", "planned", "n", "diverged", "failed",
    "unfinished", "not_run", "epochs", "seconds_train",
)  # fmt: skip


@dataclass(frozen=True)
class ResultLine:
    """A measured accuracy in percent, and what the recipe's paper reports."""

    path: str
    recipe: str
    set: str
    paper: "Sample | None"
    measured: "Sample"
    seconds: float | None  # of training: the mean of the runs; None of an evaluation
    missing: Mapping[Any, MissingRun] = field(default_factory=dict)  # planned runs without a result
    metric: str = "top1"
    # 95 %: of a mean over new seeds, of a single network over new test images; None: unknown
    interval: tuple[float, float] | None = None
    seeds: Mapping[int, float] = field(default_factory=dict)  # percent by seed, of a sweep
    images: int | None = None  # in the test set
    note: str = ""  # what distinguishes a study's row
    epochs: float | None = None  # of training; None of an evaluation

    @property
    def cells(self) -> list[str]:
        """As text, under `HEADINGS`."""
        std = self.measured.std
        return [
            self.path, self.recipe, self.set, _format_published(self.paper),
            f"{self.measured.mean:.2f}", "-" if std is None else f"{std:.2f}",
            format_planned(self.measured.n, [run.how for run in self.missing.values()]),
            "-" if self.epochs is None else f"{self.epochs:.4g}",
            "-" if self.seconds is None else format_seconds(self.seconds),
        ]  # fmt: skip

    @property
    def values(self) -> dict[str, Any]:
        """As data, by `KEYS`."""
        return {
            "path": self.path,
            "recipe": self.recipe,
            "set": self.set,
            "paper": None if self.paper is None else self.paper.mean,
            "measured": self.measured.mean,
            "std": self.measured.std,
            **missing_to_json(self.measured.n, self.missing),
            "epochs": self.epochs,
            "seconds_train": self.seconds,
        }

    @property
    def row(self) -> dict[str, Any]:
        """As `values`, with the number of runs without a result in place of the reasons."""
        return {k: len(v) if isinstance(v, dict | list) else v for k, v in self.values.items()}


def results_table(lines: Sequence[ResultLine]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of results, for people."""
    return without_empty_columns(HEADINGS, [line.cells for line in lines])


def without_empty_columns(
    headings: Sequence[str], rows: Sequence[Sequence[str]], keep: Collection[str] = ()
) -> tuple[list[str], list[list[str]]]:
    """The table without columns that have `-` in every row; those named in `keep` stay."""
    kept = [
        i
        for i, heading in enumerate(headings)
        if heading in keep or not rows or any(row[i] != "-" for row in rows)
    ]
    return [headings[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _format_published(paper: "Sample | None") -> str:
    if paper is None:
        return "-"
    spread = "" if paper.std is None else f" ± {paper.std:.2f}"
    return f"{paper.mean:.2f}{spread}" + (f" ({paper.n})" if paper.n > 1 else "")


def interval_notes(result: Mapping[str, Any]) -> list[str]:
    """Explains the table's intervals, how much one image counts, and which accuracy to quote; empty
    without top-1.
    """
    if "top1" not in result:
        return []
    counts = dict.fromkeys((entry["set"], entry["count"]) for entry in result["sets"])
    steps = {name: 100 / count for name, count in counts}
    each = "; one image is " + ", ".join(
        f"{points:.2g} points" + f" on {name}" * (len(steps) > 1) for name, points in steps.items()
    )
    if len(counts) > len(steps):  # sets of one name and of two sizes
        each = ""
    main = result["sets"][0]
    if not _has_uneven_classes(main):
        return [f"95 %: interval for this network over new images{each}"]
    rows, interval = classes_with_images(main), balanced_interval(main)
    assert interval is not None
    known, images = len(main["per_class"]), [row["images"] for row in rows]
    of = f"{len(rows)}" if len(rows) == known else f"{len(rows)} of {known}"
    return [
        f"95 %: interval for this network's top-1 over new images{each}",
        f"bal.: balanced accuracy, the mean recall of {of} classes of {min(images)} to "
        f"{max(images)} images; 95 %: {interval[0]:.1f} to {interval[1]:.1f}",
        "Quote top-1 if new images come from the classes as often as these, bal. if every class "
        "counts the same.",
    ]


def class_tables(result: Mapping[str, Any]) -> str | None:
    """The file with the accuracy of each class, a pattern for several; None of even classes."""
    entries = result["sets"]
    if not any(map(_has_uneven_classes, entries)):
        return None
    stems = [measurement_stem(entry, entries) for entry in entries]
    run = RunDirectory(Path(result["run"]))
    return str(run.class_table(stems[0] if len(stems) == 1 else "*"))


def _has_uneven_classes(entry: Mapping[str, Any]) -> bool:
    return is_uneven(row["images"] for row in entry.get("per_class", []))


def measurement_table(
    result: Mapping[str, Any], *, narrow: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a run's measurements: one per set, size, crop and TTA.

    Where classes differ in size (`is_uneven`), balanced accuracy is shown beside top-1; in a
    `narrow` table it replaces top-5, which would not fit.
    """
    entries = result["sets"]
    metrics = shown_metrics(entries[0])
    has_top1, uneven = "top1" in metrics, any(map(_has_uneven_classes, entries))
    if uneven and narrow and "top5" in metrics:
        metrics.remove("top5")
    numbers = [{METRICS[m]: f"{entry[m]:.2f}" for m in metrics} for entry in entries]
    if uneven:
        numbers = [_beside(first, entry) for first, entry in zip(numbers, entries, strict=True)]
    headings = ["set", "size", "crop", "TTA", *numbers[0],
                *(["95 %"] if has_top1 else []), "loss", "images"]  # fmt: skip
    rows = [
        [
            entry["set"],
            str(entry["size"]),
            f"{entry['crop']:g}",
            entry["protocol"]["tta"],
            *shown.values(),
            *(
                [f"{low:.1f} to {high:.1f}" for low, high in [accuracy_interval(entry)]]
                if has_top1
                else []
            ),
            "-" if entry["loss"] is None else format_loss(entry["loss"]),
            str(entry["count"]),
        ]
        for entry, shown in zip(entries, numbers, strict=True)
    ]
    return headings, rows


def _beside(metrics: Mapping[str, str], entry: Mapping[str, Any]) -> dict[str, str]:
    """The metrics, with balanced accuracy after the first."""
    value = entry.get("balanced_accuracy")
    (first, top), *others = metrics.items()
    return {first: top, BALANCED: "-" if value is None else f"{value:.2f}", **dict(others)}
