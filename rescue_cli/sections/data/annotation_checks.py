"""What annotations say, against the pixels of their images: sizes, and boxes in them."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rescue_cli.errors import DataError
from rescue_cli.recipe.sections import Exif
from rescue_cli.sections.annotations import Objects
from rescue_cli.sections.data.decode import OTHERWISE, UNREADABLE, image_size

Size = tuple[int, int]  # width, height
Reason = tuple[str, str]  # of one and of several
CORRECT = "Use the image that was annotated; where the boxes are right, correct the size."
EMPTY = ("box has no area and is left out", "boxes have no area and are left out")
OUTSIDE = (
    "box lies outside its image and is left out",
    "boxes lie outside their image and are left out",
)
OVER = (
    "box reaches over its image's edge and is cut",
    "boxes reach over their image's edge and are cut",
)
SLACK = 2.0  # pixels that a box may reach beyond an image whose size its annotation does not say


class Marked(NamedTuple):
    """An object as annotated: its box in pixels from 0, ends outside; its label from 1."""

    box: tuple[float, float, float, float]
    label: int
    difficult: bool


@dataclass
class Fit:
    """Puts objects into their images, as these are read with `data.exif`; what it passed over or
    cut is counted by the reason, with the first file of each.
    """

    exif: Exif
    counts: Counter[Reason] = field(default_factory=Counter)
    first: dict[Reason, str] = field(default_factory=dict)

    def passed(self, reason: Reason, where: Path | str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, str(where))

    def notes(self) -> tuple[str, ...]:
        return tuple(
            f"{count} {reason[count > 1]}; the first in {self.first[reason]}"
            for reason, count in self.counts.items()
        )

    def objects(
        self, where: Path | str, image: Path, said: Size | None, marked: Sequence[Marked]
    ) -> Objects:
        """The objects of an image whose annotation, found at `where`, gives it the size `said`.

        What has no area or lies outside is left out, what reaches over the edge is cut.
        Raises `DataError` where the annotation is of an image of another size.
        """
        size = common_size(where, image, said, self.exif)
        rows = []
        for box, label, difficult in marked:
            if box[2] <= box[0] or box[3] <= box[1]:
                self.passed(EMPTY, where)
                continue
            if said is None and (box[2] > size[0] + SLACK or box[3] > size[1] + SLACK):
                raise DataError(
                    f"{where}: a box reaches to {box[2]:g} x {box[3]:g}, and {image} is "
                    f"{dimensions(size)} pixels. Use the image that was annotated, or write this "
                    "size into the annotation, and the box is cut."
                )
            cut = _cut(box, size)
            if cut is None:
                self.passed(OUTSIDE, where)
                continue
            if cut != box:
                self.passed(OVER, where)
            rows.append((cut, label, difficult))
        return Objects.of(rows)


def size_of(path: Path, exif: Exif) -> Size | None:
    """None where the file cannot be read, which whoever decodes it says."""
    try:
        height, width = image_size(path, exif)
    except UNREADABLE:
        return None
    return width, height


def common_size(
    where: Path | str, image: Path, said: Size | None, exif: Exif, cure: str = CORRECT
) -> Size:
    """The image's size, which is the annotation's where it says one; raises `DataError`."""
    there = size_of(image, exif)
    size = there or said
    if size is None:
        raise DataError(f"{image}: cannot be read, and {where} does not say its size.")
    if said is None or size == said:
        return size
    other = OTHERWISE[exif]
    if size_of(image, other) == said:
        cure = f"It is of the other orientation: set data.exif={other}."
    hint = " (width and height are swapped)" if size == said[::-1] else ""
    raise DataError(
        f"{where}: is of an image of {dimensions(said)} pixels, and {image} is "
        f"{dimensions(size)}{hint} with data.exif={exif}. {cure}"
    )


def demand_pixels(where: Path | str, boxes: Iterable[tuple[float, ...]]) -> None:
    """Raises `DataError` where all boxes lie in the first pixel, as shares of an image do."""
    found = list(boxes)
    if found and all(0 < max(box) <= 1 for box in found):
        shown = ", ".join(f"{edge:g}" for edge in found[0])
        raise DataError(
            f"{where}: no box reaches beyond the first pixel ({shown}). Boxes are in pixels, "
            "not in shares of the image."
        )


def demand_finite(edges: Sequence[float]) -> None:
    """Raises `ValueError`."""
    if not all(math.isfinite(edge) for edge in edges):
        raise ValueError(f"a box with an edge that is no number: {', '.join(map(str, edges))}")


def dimensions(size: Size) -> str:
    return f"{size[0]} x {size[1]}"


def _cut(box: tuple[float, ...], size: Size) -> tuple[float, ...] | None:
    """The part of a box that lies in the image, or None."""
    left, top, right, bottom = box
    inside = (max(left, 0.0), max(top, 0.0), min(right, size[0]), min(bottom, size[1]))
    return inside if inside[2] > inside[0] and inside[3] > inside[1] else None
