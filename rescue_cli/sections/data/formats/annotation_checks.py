"""Checks of annotations against their images: image sizes, and boxes inside the image."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rescue_cli.errors import DataError
from rescue_cli.recipe.sections import Exif
from rescue_cli.sections.annotations import Objects
from rescue_cli.sections.data.decode import OTHER_EXIF, UNREADABLE, image_size

Size = tuple[int, int]  # width, height
Problem = tuple[str, str]  # its wording for one and for several
FIX_SIZE = "Use the image that was annotated, or, if the boxes are right, correct the size."
NO_AREA = ("box without area is left out", "boxes without area are left out")
OUTSIDE = (
    "box lies outside its image and is left out",
    "boxes lie outside their image and are left out",
)
OVER_EDGE = (
    "box extends beyond its image and is clipped",
    "boxes extend beyond their image and are clipped",
)
SLACK = 2.0  # pixels that a box may exceed its image by where the annotation gives no image size


class AnnotatedBox(NamedTuple):
    """An annotated object: (left, top, right, bottom) in pixels, ends exclusive; label from 1."""

    box: tuple[float, float, float, float]
    label: int
    difficult: bool


@dataclass
class AnnotationChecker:
    """Clips objects to their images, as these are read with `data.exif`.

    Counts what it left out or clipped by problem, with the first file of each.
    """

    exif: Exif
    counts: Counter[Problem] = field(default_factory=Counter)
    first: dict[Problem, str] = field(default_factory=dict)

    def count(self, reason: Problem, where: Path | str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, str(where))

    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"{count} {reason[count > 1]}; first in {self.first[reason]}"
            for reason, count in self.counts.items()
        )

    def clip_objects(
        self,
        where: Path | str,
        image: Path,
        annotated_size: Size | None,
        boxes: Sequence[AnnotatedBox],
    ) -> Objects:
        """The objects of an image, clipped to it; `where` locates the annotation in messages.

        Boxes without area or outside the image are left out. Raises `DataError` where
        `annotated_size` differs from the image's size.
        """
        size = check_size(where, image, annotated_size, self.exif)
        rows = []
        for box, label, difficult in boxes:
            if box[2] <= box[0] or box[3] <= box[1]:
                self.count(NO_AREA, where)
                continue
            if annotated_size is None and (box[2] > size[0] + SLACK or box[3] > size[1] + SLACK):
                raise DataError(
                    f"{where}: a box extends to {box[2]:g} x {box[3]:g}, but {image} is "
                    f"{format_size(size)} pixels. Use the image that was annotated, or write this "
                    "size into the annotation to clip the box."
                )
            clipped = _clip_box(box, size)
            if clipped is None:
                self.count(OUTSIDE, where)
                continue
            if clipped != box:
                self.count(OVER_EDGE, where)
            rows.append((clipped, label, difficult))
        return Objects.of(rows)


def try_image_size(path: Path, exif: Exif) -> Size | None:
    """(width, height), or None where the file cannot be read; decoding it reports the error."""
    try:
        height, width = image_size(path, exif)
    except UNREADABLE:
        return None
    return width, height


def check_size(
    where: Path | str, image: Path, annotated_size: Size | None, exif: Exif, fix: str = FIX_SIZE
) -> Size:
    """The image's (width, height); raises `DataError` where `annotated_size` differs from it."""
    image_size_ = try_image_size(image, exif)
    size = image_size_ or annotated_size
    if size is None:
        raise DataError(f"{image}: cannot be read, and {where} does not give its size.")
    if annotated_size is None or size == annotated_size:
        return size
    other = OTHER_EXIF[exif]
    if try_image_size(image, other) == annotated_size:
        fix = f"The sizes agree in the other orientation: set data.exif={other}."
    hint = " (width and height are swapped)" if size == annotated_size[::-1] else ""
    raise DataError(
        f"{where}: annotates an image of {format_size(annotated_size)} pixels, but {image} is "
        f"{format_size(size)}{hint} with data.exif={exif}. {fix}"
    )


def check_pixel_units(where: Path | str, boxes: Iterable[tuple[float, ...]]) -> None:
    """Raises `DataError` where all boxes lie in the first pixel, as normalised coordinates do."""
    listed = list(boxes)
    if listed and all(0 < max(box) <= 1 for box in listed):
        shown = ", ".join(f"{edge:g}" for edge in listed[0])
        raise DataError(
            f"{where}: no box extends beyond the first pixel ({shown}). Boxes must be in pixels, "
            "not normalised."
        )


def check_finite(edges: Sequence[float]) -> None:
    """Raises `ValueError` for an edge that is infinite or NaN."""
    if not all(math.isfinite(edge) for edge in edges):
        raise ValueError(f"a box edge is not a finite number: {', '.join(map(str, edges))}")


def format_size(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _clip_box(box: tuple[float, ...], size: Size) -> tuple[float, ...] | None:
    """The part of a box inside the image, or None."""
    left, top, right, bottom = box
    inside = (max(left, 0.0), max(top, 0.0), min(right, size[0]), min(bottom, size[1]))
    return inside if inside[2] > inside[0] and inside[3] > inside[1] else None
