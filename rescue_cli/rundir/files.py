"""The paths of a run directory's files, and how they are written."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rescue_cli.errors import RescueError, from_code

CROSS_VALIDATED = "train-cross-validated"  # the table of training images, fitted without them


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run's files."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def command(self) -> Path:
        return self.path / "command.txt"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def listing(self) -> Path:
        return self.path / "data.npz"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def profile(self) -> Path:
        return self.path / "profile.json.gz"

    @property
    def finished(self) -> bool:
        """Whether the run has a result."""
        return os.path.isfile(self.result)  # False, too, of a name that is too long for a file

    @property
    def profile_table(self) -> Path:
        return self.path / "profile.txt"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def epoch(self) -> Path:
        """The epoch that a run at work has reached, for the progress of a command of many runs."""
        return self.path / ".epoch"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def samples(self) -> Path:
        return self.path / "samples.npz"

    @property
    def examples(self) -> Path:
        return self.path / "examples.npz"

    def snapshot(self, step: int) -> Path:
        return self.path / "snapshots" / f"{step}.pt"

    def predictions(self, name: str) -> Path:
        return self.path / "predictions" / f"{name}.npz"

    def image_table(self, name: str) -> Path:
        """What was predicted for each image, one line each."""
        return self.predictions(name).with_suffix(".csv")

    def class_table(self, name: str) -> Path:
        """The accuracy of each class."""
        return self.predictions(f"{name}-classes").with_suffix(".csv")


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
    except RescueError:  # of what `write` reads
        partial.unlink(missing_ok=True)
        raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        kept = " The previous file is intact." if path.exists() else ""
        number, said = getattr(error, "errno", None), getattr(error, "strerror", None)
        reason = " ".join((said or str(error)).split("\n")[0].split())
        cure = "Free space and resume."
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            cure = "Make its folder writable, or use another."
        raise RescueError(f"{path}: could not be written ({reason}).{kept} {cure}") from None


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


@dataclass(frozen=True)
class FailureRecord:
    """The failure that ended a process, as `failure.json` records it."""

    rank: int
    exit_code: int
    message: str

    @property
    def error(self) -> RescueError:
        return from_code(self.message, self.exit_code)

    @property
    def reason(self) -> str:
        """The message in a line: its first, of a traceback the last."""
        lines = self.message.strip().split("\n")
        return lines[-1] if lines[0].startswith("Traceback ") else lines[0]


def write_failure(run: RunDirectory, record: FailureRecord) -> None:
    """Writes how the run failed, unless another process already has; on a full disk to stderr."""
    try:
        with run.failure.open("x") as file:
            json.dump(asdict(record), file)
    except FileExistsError:
        pass
    except OSError:
        run.failure.unlink(missing_ok=True)  # better no record than half of one
        print(f"rank {record.rank}: {record.message}", file=sys.stderr, flush=True)
