"""Runs within a verb that makes several: begun, taken up, or found finished."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescue_cli.cli import common
from rescue_cli.cli.progress import progress
from rescue_cli.errors import DataError, DivergedError, RescueError, StoppedError, UsageError
from rescue_cli.recipe import Recipe

if TYPE_CHECKING:
    from rescue_cli.build.identity import IdentityCache
    from rescue_cli.rundir.planned import How

Work = Callable[[Mapping[Path, Recipe], Callable[[Any], bool]], None]  # trains, telling each end


@dataclass(frozen=True)
class Places:
    """How many runs are at work at a time, and on which GPUs; none of them on a CPU."""

    device: str
    jobs: int
    gpus: list[int]
    workers: int | None


def places(device: str, jobs: int | None, workers: int | None) -> Places:
    """One run a GPU, on a CPU one, unless `jobs` says; raises `UsageError`."""
    import torch

    from rescue_cli.runs import current, demand_alone

    demand_alone({"--jobs": jobs not in (None, 1)})
    if (group := current()) is not None:
        common.note(f"one run at a time, on {group}")
        return Places(device, 1, [], workers)
    gpus = list(range(torch.cuda.device_count())) if device == "cuda" else []
    at_once = max(1, len(gpus)) if jobs is None else jobs
    if at_once < 1 or (gpus and at_once > len(gpus)):
        most = f" and at most {len(gpus)}, a run on each GPU" if gpus else ""
        raise UsageError(f"--jobs: {at_once} must be at least 1{most}.")
    return Places(device, at_once, gpus, workers)


def train_all(
    recipes: Mapping[Path, Recipe], where: Places, cache: Path, hear: Callable[[Any], bool]
) -> None:
    """Trains every directory's recipe; `hear` is told each end, and False begins no other.

    A run that fails or diverges is told like the others. Raises what all of them would fail of.
    """
    from rescue_cli.build.identity import IdentityCache
    from rescue_cli.runs import run_all

    look = IdentityCache()
    new = [
        path
        for path, recipe in recipes.items()
        if _prepare(path, recipe, where.device, None, where.workers, cache, where.jobs, look)
    ]
    with _unless_fatal(hear, new) as tell:
        run_all(list(recipes), where.jobs, where.gpus, tell)


def train_missing(runs: Mapping[Path, Recipe], work: Work, say: Callable[[Any], str]) -> None:
    """Has every run trained that has not ended; `say` tells an end.

    One that fails or diverges is told like the others, and one that diverged before is left, since
    it would again. Raises what all of them would fail of.
    """
    from rescue_cli.build.identity import IdentityCache, compare_data

    look = IdentityCache()
    done = [path for path, recipe in runs.items() if is_done(path, recipe, look)]
    rest = {path: recipe for path, recipe in runs.items() if path not in done}
    lost = [path for path, recipe in rest.items() if diverged(path, recipe, look)]
    for line in compare_data(runs, done, look):
        common.note(line)
    common.note(f"{len(done)} of {len(runs)} runs are there")
    for path in lost:
        common.note(f"{path}: diverged before")
    missing = {path: one for path, one in runs.items() if path not in {*done, *lost}}
    with planning(runs), progress(missing, say) as hear:
        work(missing, hear)


@contextmanager
def planning(runs: Iterable[Path]) -> Iterator[None]:
    """Puts on record that these are to be run; not of what cannot begin, which is an error."""
    from rescue_cli.rundir.planned import FILE, plan

    folders: dict[Path, list[str]] = {}
    for path in runs:
        folders.setdefault(path.parent, []).append(path.name)
    files = [folder / FILE for folder in folders]
    before = {file: file.read_bytes() if file.exists() else None for file in files}
    for folder, names in folders.items():
        plan(folder, names)
    try:
        yield
    except (UsageError, DataError):
        for file, content in before.items():
            file.unlink() if content is None else file.write_bytes(content)
        raise


def demand_results(n: int, lost: Iterable["How"]) -> None:
    """Raises an error where planned runs have no result, a `DivergedError` where those diverged.

    `n` are the runs that have one.
    """
    from rescue_cli.rundir.planned import counted_lost

    ends = list(lost)
    if not ends:
        return
    said = f"{len(ends)} of {n + len(ends)} planned runs have no result ({counted_lost(ends)})."
    if set(ends) == {"diverged"}:
        raise DivergedError(f"{said} Lower the learning rate, and use a new --out.")
    raise RescueError(f"{said} The same command goes on with those that did not diverge.")


@dataclass(frozen=True)
class Queue:
    """SLURM's: sbatch's options, those of `rescue train` on the node, and the logs' folder."""

    settings: Mapping[str, Any]
    options: Sequence[str]
    folder: Path


