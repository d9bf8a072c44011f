"""Memory that loader processes write pixels into and the process that trains reads them from."""

import mmap

import numpy as np

from rescue_cli.data.splits import Pixels


class Slots:
    """`count` slots of `views` images each, (height, width, 3) uint8, shared by forked processes.

    Anonymous pages: no copy through a queue, no file descriptor, no limit of /dev/shm. They are
    touched again and again, where a fresh tensor from a worker costs a page fault every 4 KiB in
    both processes. What is never written takes no memory.
    """

    def __init__(self, count: int, views: int, size: int) -> None:
        shape = (count, views, size, size, 3)
        self._memory = mmap.mmap(-1, int(np.prod(shape)))
        self.pixels: Pixels = np.frombuffer(self._memory, dtype=np.uint8).reshape(shape)

    def __len__(self) -> int:
        return len(self.pixels)
