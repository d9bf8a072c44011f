"""glibc's allocator, told by the environment of a process to keep what a training step frees.

Left to itself it gives a block back to the system when it is freed and asks for it again a moment
later, and each of its pages is then cleared and mapped anew, in every step.
"""

import ctypes
import os
import sys
from pathlib import Path

from rescue_cli.errors import UsageError

VARIABLE = "GLIBC_TUNABLES"  # read by the dynamic loader, before a program begins
SWITCH = "RESCUE_ALLOCATOR"
GIGABYTE = 2**30
SETTINGS = ":".join(
    (
        f"glibc.malloc.mmap_threshold={4 * GIGABYTE}",  # smaller blocks come from the heap,
        f"glibc.malloc.trim_threshold={8 * GIGABYTE}",  # whose free end stays,
        "glibc.malloc.hugetlb=1",  # and which asks for huge pages;
        "glibc.malloc.arena_max=1",  # one heap, the backward pass's thread has another else
    )
)
OLDEST = (2, 35)  # glibc with `hugetlb`; older ones refuse such thresholds and get slower
SAID = (
    "allocator: freed memory is kept, in huge pages "
    f"({VARIABLE}; {SWITCH}=off leaves it to the system)"
)
_MAIN = Path(__file__).parents[1] / "__main__.py"


def restart_with_settings(device: str | None) -> None:
    """Executes this command again, once, with `SETTINGS` in its environment.

    Only where they have an effect: on a CPU, with glibc, without the user's own settings. `device`
    is cpu or cuda as the user gives it, None for cuda if there is one. The process keeps its id,
    its files and its parent. Raises `UsageError` for an unknown value of `SWITCH`.
    """
    if not _switched_on() or VARIABLE in os.environ or not _has_glibc() or not _is_the_command():
        return
    if device not in (None, "cpu") or (device is None and _sees_cuda()):
        return
    os.environ[VARIABLE] = SETTINGS
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def in_force() -> bool:
    """Whether this process began with the settings."""
    return os.environ.get(VARIABLE) == SETTINGS


def available() -> bool:
    """Whether this system's allocator knows the settings."""
    return _has_glibc()


def _switched_on() -> bool:
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
    """Whether this process is `rescue` and nothing else, so that no test or script begins anew."""
    given = sys.argv[1:]
    named = Path(sys.argv[0]).name == "rescue" or Path(sys.argv[0]) == _MAIN
    return named and bool(given) and sys.orig_argv[-len(given) :] == given and bool(sys.executable)


def _sees_cuda() -> bool:
    """Asked of the driver, because torch is not imported yet."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    working = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return working and count.value > 0
