"""Writes run directories as `rescue train` leaves them, with the accuracies a test asks for.

What a comparison says of two sweeps is judged by these, not by what a short training reached.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rescue_cli import recipe as recipes
from rescue_cli.batch import Measurement
from rescue_cli.build.evaluation import describe_protocol
from rescue_cli.errors import DivergedError, RescueError
from rescue_cli.metrics.names import measurement_stem
from rescue_cli.recipe import Recipe, steps_per_epoch, total_steps
from rescue_cli.rundir import RunDirectory
from rescue_cli.runs.environment import describe_environment
from rescue_cli.runs.failure import record_failure
from rescue_cli.sections.data import FACTS
from rescue_cli.sections.task.classification import ClassificationResult

IMAGES = 1000  # as many as fashion-mini's test set has
SECONDS = 1.5  # of training an epoch
OWN_TASTE = 0.1  # how far the networks differ in which images are hard, 0 to 1

MAIN = ("top1", "top5", "balanced_accuracy", "loss", "count", "protocol")

Tops = float | Mapping[str, float]  # of the main set, or by set, or by set and TTA: `val flip`


def made_sweep(
    folder: Path,
    tops: Mapping[int, Tops],
    *,
    recipe: str = "quickstart",
    overrides: Sequence[str] = (),
    images: int | Mapping[str, int] | None = None,
    losses: Mapping[int, float] | None = None,
    diverged: Mapping[int, str] | None = None,
) -> Path:
    """`rescue seed-sweep --out FOLDER`: a run for each seed, with its top-1 in percent.

    `diverged`: the seeds that failed so, by their message.
    """
    for seed, top1 in tops.items():
        made_run(
            folder / f"seed-{seed}", top1, seed=seed, recipe=recipe, overrides=overrides,
            images=images, loss=None if losses is None else losses[seed],
        )  # fmt: skip
    for seed, message in (diverged or {}).items():
        made_failure(
            folder / f"seed-{seed}", DivergedError(message), seed=seed, recipe=recipe,
            overrides=overrides,
        )  # fmt: skip
    return folder


def made_run(
    folder: Path,
    top1: Tops,
    *,
    seed: int = 0,
    recipe: str = "quickstart",
    overrides: Sequence[str] = (),
    images: int | Mapping[str, int] | None = None,
    loss: float | None = None,
    curve: Mapping[float, float] | None = None,
    seconds: float = SECONDS,
) -> Path:
    """`rescue train --out FOLDER`: a finished run with its top-1, to the nearest image.

    images: of each test set; those of `data.subset` where it is given, else 1,000.
    loss:   the mean test loss of the main set.
    curve:  the main top-1 by epoch, until the last epoch; a curve that flattens out by itself.
    """
    whole = _begun(folder, recipe, (*overrides, f"train.seed={seed}"))
    run = RunDirectory(folder)
    tops = top1 if isinstance(top1, Mapping) else {"test": top1}
    entries, arrays = [], []
    for number, (name, percent) in enumerate(tops.items()):
        set_name, _, tta = name.partition(" ")
        count = images.get(set_name) if isinstance(images, Mapping) else images
        text = _predictions(whole, set_name, percent, seed, count or _images(whole))
        if loss is not None and number == 0 and text.losses is not None:
            text.losses[:] *= loss / text.losses.mean()
        entries.append(_entry(whole, set_name, tta or whole.eval.ttas[0], text))
        arrays.append(text.arrays([str(label) for label in range(_classes(whole))]))
    for entry, each in zip(entries, arrays, strict=True):
        file = run.predictions(measurement_stem(entry, entries))
        file.parent.mkdir(exist_ok=True)
        np.savez_compressed(file, **each)
    per_epoch = steps_per_epoch(whole.train, _training_images(whole))
    steps = total_steps(whole.train, per_epoch)
    if curve is None:
        curve = _flattening(entries[0]["top1"], steps / per_epoch)
    lines = _lines(entries, curve, per_epoch, seconds, whole.eval.tta_while_training)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained = seconds * steps / per_epoch
    result = {
        "run": str(folder),
        "recipe": whole.name,
        "seed": seed,
        **{key: entries[0][key] for key in MAIN},
        "epochs": steps / per_epoch,
        "steps": steps,
        "seconds_train": trained,
        "seconds_prepare": 1.0,
        "seconds_eval": 0.5,
        "images_per_second": round(steps * whole.train.batch_size / trained, 1),
        "peak_memory_mb": None,
        "parameters": 26268,
        "sets": entries,
        "best": {"top1": entries[0]["top1"], "step": steps, "chosen_on": "the test set"},
        "replaced_images": 0,
        "corrupt_files": [],
        "skipped_steps": 0,
    }
    run.result.write_text(json.dumps(result, indent=1) + "\n")
    return folder


def made_failure(
    folder: Path,
    error: RescueError,
    *,
    seed: int = 0,
    recipe: str = "quickstart",
    overrides: Sequence[str] = (),
) -> Path:
    """A run that ended with an error: no result, and the word that its worker left."""
    _begun(folder, recipe, (*overrides, f"train.seed={seed}"))
    with contextlib.suppress(type(error)), record_failure(RunDirectory(folder)):
        raise error
    return folder


def _begun(folder: Path, recipe: str, overrides: tuple[str, ...]) -> Recipe:
    """What is in a run's folder before it trains."""
    whole = recipes.load(recipe, list(overrides))
    run = RunDirectory(folder)
    folder.mkdir(parents=True)
    run.recipe.write_text(whole.to_yaml())
    run.command.write_text(f"rescue train --recipe {recipe} --out {folder}\n")
    run.environment.write_text(json.dumps({**_machine(), "seed": whole.train.seed}, indent=1))
    return whole


