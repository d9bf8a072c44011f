"""What an image may carry beside a label: objects in boxes, or a mask of classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rescue_cli.batch import Batch
from rescue_cli.rng import Floats, Indices

# Times as long as wide: of a longer image only the part that is cut out is resized. Whole, 8000 x 3
# pixels at a shorter side of 256 were 680,000 x 256
ASPECT = 16
IGNORED = 255  # a mask's label for pixels that count for nothing
Mask = NDArray[np.uint8]  # (height, width), classes from 0


class Objects(NamedTuple):
    """The objects of an image: boxes (n, 4) as left, top, right, bottom, in pixels from the upper
    left corner of the image; labels (n,) from 1; `difficult` (n,), which a score passes over.
    """

    boxes: Floats
    labels: Indices
    difficult: NDArray[np.bool_]

    @staticmethod
    def of(rows: Sequence[tuple[tuple[float, ...], int, bool]]) -> "Objects":
        boxes = np.array([row[0] for row in rows], dtype=np.float32).reshape(-1, 4)
        labels = np.array([row[1] for row in rows], dtype=np.int64)
        return Objects(boxes, labels, np.array([row[2] for row in rows], dtype=np.bool_))


class Scene(NamedTuple):
    """An image (3, height, width) uint8 and what it carries."""

    image: Tensor
    target: Objects | Mask


@dataclass(frozen=True)
class SceneOperation:
    """`apply(scene, draws (columns,))` -> scene, run where files are decoded.

    `one_size`: whatever comes in, what comes out has one size.
    """

    columns: int
    apply: Callable[[Scene, Floats], Scene]
    one_size: bool = False


@dataclass(frozen=True)
class SceneBatch(Batch):
    """One micro-batch. With masks: images (n, 3, height, width), targets (n, height, width) labels.

    With boxes, lists: images of their own sizes, targets as torchvision's detectors take them.
    """

    images: Any
    targets: Any


class ShownScenes(NamedTuple):
    """Some test images, each in its own size: indices, uint8 images on the device, targets."""

    indices: list[int]
    scenes: list[Scene]
