"""COCO's JSON format: boxes for detection, polygons and run lengths for segmentation."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli.errors import DataError, did_you_mean
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import IGNORED
from rescue_cli.sections.data.annotated import Boxed, classes_of_weights, note_missing_objects
from rescue_cli.sections.data.formats.annotation_checks import (
    AnnotatedBox,
    AnnotationChecker,
    Size,
    check_pixel_units,
    check_size,
)
from rescue_cli.sections.data.formats.coco_shapes import (
    Edges,
    ShapeMasks,
    annotation_box,
    parse_shape,
)
from rescue_cli.sections.data.listing import (
    SPLITS,
    find_file,
    image_extensions,
    is_hidden,
    normalise_name,
)
from rescue_cli.sections.data.location import Location
from rescue_cli.sections.data.splits import Dataset, FileNames

BACKGROUND = "background"
Id = int | float | str
# Prefixes of COCO's own files that hold no object instances
OTHER_KINDS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
UNLISTED_IMAGE = (
    "annotation refers to an image that is not listed, and is left out",
    "annotations refer to images that are not listed, and are left out",
)
DUPLICATE = (
    "annotation occurs twice and counts once",
    "annotations occur twice and count once",
)


@dataclass(frozen=True)
class CocoImage:
    """An image as a JSON file lists it; `where` locates its annotations in messages."""

    where: str
    name: str  # relative to the root
    path: Path
    size: Size | None
    objects: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class CocoFile:
    """The images of a JSON file, and the categories' names by id."""

    file: Path
    images: tuple[CocoImage, ...]
    names: Mapping[Any, str]

    @property
    def used_names(self) -> set[str]:
        return {self.names[o["category_id"]] for image in self.images for o in image.objects}


def is_coco(root: Path) -> bool:
    """Whether a folder's annotations are in COCO's format."""
    return bool(_annotation_files(root)) and not (root / "Annotations").is_dir()


# --- finding the JSON files ---


def read_splits(location: Location, checker: AnnotationChecker) -> dict[str, list[CocoFile]]:
    """Reads the files of train and of the test split; train may be empty in an evaluation."""
    files = _files_by_split(location.root)
    test_name = next((name for name in ("test", "val") if name in files), None)
    if "train" not in files and not (location.test_only and test_name):
        raise DataError(
            f"{location.root}: has no training annotations. COCO's format has a JSON file per "
            "split, such as annotations/instances_train2017.json or train/_annotations.coco.json."
        )
    if test_name is None and not location.keys.holds_out:
        raise DataError(
            f"{location.root}: has training annotations, but none to test on. Add a JSON file for "
            "val or test, or hold out images with data.test_holdout=N."
        )
    parts = ["train", *(["val"] if test_name == "test" and "val" in files else [])]
    splits = {
        "train": [_read_file(location.root, files[p], p, checker) for p in parts if p in files]
    }
    if test_name is not None:
        splits[test_name] = [_read_file(location.root, files[test_name], test_name, checker)]
    names = Counter(image.name for coco_file in splits["train"] for image in coco_file.images)
    for image in splits[test_name][0].images if test_name is not None else ():
        if image.name in names:
            checker.count(
                (
                    f"image of {test_name} is also in train",
                    f"images of {test_name} are also in train",
                ),
                image.path,
            )
    return splits


def _files_by_split(root: Path) -> dict[str, Path]:
    """The file of each split; a single file is train's. Raises `DataError` for two of one split."""
    files = _annotation_files(root)
    by_split = {}
    for split, names in SPLITS.items():
        matching = [file for file in files if _is_split_file(file, root, names)]
        instances = [file for file in matching if file.name.startswith("instances_")]
        matching = instances or matching
        if len(matching) > 1:
            raise DataError(
                f"{root}: {matching[0].relative_to(root)} and {matching[1].relative_to(root)} both "
                f"hold annotations of {split}. Keep one of them."
            )
        if matching:
            by_split[split] = matching[0]
    return by_split or ({"train": files[0]} if len(files) == 1 else {})


