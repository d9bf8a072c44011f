"""What a schedule is: learning rate and momentum as a pure function of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """`lr` of the reference group; other groups keep their ratio. `momentum` None: as it is."""

    lr: float
    momentum: float | None = None


@dataclass(frozen=True)
class Span:
    """What a schedule runs over: the reference group's `lr`, steps an epoch, epochs in all."""

    lr: float
    steps_per_epoch: int
    epochs: float

    @property
    def steps(self) -> int:
        """The updates of the whole run."""
        return math.ceil(round(self.epochs * self.steps_per_epoch, 6))


Schedule = Callable[[int], Rates]
FROZEN = Rates(0.0, 0.0)  # no momentum either: a velocity with the rate inside would roll on


def ending(schedule: Schedule, until: float, steps_per_epoch: int) -> Schedule:
    """The schedule up to epoch `until`, `FROZEN` from there on."""
    end = math.ceil(round(until * steps_per_epoch, 6))
    return lambda step: schedule(step) if step < end else FROZEN
