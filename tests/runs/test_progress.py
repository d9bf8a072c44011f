"""How far several runs are, and how long the rest takes."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from rescue_cli import recipe as recipes
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
        run.step.write_text(noted)
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
    with Progress(dict.fromkeys(paths, recipe)) as progress:
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
    assert second == "a; 1 of 2, 5 s left"
    assert third == "b; 2 of 2, 0 s left"


@pytest.mark.parametrize(
    ("seconds", "message"), [(9.4, "9 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_a_duration_is_said_as_people_say_it(seconds: float, message: str) -> None:
    assert format_duration(seconds) == message
