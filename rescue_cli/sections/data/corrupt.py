"""Images that cannot be decoded: another is drawn and the file named; too many are an error."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.rng import words
from rescue_cli.sections.data.decode import UNREADABLE, describe_error

REDRAWS = 20
Image = TypeVar("Image")


def read_or_replace(
    index: int,
    images: int,
    seed: int,
    read: Callable[[int], Image],
    path: Callable[[int], Path],
    broken: list[tuple[str, str]],
) -> tuple[int, Image | None]:
    """The image, or where it cannot be decoded another one drawn for it; None: all are corrupt.

    Adds the files that could not be decoded, with the reasons, to `broken`.
    """
    for attempt in range(REDRAWS):
        try:
            return index, read(index)
        except UNREADABLE as error:
            broken.append((str(path(index)), describe_error(error)))
        (word,) = words(seed, "redraw", index, attempt, 1)
        index = int(word % np.uint64(images))
    return index, None


def all_corrupt_error(broken: list[tuple[str, str]]) -> DataError:
    """Of an image and of all that were drawn in its place."""
    return DataError(
        f"{broken[-REDRAWS][0]}: corrupt, and so are the {REDRAWS - 1} images drawn in its place. "
        "Repair or remove them."
    )


def corrupt_test_image_error(path: str, reason: str) -> DataError:
    """Of a test image."""
    return DataError(
        f"{path}: cannot be decoded: {reason}. A test image is never replaced: "
        "repair the file, or remove it and say so."
    )


def record_corrupt(
    files: list[str],
    found: Iterable[tuple[str, str]],
    most: int,
    log: Callable[[str], None],
) -> None:
    """Adds the (file, reason) pairs that are new to `files`, naming each in the log.

    Raises `DataError` with the list where there are more than `most`.
    """
    for path, reason in found:
        if path not in files:
            files.append(path)
            log(f"corrupt image replaced by another: {path}: {reason}")
    if len(files) > most:
        listed = "\n  ".join(files)
        raise DataError(
            f"data.max_corrupt: {len(files)} images are corrupt, more than {most}. "
            f"Repair or remove them, or raise the number:\n  {listed}"
        )
