"""Many run directories as one array of SLURM jobs, which are requeued and resume bit for bit.

A job is `rescue train --resume --out DIRECTORY` on the node that SLURM gives it; its result is read
from the directory. Submission, time-outs and requeueing are submitit's.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli import lifetime
from rescue_cli.errors import RescueError, StoppedError, UsageError
from rescue_cli.recipe.own import TRUSTED
from rescue_cli.rundir import (
    FailureRecord,
    RunDirectory,
    read_failure,
    read_json,
    write_failure,
    write_json,
)
from rescue_cli.runs.directory import is_finished
from rescue_cli.runs.pool import EndedRun

POLL_SECONDS = 2.0  # between looks at the directories
QUEUE_SECONDS = 10.0  # between questions to SLURM's controller
MINUTES = 240  # of a job; a time-out costs a requeue and the steps since the last checkpoint


@dataclass(frozen=True)
class Train:
    """The function of a job; submitit keeps it in a file, and calls it again after a requeue."""

    options: tuple[str, ...]
    trusted: str = ""  # hashes of the user's own code that it may run

    def __call__(self, path: Path) -> int:
        """Trains the directory's recipe; the exit code of `rescue train`."""
        RunDirectory(path).failure.unlink(missing_ok=True)  # from before a requeue
        call = [sys.executable, "-P", "-m", "rescue_cli", "train", "--resume", "--out", str(path)]
        # SLURM sends a job's signals to all of its processes; submitit's would end this one
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        variables = {TRUSTED: self.trusted, **lifetime.parent_variable()}
        process = subprocess.Popen([*call, *self.options], env={**os.environ, **variables})
        signal.signal(signal.SIGUSR2, before)
        try:
            return process.wait()
        except SystemExit:  # submitit has requeued the job
            process.terminate()
            process.wait()
            raise

    def checkpoint(self, path: Path) -> Any:
        """What submitit submits when a time-out or a preemption ends the job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, path)


def run_all(
    paths: Sequence[Path], settings: Mapping[str, Any], options: Sequence[str], folder: Path
) -> Iterator[EndedRun]:
    """Submits the runs that are not in the queue already, and yields each run as it ends.

    An error that all of them would make (`EndedRun.fatal`) cancels the others and is raised.
    Interrupted, or the iterator closed early, the jobs continue; the same call finds them again.

    Args:
        settings: sbatch's options: `partition`, `time` in minutes, `gpus_per_node`, ...;
            `array_parallelism` is how many jobs run at a time.
        options: Those of `rescue train`.
        folder: For submissions and their logs.
    """
    kept = folder / "jobs.json"
    jobs: dict[str, str] = read_json(kept) if kept.exists() else {}
    waiting = {str(path.resolve()): path for path in paths}
    queued = _queued_jobs()
    new = [Path(name) for name in waiting if jobs.get(name) not in queued]
    if new:
        executor = _executor(folder, settings)
        for path in new:
            RunDirectory(path).failure.unlink(missing_ok=True)  # of an earlier job
        job = Train(tuple(options), os.environ.get(TRUSTED, ""))
        submitted = executor.map_array(job, new)
        jobs |= {str(path): job.job_id for path, job in zip(new, submitted, strict=True)}
        write_json(kept, jobs)
    queued, asked = set(jobs.values()), time.monotonic()
    try:
        while waiting:
            # A directory has its result when the run has ended well, and else the job leaves the
            # queue without one
            gone = {name for name in waiting if jobs[name] not in queued}
            for name in [n for n, path in waiting.items() if n in gone or is_finished(path)]:
                path = waiting.pop(name)
                ended = EndedRun(path, _read_failure(path, jobs[name], folder))
                if ended.fatal is not None:
                    _cancel(jobs[name] for name in waiting)
                    raise ended.fatal
                yield ended
            time.sleep(POLL_SECONDS)
            if time.monotonic() - asked > QUEUE_SECONDS:
                queued, asked = _queued_jobs(), time.monotonic()
    except KeyboardInterrupt:
        ids = " ".join(sorted(jobs[name] for name in waiting))
        raise StoppedError(
            "stopped waiting; the jobs continue, and the same command waits for them again. "
            f"To end them: scancel {ids}",
            130,
        ) from None


def _read_failure(path: Path, job: str, folder: Path) -> RescueError | None:
    """Why a run that has ended has no result."""
    if is_finished(path):
        return None
    if (failure := read_failure(RunDirectory(path))) is not None:
        return failure.error
    message = (
        f"job {job} left the queue without a failure record. Its log: {folder}/{job}_0_log.err"
    )
    write_failure(RunDirectory(path), FailureRecord(0, RescueError.exit_code, message))
    return RescueError(message)


def _executor(folder: Path, settings: Mapping[str, Any]) -> Any:
    """submitit's executor; raises `UsageError` where it, SLURM or an option does not exist."""
    try:
        import submitit
    except ImportError:
        raise UsageError(
            "--on slurm: submitit is not installed. Use pip install 'rescue[slurm]'."
        ) from None
    try:
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=sys.maxsize)
        executor.update_parameters(
            **{"job_name": "rescue", "time": MINUTES, **settings},
            additional_parameters={"requeue": True},
        )
    except RuntimeError as error:
        raise UsageError(f"--on slurm: {error} On this machine use --on local.") from None
    except ValueError as error:
        known = ", ".join(sorted(submitit.SlurmExecutor._valid_parameters()))
        raise UsageError(f"--slurm: {str(error).splitlines()[0]}. Known: {known}.") from None
    return executor


def _queued_jobs() -> set[str]:
    """The user's jobs that are pending or running, as `12_0` or `12`; raises `UsageError`."""
    call = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        answer = subprocess.run(call, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UsageError(
            "--on slurm: there is no squeue on this machine. Use a login node, or --on local."
        ) from None
    except subprocess.CalledProcessError as error:
        raise RescueError(f"{shlex.join(call)}: {error.stderr.strip()}") from None
    return set(answer.stdout.split())


def _cancel(jobs: Iterable[str]) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(["scancel", *jobs], check=False)
