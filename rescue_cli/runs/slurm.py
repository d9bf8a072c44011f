"""Many run directories as one array of SLURM jobs: each trains, is requeued, and goes on exactly.

A job is `rescue train --resume --out DIRECTORY` on the node where SLURM puts it; what it found is
read from the directory, as everywhere. Submission, time-outs and requeueing are submitit's.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli import lifetime
from rescue_cli.errors import RescueError, StoppedError, UsageError
from rescue_cli.rundir import RunDirectory, Word, leave_word, read_json, word_of, write_json
from rescue_cli.runs.directory import is_finished
from rescue_cli.runs.pool import Ended

LOOK_SECONDS = 2.0  # how often the directories are looked at,
ASK_SECONDS = 10.0  # and how often SLURM's controller is asked
MINUTES = 240  # at a stretch; a time-out costs a requeue and what was since the last checkpoint


@dataclass(frozen=True)
class Train:
    """What a job calls; submitit keeps it in a file, and calls it again after a requeue."""

    options: tuple[str, ...]

    def __call__(self, path: Path) -> int:
        """Trains the directory's recipe; the exit code of `rescue train`."""
        RunDirectory(path).failure.unlink(missing_ok=True)  # of this job before it was requeued
        call = [sys.executable, "-P", "-m", "rescue_cli", "train", "--resume", "--out", str(path)]
        # SLURM gives a job's signals to all of its processes; submitit's own would end this one
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        process = subprocess.Popen(
            [*call, *self.options], env={**os.environ, **lifetime.started_here()}
        )
        signal.signal(signal.SIGUSR2, before)
        try:
            return process.wait()
        except SystemExit:  # submitit has requeued the job
            process.terminate()
            process.wait()
            raise

    def checkpoint(self, path: Path) -> Any:
        """What is submitted in place of a job that its time-out or a preemption ends."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, path)


def run_all(
    paths: Sequence[Path],
    settings: Mapping[str, Any],
    options: Sequence[str],
    folder: Path,
    tell: Callable[[Ended], bool],
) -> None:
    """Submits what is not in the queue already, and waits; `tell` hears of each end, False stops.

    `settings` are sbatch's options (`partition`, `time` in minutes, `gpus_per_node`, ...), and
    `array_parallelism` how many run at a time; `options` are `rescue train`'s. Submissions and
    their logs are kept in `folder`. Interrupted, the jobs go on and are found by the next call.
    """
    kept = folder / "jobs.json"
    jobs: dict[str, str] = read_json(kept) if kept.exists() else {}
    waiting = {str(path.resolve()): path for path in paths}
    queued = _queued()
    new = [Path(name) for name in waiting if jobs.get(name) not in queued]
    if new:
        executor = _executor(folder, settings)
        for path in new:
            RunDirectory(path).failure.unlink(missing_ok=True)  # of an earlier job
        submitted = executor.map_array(Train(tuple(options)), new)
        jobs |= {str(path): job.job_id for path, job in zip(new, submitted, strict=True)}
        write_json(kept, jobs)
    try:
        _watch(waiting, jobs, folder, tell)
    except KeyboardInterrupt:
        raise StoppedError(_goes_on(jobs[name] for name in waiting), 130) from None


def _watch(
    waiting: dict[str, Path], jobs: Mapping[str, str], folder: Path, tell: Callable[[Ended], bool]
) -> None:
    """Until every directory has its result or has left the queue without one."""
    queued: set[str] = set(jobs.values())
    asked = time.monotonic()
    while waiting:
        gone = {name for name in waiting if jobs[name] not in queued}
        for name in [n for n, path in waiting.items() if n in gone or is_finished(path)]:
            path = waiting.pop(name)
            if not tell(Ended(path, _failure(path, jobs[name], folder))):
                _cancel(jobs[name] for name in waiting)
                return
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - asked > ASK_SECONDS:
            queued, asked = _queued(), time.monotonic()


def _failure(path: Path, job: str, folder: Path) -> RescueError | None:
    """Why a run that left the queue has no result."""
    if is_finished(path):
        return None
    if (word := word_of(RunDirectory(path))) is not None:
        return word.error
    said = f"job {job} left the queue without a word. Its log: {folder}/{job}_0_log.err"
    leave_word(RunDirectory(path), Word(0, RescueError.exit_code, said))
    return RescueError(said)


def _executor(folder: Path, settings: Mapping[str, Any]) -> Any:
    """submitit's; raises `UsageError` where it, SLURM or an option does not exist."""
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
        raise UsageError(f"--on slurm: {error} Use --on local on this machine.") from None
    except ValueError as error:
        known = ", ".join(sorted(submitit.SlurmExecutor._valid_parameters()))
        raise UsageError(f"--slurm: {str(error).splitlines()[0]}. Known: {known}.") from None
    return executor


def _queued() -> set[str]:
    """The user's jobs that are pending or running, as `12_0` or `12`; raises `UsageError`."""
    call = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        answer = subprocess.run(call, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UsageError(
            "--on slurm: there is no squeue on this machine. Call it on a login node, "
            "or use --on local."
        ) from None
    except subprocess.CalledProcessError as error:
        raise RescueError(f"{shlex.join(call)}: {error.stderr.strip()}") from None
    return set(answer.stdout.split())


def _cancel(jobs: Iterable[str]) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(["scancel", *jobs], check=False)


def _goes_on(jobs: Iterable[str]) -> str:
    return (
        "stopped waiting; the jobs go on, and the same command waits for them again. "
        f"To end them: scancel {' '.join(sorted(jobs))}"
    )
