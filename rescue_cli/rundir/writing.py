"""Writes files atomically."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from rescue_cli.errors import RescueError
from rescue_cli.rundir.paths import RunDirectory
from rescue_cli.rundir.reading import FailureRecord


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file under a temporary name, flushes it to disk, and renames it.

    Readers of `path` see the old file or the new one. Raises `RescueError` where the disk is full
    or the folder is not writable; the old file is then intact.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        kept = " The previous file is intact." if path.exists() else ""
        reason = " ".join(str(error).split("\n")[0].split())
        raise RescueError(
            f"{path}: could not be written ({reason}).{kept} Free space and resume."
        ) from None


def remove_partial_files(folder: Path) -> None:
    """Removes temporary files of processes that were killed while writing.

    Those of this process are kept: it overwrites them itself.
    """
    for partial in folder.rglob(".*.partial"):
        if not partial.name.endswith(f".{os.getpid()}.partial"):
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_failure(run: RunDirectory, record: FailureRecord) -> None:
    """Writes how the run failed, unless another process already has."""
    try:
        with run.failure.open("x") as file:
            json.dump(asdict(record), file)
    except FileExistsError:
        pass
    except OSError:
        run.failure.unlink(missing_ok=True)  # better no record than half of one
