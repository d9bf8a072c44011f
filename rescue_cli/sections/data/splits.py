"""Data sets after reading: splits as pixels in memory or as file names; subsets and hold-outs."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rescue_cli.errors import DataError, UsageError
from rescue_cli.rng import Indices, permute
from rescue_cli.sections.annotations import Target

SPLIT_SEED = 2018  # fixed: subsets and hold-outs are the same for every seed of a run
HELD_OUT = {"holdout": "holdout", "test_holdout": "holdout-test"}  # test sets by the key for them
UNKNOWN_CLASS = -1  # label of a test image whose class is not in the training set
THREADS = 16  # a network file system answers many requests at once
MAX_NAMES = 5  # class names listed in a message
TAKEN = 2**18  # names copied at a time, so that the places of their bytes take few MB
Pixels = NDArray[np.uint8]


class Storage(NamedTuple):
    """The images of a split in the order in which shards hold them, (n,), and the shards' ends."""

    order: Indices
    ends: Indices


@dataclass(frozen=True)
class FileNames:
    """Paths relative to `root` in one block of bytes, whose memory pages loader workers share.

    `bytes_listed`: (n,) the sizes of the files, where they are known from listing them.
    """

    root: str
    block: NDArray[np.uint8]
    ends: Indices
    bytes_listed: Indices | None = field(default=None, kw_only=True)

    @staticmethod
    def of(root: Path, names: Iterable[str], sizes: Iterable[int | None] = ()) -> "FileNames":
        """`sizes`: of the files in bytes; where one of them is None, none is kept."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        block = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        known = [size for size in sizes if size is not None]
        listed = np.array(known, dtype=np.int64) if len(known) == len(encoded) else None
        return FileNames(str(root), block, ends, bytes_listed=listed)

    @staticmethod
    def join(root: Path, parts: Iterable["FileNames"]) -> "FileNames":
        """All files of the parts in order; each part is copied and may be dropped."""
        block, ends, sizes, have_sizes = bytearray(), bytearray(), bytearray(), True
        for part in parts:
            ends += (part.ends + len(block)).tobytes()
            block += part.block.data
            have_sizes = have_sizes and part.bytes_listed is not None
            sizes += b"" if part.bytes_listed is None else part.bytes_listed.tobytes()
        return FileNames(
            str(root),
            np.frombuffer(block, dtype=np.uint8),
            np.frombuffer(ends, dtype=np.int64),
            bytes_listed=np.frombuffer(sizes, dtype=np.int64) if have_sizes else None,
        )

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        """The path relative to `root`."""
        start = self.ends[index - 1] if index else 0
        return self.block[start : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")

    def path(self, index: int) -> Path:
        return Path(self.root, self.name(index))

    def place(self, index: int) -> str:
        """Where the image lies, for messages and tables."""
        return str(self.path(index))

    def read(self, index: int) -> bytes:
        """The file's content; raises `OSError`, and `DataError` for a file that is gone: it was
        there when the folder was listed, so it is not a corrupt image.
        """
        try:
            return self.path(index).read_bytes()
        except FileNotFoundError:
            raise DataError(
                f"{self.place(index)}: is gone since the folder was listed. Put it back."
            ) from None

    @property
    def resized(self) -> str:
        """What was done to the images before they were packed; empty for the originals."""
        return ""

    def sizes(self) -> Indices:
        """Each file's size in bytes; -1 for a missing file, which is reported when it is read."""

        if self.bytes_listed is not None:
            return self.bytes_listed

        def sizes_of(part: range) -> Indices:
            each = (_file_size(f"{root}{self.name(index)}") for index in part)
            return np.fromiter(each, np.int64, len(part))

        root = os.path.join(self.root, "")
        parts = [range(at, min(at + 4096, len(self))) for at in range(0, len(self), 4096)]
        with ThreadPoolExecutor(THREADS) as pool:
            return np.concatenate([np.zeros(0, np.int64), *pool.map(sizes_of, parts)])

    def stamps(self) -> Iterable[str]:
        """A text for each file that changes with it: path, size and time."""
        for index in range(len(self)):
            path = self.path(index)
            status = path.stat()
            yield f"{path}\0{status.st_size}\0{status.st_mtime_ns}"

    def kept_whole(self) -> "FileNames":
        """The same, for reading shard by shard: those of a store are fetched whole."""
        return self

    def storage(self) -> Storage | None:
        """Where images lie in shards; None for files."""
        return None

    def take(self, indices: Indices) -> "FileNames":
        starts = np.concatenate([np.zeros(min(len(self), 1), np.int64), self.ends[:-1]])[indices]
        lengths = self.ends[indices] - starts
        parts = [
            self.block[_ranges(starts[at : at + TAKEN], lengths[at : at + TAKEN])]
            for at in range(0, len(indices), TAKEN)
        ]
        return FileNames(
            self.root,
            np.concatenate([self.block[:0], *parts]),
            np.cumsum(lengths),
            bytes_listed=None if self.bytes_listed is None else self.bytes_listed[indices],
        )


