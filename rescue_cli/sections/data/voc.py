"""Detection in PASCAL VOC's format: `Annotations/*.xml`, `ImageSets/Main/*.txt`, `JPEGImages/`."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError, did_you_mean
from rescue_cli.sections.data.annotated import Boxed, classes_of_weights, note_missing_objects
from rescue_cli.sections.data.annotation_checks import Fit, Marked, demand_finite, demand_pixels
from rescue_cli.sections.data.listing import (
    HIDDEN,
    SPLITS,
    PassedOver,
    by_stem,
    endings,
    is_nobodys,
)
from rescue_cli.sections.data.location import Place
from rescue_cli.sections.data.names import lines_of, plain, stem
from rescue_cli.sections.data.splits import Dataset, FileNames, Split

VOC: tuple[str, ...] = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat")
VOC += ("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant")
VOC += ("sheep", "sofa", "train", "tvmonitor")


def pascal_voc(place: Place) -> Dataset:
    """PASCAL VOC: 2007 and 2012 trainval, tested on 2007 test; 20 classes.

    `data.root` holds `VOC2007` and `VOC2012`, or the `VOCdevkit` that the archives unpack to.
    """
    root = place.root / "VOCdevkit" if (place.root / "VOCdevkit").is_dir() else place.root
    fit, passed = Fit(place.keys.exif), PassedOver()
    labels = {name: i for i, name in enumerate(VOC, 1)}
    years = [year for year in ("VOC2007", "VOC2012") if (root / year).is_dir()] or ["VOC2007"]
    train = {
        year: _annotations(root / year, _listed(root / year, "trainval", passed)) for year in years
    }
    parts = [_read(root / year, found, labels, fit) for year, found in train.items()]
    tested = _annotations(root / "VOC2007", _listed(root / "VOC2007", "test", passed))
    test = _read(root / "VOC2007", tested, labels, fit)
    notes = (*passed.notes(), *fit.notes())
    return Dataset(_joined(root, parts), {"test": test}, VOC, notes=notes)


def voc_folder(place: Place) -> Dataset:
    """A folder in PASCAL VOC's format: train and val together, tested on test; without a
    `test.txt` train alone, tested on val, or on what `data.holdout` takes. The classes
    are those of the training annotations; in an evaluation those that the weights know, and
    training images may be missing.
    """
    root, fit, passed = place.root, Fit(place.keys.exif), PassedOver()
    tested = "test" if _list_file(root, "test").is_file() else "val"
    both = tested == "test" and _list_file(root, "val").is_file()
    parts: tuple[str, ...] = ("train", "val") if both else ("train",)
    if place.test_only and not _list_file(root, "train").is_file():
        parts = ()
    names = list(dict.fromkeys(name for part in parts for name in _listed(root, part, passed)))
    annotations = _annotations(root, names)
    measured = {}
    if not place.keys.holdout or _list_file(root, tested).is_file():
        measured = _annotations(root, _listed(root, tested, passed))
    either = (annotations or measured).values()
    classes = tuple(sorted({o.name for found in either for o in found.objects}))
    if not classes:
        raise DataError(f"{root / 'Annotations'}: no object in any training image. Add boxes.")
    classes = classes_of_weights(classes, place.classes)
    labels = {name: i for i, name in enumerate(classes, 1)}
    train = _read(root, annotations, labels, fit)
    test = _read(root, measured, labels, fit)
    tests: dict[str, Split] = {tested: test} if measured else {}
    lacking = note_missing_objects({tested: test}, classes) if place.classes and measured else ()
    notes = (*passed.notes(), *fit.notes(), *lacking)
    return Dataset(train, tests, classes, notes=notes)


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]  # as written: from 1, both ends inside
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    file: Path
    size: tuple[int, int] | None  # width, height
    objects: tuple[_Object, ...]


def _list_file(root: Path, split: str) -> Path:
    """The split's list, which may have another of its names (`valid.txt`)."""
    files = [root / "ImageSets" / "Main" / f"{name}.txt" for name in SPLITS.get(split, (split,))]
    return next((file for file in files if file.is_file()), files[0])


