"""Runs that are killed at any moment and resumed end in the bits of one that was not."""

import random
import time
from functools import partial
from pathlib import Path

import pytest

from rescue_cli import recipe as recipes
from rescue_cli.rundir import RunDirectory
from tests.faults.tally import Tally
from tests.helpers.processes import PATIENCE, Command, assert_same, checkpoint_of, group_of, start

pytestmark = pytest.mark.faults
SMALL = [
    "data.subset=[128, 20]", "model.width=4", "train.batch_size=32", "train.device_batch_size=16",
    "train.epochs=4", "train.log_every=1", "train.checkpoint_epochs=0.25",
    "averaging={name: ema, decay: 0.9, every: 1}",
]  # fmt: skip


def begin(count: int, run: Path) -> list[Command]:
    """Starts or goes on with the run on so many processes."""
    told = run.with_name(f"{run.name}-told")
    if count == 1:
        words = ["train", "--resume", "--recipe", "quickstart", "--out", run, *SMALL]
        return [start(words, told)]
    return group_of(count, run, recipes.load("quickstart", SMALL), told)


def end(commands: list[Command]) -> None:
    for command in commands:
        command.ends(0)


def check(run: Path) -> None:
    """What a kill left is no checkpoint or a whole one."""
    if RunDirectory(run).last.exists():
        checkpoint_of(run)


@pytest.mark.parametrize(("processes", "kills"), [(1, 60), (2, 40)])
def test_kills(processes: int, kills: int, tally: Tally) -> None:
    draw, reference = random.Random(processes), tally.folder / "reference"
    end(begin(processes, reference))  # with what a first start takes
    seconds = PATIENCE
    number = killed = 0
    while killed < kills:
        run = tally.folder / f"run-{number}"
        commands = begin(processes, run)
        began = time.monotonic()
        commands[0].process.join(draw.uniform(0, seconds))
        runs_still = all(command.process.is_alive() for command in commands)
        if runs_still:
            killed += 1
            for command in draw.sample(commands, len(commands)):
                command.process.kill()
                time.sleep(draw.choice([0, 0.1]))
            for command in commands:
                command.kill()
            tally.attempt(f"kill {killed}", partial(check, run))
        if killed == kills:
            commands = begin(processes, run)
        if killed == kills or not runs_still:
            end(commands)
            seconds = min(seconds, time.monotonic() - began)
            assert_same(run, reference)
            number += 1
