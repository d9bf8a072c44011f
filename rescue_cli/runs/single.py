"""One training run: how it is started, prepared and run, new or resumed."""

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rescue_cli.build.expand import count_processes
from rescue_cli.errors import DataError, DivergedError, StoppedError, UsageError
from rescue_cli.formatting import format_count
from rescue_cli.recipe import Recipe, Train
from rescue_cli.rundir import RunDirectory, read_failure
from rescue_cli.runs.console import format_idle_gpus, note
from rescue_cli.runs.directory import (
    prepare,
    remove_unstarted,
    reserve,
    wait_until_prepared,
)
from rescue_cli.runs.environment import describe_environment
from rescue_cli.runs.group import requested_processes
from rescue_cli.runs.processes import ONE_MACHINE, Nodes, run_directory

if TYPE_CHECKING:
    from rescue_cli.build.identity import IdentityCache


@dataclass(frozen=True)
class Launch:
    """How a run is started, apart from what it trains."""

    device: str
    procs: int
    through_torchrun: bool
    workers: int | None
    nodes: Nodes = ONE_MACHINE
    max_restarts: int = 0
    progress: bool = True  # shown on stderr
    profile: bool = False  # some of its steps
    idle_gpus: str | None = None  # a line that names those which the run does not use
    told: set[str] | None = None  # notes on the data that the command has shown


def plan_launch(
    train: Train,
    device: str,
    procs: int | None = None,
    *,
    option: str = "--procs",
    default: int = 1,
    workers: int | None = None,
    nodes: Nodes = ONE_MACHINE,
    max_restarts: int = 0,
    progress: bool = True,
) -> Launch:
    """How many processes share a step; raises `UsageError`.

    Args:
        procs: As `option` asks for, on all machines together.
        default: The most that are used where nothing is asked for.
    """
    asked, option = requested_processes(procs, option)
    count = count_processes(train.micro_batches, asked, default, option=option)
    if count % nodes.count:
        raise UsageError(
            f"{option}: {count} processes cannot be divided evenly among {nodes.count} machines. "
            "Use a multiple."
        )
    torchrun = asked is not None or count > 1
    idle = describe_idle_gpus(train, count, default) if asked is None else None
    return Launch(device, count, torchrun, workers, nodes, max_restarts, progress, idle_gpus=idle)


def describe_idle_gpus(train: Train, used: int, visible: int, option: str = "") -> str | None:
    """How many of the visible GPUs a run uses, why no more, and how it would use all of them; None
    where it does.

    Args:
        option: The option that asks for several, where one is used by default.
    """
    if used >= visible:
        return None
    most = count_processes(train.micro_batches, None, visible)
    size = train.device_batch_size
    # The largest micro-batches of which every GPU has as many as the others
    fitting = [d for d in range(1, size + 1) if train.batch_size % (d * visible) == 0]
    why = f"a step has {format_count(train.micro_batches, 'micro-batch')} of {size} images"
    if used < most:
        reached = "all" if most == visible else str(most)
        why, cure = f"{option} is 1 by default", f"{option} {most} uses {reached}"
    elif fitting:
        asking = f" and {option} {visible}" if option else ""
        cure = f"train.device_batch_size={fitting[-1]}{asking} uses all"
        cure += "; batch norm then sees smaller micro-batches"
    else:
        cure = f"A train.batch_size that {visible} divides can use all"
    return format_idle_gpus(used, visible, why, cure)


def prepare_training(
    path: Path,
    recipe: Recipe,
    launch: Launch,
    cache: Path,
    *,
    resume: bool,
    share: int = 1,
    look: "IdentityCache | None" = None,
    command: Sequence[str] | None = None,
) -> bool:
    """Writes what the processes of the run read; returns whether it is new. Raises `RescueError`.

    On other machines than the first, waits for that instead.

    Args:
        cache: The folder of prepared data.
        resume: Accepts a directory of the same recipe, see `directory.reserve`.
        share: How many runs are at work on this machine at a time.
        look: Keeps what was read of the data already.
        command: The one to record, by default this process's own.
    """
    if launch.nodes.rank > 0:
        wait_until_prepared(path)
        return False
    environment = describe_environment(
        verb="train",
        seed=recipe.train.seed,
        device=launch.device,
        procs=launch.procs,
        workers=launch.workers,
        cache=cache,
        share=share,
        nodes=launch.nodes.count,
    )
    if launch.profile:
        environment["profile"] = True
    return prepare(path, recipe, environment, resume=resume, look=look, command=command)


