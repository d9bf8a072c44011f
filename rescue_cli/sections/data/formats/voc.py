"""Detection in PASCAL VOC's format: `Annotations/*.xml`, `ImageSets/Main/*.txt`, `JPEGImages/`."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rescue_cli.errors import DataError, did_you_mean
from rescue_cli.sections.data.annotated import Boxed, classes_of_weights, note_missing_objects
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
from rescue_cli.sections.data.splits import Dataset, FileNames, Split

VOC: tuple[str, ...] = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat")
VOC += ("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant")
VOC += ("sheep", "sofa", "train", "tvmonitor")


def pascal_voc(location: Location) -> Dataset:
    """PASCAL VOC: trains on trainval of 2007 and 2012 and tests on test of 2007; 20 classes.

    `data.root` holds `VOC2007` and `VOC2012`, or the `VOCdevkit` that the archives unpack to.
    """
    root = location.root / "VOCdevkit" if (location.root / "VOCdevkit").is_dir() else location.root
    checker, skipped = AnnotationChecker(location.keys.exif), SkippedFiles()
    labels = {name: i for i, name in enumerate(VOC, 1)}
    years = [year for year in ("VOC2007", "VOC2012") if (root / year).is_dir()] or ["VOC2007"]
    train = {
        year: _read_annotations(root / year, _read_split_list(root / year, "trainval", skipped))
        for year in years
    }
    parts = [
        _read_split(root / year, annotations, labels, checker)
        for year, annotations in train.items()
    ]
    test_annotations = _read_annotations(
        root / "VOC2007", _read_split_list(root / "VOC2007", "test", skipped)
    )
    test = _read_split(root / "VOC2007", test_annotations, labels, checker)
    notes = (*skipped.notes(), *checker.notes())
    return Dataset(_join_years(root, parts), {"test": test}, VOC, notes=notes)


def voc_folder(location: Location) -> Dataset:
    """The user's own folder in PASCAL VOC's format; classes are those of the training annotations.

    Trains on train and val and tests on test; without `test.txt` trains on train and tests on val
    or on `data.holdout` images. In an evaluation the classes are the weights', and training images
    may be missing. Raises `DataError`.
    """
    root, checker, skipped = location.root, AnnotationChecker(location.keys.exif), SkippedFiles()
    test_name = "test" if _list_file(root, "test").is_file() else "val"
    has_val = test_name == "test" and _list_file(root, "val").is_file()
    parts: tuple[str, ...] = ("train", "val") if has_val else ("train",)
    if location.test_only and not _list_file(root, "train").is_file():
        parts = ()
    names = list(
        dict.fromkeys(name for part in parts for name in _read_split_list(root, part, skipped))
    )
    annotations = _read_annotations(root, names)
    test_annotations = {}
    if not location.keys.holds_out or _list_file(root, test_name).is_file():
        test_annotations = _read_annotations(root, _read_split_list(root, test_name, skipped))
    annotated = (annotations or test_annotations).values()
    classes = tuple(sorted({o.name for annotation in annotated for o in annotation.objects}))
    if not classes:
        raise DataError(f"{root / 'Annotations'}: no training image has objects. Add boxes.")
    classes = classes_of_weights(classes, location.classes)
    labels = {name: i for i, name in enumerate(classes, 1)}
    train = _read_split(root, annotations, labels, checker)
    test = _read_split(root, test_annotations, labels, checker)
    tests: dict[str, Split] = {test_name: test} if test_annotations else {}
    class_notes = (
        note_missing_objects({test_name: test}, classes)
        if location.classes and test_annotations
        else ()
    )
    notes = (*skipped.notes(), *checker.notes(), *class_notes)
    return Dataset(train, tests, classes, notes=notes)


@dataclass(frozen=True)
class _Object:
    name: str
    box: tuple[float, float, float, float]  # as in the file: from 1, both ends inclusive
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    file: Path
    size: tuple[int, int] | None  # width, height
    objects: tuple[_Object, ...]


def _list_file(root: Path, split: str) -> Path:
    """The split's list file, by its name or a synonym (`valid.txt`)."""
    files = [root / "ImageSets" / "Main" / f"{name}.txt" for name in SPLITS.get(split, (split,))]
    return next((file for file in files if file.is_file()), files[0])


