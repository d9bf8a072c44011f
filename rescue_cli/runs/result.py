"""The files that a run writes at its end: weights, predictions, samples, and result.json."""

import csv
import io
import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rescue_cli import distributed
from rescue_cli.batch import Measurement
from rescue_cli.build.evaluation import describe_images, describe_protocol
from rescue_cli.build.weights import describe_preprocessing
from rescue_cli.engine.evaluate import EvalResult, EvalSet, Evaluator
from rescue_cli.engine.step import Step
from rescue_cli.metrics.names import finite_or_none, measurement_stem
from rescue_cli.recipe import Recipe
from rescue_cli.recipe.changes import without_places
from rescue_cli.recipe.own import describe_code
from rescue_cli.rundir import CROSS_VALIDATED, RunDirectory, read_json, write_atomically
from rescue_cli.runs import overlays
from rescue_cli.sections.augment.pipeline import Normalise
from rescue_cli.sections.data import Dataset, Files, Images, Split
from rescue_cli.sections.model.weight_files import serialize

SAMPLES = 16
EXAMPLES = 8


@dataclass(frozen=True)
class Clock:
    """Seconds of each part of a run, and how many images its longest part saw."""

    images: int
    prepare: float
    train: float
    evaluate: float


def collect_result(
    run: RunDirectory,
    recipe: Recipe,
    data: Dataset,
    model: nn.Module,
    measured: Mapping[str, Mapping[Measurement, EvalResult]],
    clock: Clock,
    memory: Mapping[str, float | None],
) -> dict[str, Any]:
    """Writes the predictions; returns the keys of `result.json` that train and eval share."""
    entries = _write_predictions(run, recipe, data, measured)
    first = next(iter(next(iter(measured.values())).values()))
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
        **memory,
        "parameters": sum(p.numel() for p in model.parameters()),
        **({"notes": data.notes} if data.notes else {}),
        **({"code": describe_code(recipe.code)} if recipe.code else {}),
        "sets": entries,
    }


