"""Folders of images: one folder a class, or flat with a label file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError, did_you_mean
from rescue_cli.recipe.sections import UnknownClasses
from rescue_cli.sections.data.listing import (
    PassedOver,
    folders_in,
    holds_images,
    images_in,
    pass_over_files,
    split_folder,
    split_of,
    splits_in,
)
from rescue_cli.sections.data.names import demand_utf8, lines_of, plain, row_of, shown, stem
from rescue_cli.sections.data.splits import NO_CLASS, FileNames, Files, some

LABELS = ("val_labels.txt", "labels.txt", "LOC_val_solution.csv")


def class_folders(root: Path) -> list[str]:
    """The classes that have a folder below `root`, in order; raises `DataError` where none has."""
    return sorted(_folders(root))


def _folders(root: Path) -> dict[str, list[str]]:
    """The folders' names on disk by their class: two where one is in another normal form."""
    if not root.is_dir():
        beside = folders_in(root.parent) if split_of(root.name) else []
        near = [name for name in beside if split_folder(root.parent / name, "train")]
        hint = f": data.root={root.parent / near[0]} has one" if near else ""
        raise DataError(
            f"{root}: no such folder. Point data.root= (or train_root, test_root) at it{hint}."
        )
    found: dict[str, list[str]] = {}
    for name in folders_in(root):
        demand_utf8(root / name)
        found.setdefault(plain(name), []).append(name)
    if not found:
        raise DataError(f"{root}: has no class folders. It must hold one folder of images a class.")
    splits = splits_in(root)
    if len(splits) == len(found):
        first = next((name for name in splits if split_of(name) == "train"), splits[0])
        raise DataError(
            f"{root}: holds splits ({', '.join(splits)}) and no classes. Name it with data.root=, "
            f"or name {root / first} itself: data.train_root= or data.test_root=, or --data."
        )
    return found


def read(
    root: Path,
    labels: Mapping[str, int],
    *,
    complete: bool,
    test: bool = False,
    unknown: UnknownClasses = "refuse",
    passed: PassedOver | None = None,
) -> Files:
    """The images in and below `root`'s class folders; the label is the folder's in `labels`.

    `complete` demands that every class has its folder. A `test` set may have none of some classes;
    what lies in folders of no class is labelled -1 where `unknown` is skip. `passed` is told what
    is not read. Raises `DataError`.
    """
    passed = passed or PassedOver()
    present = _folders(root)
    if (strange := [name for name in present if name not in labels]) and unknown == "refuse":
        raise _not_a_class(root, strange, labels, test=test)
    missing = [name for name in labels if name not in present]
    if complete and missing:
        raise DataError(
            f"{root / missing[0]}: the class folder is missing ({len(missing)} of {len(labels)}). "
            "Add it, or remove the class from the training set."
        )
    names: list[str] = []
    found: list[int] = []
    pass_over_files(root, passed)
    for name in sorted(present):
        if len(present[name]) > 1:
            passed.told.append(
                f"{root}: {len(present[name])} folders are called {name} in different normal "
                "forms of Unicode; they are read as one class"
            )
        images = [
            image
            for folder in present[name]
            for image in _images(root, folder, passed, may_be_empty=test)
        ]
        names += images
        found += [labels.get(name, NO_CLASS)] * len(images)
    if not test and len(present) == 1 and all("/" in name.partition("/")[2] for name in names):
        (only,) = present
        raise DataError(
            f"{root / only}: the only class, and it holds folders and no image. Where these are "
            f"the classes, name {root / only} itself: data.train_root= or data.test_root=, or "
            "--data."
        )
    _tell_nested(root, names, passed)
    return Files(FileNames.of(root, names), np.array(found, dtype=np.int64))


def _not_a_class(
    root: Path, strange: Sequence[str], labels: Mapping[str, int], *, test: bool
) -> DataError:
    near = did_you_mean(strange[0], labels)
    hint = near if len(near) < 200 else f"There are {len(labels)}."
    others = f" Nor {'is' if len(strange) == 2 else 'are'} {some(strange[1:])}." * (
        len(strange) > 1
    )
    cure = "Rename or remove the folder." if len(strange) == 1 else "Rename or remove the folders."
    if test:
        cure = f"{cure[:-1]}, or evaluate without: data.unknown_classes=skip."
    return DataError(f"{root / strange[0]}: not one of the classes. {hint}{others} {cure}")


