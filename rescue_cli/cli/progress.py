"""How far the runs of one command are: a line for each end, and a bar on a terminal."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rescue_cli.errors import StoppedError
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, last_epoch, read_json


class _Work:
    """The epochs of several runs: all, those that are done, and the time that the rest takes."""

    def __init__(self, runs: Mapping[Path, Recipe], behind: Mapping[Path, float]) -> None:
        self.behind = {path: behind.get(path, 0.0) for path in runs}
        self.epochs = {
            path: max(0.0, recipe.train.epochs - self.behind[path]) for path, recipe in runs.items()
        }
        self.ended: set[Path] = set()
        self.begun, self.before = time.monotonic(), self.done()

    @property
    def whole(self) -> float:
        return sum(self.epochs.values())

    def done(self) -> float:
        """The epochs of runs that ended, however they did, and of those that are at work."""
        return sum(
            epochs if path in self.ended else min(epochs, self._of(path))
            for path, epochs in self.epochs.items()
        )

    def _of(self, path: Path) -> float:
        return max(0.0, last_epoch(RunDirectory(path).metrics) - self.behind[path])

    def left(self) -> str:
        """As a person says it, by the pace until now."""
        done = self.done()
        if done <= self.before:
            return "time unknown"
        spent = time.monotonic() - self.begun
        return f"{duration(spent * (self.whole - done) / (done - self.before))} left"


@contextmanager
def progress(
    runs: Mapping[Path, Recipe],
    say: Callable[[Any], str],
    behind: Mapping[Path, float] = MappingProxyType({}),
) -> Iterator[Callable[[Any], bool]]:
    """Tells each end as `say` has it, how many have ended, and what time is left.

    `behind` are epochs that other runs have trained for some of these.
    """
    from rich.console import Console

    work = _Work(runs, behind)
    out = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    said: set[str] = set()  # of the data, which the runs mostly share

    def hear(ended: Any) -> bool:
        if isinstance(ended.error, StoppedError):  # it goes on another time
            out.print(f"{ended.path}: {ended.error}")
            return True
        work.ended.add(ended.path)
        for note in _notes(ended):
            if note not in said:
                said.add(note)
                out.print(note)
        out.print(f"{say(ended)}; {len(work.ended)} of {len(runs)}, {work.left()}")
        return True

    with _bar(work, out):
        yield hear


def _notes(ended: Any) -> list[str]:
    """What a run that has a result says of its data."""
    run = RunDirectory(ended.path)
    there = ended.error is None and run.result.exists()
    return list(read_json(run.result).get("notes", [])) if there else []


@contextmanager
def _bar(work: _Work, out: Any) -> Iterator[None]:
    """On a terminal, a bar that looks once a second how far the runs are."""
    from rich.progress import BarColumn, Progress, TextColumn

    class Runs(Progress):
        def get_renderables(self) -> Any:
            for task in self.tasks:
                said = f"{len(work.ended)}/{len(work.epochs)} runs", work.left()
                self.update(task.id, completed=work.done(), runs=said[0], left=said[1])
            return super().get_renderables()

    columns = (
        TextColumn("{task.fields[runs]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[left]}"),
    )
    shown = sys.stderr.isatty()
    with Runs(
        *columns, console=out, disable=not shown, refresh_per_second=1, transient=True
    ) as bar:
        bar.add_task("", total=work.whole, runs="", left="")
        yield


def duration(seconds: float) -> str:
    """As a person says it: `3 min 20 s`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, beyond = divmod(minutes, 60)
    if hours:
        return f"{hours} h {beyond} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
