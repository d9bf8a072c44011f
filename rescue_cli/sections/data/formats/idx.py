"""IDX files, plain or gzipped: the format of MNIST and Fashion-MNIST."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.sections.data import archives
from rescue_cli.sections.data.location import Location
from rescue_cli.sections.data.splits import Dataset, Images, Pixels


def read_idx(location: Location, kind: str, classes: tuple[str, ...]) -> Dataset:
    """Reads training and test images from `data.root`, where missing files are downloaded.

    `kind` is torchvision's class, whose URLs and checksums are used. Raises `DataError`.
    """
    train, test = (_read_split(location, kind, split) for split in ("train", "t10k"))
    return Dataset(train, {"test": test}, classes)


def _read_split(location: Location, kind: str, split: str) -> Images:
    pixels = _read_file(location, kind, f"{split}-images-idx3-ubyte", rank=3)
    labels = _read_file(location, kind, f"{split}-labels-idx1-ubyte", rank=1).astype(np.int64)
    if len(pixels) != len(labels):
        raise DataError(
            f"{location.root}: {len(pixels)} images and {len(labels)} labels in its {split} files. "
            "Download them again."
        )
    return Images(pixels[:, None], labels)


def _read_file(location: Location, kind: str, name: str, *, rank: int) -> Pixels:
    """Reads an IDX file of bytes: the magic number (0, 0, 8, rank), the sizes, the values."""
    folders = ("", "raw", f"{kind}/raw", kind)
    files = [location.root / b / f"{name}{ending}" for b in folders for ending in ("", ".gz")]
    file = next((f for f in files if f.is_file()), None) or _download(location, kind, name)
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if data[:4] != bytes((0, 0, 8, rank)):
            raise ValueError(f"it does not begin with 0, 0, 8, {rank}")
        shape = np.frombuffer(data, ">i4", count=rank, offset=4)
        values: Pixels = np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (ValueError, IndexError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file}: not an IDX file of bytes: {error}") from None
    return values


def _download(location: Location, kind: str, name: str) -> Path:
    import torchvision.datasets

    reader = getattr(torchvision.datasets, kind)
    md5 = dict(reader.resources)
    file = f"{name}.gz"
    return archives.download_once(f"{reader.mirrors[-1]}{file}", location.root / file, md5[file])
