"""The state of a run in one file, which cannot execute code when it is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rescue_cli.errors import DataError, is_out_of_memory
from rescue_cli.recipe.own import passed_own_code
from rescue_cli.rundir import write_atomically

FORMAT = 1
CURE = "Delete it and start again, or replace it by a copy."


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes the state atomically; raises `RescueError`, as where the disk is full."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """The state in `path`; raises `DataError` where that is not a checkpoint."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what torch raises for a broken file has no common base
        raise DataError(
            f"{path}: not a checkpoint that can be loaded safely: {_reason(error)}. {CURE}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path}: not a checkpoint of format {FORMAT}. {CURE}")
    return state


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Raises `DataError` where the body finds that the state in `path` is not of this run.

    It is not the file's fault where memory runs out, or code of the user's own fails.
    """
    try:
        yield
    except Exception as error:  # wrong types raise anything
        if is_out_of_memory(error) or passed_own_code(error):
            raise
        raise DataError(f"{path}: does not fit this run: {_reason(error)}. {CURE}") from None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
