"""A run's pictures: curves, augmented samples, confusion matrices."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.errors import DataError, RescueError
from rescue_cli.metrics.names import METRICS, measurement_name, metric_names
from rescue_cli.recipe import Recipe, recipe_in
from rescue_cli.report.fonts import use_fallback_fonts
from rescue_cli.report.thinning import thin_lines
from rescue_cli.rundir import RunDirectory, each_line, read_arrays

SHOWN_CLASSES = 40  # a larger confusion matrix is not legible
FEW_IMAGES = 100  # of a class, below which a confusion matrix shows counts: 1 % is not an image
PANEL = (4.4, 2.9)  # inches of a picture that stands alone
DRAWN_STEPS = 400  # of a schedule
FEW_POINTS = 40  # evaluations, below which their markers are large
VISIBLE = 0.02  # of an axis, from which one image is a visible slope


def draw_run(path: Path) -> None:
    """Writes the run's pictures, as far as it has the data, and the accuracy of each class."""
    run = RunDirectory(path)
    if panels := run_panels(path):
        save_figure(plot_curves(panels), path / "curves.png")
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


@dataclass(frozen=True)
class Panel:
    """One of a run's curves over the epochs."""

    title: str
    draw: Callable[[Any], None]  # on matplotlib's axes


def run_panels(path: Path) -> list[Panel]:
    """The curves of a run; empty of one without metrics."""
    lines = thin_lines(each_line(RunDirectory(path).metrics))
    return curve_panels(lines, scheduled_rates(recipe_in(path), lines)) if lines else []


def curve_panels(
    lines: Sequence[Mapping[str, Any]], rates: Sequence[Mapping[str, float | None]] = ()
) -> list[Panel]:
    """Loss, the main metric, learning rate and momentum, each if something has two points in it.

    Training and each test set have the same colour in every panel.

    Args:
        lines: Of `metrics.jsonl`.
        rates: `epoch`, `lr` and `momentum` of every step that is to be drawn; by default those of
            the lines, which may lack the warm-up.
    """
    train = [line for line in lines if line["kind"] == "train"]
    tests = _by_set(lines)
    colours = {name: f"C{1 + number % 9}" for number, name in enumerate(tests)}
    metric = metric_names(next(iter(tests.values()))[0])[0] if tests else "top1"
    rates = rates or train
    with_loss = {k: rows for k, rows in tests.items() if any(r["loss"] is not None for r in rows)}

    def draw_loss(axes: Any) -> None:
        if train:
            axes.plot(*_columns(train, "loss"), label="training", color="C0", linewidth=1)
        for name, rows in with_loss.items():
            _plot_evaluations(axes, rows, "loss", name, colours[name])

    def draw_metric(axes: Any) -> None:
        for name, rows in tests.items():
            _plot_evaluations(axes, rows, metric, name, colours[name])
        end_at_100(axes)
        counts = [row["count"] for rows in tests.values() for row in rows if row.get("count")]
        low, high = axes.get_ylim()
        if counts and metric == "top1" and 100 / min(counts) > VISIBLE * (high - low):
            axes.set_title(f"{axes.get_title()}; one image: {100 / min(counts):.2g}", fontsize=10)

    def draw_rate(key: str) -> Callable[[Any], None]:
        return lambda axes: axes.plot(*_columns(rates, key), color="0.35")

    panels = [Panel("learning rate", draw_rate("lr"))] if len(rates) > 1 else []
    if len({row.get("momentum") for row in rates} - {None}) > 1:
        panels.append(Panel("momentum", draw_rate("momentum")))
    if any(len(rows) > 1 for rows in tests.values()):
        panels.insert(0, Panel(METRICS[metric], draw_metric))
    if any(len(rows) > 1 for rows in (train, *with_loss.values())):
        panels.insert(0, Panel("loss", draw_loss))
    return panels


def end_at_100(axes: Any, *, also_x: bool = False) -> None:
    """Ends the axis of a percentage, y and if asked also x, where that ends."""
    axes.set_ylim(top=min(axes.get_ylim()[1], 100))
    if also_x:
        axes.set_xlim(right=min(axes.get_xlim()[1], 100))


