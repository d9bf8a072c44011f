"""The data sets that recipes can name: each finds its files and returns a `Dataset`."""

import io
import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe.sections import UnknownClasses
from rescue_cli.sections.data import archives, folders
from rescue_cli.sections.data.coco import coco_boxes, coco_masks
from rescue_cli.sections.data.idx import read_idx
from rescue_cli.sections.data.imagenet import imagenet_words, real_answers
from rescue_cli.sections.data.listing import PassedOver
from rescue_cli.sections.data.location import Place
from rescue_cli.sections.data.masks import ade20k, mask_folder
from rescue_cli.sections.data.splits import (
    Dataset,
    FileNames,
    Files,
    Images,
    known_alone,
    suggested_holdout,
)
from rescue_cli.sections.data.transfer_sets import (
    flowers102,
    food101,
    inaturalist2019,
    oxford_pets,
    stanford_cars,
)
from rescue_cli.sections.data.voc import pascal_voc, voc_folder

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
    return read_idx(place, "FashionMNIST", FASHION)


def mnist(place: Place) -> Dataset:
    """MNIST: IDX files, plain or gzipped, at `data.root` or fetched there."""
    return read_idx(place, "MNIST", tuple(str(digit) for digit in range(10)))


def cifar10(place: Place) -> Dataset:
    """CIFAR-10: the Python version, its archive, or class folders `train/` and `test/`."""
    if not place.one_root or place.has_train_folder:
        labels = {name: i for i, name in enumerate(CIFAR10)}
        return _class_folders(place, labels, CIFAR10, ("test",))
    return _cifar(place, "CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz")


def cifar100(place: Place) -> Dataset:
    """CIFAR-100: the Python version or its archive."""
    return _cifar(place, "CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz")


def imagenette(place: Place) -> Dataset:
    """Imagenette: its folders `train/` and `val/`, or the 160 px archive fetched to `data.root`."""
    if place.one_root and not place.has_train_folder:
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
    return _named_by_folders(place, own=True)


def _named_by_folders(place: Place, *, own: bool) -> Dataset:
    names = ("val", "test")
    if place.test_only and not place.has_train_folder:
        root = next(iter({**place.test_root(names), **place.extra_sets}.values()))
    else:
        root = place.train_root
    classes = folders.class_folders(root)
    if any(name in place.classes for name in classes):
        classes = list(place.classes)
    labels = {name: i for i, name in enumerate(classes)}
    return _class_folders(place, labels, tuple(classes), names, own=own)


def places365(place: Place) -> Dataset:
    """Places365 (standard): class folders `train/` and `val/` of 365 scenes."""
    dataset = _named_by_folders(place, own=False)
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
    "coco-boxes": coco_boxes,
    "ade20k": ade20k,
    "mask-folder": mask_folder,
    "coco-masks": coco_masks,
}


def _class_folders(
    place: Place,
    labels: dict[str, int],
    classes: tuple[str, ...],
    test_names: tuple[str, ...],
    *,
    complete: bool = True,
    own: bool = False,
) -> Dataset:
    """`own`: a folder of one's own, where each file's size and each split that is there counts."""
    _check_classes(place, labels)
    passed = PassedOver(sizes=own)
    if place.test_only:
        train = Files(FileNames.of(Path(), []), np.zeros(0, dtype=np.int64))
    else:
        every = complete and not place.classes  # of which an evaluation's weights may know more
        train = folders.read(place.train_root, labels, complete=every, passed=passed)
    main = place.test_root(test_names, suggested_holdout(train.labels))
    roots = {**main, **place.extra_sets}
    unknown = place.keys.unknown_classes
    found = {
        name: known_alone(name, _test_split(root, labels, unknown, passed))
        for name, root in roots.items()
    }
    tests: dict[str, Any] = {name: files for name, (files, _) in found.items()}
    left_out = [line for _, said in found.values() for line in said]
    notes = (*place.notes(main), *(place.unread(main) if own else ()), *passed.notes(), *left_out)
    return Dataset(train, tests, classes, notes=notes)


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


def _test_split(
    root: Path, labels: dict[str, int], unknown: UnknownClasses, passed: PassedOver
) -> Files:
    if folders.is_flat(root):
        return folders.read_flat(root, labels, unknown, passed)
    names = folders.class_folders(root)
    numbered = {str(i): i for i in range(len(labels))}
    by_number = not any(n in labels for n in names) and all(n in numbered for n in names)
    known = numbered if by_number else labels
    return folders.read(root, known, complete=False, test=True, unknown=unknown, passed=passed)


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
