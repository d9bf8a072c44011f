"""IDX files, plain or gzipped: MNIST's format, and Fashion-MNIST's."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.sections.data import archives
from rescue_cli.sections.data.location import Location
from rescue_cli.sections.data.splits import Dataset, Images, Pixels


def read_idx(place: Location, kind: str, classes: tuple[str, ...]) -> Dataset:
    """Training and test images, at `data.root` or below, or fetched as torchvision's `kind` says.

    Raises `DataError`.
    """
    train, test = (_read_split(place, kind, split) for split in ("train", "t10k"))
    return Dataset(train, {"test": test}, classes)


def _read_split(place: Location, kind: str, split: str) -> Images:
    pixels = _read_file(place, kind, f"{split}-images-idx3-ubyte", rank=3)
    labels = _read_file(place, kind, f"{split}-labels-idx1-ubyte", rank=1).astype(np.int64)
    if len(pixels) != len(labels):
        raise DataError(
            f"{place.root}: {len(pixels)} images and {len(labels)} labels in its {split} files. "
            "Fetch them again."
        )
    return Images(pixels[:, None], labels)


def _read_file(place: Location, kind: str, name: str, *, rank: int) -> Pixels:
    """An IDX file of bytes: a magic number (0, 0, 8, rank), the sizes, the values."""
    below = ("", "raw", f"{kind}/raw", kind)
    files = [place.root / b / f"{name}{ending}" for b in below for ending in ("", ".gz")]
    file = next((f for f in files if f.is_file()), None) or _download(place, kind, name)
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if data[:4] != bytes((0, 0, 8, rank)):
            raise ValueError(f"it does not begin with 0, 0, 8, {rank}")
        shape = np.frombuffer(data, ">i4", count=rank, offset=4)
        values: Pixels = np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (ValueError, IndexError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file}: not an IDX file of bytes: {error}") from None
    return values


def _download(place: Location, kind: str, name: str) -> Path:
    import torchvision.datasets

    reader = getattr(torchvision.datasets, kind)
    md5 = dict(reader.resources)
    file = f"{name}.gz"
    return archives.download_once(f"{reader.mirrors[-1]}{file}", place.root / file, md5[file])
