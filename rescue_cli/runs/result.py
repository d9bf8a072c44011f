"""What a run leaves behind: weights, predictions, samples and the result's numbers."""

import json
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rescue_cli import distributed
from rescue_cli.batch import Measurement
from rescue_cli.build.evaluation import describe_protocol
from rescue_cli.engine.evaluate import EvalSet, Evaluates, Measured
from rescue_cli.engine.scenes import SceneEvaluator
from rescue_cli.engine.step import Step
from rescue_cli.recipe import Recipe
from rescue_cli.rundir import RunDirectory, finite, read_json, stem, write_whole
from rescue_cli.runs import overlays
from rescue_cli.sections.annotations import SceneBatch
from rescue_cli.sections.augment.pipeline import Normalise
from rescue_cli.sections.data import Dataset, Images

SAMPLES = 16
EXAMPLES = 8


@dataclass(frozen=True)
class Clock:
    """Seconds of each part of a run, and how many images its longest part saw."""

    images: int
    prepare: float
    train: float
    evaluate: float


def result(
    run: RunDirectory,
    recipe: Recipe,
    data: Dataset,
    model: nn.Module,
    found: Mapping[str, Mapping[Measurement, Measured]],
    clock: Clock,
    peak_memory_mb: float | None,
) -> dict[str, Any]:
    """Stores the predictions; returns the keys of `result.json` that train and eval share."""
    entries = _write_predictions(run, recipe, data, found)
    first = next(iter(next(iter(found.values())).values()))
    keys = (*first.metrics, "balanced_accuracy", "loss", "count", "protocol")
    main = {key: entries[0][key] for key in keys if key in entries[0]}
    return {
        "run": str(run.path),
        "recipe": recipe.name,
        "seed": recipe.train.seed if "model" not in main["protocol"] else None,
        **main,
        "epochs": None,
        "steps": None,
        "seconds_train": round(clock.train, 3),
        "seconds_prepare": round(clock.prepare, 3),
        "seconds_eval": round(clock.evaluate, 3),
        "images_per_second": round(clock.images / max(clock.train or clock.evaluate, 1e-9), 1),
        "peak_memory_mb": peak_memory_mb,
        "parameters": sum(p.numel() for p in model.parameters()),
        **({"notes": data.notes} if data.notes else {}),
        "sets": entries,
    }


def process_peak_mb() -> float:
    """The most memory that this process ever had, in 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def peak_memory_mb(device: torch.device, before: float) -> float | None:
    """The largest of all processes: of the device where it counts, else of the process; 2^20 B.

    A process that works on several runs keeps the memory of the largest. None where the run did not
    rise above `before`, the peak that it found: what it needed itself is not known.
    """
    if device.type == "cuda":
        mine = torch.cuda.max_memory_allocated(device) / 2**20
        return round(distributed.max_over_ranks([mine], device)[0], 1)
    now, earlier = distributed.max_over_ranks([process_peak_mb(), before], device)
    return round(now, 1) if now > earlier else None


def write_weights(run: RunDirectory, recipe: Recipe, model: nn.Module, data: Dataset) -> None:
    """The weights that were reported, as safetensors with class names and recipe."""
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    metadata = {
        "format": "pt",
        "architecture": recipe.model.name,
        "classes": json.dumps(data.classes),
        "recipe": recipe.to_yaml(),
    }
    content = save(tensors, metadata)
    write_whole(run.weights, lambda file: file.write(content))


def write_samples(run: RunDirectory, step: Step, normalise: Normalise, data: Dataset) -> None:
    """The first images of step 0 as the network sees them, back in pixels, with their labels."""
    replaced = step.feed.replaced
    step.feed.start(0)
    batch = step.augment(next(iter(step.feed.micro_batches(0))))
    if isinstance(batch, SceneBatch):
        images = overlays.samples(batch, normalise.undo, SAMPLES)
        names = [""] * len(images)
    else:
        images = normalise.undo(batch.images[:SAMPLES]).cpu().numpy()
        labels = batch.targets[:SAMPLES].cpu().numpy()
        names = [data.classes[int(label)] for label in labels]
    _write_pictures(run.samples, images, names)
    step.feed.waited, step.feed.replaced = 0.0, replaced  # training sees step 0 again


def write_examples(
    run: RunDirectory, model: nn.Module, evaluator: Evaluates, tests: Mapping[str, EvalSet]
) -> None:
    """The first scenes of the main test set with what is there and what the network says."""
    if isinstance(evaluator, SceneEvaluator):
        main = next(iter(tests.values()))
        said = evaluator.examples(model, main.feed, EXAMPLES)
        _write_pictures(run.examples, *overlays.side_by_side(said))


def _write_pictures(path: Path, images: Any, labels: list[str]) -> None:
    arrays = {"images": images, "labels": np.array(labels)}
    write_whole(path, lambda file: np.savez(file, **arrays))


def _write_predictions(
    run: RunDirectory,
    recipe: Recipe,
    data: Dataset,
    found: Mapping[str, Mapping[Measurement, Measured]],
) -> list[dict[str, Any]]:
    """Stores the predictions of each measurement and returns its entry in the result."""
    told = read_json(run.environment).get("protocol", {})  # of weights that carry no recipe
    kept = [(name, at, one) for name, each in found.items() for at, one in each.items()]
    entries = []
    for name, measurement, predictions in kept:
        resident = isinstance(data.tests.get(name), Images)
        entry = {
            "set": name,
            "size": measurement.size,
            "crop": measurement.crop,
            **predictions.metrics,
            "loss": finite(predictions.loss),
            "count": predictions.count,
            **predictions.by_class(data.classes),
            "protocol": {**describe_protocol(recipe, name, measurement, resident), **told},
        }
        entries.append(entry)
    for entry, (_, _, predictions) in zip(entries, kept, strict=True):
        arrays = predictions.arrays(data.classes)
        # a thousand classes' confusion is 8 MB, almost all of it zero
        write_whole(
            run.predictions(stem(entry, entries)),
            lambda file, a=arrays: np.savez_compressed(file, **a),  # type: ignore[misc]
        )
    return entries
