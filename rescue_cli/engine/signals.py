"""Stops a run at the end of a step, on all processes alike, without waiting for ended ones."""

import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Self

import torch

from rescue_cli import distributed, lifetime
from rescue_cli.rundir import FailureRecord, RunDirectory, write_failure

CHECK_SECONDS = 2.0  # several processes exchange their exit codes at most this far apart
AGREE_SECONDS = 5.0  # how long they have to agree once one of them was signalled
WAIT_SECONDS = 10.0  # how long a signalled process waits for images
SAVE_SECONDS = 20.0  # how long saving may take: torchrun kills 30 s after it sent SIGTERM


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Catches SIGINT and SIGTERM: the run ends at the end of the step, with exit code 130 or 143.

    With several processes a timer ends this one if the others do not respond, and records why in
    the run's `directory`.
    """

    def __init__(self, directory: RunDirectory) -> None:
        self.exit_code = 0
        self.patience = AGREE_SECONDS + CHECK_SECONDS
        self._directory = directory
        self._before: dict[int, object] = {}
        self._deadline: threading.Timer | None = None
        self._lock = threading.Lock()  # of the deadline
        self._over = False
        self._wakeup: tuple[socket.socket, int] | None = None  # and the earlier descriptor

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            if distributed.world_size() > 1:
                self._listen()
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._wakeup is not None:
            writer, earlier = self._wakeup
            signal.set_wakeup_fd(earlier)
            writer.shutdown(socket.SHUT_WR)  # ends the thread, even if a forked process has a copy
            writer.close()
        with self._lock:
            self._over = True
            if self._deadline is not None:
                self._deadline.cancel()
        lifetime.remove_wait_limit()

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        lifetime.limit_waits(WAIT_SECONDS, 128 + number)
        self.exit_code = self.exit_code or 128 + number

    def _listen(self) -> None:
        """Starts the deadline at a signal, on a thread of its own.

        Python calls `_catch` only between two of the main thread's instructions, never while that
        waits in a collective. The number of a signal is written to the wakeup descriptor at once.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._wakeup = writer, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._await_signals, args=[reader], daemon=True).start()

    def _await_signals(self, reader: socket.socket) -> None:
        with reader:
            while numbers := reader.recv(1):
                if numbers[0] in SIGNALS:
                    self._exit_after(self.patience, 128 + numbers[0], "could agree to save")

    def confirm(self, exit_code: int) -> None:
        """All processes know of the signal; from here on there is time to save."""
        self.exit_code = exit_code
        if distributed.world_size() > 1:
            self._exit_after(SAVE_SECONDS, exit_code, "had saved", replaces=True)

    def _exit_after(
        self, seconds: float, exit_code: int, aim: str, *, replaces: bool = False
    ) -> None:
        """Exits without saving after so long: if another process has ended, a collective would wait
        forever. `replaces` an earlier deadline, or leaves it.
        """
        with self._lock:
            if self._over or (self._deadline is not None and not replaces):
                return
            if self._deadline is not None:
                self._deadline.cancel()
            message = f"stopped before the processes {aim}, after waiting for {seconds:.0f} s."
            self._deadline = threading.Timer(seconds, self._give_up, [exit_code, message])
            self._deadline.daemon = True
            self._deadline.start()

    def _give_up(self, exit_code: int, message: str) -> None:
        kept = self._directory.last.exists()
        message += " The last checkpoint is kept." if kept else " There was no checkpoint yet."
        rank = distributed.launched_rank()
        write_failure(self._directory, FailureRecord(rank, exit_code, message))
        if distributed.is_command():  # else the process that started this one reports the record
            os.write(2, f"error: {message}\n".encode())
        os._exit(exit_code)


class Agreement:
    """Decides for all processes alike: stop, save by the clock, or continue.

    A single process checks after every step. Several exchange their state every few steps; how many
    follows from the slowest one's pace, so that all of them do it after the same step.

    Args:
        step: The first of this process.
    """

    def __init__(self, stop: Stop, device: torch.device, save_seconds: float, step: int) -> None:
        self.stop = stop
        self.device = device
        self.save_seconds = save_seconds
        self.met_step, self.next_step = step, step + 1
        self.met_at = self.saved_at = time.monotonic()

    def decide(self, step: int) -> tuple[int, bool]:
        """(exit code or 0, whether to save) at the end of a step."""
        if distributed.world_size() > 1 and step < self.next_step:
            return 0, False
        now = time.monotonic()
        pace = (now - self.met_at) / max(1, step - self.met_step)
        due = distributed.is_first() and now - self.saved_at > self.save_seconds
        code, save, slowest = distributed.max_over_ranks(
            [float(self.stop.exit_code), float(due), pace], self.device
        )
        self.stop.patience = min(SAVE_SECONDS, AGREE_SECONDS + CHECK_SECONDS + 2 * slowest)
        steps = max(1, int(CHECK_SECONDS / max(slowest, 1e-6)))
        self.met_at, self.met_step, self.next_step = now, step, step + min(steps, 1000)
        return self._confirm(int(code)), bool(save)

    def poll_signal(self) -> int:
        """The exit code of a signal to any of the processes, or 0; for use within an evaluation."""
        (code,) = distributed.max_over_ranks([float(self.stop.exit_code)], self.device)
        return self._confirm(int(code))

    def restart_save_clock(self) -> None:
        """Restarts the clock by which the next checkpoint is due."""
        self.saved_at = time.monotonic()

    def _confirm(self, code: int) -> int:
        if code:
            self.stop.confirm(code)
        return code
