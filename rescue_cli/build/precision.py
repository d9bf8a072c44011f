"""The numbers that `train.precision` stands for."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

Autocast = Callable[[], AbstractContextManager[None]]
MIXED = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def dtype_of(precision: str) -> torch.dtype:
    """Of weights and images, which mixed precision keeps in float32."""
    return torch.float64 if precision == "float64" else torch.float32


def autocast(precision: str, device: torch.device) -> Autocast:
    """Mixed precision in float16 and bfloat16; in float32 and float64 nothing is cast."""
    dtype = MIXED.get(precision)
    return lambda: torch.autocast(
        device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
    )
