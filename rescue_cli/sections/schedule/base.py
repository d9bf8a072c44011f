"""The type of a schedule: learning rate and momentum as a pure function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """`lr` of the reference group (others keep their ratio to it); `momentum`, None: unchanged."""

    lr: float
    momentum: float | None = None


@dataclass(frozen=True)
class ScheduleContext:
    """What a schedule depends on: the reference group's `lr` and the run's length."""

    lr: float
    steps_per_epoch: int
    epochs: float

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return math.ceil(round(self.epochs * self.steps_per_epoch, 6))


Schedule = Callable[[int], Rates]
FROZEN = Rates(0.0, 0.0)  # momentum 0 too: sgd-velocity's velocity would go on moving weights


def freeze_after(schedule: Schedule, until: float, steps_per_epoch: int) -> Schedule:
    """The schedule before epoch `until`, and `FROZEN` from then on."""
    end = math.ceil(round(until * steps_per_epoch, 6))
    return lambda step: schedule(step) if step < end else FROZEN
