"""Fine-grained data sets for transfer learning, read by torchvision; iNaturalist by its JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.sections.data.location import Location
from rescue_cli.sections.data.splits import Dataset, FileNames, Files


@dataclass(frozen=True)
class TorchvisionSet:
    """torchvision's class, its splits for training and testing, and the expected file layout."""

    reader: str
    train: tuple[str, ...]
    test: str
    layout: str
    downloads: bool = True


FLOWERS = TorchvisionSet(
    "Flowers102",
    ("train", "val"),  # 2,040 images, as in ResNet strikes back's Table 5
    "test",
    "flowers-102/jpg/image_*.jpg, flowers-102/imagelabels.mat and flowers-102/setid.mat",
)
CARS = TorchvisionSet(
    "StanfordCars",
    ("train",),
    "test",
    "stanford_cars/cars_train/*.jpg, stanford_cars/cars_test/*.jpg, stanford_cars/devkit/"
    "cars_train_annos.mat and cars_meta.mat, stanford_cars/cars_test_annos_withlabels.mat",
    downloads=False,
)
FOOD = TorchvisionSet(
    "Food101",
    ("train",),
    "test",
    "food-101/images/CLASS/*.jpg, food-101/meta/train.json and food-101/meta/test.json",
)
PETS = TorchvisionSet(
    "OxfordIIITPet",
    ("trainval",),
    "test",
    "oxford-iiit-pet/images/*.jpg, oxford-iiit-pet/annotations/trainval.txt and test.txt",
)


def flowers102(location: Location) -> Dataset:
    """Flowers-102: trained on its training and validation images, tested on its test images."""
    return _read_torchvision(location, FLOWERS)


def stanford_cars(location: Location) -> Dataset:
    """Stanford Cars; its files can no longer be downloaded."""
    return _read_torchvision(location, CARS)


def food101(location: Location) -> Dataset:
    """Food-101."""
    return _read_torchvision(location, FOOD)


def oxford_pets(location: Location) -> Dataset:
    """Oxford-IIIT Pets."""
    return _read_torchvision(location, PETS)


def inaturalist2019(location: Location) -> Dataset:
    """iNaturalist 2019, the competition's split: `train2019.json`, `val2019.json` and the images.

    Labels follow the category ids. Raises `DataError`.
    """
    splits = {split: _read_list(location.root / f"{split}2019.json") for split in ("train", "val")}
    names = {int(c["id"]): str(c["name"]) for c in splits["train"]["categories"]}
    label_of = {number: i for i, number in enumerate(sorted(names))}
    train, test = (
        _inaturalist_split(location.root, splits[name], label_of) for name in ("train", "val")
    )
    return Dataset(train, {"val": test}, tuple(names[n] for n in sorted(names)))


def _inaturalist_split(root: Path, tree: dict[str, Any], label_of: dict[int, int]) -> Files:
    label = {a["image_id"]: label_of[int(a["category_id"])] for a in tree["annotations"]}
    files = [(str(image["file_name"]), label[image["id"]]) for image in tree["images"]]
    return _make_files(root, [name for name, _ in files], [number for _, number in files])


def _read_list(file: Path) -> dict[str, Any]:
    """Reads a COCO-like annotation file; raises `DataError`."""
    try:
        tree = json.loads(file.read_bytes())
        if not {"images", "annotations", "categories"} <= tree.keys():
            raise ValueError("it has no images, annotations and categories")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file}: not an annotation file ({error}). iNaturalist 2019 needs train2019.json, "
            "val2019.json and the images in data.root, as published."
        ) from None
    content: dict[str, Any] = tree
    return content


def _read_torchvision(location: Location, dataset: TorchvisionSet) -> Dataset:
    train_parts = (
        [] if location.test_only else [_open_split(location, dataset, s) for s in dataset.train]
    )
    test = _open_split(location, dataset, dataset.test)
    contents = [(_image_paths(split), _labels(split)) for split in train_parts]
    train = _make_files(
        location.root,
        [p for paths, _ in contents for p in paths],
        [n for _, ns in contents for n in ns],
    )
    return Dataset(
        train,
        {dataset.test: _make_files(location.root, _image_paths(test), _labels(test))},
        tuple(str(name) for name in test.classes),
    )


def _open_split(location: Location, dataset: TorchvisionSet, split: str) -> Any:
    """Opens a split with torchvision, which downloads missing files where it can.

    Existing files are tried first: torchvision's check says whether anything is missing. Raises
    `DataError` with the expected layout.
    """
    import torchvision.datasets

    reader = getattr(torchvision.datasets, dataset.reader)
    try:
        try:
            return reader(str(location.root), split=split)
        except RuntimeError:
            if not dataset.downloads:
                raise
            return reader(str(location.root), split=split, download=True)
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        fetch = "could not be downloaded" if dataset.downloads else "can no longer be downloaded"
        raise DataError(
            f"data.root: {location.root} does not hold {location.name}, which {fetch} ({reason}). "
            f"Put these files there: {dataset.layout}."
        ) from None


def _image_paths(split: Any) -> list[str]:
    """The image files, which torchvision's classes keep in one of three attributes."""
    for attribute in ("_image_files", "_images"):
        if hasattr(split, attribute):
            return [str(path) for path in getattr(split, attribute)]
    return [str(path) for path, _ in split._samples]


def _labels(split: Any) -> list[int]:
    if hasattr(split, "_labels"):
        return [int(label) for label in split._labels]
    return [int(label) for _, label in split._samples]


def _make_files(root: Path, paths: Sequence[str], labels: Sequence[int]) -> Files:
    relative = [path.removeprefix(f"{root}/") for path in paths]
    return Files(FileNames.of(root, relative), np.array(labels, dtype=np.int64))
