"""Folders of small images, decoded once and kept as one array."""

import contextlib
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from rescue_cli.data.decode import UNREADABLE, Interpolation, centre_crop, pil_image
from rescue_cli.data.splits import Dataset, Files, Images, Pixels, Split
from rescue_cli.errors import DataError


def make_resident(
    dataset: Dataset, size: int, interpolation: Interpolation, cache: Path
) -> Dataset:
    """The data set with every split in memory as size x size pixels, from `cache` where it can."""
    tests: dict[str, Split] = {
        k: _images(split, size, interpolation, cache) for k, split in dataset.tests.items()
    }
    return replace(dataset, train=_images(dataset.train, size, interpolation, cache), tests=tests)


def _images(split: Split, size: int, interpolation: Interpolation, cache: Path) -> Images:
    if isinstance(split, Images):
        return split
    file = cache / f"{_key(split, size, interpolation)}.npy"
    pixels = _read(file, (len(split), 3, size, size))
    if pixels is None:
        pixels = _decode(split, size, interpolation)
        _write(file, pixels)
    return Images(pixels, split.labels)


def _key(split: Files, size: int, interpolation: Interpolation) -> str:
    """A digest of names, lengths and times, so that a changed folder is decoded anew."""
    digest = hashlib.sha256(f"{size} {interpolation}\n".encode())
    for index in range(len(split)):
        path = split.names.path(index)
        stat = path.stat()
        digest.update(os.fsencode(path) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]


def _decode(split: Files, size: int, interpolation: Interpolation) -> Pixels:
    def one(index: int) -> Pixels:
        path = split.names.path(index)
        try:
            image = pil_image(path.read_bytes())
        except UNREADABLE as error:
            raise DataError(f"{path}: cannot be decoded: {error}. Repair or remove it.") from None
        decoded: Pixels = centre_crop(image, size, 1.0, interpolation).numpy()
        return decoded

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL decodes without the interpreter's lock
        return np.stack(list(pool.map(one, range(len(split)), chunksize=256)))


def _read(file: Path, shape: tuple[int, ...]) -> Pixels | None:
    """The cached pixels; None where there are none that can be used."""
    try:
        pixels: Pixels = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _write(file: Path, pixels: Pixels) -> None:
    """Writes the cache whole or not at all; a cache that cannot be written is only slower."""
    partial = file.with_suffix(f".{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as target:
            np.save(target, pixels)
        os.replace(partial, file)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
