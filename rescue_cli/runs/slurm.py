"""Jobs of SLURM, which are requeued and resume bit for bit: runs as one array, or a whole verb.

The job of a run is `rescue train --resume --out DIRECTORY` on the nodes that SLURM gives it, in
each task where it has several; its result is read from the directory. A verb whose runs depend on
each other is one job, which does there what it would do here. Submission, time-outs and requeueing
are submitit's.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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
from rescue_cli.runs.console import note
from rescue_cli.runs.pool import EndedRun

FOLDER = ".slurm"  # of submissions and logs, in the folder of a run or of runs
POLL_SECONDS = 2.0  # between looks at the directories
QUEUE_SECONDS = 10.0  # between questions to SLURM's controller
LISTS = ("setup", "teardown", "srun_args")  # options that may be given several times
COUNTS = {"nodes": "", "ntasks_per_node": "", "time": " of minutes", "cpus_per_task": ""}
MINUTES = 240  # of a job; a time-out costs a requeue and the steps since the last checkpoint


@dataclass(frozen=True)
class Job(ABC):
    """The function of a job; submitit keeps it in a file, and calls it again after a requeue."""

    options: tuple[str, ...]
    trusted: str = ""  # hashes of the user's own code that it may run

    @abstractmethod
    def __call__(self, path: Path) -> int:
        """Works in the folder; the exit code."""

    def checkpoint(self, path: Path) -> Any:
        """What submitit submits when a time-out or a preemption ends the job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, path)

    def forget_earlier(self, path: Path) -> None:
        """Removes what an earlier job left, before a new one is submitted."""
        RunDirectory(path).failure.unlink(missing_ok=True)

    def _execute(self, words: Sequence[str], **streams: IO[bytes] | None) -> int:
        """Executes `rescue` with these words; its exit code."""
        # SLURM sends a job's signals to all of its processes; submitit's would end this one
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        variables = {TRUSTED: self.trusted, **lifetime.parent_variable()}
        call = [sys.executable, "-P", "-m", "rescue_cli", *words]
        process = subprocess.Popen(call, env={**os.environ, **variables}, **streams)  # type: ignore[call-overload]
        signal.signal(signal.SIGUSR2, before)
        try:
            return int(process.wait())
        except SystemExit:  # submitit has requeued the job
            process.terminate()
            process.wait()
            raise


class Train(Job):
    """Trains a run directory."""

    def __call__(self, path: Path) -> int:
        """Trains the directory's recipe; the exit code of `rescue train`."""
        if _is_first_task():
            RunDirectory(path).failure.unlink(missing_ok=True)  # from before a requeue
        return self._execute(["train", "--resume", "--out", str(path), *self.options])


class Verb(Job):
    """Executes the verb that `options` begin with; they name the folder of its results."""

    def __call__(self, path: Path) -> int:
        """Executes it, and keeps what it prints; its exit code, which is kept unless a signal ended
        it: then the job may be requeued.
        """
        files = _VerbFiles(path)
        if not _is_first_task():  # the first prints for all
            with open(os.devnull, "wb") as devnull:
                return self._execute(self.options, stdout=devnull)
        with files.stdout.open("wb") as stdout, files.stderr.open("ab") as stderr:
            code = self._execute(self.options, stdout=stdout, stderr=stderr)
        if code in range(128):
            write_json(files.ended, {"exit_code": code})
        return code

    def forget_earlier(self, path: Path) -> None:
        files = _VerbFiles(path)
        for file in (files.stdout, files.stderr, files.ended):
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class _VerbFiles:
    """What the job of a verb leaves for the command that submitted it."""

    path: Path

    @property
    def stdout(self) -> Path:
        return self.path / FOLDER / "stdout.txt"

    @property
    def stderr(self) -> Path:
        return self.path / FOLDER / "stderr.txt"

    @property
    def ended(self) -> Path:
        return self.path / FOLDER / "ended.json"


def _is_first_task() -> bool:
    return os.environ.get("SLURM_PROCID", "0") == "0"


def run_all(
    paths: Sequence[Path],
    settings: Mapping[str, Any],
    options: Sequence[str],
    folder: Path,
    again: str = "the same command",
) -> Iterator[EndedRun]:
    """Submits the runs that are not in the queue already, and yields each run as it ends.

    An error that all of them would make (`EndedRun.fatal`) cancels the others and is raised.
    Interrupted, or the iterator closed early, the jobs continue; the same call finds them again.

    Args:
        settings: sbatch's options: `partition`, `time` in minutes, `gpus_per_node`, ...;
            `array_parallelism` is how many jobs run at a time.
        options: Those of `rescue train`.
        folder: For submissions and their logs.
        again: The command that waits for them again, in words.
    """
    jobs = _submit(Train(tuple(options), os.environ.get(TRUSTED, "")), paths, settings, folder)
    waiting = {str(path.resolve()): path for path in paths}
    queue = _Queue(jobs.values())
    with _leave_to_continue(again, lambda: [jobs[name] for name in waiting]):
        while waiting:
            # A directory has its result when the run has ended well, and else the job leaves the
            # queue without one
            gone = {name for name in waiting if jobs[name] not in queue.jobs}
            for name in [
                n for n, path in waiting.items() if n in gone or RunDirectory(path).finished
            ]:
                path = waiting.pop(name)
                ended = EndedRun(path, _read_failure(path, jobs[name], folder))
                if ended.fatal is not None:
                    _cancel(jobs[name] for name in waiting)
                    raise ended.fatal
                yield ended
            queue.wait()


