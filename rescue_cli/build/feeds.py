"""A run's images: training micro-batches and test sets, from memory or from files."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rescue_cli.batch import Batch, View, to_device
from rescue_cli.build.networks import dtype_of
from rescue_cli.engine.evaluate import EvalFeed, EvalSet
from rescue_cli.engine.step import Feed
from rescue_cli.errors import DataError, UsageError
from rescue_cli.recipe import Recipe, schema, total_steps
from rescue_cli.sections.augment import Augment, Operation
from rescue_cli.sections.augment.pipeline import Normalise, Unchanged
from rescue_cli.sections.data import (
    Dataset,
    Features,
    Images,
    Location,
    Split,
    facts_of,
    load,
    normalisation,
)
from rescue_cli.sections.data.corrupt import TEST_IMAGE
from rescue_cli.sections.data.memory import Ahead, MemoryEvalFeed, MemoryFeed
from rescue_cli.sections.data.rgb import Reading
from rescue_cli.sections.data.stream import Cropping, FileFeed, TrainSamples, WholeImages
from rescue_cli.sections.data.stream_eval import EvalSamples, FileEvalFeed
from rescue_cli.sections.model import DataDependentInit

AHEAD_BYTES = 96 * 2**20  # images in memory that are augmented at once on a GPU, as uint8
CHUNK = 500  # images in memory at once: their patches are 100 MB at 32 px


@dataclass(frozen=True)
class Machine:
    """What the launcher decided: where this process computes, and with how many loader workers."""

    device: torch.device
    workers: int
    cache: Path


def load_dataset(
    recipe: Recipe, cache: Path, *, test_only: bool = False, classes: tuple[str, ...] = ()
) -> Dataset:
    """The recipe's images; `test_only` for an evaluation of weights trained on these `classes`."""
    data = load(recipe.data.name, recipe.data, cache, test_only=test_only, classes=classes)
    return data if test_only else _check_classes(recipe, data)


def list_dataset(recipe: Recipe) -> Dataset:
    """The recipe's data set with its files listed, not decoded; raises `DataError`."""
    return _check_classes(
        recipe, load(recipe.data.name, replace(recipe.data, resident=False), Path())
    )


def _check_classes(recipe: Recipe, data: Dataset) -> Dataset:
    """The data; raises `DataError` for images of one class, which teach a classifier nothing."""
    if len(data.classes) == 1 and not data.train.annotated:
        root = Location(recipe.data.name, recipe.data).train_root
        raise DataError(
            f"{root}: has one class ({data.classes[0]}), and a classifier needs at least two. "
            "Add a folder for another class."
        )
    return data


def train_size(recipe: Recipe) -> int:
    """Height and width of a training image in pixels."""
    return recipe.data.train_size or facts_of(recipe.data.name, recipe.data).size or 224


def build_normalise(recipe: Recipe, device: torch.device) -> Normalise:
    """uint8 pixels to what the network sees."""
    mean, std = normalisation(recipe.data.name, recipe.data)
    dtype = dtype_of(recipe.train.precision)
    return Normalise(mean, std, device, dtype, recipe.train.channels_last)


def build_input_normalise(recipe: Recipe, data: Dataset, device: torch.device) -> Normalise:
    """From what a feed gives to what the network sees: features come as floats already."""
    if isinstance(data.train, Features):
        return Unchanged(device, dtype_of(recipe.train.precision))
    return build_normalise(recipe, device)


def build_train_feed(
    recipe: Recipe,
    data: Dataset,
    sampler: Any,
    local: range,
    operations: list[Operation],
    machine: Machine,
    log: Any,
    per_epoch: int,
) -> Feed:
    """This process's micro-batches, from memory or from files; raises `UsageError`."""
    train, keys = recipe.train, recipe.data
    crop = next((op for op in operations if op.stage == "file"), None)
    if isinstance(data.train, Images):
        if crop is not None:
            raise UsageError(
                f"augment: {recipe.augment[0].name} needs files; {recipe.data.name} is in memory. "
                "Use pad-crop, or set data.resident=false where the data set is a folder."
            )
        return MemoryFeed(
            data.train,
            sampler,
            local,
            max_corrupt=keys.max_corrupt,
            device=machine.device,
            log=log,
        )
    cut: Cropping | WholeImages = (
        WholeImages([op for op in operations if op.stage == "sample"])
        if data.train.annotated
        else Cropping(crop, train_size(recipe), keys.train_interpolation)
    )
    files = data.train
    if recipe.sampling.name == "shard-shuffled":
        files = replace(files, names=files.names.kept_whole())
    samples = TrainSamples(
        files, cut, train.device_batch_size, train.seed, keys.decoder, Reading.of(keys)
    )
    return FileFeed(
        samples,
        sampler,
        local,
        steps=total_steps(train, per_epoch),
        max_corrupt=keys.max_corrupt,
        workers=machine.workers,
        device=machine.device,
        log=log,
    )


