"""Starts loader workers, takes what they have loaded, and ends them."""

import errno
import multiprocessing
import multiprocessing.context
import multiprocessing.popen_fork
import multiprocessing.queues
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from rescue_cli import lifetime
from rescue_cli.errors import RescueError
from rescue_cli.sections.data.shared_memory import Packed, Parcels

CHUNK = 16  # distinct images that one worker decodes at a time
ANNOTATED_CHUNK = 4  # where they keep their size, so that most chunks fit into `shared_memory.ROOM`
AHEAD = 4  # chunks that each worker loads in advance, at least
POLL_SECONDS = 1.0  # how often a waiting process checks for signals and for ended workers
SEND_FAILED = 70  # exit code of a worker that could not send an item (EX_SOFTWARE, sysexits.h)
NO_ROOM = {errno.ENOSPC, errno.ENOENT, errno.ENOSYS, errno.EACCES, errno.EROFS}


def start_workers(
    dataset: Dataset[Any], order: Iterator[Any], workers: int, *, ahead: int = AHEAD
) -> Iterator[Any]:
    """`dataset[item]` for each item of `order`, in order, loaded by the workers in advance: up to
    `ahead` items per worker.

    Raises `RescueError` where the system does not let them start.
    """
    if not workers:
        return iter(DataLoader(dataset, batch_size=None, sampler=order, collate_fn=_as_is))
    # At most so many items are under way, and one more is being unpacked here
    count = ahead * workers + 1
    parcels = Parcels(count)
    loader: DataLoader[Any] = DataLoader(
        _Packing(dataset, parcels),
        batch_size=None,
        sampler=((n % count, item) for n, item in enumerate(order)),
        collate_fn=_as_is,
        num_workers=workers,
        multiprocessing_context=_Context(),
        prefetch_factor=ahead,
        timeout=POLL_SECONDS,
        worker_init_fn=_quiet_worker,
    )
    loader.check_worker_number_rationality()
    try:
        return _Workers(loader, parcels)
    except OSError as error:
        raise _start_error(error, workers) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            # torch's handler raises wherever this process happens to be, within a step or while it
            # saves; without it the end of a worker is reported where its images are waited for
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _start_error(error: OSError, workers: int) -> RescueError:
    """Why the workers could not be started, and what to do about it."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in NO_ROOM:
        return RescueError(
            f"/dev/shm: no room for the semaphores of {workers} loader workers ({reason}). "
            "Give it some MB (docker run --shm-size=64m), or use --workers 0."
        )
    return RescueError(
        f"--workers: {workers} loader workers could not be started ({reason}). Use fewer."
    )


def _as_is(value: Any) -> Any:
    return value


def _quiet_worker(_: int) -> None:
    """Ignores signals: the process that trains decides when to stop, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Packing(Dataset[Packed]):
    """A data set whose items cross from worker to trainer without torch's shared memory."""

    def __init__(self, dataset: Dataset[Any], parcels: Parcels) -> None:
        self.dataset = dataset
        self.parcels = parcels

    def __getitem__(self, request: Any) -> Packed:
        slot, item = request
        return self.parcels.pack(slot, self.dataset[item])


class _Workers(_MultiProcessingDataLoaderIter):
    """torch's loader, except that it reacts to signals while it waits and always ends."""

    def __init__(self, loader: DataLoader[Any], parcels: Parcels) -> None:
        self.parcels = parcels
        try:
            super().__init__(loader)
        except BaseException:
            self._shutdown = True  # torch's __del__ would look for attributes that are not set yet
            self._kill()
            raise

    def __next__(self) -> Any:
        while True:
            self._check_alive()
            try:
                item = self.parcels.unpack(super().__next__())
                lifetime.end_wait()
                return item
            except RuntimeError as error:
                if "DataLoader timed out" not in str(error):
                    raise
            lifetime.check_wait("images")

    def close(self) -> None:
        if not all(worker.is_alive() for worker in self._workers):
            # The one that ended may have held a lock for which the others, and torch, would wait
            self._kill()
            self._workers_done_event = threading.Event()  # type: ignore[assignment]
        self._shutdown_workers()

    def failed_to_send(self) -> bool:
        """Whether a worker could not send an item."""
        return any(worker.exitcode == SEND_FAILED for worker in self._workers)

    def _check_alive(self) -> None:
        """Raises where a worker has ended, or an item could not be sent to one.

        torch checks only once everything is taken that was loaded before, which may be steps later.
        """
        dead = [worker for worker in self._workers if not worker.is_alive()]
        if dead and not self._shutdown:
            codes = ", ".join(f"{worker.pid} with {worker.exitcode}" for worker in dead)
            raise RuntimeError(f"DataLoader worker ended: {codes}")
        queues: list[Any] = self._index_queues
        for queue in queues:
            if queue.unsent is not None:
                reason = (str(queue.unsent) or type(queue.unsent).__name__).splitlines()[0]
                raise RescueError(
                    f"a request could not be sent to a loader worker ({reason}). If memory "
                    "ran out, use fewer workers (--workers), then --resume."
                )

    def _kill(self) -> None:
        workers = getattr(self, "_workers", [])
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(POLL_SECONDS)


def end_workers(loaded: Iterator[Any]) -> None:
    """Asks a loader's workers to end, and kills those that do not within seconds."""
    if isinstance(loaded, _Workers):
        loaded.close()


def next_of(loaded: Iterator[Any]) -> Any:
    """The next item; raises `RescueError` where a worker has ended."""
    try:
        return next(loaded)
    except (RuntimeError, EOFError, ConnectionError) as error:  # the last two during a transfer
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        if isinstance(loaded, _Workers) and loaded.failed_to_send():
            raise RescueError(
                "a loader worker could not send what it had loaded; its own error is above. "
                "If memory or /dev/shm is full, use fewer workers (--workers), then --resume."
            ) from None
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RescueError(
            f"a loader worker was killed ({reason}). If memory ran out, "
            "use fewer workers (--workers), then --resume."
        ) from None


# --- the multiprocessing context that torch's loader uses ---


class _Popen(multiprocessing.popen_fork.Popen):
    """Kills where torch and Python send SIGTERM, which our workers ignore, and wait forever."""

    def terminate(self) -> None:
        self.kill()


class _Process(multiprocessing.context.ForkProcess):
    """Ends with the process that started it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._starter = os.getpid()
        self._by_kernel = threading.current_thread() is threading.main_thread()

    def run(self) -> None:
        lifetime.end_with(self._starter, by_kernel=self._by_kernel)
        super().run()

    @staticmethod
    def _Popen(process: Any) -> _Popen:
        return _Popen(process)


class _Queue(multiprocessing.queues.Queue):  # type: ignore[type-arg]
    """Reports an item that cannot be sent; Python only prints the error, and it is waited for."""

    unsent: BaseException | None = None  # why the process that trains could not send an item

    def _on_queue_feeder_error(self, error: BaseException, _: object) -> None:
        if not isinstance(multiprocessing.current_process(), _Process):
            self.unsent = error
            return
        traceback.print_exception(error)
        os._exit(SEND_FAILED)


class _Context(multiprocessing.context.ForkContext):
    """Forks, so that the pages of the file names are shared."""

    Process = _Process

    def Queue(self, maxsize: int = 0) -> _Queue:
        return _Queue(maxsize, ctx=self)
