"""Segmentation: image folders with a mask of class numbers for each image; ADE20K."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe.sections import MAX_MASK_VALUE, Exif
from rescue_cli.rng import permute
from rescue_cli.sections.annotations import IGNORED
from rescue_cli.sections.data.annotated import UNKNOWN, Coding, Masked, number_classes
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
from rescue_cli.sections.data.location import Location
from rescue_cli.sections.data.splits import (
    MAX_NAMES,
    SPLIT_SEED,
    Dataset,
    FileNames,
    Split,
    join_names,
)

ADE20K = 150
IGNORED_NAME = "ignored"  # in data.mask_values, the name for values that are ignored
FIX_ONE_SIZE = "Mask and image must have the same size."


def mask_folder(location: Location) -> Dataset:
    """`SPLIT/images/*`, `SPLIT/masks/*.png` and `classes.txt`, one name per line from label 0.

    Trains on train and val and tests on test; without a folder `test` trains on train and tests on
    val or on `data.holdout` images; an evaluation needs no training images. Mask value 255 is
    ignored. `data.mask_values` maps classes to other values and replaces `classes.txt`. Raises
    `DataError` and `UsageError`.
    """
    root, given = location.top, location.keys.mask_values
    values = {normalise_name(name): value for name, value in (given or {}).items()}
    classes, coding = _mask_values(root / "classes.txt", values)
    folders = {name: location.split(name) or root / name for name in ("train", "val", "test")}
    test_name = "test" if folders["test"].is_dir() else "val"
    parts = {"train": ["train"], test_name: [test_name]}
    if test_name == "test" and folders["val"].is_dir():
        parts["train"].append("val")
    if location.test_only and not folders["train"].is_dir():
        parts["train"].clear()
    if location.keys.holds_out and not folders[test_name].is_dir():
        del parts[test_name]
    skipped = SkippedFiles(check_sizes=True)
    splits = {
        name: _read_pairs(
            root, [_split_folders(folders[part].name) for part in read], coding, skipped
        )
        for name, read in parts.items()
    }
    for split in splits.values():
        _check_sizes(split, location.keys.exif)
    non_empty = {name: split for name, split in splits.items() if len(split)}
    class_notes = check_classes_present(non_empty, classes, given=bool(given))
    train = splits.pop("train")
    tests = {name: folders[name] for name in splits}
    notes = (*location.note_interpretation(tests), *skipped.notes(), *class_notes)
    return Dataset(train, dict(splits), classes, notes=notes)


def _split_folders(split: str) -> tuple[str, str]:
    return f"{split}/images", f"{split}/masks"


def _classes_from_file(file: Path) -> tuple[tuple[str, ...], Coding]:
    """The classes of `classes.txt`, numbered from 0; raises `DataError`."""
    if not file.is_file():
        raise DataError(
            f"{file}: no such file. Write the class names into it, one per line, or give "
            "data.mask_values={NAME: VALUE, ...}."
        )
    classes = tuple(normalise_name(line) for line in read_lines(file))
    if len(classes) > IGNORED:
        raise DataError(f"{file}: lists {len(classes)} classes; a mask has at most {IGNORED}.")
    return classes, number_classes(len(classes), 0)


def _mask_values(
    file: Path, given: Mapping[str, int | list[int]]
) -> tuple[tuple[str, ...], Coding]:
    """The classes of `given` (data.mask_values) in its order, or of the file where it names none.

    Returns them with the meaning of mask values. Raises `DataError` and `UsageError`.
    """
    classes = tuple(name for name in given if name != IGNORED_NAME)
    if len(classes) > IGNORED:
        raise UsageError(f"data.mask_values: {len(classes)} classes; a mask has at most {IGNORED}.")
    table = np.full(MAX_MASK_VALUE + 1, UNKNOWN, dtype=np.int16)
    description = ""
    if not classes:
        classes, (numbers, description) = _classes_from_file(file)
        table[: len(numbers)] = numbers
    taken = set(np.flatnonzero((table != UNKNOWN) & (table != IGNORED)).tolist())
    for name, values in given.items():
        for value in [values] if isinstance(values, int) else values:
            if value in taken:
                raise UsageError(f"data.mask_values.{name}: {value} is already used. Use it once.")
            taken.add(value)
            table[value] = IGNORED if name == IGNORED_NAME else classes.index(name)
    if table[IGNORED] == UNKNOWN:
        table[IGNORED] = IGNORED
    listed = ", ".join(map(str, sorted(taken)))
    return classes, Coding(table, description or f"data.mask_values names {listed}")


def ade20k(location: Location) -> Dataset:
    """ADE20K's scene parsing benchmark: 150 classes, mask values 1 to 150; 0 is ignored.

    `data.root` holds `images/` and `annotations/`, each with `training` and `validation`, and
    `objectInfo150.txt`; or the folder `ADEChallengeData2016` that the archive unpacks to.
    """
    inner = location.root / "ADEChallengeData2016"
    root = inner if inner.is_dir() else location.root
    skipped = SkippedFiles()
    splits = {
        part: _read_pairs(
            root, [(f"images/{part}", f"annotations/{part}")], number_classes(ADE20K, 1), skipped
        )
        for part in ("training", "validation")
    }
    tests: dict[str, Split] = {"val": splits["validation"]}
    return Dataset(splits["training"], tests, _ade20k_classes(root), notes=skipped.notes())


def _ade20k_classes(root: Path) -> tuple[str, ...]:
    """The first synonym in the last column of `objectInfo150.txt`; raises `DataError`."""
    file = root / "objectInfo150.txt"
    if not file.is_file():
        raise DataError(f"{file}: no such file. It is part of the benchmark's archive.")
    rows = [normalise_name(line.split("\t")[-1].split(",")[0]) for line in read_lines(file)]
    names = tuple(rows[1:])
    if len(names) != ADE20K:
        raise DataError(f"{file}: lists {len(names)} classes, not {ADE20K}. Unpack it again.")
    return names


def _read_pairs(
    root: Path, pairs: list[tuple[str, str]], coding: Coding, skipped: SkippedFiles
) -> Masked:
    """The images of (image folder, mask folder) pairs with their masks; raises `DataError`."""
    images: list[str] = []
    masks: list[str] = []
    for image_folder, mask_folder_ in pairs:
        folder = root / image_folder
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder. Set data.root= to the folder that holds it."
            )
        names = list_images(folder, skipped)
        if not names:
            raise DataError(f"{folder}: holds no readable image. Put the images there.")
        mask_of_stem = index_by_stem(root / mask_folder_, (".png",))
        for name in names:
            mask = mask_of_stem.get(normalise_name(stem(name)))
            if mask is None:
                raise DataError(
                    f"{root / mask_folder_ / stem(name)}.png: no such file; it is the mask of "
                    f"{name}. Add it, or remove the image."
                )
            images.append(f"{image_folder}/{name}")
            masks.append(f"{mask_folder_}/{mask}")
    labels = np.zeros(len(images), dtype=np.int64)
    return Masked(FileNames.of(root, images), labels, FileNames.of(root, masks), coding)


def _check_sizes(split: Masked, exif: Exif) -> None:
    """Raises `DataError` for the first mask whose size differs from its image's."""
    for index in range(len(split)):
        mask = split.masks.path(index)
        mask_size = try_image_size(mask, "ignored")
        if mask_size is not None:
            check_size(mask, split.names.path(index), mask_size, exif, FIX_ONE_SIZE)


