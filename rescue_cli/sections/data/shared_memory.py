"""Memory that loader processes write into and the process that trains reads from.

Anonymous pages that forked processes share: they need no file descriptor and no room in /dev/shm,
where torch would put each tensor (64 MB in a Docker container). The same pages are used again and
again, as fresh ones cost a page fault every 4 KiB in both processes. What is never written takes no
memory.
"""

import io
import mmap
import pickle
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rescue_cli.sections.data.splits import Pixels

ROOM = 2**23  # bytes of an item that go through shared memory; the rest goes through the pipe


class Slots:
    """`count` slots of `views` images each, (height, width, 3) uint8."""

    def __init__(self, count: int, views: int, size: int) -> None:
        shape = (count, views, size, size, 3)
        self._memory = mmap.mmap(-1, int(np.prod(shape)))
        self.pixels: Pixels = np.frombuffer(self._memory, dtype=np.uint8).reshape(shape)

    def __len__(self) -> int:
        return len(self.pixels)


class Packed(NamedTuple):
    """An item as it goes through a loader's pipe; its arrays lie in a slot, one after another."""

    slot: int
    content: bytes
    ends: list[int]


class Parcels:
    """`count` slots through which items of any kind are handed over, tensors and arrays by value.

    A slot is free again when its item is unpacked.
    """

    def __init__(self, count: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, count * ROOM))

    def pack(self, slot: int, item: Any) -> Packed:
        room = self._memory[slot * ROOM : (slot + 1) * ROOM]
        ends = [0]

        def keep_in_content(buffer: pickle.PickleBuffer) -> bool:
            """False where the buffer is put into the slot; True where there is no room."""
            with buffer.raw() as raw:
                end = ends[-1] + raw.nbytes
                if end > ROOM:
                    return True
                room[ends[-1] : end] = raw
            ends.append(end)
            return False

        content = io.BytesIO()
        _ByValue(content, protocol=5, buffer_callback=keep_in_content).dump(item)
        return Packed(slot, content.getvalue(), ends)

    def unpack(self, packed: Packed) -> Any:
        room = self._memory[packed.slot * ROOM : (packed.slot + 1) * ROOM]
        spans = zip(packed.ends, packed.ends[1:], strict=False)
        return pickle.loads(packed.content, buffers=[bytearray(room[a:b]) for a, b in spans])


class _ByValue(pickle.Pickler):
    """Pickles tensors as numpy arrays that keep their memory layout."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        order = np.argsort([-stride for stride in value.stride()], kind="stable").tolist()
        return _tensor, (value.permute(order).contiguous().numpy(), np.argsort(order).tolist())


def _tensor(array: Any, order: list[int]) -> Tensor:
    return torch.from_numpy(array).permute(order)