def run_verb(words: Sequence[str], settings: Mapping[str, Any], path: Path) -> int:
    """Submits a verb that works in the folder `path`, unless it is in the queue already, and waits
    for it; the exit code.

    What it prints, appears here. Raises `RescueError` where its job ends without an exit code.
    """
    files = _VerbFiles(path)
    jobs = _submit(Verb(tuple(words), os.environ.get(TRUSTED, "")), [path], settings, path / FOLDER)
    job, shown = jobs[str(path.resolve())], 0
    queue = _Queue([job])
    note(f"job {job}: rescue {shlex.join(words)}")
    with _leave_to_continue(f"the same command with --out {path}", lambda: [job]):
        while job in queue.jobs and not files.ended.exists():
            queue.wait()
            shown = _show_from(files.stderr, shown)
    _show_from(files.stderr, shown)
    if not files.ended.exists():
        raise RescueError(
            f"job {job} left the queue before the command had ended. Its log: "
            f"{path}/{FOLDER}/{job}_0_log.err. The same command with --out {path} resumes it."
        )
    sys.stdout.write(files.stdout.read_text())
    return int(read_json(files.ended)["exit_code"])


def _show_from(file: Path, position: int) -> int:
    """Prints what a file has after the position, on stderr; the position of its end."""
    if not file.exists():
        return position
    with file.open("rb") as content:
        content.seek(position)
        new = content.read()
    sys.stderr.write(new.decode(errors="replace"))
    sys.stderr.flush()
    return position + len(new)


class _Queue:
    """The jobs that are in SLURM's queue, as far as is known.

    A controller that does not answer (it is restarted at times) is asked again.
    """

    def __init__(self, jobs: Iterable[str]) -> None:
        self.jobs, self._asked = set(jobs), time.monotonic()

    def wait(self) -> None:
        """Waits a little, and asks SLURM from time to time."""
        time.sleep(POLL_SECONDS)
        if time.monotonic() - self._asked > QUEUE_SECONDS:
            self._asked = time.monotonic()
            with contextlib.suppress(RescueError):
                self.jobs = _queued_jobs()


@contextlib.contextmanager
def _leave_to_continue(again: str, left: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Where Ctrl-C ends the body, says that the jobs that are `left` continue."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped waiting; the jobs continue, and {again} waits for them again. "
            f"To end them: scancel {' '.join(sorted(left()))}",
            130,
        ) from None


def _submit(
    job: Job, paths: Sequence[Path], settings: Mapping[str, Any], folder: Path
) -> dict[str, str]:
    """Submits a job for each path for which none is in the queue, as one array; the ids by path.

    Raises `UsageError`.
    """
    kept = folder / "jobs.json"
    jobs: dict[str, str] = read_json(kept) if kept.exists() else {}
    queued = _queued_jobs()
    new = [path for p in paths if jobs.get(str(path := p.resolve())) not in queued]
    if new:
        executor = _executor(folder, settings)
        for path in new:
            job.forget_earlier(path)
        with _refused_submission():
            submitted = executor.map_array(job, new)
        jobs |= {str(path): one.job_id for path, one in zip(new, submitted, strict=True)}
        write_json(kept, jobs)
    return jobs


def submission_script(count: int, settings: Mapping[str, Any], folder: Path) -> str:
    """What `sbatch` is given for so many jobs; raises `UsageError`."""
    executor = _executor(folder, settings)
    if count > 1:
        executor.parameters["map_count"] = count  # as submitit does for an array
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _read_failure(path: Path, job: str, folder: Path) -> RescueError | None:
    """Why a run that has ended has no result."""
    if RunDirectory(path).finished:
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


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """sbatch's options of `--slurm KEY=VALUE ...`, as submitit takes them; raises `UsageError`.

    Several nodes have as many tasks each as GPUs, or one, unless it says otherwise.
    """
    settings: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise UsageError(f"--slurm: '{text}' is not KEY=VALUE. Write --slurm partition=gpu.")
        key = key.replace("-", "_")
        if key in LISTS:
            settings.setdefault(key, []).extend(
                shlex.split(value) if key == "srun_args" else [value]
            )
        elif key in COUNTS and not value.isdecimal():
            raise UsageError(f"--slurm: {key}={value} must be a whole number{COUNTS[key]}.")
        else:
            settings[key] = int(value) if value.isdecimal() else value
    if (nodes := settings.get("nodes", 1)) > 1:
        settings.setdefault("ntasks_per_node", count_gpus(settings) // nodes)
    if "cpus_per_task" in settings:
        # Since SLURM 22.05 a step does not take it over from its job
        settings.setdefault("srun_args", []).append(f"--cpus-per-task={settings['cpus_per_task']}")
    return settings


def count_tasks(settings: Mapping[str, Any]) -> int:
    """How many processes share each run of a job, as srun starts them; 1 without srun's."""
    return int(settings.get("nodes", 1)) * int(settings.get("ntasks_per_node", 1))


def count_gpus(settings: Mapping[str, Any], none: int = 1) -> int:
    """The GPUs of a job, or `none` on each node where none are asked for by these options."""
    tasks_per_node = int(settings.get("ntasks_per_node", 1))
    for key, factor in (("gpus_per_node", 1), ("gpus_per_task", tasks_per_node)):
        _, _, number = str(settings.get(key, "")).rpartition(":")  # of a100:4
        if number.isdecimal():
            return int(number) * factor * int(settings.get("nodes", 1))
    return none * int(settings.get("nodes", 1))


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


@contextlib.contextmanager
def _refused_submission() -> Iterator[None]:
    """Raises `UsageError` with what sbatch says, where it refuses."""
    from submitit.core.utils import FailedJobError

    try:
        yield
    except FailedJobError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--slurm: sbatch refuses the job: {reason}") from None


def _cancel(jobs: Iterable[str]) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(["scancel", *jobs], check=False)
