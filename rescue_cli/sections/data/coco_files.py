"""COCO's JSON: which files a folder has, and the images and objects that they list."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescue_cli.errors import DataError, did_you_mean
from rescue_cli.sections.data.annotation_checks import Fit, Size
from rescue_cli.sections.data.listing import SPLITS, endings, is_nobodys
from rescue_cli.sections.data.location import Place
from rescue_cli.sections.data.names import file_of, plain

# Of COCO's own files, those that hold no objects of this kind
OTHERS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
UNLISTED = (
    "annotation is of an image that is not listed, and is left out",
    "annotations are of images that are not listed, and are left out",
)
TWICE = (
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
class Listed:
    """The images of a file, and the categories' names by their numbers."""

    file: Path
    images: tuple[CocoImage, ...]
    names: Mapping[Any, str]

    @property
    def used(self) -> set[str]:
        return {self.names[o["category_id"]] for image in self.images for o in image.objects}


def is_coco(root: Path) -> bool:
    """Whether a folder's annotations are COCO's."""
    return bool(_files(root)) and not (root / "Annotations").is_dir()


# --- which files there are ---


def splits_of(place: Place, fit: Fit) -> dict[str, list[Listed]]:
    """The files of train and of the tested split, read; the first is empty where it may be."""
    files = _by_split(place.root)
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
    found = {"train": [_listed(place.root, files[p], p, fit) for p in parts if p in files]}
    if tested is not None:
        found[tested] = [_listed(place.root, files[tested], tested, fit)]
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


def _by_split(root: Path) -> dict[str, Path]:
    """The file of each split; one file alone is of train. Raises `DataError` for two of one."""
    files = _files(root)
    found = {}
    for split, words in SPLITS.items():
        mine = [file for file in files if _is_of(file, root, words)]
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


def _files(root: Path) -> list[Path]:
    """JSON files in the folder, in `annotations`, and in folders of the splits' names."""
    names = [name for words in SPLITS.values() for name in words]
    folders = [root, root / "annotations", *(root / name for name in names)]
    return [
        file
        for folder in folders
        for file in sorted(folder.glob("*.json"))
        if not file.name.startswith((".", *OTHERS))
    ]


def _is_of(file: Path, root: Path, words: Sequence[str]) -> bool:
    if file.parent.parent == root and file.parent.name in words:
        return True
    parts = re.split(r"[^a-z]+", file.stem.lower())
    return any(word in parts for word in words)


# --- what is in them ---


def _listed(root: Path, file: Path, split: str, fit: Fit) -> Listed:
    """A file's images with their objects; raises `DataError`."""
    lists = _lists(file)
    names = {each["id"]: plain(each["name"]) for each in lists["categories"]}
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
            fit.passed(UNLISTED, file)
        elif number in known and each in mine:
            fit.passed(TWICE, file)
        else:
            mine.append(each)
        known.add(number)
    images = _images(root, file, split, lists["images"], by_image)
    _count_others(file, images, fit)
    return Listed(file, images, names)


def _lists(file: Path) -> dict[str, list[dict[str, Any]]]:
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


def _images(
    root: Path,
    file: Path,
    split: str,
    listed: Sequence[Mapping[str, Any]],
    by_image: Mapping[Any, list[Mapping[str, Any]]],
) -> tuple[CocoImage, ...]:
    """The listed images where they lie; raises `DataError` where one is not there."""
    names = [plain(each["file_name"]).replace("\\", "/") for each in listed]
    twice, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{file}: images: {twice} is listed {count} times. List it once.")
    words = [file.stem.removeprefix("instances_"), *SPLITS[split]]
    folders = [file.parent, *(root / below / w for below in ("", "images") for w in words)]
    folders += [root / "images", root]
    folder = next((f for f in folders if file_of(f, names[0])), None)
    if folder is None:
        looked = ", ".join(dict.fromkeys(str(f) for f in folders if f.is_dir()))
        raise DataError(f"{file}: {names[0]} is in none of {looked}. Put the images there.")
    paths = [file_of(folder, name) for name in names]
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


def _count_others(file: Path, images: Sequence[CocoImage], fit: Fit) -> None:
    """Counts the images that lie in the same folders and have no entry."""
    there = {image.path for image in images}
    rest = f"no entry in {file.name}, and"
    reason = f"image has {rest} is left out", f"images have {rest} are left out"
    for folder in dict.fromkeys(path.parent for path in there):
        for path in folder.iterdir():
            is_image = path.suffix.lower() in endings() and not is_nobodys(path.name)
            if is_image and path not in there:
                fit.passed(reason, path)


def classes_of(splits: Mapping[str, Sequence[Listed]]) -> tuple[str, ...]:
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
