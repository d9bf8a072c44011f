"""A kill test: a short run that is killed in the middle and resumed must end in the bits of an
undisturbed one.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rescue_cli import lifetime
from rescue_cli.errors import RescueError
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import given_keys, is_given
from rescue_cli.rundir import RunDirectory, read_failure, read_json
from rescue_cli.runs.console import note
from rescue_cli.runs.directory import is_in_use, reserve
from rescue_cli.runs.many import SlurmJobs

STEPS = 32  # of the first attempt; a run that has ended before it could be killed is made longer
LONGER, ATTEMPTS = 4, 4
SAVES = 8  # checkpoints of a run
WATCH_SECONDS = 0.02  # between looks at a run's files

Tensors = Mapping[str, tuple[Any, bytes]]


@dataclass(frozen=True)
class KillTest:
    """How it ended: the steps of the runs, where one was killed and resumed, and the tensors of
    its weights that differ from the undisturbed run's.
    """

    steps: int
    killed_after: int
    resumed_at: int
    tensors: int
    different: Sequence[str]

    @property
    def equal(self) -> bool:
        return not self.different


class Runner(Protocol):
    """Trains run directories; may kill one of them."""

    def train(self, undisturbed: Path, killed: Path, recipe: Recipe) -> None:
        """Trains both; the second is killed once it has written a checkpoint, unless it ends
        before, and is not resumed. Raises `RescueError` where the first fails.
        """
        ...

    def resume(self, path: Path, recipe: Recipe) -> None:
        """Trains the killed run to its end; raises `RescueError`."""
        ...


def short_recipe(recipe: Recipe, given: Sequence[str], steps: int, *, cuda: bool) -> Recipe:
    """The recipe as `--smoke` shortens it, with more steps, of which several are saved.

    On a GPU it is deterministic: only then do two undisturbed runs have the same bits.
    """
    from rescue_cli.build.expand import smoke_overrides

    changes = [
        *smoke_overrides(recipe, given, cuda=cuda),
        "train.epochs=1",
        f"train.steps_per_epoch={steps}",
        f"train.checkpoint_epochs={1 / SAVES}",
        "train.log_every=1",
    ]
    if cuda and not is_given("train.deterministic", given_keys(given)):
        changes.append("train.deterministic=true")
    return recipe.with_overrides(*changes)


def run_kill_test(
    recipe: Recipe, given: Sequence[str], folder: Path, runner: Runner, *, cuda: bool
) -> KillTest:
    """Trains two short runs of the recipe in the folder, and kills one of them with SIGKILL.

    Raises `RescueError` where a run fails, or none could be killed before its end.

    Args:
        given: The user's overrides, which the recipe has already and which stay.
    """
    steps = STEPS
    for attempt in range(ATTEMPTS):
        short = short_recipe(recipe, given, steps, cuda=cuda)
        undisturbed, killed = (folder / f"{name}-{attempt}" for name in ("undisturbed", "killed"))
        runner.train(undisturbed, killed, short)
        if not RunDirectory(killed).finished and _last_step(killed) < steps:
            break
        note(f"kill test: {steps} steps had ended before they could be killed; again, with more")
        steps *= LONGER
    else:
        raise RescueError(f"a run of {steps // LONGER} steps ended before it could be killed.")
    killed_after = _last_step(killed)
    runner.resume(killed, short)
    resumed_at = _resumed_step(killed)
    weights = [read_tensors(RunDirectory(path).weights) for path in (undisturbed, killed)]
    return KillTest(steps, killed_after, resumed_at, len(weights[0]), find_different(*weights))


def find_different(a: Tensors, b: Tensors) -> list[str]:
    """The names of the tensors that are not the same in both, bit for bit."""
    return [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]


def read_tensors(file: Path) -> Tensors:
    """The tensors of a safetensors file by name: type and shape, and their bytes."""
    from safetensors import deserialize

    tensors = deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    return {name: ([t["dtype"], t["shape"]], bytes(t["data"])) for name, t in tensors}


@dataclass(frozen=True)
class LocalRunner:
    """Runs on this machine, each by `rescue train` with these `options`."""

    options: Sequence[str]

    def train(self, undisturbed: Path, killed: Path, recipe: Recipe) -> None:
        """See `Runner`."""
        self.resume(undisturbed, recipe)
        process = self._start(killed, recipe)
        lost_steps = _LostSteps(killed)
        while process.poll() is None and not lost_steps():
            time.sleep(WATCH_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # it has ended itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        while is_in_use(killed):  # by processes of torchrun, which end with it
            time.sleep(WATCH_SECONDS)
        _raise_failure(killed)

    def resume(self, path: Path, recipe: Recipe) -> None:
        """See `Runner`."""
        process = self._start(path, recipe)
        try:
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        _raise_failure(path)
        if code or not RunDirectory(path).finished:
            raise RescueError(f"{path}: rescue train ended with exit code {code}.")

    def _start(self, path: Path, recipe: Recipe) -> subprocess.Popen[bytes]:
        reserve(path, recipe, resume=True)
        call = [sys.executable, "-P", "-m", "rescue_cli", "train", "--resume", "--out", str(path)]
        return subprocess.Popen(
            [*call, *self.options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # log.txt and the failure record have it
            env={**os.environ, **lifetime.parent_variable()},
            start_new_session=True,
        )


@dataclass(frozen=True)
class SlurmRunner:
    """Runs as jobs of SLURM, both of them in one array."""

    jobs: SlurmJobs

    def train(self, undisturbed: Path, killed: Path, recipe: Recipe) -> None:
        """See `Runner`."""
        over = threading.Event()
        killer = threading.Thread(target=self._kill, args=[killed, over], daemon=True)
        killer.start()
        try:
            for ended in self.jobs.train({undisturbed: recipe, killed: recipe}):
                if ended.path == undisturbed and ended.error is not None:
                    raise ended.error
        finally:
            over.set()
            killer.join()

    def _kill(self, path: Path, over: threading.Event) -> None:
        """Kills all processes of the run's job, once that would lose steps."""
        lost_steps = _LostSteps(path)
        while not over.wait(WATCH_SECONDS):
            if lost_steps():
                job = read_json(self.jobs.folder / "jobs.json")[str(path.resolve())]
                # Of its step: a whole job would be sent SIGTERM first
                subprocess.run(["scancel", "--signal=KILL", f"{job}.0"], check=False)
                return

    def resume(self, path: Path, recipe: Recipe) -> None:
        """See `Runner`."""
        for ended in self.jobs.train({path: recipe}):
            if ended.error is not None:
                raise ended.error


class _LostSteps:
    """Whether a run has a checkpoint and has taken a step since, which a kill would lose."""

    def __init__(self, path: Path) -> None:
        self.path, self.saved_by = path, 0

    def __call__(self) -> bool:
        if not RunDirectory(self.path).last.exists():
            return False
        step = _last_step(self.path)
        self.saved_by = self.saved_by or step
        return step > self.saved_by > 0


def _raise_failure(path: Path) -> None:
    """Raises the error that the run has recorded, if any."""
    if (failure := read_failure(RunDirectory(path))) is not None:
        raise failure.error


def _last_step(path: Path) -> int:
    """The last step in the run's metrics, of which another process may be writing the last line."""
    try:
        lines = RunDirectory(path).metrics.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((int(json.loads(line)["step"]) for line in lines), default=0)


def _resumed_step(path: Path) -> int:
    """The step of the checkpoint from which the run was resumed, as its log says; 0 for none."""
    steps = re.findall(r" resumed at step (\d+) of ", RunDirectory(path).log.read_text())
    return int(steps[-1]) if steps else 0
