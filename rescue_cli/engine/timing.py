"""At which steps a run evaluates, saves and logs."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """At which steps a run evaluates, saves and logs; `eval_every` and `save_every` are in epochs,
    and may be fractions of one.
    """

    steps: int
    steps_per_epoch: int
    batch_size: int
    eval_every: float
    save_every: float
    log_every: int
    stop_above: float | None
    snapshots: frozenset[int]

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def evaluates(self, step: int) -> bool:
        return step == self.steps or self._passes(step, self.eval_every)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due; not at the last step, where the run saves in any case."""
        return step < self.steps and (step in self.snapshots or self._passes(step, self.save_every))

    def logs(self, step: int) -> bool:
        """At every epoch's end, and every `log_every` steps within an epoch."""
        return step == self.steps or step % self.steps_per_epoch % self.log_every == 0

    def _passes(self, step: int, epochs: float) -> bool:
        """Whether a multiple of `epochs` lies after the step before and not after this one."""
        steps = epochs * self.steps_per_epoch
        return step > 0 and math.floor(step / steps + 1e-9) > math.floor((step - 1) / steps + 1e-9)
