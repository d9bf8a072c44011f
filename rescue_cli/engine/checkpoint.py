"""The state of a run in one file that cannot run code when it is read."""

import pickle
from pathlib import Path
from typing import Any

import torch

from rescue_cli.errors import DataError
from rescue_cli.rundir import write_atomically

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes the state whole or not at all; raises `RescueError` (a full disk)."""
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """The state in `path`; raises `DataError` for what is not a checkpoint, unexecuted."""
    cure = "Delete it and start again, or put a copy of it there."
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: not a checkpoint that can be read safely: {reason} {cure}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path}: not a checkpoint of format {FORMAT}. {cure}")
    return state