def _annotation_files(root: Path) -> list[Path]:
    """The JSON files in the folder, in `annotations`, and in folders named after splits."""
    names = [name for words in SPLITS.values() for name in words]
    folders = [root, root / "annotations", *(root / name for name in names)]
    return [
        file
        for folder in folders
        for file in sorted(folder.glob("*.json"))
        if not file.name.startswith((".", *OTHER_KINDS))
    ]


def _is_split_file(file: Path, root: Path, words: Sequence[str]) -> bool:
    if file.parent.parent == root and file.parent.name in words:
        return True
    parts = re.split(r"[^a-z]+", file.stem.lower())
    return any(word in parts for word in words)


# --- reading a JSON file ---


def _read_file(root: Path, file: Path, split: str, checker: AnnotationChecker) -> CocoFile:
    """Reads a file's images with their objects; raises `DataError`."""
    tree = _parse_json(file)
    names = {entry["id"]: normalise_name(entry["name"]) for entry in tree["categories"]}
    if len(set(names.values())) < len(names):
        repeated = Counter(names.values()).most_common(1)[0][0]
        raise DataError(f"{file}: two categories are called '{repeated}'. Give each its own name.")
    by_image: dict[Any, list[Mapping[str, Any]]] = {entry["id"]: [] for entry in tree["images"]}
    seen_ids: set[Any] = set()
    for annotation in tree["annotations"]:
        number, category, image = (annotation.get(k) for k in ("id", "category_id", "image_id"))
        if not isinstance(category, Id) or category not in names:
            raise DataError(
                f"{file}: annotation {number}: category_id {category} is not "
                "in the categories. Add the category, or correct the id."
            )
        of_image = by_image.get(image) if isinstance(image, Id) else None
        if of_image is None:
            checker.count(UNLISTED_IMAGE, file)
        elif number in seen_ids and annotation in of_image:
            checker.count(DUPLICATE, file)
        else:
            of_image.append(annotation)
        seen_ids.add(number)
    images = _locate_images(root, file, split, tree["images"], by_image)
    _count_unlisted_images(file, images, checker)
    return CocoFile(file, images, names)


