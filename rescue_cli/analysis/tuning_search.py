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
from rescue_cli.analysis.tuning_cost import Cost, cost_of, format_hours, median_cost
from rescue_cli.errors import StoppedError, UsageError
from rescue_cli.formatting import format_count, format_duration
from rescue_cli.recipe import Recipe, from_tree, total_steps
from rescue_cli.rundir import RunDirectory, read_curve, read_json, write_json
from rescue_cli.runs.console import note
from rescue_cli.runs.environment import free_memory_mb
from rescue_cli.runs.single import time_limit, train_part

HELD_OUT = 0.1  # of the training images
TIMED = "timing"  # how the names of the runs begin that tell how long the others will take
TIMED_STEPS = 10
RANGE_STEPS = 200  # updates of a range test, or an epoch where that is more
EVALUATIONS = 8  # of a short run
SHORT = (0.1, 0.5)  # of the recipe's epochs: the least and the most that a short run has
RESERVE = 1.25  # the budget that is asked for, in parts of what all is planned to take


class _BudgetTooShort(Exception):
    """No time for another run, and in words how much there is."""


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
    missing: str = ""  # how much time, where the budget is too short

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
        self._costs: dict[Path, tuple[int, Cost]] = {}  # of finished runs, with the batch size

    def run(self) -> None:
        """Searches, then trains what judges the result, as far as the budget reaches."""
        try:
            self._train_timed_run(TIMED, self._for_search(self.base))
            # By now the folder is known to be this recipe's; an earlier result is written again
            (self.folder / "tuned.yaml").unlink(missing_ok=True)
            self._search()
            if self.tuned != self.base:
                self._train_judging_runs()
            self.finished = True
        except _BudgetTooShort as error:
            self.missing = f"{error}. {self._describe_rest()}"

    def describe_plan(self) -> str:
        """The runs and how long they take; it trains nothing, so by an earlier call's runs."""
        shortest, longest = short_epochs(self.base)
        full = format_count(2 * self.seeds, "full run")
        plan = (
            f"at most {tuning.planned_runs(self.base)} short runs (epochs: {shortest:g} to "
            f"{longest:g}), a range test, {full} (epochs: {self.base.train.epochs:g})"
        )
        if "batch_size" not in self._kept_decisions() or not self._finished():
            return f"{plan}; --budget 0.01 times a few updates here and says how long all take"
        least, most = map(self._total_seconds, (shortest, longest))
        return (
            f"{plan}; by the runs in {self.folder}, all take about {format_duration(least)} to "
            f"{format_duration(most)}"
        )

    def _search(self) -> None:
        from rescue_cli.build.outline import epoch_length

        base = self._for_search(self.base)
        size, why = self._batch_size(base)
        if size != base.train.batch_size:
            self._train_timed_run(f"{TIMED}-batch-{size}", tuning.with_batch_size(base, size))
        short = self._short_epochs()
        self._keep_seeds()
        search = tuning.Search(base, lambda name, one: self._outcome(name, shorten(one, short)))
        self._add(search.base)
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
        """Whether it diverged; raises `_BudgetTooShort` where too little time is left for it."""
        if not RunDirectory(path).finished and not RunDirectory(path).failure.exists():
            self._demand_time(recipe)
        return self._train_untimed(path, recipe)

    def _train_untimed(self, path: Path, recipe: Recipe) -> bool:
        try:
            with time_limit(self.end - time.monotonic()):
                return train_part(
                    path, recipe, self.device, None, self.workers, self.folder, self.told
                )
        except StoppedError:
            if time.monotonic() < self.end:
                raise
            raise _BudgetTooShort("the time is used up") from None

    def _train_timed_run(self, name: str, recipe: Recipe) -> None:
        """A run of a few updates, at rates that change nothing, by which others are planned."""
        from rescue_cli.build.outline import epoch_length

        per_epoch = epoch_length(recipe)
        lr = recipe.optim[0].lr
        ramp = Ramp(lr * 1e-6, lr * 1e-5, "linear", None, TIMED_STEPS / per_epoch, 1)
        timed = ramp.of(recipe, recipe.train.seed, per_epoch)
        self._train_untimed(self.folder / "search" / name, timed)

    # --- time ---

    def _demand_time(self, recipe: Recipe) -> None:
        """Raises `_BudgetTooShort` unless the time suffices for a run and those that will judge."""
        left, needed, what = self.end - time.monotonic(), self._seconds(recipe), "the next run"
        if not self._judging:
            needed += self._judging_seconds()
            what += f" and the {2 * self.seeds} full runs that judge"
        if left < needed:
            raise _BudgetTooShort(
                f"{format_duration(max(0.0, left))} are left, and about "
                f"{format_duration(needed)} are needed for {what}"
            )

    def _finished(self) -> list[Path]:
        return [file.parent for file in self.folder.rglob("result.json")]

    def _seconds(self, recipe: Recipe) -> float:
        """Of a run, by the finished ones with its batch size; by the timed one if it is alone."""
        for path in self._finished():
            if path not in self._costs:
                size = recipes.recipe_in(path).train.batch_size
                self._costs[path] = size, cost_of(RunDirectory(path))
        alike = {
            path: cost for path, (size, cost) in self._costs.items()
            if size == recipe.train.batch_size
        }  # fmt: skip
        trained = [cost for path, cost in alike.items() if not path.name.startswith(TIMED)]
        return median_cost(trained or list(alike.values())).of(recipe)

    def _slower(self, recipe: Recipe) -> float:
        """Seconds of a run with the recipe's batch size or with the search's, whichever is more."""
        size, _ = self._batch_size(self._for_search(self.base))
        return max(self._seconds(recipe), self._seconds(tuning.with_batch_size(recipe, size)))

    def _judging_seconds(self) -> float:
        judging = self._for_judging(self.base)
        return self.seeds * (self._seconds(judging) + self._slower(judging))

    def _short_epochs(self) -> float:
        """What the budget leaves for each short run, decided once.

        Raises `UsageError` where it is not enough for the shortest.
        """

        def decide() -> float:
            shortest, longest = short_epochs(self.base)
            least, most = (self._total_seconds(epochs) for epochs in (shortest, longest))
            left, runs = self.end - time.monotonic(), tuning.planned_runs(self.base)
            if left < least:
                raise UsageError(
                    f"--budget: the search of at most {runs} short runs and the {2 * self.seeds} "
                    f"full runs that judge it take about {format_hours(least)} hours here. "
                    f"Give --budget {format_hours(RESERVE * least)}."
                )
            share = (left / RESERVE - least) / max(most - least, 1e-9)
            epochs = round(shortest + min(1.0, max(0.0, share)) * (longest - shortest), 3)
            note(
                f"at most {runs} short runs (epochs: {epochs:g}) and {2 * self.seeds} full ones: "
                f"about {format_duration(self._total_seconds(epochs))}"
            )
            return epochs

        return float(self._decide_once("short_epochs", decide))

    def _total_seconds(self, short_epochs: float) -> float:
        """Of a whole search and the runs that judge it, at most."""
        from rescue_cli.build.outline import epoch_length

        base = self._for_search(self.base)
        short = shorten(base, short_epochs).with_overrides(
            f"eval.every={short_epochs / EVALUATIONS:.6g}"
        )
        tried = tuning.planned_runs(base) - tuning.SEEDS
        other = tuning.with_batch_size(base, self._batch_size(base)[0])
        per_epoch = epoch_length(other)
        epochs = max(1.0, RANGE_STEPS / per_epoch)
        ramp = Ramp(0.1, 1.0, "exponential", None, epochs, tuning.POINTS)  # any rates
        return (
            tuning.SEEDS * self._seconds(short)
            + tried * self._slower(short)
            + self._seconds(ramp.of(other, 0, per_epoch))
            + self._judging_seconds()
        )

    def _describe_rest(self) -> str:
        """How much time all that is left takes, where that is known."""
        epochs = self._kept_decisions().get("short_epochs")
        if epochs is None:
            return "The same command with a larger --budget resumes it."
        whole = self._judging_seconds() if self._judging else self._total_seconds(epochs)
        searched = self.folder / "search"
        done = sum(
            self._seconds(recipes.recipe_in(path))
            for path in self._finished()
            if not (self._judging and path.is_relative_to(searched))
        )
        rest = max(0.0, whole - done)
        return (
            f"All that is left takes about {format_duration(rest)}: the same command with "
            f"--budget {format_hours(RESERVE * rest)} resumes it."
        )

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


def short_epochs(recipe: Recipe) -> tuple[float, float]:
    """The least and the most epochs of a short run."""
    longest = SHORT[1] * recipe.train.epochs
    return min(longest, max(1.0, SHORT[0] * recipe.train.epochs)), longest


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
