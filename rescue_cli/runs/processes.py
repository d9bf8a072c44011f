"""Runs a prepared run directory: in this process, in a group, or through torchrun."""

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli import lifetime
from rescue_cli.errors import InUseError, RescueError, StoppedError, UsageError, from_code
from rescue_cli.rundir import FailureRecord, RunDirectory, read_failure, write_failure
from rescue_cli.runs.console import note
from rescue_cli.runs.group import current_group

LOG_LINES = 20
FAILURE_POLL_SECONDS = 1.0
FAILED_SECONDS = 30.0  # for torchrun to end the processes of a failed run, on all machines
SIGNALLED = 128  # exit codes above it are those of processes that a signal stopped
CURES = {  # by the signal that killed a process
    signal.SIGKILL: "If memory ran out, use smaller micro-batches. ",
    signal.SIGBUS: "If /dev/shm is full, enlarge it (docker run --shm-size=1g). ",
}


@dataclass(frozen=True)
class Nodes:
    """Machines that share a file system; `rendezvous` is HOST:PORT of the first."""

    count: int = 1
    rank: int = 0
    rendezvous: str | None = None

    def __post_init__(self) -> None:
        if self.count > 1 and self.rendezvous is None:
            raise UsageError(
                "--nodes: several machines need --rendezvous HOST:PORT, the same on all of them."
            )
        if not 0 <= self.rank < self.count:
            raise UsageError(f"--node-rank: {self.rank} must be between 0 and {self.count - 1}.")


ONE_MACHINE = Nodes()


