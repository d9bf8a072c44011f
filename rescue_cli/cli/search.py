"""The runs of a search, from the timed one to those that judge."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rescue_cli import recipe as recipes
from rescue_cli.analysis import range_curves, tuning
from rescue_cli.analysis.lr_range import Ramp
from rescue_cli.analysis.range_curves import Curves
from rescue_cli.analysis.sweep import PREFIX
from rescue_cli.analysis.tuning import Decision, Outcome
from rescue_cli.cli import common
from rescue_cli.cli.budget import SLACK, Cost, alarm, cost_of, hours
from rescue_cli.cli.progress import duration
from rescue_cli.cli.runs import train_here
from rescue_cli.cli.variants import free_memory_mb, held_out, measured, shortened
from rescue_cli.errors import StoppedError, UsageError
from rescue_cli.recipe import Recipe, from_tree, total_steps
from rescue_cli.report.tuned import UNCHANGED, Verdict, page, title_of, verdict
from rescue_cli.rundir import RunDirectory, read_json, read_metrics, write_json, write_text

TIMED_STEPS = 10  # of the run that says what the others will take
RANGE_STEPS = 200  # updates of a range test, or an epoch where that is more
EVALUATIONS = 8  # of a short run
SHORT = (0.1, 0.5)  # of the recipe's epochs: a short run's least and most


class _BudgetOver(Exception):
    """No time for another run."""


@dataclass
class Search:
    """A search and where it has come to; `verdict` is None until it is finished."""

    base: Recipe
    folder: Path
    device: str
    workers: int | None
    seeds: int
    end: float  # of the budget, by the monotonic clock
    decisions: list[Decision] = field(default_factory=list)
    verdict: Verdict | None = None
    missing: str = ""  # how much, where the budget is over
    judging: bool = False

    def __post_init__(self) -> None:
        self.held = held_out(self.base)
        fold = self.base.data.fold
        self.folds = (fold, fold + 1)  # the one that chooses, the one that judges
        self.tuned = self.base

    def go(self) -> None:
        """Searches, then judges what was found, as far as the budget reaches."""
        try:
            self._time()
            # By now the folder is known to be this recipe's; what it said is said anew
            (self.folder / "tuned.yaml").unlink(missing_ok=True)
            self._search()
            self.verdict = UNCHANGED if self.tuned == self.base else self._judge()
        except _BudgetOver:
            self.missing = self._rest()

    def _search(self) -> None:
        from rescue_cli.build.outline import epoch_length

        short = self._short_epochs()
        self._keep_seeds()
        base = self._searched(self.base)
        found = tuning.Search(base, lambda name, one: self._outcome(name, shortened(one, short)))
        self._take(found.base)
        size, why = self._batch(base)
        per_epoch = epoch_length(tuning.with_batch(base, size))
        self._take(
            found.rate(
                size,
                why,
                max(1.0, RANGE_STEPS / per_epoch),
                lambda name, one, ramp: self._ramp(name, one, ramp, per_epoch),
            )
        )
        self._take(found.momentum())
        self._take(found.weight_decay())
        if found.recipe != base:
            tree = {**found.recipe.tree, "data": self.base.tree["data"]}
            self.tuned = from_tree({**tree, "eval": self.base.tree["eval"]})

    def _judge(self) -> Verdict:
        """Both recipes by the same seeds at full length, on images that chose nothing."""
        # The search had the first seeds
        first = self.base.train.seed + 1 + tuning.SEEDS
        seeds = range(first, first + self.seeds)
        base, tuned = self.folder / "base", self.folder / "tuned"
        self.judging = True
        for seed in seeds:
            for folder, recipe in ((base, self.base), (tuned, self.tuned)):
                one = self._full(recipe).with_overrides(f"train.seed={seed}")
                self._train(folder / f"{PREFIX}{seed}", one)
        return verdict(base, tuned, seeds)

    def _keep_seeds(self) -> None:
        """Raises `UsageError` for other seeds than first asked for.

        More of them after a look at the verdict would be looked at until they please.
        """
        if (kept := self._once("seeds", lambda: self.seeds)) != self.seeds:
            raise UsageError(
                f"--seeds: {self.folder} is judged by {kept} runs each, as it was first asked. "
                f"Give --seeds {kept}, or another --out."
            )

    def _take(self, decision: Decision) -> None:
        self.decisions.append(decision)
        common.note(f"{decision.step}: {decision.chosen} ({decision.why})")

    # --- recipes ---

    def _searched(self, recipe: Recipe) -> Recipe:
        """Judged by the images that choose, once over, without test-time augmentation."""
        return measured(recipe, self.held, self.folds[0]).with_overrides("eval.tta=[none]")

    def _full(self, recipe: Recipe) -> Recipe:
        """As it is written, on the images that judge."""
        return measured(recipe, self.held, self.folds[1])

    def _batch(self, base: Recipe) -> tuple[int, str]:
        from rescue_cli.build.outline import count_training_images

        def decided() -> tuple[int, str]:
            free = free_memory_mb(self.device)  # now; later calls must find the same runs

            def fits(size: int) -> bool:
                from rescue_cli import estimate

                return estimate.peak_memory(tuning.with_batch(base, size), gpus=1) < free

            return tuning.batch_size(count_training_images(base), fits)

        size, why = self._once("batch_size", decided)
        return int(size), str(why)

    # --- runs ---

    def _ramp(self, name: str, recipe: Recipe, ramp: Ramp, per_epoch: int) -> Curves:
        from rescue_cli.build.feeds import list_dataset

        one = ramp.of(recipe, recipe.train.seed, per_epoch)
        path = self.folder / "search" / name
        diverged = self._train(path, one)
        steps, classes = total_steps(one.train, per_epoch), len(list_dataset(one).classes)
        return range_curves.read(path, ramp.rate, steps, one.train.seed, classes, diverged=diverged)

    def _outcome(self, name: str, recipe: Recipe) -> Outcome:
        recipe = recipe.with_overrides(f"eval.every={recipe.train.epochs / EVALUATIONS:.6g}")
        path = self.folder / "search" / name
        diverged = self._train(path, recipe)
        tests = [
            line for line in read_metrics(RunDirectory(path).metrics) if line["kind"] == "eval"
        ]
        found = Outcome(
            name,
            [math.inf if x["loss"] is None else x["loss"] for x in tests],
            [x["top1"] for x in tests],
            diverged=diverged,
        )
        common.note(f"{name}: {found}")
        return found

    def _train(self, path: Path, recipe: Recipe) -> bool:
        """Whether it diverged; raises `_BudgetOver` where the budget does not hold the run."""
        from rescue_cli.runs import is_finished

        new = not is_finished(path) and not RunDirectory(path).failure.exists()
        if new and self._left() < self._cost().of(recipe):
            raise _BudgetOver
        try:
            with alarm(self.end - time.monotonic()):
                return train_here(path, recipe, self.device, None, self.workers, self.folder)
        except StoppedError:
            if time.monotonic() < self.end:
                raise
            raise _BudgetOver from None

    # --- time ---

    def _time(self) -> None:
        """A run of a few updates, at rates that change nothing, by which the others are planned."""
        from rescue_cli.build.outline import epoch_length

        recipe = self._searched(self.base)
        per_epoch = epoch_length(recipe)
        lr = recipe.optim[0].lr
        ramp = Ramp(lr * 1e-6, lr * 1e-5, "linear", None, TIMED_STEPS / per_epoch, 1)
        self._train(
            self.folder / "search" / "timing", ramp.of(recipe, recipe.train.seed, per_epoch)
        )

    def _left(self) -> float:
        """Seconds for another run, besides those that the judgement will take."""
        left = self.end - time.monotonic()
        return left if self.judging else left - self._judgement()

    def _judgement(self) -> float:
        return 2 * self.seeds * self._cost().of(self._full(self.base))

    def _cost(self) -> Cost:
        """By the runs that are there, and by the timed one as long as there is no other."""
        ended = [RunDirectory(file.parent) for file in self.folder.rglob("result.json")]
        known = [run for run in ended if run.path.name != "timing"] or ended
        costs = [cost_of(run) for run in known] or [Cost(0.0, 0.0, 0.0)]
        return Cost(
            median(cost.start for cost in costs),
            median(cost.epoch for cost in costs),
            median(cost.evaluation for cost in costs),
        )

    def _short_epochs(self) -> float:
        """What the budget leaves for each short run, decided once and kept for every later call.

        Raises `UsageError` where it does not hold the shortest.
        """

        def decided() -> float:
            longest = SHORT[1] * self.base.train.epochs
            shortest = min(longest, max(1.0, SHORT[0] * self.base.train.epochs))
            least, most = (self._needed(epochs) for epochs in (shortest, longest))
            left = self.end - time.monotonic()
            if left < least:
                raise UsageError(
                    f"--budget: the search and the {2 * self.seeds} full runs that judge it take "
                    f"about {hours(least)} hours here. Give --budget {hours(1.1 * least)}."
                )
            share = min(1.0, (left - least) / max(most - least, 1e-9))
            epochs = round(shortest + share * (longest - shortest), 3)
            common.note(f"about {duration(min(left, most))}; short runs have {epochs:g} epochs")
            return epochs

        return float(self._once("short_epochs", decided))

    def _needed(self, short_epochs: float) -> float:
        """Seconds of a whole search and its judgement, at most."""
        from rescue_cli.build.outline import epoch_length

        base, cost = self._searched(self.base), self._cost()
        short = shortened(base, short_epochs).with_overrides(
            f"eval.every={short_epochs / EVALUATIONS:.6g}"
        )
        size, _ = self._batch(base)
        epochs = max(1.0, RANGE_STEPS / epoch_length(tuning.with_batch(base, size)))
        ramp = SLACK * (cost.start + epochs * cost.epoch + tuning.POINTS * cost.evaluation)
        return tuning.planned_runs(base) * cost.of(short) + ramp + self._judgement()

    def _rest(self) -> str:
        """How much is missing, where that is known."""
        file = self.folder / "decided.json"
        epochs = read_json(file).get("short_epochs") if file.exists() else None
        if epochs is None:
            return ""
        ended = [file.parent for file in self.folder.rglob("result.json")]
        done = sum(self._cost().of(recipes.recipe_in(path)) for path in ended)
        return f"It takes about {hours(max(0.0, self._needed(epochs) - done))} hours more. "

    def _once(self, key: str, decide: Callable[[], Any]) -> Any:
        """What depends on the machine or the clock: decided once, kept for every later call."""
        file = self.folder / "decided.json"

        def kept() -> dict[str, Any]:
            return read_json(file) if file.exists() else {}

        if key not in kept():
            value = decide()  # may itself decide what it stands on
            write_json(file, {**kept(), key: value})
        return kept()[key]

    # --- what it comes to ---

    @property
    def summary(self) -> dict[str, Any]:
        found = self.verdict
        return {
            "recipe": self.base.name,
            "finished": found is not None,
            "held_out": self.held,
            "decisions": [tuning.written(decision) for decision in self.decisions],
            "verdict": None if found is None else found.written(),
            "tuned": str(self.folder / "tuned.yaml") if found and found.better else None,
        }

    def write(self) -> None:
        """The decisions, the page that shows them, and the tuned recipe where it is better."""
        if self.verdict is not None and self.verdict.better:
            write_text(self.folder / "tuned.yaml", self.tuned.to_yaml())
        write_json(self.folder / "tune.json", self.summary)
        title = title_of(self.base.name, self.verdict)
        write_text(self.folder / "tune.html", page(title, self.held, self.decisions, self.verdict))
