"""The LR range test (Smith 2018, section 3.1): the largest stable learning rate from its curves.

A run of the recipe with a learning rate that rises from start to end, and everything else
unchanged.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import median, median_low
from typing import Any, Literal

from rescue_cli.analysis.curves import (
    Turn,
    Verdict,
    find_turn,
    overfitting_rates,
    smooth,
    suggest_rates,
)
from rescue_cli.metrics.names import METRICS, metric_names
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import optim_path, without_lr_rule
from rescue_cli.rundir import RunDirectory, read_curve, read_metrics

NAN = float("nan")
DETECTION = "ap50"  # the metric of a task whose evaluation has no loss
LEAST = 1.0  # percent of average precision, below which a curve is not used
FACTOR = 2.0  # largest ratio of rates that agree
WIDER = 1000.0  # how far below a rate that was too high the next test should start
LEARNED = 0.1  # of the way from a guess's score to 100 %
NEAR_A_GUESS = 0.25  # of the same way: below it little that was learned is left
STOP_ABOVE = 4.0  # times the first loss, at which a run is stopped, as in fastai's finder
# What --apply writes: 45 % of the run up and 45 % down, as in most runs of the paper
ONE_CYCLE = {
    "name": "one-cycle",
    "base_factor": 0.1,
    "tail_momentum": "paper",
}


@dataclass(frozen=True)
class Curves:
    """One run's curves over `rates`; the last losses are NaN where the run diverged.

    `accuracies` are the task's score in percent, by the name in `metric`: top-1, AP50, mean
    intersection over union.
    """

    seed: int
    steps: int
    rates: list[float]
    train_losses: list[float]
    test_losses: list[float]
    accuracies: list[float]
    classes: int | None = None  # None: the score of a guess is not known
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
        """The loss and the score of a guess; infinite and None where they are not known.

        A guess has at most 100 / classes of mean intersection over union: one class's alone.
        """
        if self.detects:
            return math.inf, 0.0
        if self.classes is None:
            return math.inf, None
        return math.log(self.classes), 100 / self.classes

    @property
    def losses(self) -> tuple[str, list[float]]:
        """The loss that is analysed, and its name: a detector has no test loss."""
        if self.detects:
            return "training loss", self.train_losses
        return "test loss", self.test_losses

    @property
    def score(self) -> str:
        """The name of `accuracies`."""
        return "accuracy" if self.metric == "top1" else METRICS[self.metric].removesuffix(" %")

    @property
    def has_score(self) -> bool:
        """Whether the score is used: average precision stays near 0 early in training."""
        known = [value for value in self.accuracies if math.isfinite(value)]
        return not self.detects or max(known, default=0.0) > LEAST

    def to_json(self) -> dict[str, Any]:
        """For JSON: null where a run diverged."""
        lists = {k: v for k, v in asdict(self).items() if isinstance(v, list)}
        finite = {k: [x if math.isfinite(x) else None for x in v] for k, v in lists.items()}
        return {"seed": self.seed, "steps": self.steps, "metric": self.metric, **finite}


def read_curves(
    path: Path,
    rate: Callable[[float], float],
    steps: int,
    seed: int,
    classes: int,
    *,
    diverged: bool,
) -> Curves:
    """A run's curves at its evaluations; training losses are means since the previous one.

    `rate`: maps a fraction of the run to the learning rate.
    """
    lines = read_metrics(RunDirectory(path).metrics)
    tests = read_curve(RunDirectory(path).metrics)
    trained = [line for line in lines if line["kind"] == "train"]
    metric = metric_names(tests[0])[0] if tests else "top1"
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


@dataclass(frozen=True)
class Ramp:
    """A learning rate from `start` to `end` over `epochs`, with `points` evaluations.

    `momentum` goes the other way, between two values; None: it stays the recipe's.
    """

    start: float
    end: float
    shape: Literal["linear", "exponential"]
    momentum: tuple[float, float] | None
    epochs: float
    points: int

    def of(self, recipe: Recipe, seed: int, per_epoch: int) -> Recipe:
        """The recipe with this ramp in place of its schedules; `per_epoch`: steps per epoch."""
        between = self.epochs * per_epoch / self.points  # steps
        momentum = "null" if self.momentum is None else list(self.momentum)
        own = [
            f"~{optim_path(recipe, index)}.schedule"
            for index, item in enumerate(recipe.optim)
            if item.schedule is not None
        ]
        return recipe.with_overrides(
            f"schedule={{name: ramp, start_lr: {self.start}, end_lr: {self.end}, "
            f"shape: {self.shape}, momentum: {momentum}}}",
            *own,
            f"train.epochs={self.epochs}",
            f"train.seed={seed}",
            f"train.stop_above={STOP_ABOVE}",
            f"train.log_every={max(1, int(between / 2))}",
            f"eval.every={self.epochs / self.points}",
            *(f"eval.sets=[{name}]" for name in (recipe.eval.sets or [])[:1]),
            f"eval.sizes=[{recipe.eval.sizes[0]}]",
            f"eval.crops=[{recipe.eval.crops[0]}]",
            "eval.tta=[none]",
        )

    def rate(self, share: float) -> float:
        """The learning rate after a fraction of the run."""
        if self.shape == "linear":
            return self.start + (self.end - self.start) * share
        return float(self.start * (self.end / self.start) ** share)


@dataclass(frozen=True)
class RunEstimate:
    """The largest stable rate by one run; `max_lr` is None unless the verdict is `turn`."""

    max_lr: float | None
    verdict: Verdict
    bounded_above: float | None  # from this rate on the run is no better than at its start
    spacing: float  # the ratio of the next point's rate to the turn's
    evidence: list[str]
    overfitting: list[tuple[float, float]]
    suggestions: dict[str, float | None]


def estimate_max_lr(curves: Curves) -> RunEstimate:
    """The largest stable rate: where the loss begins to rise or the score to fall."""
    name, losses = curves.losses
    guess, _ = curves.guess
    turns = [find_turn(curves.rates, losses, name, guess)]
    if curves.has_score:
        turns.append(_turn_of_score(curves))
    bounds = [turn.bounded_above for turn in turns]
    bound = min((rate for rate in bounds if rate is not None), default=None)
    rates = [turn.rate for turn in turns if turn.rate is not None]
    max_lr = min(rates) if rates and (bound is None or min(rates) < bound) else None
    unused = [] if curves.has_score else [f"{curves.score}: stays near 0 and is not used"]
    return RunEstimate(
        max_lr=max_lr,
        verdict="turn" if max_lr is not None else _verdict(curves, *(t.verdict for t in turns)),
        bounded_above=bound,
        spacing=1.0 if max_lr is None else _spacing(curves.rates, max_lr),
        evidence=[*(turn.evidence for turn in turns), *unused],
        overfitting=_overfitting(curves, bound),
        suggestions=suggest_rates(curves.rates, curves.train_losses),
    )


def _turn_of_score(curves: Curves) -> Turn:
    """Where the score begins to fall: its negation, which is analysed, falls where it rises."""
    turn = find_turn(curves.rates, [-value for value in curves.accuracies], curves.score)
    return replace(turn, evidence=turn.evidence.replace("still falling", "still rising"))


def _overfitting(curves: Curves, bound: float | None) -> list[tuple[float, float]]:
    """Where test loss and generalisation error both rise, at rates below `bound`.

    A rise that ends with the loss of a guess or more, and a score near that of a guess, does not
    count: an overfitted network still knows more of the test images than a guess does, while one
    that has lost what it learned, or whose batch norm statistics lag, does not.
    """
    losses, scores = smooth(curves.test_losses), smooth(curves.accuracies)
    guess, chance = curves.guess

    def ends_at_a_guess(rate: float) -> bool:
        end = curves.rates.index(rate)
        while end + 1 < len(losses) and losses[end + 1] > losses[end]:
            end += 1
        near = chance is not None and scores[end] < chance + NEAR_A_GUESS * (100 - chance)
        return near and bool(losses[end] >= guess)

    ranges = overfitting_rates(curves.rates, curves.test_losses, curves.errors)
    return [
        (low, high)
        for low, high in ranges
        if (bound is None or low < bound) and not ends_at_a_guess(high)
    ]


def shared_overfitting(estimates: Sequence[RunEstimate]) -> list[tuple[float, float]]:
    """The ranges of the rate in which every run has signs of overfitting."""
    first, *others = (estimate.overfitting for estimate in estimates)
    for other in others:
        both = ((max(a, c), min(b, d)) for (a, b), (c, d) in product(first, other))
        first = [(low, high) for low, high in both if low < high]
    return first


def _verdict(curves: Curves, *verdicts: Verdict) -> Verdict:
    """The verdict without a turn: divergence first, then by which curve shows learning."""
    order: tuple[Verdict, ...] = (
        "died", "too few points", "falling", "noisy", "flat", "nothing learned",
    )  # fmt: skip
    verdict: Verdict = next((verdict for verdict in order if verdict in verdicts), "too few points")
    return "noisy" if verdict == "nothing learned" and _has_learned(curves) else verdict


def _has_learned(curves: Curves) -> bool:
    """Whether half of the points are far better than a guess."""
    known = [value for value in curves.accuracies if math.isfinite(value)]
    _, guess = curves.guess
    if guess is None or not known:
        return False
    return median(known) > guess + LEARNED * (100 - guess)


def _spacing(rates: Sequence[float], rate: float) -> float:
    index = list(rates).index(rate)
    return rates[index + 1] / rate if index + 1 < len(rates) and rate > 0 else 1.0


@dataclass(frozen=True)
class RangeTestResult:
    """The result of all runs; `max_lr` is the median over the full-length runs.

    `reasons`: why it is not trusted, or which runs agree.
    """

    max_lr: float | None
    verdict: Verdict
    bounded_above: float | None
    trusted: bool
    reasons: list[str]

    @property
    def min_lr(self) -> float | None:
        """A tenth of `max_lr`. The paper divides by 3 to 4 for cycles, by 10 to 20 for one."""
        return None if self.max_lr is None else self.max_lr / 10

    def advice(self, ramp: Ramp) -> str:
        """What to try where no rate was found, or it is not trusted."""
        if self.max_lr is not None:
            return "Give more --seeds, --steps or --points, or a --start and --end closer to it."
        if self.verdict == "falling":
            return f"Give a higher --end, such as {10 * ramp.end:.3g}."
        if self.verdict == "flat":
            return f"Give a higher --end, such as {10 * ramp.end:.3g}, or more --steps."
        if self.verdict == "noisy":
            return "Give more --steps, and a lower --start."
        if self.bounded_above is not None:
            low = self.bounded_above / WIDER
            return f"Try --start {low:.3g} --end {self.bounded_above:.3g} --ramp exponential."
        if self.verdict == "too few points":
            return "Give a lower --start and --end, or more --points and --steps."
        low, high = ramp.start / WIDER, ramp.end * WIDER
        return (
            f"The rates may be too high or too low. Try --start {low:.3g} --ramp exponential, "
            f"then --end {high:.3g}."
        )


def combine_estimates(
    estimates: Sequence[RunEstimate], half: RunEstimate, end: float
) -> RangeTestResult:
    """The largest stable rate, and whether independent runs agree on it within a factor of two.

    Seeds count from 0; `half`, the run of half the steps, has the next one. It confirms a rate only
    by a turn of its own: where the other runs fail it would fail in the same way.
    """
    rates = [r.max_lr for r in estimates if r.max_lr is not None]
    bound = min((r.bounded_above for r in estimates if r.bounded_above is not None), default=None)
    below = [rate for rate in rates if bound is None or rate < bound]
    reasons = []
    for seed, one in enumerate(estimates):
        if one.max_lr is None:
            reasons.append(f"seed {seed}: {_no_rate(one, end)}")
    if not rates:
        verdict = estimates[0].verdict
        if bound is not None and verdict in ("falling", "flat"):  # another run was lost
            verdict = "died"
        return RangeTestResult(None, verdict, bound, False, reasons)
    if max(rates) > FACTOR * min(rates):
        reasons.append(f"it ranges from {min(rates):.3g} to {max(rates):.3g} between seeds")
    if not below:
        reasons.append(
            f"a run is no better than at the start from {bound:.3g} on, below every rate found"
        )
        return RangeTestResult(None, "died", bound, False, reasons)
    # One of the observed rates, and below any at which another run had lost what it learned
    middle, last = min(median_low(rates), max(below)), len(estimates)
    if half.max_lr is None:
        words = f"with half the steps, seed {last}: {_no_rate(half, end)}"
        if last == 1:
            words += ", so there is no second run to agree with"
        reasons.append(words)
    elif not middle / FACTOR <= half.max_lr <= middle * FACTOR:
        reasons.append(f"with half the steps, seed {last}, it is {half.max_lr:.3g}")
    apart = max(r.spacing for r in estimates)
    if apart > FACTOR:
        reasons.append(f"the next point is at {apart:.1f} times the rate: too coarse to tell")
    trusted = not reasons
    if trusted:
        reasons = [f"{_seeds(last)} and, with half the steps, seed {last} agree within a factor of "
                   f"{FACTOR:g}"]  # fmt: skip
    return RangeTestResult(middle, "turn", bound, trusted, reasons)


def _no_rate(estimate: RunEstimate, end: float) -> str:
    """Why an estimate has no rate."""
    bound = estimate.bounded_above
    words = {
        "died": f"no better than at the start from {bound or end:.3g} on, before it had learned "
        "enough to judge",
        "noisy": f"noise hides any turn up to {end:.3g}",
        "nothing learned": f"nothing was learned up to {end:.3g}",
        "too few points": "too few points to judge",
        "falling": f"no turn found up to {end:.3g}, still improving",
        "flat": f"no turn found up to {end:.3g}, flat at the end",
    }[estimate.verdict]
    late = bound is not None and estimate.verdict in ("nothing learned", "too few points")
    return f"{words}; no better than at the start from {bound:.3g} on" if late else words


def _seeds(count: int) -> str:
    numbers = ", ".join(str(seed) for seed in range(count))
    return f"seed{'s' if count > 1 else ''} {numbers}"


def with_one_cycle(recipe: Recipe, max_lr: float, momentum: tuple[float, float] | None) -> Recipe:
    """The recipe with a 1cycle up to `max_lr`; every group keeps its ratio to the first."""
    ratio = max_lr / recipe.optim[0].lr
    rates = [
        f"{optim_path(recipe, index)}.lr={item.lr * ratio:.6g}"
        for index, item in enumerate(recipe.optim)
    ]
    cycled: Any = "null" if momentum is None else list(momentum)
    keys = {**ONE_CYCLE, "stepsize_epochs": round(0.45 * recipe.train.epochs, 6)}
    written = ", ".join(f"{key}: {value}" for key, value in keys.items())
    cycle = f"schedule={{{written}, momentum: {cycled}}}"
    return recipe.with_overrides(*rates, cycle, *without_lr_rule(recipe))
