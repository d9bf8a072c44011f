"""What flows through a step: one micro-batch of images, and its way from host to device."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rescue_cli.rng import Indices

Copied = TypeVar("Copied")


@dataclass(frozen=True)
class Batch:
    """One micro-batch: images (n, channels, height, width); targets (n,) labels, (n, classes)
    shares, or (n, height, width) masks. With boxes both are lists, as each image has its own size.

    `step` and `micro_batch` say which draws belong to it; `indices` (n,), on the host, which images
    of the training set the sampler put into the micro-batch.
    """

    images: Any
    targets: Any
    step: int
    micro_batch: int
    indices: Indices


class Transfers:
    """Counts the copies between host and device, so that a test can say how many a step makes."""

    to_device = 0
    to_host = 0


def to_device(array: NDArray[np.generic] | Tensor, device: torch.device) -> Tensor:
    """A copy on the device that does not wait for it (from pinned memory on CUDA)."""
    Transfers.to_device += 1
    if isinstance(array, np.ndarray):  # one of a memory-mapped file cannot be written to
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    else:
        tensor = array
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def joined(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """The parts one after another; for CUDA in pinned memory, from which `to_device` copies."""
    if device.type != "cuda":
        return torch.cat(list(parts))
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    whole = torch.empty(shape, dtype=parts[0].dtype, pin_memory=True)
    for place, part in zip(torch.split(whole, [len(p) for p in parts]), parts, strict=True):
        place.copy_(part)
    return whole


class SideStream:
    """Copies to a GPU beside what it computes, on a stream of their own; to a CPU as they come."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, copy: Callable[[], Copied]) -> Copied:
        """What `copy` gives, tensors within lists, tuples and dictionaries."""
        return self._take(self._start(copy))

    def ahead(self, copies: Iterable[Callable[[], Copied]]) -> Iterator[Copied]:
        """What each gives, copied to a GPU while what is computed from the one before."""
        if self.stream is None:
            yield from (copy() for copy in copies)
            return
        before = None
        for copy in copies:
            started = self._start(copy)
            if before is not None:
                yield self._take(before)
            before = started
        if before is not None:
            yield self._take(before)

    def _start(self, copy: Callable[[], Copied]) -> tuple[Copied, Any]:
        """What is being copied, and the event that says that it has been."""
        if self.stream is None:
            return copy(), None
        with torch.cuda.stream(self.stream):
            return copy(), self.stream.record_event()

    def _take(self, started: tuple[Copied, Any]) -> Copied:
        """Lets what is computed from now on wait for the copies, and keep their memory."""
        copied, event = started
        if event is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(event)
            # It was allocated on the side stream, which would use it again without waiting
            for tensor in _tensors(copied):
                if tensor.device.type == "cuda":
                    tensor.record_stream(computing)
        return copied


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def to_host(tensor: Tensor) -> list[float]:
    """The numbers of a tensor as a flat list; waits for the device."""
    Transfers.to_host += 1
    numbers: list[float] = tensor.detach().double().reshape(-1).tolist()
    return numbers


class View(NamedTuple):
    """A way to look at a test image: size in pixels, and the resized image's share that is kept."""

    size: int
    crop: float

    def __str__(self) -> str:
        return f"{self.size}px@{self.crop:g}"


class Measurement(NamedTuple):
    """How an image is evaluated: the view that is cut of it, and the test-time augmentation."""

    size: int
    crop: float
    tta: str

    @property
    def view(self) -> View:
        return View(self.size, self.crop)

    def __str__(self) -> str:
        return f"{self.view}" + (f" {self.tta}" if self.tta != "none" else "")


class EvalBatch(NamedTuple):
    """One evaluation batch: indices (n,), targets, and uint8 images on the device by view.

    With labels: targets (n,) and images (n, channels, height, width). With boxes or masks: lists of
    targets on the host and of whole images, each in its own size and the same for every view.
    """

    indices: Tensor
    targets: Any
    views: Mapping[View, Any]


def squares(draws: Tensor, size: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which images, rows and columns: `images[which, :, rows, columns]` is a square of each image.

    Of `size` x `size` pixels and wholly inside, its place by draws (n, 2) in [0, 1).
    """
    along = torch.arange(size, device=draws.device)
    top = (draws[:, 0] * (height - size + 1)).long()
    left = (draws[:, 1] * (width - size + 1)).long()
    which = torch.arange(len(draws), device=draws.device)[:, None, None]
    return which, (top[:, None] + along)[:, :, None], (left[:, None] + along)[:, None, :]
