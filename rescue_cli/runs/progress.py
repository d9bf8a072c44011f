"""The progress of the runs of one command: a line for each that ends, and a bar on a terminal."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from rescue_cli.errors import StoppedError
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, last_epoch, read_json
from rescue_cli.runs.pool import EndedRun

_NONE: Mapping[Path, float] = MappingProxyType({})


class Progress:
    """How many of the runs have ended, and how long the rest takes at the current pace.

    Args:
        runs: The runs that are about to be trained.
        skipped: Epochs that another run has trained for some of them.
    """

    def __init__(self, runs: Mapping[Path, Recipe], skipped: Mapping[Path, float] = _NONE) -> None:
        from rich.console import Console

        self.skipped = {path: skipped.get(path, 0.0) for path in runs}
        self.epochs = {
            path: max(0.0, recipe.train.epochs - self.skipped[path])
            for path, recipe in runs.items()
        }
        self.ended: set[Path] = set()
        self.started, self.before = time.monotonic(), self._epochs_done()
        self.printed: set[str] = set()  # notes about the data, which most runs share
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.bar = _bar(self)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def print_end(self, ended: EndedRun, text: str) -> None:
        """Prints the run's notes, then `text` with the number of ended runs and the time left."""
        if isinstance(ended.error, StoppedError):  # it will be resumed, and has not ended
            self.console.print(f"{ended.path}: {ended.error}")
            return
        self.ended.add(ended.path)
        result = RunDirectory(ended.path).result
        notes = read_json(result).get("notes", []) if not ended.error and result.exists() else []
        for line in notes:
            if line not in self.printed:
                self.printed.add(line)
                self.console.print(line)
        self.console.print(f"{text}; {len(self.ended)} of {len(self.epochs)}, {self.time_left()}")

    def time_left(self) -> str:
        """`3 min 20 s left`, or `time unknown`."""
        done = self._epochs_done()
        if done <= self.before:
            return "time unknown"
        spent = time.monotonic() - self.started
        rest = sum(self.epochs.values()) - done
        return f"{format_duration(spent * rest / (done - self.before))} left"

    def _epochs_done(self) -> float:
        """The epochs of runs that have ended, however they did, and of those at work."""
        done = 0.0
        for path, epochs in self.epochs.items():
            if path in self.ended:
                done += epochs
            else:
                trained = last_epoch(RunDirectory(path).metrics) - self.skipped[path]
                done += min(epochs, max(0.0, trained))
        return done


def _bar(progress: Progress) -> Any:
    """On a terminal, a bar that is updated once a second from the run directories."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    class RunsBar(RichProgress):
        def get_renderables(self) -> Any:
            for task in self.tasks:
                self.update(
                    task.id,
                    completed=progress._epochs_done(),
                    runs=f"{len(progress.ended)}/{len(progress.epochs)} runs",
                    left=progress.time_left(),
                )
            return super().get_renderables()

    bar = RunsBar(
        TextColumn("{task.fields[runs]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[left]}"),
        console=progress.console,
        disable=not sys.stderr.isatty(),
        refresh_per_second=1,
        transient=True,
    )
    bar.add_task("", total=sum(progress.epochs.values()), runs="", left="")
    return bar


def format_duration(seconds: float) -> str:
    """`20 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, beyond = divmod(minutes, 60)
    if hours:
        return f"{hours} h {beyond} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