def draw_panel(axes: Any, panel: Panel) -> None:
    """Draws a panel with its title, its axes' labels, and a legend where curves have names."""
    axes.set_title(panel.title, fontsize=10)
    panel.draw(axes)
    axes.set_xlabel("epoch")
    axes.set_xlim(left=0)  # the same in all panels
    axes.ticklabel_format(axis="y", scilimits=(-3, 4))  # so that tick labels fit the margins
    axes.tick_params(axis="y", labelsize=9)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def plot_curves(panels: Sequence[Panel]) -> Any:
    """The panels, of which there is at least one, side by side."""
    width = 10 * len(panels) / 3
    figure = new_figure(width, 3.2, arranged=False)
    # In inches 0.8 at the left and 0.15 at the right, so that tick labels fit at any number
    figure.subplots_adjust(
        left=0.8 / width, right=1 - 0.15 / width, bottom=0.15, top=0.86, wspace=0.32
    )
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        draw_panel(axes, panel)
    return figure


def plot_panel(panel: Panel) -> Any:
    """A panel as a picture of its own, which is legible on a phone."""
    figure = new_figure(*PANEL, arranged=False)
    figure.subplots_adjust(left=0.17, right=0.97, bottom=0.16, top=0.89)
    draw_panel(figure.subplots(), panel)
    return figure


def scheduled_rates(
    recipe: Recipe, lines: Sequence[Mapping[str, Any]]
) -> list[dict[str, float | None]]:
    """Epoch, learning rate and momentum at the steps of a run, the warm-up among them.

    The lines have them at every `train.log_every`-th step alone. Empty where the schedule does not
    give what the lines have, as where an older version trained.
    """
    from rescue_cli.build.optimizers import build_schedules

    train = [line for line in lines if line["kind"] == "train" and line["epoch"] > 0]
    if not train:
        return []
    per_epoch, steps = round(train[-1]["step"] / train[-1]["epoch"]), train[-1]["step"]
    try:
        schedule, _ = build_schedules(recipe, per_epoch)[0]
        if any(not math.isclose(schedule(line["step"] - 1).lr, line["lr"], rel_tol=1e-6,
                                abs_tol=1e-12) for line in train):  # fmt: skip
            return []
    except RescueError:
        return []
    drawn = sorted({round(i * (steps - 1) / DRAWN_STEPS) for i in range(DRAWN_STEPS + 1)})
    return [{"epoch": step / per_epoch, **asdict(schedule(step))} for step in drawn]


def _plot_evaluations(
    axes: Any, rows: Sequence[Mapping[str, Any]], key: str, name: str, colour: str
) -> None:
    """A curve with a marker at each evaluation."""
    size = 5 if len(rows) < FEW_POINTS else 2
    axes.plot(*_columns(rows, key), label=name, color=colour, marker="o", markersize=size,
              linewidth=1.2, clip_on=False)  # fmt: skip


def _by_set(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Evaluations by measurement."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    tests = [line for line in lines if line["kind"] == "eval"]
    # Of a line of each measurement: a name depends on all others, and there may be thousands
    kinds = {_measured(line): line for line in reversed(tests)}
    names = {of: measurement_name(line, [*kinds.values()]) for of, line in kinds.items()}
    for line in tests:
        by_name.setdefault(names[_measured(line)], []).append(line)
    return by_name


def _measured(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(map(line.get, ("set", "size", "crop", "tta")))


def _columns(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    return [r["epoch"] for r in rows], [r[key] for r in rows]


def read_samples(file: Path) -> tuple[Any, Any]:
    """The stored images, (n, channels, height, width) uint8, and their n labels; `DataError`."""
    arrays = read_arrays(file, "images", "labels")
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim != 4 or len(images) != len(labels):
        raise DataError(f"{file}: images, labels: not one label per image. Remove the file.")
    return images, labels


def plot_samples(file: Path) -> Any:
    """Images in rows of four, each with its label above."""
    images, labels = read_samples(file)
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


def shows_counts(confusion: Any) -> bool:
    """Whether a class has so few images that a percentage would pretend more."""
    counts = confusion.sum(1)
    return bool(counts[counts > 0].min(initial=FEW_IMAGES) < FEW_IMAGES)


def _confusion(arrays: Mapping[str, Any], title: str) -> Any:
    """The images of each class (row) that were predicted as each class (column).

    In percent of the row; as counts where a class has few images.
    """
    classes = [str(name) for name in arrays["classes"]]
    counts = arrays["confusion"]
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    as_counts = shows_counts(counts)
    side = 3 + 0.35 * len(classes)
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    axes.set_title(f"{title}: {'images' if as_counts else '% of each class'}", fontsize=10)
    if len(classes) <= 12:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.5:
                colour = "white" if value > 60 else "black"
                words = str(counts[row, column]) if as_counts else f"{value:.0f}"
                axes.text(
                    column, row, words, ha="center", va="center", fontsize=7,
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
