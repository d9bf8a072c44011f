"""Folders of images: one folder a class, or flat with a label file."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError, did_you_mean
from rescue_cli.sections.data.listing import (
    SkippedFiles,
    check_utf8,
    count_stray_files,
    find_split_folder,
    holds_images,
    list_folders,
    list_images,
    list_split_folders,
    normalise_name,
    printable,
    read_lines,
    split_name,
    stem,
)
from rescue_cli.sections.data.location import UnknownClasses
from rescue_cli.sections.data.splits import UNKNOWN_CLASS, FileNames, Files, join_names

LABEL_FILES = ("val_labels.txt", "labels.txt", "LOC_val_solution.csv")


def class_folders(root: Path) -> list[str]:
    """The classes that have a folder below `root`, in order; raises `DataError` where none has."""
    return sorted(_names_by_class(root))


def _names_by_class(root: Path) -> dict[str, list[str]]:
    """The folders' names on disk by their class: two where one is in another normal form."""
    if not root.is_dir():
        beside = list_folders(root.parent) if split_name(root.name) else []
        near = [name for name in beside if find_split_folder(root.parent / name, "train")]
        hint = f": data.root={root.parent / near[0]} has one" if near else ""
        raise DataError(
            f"{root}: no such folder. Point data.root= (or train_root, test_root) at it{hint}."
        )
    found: dict[str, list[str]] = {}
    for name in list_folders(root):
        check_utf8(root / name)
        found.setdefault(normalise_name(name), []).append(name)
    if not found:
        raise DataError(f"{root}: has no class folders. It must hold one folder of images a class.")
    splits = list_split_folders(root)
    if len(splits) == len(found):
        first = next((name for name in splits if split_name(name) == "train"), splits[0])
        raise DataError(
            f"{root}: holds splits ({', '.join(splits)}) and no classes. Name it with data.root=, "
            f"or name {root / first} itself: data.train_root= or data.test_root=, or --data."
        )
    return found


def read_class_folders(
    root: Path,
    labels: Mapping[str, int],
    *,
    complete: bool,
    test: bool = False,
    unknown: UnknownClasses = "refuse",
    passed: SkippedFiles | None = None,
) -> Files:
    """The images in and below `root`'s class folders; the label is the folder's in `labels`.

    `complete` demands that every class has its folder. A `test` set may have none of some classes;
    what lies in folders of no class is labelled -1 where `unknown` is skip. `passed` is told what
    is not read. Raises `DataError`.
    """
    passed = passed or SkippedFiles()
    present = _names_by_class(root)
    if (strange := [name for name in present if name not in labels]) and unknown == "refuse":
        raise _unknown_folder_error(root, strange, labels, test=test)
    missing = [name for name in labels if name not in present]
    if complete and missing:
        raise DataError(
            f"{root / missing[0]}: the class folder is missing ({len(missing)} of {len(labels)}). "
            "Add it, or remove the class from the training set."
        )
    names: list[str] = []
    found: list[int] = []
    count_stray_files(root, passed)
    for name in sorted(present):
        if len(present[name]) > 1:
            passed.told.append(
                f"{root}: {len(present[name])} folders are called {name} in different normal "
                "forms of Unicode; they are read as one class"
            )
        images = [
            image
            for folder in present[name]
            for image in _list_class_images(root, folder, passed, may_be_empty=test)
        ]
        names += images
        found += [labels.get(name, UNKNOWN_CLASS)] * len(images)
    if not test and len(present) == 1 and all("/" in name.partition("/")[2] for name in names):
        (only,) = present
        raise DataError(
            f"{root / only}: the only class, and it holds folders and no image. Where these are "
            f"the classes, name {root / only} itself: data.train_root= or data.test_root=, or "
            "--data."
        )
    _note_nested_images(root, names, passed)
    return Files(FileNames.of(root, names), np.array(found, dtype=np.int64))


def _unknown_folder_error(
    root: Path, strange: Sequence[str], labels: Mapping[str, int], *, test: bool
) -> DataError:
    near = did_you_mean(strange[0], labels)
    hint = near if len(near) < 200 else f"There are {len(labels)}."
    others = f" Nor {'is' if len(strange) == 2 else 'are'} {join_names(strange[1:])}." * (
        len(strange) > 1
    )
    cure = "Rename or remove the folder." if len(strange) == 1 else "Rename or remove the folders."
    if test:
        cure = f"{cure[:-1]}, or evaluate without: data.unknown_classes=skip."
    return DataError(f"{root / strange[0]}: not one of the classes. {hint}{others} {cure}")


