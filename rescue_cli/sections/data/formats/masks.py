"""Segmentation: folders of images, each with a mask of the same name that numbers its classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rescue_cli.errors import DataError, UsageError
from rescue_cli.rng import permute
from rescue_cli.sections.annotations import IGNORED
from rescue_cli.sections.data.decode import UNREADABLE
from rescue_cli.sections.data.formats.annotation_checks import check_size, try_image_size
from rescue_cli.sections.data.listing import (
    SkippedFiles,
    index_by_stem,
    list_images,
    normalise_name,
    read_lines,
    stem,
)
from rescue_cli.sections.data.location import MAX_MASK_VALUE, Location
from rescue_cli.sections.data.paired import UNKNOWN, Coding, Masked, numbered
from rescue_cli.sections.data.rgb import Exif
from rescue_cli.sections.data.splits import (
    MAX_NAMES,
    SPLIT_SEED,
    Dataset,
    FileNames,
    Split,
    join_names,
)

ADE20K = 150
IGNORED_NAME = "ignored"  # in data.mask_values, the name of what is no class
FIX_ONE_SIZE = "Bring mask and image to one size."


def mask_folder(place: Location) -> Dataset:
    """`SPLIT/images/*`, `SPLIT/masks/*.png`, and `classes.txt` with a name a line, from label 0.

    train and val together, tested on test; without a folder `test` train alone, tested on val, or
    on what `data.holdout` takes; an evaluation needs no training images. 255 in a mask is ignored.
    `data.mask_values` says what other values mean, in place of the file.
    """
    root, given = place.top, place.keys.mask_values
    values = {normalise_name(name): each for name, each in (given or {}).items()}
    classes, coding = _mask_values(root / "classes.txt", values)
    found = {name: place.split(name) or root / name for name in ("train", "val", "test")}
    tested = "test" if found["test"].is_dir() else "val"
    parts = {"train": ["train"], tested: [tested]}
    if tested == "test" and found["val"].is_dir():
        parts["train"].append("val")
    if place.test_only and not found["train"].is_dir():
        parts["train"].clear()
    if place.keys.holdout and not found[tested].is_dir():
        del parts[tested]
    passed = SkippedFiles(sizes=True)
    splits = {
        name: _read_pairs(root, [_split_folders(found[part].name) for part in read], coding, passed)
        for name, read in parts.items()
    }
    for split in splits.values():
        _check_sizes(split, place.keys.exif)
    judged = {name: split for name, split in splits.items() if len(split)}
    lacking = check_classes_present(judged, classes, given=bool(given))
    train = splits.pop("train")
    tests = {name: found[name] for name in splits}
    notes = (*place.notes(tests), *passed.notes(), *lacking)
    return Dataset(train, dict(splits), classes, notes=notes)


def _split_folders(split: str) -> tuple[str, str]:
    return f"{split}/images", f"{split}/masks"


def _classes_from_file(file: Path) -> tuple[tuple[str, ...], Coding]:
    """The classes of `classes.txt`, numbered from 0."""
    if not file.is_file():
        raise DataError(
            f"{file}: no such file. It holds the classes' names, a line each; or give "
            "data.mask_values={NAME: VALUE, ...}."
        )
    classes = tuple(normalise_name(line) for line in read_lines(file))
    if len(classes) > IGNORED:
        raise DataError(f"{file}: names {len(classes)} classes; a mask has at most {IGNORED}.")
    return classes, numbered(len(classes), 0)


def _mask_values(
    file: Path, given: Mapping[str, int | list[int]]
) -> tuple[tuple[str, ...], Coding]:
    """The classes that are `given`, in that order; those of the file where none is.

    Raises `DataError`, `UsageError`.
    """
    classes = tuple(name for name in given if name != IGNORED_NAME)
    if len(classes) > IGNORED:
        raise UsageError(f"data.mask_values: {len(classes)} classes; a mask has at most {IGNORED}.")
    table = np.full(MAX_MASK_VALUE + 1, UNKNOWN, dtype=np.int16)
    words = ""
    if not classes:
        classes, (numbers, words) = _classes_from_file(file)
        table[: len(numbers)] = numbers
    taken = set(np.flatnonzero((table != UNKNOWN) & (table != IGNORED)).tolist())
    for name, values in given.items():
        for value in [values] if isinstance(values, int) else values:
            if value in taken:
                raise UsageError(f"data.mask_values.{name}: {value} has a meaning. Name it once.")
            taken.add(value)
            table[value] = IGNORED if name == IGNORED_NAME else classes.index(name)
    if table[IGNORED] == UNKNOWN:
        table[IGNORED] = IGNORED
    named = ", ".join(map(str, sorted(taken)))
    return classes, Coding(table, words or f"data.mask_values names {named}")


def ade20k(place: Location) -> Dataset:
    """ADE20K's scene parsing benchmark: 150 classes, of which a mask's 0 is none.

    `data.root` holds `images/` and `annotations/`, each with `training` and `validation`, and
    `objectInfo150.txt`; or the folder `ADEChallengeData2016` that the archive unpacks to.
    """
    inner = place.root / "ADEChallengeData2016"
    root = inner if inner.is_dir() else place.root
    passed = SkippedFiles()
    splits = {
        part: _read_pairs(
            root, [(f"images/{part}", f"annotations/{part}")], numbered(ADE20K, 1), passed
        )
        for part in ("training", "validation")
    }
    tests: dict[str, Split] = {"val": splits["validation"]}
    return Dataset(splits["training"], tests, _ade20k_classes(root), notes=passed.notes())


def _ade20k_classes(root: Path) -> tuple[str, ...]:
    """The last column of `objectInfo150.txt`, up to its first synonym."""
    file = root / "objectInfo150.txt"
    if not file.is_file():
        raise DataError(f"{file}: no such file. It comes with the benchmark's archive.")
    rows = [normalise_name(line.split("\t")[-1].split(",")[0]) for line in read_lines(file)]
    names = tuple(rows[1:])
    if len(names) != ADE20K:
        raise DataError(f"{file}: names {len(names)} classes, not {ADE20K}. Unpack it anew.")
    return names


def _read_pairs(
    root: Path, pairs: list[tuple[str, str]], coding: Coding, passed: SkippedFiles
) -> Masked:
    """The images of some folders with their masks; raises `DataError`."""
    images: list[str] = []
    masks: list[str] = []
    for of_images, of_masks in pairs:
        folder = root / of_images
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder. Point data.root= at the folder above.")
        names = list_images(folder, passed)
        if not names:
            raise DataError(f"{folder}: holds no image that can be read. Put them there.")
        known = index_by_stem(root / of_masks, (".png",))
        for name in names:
            mask = known.get(normalise_name(stem(name)))
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
        said = try_image_size(mask, "ignored")
        if said is not None:
            check_size(mask, split.names.path(index), said, exif, FIX_ONE_SIZE)


def check_classes_present(
    splits: Mapping[str, Masked], classes: Sequence[str], *, given: bool
) -> tuple[str, ...]:
    """Which classes have no pixel in a split, a sentence each.

    Raises `DataError` where such a class is in no split, or only one class is left to judge, while
    255 is there and nobody `given` what it means: 0 and 255 are the usual values of two classes.
    """
    found = [(name, split, find_classes(split, len(classes))) for name, split in splits.items()]
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
                f"{{{_example_values(classes, missing)}}}. Where {IGNORED} is to be ignored, "
                f"give data.mask_values={{{IGNORED_NAME}: {IGNORED}}}, or remove the class."
            )
        if lacking:
            notes.append(
                f"{name} has no pixel of {len(lacking)} of {len(classes)} classes: {join_names(lacking)}"
            )
    return tuple(notes)


def _example_values(classes: Sequence[str], missing: str) -> str:
    values = {name: IGNORED if name == missing else place for place, name in enumerate(classes)}
    if len(values) > MAX_NAMES:
        return f"{classes[0]}: {values[classes[0]]}, ..., {missing}: {IGNORED}"
    return ", ".join(f"{name}: {value}" for name, value in values.items())


class ClassesPresent(NamedTuple):
    """The classes in the masks of a split, and the place of the first mask with ignored pixels."""

    classes: frozenset[int]
    first_ignored: int | None


def find_classes(split: Masked, classes: int) -> ClassesPresent:
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
    return ClassesPresent(frozenset(found), ignored)
