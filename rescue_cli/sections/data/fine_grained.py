"""The sets that networks are transferred to, as torchvision reads them; iNaturalist by its JSON."""

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
    """torchvision's class, its splits that train and test here, and what must lie where."""

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


def flowers102(place: Location) -> Dataset:
    """Flowers-102: its training and validation images to train, its test images to test."""
    return _read_torchvision(place, FLOWERS)


def stanford_cars(place: Location) -> Dataset:
    """Stanford Cars, which can no longer be downloaded."""
    return _read_torchvision(place, CARS)


def food101(place: Location) -> Dataset:
    """Food-101."""
    return _read_torchvision(place, FOOD)


def oxford_pets(place: Location) -> Dataset:
    """Oxford-IIIT Pets."""
    return _read_torchvision(place, PETS)


def inaturalist2019(place: Location) -> Dataset:
    """iNaturalist 2019 by the competition's split: `train2019.json`, `val2019.json`, the images.

    Categories in the order of their numbers.
    """
    splits = {split: _read_list(place.root / f"{split}2019.json") for split in ("train", "val")}
    names = {int(c["id"]): str(c["name"]) for c in splits["train"]["categories"]}
    places = {number: i for i, number in enumerate(sorted(names))}
    train, test = (
        _inaturalist_split(place.root, splits[name], places) for name in ("train", "val")
    )
    return Dataset(train, {"val": test}, tuple(names[n] for n in sorted(names)))


def _inaturalist_split(root: Path, tree: dict[str, Any], places: dict[int, int]) -> Files:
    label = {a["image_id"]: places[int(a["category_id"])] for a in tree["annotations"]}
    files = [(str(image["file_name"]), label[image["id"]]) for image in tree["images"]]
    return _make_files(root, [name for name, _ in files], [number for _, number in files])


def _read_list(file: Path) -> dict[str, Any]:
    """A COCO-like list; raises `DataError` where it is not there or is none."""
    try:
        tree = json.loads(file.read_bytes())
        if not {"images", "annotations", "categories"} <= tree.keys():
            raise ValueError("it has no images, annotations and categories")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{file}: not the competition's list ({error}). iNaturalist 2019 needs train2019.json, "
            "val2019.json and the images below data.root, as they were published."
        ) from None
    found: dict[str, Any] = tree
    return found


def _read_torchvision(place: Location, known: TorchvisionSet) -> Dataset:
    train_parts = [] if place.test_only else [_open_split(place, known, s) for s in known.train]
    test = _open_split(place, known, known.test)
    parts = [(_image_paths(part), _labels(part)) for part in train_parts]
    train = _make_files(
        place.root, [p for paths, _ in parts for p in paths], [n for _, ns in parts for n in ns]
    )
    return Dataset(
        train,
        {known.test: _make_files(place.root, _image_paths(test), _labels(test))},
        tuple(str(name) for name in test.classes),
    )


def _open_split(place: Location, known: TorchvisionSet, split: str) -> Any:
    """torchvision's data set, fetched where it can be; raises `DataError` with what belongs where.

    What is there is read first: its check of the files alone says whether anything is missing.
    """
    import torchvision.datasets

    reader = getattr(torchvision.datasets, known.reader)
    try:
        try:
            return reader(str(place.root), split=split)
        except RuntimeError:
            if not known.downloads:
                raise
            return reader(str(place.root), split=split, download=True)
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        fetch = "it could not be fetched" if known.downloads else "it can no longer be downloaded"
        raise DataError(
            f"data.root: {place.root} does not hold {place.name}, and {fetch} ({reason}). "
            f"Put there: {known.layout}."
        ) from None


def _image_paths(part: Any) -> list[str]:
    """The images' files, which torchvision's classes keep under one of three names."""
    for attribute in ("_image_files", "_images"):
        if hasattr(part, attribute):
            return [str(path) for path in getattr(part, attribute)]
    return [str(path) for path, _ in part._samples]


def _labels(part: Any) -> list[int]:
    if hasattr(part, "_labels"):
        return [int(label) for label in part._labels]
    return [int(label) for _, label in part._samples]


def _make_files(root: Path, paths: Sequence[str], labels: Sequence[int]) -> Files:
    below = [path.removeprefix(f"{root}/") for path in paths]
    return Files(FileNames.of(root, below), np.array(labels, dtype=np.int64))
