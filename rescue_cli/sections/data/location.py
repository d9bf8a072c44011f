"""Where a data set's files are, and the keys that every data set has."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rescue_cli.errors import DataError
from rescue_cli.recipe import DataKeys
from rescue_cli.sections.data.listing import (
    folders_in,
    holds_images,
    split_folder,
    split_of,
    splits_in,
)


@dataclass(frozen=True)
class Facts:
    """What is known of a data set before its files are: for checks and for the head's size."""

    classes: int | None
    channels: int
    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int | None  # in the training set
    task: str = "classification"


PACKAGED = "fashion-mini"  # lies in this package, and needs no folder
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_FASHION = ((0.2860,), (0.3530,))  # of the 60,000 training images
FACTS: Mapping[str, Facts] = {
    "fashion-mini": Facts(10, 1, 28, *_FASHION, 6000),
    "fashion-mnist": Facts(10, 1, 28, *_FASHION, 60000),
    "mnist": Facts(10, 1, 28, (0.1307,), (0.3081,), 60000),
    "cifar10": Facts(10, 3, 32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 50000),
    "cifar100": Facts(100, 3, 32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 50000),
    "imagenette": Facts(10, 3, None, *_IMAGENET, 9469),
    "imagenet": Facts(1000, 3, None, *_IMAGENET, 1_281_167),
    "places365": Facts(365, 3, None, *_IMAGENET, 1_803_460),
    "flowers102": Facts(102, 3, None, *_IMAGENET, 2040),
    "stanford-cars": Facts(196, 3, None, *_IMAGENET, 8144),
    "food101": Facts(101, 3, None, *_IMAGENET, 75_750),
    "oxford-pets": Facts(37, 3, None, *_IMAGENET, 3680),
    "inaturalist2019": Facts(1010, 3, None, *_IMAGENET, 265_213),
    "folder": Facts(None, 3, None, *_IMAGENET, None),
    "pascal-voc": Facts(20, 3, None, *_IMAGENET, 16_551, "detection"),
    "voc-folder": Facts(None, 3, None, *_IMAGENET, None, "detection"),
    "coco-boxes": Facts(None, 3, None, *_IMAGENET, None, "detection"),
    "ade20k": Facts(150, 3, None, *_IMAGENET, 20_210, "segmentation"),
    "mask-folder": Facts(None, 3, None, *_IMAGENET, None, "segmentation"),
    "coco-masks": Facts(None, 3, None, *_IMAGENET, None, "segmentation"),
}


def _folder(text: str) -> Path:
    return Path(os.path.expanduser(text))  # unlike Path.expanduser, leaves ~nobody as it is


