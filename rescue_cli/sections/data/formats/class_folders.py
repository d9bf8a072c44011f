"""Image folders: one folder per class, or a flat folder with a label file."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError, did_you_mean
from rescue_cli.recipe.sections import UnknownClasses
from rescue_cli.sections.data.listing import (
    SkippedFiles,
    check_utf8,
    count_stray_files,
    find_split_folder,
    holds_images,
    list_folders,
    list_images,
    list_images_with_sizes,
    list_split_folders,
    normalise_name,
    printable,
    read_lines,
    split_name,
    stem,
)
from rescue_cli.sections.data.location import refuse_folders_of_classes, refuse_images_alone
from rescue_cli.sections.data.packed.index import PackedIndex
from rescue_cli.sections.data.packed.location import find_source, open_index
from rescue_cli.sections.data.packed.names import packed_files
from rescue_cli.sections.data.splits import UNKNOWN_CLASS, FileNames, Files, join_names

LABEL_FILES = ("val_labels.txt", "labels.txt", "LOC_val_solution.csv")
THREADS = 16  # a network file system lists many folders at once


def class_folders(root: Path, label_field: str | None = None) -> list[str]:
    """The class names of the folders in `root`, or of the shards there (see `open_index`), sorted.

    Raises `DataError` where there is none.
    """
    if (index := index_at(root, label_field)) is not None:
        return list(index.classes)
    return sorted(_names_by_class(root))


def index_at(root: Path, label_field: str | None) -> PackedIndex | None:
    """The index of the shards whose images are those of `root`; None where they are files.

    Raises `DataError`.
    """
    source = find_source(root)
    if source is None:
        return None
    index = open_index(source, label_field)
    if all(split_name(name) for name in index.classes):
        raise DataError(
            f"{root}: holds splits ({', '.join(index.classes)}) and no classes. Give "
            f"{source.shards[0]} as data.root=, or one of its splits as data.train_root=."
        )
    return index


def _names_by_class(root: Path) -> dict[str, list[str]]:
    """Maps each class to its folder names on disk: two where they differ in normal form alone."""
    refuse_images_alone(root if root.is_dir() else root.parent)
    if not root.is_dir():
        siblings = list_folders(root.parent) if split_name(root.name) else []
        if root.parent.is_dir() and split_name(root.name) and not siblings:
            raise DataError(
                f"{root.parent}: holds no folder. Give a folder with train/ and val/, or with one "
                "folder of images for each class."
            )
        split_parents = [
            name for name in siblings if find_split_folder(root.parent / name, "train")
        ]
        if split_name(root.name) and not split_parents:
            refuse_folders_of_classes(root.parent)
        hint = f", or use data.root={root.parent / split_parents[0]}" if split_parents else ""
        raise DataError(f"{root}: no such folder. Set data.root= (or train_root, test_root){hint}.")
    names_by_class: dict[str, list[str]] = {}
    for name in list_folders(root):
        check_utf8(root / name)
        names_by_class.setdefault(normalise_name(name), []).append(name)
    if not names_by_class:
        raise DataError(
            f"{root}: has no class folders. It must hold one folder of images per class."
        )
    splits = list_split_folders(root)
    if len(splits) == len(names_by_class):
        first = next((name for name in splits if split_name(name) == "train"), splits[0])
        raise DataError(
            f"{root}: holds splits ({', '.join(splits)}) and no classes. Give it as data.root=, "
            f"or give {root / first} as data.train_root=, data.test_root= or --data."
        )
    return names_by_class


def read_class_folders(
    root: Path,
    labels: Mapping[str, int],
    *,
    complete: bool,
    test: bool = False,
    unknown: UnknownClasses = "refuse",
    skipped: SkippedFiles | None = None,
    label_field: str | None = None,
) -> Files:
    """Lists the images in and below `root`'s class folders; `labels` maps folder names to labels.

    Of shards at `root` the classes stand for the folders.

    `complete`: every class must have a folder. A `test` set may lack images of some classes; with
    `unknown="skip"` images in folders of unknown classes get the label -1. Files that are not read
    are counted in `skipped`. Raises `DataError`.
    """
    skipped = skipped or SkippedFiles()
    index = index_at(root, label_field)
    names_by_class = _names_by_class(root) if index is None else {n: [n] for n in index.classes}
    if (
        unknown_names := [name for name in names_by_class if name not in labels]
    ) and unknown == "refuse":
        raise _unknown_folder_error(root, unknown_names, labels, test=test)
    missing = [name for name in labels if name not in names_by_class]
    if complete and missing:
        raise DataError(
            f"{root / missing[0]}: the class folder is missing ({len(missing)} of {len(labels)}). "
            "Add it, or remove the class from the training set."
        )
    if index is not None:
        skipped.messages += index.notes
        of_class = [labels.get(name, UNKNOWN_CLASS) for name in index.classes]
        return packed_files(root, index, np.array(of_class, dtype=np.int64))
    count_stray_files(root, skipped)
    folders = [(name, folder) for name in sorted(names_by_class) for folder in names_by_class[name]]
    counts: list[int] = []
    nested: list[str] = []

    def listed() -> Iterator[FileNames]:
        """The images of each folder, as bytes: millions of Python's strings take gigabytes."""
        list_folder = partial(
            _list_class_images, root, check_sizes=skipped.check_sizes, may_be_empty=test
        )
        with ThreadPoolExecutor(THREADS) as pool:
            each = pool.map(list_folder, [folder for _, folder in folders])
            for (name, folder), content in zip(folders, each, strict=True):
                if folder == names_by_class[name][0] and len(names_by_class[name]) > 1:
                    skipped.messages.append(
                        f"{root}: {len(names_by_class[name])} folders are called {name}, in "
                        "different Unicode normal forms; they are read as one class"
                    )
                skipped.merge(content.skipped)
                counts.append(len(content.names))
                nested.extend(content.nested)
                yield content.names

    names = FileNames.join(root, listed())
    if not test and len(names_by_class) == 1 and len(nested) == len(names):
        (only,) = names_by_class
        raise DataError(
            f"{root / only}: the only class, and it holds folders but no images. If these are "
            f"the classes, give {root / only} as data.train_root=, data.test_root= or --data."
        )
    if nested:
        skipped.messages.append(
            f"{root}: {len(nested)} of {len(names)} images are in subfolders of their class folder "
            f"and belong to that class; the first is {printable(nested[0])}"
        )
    label_list = np.array([labels.get(name, UNKNOWN_CLASS) for name, _ in folders], np.int64)
    return Files(names, np.repeat(label_list, counts))