def process_peak_mb() -> float:
    """The peak memory of this process since it started, in 2^20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure_peak_memory(device: torch.device, before: float) -> dict[str, float | None]:
    """The largest peak of all processes in 2^20 bytes, by key of the result.

    `peak_memory_mb` is of the tensors on the GPU, `peak_reserved_mb` of all that torch's allocator
    holds for them. On a CPU the first is of the process; one that works on several runs has the
    peak of the largest: None where this run did not rise above `before`, the peak when it began.
    """
    if device.type == "cuda":
        peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        largest = distributed.max_over_ranks([peak / 2**20 for peak in peaks], device)
        keys = ("peak_memory_mb", "peak_reserved_mb")
        return {key: round(peak, 1) for key, peak in zip(keys, largest, strict=True)}
    now, earlier = distributed.max_over_ranks([process_peak_mb(), before], device)
    return {"peak_memory_mb": round(now, 1) if now > earlier else None}


def write_weights(run: RunDirectory, recipe: Recipe, model: nn.Module, data: Dataset) -> None:
    """Writes the weights that the result is of, as safetensors whose metadata has class names,
    preprocessing and recipe, and no path of this machine: the file is given to others.
    """
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    metadata = {
        "format": "pt",
        "architecture": recipe.model.name,
        "classes": json.dumps(data.classes),
        **describe_preprocessing(recipe),
        "recipe": without_places(recipe).to_yaml(),
    }
    content = serialize(tensors, metadata)
    write_atomically(run.weights, lambda file: file.write(content))


def write_cross_validation(
    run: RunDirectory, data: Dataset, log_probabilities: NDArray[np.float64]
) -> None:
    """Writes what classifiers that were fitted without a training image say of it."""
    predicted = log_probabilities.argmax(1)
    top = np.exp(log_probabilities.max(1))
    _write_image_table(
        run.image_table(CROSS_VALIDATED),
        data.train,
        data.classes,
        data.train.labels,
        predicted,
        top,
    )


def write_samples(run: RunDirectory, step: Step, normalise: Normalise, data: Dataset) -> None:
    """The first images of step 0 as the network sees them, back in pixels, with their labels."""
    replaced = step.feed.replaced
    step.feed.start(0)
    batch = step.augment(next(iter(step.feed.micro_batches(0))))
    if data.train.annotated:
        images = overlays.draw_batch(batch, normalise.undo, SAMPLES)
        names = [""] * len(images)
    else:
        images = normalise.undo(batch.images[:SAMPLES]).cpu().numpy()
        labels = batch.targets[:SAMPLES].cpu().numpy()
        names = [data.classes[int(label)] for label in labels]
    _write_pictures(run.samples, images, names)
    step.feed.waited, step.feed.replaced = 0.0, replaced  # training sees step 0 again


def write_examples(
    run: RunDirectory, model: nn.Module, evaluator: Evaluator, tests: Mapping[str, EvalSet]
) -> None:
    """The first images of the main test set with their boxes or masks, annotated and predicted."""
    main = next(iter(tests.values()))
    if predictions := evaluator.predict_examples(model, main.feed, EXAMPLES):
        _write_pictures(run.examples, *overlays.draw_predictions(predictions))


def _write_pictures(path: Path, images: Any, labels: list[str]) -> None:
    arrays = {"images": images, "labels": np.array(labels)}
    write_atomically(path, lambda file: np.savez(file, **arrays))


def _write_predictions(
    run: RunDirectory,
    recipe: Recipe,
    data: Dataset,
    measured: Mapping[str, Mapping[Measurement, EvalResult]],
) -> list[dict[str, Any]]:
    """Writes the predictions of each measurement; returns their entries in the result."""
    given = read_json(run.environment).get("protocol", {})  # of weights without a recipe
    rows = [(name, at, one) for name, each in measured.items() for at, one in each.items()]
    entries = []
    for name, measurement, predictions in rows:
        # `real` is of the main set's images
        images = data.tests.get(name) or next(iter(data.tests.values()))
        entry = {
            "set": name,
            "size": measurement.size,
            "crop": measurement.crop,
            **predictions.metrics,
            "loss": finite_or_none(predictions.loss),
            "count": predictions.count,
            **predictions.by_class(data.classes),
            "protocol": {
                **describe_protocol(recipe, name, measurement, isinstance(images, Images)),
                **describe_images(recipe, images, data.train),
                **given,
            },
        }
        entries.append(entry)
    for entry, (_, _, predictions) in zip(entries, rows, strict=True):
        stem = measurement_stem(entry, entries)
        arrays = predictions.arrays(data.classes)
        if "top" in arrays:
            split = data.tests.get(entry["set"]) or next(iter(data.tests.values()))
            labels, (top, most) = arrays["labels"], (arrays["top"][:, 0], arrays["probabilities"])
            _write_image_table(run.image_table(stem), split, data.classes, labels, top, most)
        # a thousand classes' confusion is 8 MB, almost all of it zero
        write_atomically(
            run.predictions(stem),
            lambda file, a=arrays: np.savez_compressed(file, **a),  # type: ignore[misc]
        )
    return entries


def _write_image_table(
    path: Path,
    split: Split,
    classes: Sequence[str],
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    probabilities: NDArray[np.float64],
) -> None:
    """A line for each image: file (its index where it has none), label, prediction, probability.

    Several right labels, (n, most) padded with -1, are joined by `|`.
    """
    files = split if isinstance(split, Files) else split.files
    of_images = labels if labels.ndim > 1 else labels[:, None]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "label", "predicted", "probability"])
    for index, (right, top, probability) in enumerate(
        zip(of_images, predicted, probabilities, strict=True)
    ):
        name = str(index) if files is None else files.names.place(index)
        label = "|".join(classes[one] for one in right if one >= 0)
        writer.writerow([name, label, classes[top], f"{probability:.6f}"])
    content = text.getvalue().encode("utf-8", "backslashreplace")
    write_atomically(path, lambda file: file.write(content))
