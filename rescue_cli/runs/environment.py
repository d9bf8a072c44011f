"""What a run runs on, as `environment.json` records it and its processes read it."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from rescue_cli import __version__
from rescue_cli.runs.group import current_group

PACKAGES = ("torch", "torchvision", "timm", "numpy", "simplejpeg", "pillow")


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

    cores = len(os.sched_getaffinity(0))
    if (group := current_group()) is not None:
        threads = group.threads
    else:
        threads = max(1, cores // (procs // nodes * share))
    processor = _processor_name()
    return {
        "verb": verb,
        "device": device,
        "procs": procs,
        "threads": threads,
        "workers": min(8, threads) if workers is None else workers,
        "cache": os.environ.get("RESCUE_CACHE", str(cache)),
        "seed": seed,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else processor,
        "processor": processor,
        "cores": cores,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "allocator": os.environ.get("GLIBC_TUNABLES"),
        "bfloat16_computed": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "rescue": __version__,
        "commit": _commit(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


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
