"""Runs within a verb that makes several: begun, taken up, or found finished."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli.cli import common
from rescue_cli.errors import DataError, DivergedError, RescueError, UsageError
from rescue_cli.recipe import Recipe


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

    gpus = list(range(torch.cuda.device_count())) if device == "cuda" else []
    at_once = max(1, len(gpus)) if jobs is None else jobs
    if at_once < 1 or (gpus and at_once > len(gpus)):
        raise UsageError(f"--jobs: {at_once} must be at least 1, and on GPUs at most their number.")
    return Places(device, at_once, gpus, workers)


def train_all(
    recipes: Mapping[Path, Recipe], where: Places, cache: Path, hear: Callable[[Any], bool]
) -> None:
    """Trains every directory's recipe; `hear` is told each end, and False begins no other.

    A run that fails or diverges is told like the others. Raises what all of them would fail of.
    """
    from rescue_cli.launch import Ended, run_all

    for path, recipe in recipes.items():
        _prepare(path, recipe, where.device, 1, where.workers, cache, where.jobs)
    fatal: list[RescueError] = []

    def tell(ended: Ended) -> bool:
        if isinstance(ended.error, UsageError | DataError):
            fatal.append(ended.error)
        return hear(ended) and not fatal

    run_all(list(recipes), where.jobs, where.gpus, tell)
    if fatal:
        raise fatal[0]


def train_here(
    path: Path, recipe: Recipe, device: str, procs: int | None, workers: int | None
) -> bool:
    """Trains, or goes on, or leaves what is there; whether it diverged, which is no error here."""
    from rescue_cli.launch import Nodes, is_finished, run_directory

    if is_finished(path):
        return False
    common.note(f"{path}: {recipe.train.epochs:g} epochs, seed {recipe.train.seed}")
    _prepare(path, recipe, device, procs or 1, workers, path.parent / ".cache", 1)
    try:
        run_directory(path, procs, 0, Nodes())
    except DivergedError as error:
        common.note(f"diverged: {error}")
        return True
    return False


def _prepare(
    path: Path,
    recipe: Recipe,
    device: str,
    procs: int,
    workers: int | None,
    cache: Path,
    share: int,
) -> None:
    from rescue_cli.launch import environment, prepare

    facts = environment(
        recipe,
        verb="train",
        device=device,
        procs=procs,
        workers=workers,
        cache=cache,
        share=share,
    )
    prepare(path, recipe, facts, resume=True)
