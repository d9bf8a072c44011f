"""COCO's JSON: objects in boxes, or their shapes painted into masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.errors import DataError
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import IGNORED
from rescue_cli.sections.data.annotated import Boxed, classes_of_weights, note_missing_objects
from rescue_cli.sections.data.annotation_checks import Fit, Marked, common_size, demand_pixels
from rescue_cli.sections.data.coco_files import CocoImage, Listed, classes_of, splits_of
from rescue_cli.sections.data.coco_shapes import Edges, Painted, box_of, shape_of
from rescue_cli.sections.data.location import Place
from rescue_cli.sections.data.splits import Dataset, FileNames

BACKGROUND = "background"


def coco_boxes(place: Place) -> Dataset:
    """COCO's JSON for detection. Classes go by their names, in the order of their numbers; those
    without an object are left out. A crowd is passed over by a score, as what is difficult is.

    `data.root` holds a file of annotations for each split: `annotations/instances_train2017.json`,
    `annotations/val.json`, `train/_annotations.coco.json`; and the images beside it, below a folder
    of the split's name, or below `images`. train and val together, tested on test; without a test
    file train alone, tested on val; of one file alone, `data.holdout` images.
    """
    fit = Fit(place.keys.exif)
    splits = splits_of(place, fit)
    classes = classes_of_weights(classes_of(splits), place.classes)
    labels = {name: i for i, name in enumerate(classes, 1)}
    found = {name: _boxed(place.root, some, labels, fit) for name, some in splits.items()}
    train = found.pop("train")
    lacking = note_missing_objects(found, classes) if place.classes else ()
    return Dataset(train, dict(found), classes, notes=(*fit.notes(), *lacking))


def coco_masks(place: Place) -> Dataset:
    """COCO's JSON for segmentation: the background and the categories, each a class.

    Where shapes overlap the smaller is on top; the pixels of a crowd are ignored unless an object
    is on them. Files and splits as of `coco_boxes`.
    """
    fit = Fit(place.keys.exif)
    splits = splits_of(place, fit)
    others = tuple(name for name in classes_of(splits) if name.casefold() != BACKGROUND)
    if place.classes[:1] == (BACKGROUND,):
        others = classes_of_weights(others, place.classes[1:])
    classes = (BACKGROUND, *others)
    if len(classes) > IGNORED:
        raise DataError(
            f"{place.root}: {len(others)} categories; a mask has at most {IGNORED} classes."
        )
    labels = {name: i for i, name in enumerate(others, 1)}
    found = {name: _painted(place.root, some, labels, fit) for name, some in splits.items()}
    lacking = note_missing_objects(
        {name: each for name, each in found.items() if len(each)}, others
    )
    train = found.pop("train")
    return Dataset(train, dict(found), classes, notes=(*fit.notes(), *lacking))


def _boxed(root: Path, files: Sequence[Listed], labels: Mapping[str, int], fit: Fit) -> Boxed:
    """The images of some files with the boxes of their objects; raises `DataError`."""
    found = []
    for each in files:
        marked = [
            [Marked(_box(image, o), labels[each.names[o["category_id"]]], _is_crowd(o))
             for o in image.objects]
            for image in each.images
        ]  # fmt: skip
        demand_pixels(each.file, (one.box for some in marked for one in some))
        for image, some in zip(each.images, marked, strict=True):
            found.append(fit.objects(image.where, image.path, image.size, some))
    return Boxed(*_named(root, files), tuple(found))


def _painted(root: Path, files: Sequence[Listed], labels: Mapping[str, int], fit: Fit) -> Painted:
    """The images of some files with the shapes of their objects; raises `DataError`."""
    images = [(each, image) for each in files for image in each.images]
    sizes = [common_size(i.where, i.path, i.size, fit.exif) for _, i in images]
    shapes = []
    for (each, image), size in zip(images, sizes, strict=True):
        some = []
        for o in image.objects:
            label = labels.get(each.names[o["category_id"]], 0)
            some.append(shape_of(_told(image, o), o, label, size, fit, crowd=_is_crowd(o)))
        shapes.append(tuple(some))
    if shapes and all(shape.parts is None for some in shapes for shape in some):
        raise DataError(
            f"{files[0].file}: no annotation has a segmentation. "
            "For boxes use data.name=coco-boxes."
        )
    return Painted(*_named(root, files), tuple(shapes), tuple(sizes))


def _named(root: Path, files: Sequence[Listed]) -> tuple[FileNames, Indices]:
    names = [image.name for each in files for image in each.images]
    return FileNames.of(root, names), np.zeros(len(names), dtype=np.int64)


def _is_crowd(each: Mapping[str, Any]) -> bool:
    return each.get("iscrowd") in (1, True)


def _told(image: CocoImage, each: Mapping[str, Any]) -> str:
    return f"{image.where}: annotation {each['id']}"


def _box(image: CocoImage, each: Mapping[str, Any]) -> Edges:
    """Left, top, right, bottom, of the polygons where there is no box; raises `DataError`."""
    try:
        return box_of(each)
    except (TypeError, ValueError) as error:
        raise DataError(f"{_told(image, each)}: {error}.") from None
