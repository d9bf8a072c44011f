"""Folders of images: one folder a class, or flat with a label file."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rescue_cli.data.place import Unknown
from rescue_cli.data.splits import NO_CLASS, FileNames, Files, some
from rescue_cli.errors import DataError, did_you_mean

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def class_folders(root: Path) -> list[str]:
    """The names of the folders below `root` in order; raises `DataError` where there is none."""
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder. Point data.root= (or train_root, test_root) at it."
        )
    names = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise DataError(f"{root}: has no class folders. It must hold one folder of images a class.")
    return names


def read(
    root: Path,
    labels: Mapping[str, int],
    *,
    complete: bool,
    test: bool = False,
    unknown: Unknown = "refuse",
) -> Files:
    """The images in `root`'s class folders; the label is the folder's place in `labels`.

    `complete` demands that every class has its folder. A `test` set may have none of some classes;
    what lies in folders of no class is labelled -1 where `unknown` is skip. Raises `DataError`.
    """
    present = class_folders(root)
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
    for name in present:
        images = sorted(e.name for e in os.scandir(root / name) if e.name.lower().endswith(ENDINGS))
        if not images and any(e.is_dir() for e in (root / name).iterdir()):
            raise DataError(
                f"{root / name}: holds folders and no image. Where these are the classes, name "
                f"{root / name} itself: data.train_root= or data.test_root=, or --data."
            )
        if not images and not test:
            raise DataError(
                f"{root / name}: holds no image ({', '.join(ENDINGS)}). Remove the folder."
            )
        names += [f"{name}/{image}" for image in images]
        found += [labels.get(name, NO_CLASS)] * len(images)
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


def is_flat(root: Path) -> bool:
    """Whether the folder holds images itself."""
    if not root.is_dir():
        return False
    with os.scandir(root) as entries:
        return any(e.name.lower().endswith(ENDINGS) for e in entries)


def read_flat(root: Path, labels: Mapping[str, int], unknown: Unknown = "refuse") -> Files:
    """Images lying in `root` itself, labelled by a file of lines `name class` beside them.

    The file is `val_labels.txt`, `labels.txt` or `LOC_val_solution.csv`, in the folder or above it;
    the class is a folder name (WordNet id) or its place. Other classes as `read` has them.
    """
    candidates = ("val_labels.txt", "labels.txt", "LOC_val_solution.csv")
    files = [f / name for f in (root, root.parent) for name in candidates]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise DataError(
            f"{root}: images without class folders need a label file. "
            f"Put {candidates[0]} (lines: FILE CLASS) in the folder or above it."
        )
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        rows = [" ".join(row).split() for row in csv.reader(lines)]
    known = {row[0].rsplit(".", 1)[0]: row[1] for row in rows if len(row) > 1}
    names = sorted(e.name for e in os.scandir(root) if e.name.lower().endswith(ENDINGS))
    found = []
    for name in names:
        label = known.get(name.rsplit(".", 1)[0])
        if label is None:
            raise DataError(f"{root / name}: has no line in {file}. Add it or remove the image.")
        by_place = label.isdecimal() and int(label) < len(labels)
        if label not in labels and not by_place and unknown == "refuse":
            raise DataError(
                f"{file}: '{label}' of {name} is not one of the {len(labels)} classes. Correct "
                "it, or evaluate without: data.unknown_classes=skip."
            )
        found.append(labels.get(label, int(label) if by_place else NO_CLASS))
    return Files(FileNames.of(root, names), np.array(found, dtype=np.int64))
