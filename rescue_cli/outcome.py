"""What a run leaves behind: weights, predictions, samples and the result's numbers."""

import json
import resource
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rescue_cli import build, distributed, overlays
from rescue_cli.augment.pipeline import Normalise
from rescue_cli.batch import Measurement
from rescue_cli.data import Dataset, Images
from rescue_cli.engine.evaluate import EvalSet, Evaluates, Measured
from rescue_cli.engine.scenes import SceneEvaluator
from rescue_cli.engine.step import Step
from rescue_cli.recipe import Recipe
from rescue_cli.results import RunDirectory, read_json, write_whole
from rescue_cli.scene import SceneBatch

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
    peak_memory_mb: float,
) -> dict[str, Any]:
    """Stores the predictions; returns the keys of `result.json` that train and eval share."""
    entries = _write_predictions(run, recipe, data, found)
    first = next(iter(next(iter(found.values())).values()))
    main = {k: entries[0][k] for k in (*first.metrics, "loss", "count", "protocol")}
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


def peak_memory_mb(device: torch.device) -> float:
    """The largest of all processes: of the device where it counts, else of the process; 2^20 B."""
    if device.type == "cuda":
        mine = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return round(distributed.max_over_ranks([mine], device)[0], 1)


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
    step.feed.start(0)
    batch = step.augment(next(iter(step.feed.slices(0))))
    if isinstance(batch, SceneBatch):
        images = overlays.samples(batch, normalise.undo, SAMPLES)
        names = [""] * len(images)
    else:
        images = normalise.undo(batch.images[:SAMPLES]).cpu().numpy()
        labels = batch.targets[:SAMPLES].cpu().numpy()
        names = [data.classes[int(label)] for label in labels]
    _write_pictures(run.samples, images, names)
    step.feed.waited = 0.0


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
    """Stores each set's predictions and returns its entry in the result."""
    entries = []
    told = read_json(run.environment).get("protocol", {})  # of weights that carry no recipe
    for name, measured in found.items():
        for measurement, predictions in measured.items():
            arrays = predictions.arrays(data.classes)
            # a thousand classes' confusion is 8 MB, almost all of it zero
            write_whole(
                run.predictions(_stem(name, measurement, measured)),
                lambda file, a=arrays: np.savez_compressed(file, **a),  # type: ignore[misc]
            )
            entries.append(
                {
                    "set": name,
                    "size": measurement.size,
                    "crop": measurement.crop,
                    **predictions.metrics,
                    "loss": predictions.loss,
                    "count": predictions.count,
                    "protocol": {
                        **build.protocol(
                            recipe, name, measurement, isinstance(data.tests.get(name), Images)
                        ),
                        **told,
                    },
                }
            )
    return entries


def _stem(name: str, measurement: Measurement, among: Collection[Measurement]) -> str:
    """The set's name, and what tells this measurement from the others: `val-288px@1-flip`."""
    view = f"-{measurement.view}" if len({other.view for other in among}) > 1 else ""
    tta = f"-{measurement.tta}" if len({other.tta for other in among}) > 1 else ""
    return f"{name}{view}{tta}"
