"""Preprocessing as the metadata of a file says it, by PIL and numpy: what its user would write."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (n, height, width, channels)
Floats = NDArray[np.float32]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; shares no code with the evaluation of a run."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    crop: float
    interpolation: str
    squash: bool
    longest: int | None = None  # pixels; images stay whole

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "Preprocessing":
        """From the keys that `describe_preprocessing` writes."""
        mean, std = (tuple(map(float, metadata[key].split(","))) for key in ("mean", "std"))
        return cls(
            mean,
            std,
            int(metadata["input"]),
            float(metadata["crop"]),
            metadata["interpolation"],
            metadata["resize"] == "squash",
            int(metadata["longest"]) if "longest" in metadata else None,
        )

    @property
    def std_of_planes(self) -> Floats:
        """The standard deviation, (channels, 1, 1)."""
        return np.array(self.std, np.float32)[:, None, None]

    def crop_image(self, image: Image.Image) -> Pixels:
        """The centre of the resized image, or all of it: (height, width, channels) uint8."""
        if self.longest is not None:
            factor = min(self.size / min(image.size), self.longest / max(image.size))
            width, height = (max(1, round(factor * side)) for side in image.size)
            return np.asarray(image.resize((width, height), _FILTERS[self.interpolation]))
        target = math.floor(self.size / self.crop)
        width, height = (
            target
            if self.squash or side == min(image.size)
            else int(target * side / min(image.size))
            for side in image.size
        )
        resized = image.resize((width, height), _FILTERS[self.interpolation])
        left, top = (round((side - self.size) / 2) for side in resized.size)
        box = (left, top, left + self.size, top + self.size)
        return np.asarray(resized.crop(box)).reshape(self.size, self.size, -1)

    def normalise(self, pixels: Pixels) -> Floats:
        """(n, height, width, channels) to (n, channels, height, width)."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        floats = (pixels.astype(np.float32) / 255 - mean) / std
        return np.ascontiguousarray(floats.transpose(0, 3, 1, 2))