def _read_split_list(root: Path, split: str, skipped: SkippedFiles) -> list[str]:
    """Reads the names of a split's images; raises `DataError`."""
    file = _list_file(root, split)
    if not file.is_file():
        raise DataError(
            f"{file}: no such file. PASCAL VOC's format has Annotations/*.xml, JPEGImages/ and "
            f"ImageSets/Main/{split}.txt. Add the file, or correct data.root=."
        )
    annotation_files, names = index_by_stem(root / "Annotations", (".xml",)), []
    for line in map(normalise_name, read_lines(file)):
        if is_hidden(line):
            skipped.add(HIDDEN_FILES, f"{line} in {file}")
        else:
            names.append(_image_name(line, annotation_files))
    if not names:
        raise DataError(f"{file}: lists no images. Write one name per line.")
    return names


def _image_name(line: str, annotation_files: Mapping[str, str]) -> str:
    """The image that a line names: the line, without an extension or VOC's column of -1, 0, 1."""
    first = line.rpartition(" ")[0] if line.endswith((" 1", " 0", " -1")) else line
    candidates = (line, stem(line), first.strip())
    return next((name for name in candidates if name in annotation_files), line)


def _read_split(
    root: Path,
    annotations: Mapping[str, _Annotation],
    labels: Mapping[str, int],
    checker: AnnotationChecker,
) -> Boxed:
    """The split of the images with these annotations (by image name); raises `DataError`."""
    folder = root / "JPEGImages"
    images = index_by_stem(folder, image_extensions())
    every_box = (item.box for annotation in annotations.values() for item in annotation.objects)
    check_pixel_units(root / "Annotations", every_box)
    objects, files = [], []
    for name, annotation in annotations.items():
        image = images.get(name)
        if image is None:
            raise DataError(
                f"{folder / name}.jpg: no such file. Add it, or remove its line from the split's "
                "list."
            )
        boxes = _labelled_boxes(annotation, labels)
        objects.append(
            checker.clip_objects(annotation.file, folder / image, annotation.size, boxes)
        )
        files.append(f"JPEGImages/{image}")
    return Boxed(FileNames.of(root, files), np.zeros(len(files), dtype=np.int64), tuple(objects))


def _read_annotations(root: Path, names: Sequence[str]) -> dict[str, _Annotation]:
    folder, files = root / "Annotations", index_by_stem(root / "Annotations", (".xml",))
    return {name: _parse_annotation(folder / files.get(name, f"{name}.xml")) for name in names}


def _parse_annotation(file: Path) -> _Annotation:
    """Parses an XML file; raises `DataError`."""
    try:
        tree = ElementTree.parse(file).getroot()
        size = tree.find("size")
        width, height = (int(size.findtext(k, "0")) if size is not None else 0 for k in SIZE_TAGS)
        objects = tuple(_parse_object(element) for element in tree.iter("object"))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: cannot be read: {error}.") from None
    return _Annotation(file, (width, height) if width > 0 and height > 0 else None, objects)


SIZE_TAGS = ("width", "height")
BOX_TAGS = ("xmin", "ymin", "xmax", "ymax")


def _parse_object(element: ElementTree.Element) -> _Object:
    """Raises `ValueError` for an object without a name or a box."""
    name, box = element.findtext("name"), element.find("bndbox")
    if not name or box is None:
        raise ValueError("an object has no name or no bndbox")
    left, top, right, bottom = (float(box.findtext(edge, "nothing")) for edge in BOX_TAGS)
    check_finite((left, top, right, bottom))
    difficult = element.findtext("difficult", "0").strip() == "1"
    return _Object(normalise_name(name), (left, top, right, bottom), difficult)


def _labelled_boxes(annotation: _Annotation, labels: Mapping[str, int]) -> list[AnnotatedBox]:
    """The objects with boxes in pixels from 0, ends exclusive; raises `DataError`."""
    boxes = []
    for item in annotation.objects:
        if item.name not in labels:
            hint = did_you_mean(item.name, labels)
            raise DataError(f"{annotation.file}: '{item.name}' is not one of the classes. {hint}")
        left, top, right, bottom = item.box
        if right > left and bottom > top:
            left, top = left - 1, top - 1
        boxes.append(AnnotatedBox((left, top, right, bottom), labels[item.name], item.difficult))
    return boxes


def _join_years(root: Path, parts: Sequence[Boxed]) -> Boxed:
    """Joins several years' images into one split."""
    names = [str(part.names.path(i).relative_to(root)) for part in parts for i in range(len(part))]
    objects = tuple(o for part in parts for o in part.objects)
    return Boxed(FileNames.of(root, names), np.zeros(len(names), dtype=np.int64), objects)
