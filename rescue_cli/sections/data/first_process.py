"""Work that several processes need, done by one of them."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock_first(file: Path) -> Iterator[bool]:
    """Whether this process is the first to lock the file; the others wait until it has done its
    work, or has ended. True without a lock where the file system has none.
    """
    with contextlib.ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            opened = stack.enter_context(file.open("a"))
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stack.callback(remove, file)
            first = True
        except BlockingIOError:
            fcntl.flock(opened, fcntl.LOCK_SH)
            first = False
        except OSError:
            first = True
        yield first


def remove(file: Path) -> None:
    """Removes a file if it is there and may be removed."""
    with contextlib.suppress(OSError):
        file.unlink()
