"""A run's pictures as they are drawn: everything lies inside, apart, and where it belongs."""

import csv
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rescue_cli import recipe as recipes
from rescue_cli.build.optimizers import build_schedules
from rescue_cli.report.fonts import use_fallback_fonts
from rescue_cli.report.pictures import (
    curve_panels,
    draw_run,
    new_figure,
    plot_curves,
    plot_samples,
    save_figure,
    scheduled_rates,
)


def boxes_of(figure: Any, artists: Sequence[Any]) -> list[Any]:
    """The extent of each artist in pixels, all of them inside the figure."""
    figure.canvas.draw()
    boxes = [artist.get_window_extent() for artist in artists]
    width, height = figure.canvas.get_width_height()
    for box in boxes:
        assert -0.1 < box.x0 < box.x1 < width + 0.1
        assert -0.1 < box.y0 < box.y1 < height + 0.1
    return boxes


@pytest.mark.parametrize("count", [1, 3, 4, 16])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 40), (3, 48, 96)])
def test_every_sample_is_upright_below_its_label(
    count: int, shape: tuple[int, int, int], tmp_path: Path
) -> None:
    images = np.zeros((count, *shape), np.uint8)
    images[:, :, : shape[1] // 4, : shape[2] // 4] = 255  # the upper left corner
    labels = np.array([f"class {number}" for number in range(count)])
    np.savez(tmp_path / "samples.npz", images=images, labels=labels)
    figure = plot_samples(tmp_path / "samples.npz")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == list(labels)
    drawn, message = (boxes_of(figure, artists) for artists in (axes.images, axes.texts))
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1, :, 0]  # from below, as extents are
    for box, text in zip(drawn, message, strict=True):
        assert box.width / box.height == pytest.approx(shape[2] / shape[1], rel=0.02)
        assert abs((text.x0 + text.x1) / 2 - (box.x0 + box.x1) / 2) < 2
        assert box.y1 - 0.1 < text.y0 < box.y1 + 4
        bright = [
            pixels[round(box.y0 + y * box.height), round(box.x0 + x * box.width)] > 128
            for y, x in ((0.9, 0.1), (0.9, 0.9), (0.1, 0.1), (0.1, 0.9))
        ]
        assert bright == [True, False, False, False]
    for box in message:
        assert not any(box.y0 < other.y1 - 0.1 and other.y0 < box.y1 for other in drawn)
    assert not any(a.overlaps(b) for a, b in combinations(drawn, 2))


@pytest.mark.parametrize(
    ("losses", "rates"),
    [
        ((2.3001, 2.3011), (0.4, 0.1)),  # a net that does not learn
        ((0.69314, 0.69315), (2.5e-5, 2.5e-5)),
        ((2.4e6, 31.0), (0.000295, 0.000012)),
    ],
)
def test_curves_have_room_for_the_numbers_at_their_axes(
    losses: tuple[float, float], rates: tuple[float, float]
) -> None:
    lines: list[dict[str, object]] = []
    for epoch, (loss, rate) in enumerate(zip(losses, rates, strict=True), 1):
        message = {"epoch": epoch, "loss": loss, "lr": rate, "top1": 89.975 + epoch / 100}
        view = {"set": "test", "size": 28, "crop": 1.0, "tta": "none"}
        lines += [{"kind": "train", **message}, {"kind": "eval", **message, **view}]
    figure = plot_curves(curve_panels(lines))
    figure.canvas.draw()
    frames = [axes.get_window_extent() for axes in figure.axes]
    for axes, frame in zip(figure.axes, frames, strict=True):
        numbers = [
            text
            for text, place in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
            if axes.viewLim.y0 <= place <= axes.viewLim.y1
        ]
        assert len(numbers) >= 3
        for box in boxes_of(figure, numbers):
            assert box.x1 < frame.x0
            assert not any(box.overlaps(other) for other in frames)
        title, power = axes.title, axes.yaxis.get_offset_text()
        words = boxes_of(figure, [title, axes.xaxis.label, *([power] if power.get_text() else [])])
        assert not any(a.overlaps(b) for a, b in combinations([*words, frame], 2))


def lines_of(epochs: int, **values: object) -> list[dict[str, Any]]:
    """`metrics.jsonl` of a run with a line at each epoch's end."""
    view = {"set": "test", "size": 28, "crop": 1.0, "tta": "none", "count": 1000}
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        at = {"epoch": epoch, "step": 10 * epoch, "loss": 2 / epoch, "lr": 0.1, "momentum": None}
        lines.append({"kind": "train", **at})
        lines.append({"kind": "eval", **at, **view, "top1": 90 - 50 / epoch, **values})
    return lines


def test_a_panel_without_data_is_left_out() -> None:
    lines = lines_of(3)
    assert [p.title for p in curve_panels(lines)] == ["loss", "top-1 %", "learning rate"]
    train = [line for line in lines if line["kind"] == "train"]
    assert [p.title for p in curve_panels(train)] == ["loss", "learning rate"]
    moving = [{**line, "momentum": 0.9 - line["epoch"] / 100} for line in train]
    assert [p.title for p in curve_panels(moving)] == ["loss", "learning rate", "momentum"]
    tests = [{**line, "loss": None} for line in lines if line["kind"] == "eval"]
    assert [p.title for p in curve_panels(tests)] == ["top-1 %"]
    assert curve_panels([]) == []


