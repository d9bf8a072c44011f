"""What the runs of a search cost in time, from the clocks of those that have finished."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, read_json, read_metrics

SLACK = 1.15  # for what no clock of a run counts: writing weights and predictions, a busy machine


@dataclass(frozen=True)
class Cost:
    """Seconds that a run takes to start, for an epoch's updates, and for an evaluation."""

    start: float
    epoch: float
    evaluation: float

    def of(self, recipe: Recipe) -> float:
        """Seconds that a run of the recipe takes."""
        epochs = recipe.train.epochs
        evaluations = math.ceil(round(epochs / recipe.eval.every, 6))
        return SLACK * (self.start + epochs * self.epoch + evaluations * self.evaluation)


def median_cost(costs: Sequence[Cost]) -> Cost:
    """The median of each part; 0 where there is none."""
    costs = costs or [Cost(0.0, 0.0, 0.0)]
    return Cost(
        median(cost.start for cost in costs),
        median(cost.epoch for cost in costs),
        median(cost.evaluation for cost in costs),
    )


def cost_of(run: RunDirectory) -> Cost:
    """What a finished run took; its first updates, which are slower, count as its start."""
    result, lines = read_json(run.result), read_metrics(run.metrics)
    timed = [line for line in lines if line["kind"] == "train"]
    first, last = timed[0], timed[-1]
    epoch = (last["seconds"] - first["seconds"]) / max(last["epoch"] - first["epoch"], 1e-9)
    if len(timed) == 1:
        epoch = last["seconds"] / last["epoch"]
    start = (
        result["seconds_prepare"]
        + result.get("seconds_warmup", 0.0)
        + max(0.0, last["seconds"] - epoch * last["epoch"])
    )
    evaluations = sum(line["kind"] == "eval" for line in lines)
    return Cost(start, epoch, result["seconds_eval"] / max(1, evaluations))


def format_hours(seconds: float) -> str:
    """Hours with two digits, rounded up."""
    number = max(seconds / 3600, 0.001)
    digit = 10 ** (math.floor(math.log10(number)) - 1)
    rounded = math.ceil(number / digit) * digit
    return f"{rounded:.2g}" if rounded < 10 else f"{rounded:.0f}"
