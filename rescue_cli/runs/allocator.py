"""Settings that make glibc's allocator keep the memory that a training step frees.

By default it returns large blocks to the system when they are freed and requests them again a
moment later, so that in every step the kernel clears and maps all of their pages again.
"""

import ctypes
import os
import sys
from pathlib import Path

from rescue_cli.errors import UsageError

VARIABLE = "GLIBC_TUNABLES"  # read by the dynamic loader before a program starts
SWITCH = "RESCUE_ALLOCATOR"
GIGABYTE = 2**30
SETTINGS = ":".join(
    (
        f"glibc.malloc.mmap_threshold={4 * GIGABYTE}",  # smaller blocks come from the heap
        f"glibc.malloc.trim_threshold={8 * GIGABYTE}",  # whose free end is kept
        "glibc.malloc.hugetlb=1",  # and which uses huge pages
        "glibc.malloc.arena_max=1",  # one heap; by default autograd's thread has its own
    )
)
OLDEST = (2, 35)  # glibc with `hugetlb`; older ones reject such thresholds and get slower
LOG_LINE = (
    f"allocator: keeps freed memory, in huge pages ({VARIABLE}; {SWITCH}=off uses the defaults)"
)
_MAIN = Path(__file__).parents[1] / "__main__.py"


def restart_with_settings(device: str | None) -> None:
    """Executes this command again, once, with `SETTINGS` in its environment.

    Only where they have an effect: on a CPU, with glibc, without the user's own settings. `device`
    is cpu or cuda as the user gives it, None for cuda if there is one. The process keeps its id,
    its files and its parent. Raises `UsageError` for an unknown value of `SWITCH`.
    """
    if not _is_enabled() or VARIABLE in os.environ or not _has_glibc() or not _is_the_command():
        return
    if device not in (None, "cpu") or (device is None and _sees_cuda()):
        return
    os.environ[VARIABLE] = SETTINGS
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def in_force() -> bool:
    """Whether this process was started with the settings."""
    return os.environ.get(VARIABLE) == SETTINGS


def available() -> bool:
    """Whether this system's allocator has the settings."""
    return _has_glibc()


def _is_enabled() -> bool:
    value = os.environ.get(SWITCH, "on")
    if value not in ("on", "off"):
        raise UsageError(f"{SWITCH}: '{value}' is not known. Use on or off.")
    return value == "on"


def _has_glibc() -> bool:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):  # musl, macOS
        return False
    return name == "glibc" and tuple(map(int, version.split(".")[:2])) >= OLDEST


def _is_the_command() -> bool:
    """Whether this process is the command `rescue`; a test or a script is never restarted."""
    arguments = sys.argv[1:]
    named = Path(sys.argv[0]).name == "rescue" or Path(sys.argv[0]) == _MAIN
    same = bool(arguments) and sys.orig_argv[-len(arguments) :] == arguments
    return named and same and bool(sys.executable)


def _sees_cuda() -> bool:
    """Whether CUDA's driver finds a GPU; torch is not imported yet."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    working = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return working and count.value > 0
