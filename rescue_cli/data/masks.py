"""Segmentation: folders of images, each with a mask of the same name that numbers its classes."""

from pathlib import Path

import numpy as np

from rescue_cli.data.listing import PassedOver, images_in, split_folder
from rescue_cli.data.names import lines_of, plain, stem
from rescue_cli.data.paired import Masked
from rescue_cli.data.place import Place
from rescue_cli.data.splits import Dataset, FileNames, Split
from rescue_cli.errors import DataError

ADE20K = 150


def mask_folder(place: Place) -> Dataset:
    """`SPLIT/images/*`, `SPLIT/masks/*.png`, and `classes.txt` with a name a line, from label 0.

    train and val together, tested on test; without a folder `test` train alone, tested on val. 255
    in a mask is ignored.
    """
    root = place.top
    file = root / "classes.txt"
    if not file.is_file():
        raise DataError(f"{file}: no such file. It holds the classes' names, a line each.")
    classes = tuple(plain(line) for line in lines_of(file))
    found = {name: split_folder(root, name) or root / name for name in ("train", "val", "test")}
    tested = "test" if found["test"].is_dir() else "val"
    parts = ["train", *(["val"] if tested == "test" and found["val"].is_dir() else [])]
    pairs = [(f"{found[part].name}/images", f"{found[part].name}/masks") for part in parts]
    passed = PassedOver(sizes=True)
    train = _read(root, pairs, len(classes), 0, passed)
    of_test = found[tested].name
    test = _read(root, [(f"{of_test}/images", f"{of_test}/masks")], len(classes), 0, passed)
    notes = (*place.notes({tested: found[tested]}), *passed.notes())
    return Dataset(train, {tested: test}, classes, notes=notes)


def ade20k(place: Place) -> Dataset:
    """ADE20K's scene parsing benchmark: 150 classes, of which a mask's 0 is none.

    `data.root` holds `images/` and `annotations/`, each with `training` and `validation`, and
    `objectInfo150.txt`; or the folder `ADEChallengeData2016` that the archive unpacks to.
    """
    inner = place.root / "ADEChallengeData2016"
    root = inner if inner.is_dir() else place.root
    passed = PassedOver()
    splits = {
        part: _read(root, [(f"images/{part}", f"annotations/{part}")], ADE20K, 1, passed)
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


def _read(
    root: Path, pairs: list[tuple[str, str]], classes: int, first: int, passed: PassedOver
) -> Masked:
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
        for name in names:
            mask = f"{of_masks}/{stem(name)}.png"
            if not (root / mask).is_file():
                raise DataError(
                    f"{root / mask}: no such file; it is the mask of {name}. Add it, or remove "
                    "the image."
                )
            images.append(f"{of_images}/{name}")
            masks.append(mask)
    labels = np.zeros(len(images), dtype=np.int64)
    return Masked(FileNames.of(root, images), labels, FileNames.of(root, masks), classes, first)
