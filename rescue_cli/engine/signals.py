"""Stopping at the end of a step, together, and never waiting for the dead."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

import torch

from rescue_cli import distributed, lifetime

CHECK_SECONDS = 2.0  # several processes look at each other's flags at most this far apart
AGREE_SECONDS = 5.0  # and have this long to agree once one of them was signalled
WAIT_SECONDS = 10.0  # then, for images that do not come, from when they are waited for
SAVE_SECONDS = 20.0  # torchrun kills 30 s after it asked


class Stop:
    """Catches SIGINT and SIGTERM; the run ends at the next step's end with 130 or 143."""

    def __init__(self) -> None:
        self.exit_code = 0
        self.patience = AGREE_SECONDS + CHECK_SECONDS
        self._before: dict[int, object] = {}
        self._deadline: threading.Timer | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._caught)
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

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        lifetime.limit_waits(WAIT_SECONDS, 128 + number)
        if self.exit_code == 0 and distributed.world_size() > 1:
            self._leave_after(self.patience)
        self.exit_code = self.exit_code or 128 + number

    def agreed(self, exit_code: int) -> None:
        """All processes know; from here on there is time to save."""
        self.exit_code = exit_code
        if distributed.world_size() > 1:
            self._leave_after(SAVE_SECONDS)

    def _leave_after(self, seconds: float) -> None:
        """Where another process is dead, a collective would wait for ever: leave without saving."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = threading.Timer(seconds, os._exit, [self.exit_code or 143])
        self._deadline.daemon = True
        self._deadline.start()


class Agreement:
    """What all processes do next: stop, save by the clock, or go on.

    One process looks after every step. Several meet at steps that follow from the slowest one's
    pace, so that all of them meet at the same ones.
    """

    def __init__(self, stop: Stop, device: torch.device, save_seconds: float) -> None:
        self.stop = stop
        self.device = device
        self.save_seconds = save_seconds
        self.saved_at = time.monotonic()
        self.met_at = time.monotonic()
        self.met_step = self.next_step = 0

    def begin(self, step: int) -> None:
        """The first step of this process's life."""
        self.met_step, self.next_step = step, step + 1
        self.met_at = self.saved_at = time.monotonic()

    def reach(self, step: int) -> tuple[int, bool]:
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
        return self._heard(int(code)), bool(save)

    def within_evaluation(self) -> int:
        """The exit code that some process was signalled with, or 0."""
        (code,) = distributed.max_over_ranks([float(self.stop.exit_code)], self.device)
        return self._heard(int(code))

    def saved(self) -> None:
        self.saved_at = time.monotonic()

    def _heard(self, code: int) -> int:
        if code:
            self.stop.agreed(code)
        return code
