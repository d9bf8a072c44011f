"""The data sets that recipes can name: each function reads its files and returns a `Dataset`."""

import io
import lzma
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe.sections import UnknownClasses
from rescue_cli.sections.data import archives
from rescue_cli.sections.data.fine_grained import (
    flowers102,
    food101,
    inaturalist2019,
    oxford_pets,
    stanford_cars,
)
from rescue_cli.sections.data.formats.class_folders import (
    class_folders,
    index_at,
    is_flat_folder,
    read_class_folders,
    read_flat_folder,
)
from rescue_cli.sections.data.formats.coco import coco_boxes, coco_masks
from rescue_cli.sections.data.formats.idx import read_idx
from rescue_cli.sections.data.formats.masks import ade20k, mask_folder
from rescue_cli.sections.data.formats.voc import pascal_voc, voc_folder
from rescue_cli.sections.data.imagenet import imagenet_class_names, real_labels
from rescue_cli.sections.data.listing import SkippedFiles
from rescue_cli.sections.data.location import Location
from rescue_cli.sections.data.splits import (
    Dataset,
    FileNames,
    Files,
    Images,
    drop_unknown_classes,
    suggest_holdout,
)

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


def fashion_mini(_place: Location) -> Dataset:
    """Fashion-MNIST's first 600 training and 100 test images of each class, packaged."""
    file = Path(__file__).parent / "files" / "fashion-mini.npz.xz"
    arrays = np.load(io.BytesIO(_decompress(file)))
    train, test = (
        Images(arrays[f"{split}_images"][:, None], arrays[f"{split}_labels"].astype(np.int64))
        for split in ("train", "test")
    )
    return Dataset(train, {"test": test}, FASHION)


@cache
def _decompress(file: Path) -> bytes:
    """The file's content, kept: a process that trains one seed after another needs it for each."""
    return lzma.decompress(file.read_bytes())


def fashion_mnist(location: Location) -> Dataset:
    """Fashion-MNIST: IDX files, plain or gzipped, in `data.root` or downloaded there."""
    return read_idx(location, "FashionMNIST", FASHION)


def mnist(location: Location) -> Dataset:
    """MNIST: IDX files, plain or gzipped, in `data.root` or downloaded there."""
    return read_idx(location, "MNIST", tuple(str(digit) for digit in range(10)))


def cifar10(location: Location) -> Dataset:
    """CIFAR-10: the Python version, its archive, or class folders `train/` and `test/`."""
    if not location.has_one_root or location.has_train_folder:
        labels = {name: i for i, name in enumerate(CIFAR10)}
        return _read_class_folder_sets(location, labels, CIFAR10, ("test",))
    return _read_cifar(location, "CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz")


def cifar100(location: Location) -> Dataset:
    """CIFAR-100: the Python version or its archive."""
    return _read_cifar(location, "CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz")


def imagenette(location: Location) -> Dataset:
    """Imagenette: the folders `train/` and `val/`, or the 160 px archive, downloaded."""
    if location.has_one_root and not location.has_train_folder:
        from torchvision.datasets import Imagenette

        url, md5 = Imagenette._ARCHIVES["160px"]
        inside = location.root / Path(url).stem
        if not inside.is_dir():
            archives.unpack(
                archives.download_once(url, location.root / Path(url).name, md5), location.root
            )
        location = location.with_root(inside)
    words = imagenet_class_names()
    return _read_class_folder_sets(
        location,
        {w: i for i, w in enumerate(IMAGENETTE)},
        tuple(words[w] for w in IMAGENETTE),
        ("val",),
    )


def imagenet(location: Location) -> Dataset:
    """ImageNet-1k: folders by WordNet id; the label is the index among the 1,000 sorted ids.

    Class folders may be missing. A flat validation folder needs a label file; folders named
    0 to 999 (ImageNet-V2) are labels. The test set `real` is `val` with ImageNet-ReaL's labels.
    """
    if "real" in location.extra_sets:
        raise UsageError(
            "data.sets.real: the set 'real' is val with other labels and has no folder of its own. "
            "Remove the key."
        )
    words = imagenet_class_names()
    labels = {wnid: i for i, wnid in enumerate(sorted(words))}
    names = tuple(words[w] for w in sorted(words))
    dataset = _read_class_folder_sets(location, labels, names, ("val",), complete=False)
    return replace(dataset, relabelled={"real": real_labels})


def folder(location: Location) -> Dataset:
    """The user's own class folders; the classes are the training folders' names, sorted.

    In an evaluation they are the weights' classes, provided that a folder has one of their names.
    """
    return _classes_from_folders(location, own=True)


def _classes_from_folders(location: Location, *, own: bool) -> Dataset:
    names = ("val", "test")
    if location.test_only and not location.has_train_folder:
        root = next(iter({**location.test_root(names), **location.extra_sets}.values()))
    else:
        root = location.train_root
    classes = class_folders(root, location.keys.label_field)
    if any(name in location.classes for name in classes):
        classes = list(location.classes)
    labels = {name: i for i, name in enumerate(classes)}
    return _read_class_folder_sets(location, labels, tuple(classes), names, own=own)


