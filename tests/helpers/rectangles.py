"""Draws images for tests: coloured rectangles on grey, with their boxes and masks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 40, 40), "green": (40, 190, 60)}
WIDTH, HEIGHT = 64, 48


class Box(NamedTuple):
    """From 0, ends outside."""

    left: int
    top: int
    right: int
    bottom: int


def image(seed: int) -> tuple[np.ndarray, list[tuple[str, Box]]]:
    """(48, 64, 3) uint8 and one or two rectangles on it, left and right of the middle."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 130, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    boxes = []
    for place, name in enumerate(COLOURS):
        if seed % 3 == 2 and place:
            continue
        left, top = 32 * place + int(rng.integers(2, 10)), int(rng.integers(2, 20))
        box = Box(left, top, left + int(rng.integers(12, 20)), top + int(rng.integers(12, 24)))
        pixels[box.top : box.bottom, box.left : box.right] = COLOURS[name]
        boxes.append((name, box))
    return pixels, boxes


def voc(root: Path, train: int = 8, test: int = 4) -> Path:
    """A folder in PASCAL VOC's format."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number in range(train + test):
        pixels, boxes = image(number)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.png")
        (root / "Annotations" / f"{number}.xml").write_text(annotation(boxes))
    names = [str(number) for number in range(train + test)]
    for split, some in (("train", names[:train]), ("test", names[train:])):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(some) + "\n")
    return root


def annotation(boxes: list[tuple[str, Box]], size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """VOC counts pixels from 1, and both ends are inside."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{b.left + 1}</xmin>"
        f"<ymin>{b.top + 1}</ymin><xmax>{b.right}</xmax><ymax>{b.bottom}</ymax></bndbox></object>"
        for name, b in boxes
    )
    width, height = size
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        f"{objects}</annotation>"
    )


def masks(root: Path, train: int = 8, test: int = 4) -> Path:
    """A folder of images with masks: grey, red, green; the border is ignored."""
    root.mkdir()
    (root / "classes.txt").write_text("grey\nred\ngreen\n")
    for split, numbers in (("train", range(train)), ("test", range(train, train + test))):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for number in numbers:
            pixels, boxes = image(number)
            mask = np.zeros(pixels.shape[:2], dtype=np.uint8)
            for name, b in boxes:
                mask[b.top : b.bottom, b.left : b.right] = 1 + list(COLOURS).index(name)
            mask[0] = 255
            Image.fromarray(pixels).save(root / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    return root


def coco(root: Path, train: int = 8, test: int = 4, layout: str = "folders") -> Path:
    """The same images with COCO's JSON; the numbers of the categories have gaps.

    `folders`: `train/_annotations.coco.json` beside the images; `official`: `annotations/
    instances_train2017.json` and `train2017/`, tested on val.
    """
    last = "test" if layout == "folders" else "val"
    for split, numbers in (("train", range(train)), (last, range(train, train + test))):
        folder = root / (split if layout == "folders" else f"{split}2017")
        folder.mkdir(parents=True)
        for number in numbers:
            Image.fromarray(image(number)[0]).save(folder / f"{number}.png")
        file = folder / "_annotations.coco.json"
        if layout == "official":
            file = root / "annotations" / f"instances_{split}2017.json"
            file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(coco_annotations(numbers)))
    return root


def coco_annotations(numbers: Sequence[int]) -> dict[str, Any]:
    """COCO's tree of some images: boxes from 0 as left, top, width, height, and their polygons."""
    annotations: list[dict[str, Any]] = []
    for number in numbers:
        for name, b in image(number)[1]:
            corners = [b.left, b.top, b.right, b.top, b.right, b.bottom, b.left, b.bottom]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + number,
                    "category_id": 3 + 7 * list(COLOURS).index(name),
                    "bbox": [b.left, b.top, b.right - b.left, b.bottom - b.top],
                    "segmentation": [corners],
                    "iscrowd": 0,
                }
            )
    images = [
        {"id": 100 + n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in numbers
    ]
    names = [{"id": 3 + 7 * i, "name": name} for i, name in enumerate(COLOURS)]
    unused = {"id": 1, "name": "things"}  # as some exporters put before them
    return {"images": images, "annotations": annotations, "categories": [unused, *names]}
