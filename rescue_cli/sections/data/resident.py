"""Folders of small images, decoded once and kept in memory as one array."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError, RescueError
from rescue_cli.recipe.sections import Interpolation
from rescue_cli.rng import random_words
from rescue_cli.rundir import write_atomically
from rescue_cli.sections.data.corrupt import TEST_IMAGE, corrupt_images_error
from rescue_cli.sections.data.decode import (
    DEFAULT_READING,
    UNREADABLE,
    centre_crop,
    describe_error,
)
from rescue_cli.sections.data.first_process import lock_first
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.samples import read_file
from rescue_cli.sections.data.splits import SPLIT_SEED, Dataset, Files, Images, Pixels, Split

REDRAWS = 1000


def make_resident(
    dataset: Dataset,
    size: int,
    interpolation: Interpolation,
    cache: Path,
    reading: Reading = DEFAULT_READING,
) -> Dataset:
    """The data set with every split in memory as size x size pixels, read from `cache` if possible.

    A corrupt training image is replaced by another and named in `Images.corrupt`; a corrupt test
    image raises `DataError`.
    """
    tests: dict[str, Split] = {
        k: _images(split, size, interpolation, reading, cache) for k, split in dataset.tests.items()
    }
    train = _images(dataset.train, size, interpolation, reading, cache, replacing=True)
    return replace(dataset, train=train, tests=tests)


def _images(
    split: Split,
    size: int,
    interpolation: Interpolation,
    reading: Reading,
    cache: Path,
    *,
    replacing: bool = False,
) -> Images:
    if isinstance(split, Images):
        return split
    file = cache / f"{_key(split, size, interpolation, reading)}.npy"
    shape = (len(split), 3, size, size)

    def decode() -> Images:
        images = _decode(split, size, interpolation, reading, replacing)
        if not images.corrupt:
            with contextlib.suppress(RescueError):  # without it the next run is only slower
                write_atomically(file, lambda target: np.save(target, images.pixels))
        return images

    pixels = _read(file, shape)
    if pixels is None:
        # Processes of one run, and runs that start together, need the same images: one decodes
        with lock_first(file.with_suffix(".lock")) as first:
            pixels = _read(file, shape)
            if pixels is None and first:
                return decode()
    # None where the first has failed; the others then decode at the same time
    return decode() if pixels is None else Images(pixels, split.labels, files=split)


def _key(split: Files, size: int, interpolation: Interpolation, reading: Reading) -> str:
    """A digest of file names, sizes and times, so that a changed folder is decoded again."""
    digest = hashlib.sha256(f"{size} {interpolation} {reading}\n".encode())
    for stamp in split.names.stamps():
        digest.update(os.fsencode(f"{stamp}\n"))
    return digest.hexdigest()[:32]


def _decode(
    split: Files, size: int, interpolation: Interpolation, reading: Reading, replacing: bool
) -> Images:
    def decode(index: int) -> Pixels | tuple[str, str]:
        try:
            image = read_file(split, index, "pil", reading)
        except UNREADABLE as error:
            return split.names.place(index), describe_error(error)
        pixels: Pixels = centre_crop(image, size, 1.0, interpolation).numpy()
        return pixels

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes without the interpreter's lock
        decoded = list(pool.map(decode, range(len(split)), chunksize=256))
    corrupt = tuple(entry for entry in decoded if isinstance(entry, tuple))
    if corrupt and not replacing:
        raise corrupt_images_error(corrupt, TEST_IMAGE)
    used = np.array([_readable(decoded, index) for index in range(len(decoded))], dtype=np.int64)
    pixels = np.array([decoded[i] for i in used], np.uint8).reshape(-1, 3, size, size)
    return Images(pixels, split.labels[used], corrupt, split)


def _readable(decoded: Sequence[Pixels | tuple[str, str]], index: int) -> int:
    """The index itself, or that of another image drawn for it where its own is corrupt."""
    attempt = 0
    while isinstance(decoded[index], tuple):
        if attempt == REDRAWS:
            raise DataError(f"{decoded[index][0]}: corrupt, and so are those drawn in its place.")
        (word,) = random_words(SPLIT_SEED, "redraw", index, attempt, 1)
        index, attempt = int(word % np.uint64(len(decoded))), attempt + 1
    return index


def _read(file: Path, shape: tuple[int, ...]) -> Pixels | None:
    """The cached pixels; None where there is no usable cache."""
    try:
        pixels: Pixels = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None