def run_directory(
    path: Path,
    procs: int | None,
    *,
    max_restarts: int = 0,
    nodes: Nodes = ONE_MACHINE,
    progress: bool = True,
    told: set[str] | None = None,
) -> None:
    """Trains or evaluates what a prepared run directory says; raises `RescueError`.

    In all processes of the group that this command was started in; else in this process, or in
    `procs` processes of torchrun. `progress` is shown on stderr; for `told` see `worker.work`.
    """
    if nodes.rank == 0:
        RunDirectory(path).failure.unlink(missing_ok=True)
    if (group := current_group()) is not None:
        group.work_on(path)
        return
    if procs is None:
        from rescue_cli.runs.failure import record_failure
        from rescue_cli.runs.worker import work

        with record_failure(RunDirectory(path)):
            work(path, progress=progress, told=told)
        return
    _run_torchrun(path, procs // nodes.count, max_restarts, nodes, progress)


def _run_torchrun(path: Path, procs: int, max_restarts: int, nodes: Nodes, progress: bool) -> None:
    """Starts `procs` workers on this machine by torchrun's agent.

    Without other nodes it takes a free port, so that two runs on one machine do not collide.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
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
        # Rank 0 prints its progress to the terminal, the others to files
        logs_specs=DefaultLogsSpecs(
            log_dir=str(logs), redirects=dict.fromkeys(range(int(progress), procs), Std.ALL)
        ),
    )
    if nodes.count > 1 and max_restarts == 0:
        threading.Thread(target=_exit_after_failure, args=[RunDirectory(path)], daemon=True).start()
    try:
        with lifetime.export_parent():
            elastic_launch(config, sys.executable)("-P", "-m", "rescue_cli.runs.worker", str(path))
    except RendezvousError as error:
        raise _rendezvous_error(path, nodes, nodes.rank * procs, error) from None
    except ChildFailedError as error:
        first = _first_failure(path, error)
        if not isinstance(first, InUseError):  # the directory and its record are the other run's
            write_failure(RunDirectory(path), FailureRecord(0, first.exit_code, str(first)))
        raise first from None
    except SignalException as error:
        raise _stop_error(path, int(error.sigval)) from None


def _rendezvous_error(path: Path, nodes: Nodes, rank: int, error: Exception) -> RescueError:
    """Of a machine whose torchrun cannot reach that of the first; recorded for its first `rank`."""
    reason, _, _ = " ".join(str(error).split()).partition(".")
    message = (
        f"--rendezvous: {nodes.rendezvous}: the first machine has ended or cannot be reached "
        f"({reason}). Its output says why; the last checkpoint is kept. Resume with --resume."
    )
    write_failure(RunDirectory(path), FailureRecord(rank, RescueError.exit_code, message))
    return RescueError(message)


def _exit_after_failure(run: RunDirectory) -> None:
    """Ends this process, and with it those that it has started, if a failure of the run was
    recorded and it does not end by itself: torchrun waits for minutes for another machine.
    """
    earlier = _time_of(run.failure)  # the first machine removes it before it begins
    while _time_of(run.failure) in (None, earlier):
        time.sleep(FAILURE_POLL_SECONDS)
    time.sleep(FAILED_SECONDS)
    failure = read_failure(run)
    code = RescueError.exit_code if failure is None else failure.exit_code
    if failure is not None:
        note(f"error: rank {failure.rank}: {failure.message}")
    os._exit(code)


def _time_of(file: Path) -> float | None:
    """When it was written; None without such a file."""
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _first_failure(path: Path, error: Exception) -> RescueError:
    """What failed first.

    torchrun then terminates the other processes, and how those end is a consequence: they are
    reported only where there is nothing else.
    """
    failures: dict[int, Any] = error.failures  # type: ignore[attr-defined]  # the first come first
    run = RunDirectory(path)
    record = read_failure(run)
    killed = _killed_first(failures)
    if killed is not None and not (record and _is_earlier(run, record, failures[killed])):
        return _killed_error(path, killed, failures[killed])
    if record is not None:
        return from_code(f"rank {record.rank}: {record.message}", record.exit_code)
    own = [rank for rank, failure in failures.items() if 0 < failure.exitcode < SIGNALLED]
    rank = next(iter(own or failures))
    code = failures[rank].exitcode
    if code < 0:
        return _killed_error(path, rank, failures[rank])
    if code == InUseError.exit_code:  # the only error without a failure record
        return InUseError(path)
    return RescueError(f"rank {rank} ended with {code}. {_log_of(path, rank)}")


def _killed_first(failures: Mapping[int, Any]) -> int | None:
    """The rank that a signal killed before torchrun terminated any, by times in whole seconds."""
    first = min(failure.timestamp for failure in failures.values())
    for rank, failure in failures.items():
        not_torchrun = failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM
        if not_torchrun and failure.timestamp <= first + 1:
            return rank
    return None


def _is_earlier(run: RunDirectory, record: FailureRecord, killed: Any) -> bool:
    """Whether a failure was recorded before a process was killed, and not because it was.

    When a process is gone, another may be stopped, or fail because it cannot reach it; one that
    cannot reach another may also abort.
    """
    if record.exit_code > SIGNALLED:
        return False
    if record.message.startswith("Traceback "):
        return -int(killed.exitcode) == signal.SIGABRT
    return run.failure.stat().st_mtime < float(killed.timestamp) + 2


def _killed_error(path: Path, rank: int, failure: Any) -> RescueError:
    cure = CURES.get(-failure.exitcode, "")
    return RescueError(
        f"rank {rank} (pid {failure.pid}) was killed by {failure.signal_name()}. "
        f"{_log_of(path, rank)}{cure}Resume with --resume."
    )


def _log_of(path: Path, rank: int) -> str:
    """The last lines that a process printed, and the file that has all of them."""
    files = sorted(
        path.glob(f"logs/*/attempt_*/{rank}/stderr.log"), key=lambda f: f.stat().st_mtime
    )
    if not files:
        return ""
    lines = files[-1].read_text(errors="replace").splitlines()[-LOG_LINES:]
    shown = "\n  ".join(lines)
    return f"Its log is {files[-1]}:\n  {shown}\n" if lines else f"Its log {files[-1]} is empty. "


def _stop_error(path: Path, number: int) -> RescueError:
    run = RunDirectory(path)
    if (record := read_failure(run)) is not None:
        return StoppedError(record.message, 128 + number)
    kept = "The last checkpoint is kept." if run.last.exists() else "There was no checkpoint yet."
    return StoppedError(f"stopped before the processes could agree to save. {kept}", 128 + number)
