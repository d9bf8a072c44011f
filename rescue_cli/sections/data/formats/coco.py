"""COCO's JSON: objects in boxes, or their shapes painted into masks."""

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
from rescue_cli.sections.data.paired import Boxed, of_weights, without_objects
from rescue_cli.sections.data.splits import Dataset, FileNames

BACKGROUND = "background"
# Of COCO's own files, those that hold no objects of this kind
OTHER_KINDS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
UNLISTED_IMAGE = (
    "annotation is of an image that is not listed, and is left out",
    "annotations are of images that are not listed, and are left out",
)
DUPLICATE = (
    "annotation is there twice, and counts once",
    "annotations are there twice, and count once",
)


@dataclass(frozen=True)
class CocoImage:
    """An image as a file lists it; `where` begins what is said of its annotations."""

    where: str
    name: str  # below the root
    path: Path
    size: Size | None
    objects: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class CocoFile:
    """The images of a file, and the categories' names by their numbers."""

    file: Path
    images: tuple[CocoImage, ...]
    names: Mapping[Any, str]

    @property
    def used(self) -> set[str]:
        return {self.names[o["category_id"]] for image in self.images for o in image.objects}


def is_coco(root: Path) -> bool:
    """Whether a folder's annotations are COCO's."""
    return bool(_annotation_files(root)) and not (root / "Annotations").is_dir()


# --- which files there are ---


def read_splits(place: Location, fit: AnnotationChecker) -> dict[str, list[CocoFile]]:
    """The files of train and of the tested split, read; the first is empty where it may be."""
    files = _files_by_split(place.root)
    tested = next((name for name in ("test", "val") if name in files), None)
    if "train" not in files and not (place.test_only and tested):
        raise DataError(
            f"{place.root}: has no annotations to train on. COCO's are a JSON file for each split, "
            "as annotations/instances_train2017.json or train/_annotations.coco.json."
        )
    if tested is None and not place.keys.holdout:
        raise DataError(
            f"{place.root}: annotations to train on, and none to test on. Add a JSON file of val "
            "or test, or hold out images with data.holdout=N."
        )
    parts = ["train", *(["val"] if tested == "test" and "val" in files else [])]
    found = {"train": [_read_file(place.root, files[p], p, fit) for p in parts if p in files]}
    if tested is not None:
        found[tested] = [_read_file(place.root, files[tested], tested, fit)]
    names = Counter(image.name for each in found["train"] for image in each.images)
    for image in found[tested][0].images if tested is not None else ():
        if image.name in names:
            fit.passed(
                (
                    f"image of {tested} is in train as well",
                    f"images of {tested} are in train as well",
                ),
                image.path,
            )
    return found


def _files_by_split(root: Path) -> dict[str, Path]:
    """The file of each split; one file alone is of train. Raises `DataError` for two of one."""
    files = _annotation_files(root)
    found = {}
    for split, words in SPLITS.items():
        mine = [file for file in files if _is_split_file(file, root, words)]
        named = [file for file in mine if file.name.startswith("instances_")]
        mine = named or mine
        if len(mine) > 1:
            raise DataError(
                f"{root}: {mine[0].relative_to(root)} and {mine[1].relative_to(root)} are both "
                f"annotations of {split}. Move all but one away."
            )
        if mine:
            found[split] = mine[0]
    return found or ({"train": files[0]} if len(files) == 1 else {})


def _annotation_files(root: Path) -> list[Path]:
    """JSON files in the folder, in `annotations`, and in folders of the splits' names."""
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


# --- what is in them ---


def _read_file(root: Path, file: Path, split: str, fit: AnnotationChecker) -> CocoFile:
    """A file's images with their objects; raises `DataError`."""
    lists = _parse_json(file)
    names = {each["id"]: normalise_name(each["name"]) for each in lists["categories"]}
    if len(set(names.values())) < len(names):
        twice = Counter(names.values()).most_common(1)[0][0]
        raise DataError(f"{file}: two categories are called '{twice}'. Give each its own name.")
    by_image: dict[Any, list[Mapping[str, Any]]] = {each["id"]: [] for each in lists["images"]}
    known: set[Any] = set()
    for each in lists["annotations"]:
        number = each["id"]
        if each.get("category_id") not in names:
            raise DataError(
                f"{file}: annotation {number}: category_id {each.get('category_id')} is not one of "
                "the categories. Add the category, or correct it."
            )
        mine = by_image.get(each.get("image_id"))
        if mine is None:
            fit.passed(UNLISTED_IMAGE, file)
        elif number in known and each in mine:
            fit.passed(DUPLICATE, file)
        else:
            mine.append(each)
        known.add(number)
    images = _locate_images(root, file, split, lists["images"], by_image)
    _count_unlisted_images(file, images, fit)
    return CocoFile(file, images, names)


