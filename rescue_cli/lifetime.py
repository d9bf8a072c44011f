"""How long a process of a run lives: no longer than the one that started it."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rescue_cli.errors import StoppedError

PARENT = "RESCUE_PARENT"  # the number of the process that starts others, in their environment
LOOK_SECONDS = 0.5
_SET_PDEATHSIG = 1  # linux/prctl.h


def started_here() -> dict[str, str]:
    """What the environment of a process started by this one has besides: see `end_with_parent`."""
    return {PARENT: str(os.getpid())}


@contextmanager
def starting() -> Iterator[None]:
    """Puts `started_here` in this process's own environment, where others copy it from there."""
    before = os.environ.get(PARENT)
    os.environ.update(started_here())
    try:
        yield
    finally:
        del os.environ[PARENT]
        if before is not None:
            os.environ[PARENT] = before


def end_with_parent() -> None:
    """Ends this process with the one that started it: the one that `PARENT` names, else torchrun.

    Called before anything else is imported. Without either nothing is done.
    """
    if named := os.environ.pop(PARENT, ""):
        end_with(int(named))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(_agent())


def end_with(parent: int, *, by_kernel: bool = True) -> None:
    """Ends this process when `parent`, which started it, ends; at once where it has already.

    By the kernel where it does that, which means the end of the thread that forked: `by_kernel` is
    for one that lasts as long as its process. Else this process looks, twice a second.
    """
    told = by_kernel and _kernel_ends_with_parent()
    if os.getppid() != parent:  # it ended before the kernel was told: another has adopted this one
        os._exit(1)
    if not told:
        threading.Thread(target=_look_for, args=[parent], daemon=True).start()


def _kernel_ends_with_parent() -> bool:
    """Whether Linux has taken it over."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "prctl") and library.prctl(_SET_PDEATHSIG, signal.SIGKILL) == 0


def _look_for(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os._exit(1)


def _agent() -> int:
    """The number of torchrun's process; 0 where it has ended already, and process 1 is none."""
    parent = os.getppid()
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return parent
    return parent if parent != 1 or b"python" in words or b"torchrun" in words else 0


# --- waiting, after a signal has asked to stop ---

_asked: list[tuple[float, int]] = []  # how long a wait may take since, and the exit code
_ends: list[float] = []  # when the wait under way is over (time.monotonic)


def wait_no_longer_than(seconds: float, exit_code: int) -> None:
    """From now on; what then waits longer raises `StoppedError` with this exit code."""
    if not _asked:
        _asked.append((seconds, exit_code))


def wait_as_long_as_it_takes() -> None:
    _asked.clear()
    _ends.clear()


def came() -> None:
    """What was waited for; the next wait has all its time again."""
    _ends.clear()


def may_wait(what: str) -> None:
    """Raises `StoppedError` where a signal has asked to stop, and this wait has taken too long.

    Its time begins with the first call, so that a long step takes nothing of it.
    """
    if not _asked:
        return
    seconds, exit_code = _asked[0]
    if not _ends:
        _ends.append(time.monotonic() + seconds)
    elif time.monotonic() > _ends[0]:
        said = f"stopped while waiting for {what} that did not come. What was saved before stands."
        raise StoppedError(said, exit_code)
