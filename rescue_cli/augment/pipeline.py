"""The recipe's operations in order, with one block of draws a slice and normalisation between."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rescue_cli.augment.operations import Operation
from rescue_cli.batch import Batch, to_device
from rescue_cli.draws import uniform


class Normalise:
    """uint8 pixels to (pixels / 255 - mean) / std in `dtype` and memory format."""

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool,
    ) -> None:
        scale = torch.tensor(std, dtype=torch.float64) * 255
        shift = torch.tensor(mean, dtype=torch.float64) * 255
        self.shift = shift.to(dtype).to(device)[:, None, None]
        self.factor = (1 / scale).to(dtype).to(device)[:, None, None]
        self.dtype = dtype
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        floats = images.to(dtype=self.dtype, memory_format=self.format)
        return (floats - self.shift) * self.factor

    def undo(self, images: Tensor) -> Tensor:
        """Normalised images back to uint8 pixels."""
        return (images / self.factor + self.shift).round().clamp(0, 255).to(torch.uint8)


class Augment:
    """Batch of uint8 pixels -> batch of normalised, augmented images."""

    def __init__(self, operations: Sequence[Operation], normalise: Normalise, seed: int) -> None:
        self.pixels = [op for op in operations if op.stage == "pixels"]
        self.normalised = [op for op in operations if op.stage == "normalised"]
        self.normalise = normalise
        self.seed = seed
        self.columns = sum(op.columns for op in operations)

    def __call__(self, batch: Batch) -> Batch:
        shape = (len(batch.images), self.columns)
        block = uniform(self.seed, "augment", batch.step, batch.slice, shape)
        draws = to_device(block, batch.images.device)
        images, used = self._apply(self.pixels, batch.images, draws, 0)
        images, _ = self._apply(self.normalised, self.normalise(images), draws, used)
        return replace(batch, images=images)

    @staticmethod
    def _apply(
        operations: Sequence[Operation], images: Tensor, draws: Tensor, used: int
    ) -> tuple[Tensor, int]:
        for operation in operations:
            images = operation.apply(images, draws[:, used : used + operation.columns])
            used += operation.columns
        return images, used
