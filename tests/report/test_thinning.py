"""Pictures of long runs: fewer lines, and no spike lost."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rescue_cli.report import thinning
from rescue_cli.report.pictures import curve_panels, new_figure
from rescue_cli.report.thinning import thin_lines

RNG = np.random.default_rng(34)


@pytest.fixture(autouse=True)
def _few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "MOST_COLUMNS", 64)


def run_of(steps: int, spikes: dict[int, float] | None = None) -> list[dict[str, Any]]:
    """A noisy loss with spikes by step, a learning rate of steps, a test after each ten."""
    lines: list[dict[str, Any]] = []
    for step in range(steps):
        loss = (spikes or {}).get(step, 1 + float(RNG.normal(0, 0.1)))
        lines.append({"kind": "train", "step": step, "epoch": step / 10, "loss": loss,
                      "lr": 0.1 * (step // 7 % 3), "momentum": None})  # fmt: skip
        if step % 10 == 9:
            for name in ("val", "real"):
                lines.append({"kind": "eval", "step": step, "epoch": step / 10, "set": name,
                              "size": 28, "crop": 1.0, "tta": "none", "loss": None,
                              "top1": float(RNG.uniform(0, 100))})  # fmt: skip
    return lines


@pytest.mark.parametrize("steps", [0, 1, 64])
def test_a_short_run_is_drawn_whole(steps: int) -> None:
    lines = run_of(steps)
    assert thin_lines(lines) == lines


@pytest.mark.parametrize("steps", [65, 129, 1000, 5003])
def test_every_column_keeps_its_ends_and_its_extremes(steps: int) -> None:
    """Each column has a power of two of lines, the last one fewer."""
    lines = run_of(steps, {steps // 3: 50.0, steps // 2: -50.0})
    thinned = thin_lines(lines)
    assert thinned == [line for line in lines if line in thinned], "in order, none twice"
    curves = {of: [line for line in lines if line.get("set") == of] for of in (None, "val", "real")}
    for name, curve in curves.items():
        kept = [line for line in thinned if line.get("set") == name]
        assert len(kept) <= 64 * (2 + 2 * 4)
        width = 1
        while len(curve) > 64 * width:
            width *= 2
        for at in range(0, len(curve), width):
            column = curve[at : at + width]
            assert column[0] in kept
            assert column[-1] in kept
            for key in ("loss", "lr", "top1"):
                values = [line[key] for line in column if line.get(key) is not None]
                of_kept = [line[key] for line in column if line in kept and key in line]
                if values:
                    assert (min(of_kept), max(of_kept)) == (min(values), max(values))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stays(value: float) -> None:
    thinned = thin_lines(run_of(3000, {1717: value}))
    assert [line["step"] for line in thinned if not math.isfinite(line["loss"] or 0)] == [1717]


def test_the_memory_does_not_grow_with_the_run() -> None:
    def endless(count: int) -> Iterator[dict[str, Any]]:
        for step in range(count):
            yield {"kind": "train", "step": step, "epoch": step, "loss": float(RNG.normal()),
                   "lr": 0.1, "momentum": None}  # fmt: skip

    for count in (4_000, 40_000):
        assert len(thin_lines(endless(count))) <= 64 * 4


def test_the_thinned_loss_covers_the_pixels_of_the_whole_one() -> None:
    """Drawn one pixel wide, no more columns of pixels than columns of lines."""
    lines = [line for line in run_of(4000, {1234: 3.0}) if line["kind"] == "train"]
    pictures = []
    for drawn in (lines, thin_lines(lines)):
        figure = new_figure(0.5, 1, arranged=False)  # 60 pixels wide
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        (panel,) = (each for each in curve_panels(drawn) if each.title == "loss")
        panel.draw(axes)
        axes.set_xlim(0, 400)
        figure.canvas.draw()
        pictures.append(np.asarray(figure.canvas.buffer_rgba())[..., 0] < 200)
    whole, thinned = pictures
    assert whole.sum() > 500
    assert (whole != thinned).sum() < 0.02 * whole.sum()
    assert thinned[:5].any() == whole[:5].any()
