"""Corrupt images: a training image is replaced by another and logged; too many are an error."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.formatting import format_count
from rescue_cli.rng import random_words
from rescue_cli.sections.data.decode import UNREADABLE, describe_error

REDRAWS = 20
TEST_IMAGE = "Images of a test or held-out set are never replaced"
OF_FEATURES = "Training images whose features are computed are never replaced"
Image = TypeVar("Image")


def read_or_replace(
    index: int,
    images: int,
    seed: int,
    read: Callable[[int], Image],
    place: Callable[[int], str],
    broken: list[tuple[str, str]],
) -> tuple[int, Image | None]:
    """(index, image) of the image, or of another drawn in its place where it cannot be decoded.

    The image is None where all of them are corrupt. Appends (file, reason) of each to `broken`.
    """
    for attempt in range(REDRAWS):
        try:
            return index, read(index)
        except UNREADABLE as error:
            broken.append((place(index), describe_error(error)))
        (word,) = random_words(seed, "redraw", index, attempt, 1)
        index = int(word % np.uint64(images))
    return index, None


def all_corrupt_error(broken: list[tuple[str, str]]) -> DataError:
    """The error for an image that is corrupt like all that were drawn in its place."""
    return DataError(
        f"{broken[-REDRAWS][0]}: corrupt, as are the {REDRAWS - 1} images drawn in its place. "
        "Repair or remove them."
    )


def corrupt_images_error(
    broken: Sequence[tuple[str, str]], why: str, *, whole: bool = True
) -> DataError:
    """The error for (file, reason) of images in whose place no other is drawn; `why` says so.

    `whole`: whether all images were looked at.
    """
    if whole and len(broken) == 1:
        ((place, reason),) = broken
        return DataError(f"{place}: cannot be decoded: {reason}. {why}: repair or remove the file.")
    listed = "".join(f"\n  {place}: {reason}" for place, reason in broken)
    count = f"{'' if whole else 'at least '}{format_count(len(broken), 'image')}"
    return DataError(f"{count} cannot be decoded. {why}: repair or remove the files:{listed}")


def record_corrupt(
    files: list[str],
    new: Iterable[tuple[str, str]],
    limit: int,
    log: Callable[[str], None],
) -> None:
    """Adds new (file, reason) pairs to `files` and logs each.

    Raises `DataError` with the list where there are more than `limit`.
    """
    for path, reason in new:
        if path not in files:
            files.append(path)
            log(f"corrupt image replaced: {path}: {reason}")
    if len(files) > limit:
        listed = "\n  ".join(files)
        raise DataError(
            f"data.max_corrupt: {len(files)} images are corrupt, more than {limit}. "
            f"Repair or remove them, or raise the number:\n  {listed}"
        )
