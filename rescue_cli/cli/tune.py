"""`rescue tune`: Smith's steps on a recipe by short runs, with a report of what was seen."""

import contextlib
import json as json_module
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from rescue_cli import range_test, tuning
from rescue_cli import recipe as recipes
from rescue_cli.cli import common
from rescue_cli.cli.common import Device, Json, Overrides, RecipeName, Workers
from rescue_cli.cli.progress import duration
from rescue_cli.cli.runs import train_here
from rescue_cli.cli.screen import then
from rescue_cli.errors import UsageError
from rescue_cli.range_test import Curves, Ramp
from rescue_cli.recipe import Recipe, from_tree, total_steps
from rescue_cli.results import finite
from rescue_cli.tuning import Decision, Outcome

app = common.verb()
HELD_OUT = 0.1  # of the training images
RANGE_STEPS = 200  # updates of a range test, or an epoch where that is more
EVALUATIONS = 8  # of a short run
SHORT = 0.5  # of the recipe's epochs, at most


class _BudgetOver(Exception):
    """No time for another run."""


@app.command(
    epilog=then(
        "rescue tune --recipe quickstart --budget 0.3",
        "rescue train --recipe runs/tune/quickstart/tuned.yaml",
    )
)
def tune(
    overrides: Overrides = None,
    recipe: RecipeName = None,
    budget: Annotated[float, typer.Option(help="Hours for all runs.", min=0.001)] = 1.0,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/tune/RECIPE by default.")] = None,
    json: Json = False,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Choose batch size, learning rate, momentum and weight decay by the held-out loss (Smith)."""
    from rescue_cli import build

    where = common.device(device)
    base = recipes.load(common.named_or_default(recipe), overrides or [])
    build.check(base)
    base.demand_classification("tune")
    notes = [f"warning: {warning}" for warning in common.check_precision(base, where)]
    folder = common.folder(out or Path("runs", "tune", base.name))
    for line in [str(folder), *notes, *common.allocator_notes()]:
        common.note(line)
    search = _Search(base, folder, where, workers, budget * 3600)
    search.go()
    search.write()
    if json:
        print(json_module.dumps(search.summary))
    else:
        _print(search)
    common.note(str(folder))


@dataclass
class _Search:
    """A search and where it has come to."""

    base: Recipe
    folder: Path
    device: str
    workers: int | None
    seconds: float
    decisions: list[Decision] = field(default_factory=list)
    final: Outcome | None = None
    finished: bool = False

    def __post_init__(self) -> None:
        from rescue_cli import build

        self.begun = time.monotonic()
        self.recipe = _measured(self.base.with_overrides(f"data.holdout={_held_out(self.base)}"))
        self.images = build.counted_images(self.recipe)
        self.per_epoch = build.epoch_length(self.recipe)

    def go(self) -> None:
        """Decides step after step, as long as there is time for another run."""
        try:
            self._choose_batch()
            range_epochs = max(1.0, RANGE_STEPS / self.per_epoch)
            self._take(lambda r: tuning.learning_rate(r, range_epochs, self._ramp, self._short))
            self._take(lambda r: tuning.momentum(r, self._short))
            self._take(lambda r: tuning.weight_decay(r, self._short))
            self.final = self._outcome("final", self.recipe)
            self.finished = True
        except _BudgetOver:
            common.note("--budget: the time is over; the same command with more goes on")

    def _take(self, step: Callable[[Recipe], tuple[Recipe, Decision]]) -> None:
        self.recipe, decision = step(self.recipe)
        self.decisions.append(decision)
        common.note(f"{decision.step}: {decision.chosen} ({decision.why})")

    def _choose_batch(self) -> None:
        from rescue_cli import build

        def decided() -> tuple[int, str]:
            free = _free_memory_mb(self.device)  # now; later calls must find the same runs

            def fits(size: int) -> bool:
                from rescue_cli import estimate

                return estimate.peak_memory(tuning.with_batch(self.recipe, size), gpus=1) < free

            return tuning.batch_size(self.images, fits)

        size, why = self._once("batch_size", decided)
        self.recipe = tuning.with_batch(self.recipe, size)
        self.per_epoch = build.epoch_length(self.recipe)
        self.decisions.append(Decision("batch size", [], str(size), why, [], []))
        common.note(f"batch size: {size} ({why})")

    def _ramp(self, name: str, recipe: Recipe, ramp: Ramp) -> Curves:
        one = ramp.of(recipe, recipe.train.seed, self.per_epoch)
        diverged = self._train(name, one)
        steps = total_steps(one.train, self.per_epoch)
        return range_test.read(self.folder / name, ramp, steps, one.train.seed, diverged=diverged)

    def _short(self, name: str, recipe: Recipe) -> Outcome:
        return self._outcome(name, tuning.shortened(recipe, self._short_epochs()))

    def _outcome(self, name: str, recipe: Recipe) -> Outcome:
        from rescue_cli.results import RunDirectory, read_metrics

        recipe = recipe.with_overrides(f"eval.every={recipe.train.epochs / EVALUATIONS:.6g}")
        diverged = self._train(name, recipe)
        lines = read_metrics(RunDirectory(self.folder / name).metrics)
        tests = [line for line in lines if line["kind"] == "eval"]
        found = Outcome(
            name,
            [math.inf if x["loss"] is None else x["loss"] for x in tests],
            [x["top1"] for x in tests],
            diverged=diverged,
        )
        common.note(f"{name}: {found}")
        return found

    def _train(self, name: str, recipe: Recipe) -> bool:
        from rescue_cli.launch import is_finished

        if not is_finished(self.folder / name):
            if self._left() <= 0:
                raise _BudgetOver
            common.note(
                f"{name}: begins; the budget leaves {duration(self._left())} before the last run"
            )
        return train_here(self.folder / name, recipe, self.device, None, self.workers)

    def _left(self) -> float:
        """Seconds, less what the final run will take."""
        epoch, besides = self._cost()
        spent = time.monotonic() - self.begun
        return self.seconds - spent - besides - epoch * float(self.recipe.train.epochs)

    def _cost(self) -> tuple[float, float]:
        """Seconds of an epoch's steps, and of a run's start and evaluations; 0 before any is known.

        As the last range test had them.
        """
        from rescue_cli.results import RunDirectory, read_json, read_metrics

        run = RunDirectory(self.folder / "range-fine")
        lines = read_metrics(run.metrics)
        timed = [line for line in lines if line["kind"] == "train"]
        tests = [float(line["seconds"]) for line in lines if line["kind"] == "eval"]
        ended = self.folder.glob("*/result.json")  # a range test often diverges and has none
        start = max((float(read_json(file)["seconds_prepare"]) for file in ended), default=0.0)
        epoch = float(timed[-1]["seconds"] / timed[-1]["epoch"]) if timed else 0.0
        return epoch, start + EVALUATIONS * (sum(tests) / len(tests) if tests else 0.0)

    def _short_epochs(self) -> float:
        """What the budget leaves for each run, decided once and kept for every later call."""

        def decided() -> float:
            runs = tuning.planned_runs(self.recipe)
            epoch, besides = self._cost()
            affordable = (self._left() / runs - besides) / max(epoch, 1e-9)
            longest = SHORT * self.recipe.train.epochs
            epochs = round(min(longest, max(min(1.0, longest), affordable)), 3)
            common.note(f"short runs have {epochs:g} epochs")
            return epochs

        return float(self._once("short_epochs", decided))

    def _once(self, key: str, decide: Callable[[], Any]) -> Any:
        """What depends on the machine or the clock: decided once, kept for every later call."""
        from rescue_cli.results import read_json, write_json

        file = self.folder / "decided.json"
        kept = read_json(file) if file.exists() else {}
        if key not in kept:
            kept = {**kept, key: decide()}
            write_json(file, kept)
        return kept[key]

    @property
    def tuned(self) -> Recipe:
        """The recipe as it was given, with what was chosen."""
        tree = {**self.recipe.tree, "data": self.base.tree["data"], "eval": self.base.tree["eval"]}
        return from_tree(tree)

    @property
    def summary(self) -> dict[str, Any]:
        return {
            "recipe": self.base.name,
            "finished": self.finished,
            "held_out": self.recipe.data.options["holdout"],
            "decisions": [tuning.written(decision) for decision in self.decisions],
            "top1": None if self.final is None else self.final.accuracies[-1],
            "loss": None if self.final is None else finite(self.final.losses[-1]),
        }

    def write(self) -> None:
        """The tuned recipe, the decisions and the page that shows them."""
        from rescue_cli.report.tuned import page
        from rescue_cli.results import write_json, write_text

        write_text(self.folder / "tuned.yaml", self.tuned.to_yaml())
        write_json(self.folder / "tune.json", self.summary)
        title = f"{self.base.name}, tuned on {self.summary['held_out']} held-out training images"
        write_text(self.folder / "tune.html", page(title, self.decisions, self.final))


def _held_out(recipe: Recipe) -> int:
    """How many training images judge: as the user said, or a tenth. Raises `UsageError`."""
    from rescue_cli import build
    from rescue_cli.data import FACTS

    if given := int(recipe.data.options.get("holdout", 0)):
        return given
    whole = build.counted_images(recipe)
    classes = FACTS[recipe.data.name].classes or 1
    held = max(classes, round(HELD_OUT * whole / classes) * classes)
    if held >= whole:
        raise UsageError(
            f"data.holdout: {held} of {whole} training images leaves none to train on. "
            "Give data.holdout=N with a smaller N, or more images."
        )
    return held


def _measured(recipe: Recipe) -> Recipe:
    """Evaluated once over, without test-time augmentation."""
    return recipe.with_overrides(
        "eval.sets=null",
        f"eval.sizes=[{recipe.eval.sizes[0]}]",
        f"eval.crops=[{recipe.eval.crops[0]}]",
        "eval.tta=[none]",
    )


def _free_memory_mb(device: str) -> float:
    import os

    import torch

    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0]) / 2**20
    with contextlib.suppress(OSError, StopIteration):  # the page cache gives way
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("MemAvailable:")).split()[1]) / 2**10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


def _print(search: _Search) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("step", "chosen", "why"):
        table.add_column(heading, overflow="fold")
    for decision in search.decisions:
        table.add_row(decision.step, decision.chosen, decision.why)
    out = common.console()
    out.print(table)
    if search.final is not None:
        out.print(f"the whole procedure, on the held-out images: {search.final}")
    out.print(f"{search.folder}/tuned.yaml, and {search.folder}/tune.html for what was seen")
