"""Fingerprints that identify a data set without reading images: names, labels, file sizes.

They do not depend on the folder's path. Images with equal name, label and size in bytes count as
equal.
"""

import hashlib
import json
import unicodedata
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescue_cli.rng import Indices
from rescue_cli.sections.data.annotated import Boxed, Masked
from rescue_cli.sections.data.formats.coco_shapes import ShapeMasks, shapes_checksum
from rescue_cli.sections.data.splits import Dataset, FileNames, Files, Images, Split, join_names


@dataclass(frozen=True)
class SplitListing:
    """A split's images in order: names, labels (n,), and checksums or sizes (n,) by kind.

    `names` is None for images in memory that do not come from files.
    """

    names: FileNames | None
    labels: Indices
    marks: Mapping[str, Indices]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        hasher = hashlib.blake2b(digest_size=16)
        arrays: list[NDArray[Any]] = [self.labels, *self.marks.values()]
        if self.names is not None:
            arrays += [self.names.ends, self.names.block]
        for array in arrays:
            hasher.update(np.ascontiguousarray(array).data)  # not a copy of the names
        return hasher.hexdigest()

    def name(self, index: int) -> str:
        """The image's name in messages."""
        return f"image {index}" if self.names is None else self.names.name(index)


@dataclass(frozen=True)
class Fingerprint:
    """The classes in order, and the splits by name, `train` first."""

    classes: tuple[str, ...]
    splits: Mapping[str, SplitListing]

    @cached_property
    def digest(self) -> str:
        parts = [list(self.classes), {name: split.digest for name, split in self.splits.items()}]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays from which `fingerprint_from_arrays` restores it."""
        arrays_: dict[str, NDArray[Any]] = {"classes": np.array(json.dumps(self.classes))}
        for split, listing in self.splits.items():
            arrays_[f"{split}/labels"] = listing.labels
            arrays_ |= {f"{split}/marks/{what}": each for what, each in listing.marks.items()}
            if listing.names is not None:
                arrays_[f"{split}/block"] = listing.names.block
                # Compressed, the ends themselves would take as much space as the names
                lengths = np.diff(listing.names.ends, prepend=0)
                arrays_[f"{split}/lengths"] = lengths.astype(np.uint32)
        return arrays_


def fingerprint_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Fingerprint:
    """Restores a fingerprint from its `arrays()`; raises `KeyError` and `ValueError`."""
    splits = {}
    for key in arrays:
        split, _, field = key.partition("/")
        if field == "labels":
            marks = {
                k.removeprefix(f"{split}/marks/"): each
                for k, each in arrays.items()
                if k.startswith(f"{split}/marks/")
            }
            names = None
            if f"{split}/block" in arrays:
                # A run of an older version has the ends
                ends = (
                    arrays[f"{split}/ends"]
                    if f"{split}/ends" in arrays
                    else np.cumsum(arrays[f"{split}/lengths"], dtype=np.int64)
                )
                names = FileNames("", arrays[f"{split}/block"], ends)
            splits[split] = SplitListing(names, arrays[key], marks)
    return Fingerprint(tuple(json.loads(str(arrays["classes"]))), splits)


def compute_fingerprint(dataset: Dataset, tests: Iterable[str]) -> Fingerprint:
    """The fingerprint of the training images and of these test sets."""
    splits = {"train": dataset.train, **{name: dataset.tests[name] for name in tests}}
    return Fingerprint(dataset.classes, {name: list_split(split) for name, split in splits.items()})


def list_split(split: Split) -> SplitListing:
    """Lists a split; images in memory by the files that they were decoded from, if any."""
    files = split if isinstance(split, Files) else split.files
    if isinstance(split, Images) and files is None:
        sums = np.array([zlib.crc32(image.tobytes()) for image in split.pixels], np.int64)
        return SplitListing(None, split.labels, {"pixels": sums})
    assert files is not None
    marks = {"bytes": files.names.sizes()}
    if isinstance(files, Boxed):
        marks["boxes"] = np.array(
            [zlib.crc32(b"".join(part.tobytes() for part in objects)) for objects in files.objects],
            np.int64,
        )
    if isinstance(files, Masked):
        marks["bytes of its mask"] = files.masks.sizes()
    if isinstance(files, ShapeMasks):
        marks["shapes"] = np.array(
            [shapes_checksum(of_image) for of_image in files.shapes], np.int64
        )
    return SplitListing(_normalise_names(files.names), files.labels, marks)


def _normalise_names(names: FileNames) -> FileNames:
    """The names in Unicode's composed form (NFC): macOS decomposes accents when it copies."""
    if not len(names.block) or names.block.max() < 128:
        return names
    each = (unicodedata.normalize("NFC", names.name(i)) for i in range(len(names)))
    return FileNames.of(Path(names.root), each)


