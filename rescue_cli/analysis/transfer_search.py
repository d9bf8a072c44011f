"""Transfer within a time budget: a linear probe, larger images, and fine-tuning where it pays."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescue_cli.analysis.sides import correct_predictions, load_predictions
from rescue_cli.analysis.stats import LEVEL, mcnemar_test
from rescue_cli.errors import DataError, StoppedError, UsageError
from rescue_cli.formatting import format_duration
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import given_keys, is_given
from rescue_cli.rundir import RunDirectory, read_json, write_json
from rescue_cli.runs.console import note
from rescue_cli.runs.single import time_limit, train_part

# Keys that are decided here, or mean another thing to a fit than to training
DECIDED = (
    "data.holdout", "data.fold", "optim", "schedule", "train.epochs", "train.steps_per_epoch",
    "train.batch_size", "train.device_batch_size", "eval.every",
)  # fmt: skip
LARGER = (32, 64)  # pixels: sizes that are tried above the recipe's
SIZES_SHARE = 0.25  # of the budget that trying larger images may take
BACKWARD = 3.5  # forward passes that training on an image costs, with its augmentation
SPARE = 1.25  # what is planned may take this much longer
SLOWER = 1.1  # so much longer another call may take for the same
FEWEST_EPOCHS, MOST_EPOCHS = 3, 30  # of fine-tuning
LARGEST_BATCH, SMALLEST_BATCH, UPDATES = 64, 8, 8  # images; steps that an epoch should have


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises `UsageError` for a key that the search would replace."""
    keys = given_keys(overrides)
    for key in DECIDED:
        if is_given(key, keys):
            raise UsageError(
                f"{key}: a transfer without --recipe decides this by itself. Remove it, or give "
                "--recipe transfer-probe, transfer-layerwise or another."
            )


def sizes_to_try(probe: Recipe) -> list[int]:
    """The sizes of test images among which the search chooses, where network and time allow."""
    base = probe.eval.sizes[0]
    return [base, *(base + more for more in LARGER)]


