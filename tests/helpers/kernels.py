"""Counts what a device would be asked to do."""

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_KERNEL = {"_unsafe_view", "detach", "empty", "empty_like", "empty_strided", "new_empty"}


def touched_bytes(tensor: torch.Tensor) -> int:
    """The bytes in memory behind a tensor, which repeats them where it is expanded."""
    sizes = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride or not n]
    return math.prod(sizes) * tensor.element_size()


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations that are dispatched and compute or copy something, and the bytes of the
    tensors that they are given and give, which is what they read and write.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0
        self.bytes: int = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not function.is_view and function.overloadpacket.__name__ not in NO_KERNEL:
            self.count += 1
            for value in tree_leaves((args, kwargs, result)):
                if isinstance(value, torch.Tensor):
                    self.bytes += touched_bytes(value)
        return result
