"""Detection in PASCAL VOC's format: `Annotations/*.xml`, `ImageSets/Main/*.txt`, `JPEGImages/`."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError, did_you_mean
from rescue_cli.sections.data.formats.annotation_checks import (
    AnnotatedBox,
    AnnotationChecker,
    check_finite,
    check_pixel_units,
)
from rescue_cli.sections.data.listing import (
    HIDDEN_FILES,
    SPLITS,
    SkippedFiles,
    image_extensions,
    index_by_stem,
    is_hidden,
    normalise_name,
    read_lines,
    stem,
)
from rescue_cli.sections.data.location import Location
from rescue_cli.sections.data.paired import Boxed, of_weights, without_objects
from rescue_cli.sections.data.splits import Dataset, FileNames, Split

VOC: tuple[str, ...] = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat")
VOC += ("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant")
VOC += ("sheep", "sofa", "train", "tvmonitor")


def pascal_voc(place: Location) -> Dataset:
    """PASCAL VOC: 2007 and 2012 trainval, tested on 2007 test; 20 classes.

    `data.root` holds `VOC2007` and `VOC2012`, or the `VOCdevkit` that the archives unpack to.
    """
    root = place.root / "VOCdevkit" if (place.root / "VOCdevkit").is_dir() else place.root
    fit, passed = AnnotationChecker(place.keys.exif), SkippedFiles()
    labels = {name: i for i, name in enumerate(VOC, 1)}
    years = [year for year in ("VOC2007", "VOC2012") if (root / year).is_dir()] or ["VOC2007"]
    train = {
        year: _read_annotations(root / year, _read_split_list(root / year, "trainval", passed))
        for year in years
    }
    parts = [_read_split(root / year, found, labels, fit) for year, found in train.items()]
    tested = _read_annotations(root / "VOC2007", _read_split_list(root / "VOC2007", "test", passed))
    test = _read_split(root / "VOC2007", tested, labels, fit)
    notes = (*passed.notes(), *fit.notes())
    return Dataset(_join_years(root, parts), {"test": test}, VOC, notes=notes)


def voc_folder(place: Location) -> Dataset:
    """A folder in PASCAL VOC's format: train and val together, tested on test; without a
    `test.txt` train alone, tested on val, or on what `data.holdout` takes. The classes
    are those of the training annotations; in an evaluation those that the weights know, and
    training images may be missing.
    """
    root, fit, passed = place.root, AnnotationChecker(place.keys.exif), SkippedFiles()
    tested = "test" if _list_file(root, "test").is_file() else "val"
    both = tested == "test" and _list_file(root, "val").is_file()
    parts: tuple[str, ...] = ("train", "val") if both else ("train",)
    if place.test_only and not _list_file(root, "train").is_file():
        parts = ()
    names = list(
        dict.fromkeys(name for part in parts for name in _read_split_list(root, part, passed))
    )
    annotations = _read_annotations(root, names)
    measured = {}
    if not place.keys.holdout or _list_file(root, tested).is_file():
        measured = _read_annotations(root, _read_split_list(root, tested, passed))
    either = (annotations or measured).values()
    classes = tuple(sorted({o.name for found in either for o in found.objects}))
    if not classes:
        raise DataError(f"{root / 'Annotations'}: no object in any training image. Add boxes.")
    classes = of_weights(classes, place.classes)
    labels = {name: i for i, name in enumerate(classes, 1)}
    train = _read_split(root, annotations, labels, fit)
    test = _read_split(root, measured, labels, fit)
    tests: dict[str, Split] = {tested: test} if measured else {}
    lacking = without_objects({tested: test}, classes) if place.classes and measured else ()
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


def _read_split_list(root: Path, split: str, passed: SkippedFiles) -> list[str]:
    """The images' names in a split; raises `DataError`."""
    file = _list_file(root, split)
    if not file.is_file():
        raise DataError(
            f"{file}: no such file. A folder in PASCAL VOC's format has Annotations/*.xml, "
            f"JPEGImages/ and ImageSets/Main/ with {split}.txt. Add it, or point data.root= at one."
        )
    known, names = index_by_stem(root / "Annotations", (".xml",)), []
    for line in map(normalise_name, read_lines(file)):
        if is_hidden(line):
            passed.add(HIDDEN_FILES, f"{line} of {file}")
        else:
            names.append(_image_name(line, known))
    if not names:
        raise DataError(f"{file}: names no image. Write a name a line.")
    return names