# --- differences ---


def describe_difference(before: Fingerprint, now: Fingerprint) -> str | None:
    """Says how two data sets differ, as the end of a sentence; None where they are the same."""
    if before.digest == now.digest:
        return None
    if before.classes != now.classes:
        return _describe_classes(before.classes, now.classes)
    for split, listing in now.splits.items():
        if split not in before.splits:
            return f"its test set is {split}, and was {', '.join([*before.splits][1:]) or 'none'}"
        if listing.digest != before.splits[split].digest:
            return f"{split}: {_describe_listings(before, now, split)}"
    return f"the test set {next(s for s in before.splits if s not in now.splits)} is missing"


def _describe_classes(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    missing, new = ([c for c in a if c not in set(b)] for a, b in ((before, now), (now, before)))
    if not missing and not new:
        a, b = next((a, b) for a, b in zip(before, now, strict=True) if a != b)
        return f"its classes are in another order: {b!r} where {a!r} was"
    changes = [
        f"the class{'' if len(names) == 1 else 'es'} {join_names([repr(name) for name in names])} "
        f"{verb}"
        for names, verb in (
            (missing, "is missing" if len(missing) == 1 else "are missing"),
            (new, "is new" if len(new) == 1 else "are new"),
        )
        if names
    ]
    return f"{' and '.join(changes)} ({len(now)} classes, was {len(before)})"


def _describe_listings(earlier: Fingerprint, later: Fingerprint, split: str) -> str:
    before, now = earlier.splits[split], later.splits[split]
    count = f"{len(now):,} images, and was {len(before):,}"
    if before.names is None or now.names is None:
        if len(now) != len(before) or (before.names is None) != (now.names is None):
            return count
        return _describe_images(before, now, later.classes, range(len(now))) or count
    before_index, now_index = (
        {each.name(i): i for i in range(len(each))} for each in (before, now)
    )
    gone, come = (
        [n for n in a if n not in b]
        for a, b in ((before_index, now_index), (now_index, before_index))
    )
    if gone or come:
        left, missing = _sort_by_split(gone, earlier, later, split)
        entered, new = _sort_by_split(come, later, earlier, split)
        changes = [
            *((names, f"in {other} now") for other, names in left.items()),
            (missing, "missing"),
            *((names, f"from {other}") for other, names in entered.items()),
            (new, "new"),
        ]
        shown = [f"{len(names):,} {what}, the first {names[0]}" for names, what in changes if names]
        return f"{count}: {'; '.join(shown)}"
    same = [before_index[now.name(i)] for i in range(len(now))]
    if (image_change := _describe_images(before, now, later.classes, same)) is not None:
        return image_change
    first = next(i for i, old_index in enumerate(same) if i != old_index)
    return f"the same {len(now):,} images in another order, from {now.name(first)} on"


def _sort_by_split(
    names: Iterable[str], here: Fingerprint, there: Fingerprint, split: str
) -> tuple[dict[str, list[str]], list[str]]:
    """Names that a split has here and not there, by the split that has them there alone; and the
    rest.
    """
    places: dict[str, str] = {}
    for other, listing in there.splits.items():
        if other != split and other in here.splits:
            places |= dict.fromkeys(_names(listing) - _names(here.splits[other]), other)
    moved: dict[str, list[str]] = {}
    rest = []
    for name in names:
        moved.setdefault(places[name], []).append(name) if name in places else rest.append(name)
    return moved, rest


def _names(listing: SplitListing) -> set[str]:
    return {listing.name(index) for index in range(len(listing))}


def _describe_images(
    before: SplitListing, now: SplitListing, classes: tuple[str, ...], same: Iterable[int]
) -> str | None:
    """Describes changed labels or checksums; `same` is each image's index in `before`."""
    order = np.fromiter(same, dtype=np.int64)
    if len(relabelled := np.flatnonzero(now.labels != before.labels[order])):
        first = relabelled[0]
        was, is_ = (classes[int(v)] for v in (before.labels[order][first], now.labels[first]))
        return f"{len(relabelled):,} labels differ; {now.name(first)} is {is_!r}, and was {was!r}"
    for mark, numbers in now.marks.items():
        if mark not in before.marks:
            return f"its {mark} were not recorded"
        old = before.marks[mark][order]
        if len(changed := np.flatnonzero(numbers != old)):
            first = changed[0]
            sizes = f" ({numbers[first]:,}, was {old[first]:,})" if "bytes" in mark else ""
            have = "image has" if len(changed) == 1 else "images have"
            return f"{len(changed):,} {have} other {mark}; the first is {now.name(first)}{sizes}"
    return None
