"""The curves of an LR range test's run, as the verdict reads them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rescue_cli.rundir import METRICS, RunDirectory, metrics_of, read_metrics

NAN = float("nan")
DETECTION = "ap50"  # whose evaluation has no loss
LEAST = 1.0  # percent of average precision


@dataclass(frozen=True)
class Curves:
    """One run's points, all over `rates`; the last losses are NaN where the run diverged.

    `accuracies` are the task's score, `metric`: top-1, a detector's AP50, mean intersection over
    union.
    """

    seed: int
    steps: int
    rates: list[float]
    train_losses: list[float]
    test_losses: list[float]
    accuracies: list[float]
    classes: int | None = None  # None: it is not known what a guess would reach
    metric: str = "top1"

    @property
    def errors(self) -> list[float]:
        """Generalisation error: test loss less training loss."""
        pairs = zip(self.test_losses, self.train_losses, strict=True)
        return [test - train for test, train in pairs]

    @property
    def detects(self) -> bool:
        return self.metric == DETECTION

    @property
    def guess(self) -> tuple[float, float | None]:
        """The loss and the score of a guess; infinite, and None, where they are not known.

        A guess has at most 100 / classes of mean intersection over union: one class's alone.
        """
        if self.detects:
            return math.inf, 0.0
        if self.classes is None:
            return math.inf, None
        return math.log(self.classes), 100 / self.classes

    @property
    def losses(self) -> tuple[str, list[float]]:
        """The loss that is judged, and its name: a detector is only scored on its test set."""
        if self.detects:
            return "training loss", self.train_losses
        return "test loss", self.test_losses

    @property
    def score(self) -> str:
        """What the accuracies are called."""
        return "accuracy" if self.metric == "top1" else METRICS[self.metric].removesuffix(" %")

    @property
    def has_score(self) -> bool:
        """Whether the score says anything: average precision stays at 0 until much is learned."""
        known = [value for value in self.accuracies if math.isfinite(value)]
        return not self.detects or max(known, default=0.0) > LEAST

    def written(self) -> dict[str, Any]:
        """As JSON takes it: null where a run diverged."""
        lists = {k: v for k, v in asdict(self).items() if isinstance(v, list)}
        finite = {k: [x if math.isfinite(x) else None for x in v] for k, v in lists.items()}
        return {"seed": self.seed, "steps": self.steps, "metric": self.metric, **finite}


def read(
    path: Path,
    rate: Callable[[float], float],
    steps: int,
    seed: int,
    classes: int,
    *,
    diverged: bool,
) -> Curves:
    """A run's curves at its evaluations; the training loss is the mean since the one before.

    `rate`: the learning rate after a share of the run.
    """
    lines = read_metrics(RunDirectory(path).metrics)
    tests = [line for line in lines if line["kind"] == "eval"]
    trained = [line for line in lines if line["kind"] == "train"]
    metric = metrics_of(tests[0])[0] if tests else "top1"
    rates: list[float] = []
    train: list[float] = []
    test: list[float] = []
    accuracy: list[float] = []
    before = 0
    for line in tests:
        since = [x for x in trained if before < x["step"] <= line["step"]]
        known = [x["loss"] for x in since] or train[-1:]
        if not known:
            continue
        before = line["step"]
        rates.append(rate(line["step"] / steps))
        train.append(sum(known) / len(known))
        test.append(NAN if line["loss"] is None else line["loss"])
        accuracy.append(line[metric])
    if diverged:
        last = max((line["step"] for line in lines), default=0)
        rates.append(rate(min(1.0, (last + 1) / steps)))
        train, test, accuracy = [*train, NAN], [*test, NAN], [*accuracy, NAN]
    return Curves(seed, steps, rates, train, test, accuracy, classes, metric)
