"""What a data set is once it is found on disk: pixels in memory, or names of files."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rescue_cli.errors import DataError, UsageError
from rescue_cli.rng import Indices, permute
from rescue_cli.sections.annotations import Target

SPLIT_SEED = 2018  # subsets and hold-outs are the same for every seed of a run
NO_CLASS = -1  # the label of an image whose class training does not know
NAMED = 5  # classes, in a message
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class FileNames:
    """Paths below `root` in one block of bytes, so that loader workers share its pages."""

    root: str
    block: NDArray[np.uint8]
    ends: Indices

    @staticmethod
    def of(root: Path, names: Iterable[str]) -> "FileNames":
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return FileNames(str(root), np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        """The path below `root`."""
        start = self.ends[index - 1] if index else 0
        return self.block[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def path(self, index: int) -> Path:
        return Path(self.root, self.name(index))

    def take(self, indices: Indices) -> "FileNames":
        return FileNames.of(Path(self.root), (self.name(int(i)) for i in indices))


@dataclass(frozen=True)
class Images:
    """A split in memory: pixels (n, channels, height, width) uint8, labels (n,) int64.

    `corrupt`: files that could not be decoded and gave way to another image, with the reason.
    `files`: what it was decoded from, where that are files.
    """

    annotated: ClassVar[bool] = False
    pixels: Pixels
    labels: Indices
    corrupt: tuple[tuple[str, str], ...] = ()
    files: "Files | None" = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Indices) -> "Images":
        return Images(self.pixels[indices], self.labels[indices])

    def relabelled(self, order: Indices) -> "Images":
        """With `order[label]` in place of each label."""
        files = None if self.files is None else self.files.relabelled(order)
        return replace(self, labels=order[self.labels], files=files)


@dataclass(frozen=True)
class Features(Images):
    """What a frozen network makes of images, in their place: (n, features, 1, 1) float32."""

    pixels: NDArray[np.float32]  # type: ignore[assignment]


@dataclass(frozen=True)
class Files:
    """A split on disk: image files and labels (n,) int64.

    `annotated`: whether images carry boxes or masks, and their labels are all 0.
    """

    annotated: ClassVar[bool] = False
    names: FileNames
    labels: Indices

    def __len__(self) -> int:
        return len(self.labels)

    def target(self, index: int) -> Target:
        """What the image carries: here its label."""
        return int(self.labels[index])

    def take(self, indices: Indices) -> "Files":
        return Files(self.names.take(indices), self.labels[indices])

    def relabelled(self, order: Indices) -> "Files":
        """With `order[label]` in place of each label."""
        return replace(self, labels=order[self.labels])


Split = Images | Files


@dataclass(frozen=True)
class Dataset:
    """A training split, test splits by name (the main one first), class names.

    `relabelled`: test sets that are the main one by other labels, as functions from that split to
    the labels that are right for each image, (n, most) filled up with -1. `notes`: what was found
    amiss and passed over, a sentence each.
    """

    train: Split
    tests: dict[str, Split]
    classes: tuple[str, ...]
    relabelled: Mapping[str, Callable[[Split], Indices]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def some(names: Sequence[str]) -> str:
    """`cat, dog and 3 more`."""
    shown = ", ".join(names[:NAMED])
    return shown if len(names) <= NAMED else f"{shown} and {len(names) - NAMED} more"


def known_alone(name: str, files: Files) -> tuple[Files, list[str]]:
    """The images of classes that training knows, and what is said of the others."""
    strange = np.flatnonzero(files.labels == NO_CLASS)
    if not len(files):
        raise DataError(f"{files.names.root}: its class folders hold no image. Put them there.")
    if len(strange) == len(files):
        raise DataError(
            f"{files.names.root}: no image of a class that training knows. Point data.test_root= "
            "(or data.sets) at the test images."
        )
    if not len(strange):
        return files, []
    paths = [files.names.name(int(index)) for index in strange]
    names = sorted({path.partition("/")[0] for path in paths if "/" in path})
    of = f" ({some(names)})" if names else ""
    said = (
        f"{name}: left out {len(strange)} of {len(files)} images, whose classes{of} training does "
        "not know."
    )
    return files.take(np.flatnonzero(files.labels != NO_CLASS)), [said]


def without_images(dataset: Dataset) -> list[str]:
    """A sentence for each split that has no image of some of the classes."""
    found = []
    splits = {"training": dataset.train, **dataset.tests}
    for name, split in splits.items():
        there = np.bincount(split.labels, minlength=len(dataset.classes))
        absent = [dataset.classes[label] for label in np.flatnonzero(there == 0)]
        if not absent or not len(split):
            continue
        known = f"balanced accuracy is over the other {len(dataset.classes) - len(absent)}"
        follows = "not learned" if split is dataset.train else f"recall unknown; {known}"
        found.append(
            f"{name}: no image of {len(absent)} of {len(dataset.classes)} classes "
            f"({some(absent)}): {follows}."
        )
    return found


def balanced(labels: Indices, count: int, fold: int = 0) -> Indices:
    """`count` indices in ascending order, as many of each class as there are, drawn at random.

    Another `fold` has none of them.
    """
    order = permute(np.arange(len(labels)), len(labels), SPLIT_SEED, 0)
    by_class = np.lexsort((order, labels))
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    place = np.arange(len(labels)) - starts  # the index within the class
    drawn = by_class[np.lexsort((labels[by_class], place))]
    return np.sort(drawn[fold * count : (fold + 1) * count])


def suggested_holdout(labels: Indices) -> int:
    """A fifth of the smallest class, of each class; 0 of no images."""
    counts = np.bincount(labels)
    there = counts[counts > 0]
    return len(there) * max(1, int(there.min()) // 5) if len(there) else 0


def hold_out(dataset: Dataset, count: int, fold: int = 0) -> Dataset:
    """The data set with `count` training images in place of its test sets (for tuning).

    Each `fold` holds out images that no other does.
    """
    if count == 0 and fold:
        raise UsageError(
            f"data.fold: {fold} of no held-out images. Give data.holdout=N, or drop it."
        )
    if count == 0:
        return dataset
    if count >= len(dataset.train):
        raise UsageError(
            f"data.holdout: {count} of {len(dataset.train)} training images leaves none to train."
        )
    if (fold + 1) * count > len(dataset.train):
        raise UsageError(
            f"data.fold: {fold}: {len(dataset.train)} training images have only "
            f"{len(dataset.train) // count} folds of data.holdout={count}, from 0 on. "
            "Give a smaller fold, or a smaller data.holdout."
        )
    held = balanced(dataset.train.labels, count, fold)
    kept = np.setdiff1d(np.arange(len(dataset.train)), held)
    name = f"holdout-{fold}" if fold else "holdout"  # results of two folds are no pair
    tests: dict[str, Split] = {name: dataset.train.take(held)}
    return replace(dataset, train=dataset.train.take(kept), tests=tests)


def subset(dataset: Dataset, sizes: tuple[int, int] | None) -> Dataset:
    """The data set cut to (training, test) images, balanced over classes, capped at what exists."""
    if sizes is None:
        return dataset
    train, test = sizes
    tests = {k: s.take(balanced(s.labels, test)) for k, s in dataset.tests.items()}
    return replace(
        dataset, train=dataset.train.take(balanced(dataset.train.labels, train)), tests=tests
    )


def in_colour(dataset: Dataset) -> Dataset:
    """The data set with grey images in memory repeated to three channels; files are RGB already."""

    def repeated(split: Split) -> Split:
        if isinstance(split, Files) or split.pixels.shape[1] != 1:
            return split
        return replace(split, pixels=split.pixels.repeat(3, axis=1))

    tests = {name: repeated(split) for name, split in dataset.tests.items()}
    return replace(dataset, train=repeated(dataset.train), tests=tests)


def relabel(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The data set with its labels by the order of `classes`, which are its own in another one."""
    order = np.array([classes.index(name) for name in dataset.classes])
    tests = {name: split.relabelled(order) for name, split in dataset.tests.items()}
    return replace(dataset, train=dataset.train.relabelled(order), tests=tests, classes=classes)


def rounds_of(images: int, batch_size: int, world_size: int) -> int:
    """How many batches the process with the most of them gets."""
    return math.ceil(math.ceil(images / batch_size) / world_size)
