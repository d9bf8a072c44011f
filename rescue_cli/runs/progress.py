"""The progress of the runs of one command: a line for each that ends, and a bar on a terminal."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from rescue_cli.errors import StoppedError
from rescue_cli.formatting import format_count
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import Reached, RunDirectory, read_json, read_reached
from rescue_cli.runs.pool import EndedRun
from rescue_cli.terminal import TimeLeft, make_bar

SHOWN_RUNS = 4  # at work at the same time, each with a line of its own
_NONE: Mapping[Path, float] = MappingProxyType({})


class Progress:
    """How many of the runs have ended, and how long the rest takes at the current pace.

    Args:
        runs: The runs that are about to be trained.
        skipped: Epochs that another run has trained for some of them.
        before: How many runs of the command have ended already, which are counted with these.
    """

    def __init__(
        self,
        runs: Mapping[Path, Recipe],
        skipped: Mapping[Path, float] = _NONE,
        *,
        before: int = 0,
    ) -> None:
        from rich.console import Console

        self.before, self.count = before, before + len(runs)
        self.skipped = {path: skipped.get(path, 0.0) for path in runs}
        self.epochs = {
            path: max(0.0, recipe.train.epochs - self.skipped[path])
            for path, recipe in runs.items()
        }
        self.ended: set[Path] = set()
        self.reached: dict[Path, Reached] = {}
        self.folder = Path(os.path.commonpath([path.parent for path in runs])) if runs else Path()
        self.left = TimeLeft(sum(self.epochs.values()), self._epochs_done())
        self.printed: set[str] = set()  # notes about the data, which most runs share
        self.console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self.bar = make_bar(sum(self.epochs.values()), self.console, self._read)

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
        self.left.update(self._epochs_done())
        result = RunDirectory(ended.path).result
        notes = read_json(result).get("notes", []) if not ended.error and result.exists() else []
        for line in notes:
            if line not in self.printed:
                self.printed.add(line)
                self.console.print(line)
        ended_runs = self.before + len(self.ended)
        self.console.print(f"{text}; {ended_runs} of {self.count}, {self.left}")

    def _epochs_done(self) -> float:
        """The epochs of runs that have ended, however they did, and of those at work."""
        done = 0.0
        for path, epochs in self.epochs.items():
            if path in self.ended:
                done += epochs
            else:
                self.reached[path] = read_reached(RunDirectory(path))
                trained = self.reached[path].epoch - self.skipped[path]
                done += min(epochs, max(0.0, trained))
        return done

    def _read(self) -> tuple[float, str, str, list[list[str]]]:
        """What the bar shows: see `make_bar`."""
        done = self._epochs_done()
        self.left.watch(done)
        at_work = [path for path in self.epochs if self._is_at_work(path)]
        lines = [self._describe(path) for path in at_work[:SHOWN_RUNS]]
        if len(at_work) > SHOWN_RUNS:
            lines.append([f"and {len(at_work) - SHOWN_RUNS} more"])
        count = f"{self.before + len(self.ended)} of {format_count(self.count, 'run')}"
        return done, count, str(self.left), lines

    def _is_at_work(self, path: Path) -> bool:
        return path not in self.ended and RunDirectory(path).log.exists() and not (
            RunDirectory(path).finished or RunDirectory(path).failure.exists()
        )  # fmt: skip

    def _describe(self, path: Path) -> list[str]:
        """`seed-2: epoch 3.4 of 10`, `loss 0.412`, `top-1 83.20 %`: what a run at work does."""
        reached, epochs = self.reached[path], self.skipped[path] + self.epochs[path]
        name = path.relative_to(self.folder)
        parts = [f"{name}: " + (f"epoch {reached.epoch:.1f} of {epochs:g}" if reached.epoch else
                                "preparing")]  # fmt: skip
        if reached.loss is not None:
            parts.append(f"loss {reached.loss:.3f}")
        if reached.score is not None:
            parts.append("{} {:.2f} %".format(*reached.score))
        return parts
