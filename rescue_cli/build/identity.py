"""What a run is trained on, kept beside its checkpoint: the data and weights, and where they lay.

The places are no part of what they are: a run goes on where its data have moved, and nowhere else.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli import distributed
from rescue_cli.build.feeds import list_dataset
from rescue_cli.errors import DataError, RescueError
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import ROOTS, WEIGHTS, flat, is_path
from rescue_cli.rundir import RunDirectory, read_identity, write_json, write_whole
from rescue_cli.sections.data import (
    PACKAGED,
    Dataset,
    Fingerprint,
    Listing,
    Place,
    difference,
    fingerprint_of,
    from_arrays,
    listing_of,
)
from rescue_cli.sections.model.weights import placed

FORMAT = 1
CURE = "Put it back as it was, or begin a new run with another --out."
Places = Mapping[str, str]  # absolute paths by the recipe's keys


@dataclass(frozen=True)
class Identity:
    """Data and weights of a run as they are now, and where."""

    data: Fingerprint
    weights: Mapping[str, str]  # digests by the recipe's keys
    places: Places


@dataclass(frozen=True)
class Kept:
    """What stands in `data.json`; `splits` are the number of images and the digest of each."""

    format: int
    digest: str
    classes: Sequence[str]
    splits: Mapping[str, Mapping[str, Any]]
    weights: Mapping[str, str]
    places: Sequence[Places]  # the first, and each that came after it


def identity(recipe: Recipe, data: Dataset) -> Identity:
    """Of the images that the recipe trains and evaluates on; none of them is read."""
    main = next(iter(data.tests))
    named = [name if name in data.tests else main for name in recipe.eval.sets or [main]]
    places = _places(recipe)
    weights = {key: _digest(place) for key, place in places.items() if key in WEIGHTS}
    found = fingerprint_of(data, dict.fromkeys(named))
    return Identity(found, {key: each for key, each in weights.items() if each}, places)


class Looked:
    """The identity of each recipe's data, looked at once."""

    def __init__(self) -> None:
        self._known: dict[str, Identity] = {}

    def __call__(self, recipe: Recipe) -> Identity:
        """Raises `DataError` where the data are not there."""
        tree = recipe.tree
        key = repr([tree["data"], tree["eval"], tree["model"], tree.get("teacher")])
        if key not in self._known:
            self._known[key] = identity(recipe, list_dataset(recipe))
        return self._known[key]


def _places(recipe: Recipe) -> dict[str, str]:
    given = {k: v for k, v in flat(recipe.tree).items() if v is not None and is_path(k, v)}
    place = Place(recipe.data.name, recipe.data)
    if not any(key in given for key in ROOTS) and place.has_root and place.name != PACKAGED:
        given["data.root"] = place.root  # of RESCUE_DATA
    return {key: os.path.abspath(os.path.expanduser(value)) for key, value in given.items()}


def _digest(source: str) -> str | None:
    """Of a weights file; None where there is none, which whoever loads it will say."""
    try:
        file, part = placed(source)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        return f"{digest}#{part}" if part else digest
    except (OSError, DataError):
        return None


# --- the run's record ---


def kept(run: RunDirectory) -> Kept | None:
    """What the run keeps of its data; None of a run of an older version. Raises `DataError`."""
    found = read_identity(run)
    return None if found is None else Kept(**{key: found[key] for key in Kept.__annotations__})


def keep(run: RunDirectory, now: Identity, before: Kept | None = None) -> None:
    """Puts it on record; where the data lay `before` stays there."""
    places = [*(before.places if before else []), now.places]
    splits = {
        name: {"images": len(split), "digest": split.digest}
        for name, split in now.data.splits.items()
    }
    record = Kept(FORMAT, now.data.digest, now.data.classes, splits, now.weights, places)
    if before is None:
        arrays = now.data.arrays()
        write_whole(run.listing, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]
    write_json(run.data, asdict(record))


def fault(run: RunDirectory, before: Kept, now: Identity) -> str | None:
    """What to tell the user where data or weights are not those of the run's record."""
    if before.digest != now.data.digest:
        where = "".join(f" ({key}: {now.places[key]})" for key in ROOTS if key in now.places)
        return (
            f"{run.path}: was trained on other data{where}: {_told(run, before, now.data)}. {CURE}"
        )
    for key, digest in now.weights.items():
        if before.weights.get(key, digest) != digest:
            return f"{run.path}: {key}: {now.places[key]} is not the file it began with. {CURE}"
    return None


def _told(run: RunDirectory, before: Kept, now: Fingerprint, *, whole: bool = True) -> str:
    """The difference, by the names on record; without them by the numbers of images."""
    known = _fingerprint(run)
    if known is not None and known.digest == before.digest:
        splits = known.splits if whole else {name: known.splits[name] for name in now.splits}
        said = difference(Fingerprint(known.classes, splits), now)
        assert said is not None
        return said
    counts = [
        f"{name}: {len(split):,} images, and was {before.splits[name]['images']:,}"
        for name, split in now.splits.items()
        if name in before.splits and before.splits[name]["digest"] != split.digest
    ]
    return "; ".join(counts) or "its classes or test sets differ"