@cache
def _machine() -> dict[str, Any]:
    return describe_environment(
        verb="train", seed=0, device="cpu", procs=1, workers=None, cache=Path(".cache")
    )


def _classes(recipe: Recipe) -> int:
    return FACTS[recipe.data.name].classes or 10


def _subset(recipe: Recipe) -> tuple[int, int] | None:
    found = recipe.tree["data"].get("subset")
    return None if found is None else (found[0], found[1])


def _images(recipe: Recipe) -> int:
    subset = _subset(recipe)
    return IMAGES if subset is None else subset[1]


def _training_images(recipe: Recipe) -> int:
    subset = _subset(recipe)
    return subset[0] if subset is not None else FACTS[recipe.data.name].images or 6000


def _predictions(
    recipe: Recipe, set_name: str, percent: float, seed: int, count: int
) -> ClassificationResult:
    """Right on so many of the images, those that most networks find easy first."""
    classes = _classes(recipe)
    theirs, own = np.random.default_rng(list(set_name.encode())), np.random.default_rng([seed, 1])
    labels = theirs.integers(0, classes, count)
    hard = (1 - OWN_TASTE) * theirs.random(count) + OWN_TASTE * own.random(count)
    wrong = hard.argsort().argsort() >= round(percent * count / 100)
    # the classes in turn, from the label on or from the next one
    top = (labels[:, None] + wrong[:, None] + np.arange(min(5, classes))) % classes
    probabilities = 0.5 + 0.5 * own.random(count) * ~wrong
    losses = np.where(wrong, 2.5, -np.log(probabilities))
    return ClassificationResult(labels, losses, probabilities, 10 * probabilities, top)


def _entry(recipe: Recipe, set_name: str, tta: str, text: ClassificationResult) -> dict[str, Any]:
    """As `result.json` lists it."""
    at = Measurement(recipe.eval.sizes[0], recipe.eval.crops[0], tta)
    resident = FACTS[recipe.data.name].size is not None
    return {
        "set": set_name,
        "size": at.size,
        "crop": at.crop,
        **text.metrics,
        "loss": text.loss,
        "count": text.count,
        **text.by_class([str(label) for label in range(_classes(recipe))]),
        "protocol": describe_protocol(recipe, set_name, at, resident),
    }


def _flattening(top1: float, epochs: float) -> dict[float, float]:
    """Each epoch halves what is left of the way."""
    ends = [*map(float, range(1, int(np.ceil(epochs)))), epochs]
    return {end: top1 * (1 - 0.5**end) for end in ends[:-1]} | {epochs: top1}


def _lines(
    entries: Sequence[Mapping[str, Any]],
    curve: Mapping[float, float],
    per_epoch: int,
    seconds: float,
    tta: str,
) -> list[dict[str, Any]]:
    """As `metrics.jsonl` has them; the other measurements move with the main one."""
    found: list[dict[str, Any]] = []
    for epoch, main in curve.items():
        step = round(epoch * per_epoch)
        found.append(
            {
                "kind": "train", "step": step, "epoch": epoch, "loss": 2.3 - main / 50, "lr": 0.1,
                "momentum": None, "seconds": seconds * epoch, "images_per_second": 1000.0,
                "waiting": 0.0,
            }
        )  # fmt: skip
        for entry in entries:
            if epoch != max(curve) and entry["protocol"]["tta"] != tta:
                continue
            share = main / entries[0]["top1"] if entries[0]["top1"] else 1.0
            kept = {key: entry[key] for key in ("set", "size", "crop", "loss", "count")}
            tops = {key: min(100.0, share * entry[key]) for key in ("top1", "top5")}
            found.append(
                {
                    "kind": "eval", "step": step, "epoch": epoch, **kept, **tops,
                    "tta": entry["protocol"]["tta"], "seconds": 0.2,
                }
            )  # fmt: skip
    return found