def _ranges(starts: Indices, lengths: Indices) -> Indices:
    """The numbers from each start on, as many as its length says, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


@dataclass(frozen=True)
class Images:
    """A split in memory: pixels (n, channels, height, width) uint8, labels (n,) int64.

    `corrupt`: (file, reason) of files that could not be decoded and were replaced by other images.
    `files`: the files that it was decoded from, if any.
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

    def relabel(self, order: Indices) -> "Images":
        """With `order[label]` in place of each label."""
        files = None if self.files is None else self.files.relabel(order)
        return replace(self, labels=order[self.labels], files=files)


@dataclass(frozen=True)
class Features(Images):
    """Features of a frozen network in place of images: (n, features, 1, 1) float32."""

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

    def relabel(self, order: Indices) -> "Files":
        """With `order[label]` in place of each label."""
        return replace(self, labels=order[self.labels])


Split = Images | Files


@dataclass(frozen=True)
class Dataset:
    """A training split, test splits by name (the main one first), class names.

    `relabelled`: test sets that are the main one with other labels, as functions from that split
    to each image's correct labels, (n, most labels) padded with -1. `notes`: sentences about what
    was skipped or interpreted when the files were read.
    """

    train: Split
    tests: dict[str, Split]
    classes: tuple[str, ...]
    relabelled: Mapping[str, Callable[[Split], Indices]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def join_names(names: Sequence[str]) -> str:
    """`cat, dog and 3 more`."""
    shown = ", ".join(names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES} more"


def drop_unknown_classes(name: str, files: Files) -> tuple[Files, list[str]]:
    """The images of the training set's classes, and notes on the others; raises `DataError`."""
    unknown = np.flatnonzero(files.labels == UNKNOWN_CLASS)
    if not len(files):
        raise DataError(f"{files.names.root}: its class folders hold no images. Add some.")
    if len(unknown) == len(files):
        raise DataError(
            f"{files.names.root}: no image belongs to a class of the training set. Set "
            "data.test_root= (or data.sets) to the test images."
        )
    if not len(unknown):
        return files, []
    paths = [files.names.name(int(index)) for index in unknown]
    names = sorted({path.partition("/")[0] for path in paths if "/" in path})
    of_classes = f" ({join_names(names)})" if names else ""
    note = (
        f"{name}: left out {len(unknown)} of {len(files)} images: their classes{of_classes} "
        "are not in the training set."
    )
    return files.take(np.flatnonzero(files.labels != UNKNOWN_CLASS)), [note]


def note_classes_without_images(dataset: Dataset) -> list[str]:
    """A note for each split that lacks images of some classes."""
    notes = []
    splits = {"training": dataset.train, **dataset.tests}
    for name, split in splits.items():
        counts = np.bincount(split.labels, minlength=len(dataset.classes))
        missing = [dataset.classes[label] for label in np.flatnonzero(counts == 0)]
        if not missing or not len(split):
            continue
        rest = f"balanced accuracy averages the other {len(dataset.classes) - len(missing)}"
        consequence = "not learned" if split is dataset.train else f"recall unknown; {rest}"
        notes.append(
            f"{name}: no image of {len(missing)} of {len(dataset.classes)} classes "
            f"({join_names(missing)}): {consequence}."
        )
    return notes


def balanced_indices(
    labels: Indices, count: int, fold: int = 0, order: Indices | None = None
) -> Indices:
    """`count` indices in ascending order, drawn at random, equally many per class where possible.

    Different `fold`s are disjoint. `order`: a random number for each index.
    """
    if order is None:
        order = permute(np.arange(len(labels)), len(labels), SPLIT_SEED, 0)
    by_class = np.lexsort((order, labels))
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    rank = np.arange(len(labels)) - starts  # the index within the class
    drawn = by_class[np.lexsort((labels[by_class], rank))]
    return np.sort(drawn[fold * count : (fold + 1) * count])


def _order_of_names(split: Split) -> Indices | None:
    """A random number for each file, by its name alone: what is drawn by them stays drawn where
    others are added or removed.
    """
    if not isinstance(split, Files):
        return None
    names = (split.names.name(i).encode("utf-8", "surrogateescape") for i in range(len(split)))
    digests = b"".join(hashlib.blake2b(name, digest_size=7).digest() + b"\0" for name in names)
    return np.frombuffer(digests, dtype="<i8")


def suggest_holdout(labels: Indices) -> int:
    """A fifth of the smallest class, times the number of classes; 0 without images."""
    counts = np.bincount(labels)
    present = counts[counts > 0]
    return len(present) * max(1, int(present.min()) // 5) if len(present) else 0


def hold_out(dataset: Dataset, count: int, fold: int = 0, key: str = "holdout") -> Dataset:
    """The data set with `count` held-out training images in place of its test sets.

    Folds are disjoint. `key` of the recipe says how many. Raises `UsageError` where there are too
    few images.
    """
    if count == 0 and fold:
        raise UsageError(
            f"data.fold: {fold} needs held-out images. Give data.holdout=N, or remove data.fold."
        )
    if count == 0:
        return dataset
    if count >= len(dataset.train):
        raise UsageError(
            f"data.{key}: {count} of {len(dataset.train)} training images leaves none to train "
            "on. Give a smaller number."
        )
    if (fold + 1) * count > len(dataset.train):
        raise UsageError(
            f"data.fold: {fold}: {len(dataset.train)} training images have only "
            f"{len(dataset.train) // count} folds of data.holdout={count}, from 0 on. "
            "Give a smaller fold, or a smaller data.holdout."
        )
    order = _order_of_names(dataset.train) if key == "test_holdout" else None
    held = balanced_indices(dataset.train.labels, count, fold, order)
    kept = np.setdiff1d(np.arange(len(dataset.train)), held)
    # Named by its fold, so that results of two folds are never compared as pairs
    name = f"holdout-{fold}" if fold else HELD_OUT[key]
    tests: dict[str, Split] = {name: dataset.train.take(held)}
    return replace(dataset, train=dataset.train.take(kept), tests=tests)


def take_subset(dataset: Dataset, sizes: tuple[int, int] | None) -> Dataset:
    """The data set cut to `sizes` = (training, test) images, balanced over classes."""
    if sizes is None:
        return dataset
    train, test = sizes
    tests = {k: s.take(balanced_indices(s.labels, test)) for k, s in dataset.tests.items()}
    return replace(
        dataset,
        train=dataset.train.take(balanced_indices(dataset.train.labels, train)),
        tests=tests,
    )


def grey_to_rgb(dataset: Dataset) -> Dataset:
    """The data set with grey images in memory repeated to three channels; files are read as RGB."""

    def repeat_channels(split: Split) -> Split:
        if isinstance(split, Files) or split.pixels.shape[1] != 1:
            return split
        return replace(split, pixels=split.pixels.repeat(3, axis=1))

    tests = {name: repeat_channels(split) for name, split in dataset.tests.items()}
    return replace(dataset, train=repeat_channels(dataset.train), tests=tests)


def relabel(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The data set with labels renumbered for `classes`, its own class names in another order."""
    order = np.array([classes.index(name) for name in dataset.classes])
    tests = {name: split.relabel(order) for name, split in dataset.tests.items()}
    return replace(dataset, train=dataset.train.relabel(order), tests=tests, classes=classes)


def count_rounds(images: int, batch_size: int, world_size: int) -> int:
    """The number of batches of the process that gets the most of them."""
    return math.ceil(math.ceil(images / batch_size) / world_size)
