"""Splits on disk whose images carry more than a label: boxes around objects, or a mask."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from rescue_cli.data.splits import FileNames, Files
from rescue_cli.draws import Indices
from rescue_cli.errors import DataError
from rescue_cli.scene import IGNORED, Mask, Objects


@dataclass(frozen=True)
class Boxed(Files):
    """A split whose images have objects in boxes; `labels` are all 0."""

    objects: tuple[Objects, ...]

    def take(self, indices: Indices) -> "Boxed":
        kept = tuple(self.objects[int(i)] for i in indices)
        return Boxed(self.names.take(indices), self.labels[indices], kept)

    def relabelled(self, order: Indices) -> "Boxed":
        each = tuple(o._replace(labels=order[o.labels - 1] + 1) for o in self.objects)
        return replace(self, objects=each)

    def target(self, index: int) -> Objects:
        return self.objects[index]


@dataclass(frozen=True)
class Masked(Files):
    """A split with a mask of class numbers for each image; `labels` are all 0."""

    masks: FileNames
    classes: int
    first: int  # what a mask calls the first class; anything below it is ignored

    def take(self, indices: Indices) -> "Masked":
        names, masks = self.names.take(indices), self.masks.take(indices)
        return Masked(names, self.labels[indices], masks, self.classes, self.first)

    def relabelled(self, order: Indices) -> "Masked":  # noqa: ARG002
        """Raises `DataError`: the labels are in the masks."""
        raise DataError(
            f"{self.masks.root}: its masks number the classes in another order than the weights "
            "know. Order the classes' names (classes.txt) and the masks' numbers as they do."
        )

    def target(self, index: int) -> Mask:
        """The image's mask; raises `ValueError` for a class that there is not."""
        path = self.masks.path(index)
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise ValueError(f"{path}: a mask has one byte a pixel, and this one {image.mode}")
            found = np.array(image)
        known = (found != IGNORED) & (found >= self.first)
        mask: Mask = np.where(known, found - np.uint8(self.first), IGNORED).astype(np.uint8)
        highest = int(mask[known].max(initial=0))
        if highest >= self.classes:
            raise ValueError(
                f"{path}: a label {highest + self.first}, where the {self.classes} classes end at "
                f"{self.classes + self.first - 1} and {IGNORED} is ignored"
            )
        return mask


Paired = Boxed | Masked
