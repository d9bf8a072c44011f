"""Several runs within one command: what is missing of them is trained, here or by SLURM."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rescue_cli.build.expand import count_processes
from rescue_cli.errors import DataError, DivergedError, RescueError, UsageError
from rescue_cli.recipe import Recipe
from rescue_cli.rundir.planned import FILE, How, add_planned, count_missing
from rescue_cli.runs import pool, slurm
from rescue_cli.runs.console import format_idle_gpus, note
from rescue_cli.runs.directory import remove_unstarted, reserve
from rescue_cli.runs.group import current_group, refuse_in_group
from rescue_cli.runs.pool import EndedRun
from rescue_cli.runs.single import has_diverged, is_done, plan_launch, prepare_training


class Jobs(Protocol):
    """Where runs are trained."""

    def train(
        self, runs: Mapping[Path, Recipe], *, deadline: float = math.inf
    ) -> Iterator[EndedRun]:
        """Trains or resumes each directory's recipe; yields each run as it ends.

        No run is started after the deadline (`time.monotonic`). A run that fails or diverges is
        yielded like the others. An error that all of them would make is raised, and new directories
        in which nothing was trained are removed.
        """
        ...


@dataclass(frozen=True)
class LocalJobs:
    """Runs on this machine, `jobs` at a time, each on one of the GPUs or on its share of cores."""

    device: str
    jobs: int
    gpus: int  # visible; 0 on a CPU
    workers: int | None
    cache: Path

    def train(
        self, runs: Mapping[Path, Recipe], *, deadline: float = math.inf
    ) -> Iterator[EndedRun]:
        """See `Jobs`."""
        from rescue_cli.build.identity import IdentityCache

        look = IdentityCache()
        new = []
        if self.gpus and 0 < len(runs) < self.jobs:
            why = f"there are as many runs to train ({len(runs)}), each on one GPU"
            cure = "More runs use more; rescue train shares one run among several"
            note(format_idle_gpus(len(runs), self.gpus, why, cure))
        for path, recipe in runs.items():
            launch = plan_launch(recipe.train, self.device, workers=self.workers)
            if prepare_training(
                path, recipe, launch, self.cache, resume=True, share=self.jobs, look=look
            ):
                new.append(path)
        with _remove_on_fatal_error(new):
            yield from pool.run_all(
                list(runs), self.jobs, one_gpu_each=self.gpus > 0, deadline=deadline
            )


def local_jobs(device: str, jobs: int | None, workers: int | None, cache: Path) -> LocalJobs:
    """By default one run per GPU, or one run on a CPU; raises `UsageError`."""
    import torch

    refuse_in_group({"--jobs": jobs not in (None, 1)})
    if (group := current_group()) is not None:
        note(f"one run at a time, on {group}")
        return LocalJobs(device, 1, 0, workers, cache)
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    count = max(1, gpus) if jobs is None else jobs
    if gpus and count > gpus:
        raise UsageError(f"--jobs: {count} must be at most {gpus}, one run per GPU.")
    return LocalJobs(device, count, gpus, workers, cache)


@dataclass(frozen=True)
class SlurmJobs:
    """Runs as jobs of SLURM, see `slurm.run_all`.

    `resume` accepts directories that hold a run already; `again` is the command that does so, in
    words.
    """

    settings: Mapping[str, Any]
    options: Sequence[str]
    folder: Path
    resume: bool = True
    again: str = "the same command"

    def train(
        self, runs: Mapping[Path, Recipe], *, deadline: float = math.inf
    ) -> Iterator[EndedRun]:
        """See `Jobs`; waits for what is in SLURM's queue already."""
        from rescue_cli.build.identity import IdentityCache

        assert deadline == math.inf, "SLURM starts the jobs when it can"
        self.check_tasks(runs.values())
        look = IdentityCache()
        new = [
            path for path, one in runs.items() if reserve(path, one, resume=self.resume, look=look)
        ]
        with _remove_on_fatal_error(new):
            yield from slurm.run_all(
                list(runs), self.settings, self.options, self.folder, self.again
            )

    def check_tasks(self, recipes: Iterable[Recipe]) -> None:
        """Raises `UsageError` where the tasks of a job cannot share a step of a recipe."""
        tasks = slurm.count_tasks(self.settings)
        for recipe in recipes if tasks > 1 else ():
            option = "--slurm nodes and ntasks_per_node"
            count_processes(recipe.train.micro_batches, tasks, 1, option=option)

    def script(self, count: int) -> str:
        """What `sbatch` is given for so many runs; raises `UsageError`."""
        return slurm.submission_script(count, self.settings, self.folder)


def slurm_jobs(
    given: Sequence[str], jobs: int | None, device: str | None, workers: int | None, folder: Path
) -> SlurmJobs:
    """With the sbatch options of `--slurm KEY=VALUE ...`; raises `UsageError`.

    Args:
        folder: Of the runs; what is submitted is kept in a folder below it.
    """
    settings = slurm.parse_settings(given)
    if jobs is not None:
        settings["array_parallelism"] = jobs
    values = {"--device": device, "--workers": workers}
    options = [part for key, v in values.items() if v is not None for part in (key, str(v))]
    return SlurmJobs(settings, options, folder / slurm.FOLDER)


@contextmanager
def _remove_on_fatal_error(new: Sequence[Path]) -> Iterator[None]:
    """Removes the new directories in which nothing was trained, if all runs fail alike."""
    try:
        yield
    except (UsageError, DataError):
        for path in new:
            remove_unstarted(path)
        raise


def find_missing(runs: Mapping[Path, Recipe]) -> dict[Path, Recipe]:
    """The runs without a result, except diverged ones, which would diverge again; notes those.

    Raises `UsageError` for a directory of another recipe, and `DataError` for other data.
    """
    from rescue_cli.build.identity import IdentityCache, compare_data

    look = IdentityCache()
    done = dict.fromkeys(path for path, recipe in runs.items() if is_done(path, recipe, look))
    rest = {path: recipe for path, recipe in runs.items() if path not in done}
    diverged = [path for path, recipe in rest.items() if has_diverged(path, recipe, look)]
    for line in compare_data(runs, done, look):
        note(line)
    note(f"{len(done)} of {len(runs)} runs finished")
    for path in diverged:
        note(f"{path}: diverged before")
    return {path: recipe for path, recipe in rest.items() if path not in diverged}


@contextmanager
def record_planned(runs: Iterable[Path]) -> Iterator[None]:
    """Records that these runs are to be trained, so that those without a result are counted.

    Takes it back at an error with which none of them can begin.
    """
    folders: dict[Path, list[str]] = {}
    for path in runs:
        folders.setdefault(path.parent, []).append(path.name)
    files = [folder / FILE for folder in folders]
    before = {file: file.read_bytes() if file.exists() else None for file in files}
    for folder, names in folders.items():
        add_planned(folder, names)
    try:
        yield
    except (UsageError, DataError):
        for file, content in before.items():
            file.unlink() if content is None else file.write_bytes(content)
        raise


def require_results(n: int, missing: Iterable[How]) -> None:
    """Raises `RescueError` where planned runs have no result, `DivergedError` where all diverged.

    Args:
        n: How many have a result.
        missing: How each of the others ended.
    """
    ends = list(missing)
    if not ends:
        return
    text = f"{len(ends)} of {n + len(ends)} planned runs have no result ({count_missing(ends)})."
    if set(ends) == {"diverged"}:
        raise DivergedError(f"{text} Lower the learning rate, and use a new --out.")
    raise RescueError(f"{text} The same command resumes those that did not diverge.")
