"""How far several runs are, and how long the rest takes."""

import io
import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rescue_cli import recipe as recipes
from rescue_cli.batch import Measurement
from rescue_cli.engine.recorder import Recorder
from rescue_cli.errors import StoppedError
from rescue_cli.formatting import format_duration
from rescue_cli.rundir import Reached, RunDirectory, read_reached
from rescue_cli.runs.pool import EndedRun
from rescue_cli.runs.progress import Progress
from rescue_cli.terminal import SMOOTHING, TimeLeft, fit_parts


def reach(path: Path, epoch: float) -> None:
    path.mkdir(exist_ok=True)
    lines: list[dict[str, object]] = [
        {"kind": "train", "epoch": epoch / 2, "loss": 2.0},
        {"kind": "eval", "epoch": epoch / 2, "top1": 81.25, "top5": 99.0},
        {"kind": "train", "epoch": epoch, "loss": 1.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    RunDirectory(path).metrics.write_text(text + '{"kind": "tra')


def test_how_far_a_run_is_says_its_last_whole_line_or_the_step_it_noted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    assert read_reached(run) == Reached()
    reach(run.path, 3.5)
    assert read_reached(run) == Reached(3.5, 1.5, ("top-1", 81.25))
    for noted, epoch in (("3.75", 3.75), ("3.25", 3.5), ("nan", 3.5), ("", 3.5)):
        run.epoch.write_text(noted)
        assert read_reached(run).epoch == epoch


@pytest.mark.parametrize("pace", [0.5, 1.0, 1.9])
def test_the_time_left_falls_whatever_the_pace_turns_out_to_be(
    pace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 units; the first half at one a second, after a start of 30 s, then at another pace."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    left, done, shown = TimeLeft(100.0), 0.0, []
    while done < 100:
        now[0] += 1
        left.watch(done)
        if left.end is not None:
            shown.append(left.end - now[0])
        if now[0] >= 30:
            done += 1.0 if done < 50 else pace
    assert shown[0] == pytest.approx(98, abs=2), "the start is not counted"
    assert all(later < earlier for earlier, later in pairwise(shown))
    assert shown[-1] == pytest.approx(0, abs=SMOOTHING)


def test_what_does_not_fit_in_a_line_is_left_out_whole() -> None:
    parts = ["seed-2: epoch 3.4 of 10", "loss 0.412", "top-1 83.20 %"]
    assert fit_parts(parts, 80) == "seed-2: epoch 3.4 of 10, loss 0.412, top-1 83.20 %"
    assert fit_parts(parts, 49) == "seed-2: epoch 3.4 of 10, loss 0.412"
    assert fit_parts(parts, 10) == "seed-2: epoch 3.4 of 10"


def test_the_time_left_is_by_the_epochs_of_ended_and_of_running_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 2 runs of 10 epochs one began at 2; at 10 and 4 after 10 s: 12 in 10 s, and 6 are left."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    recipe = recipes.load("quickstart", ["train.epochs=10"])
    paths = [tmp_path / "a", tmp_path / "b"]
    reach(paths[0], 2)
    with Progress(dict.fromkeys(paths, recipe), before=3) as progress:
        now[0] += 10
        for path in paths:
            reach(path, 7)
        progress.print_end(EndedRun(paths[0], StoppedError("stopped at step 3", 130)), "a")
        reach(paths[0], 10)
        reach(paths[1], 4)
        progress.print_end(EndedRun(paths[0], None), "a")
        progress.print_end(EndedRun(paths[1], None), "b")
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith("stopped at step 3")
    assert second == "a; 4 of 5, 5 s left", "with the 3 that ended before"
    assert third == "b; 5 of 5, 0 s left"


@pytest.mark.parametrize(
    ("seconds", "message"), [(9.4, "9 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_a_duration_is_said_as_people_say_it(seconds: float, message: str) -> None:
    assert format_duration(seconds) == message


def test_a_run_of_many_notes_its_epoch_as_long_as_it_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    run = RunDirectory(tmp_path)
    run.epoch.write_text("9")  # of a run that was killed
    recorder = Recorder(run, writes=True, steps=100, progress=False)
    assert not run.epoch.exists()
    noted = []
    for step in range(1, 8):
        now[0] += 0.4
        recorder.count_step(step, step / 50)
        noted.append(read_reached(run).epoch)
    assert noted == [0, 0, 0.06, 0.06, 0.06, 0.12, 0.12]
    recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_the_epoch_of_an_evaluation_is_told_in_three_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(RunDirectory(tmp_path), writes=False, steps=276, progress=False)
    recorder.bar, recorder.prints = None, True
    result: Any = SimpleNamespace(metrics={"top1": 50.0}, loss=1.0, count=2)
    recorder.add_evaluation(2, 2 / 23, "test", Measurement(28, 1.0, "none"), result, 0.1)
    assert capsys.readouterr().err.startswith("epoch 0.087  test ")


def test_images_whose_features_are_computed_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    one_of_many = Recorder(RunDirectory(tmp_path), writes=True, steps=0, images=200, progress=False)
    now[0] += 2
    one_of_many.count_images(50)
    assert read_reached(RunDirectory(tmp_path)).epoch == 0.25, "of the one that a fit has"
    one_of_many.close()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for steps in (0, 70):
        recorder = Recorder(RunDirectory(tmp_path), writes=True, steps=steps, images=200)
        recorder.count_images(32)
        recorder.count_images(32)
        assert recorder.bar is not None
        assert recorder.bar._read()[:2] == (64, "64 of 200 images decoded")
        recorder.open_metrics(0, -1)
        counted = "0 of 70 steps" if steps else "64 of 200 images decoded"
        assert recorder.bar._read()[1] == counted
        recorder.close()


def test_on_80_columns_each_run_at_work_has_a_line_that_is_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipes.load("quickstart", ["train.epochs=10"])
    label = "efficientnet_lite0-pretrained-on-imagenet-and-then-on-flowers"
    paths = [tmp_path / label / f"seed-{seed}" for seed in range(8)]
    for path in paths[:7]:
        path.parent.mkdir(exist_ok=True)
        reach(path, 3.5)
        RunDirectory(path).log.touch()
    RunDirectory(paths[0]).result.touch()
    RunDirectory(paths[1]).metrics.unlink()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    progress = Progress(dict.fromkeys(paths, recipe))
    shown = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    shown.print(progress.bar.get_renderable())
    assert isinstance(shown.file, io.StringIO)
    bar, *lines = shown.file.getvalue().splitlines()
    assert bar.startswith("0 of 8 runs ━")
    assert bar.rstrip().endswith("time unknown")
    whole = ": epoch 3.5 of 10, loss 1.500, top-1 81.25 %"
    assert [line.rstrip() for line in lines] == [
        "seed-1: preparing", *(f"seed-{n}{whole}" for n in (2, 3, 4)), "and 2 more",
    ]  # fmt: skip


def test_nothing_but_the_lines_of_ended_runs_is_printed_on_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(tmp_path / "a", 2)
    with Progress({tmp_path / "a": recipes.load("quickstart")}):
        pass
    assert capsys.readouterr().err == ""
