"""The recipe's operations in order: one block of draws per micro-batch, one copy to the device.

Those of the stages `file` and `sample` have run by then, in the workers that load the images.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rescue_cli.batch import Batch, to_device
from rescue_cli.rng import uniform
from rescue_cli.sections.augment.kernels import devices
from rescue_cli.sections.augment.operations import ImageIds, Operation

ON_DEVICE = ("pixels", "levels", "normalised")
Images = TypeVar("Images", Tensor, list[Tensor])
Planned = tuple[Operation, tuple[Any, ...]]
Plans = list[list[Planned]]  # by stage


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
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}  # by width
        self.device = device
        self.dtype = dtype
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def floats(self, images: Tensor) -> Tensor:
        """The same levels, 0 to 255, in `dtype` and memory format."""
        return images.to(dtype=self.dtype, memory_format=self.format)

    def __call__(self, images: Images) -> Images:
        """Images (n, channels, height, width); of a list each (channels, height, width) by itself,
        as they have no common size.
        """
        if isinstance(images, list):
            return [self(image[None])[0] for image in images]
        if not devices.on_cpu(images):  # converts what it reads
            return images.contiguous(memory_format=self.format).sub(self.shift).mul_(self.factor)
        # in place: each new tensor of this size costs its page faults as well
        floats = images.to(dtype=self.dtype, memory_format=self.format, copy=True)
        if self.format == torch.contiguous_format:
            return floats.sub_(self.shift).mul_(self.factor)
        # row by row: a processor's loop over the three channels takes nine times as long
        n, channels, height, width = images.shape
        rows = floats.permute(0, 2, 3, 1).view(n, height, width * channels)
        shift, factor = self._of_row(width)
        rows.sub_(shift).mul_(factor)
        return floats

    def _of_row(self, width: int) -> tuple[Tensor, Tensor]:
        """Shift and factor of each value of a row of pixels."""
        if width not in self.rows:
            self.rows[width] = (
                self.shift.flatten().repeat(width),
                self.factor.flatten().repeat(width),
            )
        return self.rows[width]

    def undo(self, images: Tensor) -> Tensor:
        """Normalised images back to uint8 pixels."""
        return (images / self.factor + self.shift).round().clamp(0, 255).to(torch.uint8)


class Unchanged(Normalise):
    """Passes floats through unchanged."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__([0.0], [1.0], device, dtype, channels_last=False)

    def __call__(self, images: Images) -> Images:
        assert isinstance(images, Tensor)
        return images.to(self.dtype)


class Augment:
    """Batch of uint8 pixels -> batch of augmented, normalised images, for every task."""

    def __init__(
        self,
        operations: Sequence[Operation],
        normalise: Normalise,
        seed: int,
        steps_per_epoch: int,
    ) -> None:
        self.stages = [[op for op in operations if op.stage == stage] for stage in ON_DEVICE]
        self.normalise = normalise
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.columns = sum(op.columns for stage in self.stages for op in stage)
        self.from_device = any(op.from_device for stage in self.stages for op in stage)

    def __call__(self, batch: Batch) -> Batch:
        return replace(batch, images=self.apply(batch.images, self.plan([batch])))

    def apply(self, images: Any, plans: Plans) -> Any:
        """The images augmented as planned, and normalised in between."""
        pixels, levels, normalised = self._send(plans)
        images = _apply(pixels, images)
        if levels:
            images = _apply(levels, self.normalise.floats(images))
        return _apply(normalised, self.normalise(images))

    def plan(self, batches: Sequence[Batch]) -> Plans:
        """Each stage's operations with the values they are applied with; on the host alone, from
        the steps, numbers and indices of micro-batches of one epoch, one after another.
        """
        blocks = [
            uniform(self.seed, "augment", b.step, b.micro_batch, (len(b.indices), self.columns))
            for b in batches
        ]
        (epoch,) = {batch.step // self.steps_per_epoch for batch in batches}
        draws = np.concatenate(blocks)
        ids = ImageIds(np.concatenate([b.indices for b in batches]), epoch, self.seed)
        used = 0
        plans: Plans = []
        for operations in self.stages:
            plans.append([])
            for operation in operations:
                columns = draws[:, used : used + operation.columns]
                by_image = operation.plan_by_image
                plan = by_image(ids) if by_image else operation.plan(columns)
                plans[-1].append((operation, plan))
                used += operation.columns
        return plans

    def _send(self, plans: Plans) -> Plans:
        """The plans with their arrays on the device."""
        arrays = [v for stage in plans for _, values in stage for v in values if _is_array(v)]
        sent = iter(_send(arrays, self.normalise.device))
        return [
            [(op, tuple(next(sent) if _is_array(v) else v for v in values)) for op, values in stage]
            for stage in plans
        ]


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _send(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on the device, in one copy, in double precision on the way."""
    if not arrays:
        return []
    flat = [array.astype(np.float64).ravel() for array in arrays]
    whole = to_device(np.concatenate(flat), device)
    parts = torch.split(whole, [len(part) for part in flat])
    return [
        part.to(torch.from_numpy(array[:0]).dtype).view(array.shape)
        for part, array in zip(parts, arrays, strict=True)
    ]


def _apply(planned: Sequence[Planned], images: Any) -> Any:
    for operation, plan in planned:
        images = operation.apply(images, *plan)
    return images
