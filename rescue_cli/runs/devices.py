"""The device of a run: which one, whether it has the precision, how much memory is free."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from rescue_cli.errors import UsageError
from rescue_cli.runs.console import note


def select_device(asked: str | None) -> str:
    """`cpu` or `cuda`; raises `UsageError` where it does not exist on this machine."""
    import torch

    device = planned_device(asked)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: cuda is not available on this machine. Use --device cpu.")
    return device


def planned_device(asked: str | None) -> str:
    """The device that is asked for, even if it does not exist here; by default what this machine
    has.
    """
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked not in ("cpu", "cuda"):
        raise UsageError(f"--device: '{asked}' is not known. Use cpu or cuda.")
    return asked


def visible_devices(device: str) -> int:
    """The GPUs of this machine, or one CPU."""
    import torch

    return torch.cuda.device_count() if device == "cuda" else 1


def check_precision(precision: str, device: str) -> list[str]:
    """A warning where the device only emulates the precision.

    Raises `UsageError` where the device does not have it.
    """
    import torch

    has_bfloat16 = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if device == "cuda":
        return []
    if precision == "float16":
        cure = "bfloat16" if has_bfloat16 else "float32"
        raise UsageError(
            "train.precision: float16 needs CUDA, and this run is on a CPU. "
            f"Use train.precision={cure}."
        )
    if precision == "bfloat16" and not has_bfloat16:
        return [
            "this processor only emulates bfloat16; a matrix product takes hundreds of "
            "times longer than in float32. Use train.precision=float32."
        ]
    return []


def note_precision(precisions: Iterable[str], device: str) -> None:
    """Notes the warnings of `check_precision`, each once."""
    for precision in dict.fromkeys(precisions):
        for warning in check_precision(precision, device):
            note(f"warning: {warning}")


def free_memory_mb(device: str) -> float:
    """Memory that is free now, in 2^20 bytes: of the GPU, or of this machine."""
    import torch

    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0]) / 2**20
    with contextlib.suppress(OSError, StopIteration):  # MemAvailable counts the page cache as free
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("MemAvailable:")).split()[1]) / 2**10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
