"""The identity of the data and weights that a run trains on, recorded beside its checkpoint.

Paths are no part of the identity: a run resumes where its data has been moved to, and not on other
data.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli import distributed
from rescue_cli.build.feeds import list_dataset
from rescue_cli.errors import DataError, RescueError
from rescue_cli.formatting import format_count
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import ROOTS, WEIGHTS, places
from rescue_cli.rundir import RunDirectory, read_identity, write_atomically, write_json
from rescue_cli.sections.data import (
    FACTS,
    PACKAGED,
    Dataset,
    Fingerprint,
    Location,
    Split,
    SplitListing,
    compute_fingerprint,
    describe_difference,
    fingerprint_from_arrays,
    list_split,
)
from rescue_cli.sections.data.packed.remote import is_url
from rescue_cli.sections.data.splits import HELD_OUT
from rescue_cli.sections.model.weights import locate_file

FORMAT = 1
CURE = "Restore it, or start a new run with another --out."
Paths = Mapping[str, str]  # absolute, by the recipe's keys


@dataclass(frozen=True)
class Identity:
    """Data and weights of a run as they are now, and their paths."""

    data: Fingerprint
    weights: Mapping[str, str]  # digests by the recipe's keys
    places: Paths


@dataclass(frozen=True)
class DataRecord:
    """The contents of `data.json`; `splits` has the number of images and the digest of each."""

    format: int
    digest: str
    classes: Sequence[str]
    splits: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, str]
    places: Sequence[Paths]  # the first, and each later one


def identify(recipe: Recipe, data: Dataset) -> Identity:
    """The identity of what the recipe trains and evaluates on; no image is read."""
    main = next(iter(data.tests))
    named = [name if name in data.tests else main for name in recipe.eval.sets or [main]]
    paths = _paths(recipe)
    digests = {key: _digest(path) for key, path in paths.items() if key in WEIGHTS}
    weights = {key: digest for key, digest in digests.items() if digest is not None}
    return Identity(compute_fingerprint(data, dict.fromkeys(named)), weights, paths)


class IdentityCache:
    """The identity of each recipe's data, computed once."""

    def __init__(self) -> None:
        self._known: dict[str, Identity] = {}

    def __call__(self, recipe: Recipe) -> Identity:
        """Raises `DataError` where the data are not there."""
        tree = recipe.tree
        parts = (tree["data"], tree["eval"], tree["model"], tree.get("teacher"), recipe.code)
        key = repr(parts)
        if key not in self._known:
            self._known[key] = identify(recipe, list_dataset(recipe))
        return self._known[key]


def _paths(recipe: Recipe) -> dict[str, str]:
    given = places(recipe)
    place = Location(recipe.data.name, recipe.data)
    elsewhere = place.name in FACTS and place.name != PACKAGED
    if not any(key in given for key in ROOTS) and place.has_root and elsewhere:
        given["data.root"] = str(place.root)  # of RESCUE_DATA
    return {key: _absolute(value) for key, value in given.items()}


def _absolute(place: str) -> str:
    return place if is_url(place) else os.path.abspath(os.path.expanduser(place))


def _digest(source: str) -> str | None:
    """The digest of a weights file; None where it cannot be read, which loading it will report."""
    try:
        file, part = locate_file(source)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        return f"{digest}#{part}" if part else digest
    except (OSError, DataError):
        return None


# --- the run's record ---


def read_record(run: RunDirectory) -> DataRecord | None:
    """The run's record of its data; None for a run of an older version. Raises `DataError`."""
    values = read_identity(run)
    return (
        None
        if values is None
        else DataRecord(**{key: values[key] for key in DataRecord.__annotations__})
    )