def _unknown_folder_error(
    root: Path, unknown_names: Sequence[str], labels: Mapping[str, int], *, test: bool
) -> DataError:
    suggestion = did_you_mean(unknown_names[0], labels)
    hint = suggestion if len(suggestion) < 200 else f"There are {len(labels)}."
    others = (
        f" Nor {'is' if len(unknown_names) == 2 else 'are'} {join_names(unknown_names[1:])}."
        * (len(unknown_names) > 1)
    )
    fix = (
        "Rename or remove the folder."
        if len(unknown_names) == 1
        else "Rename or remove the folders."
    )
    if test:
        fix = f"{fix[:-1]}, or skip such images with data.unknown_classes=skip."
    return DataError(f"{root / unknown_names[0]}: not one of the classes. {hint}{others} {fix}")


@dataclass(frozen=True)
class _ClassFolder:
    """What a class folder holds: images, as paths relative to the root; those of `nested` are in
    its subfolders.
    """

    names: FileNames
    nested: list[str]
    skipped: SkippedFiles


def _list_class_images(
    root: Path, folder: str, *, check_sizes: bool, may_be_empty: bool
) -> _ClassFolder:
    """Raises `DataError` for a class without images unless it `may_be_empty`."""
    skipped = SkippedFiles(check_sizes)
    images = list_images_with_sizes(root / folder, skipped)
    if not images and not may_be_empty:
        refuse_folders_of_classes(
            root, f"; or, if they are classes, move {folder}, which has no image, out of {root}"
        )
        summary = skipped.summary()
        if not summary:
            raise DataError(f"{root / folder}: is empty. Remove the folder.")
        raise DataError(
            f"{root / folder}: holds no readable image ({summary}). Add images if it is a class, "
            f"or move it out of {root}."
        )
    nested = [image for image in images if "/" in image]
    subfolders = {image.partition("/")[0] for image in nested}
    if subfolders and len(nested) == len(images) and all(map(split_name, subfolders)):
        raise DataError(
            f"{root / folder}: holds splits ({', '.join(sorted(subfolders))}) and no images. Put "
            f"the classes inside the splits ({sorted(subfolders)[0]}/{folder}/), or name one split."
        )
    names = FileNames.of(root, (f"{folder}/{image}" for image in images), images.values())
    return _ClassFolder(names, [f"{folder}/{image}" for image in nested], skipped)