def places365(location: Location) -> Dataset:
    """Places365 (standard): class folders `train/` and `val/` of 365 scenes."""
    dataset = _classes_from_folders(location, own=False)
    if len(dataset.classes) != PLACES:
        raise DataError(
            f"{location.train_root}: has {len(dataset.classes)} class folders, not {PLACES}. "
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


def _read_class_folder_sets(
    location: Location,
    labels: dict[str, int],
    classes: tuple[str, ...],
    test_names: tuple[str, ...],
    *,
    complete: bool = True,
    own: bool = False,
) -> Dataset:
    """`own`: the user's own folder, in which empty files and unread splits are noted."""
    field = location.keys.label_field
    labels_here = _training_labels(location, labels)
    skipped = SkippedFiles(check_sizes=own)
    if location.test_only:
        train = Files(FileNames.of(Path(), []), np.zeros(0, dtype=np.int64))
    else:
        # The weights of an evaluation may know classes that the folder lacks
        all_classes = complete and not location.classes
        train = read_class_folders(
            location.train_root,
            labels_here,
            complete=all_classes,
            skipped=skipped,
            label_field=field,
        )
    main_roots = location.test_root(test_names, suggest_holdout(train.labels))
    roots = {**main_roots, **location.extra_sets}
    unknown = location.keys.unknown_classes
    splits = {
        name: drop_unknown_classes(name, _read_test_split(root, labels, unknown, skipped, field))
        for name, root in roots.items()
    }
    tests: dict[str, Any] = {name: files for name, (files, _) in splits.items()}
    split_notes = [line for _, lines in splits.values() for line in lines]
    notes = (
        *location.note_interpretation(main_roots),
        *(location.note_unread_splits(main_roots) if own else ()),
        *skipped.notes(),
        *split_notes,
    )
    return Dataset(train, tests, classes, notes=notes)


def _training_labels(location: Location, labels: dict[str, int]) -> dict[str, int]:
    """The labels of the training folder's classes: by name, or by the numbers that shards have.

    Raises `DataError` where no training folder is a class of this data set.
    """
    if location.test_only or not location.has_train_folder:
        return labels
    root = location.train_root
    present = class_folders(root, location.keys.label_field)
    if any(name in labels for name in present):
        return labels
    index = index_at(root, location.keys.label_field)
    if index is None or not (by_number := _labels_by_number(index.numbers, present, labels)):
        raise DataError(
            f"{location.train_root}: no folder is a class of {location.name} ({present[0]} is "
            "not). For classes of your own use data.name=folder."
        )
    return by_number


def _labels_by_number(
    numbers: Mapping[str, int], present: Sequence[str], labels: Mapping[str, int]
) -> dict[str, int]:
    """The labels of these classes by their numbers; of all classes, so that none seems to lack."""
    if not all(0 <= numbers.get(name, -1) < len(labels) for name in present):
        return {}
    rest = set(range(len(labels))) - {numbers[name] for name in present}
    return {str(number): number for number in rest} | {name: numbers[name] for name in present}


def _read_test_split(
    root: Path,
    labels: dict[str, int],
    unknown: UnknownClasses,
    skipped: SkippedFiles,
    label_field: str | None,
) -> Files:
    if is_flat_folder(root):
        return read_flat_folder(root, labels, unknown, skipped)
    names = class_folders(root, label_field)
    if not any(name in labels for name in names):
        index = index_at(root, label_field)
        numbers = {str(i): i for i in range(len(labels))} if index is None else index.numbers
        labels = _labels_by_number(numbers, names, labels) or labels
    return read_class_folders(
        root,
        labels,
        complete=False,
        test=True,
        unknown=unknown,
        skipped=skipped,
        label_field=label_field,
    )


def _read_cifar(location: Location, kind: str, folder_name: str, archive_name: str) -> Dataset:
    import torchvision.datasets

    reader = getattr(torchvision.datasets, kind)
    root = location.root.parent if location.root.name == folder_name else location.root
    if not (root / folder_name).is_dir():
        archive = archives.download_once(reader.url, root / archive_name, reader.tgz_md5)
        archives.unpack(archive, root)
    try:  # torchvision checks every file's MD5 before unpickling it
        splits = {train: reader(str(root), train=train) for train in (True, False)}
    except RuntimeError as error:
        raise DataError(
            f"{root / folder_name}: {error}. Delete the folder to unpack it again."
        ) from None
    train, test = (
        Images(
            np.ascontiguousarray(s.data.transpose(0, 3, 1, 2)), np.array(s.targets, dtype=np.int64)
        )
        for s in (splits[True], splits[False])
    )
    return Dataset(train, {"test": test}, tuple(splits[True].classes))
