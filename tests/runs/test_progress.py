"""How far several runs are, and how long the rest takes."""

import json
from pathlib import Path

import pytest

from rescue_cli import recipe as recipes
from rescue_cli.errors import StoppedError
from rescue_cli.rundir import RunDirectory, last_epoch
from rescue_cli.runs.pool import EndedRun
from rescue_cli.runs.progress import Progress, format_duration


def reach(path: Path, epoch: float) -> None:
    path.mkdir(exist_ok=True)
    lines = [{"kind": "train", "epoch": e} for e in (epoch / 2, epoch)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    RunDirectory(path).metrics.write_text(text + '{"kind": "tra')


def test_the_last_epoch_is_that_of_the_last_whole_line(tmp_path: Path) -> None:
    assert last_epoch(RunDirectory(tmp_path / "none").metrics) == 0
    reach(tmp_path / "run", 3.5)
    assert last_epoch(RunDirectory(tmp_path / "run").metrics) == 3.5


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
