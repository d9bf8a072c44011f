"""Shapes of COCO's annotations: polygons and runs of pixels, as boxes and as masks."""

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
from rescue_cli.sections.data.annotation_checks import Fit, Size, demand_finite, dimensions
from rescue_cli.sections.data.splits import Files

Edges = tuple[float, float, float, float]
Polygon = NDArray[np.float64]
SHAPELESS = (
    "object has a box and no shape: the pixels of the box are ignored",
    "objects have a box and no shape: the pixels of the box are ignored",
)


@dataclass(frozen=True)
class Shape:
    """An object's pixels: polygons (x, y, x, y, ...), or COCO's run lengths; None: only its box."""

    label: int
    crowd: bool
    parts: tuple[Polygon, ...] | Mapping[str, Any] | None
    box: Edges


@dataclass(frozen=True)
class Painted(Files):
    """A split whose masks are painted from shapes; `labels` are all 0."""

    annotated: ClassVar[bool] = True
    shapes: tuple[tuple[Shape, ...], ...]
    sizes: tuple[Size, ...]

    def take(self, indices: Indices) -> "Painted":
        shapes = tuple(self.shapes[int(i)] for i in indices)
        sizes = tuple(self.sizes[int(i)] for i in indices)
        return Painted(self.names.take(indices), self.labels[indices], shapes, sizes)

    def relabelled(self, order: Indices) -> "Painted":
        """With `order[label]` for each shape; raises `DataError` where 0 is not the background."""
        if order[0] != 0:
            raise DataError(
                f"{self.names.root}: the weights number the background {order[0]}, and where no "
                "shape is a mask is 0. Evaluate weights whose first class is the background."
            )
        shapes = tuple(
            tuple(replace(shape, label=int(order[shape.label])) for shape in some)
            for some in self.shapes
        )
        return replace(self, shapes=shapes)

    def target(self, index: int) -> Mask:
        """The image's mask: 0 where no shape is; raises `ValueError` for runs that do not fit."""
        return painted(self.shapes[index], self.sizes[index])


def painted(shapes: Sequence[Shape], size: Size) -> Mask:
    """The mask (height, width): crowds and mere boxes ignored, the smallest shape on top."""
    width, height = size
    mask: Mask = np.zeros((height, width), dtype=np.uint8)
    found = [
        (IGNORED if shape.crowd or shape.parts is None else shape.label, pixels_of(shape, size))
        for shape in shapes
    ]
    found.sort(key=lambda each: (each[0] != IGNORED, -int(each[1].sum())))
    for label, pixels in found:
        mask[pixels] = label
    return mask


def pixels_of(shape: Shape, size: Size) -> NDArray[np.bool_]:
    """(height, width), by COCO's own rules of which pixels a polygon covers.

    Raises `ValueError` for runs that do not fit, or are none.
    """
    from faster_coco_eval.core import mask as coco

    width, height = size
    if shape.parts is None:
        left, top, right, bottom = (round(max(edge, 0)) for edge in shape.box)
        found = np.zeros((height, width), dtype=np.bool_)
        found[top:bottom, left:right] = True
        return found
    try:
        if isinstance(shape.parts, Mapping):
            runs = dict(shape.parts)
            if isinstance(runs["counts"], list):
                runs = coco.frPyObjects(runs, height, width)
        else:
            polygons = [part.tolist() for part in shape.parts]
            runs = coco.merge(coco.frPyObjects(polygons, height, width))
        return np.asarray(coco.decode(runs), dtype=np.bool_)
    except (RuntimeError, TypeError) as error:  # what pybind raises
        said = " ".join(str(error).split())
        raise ValueError(f"a shape that cannot be painted: {said}") from None


def checksum(shapes: Sequence[Shape]) -> int:
    """A crc32 of an image's shapes."""
    found = 0
    for shape in shapes:
        polygons: Sequence[Polygon] = ()
        runs: Any = shape.parts
        if shape.parts is not None and not isinstance(shape.parts, Mapping):
            polygons, runs = shape.parts, [len(part) for part in shape.parts]
        head = json.dumps([shape.label, shape.crowd, shape.box, runs])
        found = zlib.crc32(b"".join([head.encode(), *(p.tobytes() for p in polygons)]), found)
    return found


def box_of(each: Mapping[str, Any]) -> Edges:
    """An annotation's box, of its polygons where it has none; raises `TypeError`, `ValueError`."""
    box = each.get("bbox")
    if not box:
        points = np.concatenate(polygons_of(each.get("segmentation") or []) or [np.zeros(0)])
        if not len(points):
            raise ValueError("has neither a box nor polygons")
        return (*points.reshape(-1, 2).min(0).tolist(), *points.reshape(-1, 2).max(0).tolist())
    left, top, width, height = (float(edge) for edge in box)
    demand_finite((left, top, width, height))
    return left, top, left + width, top + height


def polygons_of(given: Any) -> list[Polygon]:
    """Polygons as COCO lists them, or one as a plain list; raises `TypeError`, `ValueError`."""
    if isinstance(given, Mapping):
        return []
    lists = given if not given or isinstance(given[0], list) else [given]
    found = [np.array([float(x) for x in each], dtype=np.float64) for each in lists]
    for each in found:
        demand_finite(each.tolist())
        if len(each) % 2:
            raise ValueError(f"a polygon of {len(each)} numbers, where each point has two")
    return [each for each in found if len(each) >= 6]


def shape_of(
    where: str, each: Mapping[str, Any], label: int, size: Size, fit: Fit, *, crowd: bool
) -> Shape:
    """An annotation's shape; raises `DataError` where it is of an image of another size."""
    given = each.get("segmentation")
    try:
        parts: Any = polygons_of(given or [])
        box = box_of(each) if each.get("bbox") or parts else (0.0, 0.0, 0.0, 0.0)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {error}.") from None
    if isinstance(given, Mapping):
        told = given.get("size")
        if told != [size[1], size[0]] or not isinstance(given.get("counts"), str | list):
            raise DataError(
                f"{where}: its run lengths are of height and width {told}, and the image is "
                f"{dimensions(size)} pixels. Use the image that was annotated."
            )
        parts = {"size": told, "counts": given["counts"]}
    if not parts:
        fit.passed(SHAPELESS, where)
        return Shape(label, crowd, None, box)
    return Shape(label, crowd, parts if isinstance(parts, dict) else tuple(parts), box)
