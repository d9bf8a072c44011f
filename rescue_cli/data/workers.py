"""Loader processes: started, asked, ended."""

import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from rescue_cli.errors import RescueError

CHUNK = 16  # distinct images that one worker decodes at a time
AHEAD = 4  # chunks that each worker may be ahead, at least


def start_workers(
    dataset: Dataset[Any],
    order: Iterator[Any],
    workers: int,
    *,
    ahead: int = AHEAD,
    pinned: bool = False,
) -> Iterator[Any]:
    """What `dataset` makes of each item of `order`, in order; `ahead` items a worker in advance."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=None,
        sampler=order,
        collate_fn=_as_is,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # shares the file names' pages
        prefetch_factor=ahead if workers else None,
        pin_memory=pinned,
        worker_init_fn=_quiet_worker,
    )
    decoded = iter(loader)
    if workers and threading.current_thread() is threading.main_thread():
        # torch's handler raises wherever this process happens to be, in mid-step or while it
        # saves; without it a worker's death is raised where its images are waited for
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return decoded


def _as_is(value: Any) -> Any:
    return value


def _quiet_worker(_: int) -> None:
    """The process that trains decides when to stop; its workers end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_workers(decoded: Iterator[Any]) -> None:
    """Tells a loader's workers to end. Left to the interpreter's exit they would be sent SIGTERM,
    which they ignore, and be waited for without end."""
    shutdown = getattr(decoded, "_shutdown_workers", None)  # torch has no public name for it
    if shutdown is not None:
        shutdown()


def next_of(decoded: Iterator[Any]) -> Any:
    try:
        return next(decoded)
    except (RuntimeError, EOFError, ConnectionError) as error:  # the last two in mid-transfer
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RescueError(
            f"a loader worker was killed ({reason}). Where memory ran out, "
            "use fewer with --workers, then --resume."
        ) from None
