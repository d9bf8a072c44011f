"""Data sets of the user's own."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.recipe.own import Own
from rescue_cli.rng import Indices
from rescue_cli.sections.data.location import Facts, Location
from rescue_cli.sections.data.splits import Dataset, FileNames, Files, Images, Split

ATTRIBUTES = ("classes", "channels", "size", "images", "mean", "std")
FOLDERS = ("train_root", "test_root", "sets")


def own_data(own: Own) -> Callable[..., Dataset]:
    """A data set: a class whose attributes say what it holds, and whose instances read it.

    `train()` and `test()` return images and labels (n,): images (n, channels, size, size) uint8, or
    a list of image files. The attributes are `classes` (names), `channels`, `size` (pixels; None
    for files), `images` (for training), `mean` and `std` (per channel, of pixels in [0, 1]). An
    `__init__` that takes `root` gets `data.root`.
    """
    facts = _read_facts(own)

    def read(location: Location, **options: Any) -> Dataset:
        given = location.keys.root
        if "root" in own.parameters and given is None:
            raise DataError(f"data.root: missing; {location.name} reads a folder. Give it.")
        for key in FOLDERS:
            if getattr(location.keys, key):
                raise own.error(f"has data.root alone. Remove it with ~data.{key}.")
        root = Path(os.path.expanduser(given or "."))
        source = own.call(options, root=root)
        test = _split(own, facts, root, "test", source.test())
        train = test.take(np.zeros(0, dtype=np.int64))
        if not location.test_only:
            train = _split(own, facts, root, "train", source.train())
            if len(train) != facts.images:
                raise own.error(f"has images={facts.images}, and train() returns {len(train)}.")
        return Dataset(train, {"test": test}, tuple(own.target.classes))  # type: ignore[attr-defined]

    read.facts = facts  # type: ignore[attr-defined]
    return own.with_keys(read, "root")


def _read_facts(own: Own) -> Facts:
    lacking = [name for name in (*ATTRIBUTES, "train", "test") if not hasattr(own.target, name)]
    if lacking or not isinstance(own.target, type):
        raise own.error(f"is no data set: a class with {', '.join(lacking)} is needed.")
    target: Any = own.target
    channels, mean, std = target.channels, tuple(target.mean), tuple(target.std)
    if not len(mean) == len(std) == channels:
        raise own.error(f"mean and std must have a number for each of {channels} channels.")
    return Facts(len(target.classes), channels, target.size, mean, std, target.images)


def _split(own: Own, facts: Facts, root: Path, name: str, given: Any) -> Split:
    """What `train()` or `test()` returned, checked."""
    try:
        images, labels = given
        numbers = np.asarray(labels, dtype=np.int64)
    except (TypeError, ValueError):
        raise own.error(f"{name}() must return images and labels.") from None
    assert facts.classes is not None
    if numbers.ndim != 1 or len(numbers) != len(images):
        raise own.error(f"{name}() returns {len(images)} images and labels {numbers.shape}.")
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < facts.classes:
        raise own.error(f"{name}() returns labels outside 0 to {facts.classes - 1}.")
    if facts.size is None:
        return _files(root, images, numbers)
    pixels = np.ascontiguousarray(images)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (facts.channels, facts.size, facts.size):
        raise own.error(
            f"{name}() returns images {pixels.shape} {pixels.dtype}, and must return (n, "
            f"{facts.channels}, {facts.size}, {facts.size}) uint8."
        )
    return Images(pixels, numbers)


def _files(root: Path, paths: Sequence[Any], labels: Indices) -> Files:
    """Named relative to the folder, so that the same images elsewhere are the same data."""
    return Files(FileNames.of(root, [os.path.relpath(path, root) for path in paths]), labels)
