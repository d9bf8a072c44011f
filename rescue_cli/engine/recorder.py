"""metrics.jsonl, log.txt and the progress bar; only the first process writes."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Protocol

from rescue_cli import distributed
from rescue_cli.batch import Measurement
from rescue_cli.engine.evaluate import EvalResult
from rescue_cli.formatting import significant
from rescue_cli.metrics.names import METRICS, finite_or_none, metric_names
from rescue_cli.rundir import RunDirectory, each_line_and_text, write_atomically
from rescue_cli.terminal import TimeLeft, make_bar

NOTE_SECONDS = 1.0  # between two notes of a run's epoch


class LineTracker(Protocol):
    """Where lines of metrics go beside the run's files, from the step at which it begins."""

    def begin(self, step: int) -> None: ...
    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class Recorder:
    """Appends whole lines to the run's files, and shows a progress bar on a terminal.

    Args:
        steps: Of the training; 0 where a head is fitted at once.
        images: Those whose features are computed before.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        writes: bool,
        steps: int,
        images: int = 0,
        progress: bool = True,
        tracker: LineTracker | None = None,
    ) -> None:
        self.tracker = tracker if writes else None
        self.run = run
        self.steps = steps
        self.writes = writes
        self.prints = writes and progress  # to stderr; log.txt has every line
        self.metrics: IO[str] | None = None
        self.log_file: IO[str] | None = None
        self.early: list[str] = []  # lines from before the log is open
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.images, self.images_done = images, 0
        self.bar: Bar | None = None
        if self.prints and sys.stderr.isatty():
            self.bar = Bar(images, "images decoded") if images else Bar(steps, "steps")
        self.score: list[str] = []  # the last evaluation's main metric, in words
        self.notes_epochs = writes and not progress
        self.noted = time.monotonic()
        if writes:
            run.epoch.unlink(missing_ok=True)  # of a run that was killed, and resumes before it

    def open_metrics(self, step: int, evaluated: int) -> None:
        """Opens metrics.jsonl at a step; drops the lines after it, which will be written again.

        `evaluated`: the last step whose evaluation the run has; a later one is dropped as well.
        """
        if self.bar is not None and self.images and self.steps:
            self.bar.close()
            self.bar = Bar(self.steps, "steps")

        def keep() -> Iterator[str]:
            """The lines that stay; one at a time, as a long run has millions."""
            self.first_loss = self.last_loss = None
            for line, text in each_line_and_text(self.run.metrics):
                is_train = line["kind"] == "train"
                if line["step"] < step or (
                    line["step"] == step and (is_train or evaluated == step)
                ):
                    if is_train:
                        self._note_loss(line["loss"])
                    yield text

        if not self.writes:
            for _ in keep():
                pass
            return
        write_atomically(
            self.run.metrics, lambda file: file.writelines(f"{text}\n".encode() for text in keep())
        )
        self.metrics = self.run.metrics.open("a")
        if self.tracker is not None:
            self.tracker.begin(step)

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
        if self.tracker is not None:
            self.tracker.close()
        if self.bar is not None:
            self.bar.close()
        if self.notes_epochs:
            self.run.epoch.unlink(missing_ok=True)

    def add_metrics(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics."""
        if kind == "train":
            self._note_loss(values["loss"])
        elif names := metric_names(values):
            self.score = [f"{METRICS[names[0]].removesuffix(' %')} {values[names[0]]:.2f} %"]
        if self.tracker is not None:
            self.tracker.log(kind, step, values)
        if self.metrics is not None:
            self.metrics.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self.metrics.flush()

    def _note_loss(self, loss: float) -> None:
        self.last_loss = loss
        self.first_loss = loss if self.first_loss is None else self.first_loss

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
        when = f"epoch {significant(epoch)}  " if self.steps else ""
        self.log(f"{when}{name} {measurement}  {result}")

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

    def show_progress(self, *parts: str) -> None:
        """Shows these below the progress bar, if there is one, with the last accuracy."""
        if self.bar is not None:
            first, *others = parts
            self.bar.parts = [first, *others[:1], *self.score, *others[1:]]

    def count_step(self, step: int, epoch: float) -> None:
        """Moves the bar; a run of many notes its epoch for the command that shows them all."""
        if self.bar is not None:
            self.bar.done = step
        else:
            self._note_epoch(epoch)

    def count_images(self, count: int) -> None:
        """As `count_step`, for so many more images whose features are computed."""
        self.images_done += count
        if self.bar is not None:
            self.bar.done = self.images_done
        elif not self.steps:
            self._note_epoch(self.images_done / self.images)

    def _note_epoch(self, epoch: float) -> None:
        if self.notes_epochs and (now := time.monotonic()) - self.noted > NOTE_SECONDS:
            self.noted = now
            with contextlib.suppress(OSError):  # a full disk is reported where it matters
                self.run.epoch.write_text(f"{epoch:.4f}")


class Bar:
    """A bar that counts `what`, with the remaining time and a line below, on stderr."""

    def __init__(self, total: int, what: str) -> None:
        from rich.console import Console

        self.total, self.what, self.done = total, what, 0
        self.left = TimeLeft(total)
        self.parts: list[str] = []
        self.progress = make_bar(total, Console(stderr=True), self._read)
        self.progress.start()

    def _read(self) -> tuple[float, str, str, list[list[str]]]:
        self.left.watch(self.done)
        lines = [self.parts] if self.parts else []
        count = f"{self.done:,} of {self.total:,} {self.what}"
        return self.done, count, str(self.left), lines

    def print(self, message: str) -> None:
        self.progress.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.progress.stop()


@contextmanager
def batch_bar(batches: int, *, progress: bool = True) -> Iterator[Callable[[], None]]:
    """A function to call after each of so many batches; on a terminal a bar counts them."""
    if not (progress and distributed.is_first() and sys.stderr.isatty()):
        yield lambda: None
        return
    bar = Bar(batches, "batches evaluated")

    def count() -> None:
        bar.done += 1

    try:
        yield count
    finally:
        bar.close()