def _fingerprint(run: RunDirectory) -> Fingerprint | None:
    try:
        with np.load(run.listing, allow_pickle=False) as arrays:
            return from_arrays(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _has_learnt(run: RunDirectory) -> bool:
    return run.last.exists() or run.result.exists()


def demand_same(run: RunDirectory, recipe: Recipe, look: Looked) -> None:
    """Raises `DataError` where the recipe's data and weights are not what the run has learnt from.

    A run in which nothing is trained may have any.
    """
    if not _has_learnt(run):
        return
    before = kept(run)
    if before is None:
        raise DataError(
            f"{run.path}: was begun by a version that kept no record of its data, so that moved "
            "data cannot be told from other data. Put a link to it where it was, or use a new "
            "--out."
        )
    if (said := fault(run, before, look(recipe))) is not None:
        raise DataError(said)


def compare_data(runs: Mapping[Path, Recipe], done: Collection[Path], look: Looked) -> list[str]:
    """What is to be said of data that moved since a run of these was done or begun.

    Raises `DataError` where what is to be trained would see other data than what is `done`. Data
    that cannot be read here, as on a login node, are compared when there are results.
    """
    learnt = [path for path in runs if _has_learnt(RunDirectory(path))]
    records = {path: found for path in learnt if (found := kept(RunDirectory(path))) is not None}
    missing = {path.parent: recipe for path, recipe in runs.items() if path not in done}
    for path in [path for path in done if path in records and path.parent in missing]:
        try:
            now = look(missing[path.parent])
        except RescueError:
            break
        if (said := fault(RunDirectory(path), records[path], now)) is not None:
            raise DataError(said)
    lines = [_moved(found, _places(runs[path])) for path, found in records.items()]
    return [line for line in dict.fromkeys(lines) if line is not None]


def agree(run: RunDirectory, recipe: Recipe, data: Dataset) -> list[str]:
    """Holds the data against the run's record, or makes one; what is to be said of it.

    Called by every process, of which the first looks. Raises `DataError`.
    """
    faults: list[str] = []
    said: list[str] = []
    if distributed.is_first():
        now, before = identity(recipe, data), kept(run)
        resumed = run.last.exists() and run.metrics.exists()  # else it begins, or where another was
        if not resumed:
            keep(run, now)
        elif before is None:
            said.append("this run kept no record of its data; that it is the same is not checked")
            keep(run, now)
        elif (wrong := fault(run, before, now)) is not None:
            faults.append(wrong)
        elif moved := _moved(before, now.places):
            said.append(moved)
            keep(run, now, before)
    _, faults = distributed.union(0, faults)
    if faults:
        raise DataError(faults[0])
    return said


def unlike_training(recipe: Recipe, data: Dataset) -> list[str]:
    """Which test sets are not those that the weights' own run was tested on, a sentence each.

    Called by every process. Raises `DataError` for held-out images, some of which it may have
    learnt.
    """
    faults: list[str] = []
    said: list[str] = []
    file = Path(str(recipe.model.weights))
    run = RunDirectory(file.parent)
    of_run = file == run.weights and run.recipe.is_file()
    if distributed.is_first() and of_run and (before := kept(run)) is not None:
        known = _fingerprint(run)
        for name in data.tests.keys() & before.splits.keys():
            now = Fingerprint(tuple(before.classes), {name: listing_of(data.tests[name])})
            if now.splits[name].digest != before.splits[name]["digest"]:
                told = _told(run, before, now, whole=False)
                told = f"{run.path}: was tested on other images: {told}"
                held = name.startswith("holdout")
                part = known is not None and _is_part(now.splits[name], known.splits[name])
                (faults if held and not part else said).append(told)
    _, faults = distributed.union(0, faults)
    if faults:
        raise DataError(
            f"{faults[0]}. It may have learnt some of these. Put the images back, or name a test "
            "set: data.holdout=0 data.test_root=DIR."
        )
    return said


def _is_part(now: Listing, before: Listing) -> bool:
    """Whether all images were there before, as they are."""
    if now.names is None or before.names is None:
        return False

    def images(listing: Listing) -> set[tuple[Any, ...]]:
        names = (listing.name(index) for index in range(len(listing)))
        return set(zip(names, *listing.marks.values(), strict=True))

    return images(now) <= images(before)


def _moved(before: Kept, now: Places) -> str | None:
    """Where data and weights lay last, and where they lie now, in a line."""
    last = before.places[-1]
    keys = [key for key in {**last, **now} if last.get(key) != now.get(key)]
    if not keys:
        return None
    told = "; ".join(f"{key}: {last.get(key, '-')}, now {now.get(key, '-')}" for key in keys)
    images = ", ".join(f"{name} {split['images']:,}" for name, split in before.splits.items())
    return f"moved: {told}; the same images ({images})"
