"""The runs of a tuning search, from the one that is timed to those that judge its result."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rescue_cli import recipe as recipes
from rescue_cli.analysis import tuning
from rescue_cli.analysis.lr_range import Curves, Ramp, read_curves
from rescue_cli.analysis.sweep import PREFIX
from rescue_cli.analysis.tuning import Decision, Outcome
from rescue_cli.analysis.tuning_cost import SLACK, Cost, format_hours, median_cost
from rescue_cli.errors import StoppedError, UsageError
from rescue_cli.formatting import format_duration
from rescue_cli.recipe import Recipe, from_tree, total_steps
from rescue_cli.rundir import RunDirectory, read_curve, read_json, write_json
from rescue_cli.runs.console import note
from rescue_cli.runs.environment import free_memory_mb
from rescue_cli.runs.single import time_limit, train_part

HELD_OUT = 0.1  # of the training images
TIMED_STEPS = 10  # of the run that tells how long the others will take
RANGE_STEPS = 200  # updates of a range test, or an epoch where that is more
EVALUATIONS = 8  # of a short run
SHORT = (0.1, 0.5)  # of the recipe's epochs: the least and the most that a short run has


class _BudgetUsedUp(Exception):
    """No time for another run."""


@dataclass
class Tuner:
    """A search for better settings, which a later call resumes in the same folder.

    Short runs choose the settings; runs of full length, on other held-out images, judge them. What
    depends on the machine or the clock is decided once and kept in the folder, so that later calls
    find the same runs.
    """

    base: Recipe
    folder: Path
    device: str
    workers: int | None
    seeds: int  # runs of full length of each recipe
    end: float  # of the budget (time.monotonic)
    decisions: list[Decision] = field(default_factory=list)
    finished: bool = False
    missing: str = ""  # how much time, where the budget is used up

    def __post_init__(self) -> None:
        self.held_out = count_held_out(self.base)
        fold = self.base.data.fold
        self.folds = (fold, fold + 1)  # the one that chooses, the one that judges
        self.tuned = self.base
        # The search has the first seeds
        first = self.base.train.seed + 1 + tuning.SEEDS
        self.judging_seeds = range(first, first + self.seeds)
        self._judging = False
        self.told: set[str] = set()  # notes on the data

    def run(self) -> None:
        """Searches, then trains what judges the result, as far as the budget reaches."""
        try:
            self._train_timed_run()
            # By now the folder is known to be this recipe's; an earlier result is written again
            (self.folder / "tuned.yaml").unlink(missing_ok=True)
            self._search()
            if self.tuned != self.base:
                self._train_judging_runs()
            self.finished = True
        except _BudgetUsedUp:
            self.missing = self._describe_rest()

    def _search(self) -> None:
        from rescue_cli.build.outline import epoch_length

        short = self._short_epochs()
        self._keep_seeds()
        base = self._for_search(self.base)
        search = tuning.Search(base, lambda name, one: self._outcome(name, shorten(one, short)))
        self._add(search.base)
        size, why = self._batch_size(base)
        per_epoch = epoch_length(tuning.with_batch_size(base, size))
        self._add(
            search.rate(
                size,
                why,
                max(1.0, RANGE_STEPS / per_epoch),
                lambda name, one, ramp: self._range_curves(name, one, ramp, per_epoch),
            )
        )
        self._add(search.momentum())
        self._add(search.weight_decay())
        if search.recipe != base:
            tree = {**search.recipe.tree, "data": self.base.tree["data"]}
            self.tuned = from_tree({**tree, "eval": self.base.tree["eval"]})

    def _train_judging_runs(self) -> None:
        """Both recipes with the same seeds at full length, on images that chose nothing."""
        self._judging = True
        for seed in self.judging_seeds:
            for name, recipe in (("base", self.base), ("tuned", self.tuned)):
                one = self._for_judging(recipe).with_seed(seed)
                self._train(self.folder / name / f"{PREFIX}{seed}", one)

    def _keep_seeds(self) -> None:
        """Raises `UsageError` for other seeds than first asked for.

        Whoever adds seeds after a look at the verdict could do so until it pleases.
        """
        if (kept := self._decide_once("seeds", lambda: self.seeds)) != self.seeds:
            raise UsageError(
                f"--seeds: {self.folder} was started with {kept} full runs of each recipe. "
                f"Give --seeds {kept}, or another --out."
            )

    def _add(self, decision: Decision) -> None:
        self.decisions.append(decision)
        note(f"{decision.step}: {decision.chosen} ({decision.why})")

    # --- recipes ---

    def _for_search(self, recipe: Recipe) -> Recipe:
        """Evaluated on the images that choose, without test-time augmentation."""
        held_out = with_held_out(recipe, self.held_out, self.folds[0])
        return held_out.with_overrides("eval.tta=[none]")

    def _for_judging(self, recipe: Recipe) -> Recipe:
        """As it is written, evaluated on the images that judge."""
        return with_held_out(recipe, self.held_out, self.folds[1])

    def _batch_size(self, base: Recipe) -> tuple[int, str]:
        from rescue_cli.build.outline import count_training_images

        def decide() -> tuple[int, str]:
            free = free_memory_mb(self.device)  # now; later calls must find the same runs

            def fits(size: int) -> bool:
                from rescue_cli import estimate

                return estimate.peak_memory(tuning.with_batch_size(base, size), gpus=1) < free

            return tuning.largest_batch_size(count_training_images(base), fits)

        size, why = self._decide_once("batch_size", decide)
        return int(size), str(why)

    # --- runs ---

    def _range_curves(self, name: str, recipe: Recipe, ramp: Ramp, per_epoch: int) -> Curves:
        from rescue_cli.build.feeds import list_dataset

        one = ramp.of(recipe, recipe.train.seed, per_epoch)
        path = self.folder / "search" / name
        diverged = self._train(path, one)
        steps, classes = total_steps(one.train, per_epoch), len(list_dataset(one).classes)
        return read_curves(path, ramp.rate, steps, one.train.seed, classes, diverged=diverged)

    def _outcome(self, name: str, recipe: Recipe) -> Outcome:
        recipe = recipe.with_overrides(f"eval.every={recipe.train.epochs / EVALUATIONS:.6g}")
        path = self.folder / "search" / name
        diverged = self._train(path, recipe)
        tests = read_curve(RunDirectory(path).metrics)
        outcome = Outcome(
            name,
            [math.inf if x["loss"] is None else x["loss"] for x in tests],
            [x["top1"] for x in tests],
            diverged=diverged,
        )
        note(f"{name}: {outcome}")
        return outcome

    def _train(self, path: Path, recipe: Recipe) -> bool:
        """Whether it diverged; raises `_BudgetUsedUp` where the budget is too short for the run."""
        new = not RunDirectory(path).finished and not RunDirectory(path).failure.exists()
        if new and self._seconds_left() < self._cost().of(recipe):
            raise _BudgetUsedUp
        try:
            with time_limit(self.end - time.monotonic()):
                return train_part(
                    path, recipe, self.device, None, self.workers, self.folder, self.told
                )
        except StoppedError:
            if time.monotonic() < self.end:
                raise
            raise _BudgetUsedUp from None

    # --- time ---

    def _train_timed_run(self) -> None:
        """A run of a few updates, at rates that change nothing, by which the others are planned."""
        from rescue_cli.build.outline import epoch_length

        recipe = self._for_search(self.base)
        per_epoch = epoch_length(recipe)
        lr = recipe.optim[0].lr
        ramp = Ramp(lr * 1e-6, lr * 1e-5, "linear", None, TIMED_STEPS / per_epoch, 1)
        timed = ramp.of(recipe, recipe.train.seed, per_epoch)
        self._train(self.folder / "search" / "timing", timed)

    def _seconds_left(self) -> float:
        """For another run, besides those that will judge."""
        left = self.end - time.monotonic()
        return left if self._judging else left - self._judging_seconds()

    def _judging_seconds(self) -> float:
        return 2 * self.seeds * self._cost().of(self._for_judging(self.base))

    def _cost(self) -> Cost:
        """From the finished runs; from the timed one as long as there is no other."""
        finished = [RunDirectory(file.parent) for file in self.folder.rglob("result.json")]
        return median_cost([run for run in finished if run.path.name != "timing"] or finished)

    def _short_epochs(self) -> float:
        """What the budget leaves for each short run, decided once.

        Raises `UsageError` where it is not enough for the shortest.
        """

        def decide() -> float:
            longest = SHORT[1] * self.base.train.epochs
            shortest = min(longest, max(1.0, SHORT[0] * self.base.train.epochs))
            least, most = (self._total_seconds(epochs) for epochs in (shortest, longest))
            left = self.end - time.monotonic()
            if left < least:
                raise UsageError(
                    f"--budget: the search and the {2 * self.seeds} full runs that judge it take "
                    f"about {format_hours(least)} hours here. "
                    f"Give --budget {format_hours(1.1 * least)}."
                )
            share = min(1.0, (left - least) / max(most - least, 1e-9))
            epochs = round(shortest + share * (longest - shortest), 3)
            note(f"about {format_duration(min(left, most))}; short runs have {epochs:g} epochs")
            return epochs

        return float(self._decide_once("short_epochs", decide))

    def _total_seconds(self, short_epochs: float) -> float:
        """Of a whole search and the runs that judge it, at most."""
        from rescue_cli.build.outline import epoch_length

        base, cost = self._for_search(self.base), self._cost()
        short = shorten(base, short_epochs).with_overrides(
            f"eval.every={short_epochs / EVALUATIONS:.6g}"
        )
        size, _ = self._batch_size(base)
        epochs = max(1.0, RANGE_STEPS / epoch_length(tuning.with_batch_size(base, size)))
        ramp = SLACK * (cost.start + epochs * cost.epoch + tuning.POINTS * cost.evaluation)
        return tuning.planned_runs(base) * cost.of(short) + ramp + self._judging_seconds()

    def _describe_rest(self) -> str:
        """How much time is missing, where that is known."""
        epochs = self._kept_decisions().get("short_epochs")
        if epochs is None:
            return ""
        finished = [file.parent for file in self.folder.rglob("result.json")]
        done = sum(self._cost().of(recipes.recipe_in(path)) for path in finished)
        rest = format_hours(max(0.0, self._total_seconds(epochs) - done))
        return f"It takes about {rest} hours more. "

    # --- what is decided once ---

    def _decide_once(self, key: str, decide: Callable[[], Any]) -> Any:
        if key not in self._kept_decisions():
            value = decide()  # may itself keep the decisions that it rests on
            write_json(self.folder / "decided.json", {**self._kept_decisions(), key: value})
        return self._kept_decisions()[key]

    def _kept_decisions(self) -> dict[str, Any]:
        file = self.folder / "decided.json"
        return read_json(file) if file.exists() else {}


def count_held_out(recipe: Recipe) -> int:
    """Held-out images for the search, and as many for the verdict: as given, or a tenth.

    Raises `UsageError` where they leave none to train on.
    """
    from rescue_cli.build.outline import count_training_images
    from rescue_cli.sections.data import facts_of

    whole = count_training_images(recipe.with_overrides("data.holdout=0", "data.fold=0"))
    classes = facts_of(recipe.data.name, recipe.data).classes or 1
    given = recipe.data.holdout
    held_out = given or max(classes, round(HELD_OUT * whole / classes) * classes)
    folds = recipe.data.fold + 2
    if folds * held_out >= whole:
        raise UsageError(
            f"data.holdout: {held_out} images for the search and as many for the verdict "
            f"leave none of the {whole} training images. Give data.holdout=N with a smaller N, "
            "or more images."
        )
    return held_out


def with_held_out(recipe: Recipe, images: int, fold: int) -> Recipe:
    """Evaluated on held-out training images, by the first measurement that the recipe names."""
    return recipe.with_overrides(
        f"data.holdout={images}",
        f"data.fold={fold}",
        "eval.sets=null",
        f"eval.sizes=[{recipe.eval.sizes[0]}]",
        f"eval.crops=[{recipe.eval.crops[0]}]",
        f"eval.tta=[{recipe.eval.ttas[0]}]",
    )


def shorten(recipe: Recipe, epochs: float) -> Recipe:
    """A run of so many epochs; what is counted in epochs scales with it."""
    from rescue_cli.build import expand

    return recipe.with_overrides(*expand.epochs_overrides(recipe, epochs, []))