def run_training(path: Path, launch: Launch, *, new: bool) -> None:
    """Trains a prepared run until it ends; raises `RescueError`.

    A mistake in the recipe or the data (`UsageError`, `DataError`) leaves no `new` directory
    behind in which nothing was trained.
    """
    procs = launch.procs if launch.through_torchrun else None
    try:
        run_directory(
            path,
            procs,
            max_restarts=launch.max_restarts,
            nodes=launch.nodes,
            progress=launch.progress,
            told=launch.told,
        )
    except (UsageError, DataError):
        if new and launch.nodes.count == 1:  # other machines still read what is there
            remove_unstarted(path)
        raise


def describe_restart(path: Path, recipe: Recipe, *, new: bool) -> str | None:
    """Why a run that is to resume begins at step 0; None where it has a checkpoint.

    What is resumed says itself at which step.
    """
    if RunDirectory(path).last.exists() or recipe.fits_head:  # the latter takes no steps
        return None
    what = "no run" if new else "no checkpoint"
    return f"{path}: there is {what} to resume; training starts at step 0"


def train_part(
    path: Path,
    recipe: Recipe,
    device: str,
    procs: int | None,
    workers: int | None,
    folder: Path,
    told: set[str],
) -> bool:
    """Trains one run of a command that trains several in turn; returns whether it diverged.

    A run that has a result, or has diverged, is left as it is. Divergence is a result here, and no
    error. `folder` is the command's --out, `told` the notes on the data that it has shown.
    """
    if is_done(path, recipe):
        return False
    if has_diverged(path, recipe):
        note(f"{path}: diverged before")
        return True
    if not recipe.fits_head:
        note(f"{path}: {recipe.train.epochs:g} epochs, seed {recipe.train.seed}")
    launch = replace(plan_launch(recipe.train, device, procs, workers=workers), told=told)
    new = prepare_training(path, recipe, launch, folder / ".cache", resume=True)
    if not new and (restart := describe_restart(path, recipe, new=new)):
        note(restart)
    try:
        run_training(path, launch, new=new)
    except DivergedError as error:
        observed, _, _ = str(error).partition(" Lower optim.lr")  # no advice: it is a result
        note(f"diverged: {observed}")
        return True
    except StoppedError as error:
        raise StoppedError(
            f"stopped in {path.name}; its checkpoint is saved. "
            f"The same command with --out {folder} resumes it.",
            error.exit_code,
        ) from None
    return False


def is_done(path: Path, recipe: Recipe, look: "IdentityCache | None" = None) -> bool:
    """Whether the directory holds a result; raises `UsageError` for one of another recipe."""
    if not RunDirectory(path).finished:
        return False
    reserve(path, recipe, resume=True, look=look)
    return True


def has_diverged(path: Path, recipe: Recipe, look: "IdentityCache | None" = None) -> bool:
    """Whether the run diverged; raises `UsageError` for a run of another recipe."""
    failure = read_failure(RunDirectory(path))
    if failure is None or failure.exit_code != DivergedError.exit_code:
        return False
    reserve(path, recipe, resume=True, look=look)
    return True


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Stops the body after so many seconds, as SIGTERM does: training saves its checkpoint."""
    before = signal.getsignal(signal.SIGTERM)

    def stop(*_: object) -> None:
        if signal.getsignal(signal.SIGTERM) == before:  # no training that could save is running
            raise StoppedError("the budget is used up.", 128 + signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