def queue(
    asked: Sequence[str], jobs: int | None, device: str | None, workers: int | None, folder: Path
) -> Queue:
    """The queue that `--slurm KEY=VALUE ...` describes; raises `UsageError`."""
    settings: dict[str, Any] = {}
    for text in asked:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise UsageError(f"--slurm: '{text}' is not KEY=VALUE. Write --slurm partition=gpu.")
        settings[key.replace("-", "_")] = int(value) if value.isdecimal() else value
    if jobs is not None:
        settings["array_parallelism"] = jobs
    given = {"--device": device, "--workers": workers}
    options = [part for key, v in given.items() if v is not None for part in (key, str(v))]
    return Queue(settings, options, folder)


def queue_all(recipes: Mapping[Path, Recipe], where: Queue, hear: Callable[[Any], bool]) -> None:
    """As `train_all`, by SLURM; what is in its queue already is waited for."""
    from rescue_cli.build.identity import IdentityCache
    from rescue_cli.runs import claim, slurm

    look = IdentityCache()
    new = [path for path, recipe in recipes.items() if claim(path, recipe, resume=True, look=look)]
    with _unless_fatal(hear, new) as tell:
        slurm.run_all(list(recipes), where.settings, where.options, where.folder, tell)


@contextmanager
def _unless_fatal(
    hear: Callable[[Any], bool], new: Sequence[Path]
) -> Iterator[Callable[[Any], bool]]:
    """`hear`, which ends the rest too at an error that all of them would make; it is raised.

    What this call prepared and nothing trained in, of the `new` runs, is then taken back.
    """
    from rescue_cli.runs import abandon

    fatal: list[RescueError] = []

    def tell(ended: Any) -> bool:
        if isinstance(ended.error, UsageError | DataError):
            fatal.append(ended.error)
            return False
        return hear(ended) and not fatal

    yield tell
    if fatal:
        for path in new:
            abandon(path)
        raise fatal[0]


def is_done(path: Path, recipe: Recipe, look: "IdentityCache | None" = None) -> bool:
    """Whether the directory holds a result; raises `UsageError` for one of another recipe."""
    from rescue_cli.runs import claim, is_finished

    if not is_finished(path):
        return False
    claim(path, recipe, resume=True, look=look)
    return True


def diverged(path: Path, recipe: Recipe, look: "IdentityCache | None" = None) -> bool:
    """Whether the run ended so; raises `UsageError` for a run of another recipe."""
    from rescue_cli.rundir import RunDirectory, word_of
    from rescue_cli.runs import claim

    word = word_of(RunDirectory(path))
    if word is None or word.exit_code != DivergedError.exit_code:
        return False
    claim(path, recipe, resume=True, look=look)
    return True


def note_machine(recipes: Iterable[Recipe], device: str) -> None:
    """Says what an emulated precision costs, and what nobody typed of the allocator.

    Raises `UsageError` for a precision that is not there.
    """
    warnings = [w for recipe in recipes for w in common.check_precision(recipe, device)]
    for warning in dict.fromkeys(warnings):
        common.note(f"warning: {warning}")
    for line in common.allocator_notes():
        common.note(line)


def train_here(
    path: Path,
    recipe: Recipe,
    device: str,
    procs: int | None,
    workers: int | None,
    folder: Path | None = None,
) -> bool:
    """Trains, or goes on, or leaves what is there; whether it diverged, which is no error here.

    `folder` is the verb's --out, the one above `path` by default.
    """
    from rescue_cli.runs import Nodes, abandon, run_directory

    folder = folder or path.parent
    if is_done(path, recipe):
        return False
    if diverged(path, recipe):
        common.note(f"{path}: diverged before")
        return True
    common.note(f"{path}: {recipe.train.epochs:g} epochs, seed {recipe.train.seed}")
    new = _prepare(path, recipe, device, procs, workers, folder / ".cache", 1)
    try:
        run_directory(path, procs, 0, Nodes())
    except (UsageError, DataError):
        if new:
            abandon(path)
        raise
    except DivergedError as error:
        observed, _, _ = str(error).partition(" Lower optim.lr")  # here it is a result
        common.note(f"diverged: {observed}")
        return True
    except StoppedError as error:
        raise StoppedError(
            f"stopped in {path.name}; what was trained is saved. "
            f"The same command with --out {folder} goes on.",
            error.exit_code,
        ) from None
    return False


def _prepare(
    path: Path,
    recipe: Recipe,
    device: str,
    procs: int | None,
    workers: int | None,
    cache: Path,
    share: int,
    look: "IdentityCache | None" = None,
) -> bool:
    """Whether the run is new; raises `UsageError` for processes that cannot share its steps."""
    from rescue_cli.build.expand import count_processes
    from rescue_cli.runs import environment, prepare, shared

    asked, option = shared(procs)
    procs = count_processes(recipe.train.micro_batches, asked, 1, option=option)
    facts = environment(
        recipe,
        verb="train",
        device=device,
        procs=procs,
        workers=workers,
        cache=cache,
        share=share,
    )
    return prepare(path, recipe, facts, resume=True, look=look)