def _parse_json(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads the lists `images`, `annotations` and `categories`, whose entries must have ids.

    Ids must be unique, except for annotations, whose ids clash in merged files. Raises `DataError`.
    """
    try:
        tree = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {error}.") from None
    for key, text_key in (("images", "file_name"), ("annotations", None), ("categories", "name")):
        value = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise DataError(
                f"{file}: has no list '{key}'. A COCO file holds images, annotations and "
                "categories."
            )
        for index, entry in enumerate(value):
            if not isinstance(entry.get("id"), Id) or not (
                text_key is None or isinstance(entry.get(text_key), str)
            ):
                wanted = "an id" if text_key is None else f"an id and a {text_key}"
                raise DataError(f"{file}: {key}[{index}] must have {wanted}. Add it.")
        repeated = Counter(entry["id"] for entry in value).most_common(1)
        if text_key is not None and repeated and repeated[0][1] > 1:
            raise DataError(
                f"{file}: {key}: the id {repeated[0][0]} occurs twice. Make ids unique."
            )
    if not tree["images"]:
        raise DataError(f"{file}: lists no images. Add some.")
    return dict(tree)


def _locate_images(
    root: Path,
    file: Path,
    split: str,
    listed: Sequence[Mapping[str, Any]],
    by_image: Mapping[Any, list[Mapping[str, Any]]],
) -> tuple[CocoImage, ...]:
    """Finds the listed images on disk; raises `DataError` where one is missing."""
    names = [normalise_name(entry["file_name"]).replace("\\", "/") for entry in listed]
    repeated, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{file}: images: {repeated} is listed {count} times. List it once.")
    names_of_split = [file.stem.removeprefix("instances_"), *SPLITS[split]]
    folders = [file.parent, *(root / below / w for below in ("", "images") for w in names_of_split)]
    folders += [root / "images", root]
    folder = next((f for f in folders if find_file(f, names[0])), None)
    if folder is None:
        searched = ", ".join(dict.fromkeys(str(f) for f in folders if f.is_dir()))
        raise DataError(f"{file}: {names[0]} is in none of {searched}. Put the images there.")
    paths = [find_file(folder, name) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{folder / missing[0]}: no such file ({len(missing)} of {len(names)} images that "
            f"{file} lists). Add it, or remove its entry."
        )
    images = []
    for name, path, entry in zip(names, filter(None, paths), listed, strict=True):
        width, height = entry.get("width"), entry.get("height")
        has_size = isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0
        images.append(
            CocoImage(
                f"{file}, {name}",
                str(path.relative_to(root)) if path.is_relative_to(root) else str(path),
                path,
                (width, height) if has_size else None,  # type: ignore[arg-type]
                tuple(by_image[entry["id"]]),
            )
        )
    return tuple(images)


def _count_unlisted_images(
    file: Path, images: Sequence[CocoImage], checker: AnnotationChecker
) -> None:
    """Counts images in the same folders that the JSON file does not list."""
    listed = {image.path for image in images}
    text = f"no entry in {file.name}, and"
    reason = f"image has {text} is left out", f"images have {text} are left out"
    for folder in dict.fromkeys(path.parent for path in listed):
        for path in folder.iterdir():
            is_image = path.suffix.lower() in image_extensions() and not is_hidden(path.name)
            if is_image and path not in listed:
                checker.count(reason, path)


def used_classes(splits: Mapping[str, Sequence[CocoFile]]) -> tuple[str, ...]:
    """The names of categories with objects, in the order of the first file's ids.

    Raises `DataError`.
    """
    files = [coco_file for of_split in splits.values() for coco_file in of_split]
    first = files[0]
    used = set().union(*(coco_file.used_names for coco_file in files))
    if not used:
        raise DataError(f"{first.file}: no image has objects. Add annotations.")
    known = set(first.names.values())
    for coco_file in files[1:]:
        if unknown := sorted(coco_file.used_names - known):
            hint = did_you_mean(unknown[0], known)
            raise DataError(
                f"{coco_file.file}: '{unknown[0]}' is not a category of {first.file}. {hint}"
            )
    ids = sorted(first.names, key=lambda id_: (isinstance(id_, str), id_))
    return tuple(first.names[id_] for id_ in ids if first.names[id_] in used)


# --- the data sets ---


def coco_boxes(location: Location) -> Dataset:
    """COCO's JSON for detection. Classes are the categories with objects, ordered by id.

    `data.root` holds a JSON file per split, such as `annotations/instances_train2017.json`,
    `annotations/val.json` or `train/_annotations.coco.json`, with the images beside it, in a folder
    named after the split, or in `images`. Trains on train and val and tests on test; without a test
    file trains on train and tests on val; with one file, tests on `data.holdout` images. Crowds are
    marked as difficult, so scores ignore them. Raises `DataError`.
    """
    checker = AnnotationChecker(location.keys.exif)
    splits = read_splits(location, checker)
    classes = classes_of_weights(used_classes(splits), location.classes)
    labels = {name: i for i, name in enumerate(classes, 1)}
    annotated = {
        name: _read_boxes(location.root, coco_files, labels, checker)
        for name, coco_files in splits.items()
    }
    train = annotated.pop("train")
    notes = note_missing_objects(annotated, classes) if location.classes else ()
    return Dataset(train, dict(annotated), classes, notes=(*checker.notes(), *notes))


def coco_masks(location: Location) -> Dataset:
    """COCO's JSON for segmentation; the classes are the background and the categories.

    Where shapes overlap the smallest is on top; pixels of a crowd that no object covers are
    ignored. Files and splits are those of `coco_boxes`. Raises `DataError`.
    """
    checker = AnnotationChecker(location.keys.exif)
    splits = read_splits(location, checker)
    others = tuple(name for name in used_classes(splits) if name.casefold() != BACKGROUND)
    if location.classes[:1] == (BACKGROUND,):
        others = classes_of_weights(others, location.classes[1:])
    classes = (BACKGROUND, *others)
    if len(classes) > IGNORED:
        raise DataError(
            f"{location.root}: has {len(others)} categories; a mask has at most {IGNORED} classes."
        )
    labels = {name: i for i, name in enumerate(others, 1)}
    annotated = {
        name: _read_shapes(location.root, coco_files, labels, checker)
        for name, coco_files in splits.items()
    }
    notes = note_missing_objects(
        {name: each for name, each in annotated.items() if len(each)}, others
    )
    train = annotated.pop("train")
    return Dataset(train, dict(annotated), classes, notes=(*checker.notes(), *notes))


def _read_boxes(
    root: Path, files: Sequence[CocoFile], labels: Mapping[str, int], checker: AnnotationChecker
) -> Boxed:
    """The images of the files with the boxes of their objects; raises `DataError`."""
    objects = []
    for coco_file in files:
        boxes_of_images = [
            [
                AnnotatedBox(
                    _object_box(image, annotation),
                    labels[coco_file.names[annotation["category_id"]]],
                    difficult=_is_crowd(annotation),
                )
                for annotation in image.objects
            ]
            for image in coco_file.images
        ]
        check_pixel_units(coco_file.file, (box.box for boxes in boxes_of_images for box in boxes))
        for image, boxes in zip(coco_file.images, boxes_of_images, strict=True):
            objects.append(checker.clip_objects(image.where, image.path, image.size, boxes))
    return Boxed(*_names_and_labels(root, files), tuple(objects))


def _read_shapes(
    root: Path, files: Sequence[CocoFile], labels: Mapping[str, int], checker: AnnotationChecker
) -> ShapeMasks:
    """The images of the files with the shapes of their objects; raises `DataError`."""
    images = [(coco_file, image) for coco_file in files for image in coco_file.images]
    sizes = [check_size(image.where, image.path, image.size, checker.exif) for _, image in images]
    shapes = []
    for (coco_file, image), size in zip(images, sizes, strict=True):
        of_image = []
        for annotation in image.objects:
            label = labels.get(coco_file.names[annotation["category_id"]], 0)
            of_image.append(
                parse_shape(
                    _annotation_name(image, annotation),
                    annotation,
                    label,
                    size,
                    checker,
                    crowd=_is_crowd(annotation),
                )
            )
        shapes.append(tuple(of_image))
    if shapes and all(shape.parts is None for of_image in shapes for shape in of_image):
        raise DataError(
            f"{files[0].file}: no annotation has a segmentation. "
            "For detection use data.name=coco-boxes."
        )
    return ShapeMasks(*_names_and_labels(root, files), tuple(shapes), tuple(sizes))


def _names_and_labels(root: Path, files: Sequence[CocoFile]) -> tuple[FileNames, Indices]:
    names = [image.name for coco_file in files for image in coco_file.images]
    return FileNames.of(root, names), np.zeros(len(names), dtype=np.int64)


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    return annotation.get("iscrowd") in (1, True)


def _annotation_name(image: CocoImage, annotation: Mapping[str, Any]) -> str:
    return f"{image.where}: annotation {annotation['id']}"


def _object_box(image: CocoImage, annotation: Mapping[str, Any]) -> Edges:
    """(left, top, right, bottom), of the polygons where there is no box; raises `DataError`."""
    try:
        return annotation_box(annotation)
    except (TypeError, ValueError) as error:
        raise DataError(f"{_annotation_name(image, annotation)}: {error}.") from None
