"""Many prepared run directories, several at a time, in worker processes that import torch once."""

import contextlib
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rescue_cli import lifetime
from rescue_cli.errors import DataError, InUseError, RescueError, StoppedError, UsageError
from rescue_cli.rundir import FailureRecord, RunDirectory, read_failure, write_failure
from rescue_cli.runs.environment import select_gpu
from rescue_cli.runs.group import current_group
from rescue_cli.runs.processes import run_directory


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended: with a result, or with an `error`."""

    path: Path
    error: RescueError | None

    @property
    def fatal(self) -> UsageError | DataError | None:
        """The error, if all runs of the command would fail with it."""
        return self.error if isinstance(self.error, UsageError | DataError) else None


def run_all(
    paths: Sequence[Path],
    jobs: int,
    *,
    one_gpu_each: bool = False,
    deadline: float = math.inf,
) -> Iterator[EndedRun]:
    """Runs prepared directories, `jobs` at a time, and yields each run as it ends.

    A run that fails or diverges is yielded, and others continue. An error that all of them would
    make (`EndedRun.fatal`) starts no further run; it is raised when those at work have ended. A
    signal makes the runs at work save their checkpoints and raises `StoppedError`; so does closing
    the iterator early, without an error.

    Args:
        one_gpu_each: Worker i sees the i-th of the visible GPUs alone.
        deadline: Starts no further run after this time (`time.monotonic`).
    """
    if current_group() is not None:  # this command's processes work on one run at a time, together
        yield from _run_in_group(paths, deadline)
        return
    waiting, fatal = iter(paths), None
    workers: list[_Worker] = []
    with _catch_signals() as caught, selectors.DefaultSelector() as selector:

        def start_next(worker: _Worker) -> None:
            path = next(waiting, None) if time.monotonic() < deadline else None
            if path is not None:
                worker.start(path)
                selector.register(worker.answers, selectors.EVENT_READ, worker)

        try:
            for number in range(min(jobs, len(paths))):
                workers.append(_Worker(select_gpu(number, os.environ) if one_gpu_each else {}))
                start_next(workers[-1])
            while selector.get_map():
                for key, _ in selector.select(timeout=0.2):
                    worker: _Worker = key.data
                    selector.unregister(worker.answers)
                    ended = worker.read_end()
                    if ended.fatal is None:
                        yield ended
                    else:
                        waiting, fatal = iter(()), fatal or ended.fatal
                    if caught.signal:
                        continue
                    if worker.process.poll() is not None:
                        worker = _replace(workers, worker)
                    start_next(worker)
                if caught.signal and not caught.forwarded:
                    caught.forward(workers)
            if caught.signal:
                raise StoppedError(
                    "stopped; the runs at work have saved their checkpoints. The same command "
                    "resumes them.",
                    128 + caught.signal,
                )
            if fatal is not None:
                raise fatal
        finally:
            _end_all(workers)


def _run_in_group(paths: Sequence[Path], deadline: float) -> Iterator[EndedRun]:
    for path in paths:
        if time.monotonic() >= deadline:
            return
        error: RescueError | None = None
        try:
            # What it prints is in its log.txt, as for runs that are at work at the same time
            with open(os.devnull, "w") as devnull, contextlib.redirect_stderr(devnull):
                run_directory(path, None)
        except (StoppedError, UsageError, DataError):
            raise
        except RescueError as failure:
            error = failure
        yield EndedRun(path, error)


class _Worker:
    """A process that works on one directory after another, as their names are sent to it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = _start_process({**os.environ, **environment})
        self.environment = environment
        self.path: Path | None = None  # what it works on

    @property
    def answers(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def start(self, path: Path) -> None:
        assert self.process.stdin is not None
        self.path = path
        RunDirectory(path).failure.unlink(missing_ok=True)
        with contextlib.suppress(BrokenPipeError):  # it has died, as `read_end` will report
            self.process.stdin.write(f"{path}\n")
            self.process.stdin.flush()

    def read_end(self) -> EndedRun:
        """Reads the exit code of the run that was started; the run may have killed the worker."""
        path, self.path = self.path, None
        assert path is not None
        line = self.answers.readline().strip()
        if not line:
            self.process.wait()  # it is dying, and must not be given another run
        if line == "0":
            return EndedRun(path, None)
        if (failure := read_failure(RunDirectory(path))) is not None:
            return EndedRun(path, failure.error)
        if line == str(InUseError.exit_code):  # the only error without a failure record
            return EndedRun(path, InUseError(path))
        code = line or self.process.wait()
        message = (
            f"its process ended with exit code {code} and without a failure record. "
            f"See {RunDirectory(path).log}."
        )
        write_failure(RunDirectory(path), FailureRecord(0, RescueError.exit_code, message))
        return EndedRun(path, RescueError(message))


def _start_process(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process that works on the directories that it reads, and answers with exit codes."""
    return subprocess.Popen(
        # -P: a file of the user's called timeit.py is not imported in place of Python's
        [sys.executable, "-P", "-m", "rescue_cli.runs.worker", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # log.txt of each run has it
        text=True,
        env={**environment, **lifetime.parent_variable()},
        start_new_session=True,  # Ctrl-C reaches it through this process, once
    )


def _replace(workers: list[_Worker], dead: _Worker) -> _Worker:
    """A new worker in the place of one that died."""
    _close_input(dead)
    dead.answers.close()
    worker = _Worker(dead.environment)
    workers[workers.index(dead)] = worker
    return worker


def _close_input(worker: _Worker) -> None:
    assert worker.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # the worker is dead
        worker.process.stdin.close()


def _end_all(workers: Sequence[_Worker]) -> None:
    """Ends the workers, which read no further directory; one that is at work saves first."""
    for worker in workers:
        _close_input(worker)
    for worker in workers:
        if worker.path is not None and worker.process.poll() is None:
            worker.process.terminate()
        worker.process.wait()
        worker.answers.close()


class _Caught:
    """The signal that asked to stop, 0 for none, and whether the workers have it."""

    signal = 0
    forwarded = False

    def handle(self, number: int, _frame: object) -> None:
        self.signal = number

    def forward(self, workers: Sequence[_Worker]) -> None:
        self.forwarded = True
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def _catch_signals() -> Iterator[_Caught]:
    caught = _Caught()
    before = {n: signal.signal(n, caught.handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
