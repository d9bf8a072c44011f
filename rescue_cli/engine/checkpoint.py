"""The state of a run in one file, which cannot execute code when it is loaded."""

import pickle
from pathlib import Path
from typing import Any

import torch

from rescue_cli.errors import DataError
from rescue_cli.rundir import write_atomically

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes the state atomically; raises `RescueError`, as where the disk is full."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """The state in `path`; raises `DataError` where that is not a checkpoint."""
    cure = "Delete it and start again, or replace it by a copy."
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: not a checkpoint that can be loaded safely: {reason} {cure}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path}: not a checkpoint of format {FORMAT}. {cure}")
    return state
