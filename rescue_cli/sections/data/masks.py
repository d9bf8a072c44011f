"""Segmentation: folders of images, each with a mask of the same name that numbers its classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe.sections import HIGHEST, Exif
from rescue_cli.rng import permute
from rescue_cli.sections.annotations import IGNORED
from rescue_cli.sections.data.annotation_checks import common_size, size_of
from rescue_cli.sections.data.decode import UNREADABLE
from rescue_cli.sections.data.listing import PassedOver, by_stem, images_in
from rescue_cli.sections.data.location import Place
from rescue_cli.sections.data.names import lines_of, plain, stem
from rescue_cli.sections.data.paired import UNKNOWN, Coding, Masked, numbered
from rescue_cli.sections.data.splits import NAMED, SPLIT_SEED, Dataset, FileNames, Split, some

ADE20K = 150
NOT_COUNTED = "ignored"  # in data.mask_values, the name of what is no class
ONE_SIZE = "Bring mask and image to one size."


def mask_folder(place: Place) -> Dataset:
    """`SPLIT/images/*`, `SPLIT/masks/*.png`, and `classes.txt` with a name a line, from label 0.

    train and val together, tested on test; without a folder `test` train alone, tested on val, or
    on what `data.holdout` takes; an evaluation needs no training images. 255 in a mask is ignored.
    `data.mask_values` says what other values mean, in place of the file.
    """
    root, given = place.top, place.keys.mask_values
    values = {plain(name): each for name, each in (given or {}).items()}
    classes, coding = _coding(root / "classes.txt", values)
    found = {name: place.split(name) or root / name for name in ("train", "val", "test")}
    tested = "test" if found["test"].is_dir() else "val"
    parts = {"train": ["train"], tested: [tested]}
    if tested == "test" and found["val"].is_dir():
        parts["train"].append("val")
    if place.test_only and not found["train"].is_dir():
        parts["train"].clear()
    if place.keys.holdout and not found[tested].is_dir():
        del parts[tested]
    passed = PassedOver(sizes=True)
    splits = {
        name: _read(root, [_pair(found[part].name) for part in read], coding, passed)
        for name, read in parts.items()
    }
    for split in splits.values():
        _check_sizes(split, place.keys.exif)
    judged = {name: split for name, split in splits.items() if len(split)}
    lacking = check_ignored(judged, classes, given=bool(given))
    train = splits.pop("train")
    tests = {name: found[name] for name in splits}
    notes = (*place.notes(tests), *passed.notes(), *lacking)
    return Dataset(train, dict(splits), classes, notes=notes)


def _pair(split: str) -> tuple[str, str]:
    return f"{split}/images", f"{split}/masks"


def _named(file: Path) -> tuple[tuple[str, ...], Coding]:
    """The classes of `classes.txt`, numbered from 0."""
    if not file.is_file():
        raise DataError(
            f"{file}: no such file. It holds the classes' names, a line each; or give "
            "data.mask_values={NAME: VALUE, ...}."
        )
    classes = tuple(plain(line) for line in lines_of(file))
    if len(classes) > IGNORED:
        raise DataError(f"{file}: names {len(classes)} classes; a mask has at most {IGNORED}.")
    return classes, numbered(len(classes), 0)


def _coding(file: Path, given: Mapping[str, int | list[int]]) -> tuple[tuple[str, ...], Coding]:
    """The classes that are `given`, in that order; those of the file where none is.

    Raises `DataError`, `UsageError`.
    """
    classes = tuple(name for name in given if name != NOT_COUNTED)
    if len(classes) > IGNORED:
        raise UsageError(f"data.mask_values: {len(classes)} classes; a mask has at most {IGNORED}.")
    table = np.full(HIGHEST + 1, UNKNOWN, dtype=np.int16)
    words = ""
    if not classes:
        classes, (numbers, words) = _named(file)
        table[: len(numbers)] = numbers
    taken = set(np.flatnonzero((table != UNKNOWN) & (table != IGNORED)).tolist())
    for name, values in given.items():
        for value in [values] if isinstance(values, int) else values:
            if value in taken:
                raise UsageError(f"data.mask_values.{name}: {value} has a meaning. Name it once.")
            taken.add(value)
            table[value] = IGNORED if name == NOT_COUNTED else classes.index(name)
    if table[IGNORED] == UNKNOWN:
        table[IGNORED] = IGNORED
    named = ", ".join(map(str, sorted(taken)))
    return classes, Coding(table, words or f"data.mask_values names {named}")


def ade20k(place: Place) -> Dataset:
    """ADE20K's scene parsing benchmark: 150 classes, of which a mask's 0 is none.

    `data.root` holds `images/` and `annotations/`, each with `training` and `validation`, and
    `objectInfo150.txt`; or the folder `ADEChallengeData2016` that the archive unpacks to.
    """
    inner = place.root / "ADEChallengeData2016"
    root = inner if inner.is_dir() else place.root
    passed = PassedOver()
    splits = {
        part: _read(root, [(f"images/{part}", f"annotations/{part}")], numbered(ADE20K, 1), passed)
        for part in ("training", "validation")
    }
    tests: dict[str, Split] = {"val": splits["validation"]}
    return Dataset(splits["training"], tests, _ade_names(root), notes=passed.notes())


def _ade_names(root: Path) -> tuple[str, ...]:
    """The last column of `objectInfo150.txt`, up to its first synonym."""
    file = root / "objectInfo150.txt"
    if not file.is_file():
        raise DataError(f"{file}: no such file. It comes with the benchmark's archive.")
    rows = [plain(line.split("\t")[-1].split(",")[0]) for line in lines_of(file)]
    names = tuple(rows[1:])
    if len(names) != ADE20K:
        raise DataError(f"{file}: names {len(names)} classes, not {ADE20K}. Unpack it anew.")
    return names


def _read(root: Path, pairs: list[tuple[str, str]], coding: Coding, passed: PassedOver) -> Masked:
    """The images of some folders with their masks; raises `DataError`."""
    images: list[str] = []
    masks: list[str] = []
    for of_images, of_masks in pairs:
        folder = root / of_images
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder. Point data.root= at the folder above.")
        names = images_in(folder, passed)
        if not names:
            raise DataError(f"{folder}: holds no image that can be read. Put them there.")
        known = by_stem(root / of_masks, (".png",))
        for name in names:
            mask = known.get(plain(stem(name)))
            if mask is None:
                raise DataError(
                    f"{root / of_masks / stem(name)}.png: no such file; it is the mask of {name}. "
                    "Add it, or remove the image."
                )
            images.append(f"{of_images}/{name}")
            masks.append(f"{of_masks}/{mask}")
    labels = np.zeros(len(images), dtype=np.int64)
    return Masked(FileNames.of(root, images), labels, FileNames.of(root, masks), coding)


def _check_sizes(split: Masked, exif: Exif) -> None:
    """Raises `DataError` for the first mask of another size than its image."""
    for index in range(len(split)):
        mask = split.masks.path(index)
        said = size_of(mask, "ignored")
        if said is not None:
            common_size(mask, split.names.path(index), said, exif, ONE_SIZE)


def check_ignored(
    splits: Mapping[str, Masked], classes: Sequence[str], *, given: bool
) -> tuple[str, ...]:
    """Which classes have no pixel in a split, a sentence each.

    Raises `DataError` where such a class is in no split, or only one class is left to judge, while
    255 is there and nobody `given` what it means: 0 and 255 are the usual values of two classes.
    """
    found = [(name, split, seen(split, len(classes))) for name, split in splits.items()]
    everywhere = set().union(*(there.classes for _, _, there in found))
    notes = []
    for name, split, there in found:
        lacking = [c for place, c in enumerate(classes) if place not in there.classes]
        nowhere = [c for place, c in enumerate(classes) if place not in everywhere]
        alone = len(there.classes) == 1 and len(classes) > 1
        if there.first_ignored is not None and not given and (nowhere or alone):
            file = split.masks.path(there.first_ignored)
            missing = (nowhere or lacking)[0]
            raise DataError(
                f"{file}: holds {IGNORED}, which is ignored, and no mask of {name} holds the class "
                f"'{missing}'. Say what each value means, as data.mask_values="
                f"{{{_example(classes, missing)}}}. Where {IGNORED} is to be ignored, "
                f"give data.mask_values={{{NOT_COUNTED}: {IGNORED}}}, or remove the class."
            )
        if lacking:
            notes.append(
                f"{name} has no pixel of {len(lacking)} of {len(classes)} classes: {some(lacking)}"
            )
    return tuple(notes)


def _example(classes: Sequence[str], missing: str) -> str:
    values = {name: IGNORED if name == missing else place for place, name in enumerate(classes)}
    if len(values) > NAMED:
        return f"{classes[0]}: {values[classes[0]]}, ..., {missing}: {IGNORED}"
    return ", ".join(f"{name}: {value}" for name, value in values.items())


class Seen(NamedTuple):
    """The classes in the masks of a split, and the place of the first mask with ignored pixels."""

    classes: frozenset[int]
    first_ignored: int | None


def seen(split: Masked, classes: int) -> Seen:
    """Looks until every class was seen, at masks spread over the split."""
    found: set[int] = set()
    ignored = None
    for index in permute(np.arange(len(split)), len(split), SPLIT_SEED, 0).tolist():
        try:
            values = np.unique(np.asarray(split.target(index)))
        except UNREADABLE:  # as a ValueError for a label that there is not: said when it is read
            continue
        found.update(values[values != IGNORED].tolist())
        if ignored is None and IGNORED in values:
            ignored = index
        if len(found) == classes:
            break
    return Seen(frozenset(found), ignored)
