"""Every way a run can end badly, each with the exit code that the command returns."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

# Schemes of URLs that images may come from, and the package that reads them with fsspec
STORES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}
# What torch, cuDNN, cuBLAS and the host's allocator say where no memory is left
NO_MEMORY = ("out of memory", "_STATUS_ALLOC_FAILED", "can't allocate memory")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_STORE = re.compile(rf"({'|'.join(STORES)})://")
_OF_IMAGES = re.compile(r"--to|data\.(root|train_root|test_root|sets\..*)")


class RescueError(Exception):
    """A failure with a message for the user: the key, its value, what is wrong, how to fix it."""

    exit_code = 1


class UsageError(RescueError):
    """The command line or the recipe is wrong; nothing was started."""

    exit_code = 2


class InUseError(UsageError):
    """Another process is using the run directory; its files belong to that process."""

    def __init__(self, run: object) -> None:
        super().__init__(f"{run}: another run is using this directory. Wait, or use another --out.")


class DataError(RescueError):
    """A data set, an image or a weights file cannot be used."""

    exit_code = 3


class DivergedError(RescueError):
    """The loss or the weights are no longer finite."""

    exit_code = 4


class MemoryExhausted(RescueError):
    """The device has too little memory for a micro-batch."""

    exit_code = 5


class UnexpectedError(RescueError):
    """`--check-expected` was given, and the result is outside the band that its recipe expects."""

    exit_code = 6


class StoppedError(RescueError):
    """A signal ended the run; its checkpoint is saved unless the message says otherwise."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


BY_CODE: dict[int, type[RescueError]] = {
    error.exit_code: error
    for error in (
        RescueError,
        UsageError,
        DataError,
        DivergedError,
        MemoryExhausted,
        UnexpectedError,
    )
}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory or the machine's was exhausted."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in NO_MEMORY)


def from_code(message: str, exit_code: int) -> RescueError:
    """The error with this exit code, for example that of another process."""
    if exit_code in BY_CODE:
        return BY_CODE[exit_code](message)
    return StoppedError(message, exit_code)


def near_path(path: Path, *, folders: bool = False) -> str:
    """` Did you mean DIR/NAME?` of the nearest name beside a path that is not there, or ``."""
    try:
        beside = [each.name for each in path.parent.iterdir() if each.is_dir() or not folders]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, beside, n=1)
    return f" Did you mean {path.parent / near[0]}?" if near else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that names the nearest known word, the first of several; else all of them.

    Capital letters are as good as small ones.
    """
    words = sorted(set(known))
    small = [each.lower() for each in words]

    def distance(name: str) -> tuple[float, str]:
        return -difflib.SequenceMatcher(None, name.lower(), word.lower()).ratio(), name

    if near := difflib.get_close_matches(word.lower(), small, n=len(words) or 1):
        return f"Did you mean '{min((w for w in words if w.lower() in near), key=distance)}'?"
    return f"Known: {', '.join(words)}." if words else ""


def refuse_url(key: str, value: str) -> None:
    """Raises `UsageError` for a URL in place of a file or folder.

    As a path it would be a local file with that odd name. Shards of images may lie elsewhere.
    """
    if not _URL.match(value) or (_OF_IMAGES.fullmatch(key) and _STORE.match(value)):
        return
    rule = "only local files can be read"
    cure = "Mount it or copy it, and give the path on this machine."
    if value.startswith("file:///"):
        cure = f"Give the path {value[7:]}."
    elif _OF_IMAGES.fullmatch(key):
        rule = f"images are read from local files, or from {', '.join(STORES)}"
    raise UsageError(f"{key}: {value} is a URL; {rule}. {cure}")
