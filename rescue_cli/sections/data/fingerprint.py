"""What tells one data set from another without an image being read: names, labels, sizes.

It is the same wherever the folder lies. An image of the same name, label and size in bytes as
another cannot be told from it.
"""

import hashlib
import json
import os
import unicodedata
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescue_cli.rng import Indices
from rescue_cli.sections.data.annotated import Boxed, Masked
from rescue_cli.sections.data.coco_shapes import Painted, checksum
from rescue_cli.sections.data.splits import Dataset, FileNames, Files, Images, Split, some

THREADS = 16  # a network file system answers many at a time


@dataclass(frozen=True)
class Listing:
    """A split's images in order: names, labels (n,), and numbers of each image (n,) by what it is.

    `names` is None of a set that lies in arrays.
    """

    names: FileNames | None
    labels: Indices
    marks: Mapping[str, Indices]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        found = hashlib.blake2b(digest_size=16)
        arrays: list[NDArray[Any]] = [self.labels, *self.marks.values()]
        if self.names is not None:
            arrays += [self.names.ends, self.names.block]
        for array in arrays:
            found.update(array.tobytes())
        return found.hexdigest()

    def name(self, index: int) -> str:
        """What a message calls an image."""
        return f"image {index}" if self.names is None else self.names.name(index)


@dataclass(frozen=True)
class Fingerprint:
    """The classes in order, and the splits by name, `train` the first."""

    classes: tuple[str, ...]
    splits: Mapping[str, Listing]

    @cached_property
    def digest(self) -> str:
        parts = [list(self.classes), {name: split.digest for name, split in self.splits.items()}]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that `from_arrays` takes to make it anew."""
        found: dict[str, NDArray[Any]] = {"classes": np.array(json.dumps(self.classes))}
        for split, listing in self.splits.items():
            found[f"{split}/labels"] = listing.labels
            found |= {f"{split}/marks/{what}": each for what, each in listing.marks.items()}
            if listing.names is not None:
                found[f"{split}/block"], found[f"{split}/ends"] = (
                    listing.names.block,
                    listing.names.ends,
                )
        return found


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Fingerprint:
    """The fingerprint that `arrays()` was called of; raises `KeyError`, `ValueError`."""
    splits = {}
    for key in arrays:
        split, _, what = key.partition("/")
        if what == "labels":
            marks = {
                k.removeprefix(f"{split}/marks/"): each
                for k, each in arrays.items()
                if k.startswith(f"{split}/marks/")
            }
            names = None
            if f"{split}/block" in arrays:
                names = FileNames("", arrays[f"{split}/block"], arrays[f"{split}/ends"])
            splits[split] = Listing(names, arrays[key], marks)
    return Fingerprint(tuple(json.loads(str(arrays["classes"]))), splits)


def fingerprint_of(dataset: Dataset, tests: Iterable[str]) -> Fingerprint:
    """Of the training images and those of these test sets."""
    splits = {"train": dataset.train, **{name: dataset.tests[name] for name in tests}}
    return Fingerprint(dataset.classes, {name: listing_of(split) for name, split in splits.items()})


def listing_of(split: Split) -> Listing:
    """Images in memory go by the files that they were decoded from, where they come from files."""
    files = split if isinstance(split, Files) else split.files
    if isinstance(split, Images) and files is None:
        sums = np.array([zlib.crc32(image.tobytes()) for image in split.pixels], np.int64)
        return Listing(None, split.labels, {"pixels": sums})
    assert files is not None
    marks = {"bytes": _sizes(files.names)}
    if isinstance(files, Boxed):
        marks["boxes"] = np.array(
            [zlib.crc32(b"".join(part.tobytes() for part in o)) for o in files.objects], np.int64
        )
    if isinstance(files, Masked):
        marks["bytes of its mask"] = _sizes(files.masks)
    if isinstance(files, Painted):
        marks["shapes"] = np.array([checksum(some) for some in files.shapes], np.int64)
    return Listing(_composed(files.names), files.labels, marks)


def _sizes(names: FileNames) -> Indices:
    """Each file's size in bytes; -1 of one that is not there, which whoever reads it will say."""

    def of(part: Iterable[int]) -> list[int]:
        return [_size(f"{root}{names.name(index)}") for index in part]

    root = os.path.join(names.root, "")
    parts = [range(at, min(at + 4096, len(names))) for at in range(0, len(names), 4096)]
    with ThreadPoolExecutor(THREADS) as pool:
        return np.array([size for found in pool.map(of, parts) for size in found], dtype=np.int64)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _composed(names: FileNames) -> FileNames:
    """The names with accents in one form: macOS takes them apart when it copies (NFD)."""
    if not len(names.block) or names.block.max() < 128:
        return names
    each = (unicodedata.normalize("NFC", names.name(i)) for i in range(len(names)))
    return FileNames.of(Path(names.root), each)