def _list_class_images(
    root: Path, folder: str, passed: SkippedFiles, *, may_be_empty: bool
) -> list[str]:
    """The class's images as paths below `root`; raises `DataError` where there must be some."""
    mine = SkippedFiles(passed.sizes)
    images = list_images(root / folder, mine)
    if not images and not may_be_empty:
        there = mine.listed() or "nothing"
        raise DataError(
            f"{root / folder}: holds no image that can be read ({there}). Remove the folder."
        )
    tops = {image.partition("/")[0] for image in images}
    if tops and all(split_name(top) for top in tops):
        raise DataError(
            f"{root / folder}: holds splits ({', '.join(sorted(tops))}) and no image. A split "
            f"holds the classes: {sorted(tops)[0]}/{folder}/. Sort them so, or name one split."
        )
    passed.join(mine)
    return [f"{folder}/{image}" for image in images]


def _note_nested_images(root: Path, names: list[str], passed: SkippedFiles) -> None:
    nested = [name for name in names if name.count("/") > 1]
    if nested:
        passed.told.append(
            f"{root}: {len(nested)} of {len(names)} images lie in sub-folders of their class, and "
            f"count as the class's: the first {printable(nested[0])}"
        )


def parse_label_line(
    line: str, is_file: Callable[[str], bool], is_class: Callable[[str], bool]
) -> tuple[str, str] | None:
    """File and class of a line `FILE CLASS` or `FILE,CLASS`, either of which may hold spaces.

    Where what stands after a file is no class, its first word is taken for it: Kaggle's tables go
    on after the class. None where no known file stands before a comma or a space.
    """
    places = [place for place, letter in enumerate(line) if letter in ", \t"]
    parts = [
        tuple(normalise_name(part).strip('"') for part in (line[:p], line[p + 1 :])) for p in places
    ]
    rows = [(file, label) for file, label in parts if is_file(file)]
    for row in rows:
        if is_class(row[1]):
            return row
    return next(((file, re.split(r"[,\s]", label)[0]) for file, label in rows), None)


def is_flat_folder(root: Path) -> bool:
    """Whether the folder holds images itself, and no class folders unless there is a label file."""
    if not holds_images(root, 0):
        return False
    return not list_folders(root) or _find_label_file(root) is not None


def _find_label_file(root: Path) -> Path | None:
    files = [folder / name for folder in (root, root.parent) for name in LABEL_FILES]
    return next((file for file in files if file.is_file()), None)


def read_flat_folder(
    root: Path,
    labels: Mapping[str, int],
    unknown: UnknownClasses = "refuse",
    passed: SkippedFiles | None = None,
) -> Files:
    """Images lying in `root` itself, labelled by a file of lines `name class` beside them.

    The file is `val_labels.txt`, `labels.txt` or `LOC_val_solution.csv`, in the folder or above it;
    the class is a folder name (WordNet id) or its place. Other classes as `read_class_folders` has them. Raises
    `DataError`.
    """
    file, passed = _find_label_file(root), passed or SkippedFiles()
    if file is None:
        raise DataError(
            f"{root}: images without class folders need a label file. "
            f"Put {LABEL_FILES[0]} (lines: FILE CLASS) in the folder or above it."
        )
    mine = SkippedFiles(passed.sizes, LABEL_FILES)
    every = list_images(root, mine)
    names = [name for name in every if "/" not in name]
    passed.join(mine)
    if below := len(every) - len(names):
        passed.told.append(f"{root}: {below} images in folders below are not read: {file} is")
    wanted = {stem(normalise_name(name)) for name in names}

    def is_file(name: str) -> bool:
        return name in wanted or stem(name) in wanted

    def is_class(label: str) -> bool:
        return label in labels or (label.isdecimal() and int(label) < len(labels))

    rows = [parse_label_line(line, is_file, is_class) for line in read_lines(file)]
    known = {row[0] if row[0] in wanted else stem(row[0]): row[1] for row in rows if row}
    if lost := rows[1:].count(None):  # the first line may be a heading
        passed.told.append(f"{file}: {lost} of {len(rows)} lines name no image that is here")
    found = []
    for name in names:
        label = known.get(stem(normalise_name(name)))
        if label is None:
            raise DataError(
                f"{printable(root / name)}: has no line in {file}. Add it or remove the image."
            )
        if not is_class(label) and unknown == "refuse":
            raise DataError(
                f"{file}: '{label}' of {printable(name)} is not one of the {len(labels)} classes. "
                "Correct it, or evaluate without: data.unknown_classes=skip."
            )
        by_place = int(label) if is_class(label) and label not in labels else UNKNOWN_CLASS
        found.append(labels.get(label, by_place))
    return Files(FileNames.of(root, names), np.array(found, dtype=np.int64))