def _images(root: Path, folder: str, passed: PassedOver, *, may_be_empty: bool) -> list[str]:
    """The class's images as paths below `root`; raises `DataError` where there must be some."""
    mine = PassedOver(passed.sizes)
    images = images_in(root / folder, mine)
    if not images and not may_be_empty:
        there = mine.listed() or "nothing"
        raise DataError(
            f"{root / folder}: holds no image that can be read ({there}). Remove the folder."
        )
    tops = {image.partition("/")[0] for image in images}
    if tops and all(split_of(top) for top in tops):
        raise DataError(
            f"{root / folder}: holds splits ({', '.join(sorted(tops))}) and no image. A split "
            f"holds the classes: {sorted(tops)[0]}/{folder}/. Sort them so, or name one split."
        )
    passed.join(mine)
    return [f"{folder}/{image}" for image in images]


def _tell_nested(root: Path, names: list[str], passed: PassedOver) -> None:
    nested = [name for name in names if name.count("/") > 1]
    if nested:
        passed.told.append(
            f"{root}: {len(nested)} of {len(names)} images lie in sub-folders of their class, and "
            f"count as the class's: the first {shown(nested[0])}"
        )


def is_flat(root: Path) -> bool:
    """Whether the folder holds images itself, and no class folders unless there is a label file."""
    if not holds_images(root, 0):
        return False
    return not folders_in(root) or _label_file(root) is not None


def _label_file(root: Path) -> Path | None:
    files = [folder / name for folder in (root, root.parent) for name in LABELS]
    return next((file for file in files if file.is_file()), None)


def read_flat(
    root: Path,
    labels: Mapping[str, int],
    unknown: UnknownClasses = "refuse",
    passed: PassedOver | None = None,
) -> Files:
    """Images lying in `root` itself, labelled by a file of lines `name class` beside them.

    The file is `val_labels.txt`, `labels.txt` or `LOC_val_solution.csv`, in the folder or above it;
    the class is a folder name (WordNet id) or its place. Other classes as `read` has them. Raises
    `DataError`.
    """
    file, passed = _label_file(root), passed or PassedOver()
    if file is None:
        raise DataError(
            f"{root}: images without class folders need a label file. "
            f"Put {LABELS[0]} (lines: FILE CLASS) in the folder or above it."
        )
    mine = PassedOver(passed.sizes, LABELS)
    every = images_in(root, mine)
    names = [name for name in every if "/" not in name]
    passed.join(mine)
    if below := len(every) - len(names):
        passed.told.append(f"{root}: {below} images in folders below are not read: {file} is")
    wanted = {stem(plain(name)) for name in names}

    def is_file(name: str) -> bool:
        return name in wanted or stem(name) in wanted

    def is_class(label: str) -> bool:
        return label in labels or (label.isdecimal() and int(label) < len(labels))

    rows = [row_of(line, is_file, is_class) for line in lines_of(file)]
    known = {row[0] if row[0] in wanted else stem(row[0]): row[1] for row in rows if row}
    if lost := rows[1:].count(None):  # the first line may be a heading
        passed.told.append(f"{file}: {lost} of {len(rows)} lines name no image that is here")
    found = []
    for name in names:
        label = known.get(stem(plain(name)))
        if label is None:
            raise DataError(
                f"{shown(root / name)}: has no line in {file}. Add it or remove the image."
            )
        if not is_class(label) and unknown == "refuse":
            raise DataError(
                f"{file}: '{label}' of {shown(name)} is not one of the {len(labels)} classes. "
                "Correct it, or evaluate without: data.unknown_classes=skip."
            )
        by_place = int(label) if is_class(label) and label not in labels else NO_CLASS
        found.append(labels.get(label, by_place))
    return Files(FileNames.of(root, names), np.array(found, dtype=np.int64))
