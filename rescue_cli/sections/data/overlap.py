"""Test images that are training images too: their accuracy says nothing about new images."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.recipe import DataKeys
from rescue_cli.rng import Indices
from rescue_cli.sections.data.packed.names import PackedNames
from rescue_cli.sections.data.splits import THREADS, Dataset, Files, Split, suggest_holdout

SAMPLE = 1000  # files of a split that are read at most, evenly spaced; of small folders all
HEAD = 2**16  # bytes of a file that are compared, beside its size


def check_folders(dataset: Dataset, keys: DataKeys, *, own: bool) -> list[str]:
    """A warning where the main test set is the training folder; of the user's `own` data raises
    `DataError`.
    """
    name, test = next(iter(dataset.tests.items()), ("", dataset.train))
    if keys.holds_out or not isinstance(test, Files) or not isinstance(dataset.train, Files):
        return []
    names, trained = test.names, dataset.train.names
    same = os.path.realpath(names.root) == os.path.realpath(trained.root)
    if test is dataset.train or not same or not np.array_equal(names.block, trained.block):
        return []
    fault = (
        f"{names.root}: is both the training folder and the test set '{name}'; accuracy on images "
        "that were trained on says nothing about new ones."
    )
    if not own or test.annotated:
        return [f"warning: {fault}"]
    raise DataError(
        f"{fault} Set data.test_root= to other images, or remove it and hold out training images "
        f"with data.test_holdout={suggest_holdout(test.labels)}, as a transfer without --recipe "
        "does by itself."
    )


def note_shared_images(dataset: Dataset) -> list[str]:
    """A warning for each test set with files that have the content of a training file.

    Files of equal size are read, of large sets a sample.
    """
    train, warnings = dataset.train, []
    for name, split in dataset.tests.items():
        if not isinstance(train, Files) or not isinstance(split, Files):
            continue
        if _is_remote(train) or _is_remote(split):
            continue
        pairs, whole = _find_pairs(train, split)
        if not pairs:
            continue
        first, same = pairs[0]
        kind = "held-out" if name == "holdout" else "test"
        classes, cure = "", "Keep one file of each such pair"
        if not split.annotated and split.labels[first] != train.labels[same]:
            names = [dataset.classes[of] for of in (split.labels[first], train.labels[same])]
            classes = f", in another class ({' and '.join(names)})"
            cure += ", in the right class"
        warnings.append(
            f"warning: {name}: {'' if whole else 'at least '}{len(pairs):,} of {len(split):,} "
            f"{kind} images are training images too, the first {split.names.place(first)}, which "
            f"is {train.names.place(same)}{classes}. The accuracy on them says nothing about new "
            f"images. {cure}."
        )
    return warnings


def note_contradictions(train: Split) -> list[str]:
    """A warning of files of equal content that lie in two classes.

    Files of equal size are read, of large sets a sample.
    """
    if not isinstance(train, Files) or train.annotated or _is_remote(train):
        return []
    sizes = train.names.sizes()
    _, inverse, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    first: dict[bytes, int] = {}
    pairs = []
    for index, digest in _digests(train, sizes, _spaced(np.flatnonzero((counts > 1)[inverse]))):
        other = first.setdefault(digest, index)
        if train.labels[other] != train.labels[index]:
            pairs.append((train.names.place(other), train.names.place(index)))
    if not pairs:
        return []
    more = f" ({len(pairs) - 1:,} more)" if len(pairs) > 1 else ""
    return [
        f"warning: one image in two classes{more}: {' and '.join(pairs[0])}. Remove one of them."
    ]


def _is_remote(files: Files) -> bool:
    """Whether its images lie on a store, from which each would be fetched."""
    names = files.names
    return isinstance(names, PackedNames) and any(s.is_remote for s in names.index.shards)


def _find_pairs(train: Files, test: Files) -> tuple[list[tuple[int, int]], bool]:
    """(test image, training image) of equal content; and whether all were compared."""
    sizes, test_sizes = train.names.sizes(), test.names.sizes()
    among = np.flatnonzero(np.isin(test_sizes, sizes) & (test_sizes > 0))
    asked = _spaced(among)
    candidates = np.flatnonzero(np.isin(sizes, test_sizes[asked]))
    read = _spaced(candidates)
    known: dict[bytes, int] = {}
    for index, digest in _digests(train, sizes, read):
        known.setdefault(digest, index)
    pairs = [(i, known[d]) for i, d in _digests(test, test_sizes, asked) if d in known]
    return pairs, len(asked) == len(among) and len(read) == len(candidates)


def _spaced(indices: Indices) -> Indices:
    """At most `SAMPLE` of them."""
    if len(indices) <= SAMPLE:
        return indices
    return indices[np.linspace(0, len(indices) - 1, SAMPLE).astype(np.int64)]


def _digests(files: Files, sizes: Indices, indices: Indices) -> Iterator[tuple[int, bytes]]:
    """(index, digest) of each file that can be read; others are reported when they are decoded."""

    def digest(index: int) -> bytes | None:
        try:
            content = files.names.read(index)[:HEAD]
        except (OSError, DataError):
            return None
        return hashlib.blake2b(content, digest_size=16, salt=b"%d" % sizes[index]).digest()

    with ThreadPoolExecutor(THREADS) as pool:
        for index, found in zip(indices, pool.map(digest, indices.tolist()), strict=True):
            if found is not None:
                yield int(index), found