def test_a_single_point_is_no_curve() -> None:
    """A fitted head has one evaluation and no steps, a short training one of each."""
    assert curve_panels(lines_of(1)) == []
    assert curve_panels([line for line in lines_of(1) if line["kind"] == "eval"]) == []
    steps = [line for line in lines_of(5) if line["kind"] == "train" or line["epoch"] == 5]
    panels = curve_panels(steps)
    assert [panel.title for panel in panels] == ["loss", "learning rate"]
    evaluations = [line for line in lines_of(3) if line["kind"] == "eval"]
    loss, _ = plot_curves(curve_panels(evaluations)).axes
    assert [line.get_label() for line in loss.lines] == ["test"], "no legend without a line"


@pytest.mark.parametrize("top1", [100.0, 99.5, 60.0])
def test_the_axis_of_an_accuracy_ends_at_100(top1: float) -> None:
    lines = [{**line, "top1": top1 - 1 / line["epoch"] + 1 / 3} for line in lines_of(3)]
    _, accuracy, _ = plot_curves(curve_panels(lines)).axes
    low, high = accuracy.get_ylim()
    assert low < top1 - 0.6
    assert top1 <= high <= 100


def test_each_set_has_one_colour_in_all_panels_and_a_marker_at_each_evaluation() -> None:
    other = [{**line, "set": "v2"} for line in lines_of(3) if line["kind"] == "eval"]
    without_loss = [{**line, "set": "real", "loss": None} for line in other]
    lines = sorted([*lines_of(3), *without_loss, *other], key=lambda line: line["step"])
    loss, accuracy, _ = plot_curves(curve_panels(lines)).axes
    colours: dict[str, set[str]] = {}
    for axes in (loss, accuracy):
        for line in axes.lines:
            colours.setdefault(line.get_label(), set()).add(line.get_color())
            assert (line.get_marker() == "o") == (line.get_label() != "training")
    assert set(colours) == {"training", "test", "v2", "real"}
    assert all(len(each) == 1 for each in colours.values())
    assert len(set.union(*colours.values())) == 4


@pytest.mark.parametrize(("count", "title"), [(20, "top-1 %; one image: 5"), (5000, "top-1 %")])
def test_an_axis_says_what_one_image_is_where_it_is_visible(count: int, title: str) -> None:
    _, accuracy, _ = plot_curves(curve_panels(lines_of(4, count=count))).axes
    assert accuracy.get_title() == title


def test_the_learning_rate_is_drawn_with_its_warm_up() -> None:
    """The lines begin after the warm-up, at the end of the first epoch."""
    schedule = "schedule={name: cosine, warmup_epochs: 1, warmup_lr: 0.01, min_lr: 0, per: step}"
    recipe = recipes.load("quickstart", [schedule, "optim.lr=0.5", "train.epochs=4"])
    rates, _ = build_schedules(recipe, 10)[0]
    lines = [{**line, "lr": rates(line["step"] - 1).lr} for line in lines_of(4)]
    drawn = scheduled_rates(recipe, lines)
    assert [row["lr"] for row in drawn[:11]] == [rates(step).lr for step in range(11)]
    assert (drawn[0]["epoch"], drawn[0]["lr"]) == (0, 0.01)
    assert len(drawn) == 40
    lines[0]["lr"] *= 1.01
    assert scheduled_rates(recipe, lines) == [], "another schedule than the recipe's was used"


NAMES = ["猫", "US$ and $x$", "Äpfel", "मछली 🐟", 'say "cheese"']


def test_text_in_any_script_is_drawn_without_a_warning(tmp_path: Path) -> None:
    """What a font has is left; what none has is escaped. pytest makes warnings errors."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.set_xticks(range(len(NAMES)), NAMES)
    axes.set_title(" ".join(NAMES))
    axes.set_yscale("log")
    use_fallback_fonts(figure)
    shown = [label.get_text() for label in axes.get_xticklabels()]
    escaped = re.compile(r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")
    for words, name in [*zip(shown, NAMES, strict=True), (axes.get_title(), " ".join(NAMES))]:
        assert escaped.sub(lambda found: chr(int(found[1] or found[2], 16)), words) == name
    assert shown[1:3] == NAMES[1:3], "the usual font has them"
    assert not axes.get_xticklabels()[1].get_parse_math()
    assert not axes.title.get_parse_math()
    save_figure(figure, tmp_path / "a.png")
    assert axes.get_yticklabels()[0].get_parse_math(), "powers of ten stay formulas"


def test_class_accuracies_are_valid_csv_for_any_class_name(tmp_path: Path) -> None:
    (tmp_path / "predictions").mkdir()
    counts = np.eye(len(NAMES), dtype=np.int64)
    file, each = tmp_path / "predictions" / "val.npz", np.full(len(NAMES), 100.0)
    np.savez(file, confusion=counts, classes=np.array(NAMES), per_class=each)
    draw_run(tmp_path)
    with file.with_name("val-classes.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.reader(table))
    assert [row[0] for row in rows[1:]] == NAMES
