"""metrics.jsonl, log.txt and the progress bar; only the first process writes."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from rescue_cli import distributed
from rescue_cli.batch import Measurement
from rescue_cli.engine.evaluate import EvalResult
from rescue_cli.metrics.names import finite_or_none
from rescue_cli.rundir import RunDirectory, read_metrics, write_text


class Recorder:
    """Appends whole lines to the run's files, and shows a progress bar on a terminal."""

    def __init__(
        self, run: RunDirectory, *, writes: bool, steps: int, progress: bool = True
    ) -> None:
        self.run = run
        self.steps = steps
        self.writes = writes
        self.prints = writes and progress  # to stderr; log.txt has every line
        self.metrics: IO[str] | None = None
        self.log_file: IO[str] | None = None
        self.early: list[str] = []  # lines from before the log is open
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.bar = Bar(steps) if self.prints and sys.stderr.isatty() else None

    def open_metrics(self, step: int, evaluated: int) -> None:
        """Opens metrics.jsonl at a step; drops the lines after it, which will be written again.

        `evaluated`: the last step whose evaluation the run has; a later one is dropped as well.
        """
        kept = [
            line
            for line in read_metrics(self.run.metrics)
            if line["step"] < step
            or (line["step"] == step and (line["kind"] == "train" or evaluated == step))
        ]
        losses = [line["loss"] for line in kept if line["kind"] == "train"]
        self.first_loss, self.last_loss = (losses[0], losses[-1]) if losses else (None, None)
        if not self.writes:
            return
        write_text(self.run.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self.metrics = self.run.metrics.open("a")

    def open_log(self) -> None:
        if self.writes:
            # File names that are not UTF-8 are escaped, as on stderr
            self.log_file = self.run.log.open("a", encoding="utf-8", errors="backslashreplace")
            self.log_file.writelines(self.early)
            self.log_file.flush()

    def close(self) -> None:
        for file in (self.metrics, self.log_file):
            if file is not None:
                file.close()
        if self.bar is not None:
            self.bar.close()

    def add_metrics(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics."""
        if kind == "train":
            self.last_loss = values["loss"]
            self.first_loss = self.last_loss if self.first_loss is None else self.first_loss
        if self.metrics is not None:
            self.metrics.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.metrics.flush()

    def add_evaluation(
        self,
        step: int,
        epoch: float,
        name: str,
        measurement: Measurement,
        result: EvalResult,
        seconds: float,
    ) -> None:
        """One line of metrics and of the log for a set `name`, which took so many seconds."""
        values = {
            "epoch": epoch,
            "set": name,
            **measurement._asdict(),
            **result.metrics,
            "loss": finite_or_none(result.loss),
            "count": result.count,
            "seconds": seconds,
        }
        self.add_metrics("eval", step, values)
        self.log(f"epoch {epoch:g}  {name} {measurement}  {result}")

    def write_log(self, message: str) -> None:
        """A line in log.txt alone."""
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n"
        if self.log_file is None:
            self.early.append(line)
        else:
            self.log_file.write(line)
            self.log_file.flush()

    def log(self, message: str) -> None:
        """A line in log.txt and on stderr."""
        self.write_log(message)
        if self.bar is not None:
            self.bar.print(message)
        elif self.prints:
            print(message, file=sys.stderr, flush=True)

    def show_progress(self, step: int, text: str) -> None:
        """Updates the progress bar, if there is one."""
        if self.bar is not None:
            self.bar.show(step, text)


class Bar:
    """A progress bar with the remaining time, on stderr."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.progress.add_task("starting", total=steps)
        self.progress.start()

    def show(self, step: int, text: str) -> None:
        self.progress.update(self.task, completed=step, description=text)

    def print(self, message: str) -> None:
        self.progress.console.print(message, highlight=False, markup=False)

    def close(self) -> None:
        self.progress.stop()


@contextmanager
def batch_bar(batches: int, *, progress: bool = True) -> Iterator[Callable[[], None]]:
    """A function to call after each of so many batches; on a terminal a bar counts them."""
    if not (progress and distributed.is_first() and sys.stderr.isatty()):
        yield lambda: None
        return
    bar, done = Bar(batches), itertools.count(1)
    try:
        yield lambda: bar.show(next(done), "batches evaluated")
    finally:
        bar.close()
