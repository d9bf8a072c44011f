"""Splits on disk whose images carry more than a label: boxes around objects, or a mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rescue_cli.errors import DataError
from rescue_cli.rng import Indices
from rescue_cli.sections.annotations import IGNORED, Mask, Objects
from rescue_cli.sections.data.formats.coco_shapes import ShapeMasks
from rescue_cli.sections.data.splits import FileNames, Files, join_names

UNKNOWN = -1
ONE_NUMBER = ("1", "L", "P", "I", "I;16")  # PIL's modes with one integer per pixel


@dataclass(frozen=True)
class Boxed(Files):
    """A split whose images have objects in boxes; `labels` are all 0."""

    annotated: ClassVar[bool] = True
    objects: tuple[Objects, ...]

    def take(self, indices: Indices) -> "Boxed":
        kept = tuple(self.objects[int(i)] for i in indices)
        return Boxed(self.names.take(indices), self.labels[indices], kept)

    def relabel(self, order: Indices) -> "Boxed":
        each = tuple(o._replace(labels=order[o.labels - 1] + 1) for o in self.objects)
        return replace(self, objects=each)

    def target(self, index: int) -> Objects:
        return self.objects[index]


def classes_of_weights(classes: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that the evaluated weights know, where all of the data set's are among them."""
    return known if set(classes) <= set(known) else classes


def note_missing_objects(
    splits: Mapping[str, Boxed | ShapeMasks], classes: Sequence[str]
) -> tuple[str, ...]:
    """A sentence for each split without objects of some classes, whose labels begin at 1."""
    notes = []
    for name, split in splits.items():
        if isinstance(split, ShapeMasks):
            shapes = [shape for of_image in split.shapes for shape in of_image]
            present = {s.label for s in shapes if s.parts is not None and not s.crowd}
        else:
            present = {int(label) for objects in split.objects for label in objects.labels}
        if missing := [each for label, each in enumerate(classes, 1) if label not in present]:
            notes.append(
                f"{name} has no object of {len(missing)} of {len(classes)} classes: "
                f"{join_names(missing)}"
            )
    return tuple(notes)


class Coding(NamedTuple):
    """What the values of a mask mean: `classes` (values,) has a class, IGNORED, or UNKNOWN; `words`
    describes the known values for messages.
    """

    classes: NDArray[np.int16]
    words: str

    def decode(self, values: NDArray[Any]) -> Mask:
        """The mask of classes; raises `ValueError` for an unknown value."""
        highest = int(values.max(initial=0))
        within = values if highest < len(self.classes) else np.minimum(values, len(self.classes))
        classes = np.append(self.classes, np.int16(UNKNOWN))[within]
        if (classes == UNKNOWN).any():
            raise ValueError(f"a label {int(values[classes == UNKNOWN].max())}, where {self.words}")
        mask: Mask = classes.astype(np.uint8)
        return mask


def number_classes(classes: int, first: int) -> Coding:
    """Classes from the value `first` on; what is below it and 255 are ignored."""
    table = np.full(IGNORED + 1, UNKNOWN, dtype=np.int16)
    table[:first] = table[IGNORED] = IGNORED
    table[first : first + classes] = np.arange(classes)
    return Coding(
        table, f"the {classes} classes end at {classes + first - 1} and {IGNORED} is ignored"
    )


@dataclass(frozen=True)
class Masked(Files):
    """A split with a mask of class numbers for each image; `labels` are all 0."""

    annotated: ClassVar[bool] = True
    masks: FileNames
    coding: Coding

    def take(self, indices: Indices) -> "Masked":
        names, masks = self.names.take(indices), self.masks.take(indices)
        return Masked(names, self.labels[indices], masks, self.coding)

    def relabel(self, order: Indices) -> "Masked":  # noqa: ARG002
        """Raises `DataError`: the masks on disk hold the labels."""
        raise DataError(
            f"{self.masks.root}: its masks number the classes in another order than the weights. "
            "Use the weights' order in classes.txt and in the masks."
        )

    def target(self, index: int) -> Mask:
        """The image's mask; raises `ValueError` for an unknown value."""
        path = self.masks.path(index)
        with Image.open(path) as image:
            if image.mode not in ONE_NUMBER:
                raise ValueError(
                    f"{path}: a mask has one number per pixel, and this one is {image.mode}"
                )
            values = np.array(image)
        try:
            return self.coding.decode(values.astype(np.int64) if image.mode == "1" else values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
