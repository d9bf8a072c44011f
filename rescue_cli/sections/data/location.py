"""Where a data set's files are, the keys that all data sets share, and facts about known sets."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rescue_cli.errors import DataError
from rescue_cli.recipe import DataItem, DataKeys
from rescue_cli.sections.data.listing import (
    SPLITS,
    find_split_folder,
    holds_images,
    list_folders,
    list_split_folders,
    split_name,
)
from rescue_cli.sections.data.packed.location import find_source, folder_of, packed_splits
from rescue_cli.sections.data.splits import join_names


@dataclass(frozen=True)
class Facts:
    """What is known about a data set without its files, for checks and for the size of the head."""

    classes: int | None
    channels: int
    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int | None  # in the training set; None for a user's own folder
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


def _exists(root: Path) -> bool:
    """Whether there is a folder, or shards that stand for it."""
    return root.is_dir() or find_source(root) is not None or packed_splits(root) is not None


def refuse_images_alone(folder: Path) -> None:
    """Raises `DataError` for a folder that holds images and no folders, as that of one class."""
    if not holds_images(folder, 0) or list_folders(folder):
        return
    top = folder.parent.parent if split_name(folder.parent.name) else folder.parent
    classes = [
        name for name in list_folders(folder.parent) if holds_images(folder.parent / name, 0)
    ]
    example = f", such as {top}" if len(classes) > 1 else ""
    raise DataError(
        f"{folder}: holds images, and no class folders. Give a folder with one folder of images "
        f"per class, or with train/ and val/ that have these{example}."
    )


def refuse_folders_of_classes(folder: Path, otherwise: str = "") -> None:
    """Raises `DataError` for a folder whose folders hold class folders: one level too high.

    `otherwise`: the cure where they are classes whose images lie in subfolders.
    """
    if list_split_folders(folder):
        return
    inside = [name for name in list_folders(folder) if _holds_classes(folder / name)]
    if inside:
        raise DataError(
            f"{folder}: holds folders of class folders ({join_names(inside)}). Give one of them, "
            f"such as {folder / inside[0]}{otherwise}."
        )


def _holds_classes(folder: Path) -> bool:
    """Whether images lie in two of its folders or more, and none beside these."""
    if holds_images(folder, 0):
        return False
    return sum(holds_images(folder / name, 0) for name in list_folders(folder)) > 1


@dataclass(frozen=True)
class Location:
    """The folders that a recipe's data come from; a folder may be that of shards (`find_source`).

    The properties raise `DataError` for a folder that is needed and was not given.
    """

    name: str
    keys: DataKeys
    test_only: bool = False  # an evaluation needs no training images
    classes: tuple[str, ...] = ()  # class names of the weights that are evaluated, if recorded

    @cached_property
    def root(self) -> Path:
        if self.keys.root is not None:
            return folder_of(self.keys.root)
        if "RESCUE_DATA" in os.environ:
            return Path(os.environ["RESCUE_DATA"], self.name)
        raise DataError(
            f"data.root: missing; the data set '{self.name}' is not packaged with rescue. "
            f"Give data.root=DIR, or set RESCUE_DATA so that RESCUE_DATA/{self.name} is the folder."
        )

    @property
    def has_root(self) -> bool:
        """Whether a folder that holds both training and test images was given."""
        return self.keys.root is not None or "RESCUE_DATA" in os.environ

    @property
    def has_train_root(self) -> bool:
        return self.keys.train_root is not None or self.has_root

    @property
    def has_folder(self) -> bool:
        """Whether the folder that was given for training images exists."""
        if not self.has_train_root:
            return False
        return _exists(self.train_root if self.keys.train_root else self.root)

    @property
    def has_train_folder(self) -> bool:
        """Whether a folder of training images alone exists, as for class folders."""
        return self.has_train_root and _exists(self.train_root)

    @property
    def has_one_root(self) -> bool:
        return self.keys.train_root is None and self.keys.test_root is None

    @cached_property
    def root_split(self) -> str | None:
        """The split that `root` itself is: `train` if PHOTOS/train was given instead of PHOTOS.

        A folder called `test` counts only beside a training folder, or in an evaluation.
        """
        root = Path(os.path.abspath(self.root))
        split = split_name(root.name)
        if split is None or list_split_folders(root):
            return None
        if not holds_images(root, 2) and find_source(root) is None:
            return None
        is_split = split == "train" or self.test_only or find_split_folder(root.parent, "train")
        return split if is_split else None

    @cached_property
    def top(self) -> Path:
        """The folder that holds the splits: `root`, or its parent where `root` is a split."""
        if self.root_split is None:
            return self.root
        return Path(os.path.abspath(self.root)).parent

    @cached_property
    def packed_splits(self) -> list[str] | None:
        """The splits that the shards at `top` hold; None where the images do not lie in shards."""
        return packed_splits(self.top)

    @cached_property
    def is_unsplit(self) -> bool:
        """Whether `top` holds class folders instead of splits; all images are then for training."""
        if self.name not in FACTS or FACTS[self.name].images is not None:
            return False  # a published data set has a fixed layout
        if self.packed_splits is not None:
            return not self.packed_splits
        # A folder `train` may be a class (beside `car`): then images lie directly in it
        splits = list_split_folders(self.top)
        if any(split_name(n) != "train" or not holds_images(self.top / n, 0) for n in splits):
            return False
        return any(holds_images(self.top / name, 0) for name in list_folders(self.top))

    def split(self, name: str) -> Path | None:
        """The folder of a split, or None."""
        if self.packed_splits is not None:
            return self.top / name if name in self.packed_splits else None
        return self.root if self.root_split == name else find_split_folder(self.top, name)

    @property
    def lacks_test_split(self) -> bool:
        """Whether there are training images alone, in class folders of the user's own."""
        keys, splits = self.keys, [split for split in SPLITS if split != "train"]
        own = self.name in FACTS and FACTS[self.name].images is None
        if not own or keys.test_root or keys.holds_out or not self.has_train_folder:
            return False
        return self.is_unsplit or all(self.split(name) is None for name in splits)

    @cached_property
    def train_root(self) -> Path:
        if self.keys.train_root:
            return folder_of(self.keys.train_root)
        if self.is_unsplit:
            return self.top
        return self.split("train") or self.top / "train"

    def test_root(self, names: tuple[str, ...], holdout: int | None = None) -> dict[str, Path]:
        """The main test set's name and folder: `test_root`, else the first of `names` that exists.

        `holdout` is the number of held-out images that the error suggests where there is none.
        """
        if self.keys.holds_out:
            return {}
        if self.keys.test_root:
            return {names[0]: folder_of(self.keys.test_root)}
        if self.test_only and self.keys.sets and not self.has_root:
            return {}  # an evaluation of data.sets alone
        first = [self.root_split] if self.root_split in names else []
        for name in [*first, *names]:
            if (folder := self.split(name)) is not None:
                return {name: folder}
        refuse_images_alone(self.top)
        if not self.is_unsplit:
            refuse_folders_of_classes(self.top)
        missing = f"{self.top / names[0]}: no such folder"
        cures = [f"give data.test_root={self.top if self.is_unsplit and not holdout else 'DIR'}"]
        if self.is_unsplit:
            missing = f"{self.top}: holds class folders, and no test split such as {names[0]}/"
        else:
            cures.insert(0, "add it")
        if holdout:
            cures.append(
                "hold out training images, equally many per class, with "
                f"data.test_holdout={holdout}"
            )
        cure = f"{', '.join(cures[:-1])}{' or ' if cures[1:] else ''}{cures[-1]}"
        raise DataError(f"{missing}. {cure[0].upper()}{cure[1:]}.")

    def note_interpretation(self, tests: Mapping[str, Path]) -> tuple[str, ...]:
        """Notes on how the folders were interpreted where their names are not the expected ones."""
        if not self.has_root:
            return ()
        notes = []
        read = [*tests.values(), *([] if self.test_only else [self.train_root])]
        reads_sibling = self.root_split and any(
            f.parent == self.top and f != self.root for f in read
        )
        if reads_sibling:
            notes.append(f"data.root: {self.root} is a split; reading its parent {self.top}")
        trains = not self.keys.train_root and not self.test_only and not self.keys.test_holdout
        if self.is_unsplit and trains:
            notes.append(f"{self.top}: has no train/; all class folders are used for training")
        for name, folder in tests.items():
            if not self.keys.test_root and folder.name != name:
                notes.append(f"{folder}: used as the test set '{name}'")
        return tuple(notes)

    def note_unread_splits(self, tests: Mapping[str, Path]) -> tuple[str, ...]:
        """A note for each split folder that exists and is not read."""
        if not self.has_root or not _exists(self.top) or self.keys.holds_out:
            return ()
        read = {self.train_root, *tests.values(), *self.extra_sets.values()}
        read_paths = {Path(os.path.abspath(folder)) for folder in read}
        splits = self.packed_splits or list_split_folders(self.top)
        test_folders = [self.top / n for n in splits if split_name(n) != "train"]
        return tuple(
            f"{folder}: is not used; data.sets={{{split_name(folder.name)}: {folder}}} evaluates "
            "on it too"
            for folder in test_folders
            if Path(os.path.abspath(folder)) not in read_paths
        )

    @property
    def extra_sets(self) -> dict[str, Path]:
        return {name: folder_of(root) for name, root in self.keys.sets.items()}

    def with_root(self, root: Path) -> "Location":
        return replace(self, keys=replace(self.keys, root=str(root)))


def facts_of(name: str, keys: DataKeys) -> Facts:
    """What is known of a data set, ours or one that the user's code reads; raises `UsageError`."""
    if name in FACTS or not isinstance(keys, DataItem):
        return FACTS[name]
    facts: Facts = keys.function.facts  # type: ignore[attr-defined]
    return facts


def normalisation(name: str, keys: DataKeys) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel for pixels in [0, 1]: as given, else from `FACTS`."""
    facts = facts_of(name, keys)
    repeats = (keys.channels or facts.channels) // facts.channels
    return keys.mean or list(facts.mean) * repeats, keys.std or list(facts.std) * repeats


def channels_of(name: str, keys: DataKeys) -> int:
    """The number of channels of the images that the network sees."""
    return keys.channels or facts_of(name, keys).channels