@dataclass
class TransferSearch:
    """Chooses how to train on a data set; a later call resumes it in the same folder.

    All choices are made on held-out training images, and the test set is read once, at the end.
    What depends on the clock is decided once and kept in the folder.

    Args:
        probe: The recipe that fits a head.
        fine: The recipe that trains the whole network.
        end: Of the budget (time.monotonic).
    """

    probe: Recipe
    fine: Recipe
    folder: Path
    device: str
    workers: int | None
    minutes: float
    end: float
    told: set[str] = field(default_factory=set)  # notes on the data

    def run(self, final: Path) -> dict[str, Any]:
        """Trains the final run in the directory `final`; returns what was decided and why."""
        from rescue_cli.build.feeds import list_dataset
        from rescue_cli.sections.data.rgb import Reading
        from rescue_cli.sections.data.splits import Files, suggest_holdout
        from rescue_cli.sections.data.stream_eval import refuse_broken

        data = list_dataset(self.probe)
        self.images, self.tests = len(data.train), sum(map(len, data.tests.values()))
        counts = np.bincount(data.train.labels, minlength=len(data.classes))
        smallest = int(counts[counts > 0].min())
        self.held_out = suggest_holdout(data.train.labels)
        self._check_same_images(final)
        for split in data.tests.values():
            if isinstance(split, Files) and not RunDirectory(final).finished:
                refuse_broken(split, Reading.of(self.probe.data))
        for line in data.notes:
            note(line)
        self.told.update(data.notes)
        self._note_start(
            final,
            f"{self.images:,} training images of {len(data.classes)} classes (the smallest has "
            f"{smallest:,}), {self.tests:,} test images",
        )
        if smallest < 3:
            note("the smallest class has fewer than 3 images to learn from: no sizes are compared")
            candidates = ["optim.candidates=1"] if smallest < 2 else []
            self._train(final, self.probe.with_overrides(*candidates))
            return {"chosen": "probe", "size": self.probe.eval.sizes[0]}
        self._decide_once("budget", lambda: {"minutes": self.minutes})
        chosen = self._decide_once("size", self._choose_size)
        size = chosen["size"]
        fine = self._decide_once("fine-tuning", lambda: self._judge_fine_tuning(size))
        if pays := fine.get("pays", False):
            self._train(final, self._fine_recipe(fine["epochs"], [size], held_out=False))
        else:
            self._note_features(final, size, self.images + self.tests)
            self._train(final, self.probe.with_overrides(f"eval.sizes=[{size}]"))
        return {**chosen, "fine_tuning": fine, "chosen": "fine-tuning" if pays else "probe"}

    def _check_same_images(self, final: Path) -> None:
        """Raises `DataError` where an earlier call chose or trained on other images."""
        from rescue_cli.build.identity import IdentityCache, find_fault, read_record

        look, held_out = IdentityCache(), self._held_out(self.probe)
        probes = [self._probe_path(size) for size in sizes_to_try(self.probe)]
        for path in (final, *probes):
            run = RunDirectory(path)
            if run.finished and (before := read_record(run)) is not None:
                now = replace(look(self.probe if path == final else held_out), weights={})
                if (fault := find_fault(run, before, now)) is not None:
                    raise DataError(fault)

    def _note_start(self, final: Path, images: str) -> None:
        """What there is to work on, and in which time; or that it was done before."""
        file = self.folder / "search" / "budget.json"
        earlier = read_json(file)["minutes"] if file.exists() else None
        if RunDirectory(final).finished:
            made = "" if earlier is None else f" with --minutes {earlier:g}"
            note(images)
            note(f"{final}: finished before{made}; it is not trained again")
        elif earlier is None or earlier == self.minutes:
            least = ": only what must be done; no larger images, no fine-tuning"
            note(f"{images}; {self.minutes:g} min (--minutes){'' if self.minutes else least}")
        else:
            note(images)
            note(f"{final}: begun with --minutes {earlier:g}; what was decided stays")
        if earlier not in (None, self.minutes):
            note(f"for --minutes {self.minutes:g} give a new --out")

    def _note_features(self, path: Path, size: int, images: int) -> None:
        """What is about to be computed, and how much of the budget is used."""
        if RunDirectory(path).finished:
            return
        used = format_duration(max(0.0, 60 * self.minutes - (self.end - time.monotonic())))
        of_budget = f"; {used} of {self.minutes:g} min used" if self.minutes else ""
        note(f"{size} px: computing the features of {images:,} images{of_budget}")

    def _decide_once(self, name: str, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What was decided before in this folder, else now; kept there."""
        file = self.folder / "search" / f"{name}.json"
        if not file.exists():
            write_json(file, decide())
        return read_json(file)

    def _train(self, path: Path, recipe: Recipe) -> None:
        # Workers would take the network's cores: on two cores, the features of 398 photographs
        # took 15 s with two workers and 10 s without
        workers = 0 if self.workers is None and self.device == "cpu" else self.workers
        train_part(path, recipe, self.device, None, workers, self.folder, self.told)

    # --- the size of test images ---

    def _choose_size(self) -> dict[str, Any]:
        """The size with the lowest loss on images that the head was not fitted to."""
        base = self.probe.eval.sizes[0]
        sizes = [base]
        for size in sizes_to_try(self.probe)[1:]:
            if hindrance := self._hindrance(size):
                note(f"{size} px: not tried; {hindrance}")
            else:
                sizes.append(size)
        found: dict[str, Any] = {}
        for size in sizes:
            seconds = self._extraction_seconds(size) if found else 0.0
            if size != base and seconds > SIZES_SHARE * 60 * self.minutes:
                note(f"{size} px: not tried; it would take {format_duration(seconds)}")
                continue
            path = self._probe_path(size)
            self._note_features(path, size, self.images)
            self._train(path, self._held_out(self.probe, f"eval.sizes=[{size}]"))
            found[str(size)] = summary = _summarise(path)
            note(f"{size} px: {summary['text']}")
        best = min(found, key=lambda size: float(found[size]["loss"]))
        if len(found) > 1:
            note(
                f"{best} px chosen: {found[best]['loss']:.4f} is the lowest of these losses, each "
                "the mean of -log p of an image's label"
            )
        return {"size": int(best), "probes": found}

    def _hindrance(self, size: int) -> str:
        """Why images larger than the recipe's cannot be tried; empty where they can."""
        from rescue_cli.build.networks import accepts_size

        if self.probe.data.resident:
            return "data.resident keeps the images at one size"
        return "" if accepts_size(self.probe, size) else "the network takes images of one size"

    def _probe_path(self, size: int) -> Path:
        return self.folder / "search" / f"probe-{size}"

    def _extraction_seconds(self, size: int) -> float:
        """How long the features of the training images take, by the first probe."""
        base = self.probe.eval.sizes[0]
        result = read_json(RunDirectory(self._probe_path(base)).result)
        return float(result["seconds_prepare"]) * (size / base) ** 2

    def _held_out(self, recipe: Recipe, *overrides: str) -> Recipe:
        return recipe.with_overrides(f"data.holdout={self.held_out}", *overrides)

    # --- fine-tuning ---

    def _judge_fine_tuning(self, size: int) -> dict[str, Any]:
        """Whether held-out images say that fine-tuning beats the probe, by more than noise."""
        probe = correct_predictions(load_predictions(self._probe_path(size)))
        if not can_pay(probe):
            note(
                f"fine-tuning: not tried: the probe has {probe.sum()} of {len(probe)} held-out "
                "images right, and even all of them right would be no gain beyond noise"
            )
            return {"probe_right": int(probe.sum()), "count": len(probe), "pays": False}
        planned = self._decide_once("epochs", lambda: {"epochs": self._affordable_epochs(size)})
        epochs = planned["epochs"]
        path = self.folder / "search" / "fine-tuning"
        if epochs < FEWEST_EPOCHS:
            note(
                f"fine-tuning: not tried: {FEWEST_EPOCHS} epochs, twice, take longer than is left. "
                f"To try it: about --minutes {self._minutes_needed(size)}, with a new --out"
            )
            return {"epochs": epochs}
        try:
            with time_limit(self.end - time.monotonic()):
                self._train(path, self._fine_recipe(epochs, [size], held_out=True))
        except StoppedError:
            if time.monotonic() < self.end:
                raise
            note("fine-tuning: not finished in time; more --minutes and a new --out would judge it")
            return {"epochs": epochs}
        if not RunDirectory(path).finished:  # it diverged
            return {"epochs": epochs, "pays": False}
        fine = correct_predictions(load_predictions(path))
        only_probe, only_fine, p = mcnemar_test(probe, fine)
        pays = only_fine > only_probe and p < LEVEL
        verdict = "it pays" if pays else "no gain beyond noise, so the probe stays"
        note(
            f"fine-tuning, {epochs} epochs: {fine.sum()} of {len(fine)} held-out images right, the "
            f"probe {probe.sum()}; {only_fine} gained, {only_probe} lost (McNemar p = {p:.2g}): "
            f"{verdict}"
        )
        return {
            "epochs": epochs, "right": int(fine.sum()), "probe_right": int(probe.sum()),
            "count": len(fine), "p": p, "pays": bool(pays),
        }  # fmt: skip

    def _epoch_seconds(self, size: int) -> float:
        return BACKWARD * self._extraction_seconds(self.fine.data.train_size or size)

    def _affordable_epochs(self, size: int) -> int:
        """The epochs of two trainings, the one that is judged and the final one, that fit."""
        left = self.end - time.monotonic() - self._final_seconds(size)
        epochs = math.floor(left / SPARE / 2 / self._epoch_seconds(size))
        return max(0, min(MOST_EPOCHS, epochs))

    def _final_seconds(self, size: int) -> float:
        """How long the features for the last fit take."""
        return self._extraction_seconds(size) * (1 + self.tests / self.images)

    def _minutes_needed(self, size: int) -> int:
        """The budget of a new call that would try fine-tuning: what the probes took, with larger
        sizes that it would try as well, the last features and the fewest epochs, twice.
        """
        seconds = self._final_seconds(size) + 2 * FEWEST_EPOCHS * self._epoch_seconds(size) * SPARE
        for each in sizes_to_try(self.probe):
            run = RunDirectory(self._probe_path(each))
            if run.finished:
                result = read_json(run.result)
                parts = ("seconds_prepare", "seconds_train", "seconds_eval")
                seconds += sum(float(result[part]) for part in parts)
            elif not self._hindrance(each):
                more = self._extraction_seconds(each)
                seconds += more if more <= SIZES_SHARE * seconds else 0.0
        return math.ceil(seconds * SLOWER / 60)

    def _fine_recipe(self, epochs: int, sizes: list[int], *, held_out: bool) -> Recipe:
        """Fine-tuning from the probe's head (Kumar et al. 2022), evaluated at its end."""
        batch = 2 ** math.floor(math.log2(max(1, self.images / UPDATES)))
        batch = max(SMALLEST_BATCH, min(LARGEST_BATCH, batch))
        batch = min(batch, self.images - self.held_out)  # a step has at most every image once
        unfit = self.device == "cpu" and self.fine.train.precision == "float16"
        precision = ["train.precision=float32"] if unfit else []
        recipe = self.fine.with_overrides(
            f"model.weights={self._probe_path(self.probe.eval.sizes[0])}",
            "model.new_head=false",
            f"train.epochs={epochs}",
            f"schedule.warmup_epochs={epochs / 10:g}",
            f"train.batch_size={batch}",
            f"train.device_batch_size={batch}",
            f"eval.sizes={sizes}",
            f"eval.every={epochs}",
            f"eval.batch_size={self.probe.eval.batch_size}",
            *precision,
        )
        return self._held_out(recipe) if held_out else recipe


def can_pay(probe: NDArray[np.bool_]) -> bool:
    """Whether all held-out images right would be more than the probe's by more than noise."""
    _, _, p = mcnemar_test(probe, np.ones_like(probe))
    return p < LEVEL


def _summarise(path: Path) -> dict[str, Any]:
    """Images that a probe was not fitted to: by cross-validation and held out, taken together."""
    result: Mapping[str, Any] = read_json(RunDirectory(path).result)
    crossed = result["fit"]["cross_validation"]
    count = crossed["count"] + result["count"]
    right = round((crossed["top1"] * crossed["count"] + result["top1"] * result["count"]) / 100)
    loss = (crossed["loss"] * crossed["count"] + result["loss"] * result["count"]) / count
    text = f"{right} of {count} right, each by a classifier fitted without it; loss {loss:.4f}"
    return {"right": right, "count": count, "loss": loss, "text": text}