# --- differences ---


def difference(before: Fingerprint, now: Fingerprint) -> str | None:
    """In what two data sets differ, as the rest of a sentence; None where they are the same."""
    if before.digest == now.digest:
        return None
    if before.classes != now.classes:
        return _of_classes(before.classes, now.classes)
    for split, listing in now.splits.items():
        if split not in before.splits:
            return f"its test set is {split}, and was {', '.join([*before.splits][1:]) or 'none'}"
        if listing.digest != before.splits[split].digest:
            return f"{split}: {_of_listings(before.splits[split], listing, now.classes)}"
    return f"the test set {next(s for s in before.splits if s not in now.splits)} is missing"


def _of_classes(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    missing, new = ([c for c in a if c not in set(b)] for a, b in ((before, now), (now, before)))
    if not missing and not new:
        a, b = next((a, b) for a, b in zip(before, now, strict=True) if a != b)
        return f"its classes stand in another order: {b!r} where {a!r} was"
    said = [
        f"the class{'' if len(names) == 1 else 'es'} {some([repr(name) for name in names])} {verb}"
        for names, verb in (
            (missing, "is missing" if len(missing) == 1 else "are missing"),
            (new, "is new" if len(new) == 1 else "are new"),
        )
        if names
    ]
    return f"{' and '.join(said)} ({len(now)} classes, was {len(before)})"


def _of_listings(before: Listing, now: Listing, classes: tuple[str, ...]) -> str:
    count = f"{len(now):,} images, and was {len(before):,}"
    if before.names is None or now.names is None:
        if len(now) != len(before) or (before.names is None) != (now.names is None):
            return count
        return _of_images(before, now, classes, range(len(now))) or count
    places, others = ({each.name(i): i for i in range(len(each))} for each in (before, now))
    missing, new = ([n for n in a if n not in b] for a, b in ((places, others), (others, places)))
    if missing or new:
        said = [
            f"{len(names):,} {what}, the first {names[0]}"
            for names, what in ((missing, "missing"), (new, "new"))
            if names
        ]
        return f"{count}: {'; '.join(said)}"
    same = [places[now.name(i)] for i in range(len(now))]
    if (said_of := _of_images(before, now, classes, same)) is not None:
        return said_of
    first = next(i for i, place in enumerate(same) if i != place)
    return f"the same {len(now):,} images in another order, from {now.name(first)} on"


def _of_images(
    before: Listing, now: Listing, classes: tuple[str, ...], same: Iterable[int]
) -> str | None:
    """The first of the images, each beside its place before, whose label or number differs."""
    order = np.fromiter(same, dtype=np.int64)
    if len(moved := np.flatnonzero(now.labels != before.labels[order])):
        first = moved[0]
        was, is_ = (classes[int(v)] for v in (before.labels[order][first], now.labels[first]))
        return f"{len(moved):,} labels differ; {now.name(first)} is {is_!r}, and was {was!r}"
    for what, numbers in now.marks.items():
        if what not in before.marks:
            return f"its {what} were not on record"
        theirs = before.marks[what][order]
        if len(other := np.flatnonzero(numbers != theirs)):
            first = other[0]
            sizes = f" ({numbers[first]:,}, was {theirs[first]:,})" if "bytes" in what else ""
            have = "image has" if len(other) == 1 else "images have"
            return f"{len(other):,} {have} other {what}; the first is {now.name(first)}{sizes}"
    return None