def _image_name(line: str, known: Mapping[str, str]) -> str:
    """The image that a line names: all of it, or without an ending or VOC's column of -1, 0, 1."""
    first = line.rpartition(" ")[0] if line.endswith((" 1", " 0", " -1")) else line
    readings = (line, stem(line), first.strip())
    return next((name for name in readings if name in known), line)


def _read_split(
    root: Path,
    annotations: Mapping[str, _Annotation],
    labels: Mapping[str, int],
    fit: AnnotationChecker,
) -> Boxed:
    """The images that have these annotations, by their names; raises `DataError`."""
    folder = root / "JPEGImages"
    images = index_by_stem(folder, image_extensions())
    boxes = (each.box for annotation in annotations.values() for each in annotation.objects)
    check_pixel_units(root / "Annotations", boxes)
    found, files = [], []
    for name, annotation in annotations.items():
        image = images.get(name)
        if image is None:
            raise DataError(
                f"{folder / name}.jpg: no such file. Add it, or remove its line from the split."
            )
        marked = _labelled_boxes(annotation, labels)
        found.append(fit.objects(annotation.file, folder / image, annotation.size, marked))
        files.append(f"JPEGImages/{image}")
    return Boxed(FileNames.of(root, files), np.zeros(len(files), dtype=np.int64), tuple(found))


def _read_annotations(root: Path, names: Sequence[str]) -> dict[str, _Annotation]:
    folder, files = root / "Annotations", index_by_stem(root / "Annotations", (".xml",))
    return {name: _parse_annotation(folder / files.get(name, f"{name}.xml")) for name in names}


def _parse_annotation(file: Path) -> _Annotation:
    """What the XML says; raises `DataError`."""
    try:
        tree = ElementTree.parse(file).getroot()
        size = tree.find("size")
        wide, high = (int(size.findtext(k, "0")) if size is not None else 0 for k in SIZE_TAGS)
        objects = tuple(_parse_object(element) for element in tree.iter("object"))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}.") from None
    return _Annotation(file, (wide, high) if wide > 0 and high > 0 else None, objects)


SIZE_TAGS = ("width", "height")
BOX_TAGS = ("xmin", "ymin", "xmax", "ymax")


def _parse_object(element: ElementTree.Element) -> _Object:
    """Raises `ValueError` for an object without a name or a box."""
    name, box = element.findtext("name"), element.find("bndbox")
    if not name or box is None:
        raise ValueError("an object without a name or without a bndbox")
    left, top, right, bottom = (float(box.findtext(edge, "nothing")) for edge in BOX_TAGS)
    check_finite((left, top, right, bottom))
    difficult = element.findtext("difficult", "0").strip() == "1"
    return _Object(normalise_name(name), (left, top, right, bottom), difficult)


def _labelled_boxes(annotation: _Annotation, labels: Mapping[str, int]) -> list[AnnotatedBox]:
    """The objects in pixels from 0; a box without area stays one. Raises `DataError`."""
    found = []
    for each in annotation.objects:
        if each.name not in labels:
            hint = did_you_mean(each.name, labels)
            raise DataError(f"{annotation.file}: '{each.name}' is not one of the classes. {hint}")
        left, top, right, bottom = each.box
        if right > left and bottom > top:
            left, top = left - 1, top - 1
        found.append(AnnotatedBox((left, top, right, bottom), labels[each.name], each.difficult))
    return found


def _join_years(root: Path, parts: Sequence[Boxed]) -> Boxed:
    """Several years' images as one split."""
    names = [str(part.names.path(i).relative_to(root)) for part in parts for i in range(len(part))]
    objects = tuple(o for part in parts for o in part.objects)
    return Boxed(FileNames.of(root, names), np.zeros(len(names), dtype=np.int64), objects)
