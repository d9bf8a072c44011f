"""What a run runs on, as `environment.json` records it and its processes read it."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rescue_cli import __version__
from rescue_cli.errors import UsageError
from rescue_cli.runs.console import note
from rescue_cli.runs.group import current_group

PACKAGES = ("torch", "torchvision", "timm", "numpy", "simplejpeg", "pillow")


def select_device(asked: str | None, *, elsewhere: bool = False) -> str:
    """`cpu` or `cuda`, by default what this machine has.

    Raises `UsageError` where this machine lacks it, and nothing is to run `elsewhere`.
    """
    import torch

    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked in ("rocm", "hip"):
        raise UsageError(f"--device: '{asked}': torch calls AMD's GPUs cuda too. Use cuda.")
    if asked == "mps":
        raise UsageError("--device: mps has no float64, in which losses are summed. Use cpu.")
    if asked not in ("cpu", "cuda"):
        raise UsageError(f"--device: '{asked}' is not known. Use cpu or cuda.")
    if asked == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise UsageError("--device: cuda is not available on this machine. Use --device cpu.")
    return asked


def visible_devices(device: str) -> int:
    """The GPUs of this machine, or one CPU."""
    import torch

    return torch.cuda.device_count() if device == "cuda" else 1


def select_gpu(
    position: int, environment: Mapping[str, str], *, rocm: bool | None = None
) -> dict[str, str]:
    """The environment variable with which a process sees one GPU alone: the one at this position
    among those that `environment` makes visible, by the name (number, UUID, MIG) that it has there.

    Args:
        rocm: By default as torch was built.
    """
    import torch

    if rocm is None:
        rocm = torch.version.hip is not None
    # ROCm reads the second where the first is missing. Both count within ROCR_VISIBLE_DEVICES,
    # which stays as it is.
    variables = (
        ["HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"] if rocm else ["CUDA_VISIBLE_DEVICES"]
    )
    for name in variables:
        if names := environment.get(name):
            return {name: names.split(",")[position].strip()}
    return {variables[0]: str(position)}


def check_precision(precision: str, device: str) -> list[str]:
    """A warning where the device only emulates the precision.

    Raises `UsageError` where the device does not have it.
    """
    import torch

    from rescue_cli.build.backends import computes_bfloat16

    if device == "cuda":
        if precision != "bfloat16" or torch.cuda.is_bf16_supported(including_emulation=False):
            return []
        return ["this GPU only emulates bfloat16. Use train.precision=float16."]
    if precision == "float16":
        cure = "bfloat16" if computes_bfloat16() else "float32"
        raise UsageError(
            "train.precision: float16 needs CUDA, and this run is on a CPU. "
            f"Use train.precision={cure}."
        )
    if precision == "bfloat16" and not computes_bfloat16():
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


def describe_environment(
    *,
    verb: str,
    seed: int,
    device: str,
    procs: int,
    workers: int | None,
    cache: Path,
    share: int = 1,
    nodes: int = 1,
) -> dict[str, Any]:
    """Versions, commit, processor, device, threads and seed of a run.

    `procs` processes share a step, evenly on `nodes` machines. `share` runs are at work on this
    machine at a time, each on its part of the cores.
    """
    import torch

    from rescue_cli.build.backends import computes_bfloat16

    cores = len(os.sched_getaffinity(0))
    if (group := current_group()) is not None:
        own_cores, launcher = group.threads, group.launch.launcher
    else:
        own_cores, launcher = max(1, cores // (procs // nodes * share)), None
    processor = _processor_name()
    return {
        "verb": verb,
        "device": device,
        "procs": procs,
        "threads": _asked_threads(launcher) or own_cores,
        "workers": default_workers(own_cores, device) if workers is None else workers,
        "cache": os.environ.get("RESCUE_CACHE", str(cache)),
        "seed": seed,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else processor,
        "processor": processor,
        "cores": cores,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "allocator": os.environ.get("GLIBC_TUNABLES"),
        "bfloat16_computed": computes_bfloat16(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "rescue": __version__,
        "commit": _commit(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _asked_threads(launcher: str | None) -> int | None:
    """The threads of a process that OMP_NUM_THREADS asks for; raises `UsageError`."""
    given = os.environ.get("OMP_NUM_THREADS")
    if not given or launcher == "torchrun":  # which sets it to 1 where the user does not set it
        return None
    first = given.partition(",")[0].strip()  # those of nested regions follow
    if not first.isdecimal() or int(first) < 1:
        raise UsageError(
            f"OMP_NUM_THREADS: '{given}' must be an integer of at least 1. Correct it or unset it."
        )
    return int(first)


def default_workers(cores: int, device: str) -> int:
    """Loader workers of a process with so many cores: for a GPU one for each but its own.

    At most 32, which decode for the fastest GPU. On a CPU they share the cores with the training:
    at most 8.
    """
    return max(1, min(32, cores - 1)) if device == "cuda" else min(8, cores)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the checkout that this code lies in, with `+` where files were changed."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        call = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
