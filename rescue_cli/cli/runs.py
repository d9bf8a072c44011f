"""A run within a verb that makes several: begun, taken up, or found finished."""

from pathlib import Path

from rescue_cli.cli import common
from rescue_cli.errors import DivergedError
from rescue_cli.recipe import Recipe


def train_here(
    path: Path, recipe: Recipe, device: str, procs: int | None, workers: int | None
) -> bool:
    """Trains, or goes on, or leaves what is there; whether it diverged, which is no error here."""
    from rescue_cli.launch import Nodes, environment, is_finished, prepare, run_directory

    if is_finished(path):
        return False
    common.note(f"{path}: {recipe.train.epochs:g} epochs, seed {recipe.train.seed}")
    facts = environment(
        recipe,
        verb="train",
        device=device,
        procs=procs or 1,
        workers=workers,
        cache=path.parent / ".cache",
    )
    prepare(path, recipe, facts, resume=True)
    try:
        run_directory(path, procs, 0, Nodes())
    except DivergedError as error:
        common.note(f"diverged: {error}")
        return True
    return False