def _listed(root: Path, split: str, passed: PassedOver) -> list[str]:
    """The images' names in a split; raises `DataError`."""
    file = _list_file(root, split)
    if not file.is_file():
        raise DataError(
            f"{file}: no such file. A folder in PASCAL VOC's format has Annotations/*.xml, "
            f"JPEGImages/ and ImageSets/Main/ with {split}.txt. Add it, or point data.root= at one."
        )
    known, names = by_stem(root / "Annotations", (".xml",)), []
    for line in map(plain, lines_of(file)):
        if is_nobodys(line):
            passed.add(HIDDEN, f"{line} of {file}")
        else:
            names.append(_name(line, known))
    if not names:
        raise DataError(f"{file}: names no image. Write a name a line.")
    return names


def _name(line: str, known: Mapping[str, str]) -> str:
    """The image that a line names: all of it, or without an ending or VOC's column of -1, 0, 1."""
    first = line.rpartition(" ")[0] if line.endswith((" 1", " 0", " -1")) else line
    readings = (line, stem(line), first.strip())
    return next((name for name in readings if name in known), line)


def _read(
    root: Path,
    annotations: Mapping[str, _Annotation],
    labels: Mapping[str, int],
    fit: Fit,
) -> Boxed:
    """The images that have these annotations, by their names; raises `DataError`."""
    folder = root / "JPEGImages"
    images = by_stem(folder, endings())
    boxes = (each.box for annotation in annotations.values() for each in annotation.objects)
    demand_pixels(root / "Annotations", boxes)
    found, files = [], []
    for name, annotation in annotations.items():
        image = images.get(name)
        if image is None:
            raise DataError(
                f"{folder / name}.jpg: no such file. Add it, or remove its line from the split."
            )
        marked = _marked(annotation, labels)
        found.append(fit.objects(annotation.file, folder / image, annotation.size, marked))
        files.append(f"JPEGImages/{image}")
    return Boxed(FileNames.of(root, files), np.zeros(len(files), dtype=np.int64), tuple(found))


def _annotations(root: Path, names: Sequence[str]) -> dict[str, _Annotation]:
    folder, files = root / "Annotations", by_stem(root / "Annotations", (".xml",))
    return {name: _annotation(folder / files.get(name, f"{name}.xml")) for name in names}


def _annotation(file: Path) -> _Annotation:
    """What the XML says; raises `DataError`."""
    try:
        tree = ElementTree.parse(file).getroot()
        size = tree.find("size")
        wide, high = (int(size.findtext(k, "0")) if size is not None else 0 for k in SIDES)
        objects = tuple(_object(element) for element in tree.iter("object"))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}.") from None
    return _Annotation(file, (wide, high) if wide > 0 and high > 0 else None, objects)


SIDES = ("width", "height")
EDGES = ("xmin", "ymin", "xmax", "ymax")


def _object(element: ElementTree.Element) -> _Object:
    """Raises `ValueError` for an object without a name or a box."""
    name, box = element.findtext("name"), element.find("bndbox")
    if not name or box is None:
        raise ValueError("an object without a name or without a bndbox")
    left, top, right, bottom = (float(box.findtext(edge, "nothing")) for edge in EDGES)
    demand_finite((left, top, right, bottom))
    difficult = element.findtext("difficult", "0").strip() == "1"
    return _Object(plain(name), (left, top, right, bottom), difficult)


def _marked(annotation: _Annotation, labels: Mapping[str, int]) -> list[Marked]:
    """The objects in pixels from 0; a box without area stays one. Raises `DataError`."""
    found = []
    for each in annotation.objects:
        if each.name not in labels:
            hint = did_you_mean(each.name, labels)
            raise DataError(f"{annotation.file}: '{each.name}' is not one of the classes. {hint}")
        left, top, right, bottom = each.box
        if right > left and bottom > top:
            left, top = left - 1, top - 1
        found.append(Marked((left, top, right, bottom), labels[each.name], each.difficult))
    return found


def _joined(root: Path, parts: Sequence[Boxed]) -> Boxed:
    """Several years' images as one split."""
    names = [str(part.names.path(i).relative_to(root)) for part in parts for i in range(len(part))]
    objects = tuple(o for part in parts for o in part.objects)
    return Boxed(FileNames.of(root, names), np.zeros(len(names), dtype=np.int64), objects)