def parse_label_line(
    line: str, is_file: Callable[[str], bool], is_class: Callable[[str], bool]
) -> tuple[str, str] | None:
    """File and class of a line `FILE CLASS` or `FILE,CLASS`; both may contain spaces.

    Where the text after the file is not a class, its first word is used: Kaggle's tables have
    further columns. None where no known file precedes a comma or a space.
    """
    positions = [position for position, letter in enumerate(line) if letter in ", \t"]
    parts = [
        tuple(normalise_name(part).strip('"') for part in (line[:p], line[p + 1 :]))
        for p in positions
    ]
    rows = [(file, label) for file, label in parts if is_file(file)]
    for row in rows:
        if is_class(row[1]):
            return row
    return next(((file, re.split(r"[,\s]", label)[0]) for file, label in rows), None)


def is_flat_folder(root: Path) -> bool:
    """Whether images lie directly in the folder, without class folders or with a label file."""
    if find_source(root) is not None or not holds_images(root, 0):
        return False
    return not list_folders(root) or _find_label_file(root) is not None


def _find_label_file(root: Path) -> Path | None:
    files = [folder / name for folder in (root, root.parent) for name in LABEL_FILES]
    return next((file for file in files if file.is_file()), None)


def read_flat_folder(
    root: Path,
    labels: Mapping[str, int],
    unknown: UnknownClasses = "refuse",
    skipped: SkippedFiles | None = None,
) -> Files:
    """Lists the images directly in `root`, labelled by a file of lines `FILE CLASS`.

    The file is `val_labels.txt`, `labels.txt` or `LOC_val_solution.csv`, in the folder or its
    parent; the class is a folder name (WordNet id) or its index. Unknown classes are handled as in
    `read_class_folders`. Raises `DataError`.
    """
    file, skipped = _find_label_file(root), skipped or SkippedFiles()
    if file is None:
        raise DataError(
            f"{root}: images without class folders need a label file. "
            f"Put {LABEL_FILES[0]} (lines: FILE CLASS) in the folder or its parent."
        )
    of_folder = SkippedFiles(skipped.check_sizes, LABEL_FILES)
    images = list_images(root, of_folder)
    names = [name for name in images if "/" not in name]
    skipped.merge(of_folder)
    if nested := len(images) - len(names):
        skipped.messages.append(
            f"{root}: {nested} images in subfolders are not read: {file} labels a flat folder"
        )
    stems = {stem(normalise_name(name)) for name in names}

    def is_file(name: str) -> bool:
        return name in stems or stem(name) in stems

    def is_class(label: str) -> bool:
        return label in labels or (label.isdecimal() and int(label) < len(labels))

    rows = [parse_label_line(line, is_file, is_class) for line in read_lines(file)]
    label_of = {row[0] if row[0] in stems else stem(row[0]): row[1] for row in rows if row}
    if unmatched := rows[1:].count(None):  # the first line may be a heading
        skipped.messages.append(f"{file}: {unmatched} of {len(rows)} lines name no existing image")
    label_list = []
    for name in names:
        label = label_of.get(stem(normalise_name(name)))
        if label is None:
            raise DataError(
                f"{printable(root / name)}: has no line in {file}. Add one, or remove the image."
            )
        if not is_class(label) and unknown == "refuse":
            raise DataError(
                f"{file}: '{label}' of {printable(name)} is not one of the {len(labels)} classes. "
                "Correct it, or skip such images with data.unknown_classes=skip."
            )
        by_number = int(label) if is_class(label) and label not in labels else UNKNOWN_CLASS
        label_list.append(labels.get(label, by_number))
    return Files(FileNames.of(root, names), np.array(label_list, dtype=np.int64))