@dataclass(frozen=True)
class Place:
    """The folders that one recipe's data come from. Raises `DataError` where one is not said."""

    name: str
    keys: DataKeys
    test_only: bool = False  # an evaluation does without the training images
    classes: tuple[str, ...] = ()  # that the weights of an evaluation know, where they say

    @cached_property
    def root(self) -> Path:
        if self.keys.root is not None:
            return _folder(self.keys.root)
        if "RESCUE_DATA" in os.environ:
            return Path(os.environ["RESCUE_DATA"], self.name)
        raise DataError(
            f"data.root: not given, and the data set '{self.name}' is not packaged. "
            f"Give data.root=DIR or set RESCUE_DATA so that RESCUE_DATA/{self.name} is the folder."
        )

    @property
    def has_root(self) -> bool:
        """Whether one folder is named that holds training and test images."""
        return self.keys.root is not None or "RESCUE_DATA" in os.environ

    @property
    def has_train_root(self) -> bool:
        return self.keys.train_root is not None or self.has_root

    @property
    def is_there(self) -> bool:
        """Whether the folder that is named for training images exists."""
        if not self.has_train_root:
            return False
        return (self.train_root if self.keys.train_root else self.root).is_dir()

    @property
    def has_train_folder(self) -> bool:
        """Whether there is a folder of training images alone, as class folders are."""
        return self.has_train_root and self.train_root.is_dir()

    @property
    def one_root(self) -> bool:
        return self.keys.train_root is None and self.keys.test_root is None

    @cached_property
    def given_split(self) -> str | None:
        """Which split `root` itself is: `train` where PHOTOS/train is given in place of PHOTOS.

        A folder called `test` is none where no training images lie beside it, unless it is to be
        measured on.
        """
        root = Path(os.path.abspath(self.root))
        split = split_of(root.name)
        if split is None or splits_in(root) or not holds_images(root, 2):
            return None
        sure = split == "train" or self.test_only or split_folder(root.parent, "train")
        return split if sure else None

    @cached_property
    def top(self) -> Path:
        """The folder that holds the splits: `root`, or the one above where that is a split."""
        if self.given_split is None:
            return self.root
        return Path(os.path.abspath(self.root)).parent

    @cached_property
    def is_unsplit(self) -> bool:
        """Whether class folders lie where splits should, and all images are for training."""
        if FACTS[self.name].images is not None:
            return False  # a published set has its layout
        splits = splits_in(self.top)  # of which `train` may be a class beside `car`
        if any(split_of(n) != "train" or not holds_images(self.top / n, 0) for n in splits):
            return False
        return any(holds_images(self.top / name, 0) for name in folders_in(self.top))

    def split(self, name: str) -> Path | None:
        """The folder of a split; None where there is none."""
        return self.root if self.given_split == name else split_folder(self.top, name)

    @cached_property
    def train_root(self) -> Path:
        if self.keys.train_root:
            return _folder(self.keys.train_root)
        if self.is_unsplit:
            return self.top
        return self.split("train") or self.top / "train"

    def test_root(self, names: tuple[str, ...], holdout: int | None = None) -> dict[str, Path]:
        """The main test folder by its name: `test_root`, else the first of `names` that exists.

        Where there is none the error offers to hold out so many images.
        """
        if self.keys.holdout:
            return {}
        if self.keys.test_root:
            return {names[0]: _folder(self.keys.test_root)}
        if self.test_only and self.keys.sets and not self.has_root:
            return {}  # an evaluation of further sets alone
        first = [self.given_split] if self.given_split in names else []
        for name in [*first, *names]:
            if (found := self.split(name)) is not None:
                return {name: found}
        missing = f"{self.top / names[0]}: no such folder"
        cures = [f"give data.test_root={self.top if self.is_unsplit and not holdout else 'DIR'}"]
        if self.is_unsplit:
            missing = f"{self.top}: holds class folders and no split of them, as {names[0]}/"
        else:
            cures.insert(0, "add it")
        if holdout:
            cures.append(
                f"hold out training images, as many of each class, with data.holdout={holdout}"
            )
        cure = f"{', '.join(cures[:-1])}{' or ' if cures[1:] else ''}{cures[-1]}"
        raise DataError(f"{missing}. {cure[0].upper()}{cure[1:]}.")

    def notes(self, tests: Mapping[str, Path]) -> tuple[str, ...]:
        """How the folders were understood where they are not called as expected."""
        if not self.has_root:
            return ()
        found = []
        read = [*tests.values(), *([] if self.test_only else [self.train_root])]
        beside = self.given_split and any(f.parent == self.top and f != self.root for f in read)
        if beside:
            found.append(f"data.root: {self.root} is a split; {self.top} is read, which holds it")
        if self.is_unsplit and not self.keys.train_root and not self.test_only:
            found.append(f"{self.top}: holds no train/; all of its class folders are for training")
        for name, folder in tests.items():
            if not self.keys.test_root and folder.name != name:
                found.append(f"{folder}: is read as the test set '{name}'")
        return tuple(found)

    def unread(self, tests: Mapping[str, Path]) -> tuple[str, ...]:
        """A sentence for each split that lies there and is not read."""
        if not self.has_root or not self.top.is_dir() or self.keys.holdout:
            return ()
        read = {self.train_root, *tests.values(), *self.extra_sets.values()}
        said = {Path(os.path.abspath(folder)) for folder in read}
        over = [self.top / n for n in splits_in(self.top) if split_of(n) != "train"]
        return tuple(
            f"{folder}: is not read. data.sets={{{split_of(folder.name)}: {folder}}} measures on "
            "it too"
            for folder in over
            if Path(os.path.abspath(folder)) not in said
        )

    @property
    def extra_sets(self) -> dict[str, Path]:
        return {name: _folder(root) for name, root in self.keys.sets.items()}

    def at(self, root: Path) -> "Place":
        return replace(self, keys=replace(self.keys, root=str(root)))


def normalisation(name: str, keys: DataKeys) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1]: given, else as known."""
    facts = FACTS[name]
    times = (keys.channels or facts.channels) // facts.channels
    return keys.mean or list(facts.mean) * times, keys.std or list(facts.std) * times


def channels_of(name: str, keys: DataKeys) -> int:
    """How many channels the network sees."""
    return keys.channels or FACTS[name].channels