def write_record(run: RunDirectory, now: Identity, before: DataRecord | None = None) -> None:
    """Records the identity; the paths of the record `before` are kept in it."""
    places = [*(before.places if before else []), now.places]
    splits = {
        name: {"images": len(split), "digest": split.digest}
        for name, split in now.data.splits.items()
    }
    record = DataRecord(FORMAT, now.data.digest, now.data.classes, splits, now.weights, places)
    if before is None:
        arrays = now.data.arrays()
        write_atomically(run.listing, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    write_json(run.data, asdict(record))


def find_fault(run: RunDirectory, before: DataRecord, now: Identity) -> str | None:
    """The error message where data or weights are not those of the run's record."""
    if before.digest != now.data.digest:
        where = "".join(f" ({key}: {now.places[key]})" for key in ROOTS if key in now.places)
        difference = _describe(run, before, now.data)
        return f"{run.path}: was trained on other data{where}: {difference}. {CURE}"
    for key, digest in now.weights.items():
        if before.weights.get(key, digest) != digest:
            return f"{run.path}: {key}: {now.places[key]} is not the file it started from. {CURE}"
    return None


def _describe(
    run: RunDirectory, before: DataRecord, now: Fingerprint, *, whole: bool = True
) -> str:
    """The difference, by the recorded names; without them by the numbers of images."""
    known = _read_fingerprint(run)
    if known is not None and known.digest == before.digest:
        splits = known.splits if whole else {name: known.splits[name] for name in now.splits}
        text = describe_difference(Fingerprint(known.classes, splits), now)
        assert text is not None
        return text
    counts = [
        f"{name}: {len(split):,} images, and was {before.splits[name]['images']:,}"
        for name, split in now.splits.items()
        if name in before.splits and before.splits[name]["digest"] != split.digest
    ]
    return "; ".join(counts) or "its classes or test sets differ"


def _read_fingerprint(run: RunDirectory) -> Fingerprint | None:
    try:
        with np.load(run.listing, allow_pickle=False) as arrays:
            return fingerprint_from_arrays(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _has_trained(run: RunDirectory) -> bool:
    return run.last.exists() or run.finished


def check_same_data(run: RunDirectory, recipe: Recipe, cache: IdentityCache) -> None:
    """Raises `DataError` where the recipe's data and weights are not what the run has trained on.

    A run that has not trained yet may have any.
    """
    if not _has_trained(run):
        return
    before = read_record(run)
    if before is None:
        raise DataError(
            f"{run.path}: was started by a version that kept no record of its data, so moved data "
            "cannot be distinguished from other data. Put a link to it at its old path, or use a "
            "new --out."
        )
    if (message := find_fault(run, before, cache(recipe))) is not None:
        raise DataError(message)


def compare_data(
    runs: Mapping[Path, Recipe], done: Collection[Path], cache: IdentityCache
) -> list[str]:
    """A note for all data that moved since one of these runs was started.

    Raises `DataError` where the data are not those that the runs that are `done` were trained on.
    Data that cannot be read here, as on a login node, is compared when there are results.
    """
    trained = [path for path in runs if _has_trained(RunDirectory(path))]
    records = {path: r for path in trained if (r := read_record(RunDirectory(path))) is not None}
    for path in [path for path in done if path in records]:
        try:
            now = cache(runs[path])
        except RescueError:
            break
        if (message := find_fault(RunDirectory(path), records[path], now)) is not None:
            raise DataError(message)
    lines = [_describe_move(record, _paths(runs[path])) for path, record in records.items()]
    return [line for line in dict.fromkeys(lines) if line is not None]


def check_or_record(run: RunDirectory, recipe: Recipe, data: Dataset) -> list[str]:
    """Compares the data with the run's record, or writes one; notes for the log.

    Called by every process; the first compares. Raises `DataError` in all of them.
    """
    faults: list[str] = []
    notes: list[str] = []
    if distributed.is_first():
        now, before = identify(recipe, data), read_record(run)
        # A checkpoint without metrics is another run's, from which this one starts
        resumed = run.last.exists() and run.metrics.exists()
        if not resumed:
            write_record(run, now)
        elif before is None:
            notes.append(
                "this run has no record of its data; whether it is the same is not checked"
            )
            write_record(run, now)
        elif (fault := find_fault(run, before, now)) is not None:
            faults.append(fault)
        elif moved := _describe_move(before, now.places):
            notes.append(moved)
            write_record(run, now, before)
    _, faults = distributed.merge_over_ranks(0, faults)
    if faults:
        raise DataError(faults[0])
    return notes


def compare_test_sets(recipe: Recipe, data: Dataset) -> list[str]:
    """A note for each test set that is not the one that the weights' own run was tested on.

    Called by every process. Raises `DataError` for held-out images, some of which it may have
    been trained on.
    """
    faults: list[str] = []
    notes: list[str] = []
    run = _run_of_weights(recipe)
    if distributed.is_first() and run is not None and (before := read_record(run)) is not None:
        known = _read_fingerprint(run)
        notes += _note_trained_images(recipe, run, data)
        for name in data.tests.keys() & before.splits.keys():
            now = Fingerprint(tuple(before.classes), {name: list_split(data.tests[name])})
            if now.splits[name].digest != before.splits[name]["digest"]:
                text = f"was tested on other images: {_describe(run, before, now, whole=False)}"
                if not name.startswith("holdout") or (
                    known is not None and _is_part(now.splits[name], known.splits[name])
                ):
                    notes.append(f"{run.path}: {text}")
                    continue
                drawn = None if known is None else _describe_draw(known, data, name)
                faults.append(f"{run.path}: {drawn or text}")
    _, faults = distributed.merge_over_ranks(0, faults)
    if faults:
        keys = " ".join(f"data.{key}=0" for key in HELD_OUT if getattr(recipe.data, key))
        raise DataError(
            f"{faults[0]}. It may have been trained on some of these. Restore the folder, or test "
            f"on other images, in one folder per class: {keys} data.test_root=DIR."
        )
    return notes


def _run_of_weights(recipe: Recipe) -> RunDirectory | None:
    """The run whose weights the recipe begins with; None of other weights."""
    file = Path(str(recipe.model.weights))
    run = RunDirectory(file.parent)
    return run if file == run.weights and run.recipe.is_file() else None


def count_trained_images(recipe: Recipe, split: Split) -> int:
    """How many images of a split the weights' own run was trained on, by their names and sizes.

    0 but for the user's own images, and where the run has no record of them.
    """
    run, facts = _run_of_weights(recipe), FACTS.get(recipe.data.name)
    if run is None or facts is None or facts.images is not None:
        return 0
    known, now = _read_fingerprint(run), list_split(split)
    if known is None or now.names is None or known.splits["train"].names is None:
        return 0
    return len(_images(now) & _images(known.splits["train"]))


def _note_trained_images(recipe: Recipe, run: RunDirectory, data: Dataset) -> list[str]:
    """A warning for each test set with images that the run was trained on."""
    return [
        f"warning: {name}: {run.path} was trained on {shared:,} of these {len(split):,} images, by "
        "their names and sizes; accuracy on them says nothing about new ones"
        for name, split in data.tests.items()
        if (shared := count_trained_images(recipe, split))
    ]


def _describe_draw(known: Fingerprint, data: Dataset, name: str) -> str | None:
    """That the held-out images were drawn from other files than the run's; None where this is not
    known by the files' names.
    """
    splits = {"train": data.train, **data.tests}
    before, now = known.splits, {key: list_split(split) for key, split in splits.items()}
    if before.keys() != now.keys() or any(
        listing.names is None for listing in (*before.values(), *now.values())
    ):
        return None
    old, new = ({*chain(*map(_images, each.values()))} for each in (before, now))
    gone = sorted(image[0] for image in _images(before[name]) - _images(now[name]))
    if old == new or not gone:
        return None
    come = len(_images(now[name]) - _images(before[name]))
    return (
        f"{name} is drawn anew, from a folder that has changed since the training "
        f"({format_count(len(new - old), 'file', ',')} added, {len(old - new):,} removed): "
        f"{format_count(len(gone), 'image', ',')} of then {'is' if len(gone) == 1 else 'are'} no "
        f"longer in it, the first {gone[0]}, and {come:,} {'is' if come == 1 else 'are'} new in it"
    )


def _images(listing: SplitListing) -> set[tuple[Any, ...]]:
    names = (listing.name(index) for index in range(len(listing)))
    return set(zip(names, *listing.marks.values(), strict=True))


def _is_part(now: SplitListing, before: SplitListing) -> bool:
    """Whether all images were there before, unchanged."""
    if now.names is None or before.names is None:
        return False
    return _images(now) <= _images(before)


def _describe_move(before: DataRecord, now: Paths) -> str | None:
    """The last recorded and the present paths of what has moved, in a line."""
    last = before.places[-1]
    keys = [key for key in {**last, **now} if last.get(key) != now.get(key)]
    if not keys:
        return None
    moves = "; ".join(f"{key}: {last.get(key, '-')}, now {now.get(key, '-')}" for key in keys)
    images = ", ".join(f"{name} {split['images']:,}" for name, split in before.splits.items())
    return f"moved: {moves}; the same images ({images})"