def augment_ahead(
    feed: Feed, augment: Augment, device: torch.device, per_epoch: int
) -> Callable[[Batch], Batch]:
    """Lets a feed from memory augment many steps at once where the device is not a CPU, whose
    cache holds one micro-batch; returns how its micro-batches are to be augmented then.
    """
    if device.type == "cpu" or not isinstance(feed, MemoryFeed):
        return augment
    of_step = len(feed.local) * len(feed.sampler(0, feed.local[0])) * feed.images[0].nbytes
    if (steps := steps_ahead(augment, of_step, per_epoch)) == 1:
        return augment
    feed.ahead = Ahead(augment.plan, augment.apply, steps, per_epoch)
    return lambda batch: batch


def steps_ahead(augment: Augment, step_bytes: int, per_epoch: int) -> int:
    """How many steps are augmented at once, of images that take `step_bytes` a step."""
    return 1 if augment.from_device else min(max(AHEAD_BYTES // step_bytes, 1), per_epoch)


def build_test_sets(recipe: Recipe, data: Dataset, machine: Machine) -> dict[str, EvalSet]:
    """The test sets that `eval.sets` names (the main one by default), with every size and crop.

    Sets that are the same images by other labels share one feed. Raises `UsageError`, `DataError`.
    """
    main = next(iter(data.tests))
    feeds: dict[str, EvalFeed] = {}
    sets = {}
    for name in recipe.eval.sets or [main]:
        schema.lookup("eval.sets", name, {**data.tests, **data.relabelled})
        source = name if name in data.tests else main
        if source not in feeds:
            feeds[source] = build_test_feed(recipe, data.tests[source], machine)
        labels = None if source == name else data.relabelled[name](data.tests[source])
        sets[name] = EvalSet(feeds[source], labels)
    return sets


def build_test_feed(
    recipe: Recipe, split: Split, machine: Machine, corrupt: str = TEST_IMAGE
) -> EvalFeed:
    """A split's images in order, at the recipe's sizes and crops; see `EvalSamples`."""
    evaluation = recipe.eval
    views = list(dict.fromkeys(View(s, c) for s in evaluation.sizes for c in evaluation.crops))
    if isinstance(split, Images):
        return MemoryEvalFeed(
            split, views, evaluation.batch_size, evaluation.interpolation, machine.device
        )
    keys, reading = recipe.data, Reading.of(recipe.data)
    samples = EvalSamples(
        split, views, evaluation.interpolation, keys.eval_decoder, evaluation.resize, reading,
        corrupt,
    )  # fmt: skip
    return FileEvalFeed(samples, evaluation.batch_size, machine.workers, machine.device)


def initialise_from_images(
    recipe: Recipe, network: nn.Module, data: Dataset, device: torch.device
) -> None:
    """Sets the layers whose start depends on training images: whitening filters, a mean image.

    The images are evenly spaced over the set, which may be sorted by class; all of them where it
    has fewer than the layer asks for. With weights that the recipe loads nothing is set. Raises
    `UsageError`.
    """
    layers = [module for module in network.modules() if isinstance(module, DataDependentInit)]
    if not layers or recipe.model.weights:
        return
    if not isinstance(data.train, Images):
        raise UsageError(
            f"model ({recipe.model.name}): is initialised from "
            f"{layers[0].images or 'all'} training images, "
            f"and {recipe.data.name} is read from files. Set data.resident=true."
        )
    pixels, to_floats = data.train.pixels, build_normalise(recipe, device)
    for layer in layers:
        count = min(layer.images or len(pixels), len(pixels))
        parts = np.array_split(np.arange(count) * len(pixels) // count, -(-count // CHUNK))
        layer.init_from(to_floats(to_device(pixels[part], device)) for part in parts)
