"""Stops a run at the end of a step, on all processes alike, without waiting for ended ones."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

import torch

from rescue_cli import distributed, lifetime

CHECK_SECONDS = 2.0  # several processes exchange their exit codes at most this far apart
AGREE_SECONDS = 5.0  # how long they have to agree once one of them was signalled
WAIT_SECONDS = 10.0  # how long a signalled process waits for images
SAVE_SECONDS = 20.0  # how long saving may take: torchrun kills 30 s after it sent SIGTERM


class Stop:
    """Catches SIGINT and SIGTERM: the run ends at the end of the step, with exit code 130 or 143.

    With several processes a timer ends this one if the others do not respond.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self.patience = AGREE_SECONDS + CHECK_SECONDS
        self._before: dict[int, object] = {}
        self._deadline: threading.Timer | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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
        if self._deadline is not None:
            self._deadline.cancel()
        lifetime.remove_wait_limit()

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        lifetime.limit_waits(WAIT_SECONDS, 128 + number)
        if self.exit_code == 0 and distributed.world_size() > 1:
            self._exit_after(self.patience)
        self.exit_code = self.exit_code or 128 + number

    def confirm(self, exit_code: int) -> None:
        """All processes know of the signal; from here on there is time to save."""
        self.exit_code = exit_code
        if distributed.world_size() > 1:
            self._exit_after(SAVE_SECONDS)

    def _exit_after(self, seconds: float) -> None:
        """Exits without saving after so long: if another process has ended, a collective would wait
        forever.
        """
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = threading.Timer(seconds, os._exit, [self.exit_code or 143])
        self._deadline.daemon = True
        self._deadline.start()


class Agreement:
    """Decides for all processes alike: stop, save by the clock, or continue.

    A single process checks after every step. Several exchange their state every few steps; how many
    follows from the slowest one's pace, so that all of them do it after the same step.
    """

    def __init__(self, stop: Stop, device: torch.device, save_seconds: float) -> None:
        self.stop = stop
        self.device = device
        self.save_seconds = save_seconds
        self.saved_at = time.monotonic()
        self.met_at = time.monotonic()
        self.met_step = self.next_step = 0

    def begin(self, step: int) -> None:
        """Starts at this step, the first of this process."""
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
