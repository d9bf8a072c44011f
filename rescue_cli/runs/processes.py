"""From a prepared run directory to an exit status: in this process, or through torchrun."""

import os
import signal
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli import lifetime
from rescue_cli.errors import InUseError, RescueError, StoppedError, UsageError, from_code
from rescue_cli.rundir import RunDirectory, Word, leave_word, word_of
from rescue_cli.runs.group import current

LOG_LINES = 20
STOPPED = 128  # exit codes above it are those of signals that a process heard
CURES = {
    signal.SIGKILL: "Where memory ran out, use smaller micro-batches. ",
    signal.SIGBUS: "Where /dev/shm is full, give it more room (docker run --shm-size=1g). ",
}


@dataclass(frozen=True)
class Nodes:
    """Several machines that see one file system; `rendezvous` is HOST:PORT of the first."""

    count: int = 1
    rank: int = 0
    rendezvous: str | None = None

    def __post_init__(self) -> None:
        if self.count > 1 and self.rendezvous is None:
            raise UsageError(
                "--nodes: several machines need --rendezvous HOST:PORT, the same on each."
            )
        if not 0 <= self.rank < self.count:
            raise UsageError(f"--node-rank: {self.rank} must be between 0 and {self.count - 1}.")


def run_directory(
    path: Path, procs: int | None, max_restarts: int, nodes: Nodes, *, progress: bool = True
) -> None:
    """Works on a prepared run directory; `procs` None: in this process.

    Within a group that it was started in, with all of that. Raises `RescueError`.
    """
    if nodes.rank == 0:
        RunDirectory(path).failure.unlink(missing_ok=True)
    if (group := current()) is not None:
        group.work_on(path)
        return
    if procs is None:
        from rescue_cli.runs.failure import leaving_word
        from rescue_cli.runs.worker import work

        with leaving_word(RunDirectory(path)):
            work(path, progress=progress)
        return
    _elastic(path, procs // nodes.count, max_restarts, nodes, progress)


def wait_for(path: Path, seconds: float = 300.0) -> None:
    """Until the first node has prepared the directory; raises `RescueError` if it does not."""
    end = time.monotonic() + seconds
    while not RunDirectory(path).environment.exists():
        if time.monotonic() > end:
            raise RescueError(
                f"{path}: the first machine did not prepare this directory in {seconds:.0f} s. "
                "All machines must see the same file system and give the same --out."
            )
        time.sleep(0.2)


def _elastic(path: Path, procs: int, max_restarts: int, nodes: Nodes, progress: bool) -> None:
    """torchrun's own agent, with a free port, so that two runs on a machine never meet."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = path / "logs"
    logs.mkdir(exist_ok=True)
    config = LaunchConfig(
        min_nodes=nodes.count,
        max_nodes=nodes.count,
        nproc_per_node=procs,
        run_id=uuid.uuid4().hex if nodes.count == 1 else path.name,
        rdzv_backend="c10d",
        rdzv_endpoint=nodes.rendezvous or "localhost:0",
        max_restarts=max_restarts,
        # the first process speaks to the terminal; what the others say is kept
        logs_specs=DefaultLogsSpecs(
            log_dir=str(logs), redirects=dict.fromkeys(range(int(progress), procs), Std.ALL)
        ),
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else torchrun warns; the worker sets its own
    try:
        with lifetime.starting():
            elastic_launch(config, sys.executable)("-P", "-m", "rescue_cli.runs.worker", str(path))
    except ChildFailedError as error:
        first = _first_failure(path, error)
        if not isinstance(first, InUseError):  # a word there would be taken for the other run's
            leave_word(RunDirectory(path), Word(0, first.exit_code, str(first)))
        raise first from None
    except SignalException as error:
        raise _stopped(path, int(error.sigval)) from None


def _first_failure(path: Path, error: Exception) -> RescueError:
    """What went wrong first. torchrun then ends the others by SIGTERM, and what those say or die of
    is no cause: they are told of only where there is nothing else.
    """
    failures: dict[int, Any] = error.failures  # type: ignore[attr-defined]  # the first come first
    run = RunDirectory(path)
    word = word_of(run)
    killed = _killed_first(failures)
    if killed is not None and not (word and _came_before(run, word, failures[killed])):
        return _was_killed(path, killed, failures[killed])
    if word is not None:
        return from_code(f"rank {word.rank}: {word.message}", word.exit_code)
    own = [rank for rank, failure in failures.items() if 0 < failure.exitcode < STOPPED]
    rank = next(iter(own or failures))
    code = failures[rank].exitcode
    if code < 0:
        return _was_killed(path, rank, failures[rank])
    if code == InUseError.exit_code:  # the only error of which no word is left
        return InUseError(path)
    return RescueError(f"rank {rank} ended with {code}. {_log_of(path, rank)}")


def _killed_first(failures: Mapping[int, Any]) -> int | None:
    """The rank that a signal ended before torchrun ended any; whole seconds are on record."""
    first = min(failure.timestamp for failure in failures.values())
    for rank, failure in failures.items():
        by_itself = failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM
        if by_itself and failure.timestamp <= first + 1:
            return rank
    return None


def _came_before(run: RunDirectory, word: Word, killed: Any) -> bool:
    """Whether a word was left before a process was killed, and not because it was.

    Where one is gone, another may be told to stop, or say only that it cannot reach it; one that
    cannot reach another may also abort.
    """
    if word.exit_code > STOPPED:
        return False
    if word.message.startswith("Traceback "):
        return -int(killed.exitcode) == signal.SIGABRT
    return run.failure.stat().st_mtime < float(killed.timestamp) + 2


def _was_killed(path: Path, rank: int, failure: Any) -> RescueError:
    cure = CURES.get(-failure.exitcode, "")
    return RescueError(
        f"rank {rank} (pid {failure.pid}) was killed by {failure.signal_name()}. "
        f"{_log_of(path, rank)}{cure}Go on with --resume."
    )


def _log_of(path: Path, rank: int) -> str:
    """The end of what a process printed, and where the rest is."""
    files = sorted(
        path.glob(f"logs/*/attempt_*/{rank}/stderr.log"), key=lambda f: f.stat().st_mtime
    )
    if not files:
        return ""
    lines = files[-1].read_text(errors="replace").splitlines()[-LOG_LINES:]
    shown = "\n  ".join(lines)
    return f"Its log is {files[-1]}:\n  {shown}\n" if lines else f"Its log {files[-1]} is empty. "


def _stopped(path: Path, number: int) -> RescueError:
    run = RunDirectory(path)
    if (word := word_of(run)) is not None:
        return StoppedError(word.message, 128 + number)
    kept = "The last checkpoint stands." if run.last.exists() else "There was no checkpoint yet."
    return StoppedError(f"stopped before the processes could agree to save. {kept}", 128 + number)
