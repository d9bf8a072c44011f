"""Processes of a run end with the process that started them, and do not wait for ever."""

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

PARENT = "RESCUE_PARENT"  # pid of the starting process, in the environment of those it starts
POLL_SECONDS = 0.5
_SET_PDEATHSIG = 1  # linux/prctl.h


def parent_variable() -> dict[str, str]:
    """The environment variable that names this process as parent: see `end_with_parent`."""
    return {PARENT: str(os.getpid())}


@contextmanager
def export_parent() -> Iterator[None]:
    """Sets `parent_variable` in this process's own environment, for children that inherit it."""
    before = os.environ.get(PARENT)
    os.environ.update(parent_variable())
    try:
        yield
    finally:
        del os.environ[PARENT]
        if before is not None:
            os.environ[PARENT] = before


def end_with_parent() -> None:
    """Makes this process end when its parent does: the one that `PARENT` names, else torchrun.

    Called before anything else is imported. Does nothing where there is neither.
    """
    if named := os.environ.pop(PARENT, ""):
        end_with(int(named))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(_torchrun_pid())


def end_with(parent: int, *, by_kernel: bool = True) -> None:
    """Makes this process end when its parent, pid `parent`, ends; at once if it has ended already.

    The kernel does it where it can, but at the end of the *thread* that forked: pass `by_kernel`
    only if that thread lives as long as its process. Otherwise this process polls twice a second.
    """
    watched = by_kernel and _set_parent_death_signal()
    if os.getppid() != parent:  # it ended before the call above; another process adopted this one
        os._exit(1)
    if not watched:
        threading.Thread(target=_poll_parent, args=[parent], daemon=True).start()


def _set_parent_death_signal() -> bool:
    """Asks Linux to kill this process with its parent; whether it will."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "prctl") and library.prctl(_SET_PDEATHSIG, signal.SIGKILL) == 0


def _poll_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


def _torchrun_pid() -> int:
    """The pid of torchrun; 0 where it has ended already and init has adopted this process."""
    parent = os.getppid()
    try:
        words = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return parent
    return parent if parent != 1 or b"python" in words or b"torchrun" in words else 0


# --- waits, once a signal has asked this process to stop ---

_limit: list[tuple[float, int]] = []  # seconds that one wait may take, and the exit code
_wait_end: list[float] = []  # when the current wait has taken too long (time.monotonic)


def limit_waits(seconds: float, exit_code: int) -> None:
    """From now on a wait longer than `seconds` raises `StoppedError` with this exit code."""
    if not _limit:
        _limit.append((seconds, exit_code))


def remove_wait_limit() -> None:
    _limit.clear()
    _wait_end.clear()


def end_wait() -> None:
    """Ends a wait; the next one has its full time again."""
    _wait_end.clear()


def check_wait(what: str) -> None:
    """Raises `StoppedError` if a signal has asked to stop and this wait has taken too long.

    A wait is timed from its first call, so that a long step before it does not count.
    """
    if not _limit:
        return
    seconds, exit_code = _limit[0]
    if not _wait_end:
        _wait_end.append(time.monotonic() + seconds)
    elif time.monotonic() > _wait_end[0]:
        raise StoppedError(
            f"stopped while waiting for {what} that did not come. The last checkpoint is kept.",
            exit_code,
        )