def check_classes_present(
    splits: Mapping[str, Masked], classes: Sequence[str], *, given: bool
) -> tuple[str, ...]:
    """Notes on classes without pixels in a split.

    Masks of two classes often use 0 and 255. So where `data.mask_values` is not `given` and masks
    hold 255, raises `DataError` if a class has no pixel in any split or only one class is left.
    """
    presence = [(name, split, find_classes(split, len(classes))) for name, split in splits.items()]
    present_anywhere = set().union(*(present.classes for _, _, present in presence))
    notes = []
    for name, split, present in presence:
        missing_here = [c for label, c in enumerate(classes) if label not in present.classes]
        missing_everywhere = [c for label, c in enumerate(classes) if label not in present_anywhere]
        single_class = len(present.classes) == 1 and len(classes) > 1
        if present.first_ignored is not None and not given and (missing_everywhere or single_class):
            file = split.masks.path(present.first_ignored)
            example = (missing_everywhere or missing_here)[0]
            raise DataError(
                f"{file}: holds {IGNORED}, which is ignored, and no mask of {name} holds the class "
                f"'{example}'. Say what each value means, as data.mask_values="
                f"{{{_example_values(classes, example)}}}. If {IGNORED} means ignored, "
                f"give data.mask_values={{{IGNORED_NAME}: {IGNORED}}}, or remove the class."
            )
        if missing_here:
            notes.append(
                f"{name} has no pixel of {len(missing_here)} of {len(classes)} classes: "
                f"{join_names(missing_here)}"
            )
    return tuple(notes)


def _example_values(classes: Sequence[str], missing: str) -> str:
    values = {name: IGNORED if name == missing else label for label, name in enumerate(classes)}
    if len(values) > MAX_NAMES:
        return f"{classes[0]}: {values[classes[0]]}, ..., {missing}: {IGNORED}"
    return ", ".join(f"{name}: {value}" for name, value in values.items())


class ClassesPresent(NamedTuple):
    """The classes in a split's masks, and the index of the first mask with ignored pixels."""

    classes: frozenset[int]
    first_ignored: int | None


def find_classes(split: Masked, classes: int) -> ClassesPresent:
    """Reads masks in random order until every class was seen."""
    classes_found: set[int] = set()
    first_ignored = None
    for index in permute(np.arange(len(split)), len(split), SPLIT_SEED, 0).tolist():
        try:
            values = np.unique(np.asarray(split.target(index)))
        except UNREADABLE:  # or an unknown label (ValueError): reported when the mask is read
            continue
        classes_found.update(values[values != IGNORED].tolist())
        if first_ignored is None and IGNORED in values:
            first_ignored = index
        if len(classes_found) == classes:
            break
    return ClassesPresent(frozenset(classes_found), first_ignored)
