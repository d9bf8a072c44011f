"""Many prepared run directories, several at a time, in processes that import torch once."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rescue_cli import lifetime
from rescue_cli.errors import InUseError, RescueError, StoppedError
from rescue_cli.rundir import RunDirectory, Word, leave_word, word_of
from rescue_cli.runs.group import current
from rescue_cli.runs.processes import Nodes, run_directory


@dataclass(frozen=True)
class Ended:
    """How a run ended: `error` None where it has a result."""

    path: Path
    error: RescueError | None


class _Worker:
    """A process that works on one directory after another, as they are told to it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = _started({**os.environ, **environment})
        self.environment = environment
        self.path: Path | None = None

    @property
    def words(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def begin(self, path: Path) -> None:
        assert self.process.stdin is not None
        self.path = path
        RunDirectory(path).failure.unlink(missing_ok=True)
        with contextlib.suppress(BrokenPipeError):  # it is dead, and `ended` will say so
            self.process.stdin.write(f"{path}\n")
            self.process.stdin.flush()

    def ended(self) -> Ended:
        """Reads the code of the run that was begun; the worker may have died of it."""
        path, self.path = self.path, None
        assert path is not None
        line = self.words.readline().strip()
        if not line:
            self.process.wait()  # it is dying, and must not be given another run
        if line == "0":
            return Ended(path, None)
        if (word := word_of(RunDirectory(path))) is not None:
            return Ended(path, word.error)
        if line == str(InUseError.exit_code):  # the only error of which no word is left
            return Ended(path, InUseError(path))
        code = line or self.process.wait()
        said = f"its process ended with {code} and left no word. See {RunDirectory(path).log}."
        leave_word(RunDirectory(path), Word(0, RescueError.exit_code, said))
        return Ended(path, RescueError(said))


def _started(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process that works on the directories that it reads, and answers with their codes."""
    return subprocess.Popen(
        # -P: a file of the user's called timeit.py is not imported in place of Python's
        [sys.executable, "-P", "-m", "rescue_cli.runs.worker", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # log.txt of each run has it
        text=True,
        env={**environment, **lifetime.started_here()},
        start_new_session=True,  # a Ctrl-C reaches it through us, once
    )


def run_all(
    paths: Sequence[Path], jobs: int, gpus: Sequence[int], tell: Callable[[Ended], bool]
) -> None:
    """Works on all directories, `jobs` at a time; `tell` hears of each end, and False stops.

    With `gpus` worker i sees the i-th of them alone. On a signal every run saves and the pool
    raises `StoppedError`; a run that fails or diverges is told, and the others go on. In a group
    that this command was started in, all of it works on one run at a time.
    """
    if current() is not None:
        _run_on_group(paths, tell)
        return
    waiting = iter(paths)
    with _stopping() as stop, selectors.DefaultSelector() as selector:
        workers: list[_Worker] = []
        try:
            for number in range(min(jobs, len(paths))):
                gpu = {"CUDA_VISIBLE_DEVICES": str(gpus[number])} if gpus else {}
                workers.append(_Worker(gpu))
                _begin_next(workers[-1], waiting, selector)
            while selector.get_map():
                for key, _ in selector.select(timeout=0.2):
                    worker: _Worker = key.data
                    selector.unregister(worker.words)
                    ended = worker.ended()
                    if not tell(ended):
                        waiting = iter(())
                    if stop.number:
                        continue
                    if worker.process.poll() is not None:
                        worker = _replaced(workers, worker)
                    _begin_next(worker, waiting, selector)
                if stop.number and not stop.passed_on:
                    stop.pass_on(workers)
            if stop.number:
                raise StoppedError(
                    "stopped; what was running is saved. The same command goes on.",
                    128 + stop.number,
                )
        finally:
            _dismiss(workers)


def _run_on_group(paths: Sequence[Path], tell: Callable[[Ended], bool]) -> None:
    for path in paths:
        error: RescueError | None = None
        try:
            # what it prints is in its log.txt, as for runs that are at work at the same time
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                run_directory(path, None, 0, Nodes())
        except StoppedError:
            raise
        except RescueError as raised:
            error = raised
        if not tell(Ended(path, error)):
            return


def _begin_next(worker: _Worker, waiting: Iterator[Path], selector: selectors.BaseSelector) -> None:
    path = next(waiting, None)
    if path is not None:
        worker.begin(path)
        selector.register(worker.words, selectors.EVENT_READ, worker)


def _replaced(workers: list[_Worker], dead: _Worker) -> _Worker:
    """A new worker in the place of one that died."""
    _close(dead)
    worker = _Worker(dead.environment)
    workers[workers.index(dead)] = worker
    return worker


def _close(dead: _Worker) -> None:
    _close_input(dead)
    dead.words.close()


def _close_input(worker: _Worker) -> None:
    assert worker.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # what was told to a dead one is lost
        worker.process.stdin.close()


def _dismiss(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        _close_input(worker)
    for worker in workers:
        if worker.path is not None and worker.process.poll() is None:
            worker.process.terminate()
        worker.process.wait()
        worker.words.close()


class _Stopping:
    """The signal that asked to stop, 0 for none, and whether the workers know."""

    number = 0
    passed_on = False

    def note(self, number: int, _frame: object) -> None:
        self.number = number

    def pass_on(self, workers: Sequence[_Worker]) -> None:
        self.passed_on = True
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGTERM)


@contextmanager
def _stopping() -> Iterator[_Stopping]:
    stop = _Stopping()
    before = {n: signal.signal(n, stop.note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
