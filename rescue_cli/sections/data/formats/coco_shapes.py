"""Shapes of COCO's annotations: polygons and run-length encodings, drawn into masks."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rescue_cli.errors import DataError
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import IGNORED, Mask
from rescue_cli.sections.data.formats.annotation_checks import (
    AnnotationChecker,
    Size,
    check_finite,
    format_size,
)
from rescue_cli.sections.data.splits import Files

Edges = tuple[float, float, float, float]
Polygon = NDArray[np.float64]
WITHOUT_SHAPE = (
    "object has a box but no shape: the pixels of the box are ignored",
    "objects have a box but no shape: the pixels of the box are ignored",
)


@dataclass(frozen=True)
class Shape:
    """An object's shape: polygons (x, y, x, y, ...), COCO's run lengths, or None (only a box)."""

    label: int
    crowd: bool
    parts: tuple[Polygon, ...] | Mapping[str, Any] | None
    box: Edges


@dataclass(frozen=True)
class ShapeMasks(Files):
    """A split whose masks are drawn from shapes; `labels` are all 0."""

    annotated: ClassVar[bool] = True
    shapes: tuple[tuple[Shape, ...], ...]
    sizes: tuple[Size, ...]

    def take(self, indices: Indices) -> "ShapeMasks":
        shapes = tuple(self.shapes[int(i)] for i in indices)
        sizes = tuple(self.sizes[int(i)] for i in indices)
        return ShapeMasks(self.names.take(indices), self.labels[indices], shapes, sizes)

    def relabel(self, order: Indices) -> "ShapeMasks":
        """With `order[label]` as each shape's label; raises `DataError` if the background moves."""
        if order[0] != 0:
            raise DataError(
                f"{self.names.root}: the weights have the background as class {order[0]}, but "
                "masks of COCO's shapes have it as class 0. Evaluate weights whose first class is "
                "the background."
            )
        shapes = tuple(
            tuple(replace(shape, label=int(order[shape.label])) for shape in of_image)
            for of_image in self.shapes
        )
        return replace(self, shapes=shapes)

    def target(self, index: int) -> Mask:
        """The image's mask, 0 outside all shapes; raises `ValueError` for invalid run lengths."""
        return draw_mask(self.shapes[index], self.sizes[index])


def draw_mask(shapes: Sequence[Shape], size: Size) -> Mask:
    """The mask (height, width): crowds and objects without a shape ignored, small shapes on top."""
    width, height = size
    mask: Mask = np.zeros((height, width), dtype=np.uint8)
    layers = [
        (IGNORED if shape.crowd or shape.parts is None else shape.label, shape_pixels(shape, size))
        for shape in shapes
    ]
    layers.sort(key=lambda layer: (layer[0] != IGNORED, -int(layer[1].sum())))
    for label, pixels in layers:
        mask[pixels] = label
    return mask


def shape_pixels(shape: Shape, size: Size) -> NDArray[np.bool_]:
    """The pixels that a shape covers by COCO's rules, (height, width).

    Raises `ValueError` for invalid run lengths.
    """
    from faster_coco_eval.core import mask as coco

    width, height = size
    if shape.parts is None:
        left, top, right, bottom = (round(max(edge, 0)) for edge in shape.box)
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[top:bottom, left:right] = True
        return mask
    try:
        if isinstance(shape.parts, Mapping):
            rle = dict(shape.parts)
            if isinstance(rle["counts"], list):
                rle = coco.frPyObjects(rle, height, width)
        else:
            polygons = [part.tolist() for part in shape.parts]
            rle = coco.merge(coco.frPyObjects(polygons, height, width))
        return np.asarray(coco.decode(rle), dtype=np.bool_)
    except (RuntimeError, TypeError) as error:  # raised by pybind
        reason = " ".join(str(error).split())
        raise ValueError(f"a shape cannot be drawn: {reason}") from None


def shapes_checksum(shapes: Sequence[Shape]) -> int:
    """A CRC-32 of an image's shapes."""
    checksum = 0
    for shape in shapes:
        polygons: Sequence[Polygon] = ()
        rle: Any = shape.parts
        if shape.parts is not None and not isinstance(shape.parts, Mapping):
            polygons, rle = shape.parts, [len(part) for part in shape.parts]
        header = json.dumps([shape.label, shape.crowd, shape.box, rle])
        checksum = zlib.crc32(
            b"".join([header.encode(), *(p.tobytes() for p in polygons)]), checksum
        )
    return checksum


def annotation_box(annotation: Mapping[str, Any]) -> Edges:
    """(left, top, right, bottom) of an annotation's box, or of its polygons where it has no box.

    Raises `TypeError` and `ValueError`.
    """
    box = annotation.get("bbox")
    if not box:
        points = np.concatenate(
            parse_polygons(annotation.get("segmentation") or []) or [np.zeros(0)]
        )
        if not len(points):
            raise ValueError("has neither a box nor polygons")
        return (*points.reshape(-1, 2).min(0).tolist(), *points.reshape(-1, 2).max(0).tolist())
    left, top, width, height = (float(edge) for edge in box)
    check_finite((left, top, width, height))
    return left, top, left + width, top + height


def parse_polygons(segmentation: Any) -> list[Polygon]:
    """Parses COCO's list of polygons, or a single one; raises `TypeError` and `ValueError`."""
    if isinstance(segmentation, Mapping):
        return []
    lists = (
        segmentation if not segmentation or isinstance(segmentation[0], list) else [segmentation]
    )
    polygons = [
        np.array([float(x) for x in coordinates], dtype=np.float64) for coordinates in lists
    ]
    for coordinates in polygons:
        check_finite(coordinates.tolist())
        if len(coordinates) % 2:
            raise ValueError(f"a polygon has {len(coordinates)} coordinates, an odd number")
    return [coordinates for coordinates in polygons if len(coordinates) >= 6]


def _reaches_far_outside(polygon: Polygon, size: Size) -> bool:
    """Whether a polygon leaves its image by more than the image's size; to draw it takes memory in
    proportion to its length.
    """
    points = polygon.reshape(-1, 2) / size
    return bool(points.min() < -1 or points.max() > 2)


def parse_shape(
    where: str,
    annotation: Mapping[str, Any],
    label: int,
    size: Size,
    checker: AnnotationChecker,
    *,
    crowd: bool,
) -> Shape:
    """Parses an annotation's shape; raises `DataError`, also where run lengths do not fit."""
    segmentation = annotation.get("segmentation")
    try:
        parts: Any = parse_polygons(segmentation or [])
        box = (
            annotation_box(annotation) if annotation.get("bbox") or parts else (0.0, 0.0, 0.0, 0.0)
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}.") from None
    if any(_reaches_far_outside(polygon, size) for polygon in parts):
        raise DataError(
            f"{where}: a polygon reaches further out of its image, of {format_size(size)} pixels, "
            "than that is wide or high. Correct its coordinates."
        )
    if isinstance(segmentation, Mapping):
        rle_size = segmentation.get("size")
        if rle_size != [size[1], size[0]] or not isinstance(segmentation.get("counts"), str | list):
            raise DataError(
                f"{where}: its run lengths have height and width {rle_size}, but the image is "
                f"{format_size(size)} pixels. Use the image that was annotated."
            )
        parts = {"size": rle_size, "counts": segmentation["counts"]}
    if not parts:
        checker.count(WITHOUT_SHAPE, where)
        return Shape(label, crowd, None, box)
    return Shape(label, crowd, parts if isinstance(parts, dict) else tuple(parts), box)
