"""What the runs of a search take, and the end of what they may take."""

import contextlib
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from rescue_cli.errors import StoppedError
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, read_json, read_metrics

SLACK = 1.15  # for what no clock of a run counts: weights and predictions written, a busy machine


@dataclass(frozen=True)
class Cost:
    """Seconds that a run takes to start, for an epoch's updates, and for an evaluation."""

    start: float
    epoch: float
    evaluation: float

    def of(self, recipe: Recipe) -> float:
        """What a run of the recipe takes."""
        epochs = recipe.train.epochs
        evaluations = math.ceil(round(epochs / recipe.eval.every, 6))
        return SLACK * (self.start + epochs * self.epoch + evaluations * self.evaluation)


def cost_of(run: RunDirectory) -> Cost:
    """What a finished run took; its first updates, which are slower, count as its start."""
    result, lines = read_json(run.result), read_metrics(run.metrics)
    timed = [line for line in lines if line["kind"] == "train"]
    first, last = timed[0], timed[-1]
    epoch = (last["seconds"] - first["seconds"]) / max(last["epoch"] - first["epoch"], 1e-9)
    if len(timed) == 1:
        epoch = last["seconds"] / last["epoch"]
    start = result["seconds_prepare"] + max(0.0, last["seconds"] - epoch * last["epoch"])
    evaluations = sum(line["kind"] == "eval" for line in lines)
    return Cost(start, epoch, result["seconds_eval"] / max(1, evaluations))


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Stops what is at work after so many seconds as a signal does: a training saves first."""
    before = signal.getsignal(signal.SIGTERM)

    def ring(*_: object) -> None:
        if signal.getsignal(signal.SIGTERM) == before:  # nothing is trained that could be saved
            raise StoppedError("the budget is over.", 128 + signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    other = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, other)


def hours(seconds: float) -> str:
    """Rounded up, with two digits."""
    number = max(seconds / 3600, 0.001)
    digit = 10 ** (math.floor(math.log10(number)) - 1)
    rounded = math.ceil(number / digit) * digit
    return f"{rounded:.2g}" if rounded < 10 else f"{rounded:.0f}"