def _parse_json(file: Path) -> dict[str, list[dict[str, Any]]]:
    """The three lists, whose entries have ids: each its own, but for annotations' of merged files.

    Raises `DataError`.
    """
    try:
        tree = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read: {error}.") from None
    for key, texts in (("images", "file_name"), ("annotations", None), ("categories", "name")):
        value = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise DataError(
                f"{file}: has no list '{key}'. COCO's files hold images, annotations, categories."
            )
        for place, each in enumerate(value):
            if not isinstance(each.get("id"), int | float | str) or not (
                texts is None or isinstance(each.get(texts), str)
            ):
                wanted = "an id" if texts is None else f"an id and a {texts}"
                raise DataError(f"{file}: {key}[{place}] has not {wanted}. Add it.")
        twice = Counter(each["id"] for each in value).most_common(1)
        if texts is not None and twice and twice[0][1] > 1:
            raise DataError(f"{file}: {key}: the id {twice[0][0]} is there twice. Use each once.")
    if not tree["images"]:
        raise DataError(f"{file}: lists no image. Add one.")
    return dict(tree)


def _locate_images(
    root: Path,
    file: Path,
    split: str,
    listed: Sequence[Mapping[str, Any]],
    by_image: Mapping[Any, list[Mapping[str, Any]]],
) -> tuple[CocoImage, ...]:
    """The listed images where they lie; raises `DataError` where one is not there."""
    names = [normalise_name(each["file_name"]).replace("\\", "/") for each in listed]
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{file}: images: {twice} is listed {count} times. List it once.")
    words = [file.stem.removeprefix("instances_"), *SPLITS[split]]
    folders = [file.parent, *(root / below / w for below in ("", "images") for w in words)]
    folders += [root / "images", root]
    folder = next((f for f in folders if find_file(f, names[0])), None)
    if folder is None:
        looked = ", ".join(dict.fromkeys(str(f) for f in folders if f.is_dir()))
        raise DataError(f"{file}: {names[0]} is in none of {looked}. Put the images there.")
    paths = [find_file(folder, name) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        raise DataError(
            f"{folder / missing[0]}: no such file ({len(missing)} of {len(names)} images that "
            f"{file} lists). Add it, or remove its entry."
        )
    found = []
    for name, path, each in zip(names, filter(None, paths), listed, strict=True):
        width, height = each.get("width"), each.get("height")
        sized = isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0
        found.append(
            CocoImage(
                f"{file}, {name}",
                str(path.relative_to(root)) if path.is_relative_to(root) else str(path),
                path,
                (width, height) if sized else None,  # type: ignore[arg-type]
                tuple(by_image[each["id"]]),
            )
        )
    return tuple(found)


def _count_unlisted_images(file: Path, images: Sequence[CocoImage], fit: AnnotationChecker) -> None:
    """Counts the images that lie in the same folders and have no entry."""
    there = {image.path for image in images}
    rest = f"no entry in {file.name}, and"
    reason = f"image has {rest} is left out", f"images have {rest} are left out"
    for folder in dict.fromkeys(path.parent for path in there):
        for path in folder.iterdir():
            is_image = path.suffix.lower() in image_extensions() and not is_hidden(path.name)
            if is_image and path not in there:
                fit.passed(reason, path)


def used_classes(splits: Mapping[str, Sequence[CocoFile]]) -> tuple[str, ...]:
    """The names that have an object, by the numbers of the first file; raises `DataError`."""
    files = [each for some in splits.values() for each in some]
    first = files[0]
    used = set().union(*(each.used for each in files))
    if not used:
        raise DataError(f"{first.file}: no object in any image. Add annotations.")
    known = set(first.names.values())
    for each in files[1:]:
        if unknown := sorted(each.used - known):
            hint = did_you_mean(unknown[0], known)
            raise DataError(f"{each.file}: '{unknown[0]}' is no category of {first.file}. {hint}")
    numbers = sorted(first.names, key=lambda number: (isinstance(number, str), number))
    return tuple(first.names[number] for number in numbers if first.names[number] in used)


# --- the data sets ---


def coco_boxes(place: Location) -> Dataset:
    """COCO's JSON for detection. Classes go by their names, in the order of their numbers; those
    without an object are left out. A crowd is passed over by a score, as what is difficult is.

    `data.root` holds a file of annotations for each split: `annotations/instances_train2017.json`,
    `annotations/val.json`, `train/_annotations.coco.json`; and the images beside it, below a folder
    of the split's name, or below `images`. train and val together, tested on test; without a test
    file train alone, tested on val; of one file alone, `data.holdout` images.
    """
    fit = AnnotationChecker(place.keys.exif)
    splits = read_splits(place, fit)
    classes = of_weights(used_classes(splits), place.classes)
    labels = {name: i for i, name in enumerate(classes, 1)}
    found = {name: _read_boxes(place.root, some, labels, fit) for name, some in splits.items()}
    train = found.pop("train")
    lacking = without_objects(found, classes) if place.classes else ()
    return Dataset(train, dict(found), classes, notes=(*fit.notes(), *lacking))


def coco_masks(place: Location) -> Dataset:
    """COCO's JSON for segmentation: the background and the categories, each a class.

    Where shapes overlap the smaller is on top; the pixels of a crowd are ignored unless an object
    is on them. Files and splits as of `coco_boxes`.
    """
    fit = AnnotationChecker(place.keys.exif)
    splits = read_splits(place, fit)
    others = tuple(name for name in used_classes(splits) if name.casefold() != BACKGROUND)
    if place.classes[:1] == (BACKGROUND,):
        others = of_weights(others, place.classes[1:])
    classes = (BACKGROUND, *others)
    if len(classes) > IGNORED:
        raise DataError(
            f"{place.root}: {len(others)} categories; a mask has at most {IGNORED} classes."
        )
    labels = {name: i for i, name in enumerate(others, 1)}
    found = {name: _read_shapes(place.root, some, labels, fit) for name, some in splits.items()}
    lacking = without_objects({name: each for name, each in found.items() if len(each)}, others)
    train = found.pop("train")
    return Dataset(train, dict(found), classes, notes=(*fit.notes(), *lacking))


def _read_boxes(
    root: Path, files: Sequence[CocoFile], labels: Mapping[str, int], fit: AnnotationChecker
) -> Boxed:
    """The images of some files with the boxes of their objects; raises `DataError`."""
    found = []
    for each in files:
        marked = [
            [AnnotatedBox(_object_box(image, o), labels[each.names[o["category_id"]]], _is_crowd(o))
             for o in image.objects]
            for image in each.images
        ]  # fmt: skip
        check_pixel_units(each.file, (one.box for some in marked for one in some))
        for image, some in zip(each.images, marked, strict=True):
            found.append(fit.objects(image.where, image.path, image.size, some))
    return Boxed(*_names_and_labels(root, files), tuple(found))


def _read_shapes(
    root: Path, files: Sequence[CocoFile], labels: Mapping[str, int], fit: AnnotationChecker
) -> ShapeMasks:
    """The images of some files with the shapes of their objects; raises `DataError`."""
    images = [(each, image) for each in files for image in each.images]
    sizes = [check_size(i.where, i.path, i.size, fit.exif) for _, i in images]
    shapes = []
    for (each, image), size in zip(images, sizes, strict=True):
        some = []
        for o in image.objects:
            label = labels.get(each.names[o["category_id"]], 0)
            some.append(
                parse_shape(_annotation_name(image, o), o, label, size, fit, crowd=_is_crowd(o))
            )
        shapes.append(tuple(some))
    if shapes and all(shape.parts is None for some in shapes for shape in some):
        raise DataError(
            f"{files[0].file}: no annotation has a segmentation. "
            "For boxes use data.name=coco-boxes."
        )
    return ShapeMasks(*_names_and_labels(root, files), tuple(shapes), tuple(sizes))


def _names_and_labels(root: Path, files: Sequence[CocoFile]) -> tuple[FileNames, Indices]:
    names = [image.name for each in files for image in each.images]
    return FileNames.of(root, names), np.zeros(len(names), dtype=np.int64)


def _is_crowd(each: Mapping[str, Any]) -> bool:
    return each.get("iscrowd") in (1, True)


def _annotation_name(image: CocoImage, each: Mapping[str, Any]) -> str:
    return f"{image.where}: annotation {each['id']}"


def _object_box(image: CocoImage, each: Mapping[str, Any]) -> Edges:
    """Left, top, right, bottom, of the polygons where there is no box; raises `DataError`."""
    try:
        return annotation_box(each)
    except (TypeError, ValueError) as error:
        raise DataError(f"{_annotation_name(image, each)}: {error}.") from None
