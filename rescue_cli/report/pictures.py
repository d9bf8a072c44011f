"""A run's pictures: curves, augmented samples, confusion matrices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.metrics.names import METRICS, measurement_name, metric_names
from rescue_cli.report.fonts import use_fallback_fonts
from rescue_cli.rundir import RunDirectory, read_arrays, read_metrics

SHOWN_CLASSES = 40  # a larger confusion matrix is not legible


def draw_run(path: Path) -> None:
    """Writes the run's pictures, as far as it has the data, and the accuracy of each class."""
    run = RunDirectory(path)
    lines = read_metrics(run.metrics)
    if lines:
        save_figure(plot_curves(lines), path / "curves.png")
    if run.samples.exists():
        save_figure(plot_samples(run.samples), path / "samples.png")
    if run.examples.exists():
        save_figure(plot_samples(run.examples), path / "examples.png")
    for file in sorted((path / "predictions").glob("*.npz")):
        arrays = read_classes(file)
        _write_classes(arrays, run.class_table(file.stem))
        if "confusion" in arrays and len(arrays["classes"]) <= SHOWN_CLASSES:
            save_figure(_confusion(arrays, file.stem), file.with_suffix(".png"))


def new_figure(width: float, height: float, *, arranged: bool = True) -> Any:
    """An empty figure of so many inches; not `arranged`: the caller sets the margins.

    Constrained layout takes half of the time of drawing, and each run draws.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if arranged else None, dpi=120)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    use_fallback_fonts(figure)
    figure.savefig(path)


def plot_curves(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Loss, accuracy and learning rate by epoch."""
    train = [line for line in lines if line["kind"] == "train"]
    tests = [line for line in lines if line["kind"] == "eval"]
    metric = metric_names(tests[0])[0] if tests else "top1"
    figure = new_figure(10, 3.2, arranged=False)
    figure.subplots_adjust(left=0.08, right=0.985, bottom=0.15, top=0.86, wspace=0.32)
    loss, accuracy, rate = figure.subplots(1, 3)
    loss.plot(*_columns(train, "loss"), label="training", linewidth=1)
    for name, rows in _by_set(lines).items():
        mark = "o" if len(rows) == 1 else None
        if any(row["loss"] is not None for row in rows):
            loss.plot(*_columns(rows, "loss"), label=name, marker=mark)
        accuracy.plot(*_columns(rows, metric), label=name, marker=mark)
    rate.plot(*_columns(train, "lr"), color="tab:green")
    titles = ((loss, "loss"), (accuracy, METRICS[metric]), (rate, "learning rate"))
    for axes, title in titles:
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))  # so that tick labels fit the margins
        axes.tick_params(axis="y", labelsize=9)
        axes.grid(alpha=0.3)
    for axes in (loss, accuracy):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return figure


def _by_set(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Evaluations by measurement."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    tests = [line for line in lines if line["kind"] == "eval"]
    for line in tests:
        by_name.setdefault(measurement_name(line, tests), []).append(line)
    return by_name


def _columns(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    return [r["epoch"] for r in rows], [r[key] for r in rows]


def plot_samples(file: Path) -> Any:
    """Images in rows of four, each with its label above."""
    arrays = read_arrays(file, "images", "labels")
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim != 4 or len(images) != len(labels):
        raise DataError(f"{file}: images, labels: not one label per image. Remove the file.")
    count, _, height, width = images.shape
    gap = 0.1 * width  # between the images of a row
    across = width + gap
    inch = 4 * across / 6  # in pixels of the images
    head = 0.25 * inch  # height of a label
    down = height + head
    rows = -(-count // 4)
    figure = new_figure(6, rows * down / inch, arranged=False)
    axes = figure.add_axes((0, 0, 1, 1))  # one for all images: axes are slow to draw
    axes.axis("off")
    for index, (image, words) in enumerate(zip(images, labels, strict=True)):
        left, top = index % 4 * across, index // 4 * down
        shown = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
        axes.imshow(shown, cmap="gray", extent=(left, left + width, top + height, top))
        axes.text(left + width / 2, top, str(words), fontsize=8, ha="center", va="bottom")
    axes.set_xlim(-gap / 2, 4 * across - gap / 2)
    axes.set_ylim(rows * down - head, -head)
    return figure


def _confusion(arrays: Mapping[str, Any], title: str) -> Any:
    """Percent of each class (row) that was predicted as each class (column)."""
    classes = [str(name) for name in arrays["classes"]]
    counts = arrays["confusion"]
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3 + 0.35 * len(classes)
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(f"{title}: % of each class", fontsize=10)
    if len(classes) <= 12:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                colour = "white" if value > 60 else "black"
                axes.text(
                    column, row, f"{value:.0f}", ha="center", va="center", fontsize=7,
                    color=colour, in_layout=False,  # it lies within its cell anyway
                )  # fmt: skip
    return figure


def _write_classes(arrays: Mapping[str, Any], path: Path) -> None:
    counts, (metric, what) = class_counts(arrays)
    names = [str(name).replace('"', '""') for name in arrays["classes"]]
    rows = zip(names, arrays["per_class"], counts, strict=True)
    lines = [f'"{name}",{f"{value:.2f}" if count else ""},{count}' for name, value, count in rows]
    path.write_text("\n".join([f'class,"{metric}",{what}', *lines]) + "\n", encoding="utf-8")


def read_classes(file: Path) -> Mapping[str, Any]:
    """The stored predictions, checked to have an accuracy per class; raises `DataError`."""
    arrays = read_arrays(file, "classes", "per_class")
    if "confusion" not in arrays and "count_per_class" not in arrays:
        raise DataError(f"{file}: has no array count_per_class. Remove the file.")
    counts, _ = class_counts(arrays)
    if not len(arrays["classes"]) == len(arrays["per_class"]) == len(counts):
        raise DataError(f"{file}: per_class: not one value per class. Remove the file.")
    return arrays


def class_counts(arrays: Mapping[str, Any]) -> tuple[Any, tuple[str, str]]:
    """The number of images or objects of each class, and the headings of accuracy and number."""
    if "confusion" in arrays:
        return arrays["confusion"].sum(1), ("recall %", "images")
    measure = ("AP50 %", "objects") if "truths" in arrays else ("IoU %", "images")
    return arrays["count_per_class"], measure
