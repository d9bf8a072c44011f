"""The data sets that recipes can name: each finds its files and returns a `Dataset`."""

import gzip
import io
import lzma
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.data import archives, folders
from rescue_cli.data.imagenet import imagenet_words, real_answers
from rescue_cli.data.masks import ade20k, mask_folder
from rescue_cli.data.place import Place, Unknown
from rescue_cli.data.splits import Dataset, FileNames, Files, Images, Pixels, known_alone
from rescue_cli.data.transfer_sets import (
    flowers102,
    food101,
    inaturalist2019,
    oxford_pets,
    stanford_cars,
)
from rescue_cli.data.voc import pascal_voc, voc_folder
from rescue_cli.errors import DataError, UsageError

FASHION: tuple[str, ...] = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
)
FASHION += ("Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PLACES = 365
IMAGENETTE: tuple[str, ...] = (
    "n01440764",
    "n02102040",
    "n02979186",
    "n03000684",
    "n03028079",
    "n03394916",
)
IMAGENETTE += ("n03417042", "n03425413", "n03445777", "n03888257")


def fashion_mini(_place: Place) -> Dataset:
    """Fashion-MNIST's first 600 training and 100 test images of each class, in this package."""
    file = Path(__file__).parent / "files" / "fashion-mini.npz.xz"
    arrays = np.load(io.BytesIO(lzma.decompress(file.read_bytes())))
    train, test = (
        Images(arrays[f"{split}_images"][:, None], arrays[f"{split}_labels"].astype(np.int64))
        for split in ("train", "test")
    )
    return Dataset(train, {"test": test}, FASHION)


def fashion_mnist(place: Place) -> Dataset:
    """Fashion-MNIST: IDX files, plain or gzipped, at `data.root` or fetched there."""
    return _idx_dataset(place, "FashionMNIST", FASHION)


def mnist(place: Place) -> Dataset:
    """MNIST: IDX files, plain or gzipped, at `data.root` or fetched there."""
    return _idx_dataset(place, "MNIST", tuple(str(digit) for digit in range(10)))


def cifar10(place: Place) -> Dataset:
    """CIFAR-10: the Python version, its archive, or class folders `train/` and `test/`."""
    if not place.one_root or (place.root / "train").is_dir():
        return _class_folders(
            place, {name: i for i, name in enumerate(CIFAR10)}, CIFAR10, ("test",)
        )
    return _cifar(place, "CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz")


def cifar100(place: Place) -> Dataset:
    """CIFAR-100: the Python version or its archive."""
    return _cifar(place, "CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz")


def imagenette(place: Place) -> Dataset:
    """Imagenette: its folders `train/` and `val/`, or the 160 px archive fetched to `data.root`."""
    if place.one_root and not (place.root / "train").is_dir():
        from torchvision.datasets import Imagenette

        url, md5 = Imagenette._ARCHIVES["160px"]
        inside = place.root / Path(url).stem
        if not inside.is_dir():
            archives.unpack(archives.fetch(url, place.root / Path(url).name, md5), place.root)
        place = place.at(inside)
    words = imagenet_words()
    return _class_folders(
        place,
        {w: i for i, w in enumerate(IMAGENETTE)},
        tuple(words[w] for w in IMAGENETTE),
        ("val",),
    )


def imagenet(place: Place) -> Dataset:
    """ImageNet-1k: folders by WordNet id; the label is the place among the 1,000 sorted ids.

    Class folders may be missing. A flat validation folder needs its label file; folders named
    0 to 999 (ImageNet-V2) are labels themselves. `real` is `val` by ImageNet-ReaL's labels.
    """
    if "real" in place.extra_sets:
        raise UsageError(
            "data.sets.real: real is val by other labels, and needs no folder. Remove the key."
        )
    words = imagenet_words()
    labels = {wnid: i for i, wnid in enumerate(sorted(words))}
    names = tuple(words[w] for w in sorted(words))
    dataset = _class_folders(place, labels, names, ("val",), complete=False)
    return replace(dataset, relabelled={"real": real_answers})


def folder(place: Place) -> Dataset:
    """Class folders of one's own; the classes are the training folders' names in order.

    In an evaluation those that the weights know, where a folder is called as one of them.
    """
    if place.test_only and not (place.has_train_root and place.train_root.is_dir()):
        (root,) = place.test_root(("val", "test")).values()
    else:
        root = place.train_root
    classes = folders.class_folders(root)
    if any(name in place.classes for name in classes):
        classes = list(place.classes)
    return _class_folders(
        place, {n: i for i, n in enumerate(classes)}, tuple(classes), ("val", "test")
    )


def places365(place: Place) -> Dataset:
    """Places365 (standard): class folders `train/` and `val/` of 365 scenes."""
    dataset = folder(place)
    if len(dataset.classes) != PLACES:
        raise DataError(
            f"{place.train_root}: {len(dataset.classes)} class folders; Places365 has {PLACES}. "
            "Unpack places365standard_easyformat there."
        )
    return dataset


DATASETS = {
    "fashion-mini": fashion_mini,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "imagenette": imagenette,
    "imagenet": imagenet,
    "places365": places365,
    "flowers102": flowers102,
    "stanford-cars": stanford_cars,
    "food101": food101,
    "oxford-pets": oxford_pets,
    "inaturalist2019": inaturalist2019,
    "folder": folder,
    "pascal-voc": pascal_voc,
    "voc-folder": voc_folder,
    "ade20k": ade20k,
    "mask-folder": mask_folder,
}


def _class_folders(
    place: Place,
    labels: dict[str, int],
    classes: tuple[str, ...],
    test_names: tuple[str, ...],
    *,
    complete: bool = True,
) -> Dataset:
    _check_classes(place, labels)
    if place.test_only:
        train = Files(FileNames.of(Path(), []), np.zeros(0, dtype=np.int64))
    else:
        every = complete and not place.classes  # of which an evaluation's weights may know more
        train = folders.read(place.train_root, labels, complete=every)
    roots = {**place.test_root(test_names), **place.extra_sets}
    unknown = place.keys.unknown_classes
    read = {name: _test_split(root, labels, unknown) for name, root in roots.items()}
    tests: dict[str, Any] = {}
    notes: list[str] = []
    for name, files in read.items():
        tests[name], said = known_alone(name, files)
        notes += said
    return Dataset(train, tests, classes, notes=tuple(notes))


def _check_classes(place: Place, labels: dict[str, int]) -> None:
    """Raises `DataError` for training folders that are all of another data set."""
    if place.test_only or not place.train_root.is_dir():
        return
    present = folders.class_folders(place.train_root)
    if not any(name in labels for name in present):
        raise DataError(
            f"{place.train_root}: none of its folders is a class of {place.name} ({present[0]} is "
            "not). For classes of your own: data.name=folder."
        )


def _test_split(root: Path, labels: dict[str, int], unknown: Unknown) -> Files:
    if folders.is_flat(root):
        return folders.read_flat(root, labels, unknown)
    names = folders.class_folders(root)
    numbered = {str(i): i for i in range(len(labels))}
    by_number = not any(n in labels for n in names) and all(n in numbered for n in names)
    known = numbered if by_number else labels
    return folders.read(root, known, complete=False, test=True, unknown=unknown)


def _cifar(place: Place, kind: str, folder_name: str, archive_name: str) -> Dataset:
    import torchvision.datasets

    reader = getattr(torchvision.datasets, kind)
    root = place.root.parent if place.root.name == folder_name else place.root
    if not (root / folder_name).is_dir():
        archive = archives.fetch(reader.url, root / archive_name, reader.tgz_md5)
        archives.unpack(archive, root)
    try:  # checks every file's md5 before unpickling it
        splits = {train: reader(str(root), train=train) for train in (True, False)}
    except RuntimeError as error:
        raise DataError(
            f"{root / folder_name}: {error}. Delete the folder to unpack it anew."
        ) from None
    train, test = (
        Images(
            np.ascontiguousarray(s.data.transpose(0, 3, 1, 2)), np.array(s.targets, dtype=np.int64)
        )
        for s in (splits[True], splits[False])
    )
    return Dataset(train, {"test": test}, tuple(splits[True].classes))


def _idx_dataset(place: Place, kind: str, classes: tuple[str, ...]) -> Dataset:
    train, test = (_idx_split(place, kind, split) for split in ("train", "t10k"))
    return Dataset(train, {"test": test}, classes)


def _idx_split(place: Place, kind: str, split: str) -> Images:
    pixels = _idx(place, kind, f"{split}-images-idx3-ubyte", rank=3)
    labels = _idx(place, kind, f"{split}-labels-idx1-ubyte", rank=1).astype(np.int64)
    if len(pixels) != len(labels):
        raise DataError(
            f"{place.root}: {len(pixels)} images and {len(labels)} labels in its {split} files. "
            "Fetch them again."
        )
    return Images(pixels[:, None], labels)


def _idx(place: Place, kind: str, name: str, *, rank: int) -> Pixels:
    """An IDX file of bytes: a magic number (0, 0, 8, rank), the sizes, the values."""
    below = ("", "raw", f"{kind}/raw", kind)
    files = [place.root / b / f"{name}{ending}" for b in below for ending in ("", ".gz")]
    file = next((f for f in files if f.is_file()), None) or _fetch_idx(place, kind, name)
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        if data[:4] != bytes((0, 0, 8, rank)):
            raise ValueError(f"it does not begin with 0, 0, 8, {rank}")
        shape = np.frombuffer(data, ">i4", count=rank, offset=4)
        values: Pixels = np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (ValueError, IndexError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file}: not an IDX file of bytes: {error}") from None
    return values


def _fetch_idx(place: Place, kind: str, name: str) -> Path:
    import torchvision.datasets

    reader = getattr(torchvision.datasets, kind)
    md5 = dict(reader.resources)
    file = f"{name}.gz"
    return archives.fetch(f"{reader.mirrors[-1]}{file}", place.root / file, md5[file])
