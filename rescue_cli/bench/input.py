"""CPU time of an input pipeline: ours against timm's, measured alternately in one run."""

import math
import resource
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rescue_cli.bench import timm_pipeline
from rescue_cli.bench.timing import alternate, one_thread
from rescue_cli.build.feeds import Machine, build_normalise, build_train_feed, train_size
from rescue_cli.recipe import Item, Recipe
from rescue_cli.sections.augment import Augment
from rescue_cli.sections.data import Dataset, Files
from rescue_cli.sections.data.formats.class_folders import class_folders, read_class_folders
from rescue_cli.sections.data.stream import FileFeed
from rescue_cli.sections.sampling import SamplingContext

CPU = torch.device("cpu")
SHUFFLED = Item("sampling", "shuffled", {})


@dataclass(frozen=True)
class Cost:
    """CPU milliseconds per view, of the data loader's worker and of the training process."""

    worker: float
    loading: float  # receiving batches from the worker; for timm also normalisation
    device: float  # augmentation and normalisation of whole batches

    @property
    def views_per_second(self) -> float:
        """Views/s of one core that does only the worker's part."""
        return 1e3 / self.worker

    @property
    def total(self) -> float:
        return self.worker + self.loading + self.device


def against_timm(recipe: Recipe, folder: Path, *, steps: int, rounds: int) -> dict[str, Any]:
    """Views/s per core of both loaders' workers, and CPU time per view of all work up to the
    network's input batch. Both sides leave out mixing.

    `shared` uses the recipe's own sampling, with all micro-batches of a step in one process;
    `alone` decodes each image for a single view. A round is `steps` of our steps (the first of
    which also pays for first touching its memory) and one of timm's. Medians over rounds. Raises
    `UsageError` and `DataError`.
    """
    names = class_folders(folder)
    files = read_class_folders(
        folder, {name: place for place, name in enumerate(names)}, complete=True
    )
    times = math.ceil(recipe.train.batch_size / len(files))  # no image twice in a step's order
    size = train_size(recipe)
    given = timm_pipeline.options(recipe)
    tiled = files.take(np.tile(np.arange(len(files)), times))
    samplings = {"alone": SHUFFLED}
    if recipe.sampling.name != SHUFFLED.name:
        samplings["shared"] = recipe.sampling
    costs: dict[str, list[Cost]] = {name: [] for name in ("theirs", *samplings)}
    with one_thread():
        for name in alternate(costs, rounds):
            if name == "theirs":
                cost = _theirs(folder, recipe, size, len(files), given)
            else:
                cost = ours(recipe, tiled, tuple(names), samplings[name], steps)
            costs[name].append(cost)
    return {
        "what": f"worker of {recipe.name}'s input at {size} px, {len(files)} images x {times}, "
        f"timm: {given.get('auto_augment', 'no auto-augment')}",
        **_figures({name: _median(found) for name, found in costs.items()}),
        "unit": "views/s a core",
    }


def _figures(costs: dict[str, Cost]) -> dict[str, float]:
    theirs, alone = costs["theirs"], costs["alone"]
    ours = costs.get("shared", alone)
    return {
        "ours": ours.views_per_second,
        "theirs": theirs.views_per_second,
        "ratio": ours.views_per_second / theirs.views_per_second,
        "alone": alone.views_per_second,
        "ratio_alone": alone.views_per_second / theirs.views_per_second,
        "worker_ms": ours.worker,
        "loading_ms": ours.loading,
        "device_ms": ours.device,
        "total_ms": ours.total,
        "total_ms_alone": alone.total,
        "theirs_total_ms": theirs.total,
        "total_ratio": ours.total / theirs.total,
        "total_ratio_alone": alone.total / theirs.total,
    }


def _median(costs: list[Cost]) -> Cost:
    return Cost(
        *(median(getattr(cost, key) for cost in costs) for key in ("worker", "loading", "device"))
    )


def ours(
    recipe: Recipe, files: Files, classes: tuple[str, ...], sampling: Item, steps: int
) -> Cost:
    """The cost of so many steps of our loader with one worker."""
    train = recipe.train
    per_epoch = len(files) // train.batch_size
    size, labels = train.device_batch_size, files.labels
    counted = SamplingContext(len(files), train.batch_size, size, per_epoch, train.seed, labels)
    operations = [item() for item in recipe.augment]
    feed = build_train_feed(
        recipe,
        Dataset(files, {}, classes),
        sampling(counted),
        range(train.micro_batches),
        operations,
        Machine(CPU, 1, Path()),
        print,
        per_epoch,
    )
    assert isinstance(feed, FileFeed)
    feed.steps = steps
    augment = Augment(
        operations,
        build_normalise(recipe, CPU),
        train.seed,
        per_epoch,
    )
    own_before, workers_before = time.process_time(), workers_seconds()
    with closing(feed):
        feed.start(0)
        for step in range(steps):
            batches = list(feed.micro_batches(step))
    loading = time.process_time() - own_before
    worker = workers_seconds() - workers_before
    # Afterwards, because at the same time it would compete with the worker for caches and memory
    started = time.process_time()
    for batch in batches:
        augment(batch)
    device = (time.process_time() - started) * steps
    return _cost(steps * train.batch_size, worker, loading, device)


def _theirs(
    folder: Path, recipe: Recipe, size: int, images: int, given: timm_pipeline.Options
) -> Cost:
    """The cost of one epoch of timm's loader, over at least one step's images."""
    batch_size = recipe.train.device_batch_size
    times = math.ceil(recipe.train.batch_size / images)
    loader = timm_pipeline.loader(folder, size, batch_size, times, given)
    own_before, workers_before = time.process_time(), workers_seconds()
    seen = sum(len(batch) for batch, _ in loader)
    worker = workers_seconds() - workers_before
    return _cost(seen, worker, time.process_time() - own_before, 0.0)


def _cost(views: int, *seconds: float) -> Cost:
    return Cost(*(1e3 * s / views for s in seconds))


def workers_seconds() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
